"""Fetches signed files: resumes what was begun, and verifies size and hash before anybody reads it.

What was fetched lies beside the replica, under its hash, until the replica has it all. A process
that was killed leaves it there, and the next one goes on where it ended.
"""

import glob
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tuf.api.metadata import TargetFile

from keystore import db, disk
from keystore.disk import refuse_full
from keystore.errors import (
    AlteredFileError,
    OversizedFileError,
    StoreExistsError,
    SwappedFileError,
    TruncatedFileError,
    UntrustedRepositoryError,
)
from keystore.failpoint import reached
from keystore.sync.repository import file_name
from keystore.sync.storage import Storage

_HAS_LOCKS = importlib.util.find_spec("fcntl") is not None
"""Not on Windows: no two processes share a download there."""
_CHUNK = 1 << 20
SCRATCH = "the folder for temporary files (TMPDIR)"
_LOCK = ".lock"
_HINT = "It was refused, and this replica stays as it was; publish anew, or restore the repository."


@contextmanager
def downloaded(
    storage: Storage, target: TargetFile, folder: Path, others: Collection[TargetFile] = ()
) -> Iterator[IO[bytes]]:
    """Fetch a target to ``folder``, verify it, and open it.

    ``others`` are the other targets that are signed, to tell a file that was swapped.

    Raises:
        UntrustedRepositoryError: a subclass tells what is wrong with the file.
        TargetNotReadyError, TargetUnavailableError: see :meth:`Storage.chunks`.
        DiskFullError: there is no room for it.
    """
    part = folder / _part(target)
    with _opened(part) as file:
        begun = file.seek(0, os.SEEK_END)
        try:
            _fetch(storage, target, file, folder, others)
        except UntrustedRepositoryError:
            if not begun:
                part.unlink(missing_ok=True)
                raise
            file.truncate(0)  # what was there may be the bad part: once more, from the start
            try:
                _fetch(storage, target, file, folder, others)
            except UntrustedRepositoryError:
                part.unlink(missing_ok=True)
                raise
        reached("download.done")
        yield file


@contextmanager
def _opened(part: Path) -> Iterator[IO[bytes]]:
    """Open a file that may be there already; one that another process is at is left to it."""
    with part.open("a+b") as file:
        try:
            _lock(file)
        except BlockingIOError:
            with tempfile.TemporaryFile(dir=part.parent) as own:
                yield own
        else:
            yield file


def _fetch(
    storage: Storage,
    target: TargetFile,
    file: IO[bytes],
    folder: Path,
    others: Collection[TargetFile],
) -> None:
    digest, length = hashlib.sha256(), 0
    file.seek(0)
    while length <= target.length and (chunk := file.read(_CHUNK)):
        digest.update(chunk)
        length += len(chunk)
    if length > target.length:
        raise _wrong(OversizedFileError, target, "is longer than was signed")
    if length < target.length:
        refuse_full(folder, target.length - length)
        for chunk in storage.chunks(file_name(target), length):
            length += len(chunk)
            if length > target.length:
                raise _wrong(OversizedFileError, target, "is longer than was signed")
            digest.update(chunk)
            file.write(chunk)
            file.flush()
            reached("download.chunk")
    found = digest.hexdigest()
    if found == target.hashes["sha256"]:
        return
    for other in others:
        if found == other.hashes["sha256"]:
            raise _wrong(SwappedFileError, target, f"is {other.path} under another name")
    if length < target.length:
        raise _wrong(TruncatedFileError, target, "is shorter than was signed")
    raise _wrong(AlteredFileError, target, "holds other bytes than were signed")


def _part(target: TargetFile) -> str:
    return f"{target.hashes['sha256']}.part"


def _wrong(
    kind: type[UntrustedRepositoryError], target: TargetFile, what: str
) -> UntrustedRepositoryError:
    return kind(f"the repository's {target.path} {what}.", hint=_HINT)


@contextmanager
def workplace(beside: Path | None, wanted: Collection[TargetFile]) -> Iterator[Path]:
    """Make a folder for what is fetched, ``beside`` a store's file or, without one, anywhere.

    Nothing stays when the block is done; if it fails, what was fetched of ``wanted`` does, for the
    next attempt.
    """
    if beside is None or not _HAS_LOCKS:
        parent = None if beside is None else beside.absolute().parent
        with tempfile.TemporaryDirectory(prefix="keystore-", dir=parent) as name:
            yield Path(name)
        return
    folder = beside.with_name(f".{beside.name}.download")
    with _shared(folder) as lock:
        kept = {_LOCK, *(_part(target) for target in wanted)}
        try:
            with disk_errors(str(folder)):
                yield folder
            kept.clear()
        except StoreExistsError:
            kept.clear()  # somebody else has made that replica meanwhile
            raise
        finally:
            with suppress(BlockingIOError):  # somebody else is still at it
                _lock(lock)
                # Nobody is. So what was to become this store was left there by a process that died.
                for draft in beside.parent.glob(f".{glob.escape(beside.name)}.*.draft"):
                    db.remove_files(draft)
                if {path.name for path in folder.iterdir()} & kept <= {_LOCK}:
                    shutil.rmtree(folder, ignore_errors=True)
                for path in folder.glob("*"):
                    if path.name not in kept:
                        path.unlink(missing_ok=True)


@contextmanager
def disk_errors(folder: str) -> Iterator[None]:
    """Turn what a disk refuses into keystore errors; ``folder`` is where, in words."""
    try:
        with disk.errors(folder):
            yield
    except db.Error as error:
        raise db.translated(error, Path(folder)) from error


@contextmanager
def _shared(folder: Path) -> Iterator[IO[str]]:
    """Make a folder, or join those who use it: who is alone there may clear it away."""
    while True:
        with disk.errors(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
            try:
                lock = (folder / _LOCK).open("a")
            except FileNotFoundError:
                continue
        with lock:
            _lock(lock, shared=True)
            if _is_at(folder / _LOCK, lock):
                yield lock
                return


def _is_at(path: Path, file: IO[str]) -> bool:
    """(it may have been cleared away between the opening and the lock)"""
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _lock(file: IO[Any], *, shared: bool = False) -> None:
    """Lock a file, until it is closed; only a shared lock is waited for."""
    if _HAS_LOCKS:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
