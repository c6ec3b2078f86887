"""A bucket (``s3://``) or a web server (``https://``, to read) as the place of a repository.

A bucket has no lock. Two publishers are kept apart by conditional writes: versions are created,
never overwritten, and ``timestamp.json`` is replaced only by whoever has read the one before.

Credentials, region and endpoint come from the environment, as for every S3 client:
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``.
"""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    NotSupportedError,
    PreconditionError,
)
from obstore.store import HTTPStore, S3Store

from keystore.errors import (
    InvalidInputError,
    KeystoreError,
    TargetNotReadyError,
    TargetUnavailableError,
    UnsupportedTargetError,
    WrongRoleError,
)
from keystore.sync.storage import AccessRefusedError, bounded, missing
from keystore.sync.urls import redacted

_CHUNK = 1 << 20
_CLIENT: Any = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "1d"}
"""The whole answer may take long, on a slow line; a line that is silent is given up."""
_RETRY: Any = {"max_retries": 3}
_MISSING = (NotFoundError, FileNotFoundError)
_TAKEN = (AlreadyExistsError, FileExistsError, PreconditionError)

# What obstore raises holds requests, XML, and the state of its client; only this much is told.
_STATUS = re.compile(r"status code: (\d{3}[ A-Za-z-]*)")
_S3_CODE = re.compile(r"<Code>(\w+)</Code>")
_CAUSES = (
    (re.compile(r'message: "([^"\n]+)"'), r"\1"),
    (re.compile(r'error: "([^"\n]+)"'), r"\1"),
    (re.compile(r"InvalidCertificate\(\s*(\w+)"), r"its certificate: \1"),
    (re.compile(r"source: TimedOut"), "no answer in time"),
)
_WRITTEN_ONCE = re.compile(r"metadata/\d+\..*|targets/.*")
_BUCKET = re.compile(r"[A-Za-z0-9._-]{3,63}")
_CONDITIONAL = "Use a store that honours If-None-Match and If-Match on PUT, as S3 does."
_ENDPOINT = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")


