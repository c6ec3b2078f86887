"""Signed files in a bucket: what is wrong there is said, on one line, without a secret."""

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from keystore import Store
from keystore.db import open_store
from keystore.errors import (
    InvalidInputError,
    KeystoreError,
    OversizedFileError,
    TargetNotReadyError,
    TargetUnavailableError,
    UnsupportedTargetError,
)
from keystore.sync import digest, objects, repository, rotation, targets
from keystore.sync.downloads import downloaded
from keystore.sync.folder import Folder
from keystore.sync.objects import ObjectStorage
from keystore.sync.repository import Publisher
from keystore.sync.storage import storage_of
from tests.buckets import S3Server, Site
from tests.failures import said
from tests.proxy import WebProxy

# -- what is wrong is said ---------------------------------------------------------------------


def test_a_store_without_conditional_writes_is_refused(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    moto_server.admit(monkeypatch)
    for header in (b"if-none-match", b"if-match"):
        with WebProxy(moto_server.endpoint) as proxy:
            proxy.replacements = {header: b"x" * len(header)}
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            storage = storage_of(moto_server.new_url())
            with pytest.raises(UnsupportedTargetError, match="conditional writes"):
                repository.create(storage, tmp_path / "keys")
            assert list(storage.names()) == []
            assert not (tmp_path / "keys").exists()


def test_a_repository_leaves_nothing_of_the_trial(s3: S3Server, tmp_path: Path) -> None:
    storage = storage_of(s3.new_url())
    repository.create(storage, tmp_path / "keys")
    assert list(storage.names()) == ["metadata/1.root.json"]


@pytest.mark.parametrize("user", ["reader", "getter", "nobody"])
def test_who_may_not_write_is_told_and_no_key_is_left(
    seaweedfs_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: str
) -> None:
    seaweedfs_server.admit(monkeypatch, user)
    with pytest.raises(TargetUnavailableError, match="refuses access") as caught:
        repository.create(storage_of(seaweedfs_server.new_url()), tmp_path / "keys")
    assert "<" not in said(caught.value)
    assert user.upper() not in str(caught.value)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("user", ["reader", "getter"])
def test_a_reader_needs_no_right_to_list(
    seaweedfs_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    store: Store,
    tmp_path: Path,
    user: str,
) -> None:
    seaweedfs_server.admit(monkeypatch)
    site = Site(store, seaweedfs_server.new_url(), tmp_path)
    seaweedfs_server.admit(monkeypatch, user)
    site.replicate()
    assert site.same()


def test_a_wrong_secret_is_told_and_not_shown(
    seaweedfs_server: S3Server, monkeypatch: pytest.MonkeyPatch, store: Store, tmp_path: Path
) -> None:
    seaweedfs_server.admit(monkeypatch)
    site = Site(store, seaweedfs_server.new_url(), tmp_path)
    site.replicate()
    seaweedfs_server.admit(monkeypatch, AWS_SECRET_ACCESS_KEY="not-the-secret")
    for use in (site.publish, site.pull):
        with pytest.raises(TargetUnavailableError, match="SignatureDoesNotMatch") as caught:
            use()
        assert "AWS_ACCESS_KEY_ID" in said(caught.value)
        assert "not-the-secret" not in str(caught.value)


def test_a_missing_bucket_is_told(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch, store: Store, tmp_path: Path
) -> None:
    moto_server.admit(monkeypatch)
    with pytest.raises(TargetNotReadyError, match="no such bucket"):
        repository.create(storage_of("s3://nothing-here/keys"), tmp_path / "keys")
    root = repository.create(Folder(tmp_path / "other"), tmp_path / "keys").read_bytes()
    with pytest.raises(TargetNotReadyError, match="no such bucket"):
        targets.replicate("s3://nothing-here/keys", tmp_path / "edge.db", root=root)


def test_missing_credentials_end_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The client asks the machine for a role; where there is none, that is what is said."""
    S3Server("none", "http://127.0.0.1:9", 0).admit(monkeypatch)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TargetUnavailableError, match="no credentials: AWS_ACCESS_KEY_ID") as caught:
        storage_of("s3://bucket/keys").read("metadata/1.root.json")
    said(caught.value)


def test_half_of_the_credentials_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    S3Server("none", "http://127.0.0.1:9", 0).admit(monkeypatch)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InvalidInputError, match="Missing SecretAccessKey"):
        storage_of("s3://bucket/keys")


def test_a_server_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    S3Server("none", "http://127.0.0.1:9", 0).admit(monkeypatch)
    with pytest.raises(TargetUnavailableError, match="Connection refused") as caught:
        storage_of("s3://bucket/keys").read("metadata/1.root.json")
    assert "127.0.0.1" not in said(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["nonsense", "ftp://x", "http://", "http://a b", "https://u@h"]
)
def test_an_endpoint_that_is_none_is_refused(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(InvalidInputError, match="AWS_ENDPOINT_URL"):
        storage_of("s3://bucket/keys")


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///keys", "s3://a b/c", "s3://bucket/keys?x=1", "http://", "http://h/p?signed=x"],
)
def test_an_url_that_names_no_place_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError):
        storage_of(url)


def test_a_key_in_the_url_is_refused_and_not_repeated() -> None:
    with (
        pytest.raises(InvalidInputError) as caught,
        targets.opened("s3://user:geheim@bucket/keys"),
    ):
        pass
    assert "geheim" not in str(caught.value)


# -- what AWS does otherwise -------------------------------------------------------------------


class _LikeAws(http.server.SimpleHTTPRequestHandler):
    """Says 403 of what is missing, as S3 does to who may not list; knows no ranges."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        if code != 404:
            super().send_error(code, message, explain)
            return
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def like_aws(folder: Path) -> AbstractContextManager[str]:
    return served(functools.partial(_LikeAws, directory=str(folder)))


class _Says(http.server.BaseHTTPRequestHandler):
    """Says the same to everything."""

    def __init__(self, status: int, code: str, *arguments: Any) -> None:
        self._answer = status, f"<Error><Code>{code}</Code><Key>secret</Key></Error>".encode()
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body = self._answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_DELETE = do_GET  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "code", "kind", "text"),
    [
        (301, "PermanentRedirect", InvalidInputError, "another region"),
        (400, "AuthorizationHeaderMalformed", InvalidInputError, "another region"),
        (400, "ExpiredToken", TargetUnavailableError, "refuses access"),
        (403, "RequestTimeTooSkewed", TargetUnavailableError, "RequestTimeTooSkewed"),
        (404, "NoSuchBucket", TargetNotReadyError, "no such bucket"),
        (409, "OperationAborted", TargetUnavailableError, "409 Conflict"),
        (412, "PreconditionFailed", TargetUnavailableError, "412 Precondition"),
        (501, "NotImplemented", UnsupportedTargetError, "501 Not Implemented"),
        (503, "SlowDown", TargetUnavailableError, "503 Service"),
    ],
)
def test_whatever_a_server_says_ends_in_one_line_that_tells(
    status: int,
    code: str,
    kind: type[KeystoreError],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objects, "_RETRY", {"max_retries": 0})
    with served(functools.partial(_Says, status, code)) as endpoint:
        S3Server("says", endpoint, 0).admit(monkeypatch)
        storage = storage_of("s3://bucket/keys")
        for ask in (
            functools.partial(storage.read, "x"),
            functools.partial(storage.create, "x", b"1"),
            functools.partial(storage.delete, "x"),
            lambda: list(storage.names()),
            storage.prepare,
        ):
            with pytest.raises(kind, match=text) as caught:
                ask()
            assert "secret" not in said(caught.value)
            assert "<" not in str(caught.value)


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_bucket_that_says_403_of_what_is_missing_is_read(
    store: Store, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = (tmp_path / "site/bucket/keys").as_uri()
    root = repository.create(storage_of(url), tmp_path / "keys").read_bytes()
    targets.sync(store.file, url, keys=tmp_path / "keys")
    rotation.rotate(storage_of(url), tmp_path / "keys", root_key=None, online=True, root=True)
    with like_aws(tmp_path / "site") as endpoint:
        S3Server("like AWS", endpoint, 0).admit(monkeypatch, AWS_SKIP_SIGNATURE="true")
        place = "s3://bucket/keys" if kind == "s3" else f"{endpoint}/bucket/keys"
        targets.replicate(place, tmp_path / "edge.db", root=root)
        assert repository.Repository(storage_of(place), root).read().stamp is not None
        elsewhere = place.replace("/keys", "/others")
        with pytest.raises(TargetUnavailableError, match="refuses access"):
            targets.replicate(elsewhere, tmp_path / "other.db", root=root)
        with pytest.raises(TargetUnavailableError, match="refuses access"):
            storage_of(elsewhere).read("metadata/1.root.json")
        storage = ObjectStorage(place)
        assert storage.read("metadata/1.root.json") is not None
        with pytest.raises(TargetNotReadyError):
            list(storage.chunks("targets/none"))
    with open_store(tmp_path / "edge.db") as file:
        assert digest.digest_store(file) == digest.digest_store(store.file)


def test_a_publisher_that_may_list_only_its_prefix_is_told_403_of_what_is_missing_and_goes_on(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch, store: Store, tmp_path: Path
) -> None:
    with WebProxy(moto_server.endpoint) as proxy:
        proxy.replacements = {
            b"HTTP/1.1 404 ": b"HTTP/1.1 403 ",
            b"<Code>NoSuchKey</Code><Message>The s": b"<Code>AccessDenied</Code><Message>Th",
        }
        moto_server.admit(monkeypatch, AWS_ENDPOINT_URL=proxy.url)
        site = Site(store, moto_server.new_url(), tmp_path)
        site.replicate()
        rotation.rotate(storage_of(site.url), site.keys, root_key=None, online=True, root=True)
        store.add_plan("later")
        site.publish()
        publisher = Publisher(storage_of(site.url), site.keys)
        publisher.sweep(publisher.read())
        site.pull()
        assert site.same()


def test_a_server_without_ranges_is_read_on_from_where_it_ended(
    store: Store, tmp_path: Path
) -> None:
    url = (tmp_path / "site").as_uri()
    keys = tmp_path / "keys"
    repository.create(storage_of(url), keys)
    targets.sync(store.file, url, keys=keys)
    published = Publisher(storage_of(url), keys).read().targets["snapshot.sqlite.zst"]
    whole = (tmp_path / "site" / repository.file_name(published)).read_bytes()
    (tmp_path / f"{published.hashes['sha256']}.part").write_bytes(whole[:1000])
    with (
        like_aws(tmp_path / "site") as endpoint,
        downloaded(storage_of(endpoint), published, tmp_path) as file,
    ):
        file.seek(0)
        assert file.read() == whole


def test_metadata_that_would_fill_the_memory_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "big").write_bytes(b"x" * 1001)
    monkeypatch.setattr("keystore.sync.storage.MAX_METADATA", 1000)
    with like_aws(tmp_path) as endpoint, pytest.raises(OversizedFileError):
        storage_of(endpoint).read("big")
