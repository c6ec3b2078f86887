"""Where a repository's bytes live: what a folder, a bucket and a web server have in common.

Only `timestamp.json` is ever replaced, and only by whoever has read the one before: that is what
keeps two publishers apart. Everything else is written once, under a name of its own.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from tuf.api.exceptions import DownloadHTTPError, DownloadLengthMismatchError
from tuf.ngclient.fetcher import FetcherInterface

from keystore.errors import (
    OversizedFileError,
    TargetNotReadyError,
    TargetUnavailableError,
    UnsupportedTargetError,
)
from keystore.sync.extras import extra
from keystore.sync.urls import redacted

MAX_METADATA = 64 << 20
"""Bytes of a file that is read at once; those of the TUF client are a tenth of it."""
BASE_URL = "repository://files/"
"""What the TUF client is told to fetch from; the rest of a URL is a name in the storage."""

_ROOT = re.compile(r"metadata/\d+\.root\.json")


class AccessRefusedError(TargetUnavailableError):
    """The storage answers that one may not; S3 says so, too, of what it does not have."""


class Storage(Protocol):
    """Files by name; names are relative, with ``/``. An implementation may be read-only.

    Every method raises :class:`keystore.errors.TargetUnavailableError` where nobody answers.
    """

    url: str

    def prepare(self) -> None:
        """Make sure that a repository can be made here.

        Raises:
            UnsupportedTargetError: two publishers would overwrite each other.
        """

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return a small file and a tag of its version; ``None`` if there is no such file.

        Raises:
            OversizedFileError: it has more than :data:`MAX_METADATA` bytes.
        """

    def chunks(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """Yield a file's bytes from ``offset`` on.

        Raises:
            TargetNotReadyError: there is no such file.
        """

    def has(self, name: str) -> bool:
        """Whether there is such a file."""

    def put(self, name: str, source: Path) -> None:
        """Store a file, whole or not at all."""

    def create(self, name: str, data: bytes) -> bool:
        """Store a file under a name that is free; return whether it was."""

    def replace(self, name: str, data: bytes, tag: str | None) -> bool:
        """Store a file if the one that is there has this tag; return whether it had.

        ``None`` means that there is none.
        """

    def names(self) -> Iterator[str]:
        """Yield the names of all files."""

    def delete(self, name: str) -> None:
        """Remove a file; one that is missing is fine."""

    def lock(self) -> AbstractContextManager[None]:
        """Wait for other publishers, where they can be seen."""


def storage_of(url: str) -> Storage:
    """Return the storage at a repository's URL.

    Raises:
        UnsupportedTargetError: the scheme is none that files come by, or the extra is missing.
    """
    match urlsplit(url).scheme:
        case "file":
            from keystore.sync.folder import Folder, path_of

            return Folder(path_of(url))
        case "s3" | "https" | "http":
            with extra("files"):
                from keystore.sync.objects import ObjectStorage
            return ObjectStorage(url)
    raise UnsupportedTargetError(
        f"{redacted(url)} is not a place for files.",
        hint="Use file:///… or a path, s3://…, or https://… to read.",
    )


def bounded(storage: Storage, name: str, chunks: Iterable[bytes]) -> bytes:
    """Put a small file together."""
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > MAX_METADATA:
            raise OversizedFileError(
                f"{storage.url}: {name} is longer than any such file can be.",
                hint="The rest was not read; restore the repository.",
            )
    return bytes(data)


def missing(storage: Storage, name: str) -> TargetNotReadyError:
    """Say that a file is not there."""
    return TargetNotReadyError(
        f"{storage.url} lacks the file {name}.",
        hint="Check the URL; publish from the origin first, or try again.",
    )


class StorageFetcher(FetcherInterface):
    """Lets the TUF client read a storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.fetched: dict[str, bytes] = {}
        """Answers that were fetched before, by URL; each is given once."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        if url in self.fetched:
            return iter([self.fetched.pop(url)])
        name = unquote(url.removeprefix(BASE_URL))
        chunks = self._storage.chunks(name)
        # The client must hear of a missing file before the first byte: it ends the chain of roots.
        try:
            first = next(chunks, b"")
        except TargetNotReadyError as error:
            raise DownloadHTTPError(str(error), 404) from error
        except AccessRefusedError as error:
            if _ROOT.fullmatch(name):
                raise DownloadHTTPError(str(error), 403) from error
            raise
        return _bounded(first, chunks)


def _bounded(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    # The client believes a length that is signed, and the signing key may be stolen.
    length = 0
    for chunk in itertools.chain([first], rest):
        length += len(chunk)
        if length > MAX_METADATA:
            raise DownloadLengthMismatchError
        yield chunk
