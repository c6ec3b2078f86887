"""What a refresh of a repository's metadata asks for, and what it says is wrong with them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from securesystemslib.exceptions import StorageError
from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Timestamp
from tuf.api.serialization import DeserializationError

from keystore import Store, errors
from keystore.sync import repository, repository_keys, rotation
from keystore.sync.folder import Folder
from keystore.sync.trust import Trusted, tuf_errors
from tests.signed import Site

TIMESTAMP = "metadata/timestamp.json"


class Counted(Folder):
    """A folder that notes what is read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked: list[str] = []

    def chunks(self, name: str, offset: int = 0) -> Iterator[bytes]:
        self.asked.append(name)
        return super().chunks(name, offset)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("template")
    with Store.create(folder / "origin.db") as store:
        store.add_plan("free")
        store.add_account("ada@example.org", plan="free")
        return Site(store, folder)


@pytest.fixture
def site(template: Site, tmp_path: Path) -> Iterator[Site]:
    with template.copied(tmp_path / "site") as copy:
        yield copy


class Client:
    """Refreshes again and again, and remembers as a replica does."""

    def __init__(self, site: Site, folder: Path) -> None:
        self._site, self._folder = site, folder
        self.files: dict[str, str] = {}
        self.number = 0

    def refresh(self) -> list[str]:
        """Return what was asked for."""
        self.number += 1
        storage = Counted(self._site.folder)
        self.trusted = Trusted(
            storage, self._site.root, self.files, self._folder / str(self.number)
        )
        self.files = self.trusted.files
        return storage.asked


@pytest.fixture
def client(site: Site, tmp_path: Path) -> Client:
    return Client(site, tmp_path / "metadata")


def test_a_first_refresh_reads_the_whole_chain_and_a_second_one_only_the_timestamp(
    site: Site, client: Client
) -> None:
    assert {name.split(".", 1)[-1] for name in client.refresh()} > {
        "snapshot.json", "targets.json"
    }  # fmt: skip
    assert set(client.files) == {
        "timestamp.json", "snapshot.json", "targets.json", "root_history/1.root.json"
    }  # fmt: skip
    assert client.refresh() == [TIMESTAMP]
    state = client.trusted.state()
    assert state is not None
    assert state.info.origin_id == site.store.file.info().origin_id
    assert client.trusted.timestamp.version == site.published().timestamp_version


def test_what_is_new_is_read_and_the_timestamp_is_read_once(site: Site, client: Client) -> None:
    client.refresh()
    site.store.add_plan("new")
    site.publish()
    asked = client.refresh()
    assert asked.count(TIMESTAMP) == 1
    assert len(asked) > 1
    assert client.refresh() == [TIMESTAMP]


def test_a_newer_root_that_is_held_counts_and_not_the_first(site: Site, client: Client) -> None:
    for _ in range(10):  # so that the tenth is not sorted as text
        rotation.rotate(Folder(site.folder), site.keys, root_key=None, online=False, root=False)
    site.publish()
    client.refresh()
    assert "root_history/11.root.json" in client.files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Root, "is_expired", lambda root, *_: root.version < 11)
        assert client.refresh() == [TIMESTAMP]


@pytest.mark.parametrize("missing", ["timestamp.json", "targets.json"])
def test_with_a_part_missing_nothing_is_current(client: Client, missing: str) -> None:
    client.refresh()
    del client.files[missing]
    asked = client.refresh()
    assert len(asked) > 1
    assert missing in client.files


