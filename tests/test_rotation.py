"""Keys are replaced while readers read, publishers publish, and processes are killed."""

import json
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tuf.api.metadata import Metadata, Root

from keystore import Store
from keystore.cli import main
from keystore.errors import (
    AlreadyExistsError,
    ExpiredRepositoryError,
    InvalidInputError,
    KeystoreError,
    TargetNotReadyError,
    UntrustedRepositoryError,
)
from keystore.sync import repository, repository_info, repository_keys, rotation, targets
from keystore.sync.folder import Folder
from keystore.sync.repository_format import FIELD, Scope
from tests.failures import Children, said
from tests.repositories import Shelf, digest_of

KINDS = [(True, False), (False, True), (True, True), (False, False)]


@pytest.fixture
def shelf(store: Store, tmp_path: Path) -> Shelf:
    shelf = Shelf(store, tmp_path)
    shelf.publish()
    return shelf


def rotate(shelf: Shelf, *, online: bool = False, root: bool = False) -> int:
    return rotation.rotate(shelf.storage, shelf.keys, root_key=None, online=online, root=root)


def private_keys(shelf: Shelf) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in shelf.keys.rglob("*.pem")}


def assert_all_is_well(shelf: Shelf, *replicas: Path) -> None:
    shelf.store.add_plan(f"plan {len(shelf.store.plans())}")
    shelf.publish()
    for path in (*replicas, shelf.replicate()):
        shelf.pull(path)
        assert digest_of(path) == digest_of(shelf.store.file.path)
    info = repository_info.look(shelf.storage, shelf.root)
    assert (info.root_keys, info.online_keys) == (1, 1)


@pytest.mark.parametrize(("online", "root"), KINDS)
def test_replicas_of_any_age_follow_a_rotation(shelf: Shelf, online: bool, root: bool) -> None:
    replica, before = shelf.replicate(), private_keys(shelf)
    assert rotate(shelf, online=online, root=root) == 2 + online
    after = private_keys(shelf)
    assert (after["online.pem"] != before["online.pem"]) == online
    assert (after["root.pem"] != before["root.pem"]) == root
    assert after.keys() == before.keys()
    for path in shelf.keys.rglob("*.pem"):
        assert path.stat().st_mode & 0o777 == 0o600
    shelf.pull(replica)
    assert_all_is_well(shelf, replica)


