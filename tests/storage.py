"""A disk that loses power, tears, reorders, fails and lies, under keystore's SQLite and its files.

:class:`Disk` watches a folder: SQLite's files through a VFS of apsw's (:mod:`tests.apsw_driver`),
all others through the functions of :mod:`os` that name or sync them. It keeps a log of all that
reaches the disk. From that, :meth:`Disk.after_power_loss` lays out what may be there when the power
goes after any operation. And it can fail any one of them, while the process goes on.

The model: what was synced stays. Of what was written to a file since its last sync each sector of
512 bytes may have any of its versions, and the file any of its lengths. Names appear and vanish in
the order in which they did, as on a file system with a journal, and those of a folder that was
synced are there; a file that was synced may still have no name.
"""

import errno
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest

from tests import apsw_driver
from tests.apsw_driver import Connection, apsw_drives

SECTOR = 512
VFS_NAME = "faulty"
_NAMED_WITH_SYNC = (
    apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_SUPER_JOURNAL
)
MODES = ("lost", "kept", "torn", "scattered", "scattered again")
"""What becomes of writes that were not synced: none is there; all are, as after a kill; those up to
some moment, the last one torn; any version of each sector."""


class Event(NamedTuple):
    """One thing that was done: ``kind`` says what the others mean."""

    kind: str
    file: int = -1
    offset: int = 0
    data: bytes = b""
    names: tuple[tuple[str, int | None], ...] = ()
    note: Any = None


@dataclass
class _Content:
    """What a file holds for certain, and what was done to it since."""

    synced: bytes = b""
    pending: list[Event] = field(default_factory=list)

    def now(self) -> bytes:
        data = self.synced
        for event in self.pending:
            data = _applied(data, event)
        return data

    def survivor(self, mode: str, chance: random.Random) -> bytes:
        if mode == "lost" or not self.pending:
            return self.synced
        if mode == "kept":
            return self.now()
        versions = [self.synced]
        for event in self.pending:
            versions.append(_applied(versions[-1], event))
        if mode == "torn":
            upto = chance.randrange(len(self.pending))
            return _mixed([versions[upto], versions[upto + 1]], chance)
        return _mixed(versions, chance)


def _applied(data: bytes, event: Event) -> bytes:
    if event.kind == "truncate":
        return data[: event.offset].ljust(event.offset, b"\0")
    end = event.offset + len(event.data)
    return data[: event.offset].ljust(event.offset, b"\0") + event.data + data[end:]


def _mixed(versions: list[bytes], chance: random.Random) -> bytes:
    """Take each sector, and the length, from any version."""
    length = len(chance.choice(versions))
    mixed = bytearray()
    for start in range(0, length, SECTOR):
        one = chance.choice(versions)[start : start + SECTOR]
        mixed += one.ljust(SECTOR, b"\0")
    return bytes(mixed[:length])


