"""Puts files into folders for good: what several parts of keystore write beside SQLite's own."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from keystore.errors import DiskFullError, KeystoreError


@contextmanager
def errors(folder: Path | str) -> Iterator[None]:
    """Turn what the system says of files in a folder, before anything is in its place, into ours.

    Raises:
        DiskFullError: there is no room.
        KeystoreError: anything else.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(
                f"{error.filename or folder}: there is no room left on the disk.",
                hint="Nothing was changed; make room, then run the same command again.",
            ) from error
        raise KeystoreError(
            f"{error.filename or folder}: {error.strerror}.",
            hint="Check the folder and its permissions; nothing was changed.",
        ) from error


def refuse_full(folder: Path, length: int) -> None:
    """Refuse what would fill the disk.

    Raises:
        DiskFullError: there are not ``length`` bytes of room.
    """
    if shutil.disk_usage(folder).free < length:
        raise DiskFullError(
            f"{folder}: the repository's file needs {length:,} bytes, and there is less room.",
            hint="Nothing was changed; make room, then run the same command again.",
        )


def move_new(draft: Path, path: Path) -> None:
    """Move a file to a path that is free.

    Raises:
        FileExistsError: something is there.
    """
    try:
        os.link(draft, path)  # unlike rename, link fails where something has appeared meanwhile
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists() or path.is_symlink():
            raise FileExistsError from None
        draft.rename(path)
    else:
        with suppress(OSError):  # it is in its place; who made the draft clears up behind it
            draft.unlink()


def sync_folder(path: Path) -> None:
    """Bring to disk which files are in a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows has no such thing
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