@pytest.mark.parametrize("kind", [Timestamp, Root])
def test_what_is_held_and_has_expired_is_not_used_though_nothing_is_new(
    client: Client, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.refresh()
    monkeypatch.setattr(kind, "is_expired", lambda *_: True)
    with pytest.raises(errors.ExpiredRepositoryError) as caught:
        client.refresh()
    command = "keystore repo renew" if kind is Root else "keystore sync"
    assert command in caught.value.hint


def test_nothing_is_offered_before_the_first_publish(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "repository")
    root = repository.create(folder, tmp_path / "keys").read_bytes()
    with pytest.raises(errors.KeystoreError) as caught:
        Trusted(folder, root, {}, tmp_path / "metadata")
    assert caught.value.code == "target_not_ready"


def test_another_repository_is_named_as_such_and_a_broken_first_root_is_not(
    site: Site, client: Client, tmp_path: Path
) -> None:
    other = Folder(tmp_path / "other")
    repository.create(other, tmp_path / "keys")
    shutil.copy(tmp_path / "other" / "metadata" / "1.root.json", site.folder / "metadata")
    said = json.loads((site.folder / TIMESTAMP).read_text())
    said["signed"]["version"] += 1
    (site.folder / TIMESTAMP).write_text(json.dumps(said))
    with pytest.raises(errors.ForeignRootError):
        client.refresh()
    for text in ("{}", "no JSON"):
        (site.folder / "metadata" / "1.root.json").write_text(text)
        with pytest.raises(errors.ForeignRootError):
            client.refresh()
    (site.folder / "metadata" / "1.root.json").unlink()
    with pytest.raises(errors.UntrustedRepositoryError) as caught:
        client.refresh()
    assert caught.value.code == "untrusted_repository"


def test_each_key_that_was_ever_replaced_is_known_as_such_and_no_other(
    site: Site, client: Client, tmp_path: Path
) -> None:
    site.publish()
    thieves = []
    for number in range(2):
        shutil.copy(site.keys / "online.pem", tmp_path / f"{number}.pem")
        thieves.append(repository_keys._load(tmp_path / f"{number}.pem"))
        rotation.rotate(Folder(site.folder), site.keys, root_key=None, online=True, root=False)
    client.refresh()
    path = site.folder / TIMESTAMP
    nobody = repository_keys.make_next(tmp_path / "nobody.pem")
    for thief, code in (
        (nobody, "untrusted_repository"),
        *((one, "revoked_key") for one in thieves),
    ):
        timestamp = Metadata[Timestamp].from_bytes(path.read_bytes())
        timestamp.signed.version += 1
        timestamp.signatures.clear()
        timestamp.sign(thief)
        path.write_bytes(timestamp.to_bytes())
        with pytest.raises(errors.UntrustedRepositoryError) as caught:
            client.refresh()
        assert caught.value.code == code


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"signatures": 7}', '{"signatures": [7]}', '[{"signatures": 7}]'),
        pytest.param("[" * 100_000, id="nested"),
    ],
)
def test_a_timestamp_that_names_no_signers_is_not_signed(
    site: Site, client: Client, text: str
) -> None:
    error = exceptions.UnsignedMetadataError("timestamp")
    (site.folder / TIMESTAMP).write_text(text)
    (client._folder / "root_history").mkdir(parents=True)
    for version in (1, 2):
        (client._folder / "root_history" / f"{version}.root.json").write_bytes(site.root)
    with (
        pytest.raises(errors.UntrustedRepositoryError) as caught,
        tuf_errors(Folder(site.folder), site.root, client._folder),
    ):
        raise error
    assert caught.value.code == "untrusted_repository"


def from_storage() -> exceptions.DownloadError:
    error = exceptions.DownloadError()
    error.__cause__ = errors.TargetNotReadyError("not there", hint="wait")
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (exceptions.ExpiredMetadataError("final root.json is expired"), "expired_repository"),
        (exceptions.ExpiredMetadataError("timestamp.json is expired"), "expired_repository"),
        (exceptions.DownloadLengthMismatchError(), "oversized_file"),
        (exceptions.BadVersionNumberError("version 3 must be >= 4"), "rolled_back_repository"),
        (exceptions.BadVersionNumberError("expected 4, got 3"), "mixed_repository"),
        (exceptions.UnsignedMetadataError(), "untrusted_repository"),
        (DeserializationError(), "untrusted_repository"),
        (exceptions.LengthOrHashMismatchError(), "untrusted_repository"),
        (exceptions.DownloadError(), "target_unavailable"),
        (from_storage(), "target_not_ready"),
    ],
)
def test_each_failure_has_its_own_error_and_a_hint(error: Exception, code: str) -> None:
    with pytest.raises(errors.KeystoreError) as caught, tuf_errors():
        raise error
    assert caught.value.code == code
    assert caught.value.hint


def test_what_somebody_else_wrote_is_told_on_one_short_line() -> None:
    with pytest.raises(errors.UntrustedRepositoryError) as caught, tuf_errors():
        raise exceptions.RepositoryError("a\nb" + "x" * 10_000)
    assert "a b" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_error_of_another_kind_is_not_told_as_one_of_the_repository() -> None:
    with pytest.raises(StorageError), tuf_errors():
        raise StorageError
