"""A bucket (``s3://``) or a web server (``https://``, to read) as the place of a repository.

A bucket has no lock. Two publishers are kept apart by conditional writes: versions are created,
never overwritten, and ``timestamp.json`` is replaced only by whoever has read the one before.

Credentials, region and endpoint come from the environment, as for every S3 client:
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import HTTPStore, S3Store

from keystore.errors import (
    InvalidInputError,
    TargetNotReadyError,
    TargetUnavailableError,
    WrongRoleError,
)
from keystore.sync.storage import bounded, missing
from keystore.sync.urls import redacted

_CHUNK = 1 << 20
_CLIENT: Any = {"connect_timeout": "10s", "timeout": "600s"}
"""The whole answer may take long, on a slow line; what was cut off is resumed."""
_RETRY: Any = {"max_retries": 3}
_MISSING = (NotFoundError, FileNotFoundError)
_TAKEN = (AlreadyExistsError, FileExistsError, PreconditionError)


class ObjectStorage:
    """Objects by name; see :class:`.storage.Storage`."""

    def __init__(self, url: str) -> None:
        self.url = redacted(url)
        parts = urlsplit(url)
        try:
            if parts.scheme == "s3":
                self._store: Any = _bucket(parts.netloc, parts.path.strip("/"))
            else:
                client = _CLIENT | {"allow_http": parts.scheme == "http"}
                self._store = HTTPStore(url, client_options=client, retry_config=_RETRY)
        except (BaseError, ValueError) as error:
            raise InvalidInputError(
                f"{self.url} cannot be used: {_first_line(error)}.", hint="Check the URL."
            ) from error
        self._is_writable = parts.scheme == "s3"

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return an object's bytes and its entity tag."""
        try:
            with self._errors():
                got = obstore.get(self._store, name)
                chunks = map(bytes, got.stream(min_chunk_size=_CHUNK))
                return bounded(self, name, chunks), got.meta["e_tag"] or ""
        except _MISSING:
            return None

    def chunks(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """Yield an object's bytes from ``offset`` on."""
        try:
            with self._errors():
                skip, got = self._from(name, offset)
                for chunk in got.stream(min_chunk_size=_CHUNK):
                    yield bytes(chunk)[skip:]
                    skip = max(0, skip - len(chunk))
        except _MISSING as error:
            raise missing(self, name) from error

    def _from(self, name: str, offset: int) -> tuple[int, Any]:
        """Get an object from ``offset`` on; return also how many bytes to skip all the same."""
        if offset:
            options: Any = {"range": {"offset": offset}}
            try:
                return 0, obstore.get(self._store, name, options=options)
            except NotSupportedError:
                pass  # a web server without ranges
            except GenericError as error:
                if "416" not in str(error):  # (the object is shorter than that)
                    raise
        return offset, obstore.get(self._store, name)

    def has(self, name: str) -> bool:
        """Whether there is such an object."""
        try:
            with self._errors():
                obstore.head(self._store, name)
        except _MISSING:
            return False
        return True

    def put(self, name: str, source: Path) -> None:
        """Upload a file."""
        try:
            with self._errors():
                obstore.put(self._writable(), name, source)
        except _MISSING as error:
            raise self._no_bucket() from error

    def create(self, name: str, data: bytes) -> bool:
        """Create an object, unless there is one."""
        try:
            with self._errors():
                obstore.put(self._writable(), name, data, mode="create")
        except _TAKEN:
            return False
        except _MISSING as error:
            raise self._no_bucket() from error
        return True

    def replace(self, name: str, data: bytes, tag: str | None) -> bool:
        """Replace the object that has the tag."""
        if tag is None:
            return self.create(name, data)
        try:
            with self._errors():
                obstore.put(self._writable(), name, data, mode={"e_tag": tag})
        except (*_TAKEN, *_MISSING):
            return False
        return True

    def names(self) -> Iterator[str]:
        """Yield the names of all objects."""
        with self._errors():
            for batch in obstore.list(self._writable()):
                for meta in batch:
                    yield meta["path"]

    def delete(self, name: str) -> None:
        """Remove an object."""
        try:
            with self._errors():
                obstore.delete(self._writable(), name)
        except _MISSING:
            pass

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let the caller go on: conditional writes decide at the end."""
        self._writable()
        yield

    def _writable(self) -> Any:
        if not self._is_writable:
            raise WrongRoleError(
                f"{self.url} can only be read from here.",
                hint="Publish to its folder (file:///…) or bucket (s3://…).",
            )
        return self._store

    def _no_bucket(self) -> TargetNotReadyError:
        return TargetNotReadyError(f"{self.url}: there is no such bucket.", hint="Make it first.")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn failures of the transport into keystore errors; the caller knows the others."""
        try:
            yield
        except (*_TAKEN, *_MISSING):
            raise
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise TargetUnavailableError(
                f"{self.url} refuses access.",
                hint="Check the credentials (AWS_ACCESS_KEY_ID …) and what they may do there.",
            ) from error
        except (BaseError, OSError, ValueError) as error:
            raise TargetUnavailableError(
                f"{self.url} cannot be reached ({_first_line(error)}).",
                hint="Nothing is lost; try again later.",
            ) from error


def _bucket(bucket: str, prefix: str) -> S3Store:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    config: Any = {"endpoint": endpoint} if endpoint else {}
    return S3Store(
        bucket,
        prefix=prefix or None,
        config=config,
        client_options=_CLIENT | {"allow_http": endpoint.startswith("http://")},
        retry_config=_RETRY,
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:")
