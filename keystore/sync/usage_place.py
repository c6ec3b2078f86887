"""Puts a file in its place whole, and reads one that somebody else has put there."""

import os
import stat
import uuid
from pathlib import Path

from keystore.disk import move_new, sync_folder
from keystore.errors import (
    AlreadyExistsError,
    LargeUsageFileError,
    TargetUnavailableError,
    UnreadableUsageFileError,
)
from keystore.failpoint import reached


def place(path: Path, data: bytes) -> None:
    """Make a file (mode 0600) with these bytes: whole or not at all, and never over another one.

    Raises:
        AlreadyExistsError: a file with other bytes is there.
        TargetUnavailableError: it cannot be written there.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.draft")
    try:
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            reached("export.drafted")
            move_new(draft, path)
            sync_folder(path.parent)
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError:
        if not _holds(path, data):
            raise AlreadyExistsError(
                f"{path}: something else is there already.",
                hint="Move it away, or choose another place; nothing is ever overwritten.",
            ) from None
    except OSError as error:
        raise TargetUnavailableError(
            f"{path}: {error.strerror or error}.",
            hint="Nothing is lost; check the folder and its room, then try again.",
        ) from error


def read(path: Path, limit: int, *, follow: bool) -> bytes:
    """Read a file of at most ``limit`` bytes; with ``follow`` the name may be a link.

    Raises:
        UnreadableUsageFileError: there is no such file, it is none, or a link.
        LargeUsageFileError: it is longer.
    """
    # Opened first and looked at then, so that it is the same file; a pipe must not make us wait.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        if not follow and path.is_symlink():
            raise _unreadable("a link, which is not followed out of a folder")
        descriptor = os.open(path, flags)
        try:
            return _read(descriptor, limit)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(str(error.strerror or error)) from error


def _read(descriptor: int, limit: int) -> bytes:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise _unreadable("not a plain file")
    data = b""
    if found.st_size <= limit:
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    if max(found.st_size, len(data)) > limit:
        raise LargeUsageFileError(
            f"it has more than {limit} bytes.", hint="No replica writes such files."
        )
    return data


def _holds(path: Path, data: bytes) -> bool:
    try:
        return read(path, len(data), follow=False) == data
    except (UnreadableUsageFileError, LargeUsageFileError):
        return False


def _unreadable(why: str) -> UnreadableUsageFileError:
    return UnreadableUsageFileError(f"{why}.", hint="Check the path and its permissions.")
