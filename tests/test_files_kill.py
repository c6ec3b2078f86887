"""SIGKILL at every step of signed files; what was fetched is not fetched again; bounded memory."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from keystore import Store
from keystore.db import open_store
from keystore.doctor import examine
from keystore.errors import KeystoreError
from keystore.sync import digest, repository, targets
from keystore.sync.folder import Folder
from tests.failures import ROOT, Children
from tests.webserver import WebServer, serving

KEYS = """
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)
INSERT INTO APIKeys (api_key, account_id, api_key_hash)
SELECT u || '-0000-7000-8000-' || substr(h, 9, 12), 1, h
FROM (SELECT lower(hex(randomblob(4))) AS u, lower(hex(randomblob(32))) AS h FROM n)
"""


class Published:
    """An origin with enough keys that a file of its repository comes in several chunks."""

    def __init__(self, folder: Path, count: int, later: int) -> None:
        self.origin, self.folder, self.keys = folder / "o.db", folder / "repository", folder / "k"
        self.root = repository.create(Folder(self.folder), self.keys)
        self.base = folder / "base.db"
        with Store.create(self.origin) as store:
            store.add_plan("free")
            store.add_account("ada@example.org", plan="free")
        self.publish(count)
        targets.replicate(str(self.folder), self.base, root=self.root.read_bytes())
        self.publish(later)

    def publish(self, count: int = 0) -> None:
        with open_store(self.origin) as file:
            with file.write() as conn:
                conn.execute(KEYS, {"count": count})
            targets.sync(file, str(self.folder), keys=self.keys)

    def is_at(self, path: Path) -> bool:
        """Whether a sound replica has what the origin has."""
        with open_store(path) as file, open_store(self.origin) as origin:
            assert examine(file) == []
            return digest.digest_store(file) == digest.digest_store(origin)

    @property
    def sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in (self.folder / "targets").iterdir()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("site"), 40_000, 30_000)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    made = Children()
    yield made
    made.close()


@pytest.fixture
def server(site: Published) -> Iterator[WebServer]:
    with serving(site.folder) as running:
        yield running


@pytest.fixture
def edge(site: Published, tmp_path: Path) -> Path:
    """A replica that lacks the last publication, in a folder of its own."""
    folder = tmp_path / "edge"
    folder.mkdir()
    shutil.copy(site.base, folder / "edge.db")
    return folder / "edge.db"


def fetched(server: WebServer) -> int:
    """How many bytes of targets were sent since the last call."""
    count = sum(sent for name, sent in server.sent.items() if ".zst" in name)
    server.sent.clear()
    return count


def parts(folder: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_size for path in folder.glob(".*.download/*.part")}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


SYNC = ("pull.opened", "pull.page", "pull.staged", "pull.applied", "pull.done")
CASES = [
    *(("replicate", step, nth) for step, nth in (("download.chunk", 1), ("download.chunk", 3))),
    *(("replicate", step, nth) for step, nth in (("download.done", 1), ("download.done", 2))),
    ("replicate", "replicate.filled", 1),
    *(("sync", step, nth) for step, nth in (("download.chunk", 1), ("download.done", 1))),
    *(("sync", step, 1) for step in SYNC),
]


@pytest.mark.parametrize(("command", "step", "nth"), CASES)
def test_a_kill_leaves_the_old_state_and_what_was_fetched_is_not_fetched_again(
    site: Published,
    server: WebServer,
    children: Children,
    edge: Path,
    command: str,
    step: str,
    nth: int,
) -> None:
    path = edge if command == "sync" else edge.with_name("new.db")
    if command == "sync":
        arguments = ["sync", server.url, "--db", path, "--root", site.root]
    else:
        arguments = ["replicate", server.url, path, "--root", site.root]
    status, said = children.run(*arguments, step=step, nth=nth)
    assert status == -signal.SIGKILL, said
    held, is_done = parts(edge.parent), step in {"pull.applied", "pull.done"}
    if command == "sync":
        assert site.is_at(path) == is_done
    else:
        assert not path.exists()
    if step.startswith("download"):
        assert sum(held.values()) > 0
    fetched(server)
    status, said = children.run(*arguments)
    assert status == 0, said
    wanted = {n: size for n, size in site.sizes.items() if command != "sync" or "changes" in n}
    already = sum(wanted.values()) if is_done else sum(held.values())
    assert fetched(server) == sum(wanted.values()) - already
    assert site.is_at(path)
    assert names(edge.parent) == {"edge.db", path.name}


def damage(site: Published, folder: Path, what: str) -> None:
    """Leave what a crash, or somebody, may leave in the place of a download."""
    folder.mkdir()
    for name, size in site.sizes.items():
        part = folder / f"{name.partition('.')[0]}.part"
        whole = (site.folder / "targets" / name).read_bytes()
        match what:
            case "zeros":
                part.write_bytes(bytes(size))
            case "zeros in it":
                part.write_bytes(whole[:1000] + bytes(size // 2))
            case "longer":
                part.write_bytes(whole + b"x")
            case "another version":
                (folder / f"{'0' * 64}.part").write_bytes(whole)
            case "half":
                part.write_bytes(whole[: size // 2])


@pytest.mark.parametrize("what", ["zeros", "zeros in it", "longer", "another version", "half"])
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_whatever_lies_in_the_place_of_a_download_is_not_taken_for_it(
    site: Published, server: WebServer, edge: Path, what: str, knows_ranges: bool
) -> None:
    new = edge.with_name("new.db")
    server.knows_ranges = knows_ranges
    damage(site, new.with_name(".new.db.download"), what)
    targets.replicate(server.url, new, root=site.root.read_bytes())
    assert site.is_at(new)
    assert names(edge.parent) == {"edge.db", "new.db"}


def test_a_file_that_was_cut_short_on_a_server_is_told_from_one_that_is_away(
    site: Published, tmp_path: Path, edge: Path
) -> None:
    new, served = edge.with_name("new.db"), tmp_path / "served"
    shutil.copytree(site.folder, served)
    for path in (served / "targets").iterdir():
        os.truncate(path, 10)
    damage(site, new.with_name(".new.db.download"), "half")
    with serving(served) as server, pytest.raises(KeystoreError) as caught:
        targets.replicate(server.url, new, root=site.root.read_bytes())
    assert caught.value.code == "truncated_file"


def test_processes_that_sync_one_replica_at_once_do_not_hurt_each_other(
    site: Published, server: WebServer, edge: Path
) -> None:
    several = [Children() for _ in range(3)]
    try:
        for one in several:
            one.start("sync", server.url, "--db", edge, "--root", site.root)
        for one in several:
            status, said = one.wait()
            assert status == 0, said
        new = edge.with_name("new.db")
        for one in several:
            one.start("replicate", server.url, new, "--root", site.root)
        ended = [one.wait() for one in several]
    finally:
        for one in several:
            one.close()
    assert sorted(status for status, _ in ended) == [0, 1, 1]
    assert all("already exists" in said for status, said in ended if status)
    assert site.is_at(edge)
    assert site.is_at(new)
    assert names(edge.parent) == {"edge.db", "new.db"}


PUBLISH = ("push.begin", "push.locked", "push.page", "push.sent", "push.pending", "publish.files")
AFTER = ("publish.timestamp", "push.staged", "push.committed", "push.acknowledged")


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("step", [*PUBLISH, "publish.metadata", *AFTER])
def test_a_publisher_that_is_killed_leaves_a_whole_state_and_goes_on(
    children: Children, tmp_path: Path, step: str, is_first: bool
) -> None:
    folder, keys, origin = tmp_path / "repository", tmp_path / "keys", tmp_path / "origin.db"
    edge = tmp_path / "edge.db"
    root = repository.create(Folder(folder), keys)
    publish = ["sync", folder, "--keys", keys, "--db", origin]
    replicate = ["replicate", folder, edge, "--root", root]
    with Store.create(origin) as store:
        store.add_plan("free")
    if not is_first:
        for arguments in (publish, replicate):
            status, said = children.run(*arguments)
            assert status == 0, said
        with Store.open(origin) as store:
            store.add_plan("later")
    status, said = children.run(*publish, step=step)
    assert status == -signal.SIGKILL, said
    read = replicate if is_first else ["sync", folder, "--db", edge]
    status, said = children.run(*read)
    if is_first and step not in AFTER:
        assert "lacks the file" in said
    else:
        assert status == 0, said
        with Store.open(edge) as store, Store.open(origin) as at:
            is_new = digest.digest_store(store.file) == digest.digest_store(at.file)
        assert is_new == (step in AFTER)
    for arguments in (publish, ["sync", folder, "--db", edge] if edge.exists() else replicate):
        status, said = children.run(*arguments)
        assert status == 0, said
    with Store.open(edge) as store, Store.open(origin) as at:
        assert digest.digest_store(store.file) == digest.digest_store(at.file)
    status, said = children.run("repo", "gc", folder, "--keys", keys, "--db", origin)
    assert status == 0, said
    assert children.run("sync", folder, "--db", edge)[0] == 0


MEASURED = """
import json, resource, sys
from pathlib import Path
from keystore.db import open_store
from keystore.sync import files, objects, targets, verify

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

url, root, path, old = sys.argv[1:]
found = {"start": peak()}
targets.replicate(url, Path(path), root=Path(root).read_bytes())
found["replicate"] = peak()
with open_store(old) as file:
    targets.sync(file, url, root=Path(root).read_bytes())
found["sync"] = peak()
print(json.dumps(found))
"""


def test_memory_does_not_grow_with_the_number_of_keys(
    site: Published, tmp_path_factory: pytest.TempPathFactory
) -> None:
    large = Published(tmp_path_factory.mktemp("large"), 150_000, 50_000)
    peaks = []
    for one in (site, large):
        with serving(one.folder) as server:
            new, old = one.base.with_name("new.db"), one.base.with_name("old.db")
            shutil.copy(one.base, old)
            done = subprocess.run(
                [sys.executable, "-c", MEASURED, server.url, one.root, new, old],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert one.is_at(new)
            assert one.is_at(old)
            peaks.append(json.loads(done.stdout))
    # (most of it are page caches, 64 MiB each, which a small store does not fill)
    assert peaks[1]["sync"] - peaks[1]["start"] < 256, peaks