class ObjectStorage:
    """Objects by name; see :class:`.storage.Storage`."""

    def __init__(self, url: str) -> None:
        self.url = redacted(url)
        parts = urlsplit(url)
        self._is_bucket = parts.scheme == "s3"
        self._has_read = False
        try:
            self._store: Any = _bucket(parts) if self._is_bucket else _web_server(url, parts)
        except (BaseError, ValueError) as error:
            raise InvalidInputError(
                f"{self.url} cannot be used: {_why(error)}.",
                hint="Check the URL and the AWS_… variables."
                if self._is_bucket
                else "Check the URL.",
            ) from error

    def prepare(self) -> None:
        """Try whether two publishers would be kept apart here."""
        name = f"metadata/probe-{uuid.uuid4()}"  # (`gc` finds what a killed one leaves)
        stale = f'"{"0" * 32}"'
        try:
            is_fenced = (
                self.create(name, b"1")
                and not self.create(name, b"2")
                and not self.replace(name, b"3", stale)
            )
        finally:
            self.delete(name)
        if not is_fenced:
            raise UnsupportedTargetError(
                f"{self.url} ignores conditional writes: two publishers would overwrite each other "
                "unseen.",
                hint=_CONDITIONAL,
            )

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return an object's bytes and its entity tag."""
        try:
            with self._errors():
                got = obstore.get(self._store, name)
                chunks = map(bytes, got.stream(min_chunk_size=_CHUNK))
                found = bounded(self, name, chunks), got.meta["e_tag"] or ""
        except _MISSING:
            return None
        except AccessRefusedError:
            if self._has_read:  # what S3 says of a missing object to who may not list the bucket
                return None
            raise
        self._has_read = True
        return found

    def chunks(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """Yield an object's bytes from ``offset`` on."""
        try:
            yield from self._chunks(name, offset)
        except NotSupportedError:  # a server without ranges sends everything, or nothing
            yield from _skipped(self._chunks(name, 0), offset)

    def _chunks(self, name: str, offset: int) -> Iterator[bytes]:
        options: Any = {"range": {"offset": offset}} if offset else None
        try:
            with self._errors():
                got = obstore.get(self._store, name, options=options)
                self._has_read = True
                for chunk in got.stream(min_chunk_size=_CHUNK):
                    yield bytes(chunk)
        except _MISSING as error:
            raise missing(self, name) from error
        except AccessRefusedError as error:
            if self._has_read:
                raise missing(self, name) from error
            raise
        except TargetUnavailableError as error:
            cause = error.__cause__
            if offset and isinstance(cause, Exception) and _status(cause) == "416":
                return  # asked for the rest of an object that has no more
            raise

    def has(self, name: str) -> bool:
        """Whether there is such an object."""
        try:
            with self._errors():
                obstore.head(self._store, name)
        except _MISSING:
            return False
        except AccessRefusedError:
            if self._has_read:
                return False
            raise
        return True

    def put(self, name: str, source: Path) -> None:
        """Upload a file."""
        try:
            with self._errors():
                obstore.put(self._writable(), name, source, attributes=_cached(name))
        except _MISSING as error:
            raise self._no_bucket() from error

    def create(self, name: str, data: bytes) -> bool:
        """Create an object, unless there is one."""
        return self._put_if("create", name, data)

    def replace(self, name: str, data: bytes, tag: str | None) -> bool:
        """Replace the object that has the tag."""
        return self._put_if("create" if tag is None else {"e_tag": tag}, name, data)

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

    def _put_if(self, mode: Any, name: str, data: bytes) -> bool:
        try:
            with self._errors(*_TAKEN):
                obstore.put(
                    self._writable(),
                    name,
                    data,
                    mode=mode,
                    attributes=_cached(name),
                    use_multipart=False,
                )
        except (*_TAKEN, *_MISSING):
            # The answer to a first attempt may be lost, and what is in the way our own.
            found = self.read(name)
            return found is not None and found[0] == data
        return True

    def _writable(self) -> Any:
        if not self._is_bucket:
            raise WrongRoleError(
                f"{self.url} can only be read from here.",
                hint="Publish to its folder (file:///…) or bucket (s3://…).",
            )
        return self._store

    @contextmanager
    def _errors(self, *expected: type[Exception]) -> Iterator[None]:
        """Turn failures into keystore errors; what is missing, or expected, the caller knows."""
        try:
            yield
        except (KeystoreError, NotSupportedError):
            raise
        except (BaseError, OSError, ValueError) as error:
            if (known := self._known(error)) is not None:
                raise known from error
            if isinstance(error, (*expected, *_MISSING)):
                raise
            status = _status(error)
            raise TargetUnavailableError(
                f"{self.url} answers {_why(error)}."
                if status
                else f"{self.url} cannot be reached ({_why(error)}).",
                hint="Nothing is lost; try again later.",
            ) from error

    def _known(self, error: Exception) -> KeystoreError | None:
        """Return the error that says what is wrong, where that is known."""
        text, code, status = str(error), _s3_code(error), _status(error)
        if code == "NoSuchBucket":
            return self._no_bucket()
        if "/latest/api/token" in text or "/latest/meta-data" in text:
            return TargetUnavailableError(
                f"{self.url}: no credentials: AWS_ACCESS_KEY_ID is not set, and this machine has "
                "no role that gives some.",
                hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; where anybody may read, "
                "AWS_SKIP_SIGNATURE=true.",
            )
        if "incorrectly configured region" in text or code in {
            "AuthorizationHeaderMalformed",
            "PermanentRedirect",
        }:
            return InvalidInputError(
                f"{self.url} is in another region.", hint="Set AWS_REGION to the bucket's."
            )
        if status == "501":
            return UnsupportedTargetError(f"{self.url} answers {_why(error)}.", hint=_CONDITIONAL)
        if status in {"401", "403"} or code in {"ExpiredToken", "InvalidToken"}:
            is_refused = code in {"", "AccessDenied"}
            kind = AccessRefusedError if is_refused else TargetUnavailableError
            return kind(
                f"{self.url} refuses access ({_why(error)}).",
                hint="Check the credentials (AWS_ACCESS_KEY_ID …) and what they may do there."
                if self._is_bucket
                else "Check the URL, and what the server lets everybody read.",
            )
        return None

    def _no_bucket(self) -> TargetNotReadyError:
        return TargetNotReadyError(f"{self.url}: there is no such bucket.", hint="Make it first.")


def _bucket(parts: SplitResult) -> S3Store:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    # What the client cannot read makes it panic.
    if endpoint and not _ENDPOINT.fullmatch(endpoint):
        raise ValueError("AWS_ENDPOINT_URL is no http:// or https:// URL of a server")
    if not _BUCKET.fullmatch(parts.netloc):
        raise ValueError("there is no name of a bucket in it")
    if parts.query or parts.fragment:
        raise ValueError("it takes no parameters")
    config: Any = {"disable_bulk_delete": True}  # not every server has it
    if endpoint:
        config["endpoint"] = endpoint
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        config=config,
        client_options=_CLIENT | {"allow_http": endpoint.startswith("http://")},
        retry_config=_RETRY,
    )


def _web_server(url: str, parts: SplitResult) -> HTTPStore:
    if not _ENDPOINT.fullmatch(url):
        raise ValueError("it is no plain URL of a server and a path")
    client = _CLIENT | {"allow_http": parts.scheme == "http"}
    return HTTPStore(url, client_options=client, retry_config=_RETRY)


def _cached(name: str) -> Any:
    """Tell the caches in front of a bucket how long an object is good for."""
    is_for_good = _WRITTEN_ONCE.fullmatch(name)
    return {"Cache-Control": "max-age=31536000, immutable" if is_for_good else "no-cache"}


def _skipped(chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
    for chunk in chunks:
        if len(chunk) > count:
            yield chunk[count:]
        count = max(0, count - len(chunk))


def _status(error: Exception) -> str:
    found = _STATUS.search(str(error))
    return found[1][:3] if found else ""


def _s3_code(error: Exception) -> str:
    found = _S3_CODE.search(str(error))
    return found[1] if found else ""


def _why(error: Exception) -> str:
    """Say in a few words what went wrong."""
    text = str(error)
    if found := _STATUS.search(text):
        code = _s3_code(error)
        return f"{found[1].strip()}, {code}" if code else found[1].strip()
    for cause, words in _CAUSES:
        if found := cause.search(text):
            return found.expand(words)
    first = (text.strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"https?://\S+", "…", first.rpartition(" - ")[2]).rstrip(".: ")
