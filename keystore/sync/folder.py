"""Where a file repository's bytes live: a local folder.

A reader sees whole files only: each is written beside its place, synced to disk, and renamed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from keystore.errors import TargetUnavailableError

_CHUNK = 1 << 20


def path_of(url: str) -> Path:
    """Return the path of a ``file://`` URL."""
    return Path(url2pathname(urlsplit(url).path))


class Folder:
    """A folder that one publisher writes and anybody reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, ``None`` if there is no such file."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unavailable(error) from error

    def write(self, name: str, data: bytes) -> None:
        """Put a file in place, whole; an existing one is replaced."""
        place = self.path / name
        draft = place.with_name(f".{place.name}.draft")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(place)
            _sync_folder(place.parent)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise _unavailable(error) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Wait until no other process publishes here; the lock ends with this process."""
        import fcntl

        try:
            handle = (self.path / ".lock").open("w")
        except OSError as error:
            raise _unavailable(error) from error
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


class FolderFetcher(FetcherInterface):
    """Lets the TUF client read ``file://`` URLs."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = path_of(url)
        if not path.is_file():
            raise DownloadHTTPError(f"{path}: no such file", 404)
        return _chunks(path)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _sync_folder(path: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows has no such thing
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unavailable(error: OSError) -> TargetUnavailableError:
    return TargetUnavailableError(
        f"{error.filename}: {error.strerror}.",
        hint="Check the folder and its permissions, then try again.",
    )
