"""A local folder as the place of a repository.

A reader sees whole files only: each is written beside its place, synced to disk, and renamed.
"""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from keystore.disk import move_new, sync_folder
from keystore.errors import DiskFullError, TargetNotReadyError, TargetUnavailableError
from keystore.sync.storage import bounded, missing

_CHUNK = 1 << 20
_LOCK = ".lock"


def path_of(url: str) -> Path:
    """Return the path of a ``file://`` URL."""
    return Path(url2pathname(urlsplit(url).path))


class Folder:
    """A folder that one publisher writes and anybody reads; see :class:`.storage.Storage`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = path.absolute().as_uri()

    def prepare(self) -> None:
        """Folders are made when they are written to, and have a lock."""

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return a file's bytes, and their digest as the tag."""
        try:
            data = bounded(self, name, self.chunks(name))
        except TargetNotReadyError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def chunks(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """Yield a file's bytes from ``offset`` on."""
        try:
            if not (self.path / name).is_file():  # (a pipe would be waited for, for ever)
                raise missing(self, name)
            with (self.path / name).open("rb") as file:
                file.seek(offset)
                while chunk := file.read(_CHUNK):
                    yield chunk
        except FileNotFoundError as error:
            raise missing(self, name) from error
        except OSError as error:
            raise _unavailable(error) from error

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).is_file()

    def put(self, name: str, source: Path) -> None:
        """Copy a file into its place."""

        def copy(file: IO[bytes]) -> None:
            with source.open("rb") as data:
                shutil.copyfileobj(data, file, _CHUNK)

        self._write(name, copy)

    def create(self, name: str, data: bytes) -> bool:
        """Store a file under a free name."""
        return self._write(name, lambda file: file.write(data), is_new=True)

    def replace(self, name: str, data: bytes, tag: str | None) -> bool:
        """Replace the file that has the tag."""
        held = self.read(name)
        if (held and held[1]) != tag:
            return False
        self._write(name, lambda file: file.write(data))
        return True

    def names(self) -> Iterator[str]:
        """Yield the names of all files, without drafts and the lock."""

        def stop(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # it is gone, or was never there
                raise _unavailable(error)

        for place, _, names in os.walk(self.path, onerror=stop):
            for name in names:
                if not name.startswith("."):
                    yield (Path(place) / name).relative_to(self.path).as_posix()

    def delete(self, name: str) -> None:
        """Remove a file."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise _unavailable(error) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Wait until no other process publishes here; the lock ends with this process."""
        import fcntl

        try:
            handle = (self.path / _LOCK).open("w")
        except FileNotFoundError as error:
            raise missing(self, "metadata/1.root.json") from error
        except OSError as error:
            raise _unavailable(error) from error
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            for folder in ("", "metadata", "targets"):
                for draft in (self.path / folder).glob(".*.draft"):
                    draft.unlink(missing_ok=True)  # of a publisher that was killed
            yield

    def _write(
        self, name: str, fill: Callable[[IO[bytes]], object], *, is_new: bool = False
    ) -> bool:
        place = self.path / name
        # (of its own: a repository is created before there is a lock)
        draft = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.draft")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                with draft.open("wb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                if is_new:
                    move_new(draft, place)
                else:
                    draft.replace(place)
            finally:
                draft.unlink(missing_ok=True)
            sync_folder(place.parent)
        except OSError as error:
            if is_new and isinstance(error, FileExistsError) and place.exists():
                return False
            raise _unavailable(error) from error
        return True


def _unavailable(error: OSError) -> TargetUnavailableError | DiskFullError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFullError(
            "there is no room left on the disk of the repository's folder.",
            hint="What was published before is there; make room, then run the same command again.",
        )
    return TargetUnavailableError(
        f"{error.filename}: {error.strerror}.",
        hint="Check the folder and its permissions, then try again.",
    )