class Disk:
    """Watches ``folder`` while :meth:`watching`.

    ``fail_at`` is the operation that fails, counted from 0 in :attr:`operations`; ``error`` with
    what: ``EIO`` or ``ENOSPC``.
    """

    def __init__(self, folder: Path, *, fail_at: int | None = None, error: int = errno.EIO) -> None:
        self.folder = folder
        self.fail_at, self.error = fail_at, error
        self.operations: list[str] = []
        self.events: list[Event] = []
        self._start: dict[int, bytes] = {}
        self._start_names: dict[str, int] = {}
        self._names: dict[str, int] = {}
        self._inodes: dict[int, int] = {}
        self._contents: dict[int, bytes] = {}
        self._of_sqlite: set[int] = set()
        self._count = 0
        self._is_watching = False
        self._held: _Held | None = None
        self._look()
        self._start_names = dict(self._names)
        self._start = dict(self._contents)
        self.events.clear()

    # -- watching ------------------------------------------------------------------------------

    @contextmanager
    def watching(
        self, on_commit: Callable[[Connection], None] = lambda _: None, *, checkpoint_at: int = 1000
    ) -> Iterator[None]:
        """Let keystore write to this disk, for the length of a ``with`` block.

        ``checkpoint_at`` is how many pages a WAL holds before a commit checkpoints it.
        """
        VFS.disk = self
        self._is_watching = True
        with pytest.MonkeyPatch.context() as patch, apsw_drives(VFS_NAME, on_commit):
            for name in ("link", "rename", "replace", "unlink", "remove", "mkdir", "rmdir"):
                patch.setattr(os, name, self._naming(name, getattr(os, name)))
            patch.setattr(apsw_driver, "CHECKPOINT_AT", checkpoint_at)
            patch.setattr(os, "open", self._opening(os.open))
            patch.setattr(os, "fsync", self._syncing(os.fsync))
            patch.setattr(sys, "unraisablehook", _quietly(sys.unraisablehook))
            try:
                yield
            finally:
                self._is_watching = False
                VFS.disk = None
        self._look()

    def note(self, what: str, value: Any) -> None:
        """Write into the log what became true just now."""
        self.events.append(Event(what, note=value))

    def step(self, operation: str) -> None:
        """Count an operation, or fail with it.

        Raises:
            OSError: it is its turn.
        """
        if self._is_watching:
            self.operations.append(operation)
            if len(self.operations) - 1 == self.fail_at:
                raise OSError(self.error, os.strerror(self.error))

    def has(self, path: object) -> bool:
        return Path(os.path.abspath(str(path))).is_relative_to(self.folder)  # noqa: PTH100

    def _naming(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *more: Any, **options: Any) -> Any:
            if isinstance(path, int) or options.get("dir_fd") is not None or not self.has(path):
                return real(path, *more, **options)
            self._look()
            self.step(f"{name} {Path(str(path)).suffix}")
            try:
                return real(path, *more, **options)
            finally:
                self._look()

        return call

    def _opening(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *more: Any, **options: Any) -> int:
            if not flags & os.O_CREAT or isinstance(path, int) or not self.has(path):
                return real(path, flags, *more, **options)
            self._look()
            self.step("create")
            try:
                return real(path, flags, *more, **options)
            finally:
                self._look()

        return call

    def _syncing(self, real: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(file: Any) -> None:
            descriptor = file if isinstance(file, int) else file.fileno()
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if not self.has(path):
                return
            self._look()
            self.step("fsync")
            if path.is_dir():
                self.synced_folder(path)
            else:
                self.events.append(Event("sync", self._names[self._name(path)]))

        return call

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _look(self) -> None:
        """Log what has changed but for what SQLite has written, which comes by itself."""
        names: dict[str, int] = {}
        inodes: dict[int, int] = {}
        for place, _, files in os.walk(self.folder):
            for one in files:
                path = Path(place) / one
                inode = path.stat().st_ino
                number = inodes.get(inode, self._inodes.get(inode, -1))
                if number < 0:
                    self._count, number = self._count + 1, self._count
                inodes[inode] = names[self._name(path)] = number
        changes = [(name, None) for name in sorted(self._names.keys() - names.keys())]
        changed = tuple(changes) + tuple(
            (name, number)
            for name, number in sorted(names.items())
            if self._names.get(name) != number
        )
        if changed:
            self.events.append(Event("names", names=changed))
        self._names, self._inodes = names, inodes
        for name, number in names.items():
            if number not in self._of_sqlite and not name.endswith("-shm"):
                data, known = (self.folder / name).read_bytes(), self._contents.get(number, b"")
                if data != known:
                    if len(data) < len(known):
                        self.events.append(Event("truncate", number, len(data)))
                    self.events.append(Event("write", number, 0, data))
                    self._contents[number] = data

    def synced_folder(self, path: Path) -> None:
        self.events.append(Event("sync_folder", note=path))

    # -- what SQLite does ----------------------------------------------------------------------

    def opened(self, path: str) -> int | None:
        """Tell the number of a file that SQLite has opened; ``None``: it is none of ours."""
        if not self.has(path):
            return None
        self._look()
        number = self._names.get(self._name(Path(path)))
        if number is not None:
            self._of_sqlite.add(number)
        return number

    def wrote(self, event: Event) -> None:
        self.events.append(event)

    # -- power loss ----------------------------------------------------------------------------

    def points(self) -> list[int]:
        """Return after how many events the power may go: with all there are as the last."""
        kinds = {"write", "truncate", "sync", "names", "sync_folder"}
        found = {at + 1 for at, event in enumerate(self.events) if event.kind in kinds}
        return sorted({0, *found, len(self.events)})

    def after_power_loss(
        self, at: int, mode: str, *, lies: bool = False
    ) -> tuple[dict[str, bytes], random.Random]:
        """Return the files that there may be if the power goes after so many events.

        With ``lies`` no sync has done anything. The generator that chose comes with them.
        """
        chance = random.Random(f"{at} {mode}")  # noqa: S311 - to be the same again
        if (held := self._held) is None or held.at > at or held.lies != lies:
            contents = {number: _Content(data) for number, data in self._start.items()}
            held = self._held = _Held(contents, dict(self._start_names), lies)
        held.advance(self.events, at)
        names, pending = dict(held.names), held.pending
        count = {"lost": 0, "kept": len(pending)}.get(mode, chance.randint(0, len(pending)))
        for one in pending[:count]:
            _rename(names, one)
        return {
            name: held.contents.setdefault(number, _Content()).survivor(mode, chance)
            for name, number in sorted(names.items())
            if not name.endswith(("-shm", ".scratch"))
        }, chance

    def noted(self, what: str, at: int) -> list[Any]:
        """Return what had become true before so many events."""
        return [event.note for event in self.events[:at] if event.kind == what]


@dataclass
class _Held:
    """What the disk holds after the first events of a log, and what is on its way there."""

    contents: dict[int, _Content]
    names: dict[str, int]
    lies: bool
    at: int = 0
    pending: list[Event] = field(default_factory=list)

    def advance(self, events: list[Event], at: int) -> None:
        for event in events[self.at : at]:
            match event.kind:
                case "write" | "truncate":
                    self.contents.setdefault(event.file, _Content()).pending.append(event)
                case "sync" if not self.lies:
                    held = self.contents.setdefault(event.file, _Content())
                    held.synced, held.pending = held.now(), []
                case "names":
                    self.pending.append(event)
                case "sync_folder" if not self.lies:
                    for one in self.pending:
                        _rename(self.names, one)
                    self.pending = []
        self.at = at


def _quietly(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """Say nothing of what was made to fail, and SQLite went on without."""
    return lambda told: None if isinstance(told.exc_value, apsw.Error) else hook(told)


def _rename(names: dict[str, int], event: Event) -> None:
    for name, number in event.names:
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number


def lay_out(files: dict[str, bytes], folder: Path, chance: random.Random) -> None:
    """Put files into a folder, with what a ``-shm`` file may hold, which nobody syncs."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)
        if name.endswith("-wal") and chance.random() < 0.5:
            junk = path.with_name(f"{path.name.removesuffix('-wal')}-shm")
            junk.write_bytes(chance.randbytes(32768))
            junk.chmod(0o600)


class _File(apsw.VFSFile):
    def __init__(self, name: Any, flags: list[int]) -> None:
        self._path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._disk = VFS.disk if self._path and VFS.disk and VFS.disk.has(self._path) else None
        is_new = self._disk is not None and not os.path.exists(self._path)  # noqa: PTH110
        if is_new and self._disk is not None:
            _step(self._disk, "create", apsw.CantOpenError)
        super().__init__("unix", name, flags)
        self._number = self._disk.opened(self._path) if self._disk and self._path else None
        # as the system's own VFS: whoever may make such a file syncs its name with it, once
        is_kind = flags[0] & apsw.SQLITE_OPEN_CREATE and flags[0] & _NAMED_WITH_SYNC
        self._syncs_folder = bool(is_kind)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - apsw's names
        self._log("write", offset, bytes(data))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._log("truncate", newsize)
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._log("sync")
        if self._syncs_folder and self._disk is not None:
            self._disk.synced_folder(Path(self._path).parent)
            self._syncs_folder = False
        # (the real one is left out: this disk is as safe as its log)

    def _log(self, kind: str, offset: int = 0, data: bytes = b"") -> None:
        if self._disk is not None:
            _step(self._disk, kind, apsw.IOError)
            if self._number is not None:
                self._disk.wrote(Event(kind, self._number, offset, data))


class VFS(apsw.VFS):
    """What SQLite asks of an operating system, with a :class:`Disk` that is told of it."""

    disk: Disk | None = None

    def __init__(self) -> None:
        super().__init__(VFS_NAME, "unix")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _File(name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        if self.disk is None or not self.disk.has(filename):
            return super().xDelete(filename, syncdir)
        if Path(filename).exists():
            _step(self.disk, "delete", apsw.IOError)
        super().xDelete(filename, syncdir)
        # os.unlink was not asked, so nobody has looked
        self.disk._look()
        if syncdir:
            self.disk.synced_folder(Path(filename).parent)
        return None


_EXTENDED = {
    "write": apsw.SQLITE_IOERR_WRITE,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "delete": apsw.SQLITE_IOERR_DELETE,
    "create": apsw.SQLITE_CANTOPEN,
}


def _step(disk: Disk, kind: str, error: type[apsw.Error]) -> None:
    """Fail as the system's call would: there may be no room for what is written, and only that."""
    try:
        disk.step(f"sqlite {kind}")
    except OSError as failed:
        if failed.errno == errno.ENOSPC and kind == "write":
            raise apsw.FullError("database or disk is full") from None
        message = "disk I/O error" if error is apsw.IOError else "unable to open database file"
        raised: Any = error(message)
        raised.extendedresult = _EXTENDED[kind]
        raise raised from None


FAULTY = VFS()
