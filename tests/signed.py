"""What the tests of signed files share: an origin, its repository, a replica, and a thief."""

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuf.api.metadata import TargetFile

from keystore import Store, Validator, db
from keystore.db import open_store
from keystore.doctor import examine
from keystore.sync import digest, packing, repository, segments, snapshot, targets
from keystore.sync.folder import Folder
from keystore.sync.repository_format import (
    SNAPSHOT_NAME,
    ChangesInfo,
    SnapshotInfo,
    Stamp,
    read_state,
)

if TYPE_CHECKING:
    import sqlite3


class Site:
    """An origin, its repository in a folder, and a replica that has pulled once."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder / "repository"
        self.keys, self.replica = folder / "keys", folder / "edge" / "replica.db"
        self.replica.parent.mkdir()
        self.root = repository.create(Folder(self.folder), self.keys).read_bytes()
        self.token = store.issue_key("ada@example.org").token
        self.publish()
        self.replicate(self.replica)

    @contextmanager
    def copied(self, folder: Path) -> "Iterator[Site]":
        """Make a site of its own: copies of everything, at another place."""
        shutil.copytree(self.folder.parent, folder)
        made = copy.copy(self)
        made.folder, made.keys = folder / "repository", folder / "keys"
        made.replica = folder / "edge" / "replica.db"
        for path in (made.replica, folder / "origin.db"):
            with open_store(path) as file:
                file.conn.execute("UPDATE SyncTargets SET url = ?", (made.folder.as_uri(),))
        with Store.open(folder / "origin.db") as made.store:
            yield made

    def publish(self) -> None:
        targets.sync(self.store.file, str(self.folder), keys=self.keys)

    def pull(self) -> None:
        with open_store(self.replica) as file:
            targets.sync(file, str(self.folder))

    def replicate(self, path: Path) -> None:
        targets.replicate(str(self.folder), path, root=self.root)

    def allows(self, token: str) -> bool:
        with Validator(self.replica) as validator:
            return validator.check(token).allowed

    def newest(self, pattern: str) -> Path:
        return max(self.folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)

    def published(self) -> repository.Published:
        return repository.Publisher(Folder(self.folder), self.keys).read()

    def file_of(self, name: str) -> Path:
        """Where a target lies: the snapshot, or the newest segment (``changes``)."""
        found = self.published().targets
        if name != SNAPSHOT_NAME:
            name = found[SNAPSHOT_NAME].unrecognized_fields["custom"]["changes"][-1]
        return self.folder / repository.file_name(found[name])


def everything_of(path: Path) -> Any:
    """All that a sync could change in a replica."""
    with open_store(path) as file:
        assert examine(file) == []
        return (
            digest.digest_store(file),
            file.info(),
            [
                list(file.conn.execute(f"SELECT * FROM {table}"))
                for table in ("SyncTargets", "UsageLog", "Revocations", "sqlite_sequence")
            ],
        )


def is_clean(folder: Path, *stores: Path) -> bool:
    """Whether there is nothing in a folder but stores and unfinished downloads."""
    expected = {f"{path.name}{suffix}" for path in stores for suffix in ("", "-wal", "-shm")}
    for path in folder.iterdir():
        if path.is_dir() and path.name.endswith(".download"):
            if not all(one.name == ".lock" or one.suffix == ".part" for one in path.iterdir()):
                return False
        elif path.name not in expected:
            return False
    return True


@contextmanager
def put_back(folder: Path, beside: Path) -> Iterator[Callable[[], None]]:
    """Keep a copy of a folder; yield what puts it back."""
    shutil.copytree(folder, beside, symlinks=True)

    def restore() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(beside, folder, symlinks=True)

    yield restore
    shutil.rmtree(beside)


# -- who has stolen the online key -------------------------------------------------------------


@dataclass
class Forgery:
    """What is about to be signed; edit it."""

    site: Site
    targets: dict[str, TargetFile]
    stamp: dict[str, Any]
    scratch: Path
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def snapshot(self) -> dict[str, Any]:
        """What the snapshot says of itself."""
        custom: dict[str, Any] = self.targets[SNAPSHOT_NAME].unrecognized_fields["custom"]
        return custom

    @property
    def segment(self) -> TargetFile:
        """The newest segment."""
        return self.targets[self.snapshot["changes"][-1]]

    def put(self, name: str, path: Path, custom: dict[str, Any]) -> None:
        target = TargetFile.from_file(name, str(path), ["sha256"])
        target.unrecognized_fields["custom"] = custom
        self.targets[name], self.files[name] = target, path

    def put_snapshot(self, data: Path, *, length: int | None = None) -> None:
        """Replace the snapshot by a packed file of one's own."""
        packed = self.scratch / "forged.zst"
        packing.pack(data, packed)
        length = data.stat().st_size if length is None else length
        self.put(SNAPSHOT_NAME, packed, self.snapshot | {"length": length})

    def put_segment(self, lines: Sequence[bytes], *, length: int | None = None) -> None:
        """Replace the newest segment by lines of one's own."""
        packed = self.scratch / "forged.jsonl.zst"
        written = packing.pack_lines(iter(lines), packed)
        custom = self.segment.unrecognized_fields["custom"]
        length = written if length is None else length
        self.put(self.segment.path, packed, custom | {"length": length})

    def lines(self) -> list[bytes]:
        """The lines of the newest segment."""
        path = self.site.folder / repository.file_name(self.segment)
        info = ChangesInfo.model_validate(self.segment.unrecognized_fields["custom"])
        with path.open("rb") as file:
            return list(packing.unpack_lines(file, info.length))

    @contextmanager
    def database(self) -> "Iterator[sqlite3.Connection]":
        """Change the published state with SQL, and make it the snapshot, without segments."""
        state, path = self.site.published().targets, self.scratch / "forged.sqlite"
        info = SnapshotInfo.model_validate(self.snapshot)
        with (self.site.folder / repository.file_name(state[SNAPSHOT_NAME])).open("rb") as packed:
            snapshot.unpacked(packed, path, info)
        offered = read_state(self.site.published().targets)
        assert offered is not None
        for one in offered.since_snapshot:
            with (self.site.folder / repository.file_name(one.target)).open("rb") as packed:
                snapshot.apply(path, segments.read(packed, one.info.length))
        conn = db.connect(path)
        try:
            conn.execute("PRAGMA ignore_check_constraints = ON")
            yield conn
        finally:
            conn.close()
        self.targets = {SNAPSHOT_NAME: self.targets[SNAPSHOT_NAME]}
        self.snapshot.update(changes=[], up_to=self.stamp["up_to"])
        self.put_snapshot(path)


def forge(site: Site, edit: Callable[[Forgery], object]) -> None:
    """Publish what ``edit`` makes of what is published, signed with the online key."""
    publisher = repository.Publisher(Folder(site.folder), site.keys)
    last = publisher.read()
    assert last.stamp is not None
    scratch = site.folder.parent / "forger"
    scratch.mkdir()
    forgery = Forgery(site, copy.deepcopy(last.targets), last.stamp.model_dump(), scratch)
    edit(forgery)
    stamp = Stamp.model_construct(**forgery.stamp)
    publisher.publish(last, stamp, forgery.targets, forgery.files)
    shutil.rmtree(scratch)