def test_new_keys_are_on_disk_before_a_root_file_counts_on_them(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root key above all: a power cut that loses it leaves a repository without one."""
    events: list[object] = []
    create = Folder.create

    def noted(self: Folder, name: str, data: bytes) -> bool:
        events.append(name)
        return create(self, name, data)

    monkeypatch.setattr(repository_keys, "sync_folder", events.append)
    monkeypatch.setattr(Folder, "create", noted)
    rotate(shelf, online=True, root=True)
    published = events.index("metadata/2.root.json")
    assert {shelf.keys, shelf.keys / "offline"} <= set(events[:published])


def test_a_replica_that_missed_many_rotations_follows(shelf: Shelf) -> None:
    replica = shelf.replicate()
    for _ in range(12):
        rotate(shelf, online=True, root=True)
    assert_all_is_well(shelf, replica)


def test_new_replicas_are_given_the_newest_root(shelf: Shelf) -> None:
    rotate(shelf, online=True, root=True)
    old, shelf.root = shelf.root, (shelf.keys / "root.json").read_bytes()
    assert Metadata[Root].from_bytes(shelf.root).signed.version == 3
    replica = shelf.replicate()
    rotate(shelf, root=True)
    assert_all_is_well(shelf, replica)
    shelf.root = old
    assert_all_is_well(shelf)


class Crash(BaseException):
    """Stands for the end of the process at this point."""


class Crashing:
    """Lets a process end before or after its nth write, to the keys or to the repository."""

    def __init__(self, fatal: int, when: str, seen: Callable[[], None]) -> None:
        self.fatal, self.when, self.seen, self.count = fatal, when, seen, 0

    def around(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def crashing(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            self.seen()
            if self.count == self.fatal and self.when == "before":
                raise Crash
            done = write(*arguments, **options)
            if self.count == self.fatal:
                raise Crash
            return done

        return crashing

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for place, name in (
            (Folder, "_write"),
            (repository_keys, "_write"),
            (repository_keys, "take_next"),
        ):
            patch.setattr(place, name, self.around(getattr(place, name)))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("online", "root"), [(True, True), (False, True)])
def test_a_rotation_that_dies_at_any_write_is_done_again_and_readers_verify_at_each(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, when: str, online: bool, root: bool
) -> None:
    replica = shelf.replicate()

    def look() -> None:
        shelf.pull(replica)

    for fatal in count(1):
        crashing = Crashing(fatal, when, look)
        with monkeypatch.context() as patch, suppress(Crash):
            crashing.install(patch)
            rotate(shelf, online=online, root=root)
        look()
        shelf.publish()  # whatever the state of the keys is
        look()
        if fatal % 2:
            rotate(shelf, online=online, root=root)
        else:
            rotate(shelf)  # a renewal brings it to its end as well
        assert_all_is_well(shelf, replica)
        if crashing.count < fatal:
            assert fatal > 2
            return


@pytest.mark.parametrize("step", ["rotate.root", "rotate.signed"])
def test_a_rotation_that_is_killed_is_told_and_done_again(shelf: Shelf, step: str) -> None:
    replica, path = shelf.replicate(), shelf.store.file.path
    children = Children()
    arguments = ("repo", "rotate", shelf.folder, "--online", "--root", "--keys", shelf.keys)
    status, _ = children.run(*arguments, "--db", path, step=step)
    assert status == -signal.SIGKILL
    shelf.pull(replica)
    (warning,) = shelf.publish().warnings
    assert "old online key" in warning
    shelf.pull(replica)
    assert children.run(*arguments, "--db", path)[0] == 0
    children.close()
    assert shelf.publish().warnings == ()
    assert_all_is_well(shelf, replica)


def test_the_old_online_key_counts_no_more(shelf: Shelf, tmp_path: Path) -> None:
    shutil.copytree(shelf.keys, tmp_path / "stolen")
    before = shelf.copied()
    replica = shelf.replicate()
    rotate(shelf, online=True)
    shelf.pull(replica)
    thief = repository_keys.load(
        tmp_path / "stolen/online.pem",
        list(Metadata[Root].from_bytes(shelf.root).signed.keys),
    )
    with pytest.raises(InvalidInputError, match="not a key of this repository"):
        repository.Publisher(shelf.storage, tmp_path / "stolen")
    timestamp = Metadata[Any].from_file(str(before / "metadata/timestamp.json"))
    timestamp.signed.version = 1 << 60
    timestamp.sign(thief)
    timestamp.to_file(str(shelf.folder / "metadata/timestamp.json"))
    with pytest.raises(UntrustedRepositoryError):
        shelf.pull(replica)
    with pytest.raises(UntrustedRepositoryError):
        shelf.publish()


def forge(shelf: Shelf, version: int, *, key: Path | None = None) -> bytes:
    """Make a root file that widens the scope, as somebody would who writes to the storage."""
    names = (shelf.folder / "metadata").glob("*.root.json")
    newest = max(names, key=lambda path: int(path.name.split(".")[0]))
    metadata = Metadata[Root].from_file(str(newest))
    metadata.signed.version = version
    metadata.signed.unrecognized_fields[FIELD]["scope"] = None
    signer = repository_keys.make_next(shelf.base / "thief.pem")
    if key is not None:
        keyids = list(Metadata[Root].from_bytes(shelf.root).signed.roles[Root.type].keyids)
        metadata.sign(repository_keys.load(key, keyids))
    metadata.signed.add_key(signer.public_key, Root.type)
    for role in repository.ONLINE_ROLES:
        metadata.signed.add_key(signer.public_key, role)
    metadata.sign(signer, append=True)
    return metadata.to_bytes()


@pytest.fixture
def scoped(store: Store, tmp_path: Path) -> Shelf:
    store.add_account("other@example.org", plan="free")
    shelf = Shelf(store, tmp_path, scope=Scope(kind="account", record_id=1, name="ada"))
    shelf.publish()
    return shelf


def test_a_forged_root_is_not_followed_and_nothing_is_signed_on_it(scoped: Shelf) -> None:
    forged = scoped.folder / "metadata/2.root.json"
    for data in (forge(scoped, 2), scoped.root, b"{}", b"no JSON", b""):
        forged.write_bytes(data)
        before = scoped.files()
        for act in (scoped.publish, lambda: rotate(scoped, online=True, root=True)):
            with pytest.raises(UntrustedRepositoryError) as caught:
                act()
            assert "remove that file" in said(caught.value)
        assert scoped.files() == before
        assert private_keys(scoped).keys() == {"online.pem", "root.pem"}
    forged.unlink()
    scoped.publish()
    assert scoped.published().stamp.counts["Accounts"] == 1  # type: ignore[union-attr]


def test_who_stole_a_root_key_that_was_replaced_cannot_take_the_chain_back(
    scoped: Shelf, tmp_path: Path
) -> None:
    shutil.copytree(scoped.keys, tmp_path / "stolen")
    rotate(scoped, root=True)
    forged = forge(scoped, 2, key=tmp_path / "stolen/offline/root.pem")
    (scoped.folder / "metadata/2.root.json").write_bytes(forged)
    with pytest.raises(UntrustedRepositoryError):
        scoped.publish()
    (scoped.folder / "metadata/2.root.json").unlink()
    with pytest.raises(UntrustedRepositoryError):
        scoped.publish()


def test_another_repository_in_its_place_gets_nothing(scoped: Shelf, tmp_path: Path) -> None:
    """Even one of our own, whose keys lie beside: it may carry more."""
    wide = repository.create(Folder(tmp_path / "wide"), scoped.keys / "wide")
    assert wide.exists()
    scoped.publish()
    shutil.rmtree(scoped.folder)
    shutil.copytree(tmp_path / "wide", scoped.folder)
    before = scoped.files()
    with pytest.raises(UntrustedRepositoryError):
        scoped.publish()
    assert scoped.files() == before


def move_away(path: Path) -> None:
    path.rename(path.with_name("moved"))


def fill_with_nonsense(path: Path) -> None:
    path.write_text("no key")


def put_a_folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swap_for_anothers(path: Path) -> None:
    path.unlink()
    repository_keys.make_next(path)
    repository_keys.take_next(path)


@pytest.mark.parametrize(
    "spoil", [move_away, fill_with_nonsense, put_a_folder_there, swap_for_anothers]
)
@pytest.mark.parametrize("name", ["online.pem", "offline/root.pem", "root.json"])
def test_a_key_file_that_is_missing_or_wrong_is_told(
    shelf: Shelf, spoil: Callable[[Path], None], name: str
) -> None:
    replica, before = shelf.replicate(), shelf.files()
    spoil(shelf.keys / name)
    act = shelf.publish if name != "offline/root.pem" else lambda: rotate(shelf, root=True)
    with pytest.raises((InvalidInputError, TargetNotReadyError)) as caught:
        act()
    assert said(caught.value)
    assert shelf.files() == before
    shelf.pull(replica)


def test_a_lost_online_key_is_replaced_with_the_root_key(shelf: Shelf) -> None:
    replica = shelf.replicate()
    (shelf.keys / "online.pem").unlink()
    rotate(shelf, online=True)
    assert_all_is_well(shelf, replica)


def test_a_half_written_successor_of_a_key_is_no_obstacle(shelf: Shelf) -> None:
    (shelf.keys / "online.next.pem").write_bytes(b"-----BEGIN PRIV")
    (shelf.keys / "offline/root.next.pem").write_bytes(b"")
    shelf.publish()
    rotate(shelf, online=True, root=True)
    assert_all_is_well(shelf)


def test_the_end_of_the_root_file_is_told_long_before_and_clearly_after(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, path = shelf.replicate(), shelf.store.file.path
    with monkeypatch.context() as patch:
        patch.setattr(repository, "ROOT_LIFETIME", timedelta(days=30))
        rotate(shelf)
    arguments = ["sync", str(shelf.folder), "--keys", str(shelf.keys), "--db", str(path)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0
    assert "root file expires in 29 days" in done.stderr
    assert "keystore repo renew" in done.stderr
    with monkeypatch.context() as patch:
        patch.setattr(repository, "ROOT_LIFETIME", timedelta(seconds=-5))
        rotate(shelf)
    done = CliRunner().invoke(main, arguments)
    assert "root file has expired" in done.stderr
    with pytest.raises(ExpiredRepositoryError) as caught:
        shelf.pull(replica)
    assert "keystore repo renew" in said(caught.value)
    rotate(shelf)
    assert shelf.publish().warnings == ()
    shelf.pull(replica)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_creation_that_dies_at_any_write_is_done_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    for fatal in count(1):
        folder, keys = Folder(tmp_path / f"files {fatal}"), tmp_path / f"keys {fatal}"
        crashing = Crashing(fatal, when, lambda: None)
        with monkeypatch.context() as patch, suppress(Crash):
            crashing.install(patch)
            repository.create(folder, keys)
        if crashing.count < fatal:
            assert fatal > 5
            return
        with suppress(AlreadyExistsError):  # it was done
            repository.create(folder, keys)
        assert {path.name for path in keys.rglob("*") if path.is_file()} == {
            "online.pem",
            "root.pem",
            "root.json",
        }
        repository.Publisher(folder, keys)
        with pytest.raises(AlreadyExistsError):
            repository.create(folder, tmp_path / "other keys")


def test_a_creation_that_died_is_not_finished_under_other_terms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or somebody would believe that a repository has a scope that it has not."""
    folder, keys = Folder(tmp_path / "files"), tmp_path / "keys"

    def die(*_: object) -> Path:
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(repository_keys, "finish", die)
        repository.create(folder, keys)
    with pytest.raises(AlreadyExistsError):
        repository.create(folder, keys, scope=Scope(kind="account", record_id=1, name="ada"))
    assert not (keys / "root.json").exists()
    repository.create(folder, keys)


def test_no_key_is_ever_overwritten(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    repository.create(Folder(tmp_path / "one"), keys)
    before = {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()}
    for spared, wanted in before.items():
        for path, data in before.items():
            path.write_bytes(data)
        for path in before.keys() - {spared}:
            path.unlink()
        with pytest.raises(AlreadyExistsError) as caught:
            repository.create(Folder(tmp_path / "two"), keys)
        assert said(caught.value)
        assert spared.read_bytes() == wanted
        assert not (tmp_path / "two").exists()


def test_a_place_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    """What lies there would be removed one day, or be taken for ours."""
    (tmp_path / "files/targets").mkdir(parents=True)
    (tmp_path / "files/targets/mine").write_text("mine")
    with pytest.raises(AlreadyExistsError, match="not empty"):
        repository.create(Folder(tmp_path / "files"), tmp_path / "keys")
    assert not (tmp_path / "keys").exists()
    (tmp_path / "file").write_text("a file")
    with pytest.raises(KeystoreError):
        repository.create(Folder(tmp_path / "file"), tmp_path / "keys")
    with pytest.raises(InvalidInputError):
        repository.create(Folder(tmp_path / "new"), tmp_path / "file" / "keys")


def test_the_lifetime_of_what_is_published_is_the_one_that_was_asked_for(
    store: Store, tmp_path: Path
) -> None:
    folder, keys = tmp_path / "files", tmp_path / "keys"
    repository.create(Folder(folder), keys, lifetime=timedelta(hours=2))
    targets.sync(store.file, str(folder), keys=keys)
    text = json.loads((folder / "metadata/timestamp.json").read_text())
    left = datetime.fromisoformat(text["signed"]["expires"]) - datetime.now(UTC)
    assert timedelta(minutes=118) < left <= timedelta(hours=2)


@pytest.mark.parametrize("days", [-1, 4000, 7_000_000])
def test_times_beyond_reason_are_refused(tmp_path: Path, days: int) -> None:
    folder, keys, time = Folder(tmp_path / "files"), tmp_path / "keys", timedelta(days=days)
    with pytest.raises(InvalidInputError):
        repository.create(folder, keys, lifetime=time)
    with pytest.raises(InvalidInputError):
        repository.create(folder, keys, max_offline=time)
    assert not keys.exists()
