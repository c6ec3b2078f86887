"""Real S3 servers for tests: moto and SeaweedFS, each as a process of its own, on loopback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

import obstore
import pytest
from obstore.store import S3Store

from keystore import Store
from keystore.db import open_store
from keystore.sync import digest, repository, targets
from keystore.sync.storage import storage_of
from keystore.testing.postgres import free_port

_BIN = Path(sys.executable).parent
_BUCKET = "keystore-tests"
_DIRECT = build_opener(ProxyHandler({}))
USERS: Mapping[str, tuple[str, ...]] = {
    "admin": ("Admin", "Read", "List", "Tagging", "Write"),
    "reader": ("Read", "List"),
    "getter": ("Read",),
}
"""What each user of SeaweedFS may do; the secret is the name in capitals."""


@dataclass(frozen=True)
class S3Server:
    """A running S3 server."""

    name: str
    endpoint: str
    pid: int

    def environment(self, user: str = "admin") -> dict[str, str]:
        """Return the environment of a client."""
        return {
            "AWS_ACCESS_KEY_ID": user,
            "AWS_SECRET_ACCESS_KEY": user.upper(),
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
        }

    def admit(self, monkeypatch: pytest.MonkeyPatch, user: str = "admin", **more: str) -> None:
        """Make this process a client."""
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in (self.environment(user) | more).items():
            monkeypatch.setenv(name, value)

    def new_url(self) -> str:
        """Return a place of the test's own."""
        return f"s3://{_BUCKET}/{uuid.uuid4().hex[:12]}"

    def make_bucket(self) -> None:
        """Make the bucket that all tests share: SeaweedFS gives each one volumes of its own."""
        store = S3Store(
            _BUCKET,
            config={
                "endpoint": self.endpoint,
                "access_key_id": "admin",
                "secret_access_key": "ADMIN",
                "region": "us-east-1",
            },
            client_options={"allow_http": True},
        )
        # (a client for objects has no word for it: it is a PUT on the bucket's name)
        url = obstore.sign(store, "PUT", "", timedelta(minutes=1))
        with _DIRECT.open(Request(url, method="PUT"), timeout=30):  # noqa: S310 - ours
            pass


class Site:
    """A store that publishes to a bucket, with a replica that pulls from it."""

    def __init__(self, store: Store, url: str, folder: Path) -> None:
        self.store, self.url, self.folder = store, url, folder
        self.keys, self.replica = folder / "keys", folder / "replica.db"
        self.root = repository.create(storage_of(url), self.keys).read_bytes()
        self.publish()

    def publish(self, path: Path | None = None, keys: Path | None = None) -> None:
        with open_store(path or self.store.file.path) as file:
            targets.sync(file, self.url, keys=keys or self.keys)

    def replicate(self, name: str = "replica.db", url: str | None = None) -> Path:
        path = self.folder / name
        targets.replicate(url or self.url, path, root=self.root)
        return path

    def pull(self, path: Path | None = None) -> None:
        with open_store(path or self.replica) as file:
            targets.sync(file)

    def same(self, path: Path | None = None) -> bool:
        with open_store(path or self.replica) as file:
            return digest.digest_store(file) == digest.digest_store(self.store.file)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at, and that no outgoing connection takes."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def answers(url: str, below: int = 500) -> bool:
    """Whether a web server answers, with a status ``below``."""
    try:
        with _DIRECT.open(url, timeout=5):
            return True
    except URLError as error:
        return getattr(error, "code", below) < below
    except OSError:
        return False


@contextmanager
def running(
    command: list[str], url: str, folder: Path, below: int = 500
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; wait until it answers.

    Raises:
        AssertionError: it ended, or does not answer within a minute.
    """
    log = folder / "log"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while not answers(url, below):
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
            time.sleep(0.05)
        yield process
    finally:
        # (SIGTERM makes SeaweedFS wait for its volumes to be forgotten)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


@contextmanager
def moto() -> Iterator[S3Server]:
    """Run moto's server."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [str(_BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with (
        tempfile.TemporaryDirectory(prefix="keystore-moto-") as folder,
        running(command, f"{url}/moto-api/", Path(folder)) as process,
    ):
        server = S3Server("moto", url, process.pid)
        server.make_bucket()
        yield server


@contextmanager
def seaweedfs() -> Iterator[S3Server]:
    """Run SeaweedFS; anybody may read what is there."""
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": name, "secretKey": name.upper()}],
            "actions": list(actions),
        }
        for name, actions in USERS.items()
    ] + [{"name": "anonymous", "actions": ["Read"]}]
    services = ("master", "volume", "filer", "s3")
    names = [f"{service}.{port}" for service in services for port in ("port", "port.grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    folder = Path(tempfile.mkdtemp(prefix="keystore-weed-"))
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    command = [
        str(_BIN / "weed"),
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=50",
        "-volume.preStopSeconds=0",
        "-filer",
        "-filer.localSocket=" + str(folder / "filer.sock"),
        "-s3",
        "-s3.config=" + str(folder / "s3.json"),
        "-s3.localSocket=" + str(folder / "s3.sock"),
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    url = f"http://127.0.0.1:{ports['s3.port']}"
    try:
        with running(command, f"{url}/status", folder) as process:
            server = S3Server("seaweedfs", url, process.pid)
            server.make_bucket()
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)
