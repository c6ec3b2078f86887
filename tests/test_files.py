"""Publishing to signed files and pulling from them; see test_files_attacks.py for the attacks."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from keystore import Store, Validator
from keystore.changelog import Page
from keystore.db import open_store
from keystore.errors import (
    ForeignOriginError,
    IncompleteStateError,
    TargetUnavailableError,
    UntrustedRepositoryError,
)
from keystore.sync import repository, repository_keys, snapshot, targets
from keystore.sync.folder import Folder
from tests.conftest import NewStore
from tests.signed import Site


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


def test_texts_of_any_kind_travel(site: Site) -> None:
    label = '[{"' * 500 + "\\\n\u2028é" + "}" * 500
    with site.store.file.write() as conn:
        conn.execute("UPDATE APIKeys SET label = ?", (label,))
    site.publish()
    site.pull()
    with Store.open(site.replica) as replica:
        (found,) = replica.keys()
    assert found.label == label


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
