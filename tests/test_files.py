"""Nothing enters unsigned: each attack on the repository is refused and the last state stays."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from keystore import KeystoreError, Store, Validator
from keystore.changelog import Page
from keystore.db import open_store
from keystore.errors import (
    DecompressionBombError,
    ExpiredRepositoryError,
    ForeignOriginError,
    IncompleteStateError,
    TargetNotReadyError,
    TargetUnavailableError,
    UntrustedRepositoryError,
)
from keystore.sync import digest, packing, repository, repository_keys, snapshot, targets
from keystore.sync.folder import Folder
from keystore.sync.repository_format import SNAPSHOT_NAME
from tests.conftest import NewStore


class Site:
    """A store, its repository, and a replica that has pulled once."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder / "repository"
        self.keys, self.replica = folder / "keys", folder / "replica.db"
        root = repository.create(Folder(self.folder), self.keys)
        self.root = root.read_bytes()
        self.token = store.issue_key("ada@example.org").token
        self.publish()
        targets.replicate(str(self.folder), self.replica, root=self.root)

    def publish(self) -> None:
        targets.sync(self.store.file, str(self.folder), keys=self.keys)

    def pull(self) -> None:
        with open_store(self.replica) as file:
            targets.sync(file, str(self.folder))

    def newest(self, pattern: str) -> Path:
        return max(self.folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture
def site(store: Store, tmp_path: Path) -> Site:
    return Site(store, tmp_path)


def test_a_key_that_is_revoked_and_published_is_denied_after_the_next_pull(site: Site) -> None:
    site.store.revoke_key(site.token)
    site.publish()
    with Validator(site.replica) as validator:
        assert validator.check(site.token).allowed
        site.pull()
        assert not validator.check(site.token).allowed


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def change_a_byte_of_the_snapshot(site: Site) -> None:
    flip(site.newest("targets/*"))


def cut_the_snapshot_short(site: Site) -> None:
    path = site.newest("targets/*")
    path.write_bytes(path.read_bytes()[:-10])


def lengthen_the_snapshot(site: Site) -> None:
    path = site.newest("targets/*")
    path.write_bytes(path.read_bytes() + b"x" * 10_000)


def change_the_signed_announcement(site: Site) -> None:
    path = site.newest("metadata/*.targets.json")
    said = json.loads(path.read_text())
    said["signed"]["targets"][SNAPSHOT_NAME]["custom"]["up_to"] += 1
    path.write_text(json.dumps(said))


def swap_in_anothers_root(site: Site) -> None:
    other = site.folder.with_name("other")
    root = repository.create(Folder(other), site.keys.with_name("other.keys")).read_bytes()
    (site.folder / "metadata/2.root.json").write_bytes(
        root.replace(b'"version": 1', b'"version": 2')
    )


def empty_the_timestamp(site: Site) -> None:
    (site.folder / "metadata/timestamp.json").write_text("{}")


def make_the_timestamp_endless(site: Site) -> None:
    (site.folder / "metadata/timestamp.json").write_bytes(b" " * 10_000_000)


def remove_the_snapshot(site: Site) -> None:
    site.newest("targets/*").unlink()


def take_the_folder_away(site: Site) -> None:
    shutil.rmtree(site.folder)


ATTACKS: list[tuple[Callable[[Site], None], type[KeystoreError]]] = [
    (change_a_byte_of_the_snapshot, UntrustedRepositoryError),
    (cut_the_snapshot_short, UntrustedRepositoryError),
    (lengthen_the_snapshot, UntrustedRepositoryError),
    (change_the_signed_announcement, UntrustedRepositoryError),
    (swap_in_anothers_root, UntrustedRepositoryError),
    (empty_the_timestamp, UntrustedRepositoryError),
    (make_the_timestamp_endless, UntrustedRepositoryError),
    (remove_the_snapshot, TargetNotReadyError),
    (take_the_folder_away, TargetNotReadyError),
]


@pytest.mark.parametrize(("attack", "error"), ATTACKS, ids=lambda item: item.__name__)
def test_an_attack_is_refused_and_the_replica_answers_as_before(
    site: Site, attack: Callable[[Site], None], error: type[KeystoreError]
) -> None:
    with open_store(site.replica) as file:
        before = (digest.digest_store(file), file.info())
    site.store.add_plan("published, then attacked")
    site.publish()
    attack(site)
    with pytest.raises(error) as caught:
        site.pull()
    assert "\n" not in str(caught.value)
    with open_store(site.replica) as file:
        assert (digest.digest_store(file), file.info()) == before
    with Validator(site.replica) as validator:
        assert validator.check(site.token).allowed


def test_an_older_state_is_refused(site: Site, tmp_path: Path) -> None:
    """Rollback: everything in the repository is put back, signatures and all."""
    shutil.copytree(site.folder, tmp_path / "old")
    site.store.revoke_key(site.token)
    site.publish()
    site.pull()
    shutil.rmtree(site.folder)
    shutil.copytree(tmp_path / "old", site.folder)
    with pytest.raises(UntrustedRepositoryError):
        site.pull()
    with Validator(site.replica) as validator:
        assert not validator.check(site.token).allowed


def test_expired_signatures_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(repository, "expiry", lambda _: datetime.now(UTC).replace(microsecond=0))
        site.publish()
    with pytest.raises(ExpiredRepositoryError, match="keystore sync"):
        site.pull()


def test_a_repository_signed_by_someone_else_makes_no_replica(
    site: Site, new_store: NewStore, tmp_path: Path
) -> None:
    theirs = repository.create(Folder(tmp_path / "theirs"), tmp_path / "theirs.keys").read_bytes()
    with pytest.raises(UntrustedRepositoryError):
        targets.replicate(str(site.folder), tmp_path / "new.db", root=theirs)
    assert not (tmp_path / "new.db").exists()


def test_a_repository_made_anew_at_its_place_is_trusted_when_told_and_remembered(
    site: Site, tmp_path: Path
) -> None:
    shutil.rmtree(site.folder)
    keys = tmp_path / "new.keys"
    root = repository.create(Folder(site.folder), keys).read_bytes()
    site.store.revoke_key(site.token)
    targets.sync(site.store.file, str(site.folder), keys=keys)
    with pytest.raises(UntrustedRepositoryError):
        site.pull()
    with open_store(site.replica) as file:
        targets.sync(file, str(site.folder) + "/", root=root)
    with Validator(site.replica) as validator:
        assert not validator.check(site.token).allowed
    site.store.add_plan("later")
    targets.sync(site.store.file, str(site.folder), keys=keys)
    site.pull()
    with Store.open(site.replica) as replica:
        assert [target.url for target in replica.status().targets] == [site.folder.as_uri()]


def test_one_repository_serves_one_origin(site: Site, new_store: NewStore) -> None:
    other = new_store("other.db")
    with pytest.raises(ForeignOriginError):
        targets.sync(other.file, str(site.folder), keys=site.keys)


def test_a_snapshot_that_does_not_add_up_is_not_applied(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed by the right key, and wrong all the same: a bug at the publisher."""
    whole = snapshot.pages_of

    def all_but_the_last(path: Path) -> list[Page]:
        return list(whole(path))[:-1]

    with monkeypatch.context() as patch, pytest.raises(IncompleteStateError):
        patch.setattr("keystore.sync.segments.read", lambda _, __: iter(()))
        patch.setattr("keystore.sync.snapshot.pages_of", all_but_the_last)
        site.store.add_plan("new")
        site.publish()
        site.pull()
    site.pull()


def test_a_snapshot_is_never_decompressed_past_its_announced_length(tmp_path: Path) -> None:
    data, bomb, out = tmp_path / "data", tmp_path / "bomb.zst", tmp_path / "out"
    data.write_bytes(b"\0" * 50_000_000)
    packing.pack(data, bomb)
    with pytest.raises(DecompressionBombError), bomb.open("rb") as file:
        packing.unpack(file, out, 1000)
    assert not out.exists() or out.stat().st_size <= 1000


def test_private_keys_are_for_their_owner_only(site: Site) -> None:
    root_key = repository_keys.root_key_path(site.keys)
    for path in (root_key, site.keys / "online.pem"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_publishing_needs_no_root_key(site: Site) -> None:
    repository_keys.root_key_path(site.keys).unlink()
    site.store.add_plan("later")
    site.publish()
    site.pull()


def test_a_publish_that_dies_before_its_last_file_changes_nothing_for_readers(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Folder, name: str, data: bytes, tag: str | None) -> bool:
        assert name == "metadata/timestamp.json"
        raise TargetUnavailableError("the disk is gone.", hint="wait")

    site.store.revoke_key(site.token)
    with monkeypatch.context() as patch, pytest.raises(TargetUnavailableError):
        patch.setattr(Folder, "replace", fail)
        site.publish()
    site.pull()
    with Validator(site.replica) as validator:
        assert validator.check(site.token).allowed
    site.publish()
    site.pull()
    with Validator(site.replica) as validator:
        assert not validator.check(site.token).allowed


def test_metadata_says_when_it_expires(site: Site) -> None:
    said = json.loads((site.folder / "metadata/timestamp.json").read_text())
    expires = datetime.fromisoformat(said["signed"]["expires"])
    left = expires - datetime.now(UTC)
    assert timedelta(days=6) < left <= repository.LIFETIME
