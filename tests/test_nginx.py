"""nginx as the static server of signed files, with examples/nginx-files.conf."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import pytest

from keystore import Store
from keystore.db import open_store
from keystore.errors import KeystoreError, TargetUnavailableError
from keystore.sync import digest, repository, rotation, targets
from keystore.sync.storage import storage_of
from tests.failures import grow, once, reaching, said
from tests.nginx import PROGRAM, Nginx

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="nginx is not installed")


class Site:
    """A store that publishes to a folder, which nginx serves."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.url = store, (folder / "site").as_uri()
        self.keys, self.replica = folder / "keys", folder / "replica.db"
        self.root = repository.create(storage_of(self.url), self.keys).read_bytes()
        self.publish()
        self.nginx = Nginx(folder / "nginx", folder / "site")

    def publish(self) -> None:
        targets.sync(self.store.file, self.url, keys=self.keys)

    def replicate(self, url: str) -> None:
        targets.replicate(url, self.replica, root=self.root)

    def pull(self) -> None:
        with open_store(self.replica) as file:
            targets.sync(file)

    def same(self) -> bool:
        with open_store(self.replica) as file:
            return digest.digest_store(file) == digest.digest_store(self.store.file)


@pytest.fixture
def site(store: Store, tmp_path: Path) -> Iterator[Site]:
    made = Site(store, tmp_path)
    with made.nginx:
        yield made


def test_nginx_serves_a_repository_through_its_whole_life(site: Site) -> None:
    site.replicate(site.nginx.url)
    for index in range(20):
        site.store.add_plan(f"plan {index}")
        site.publish()
        site.pull()
    rotation.rotate(storage_of(site.url), site.keys, root_key=None, online=True, root=True)
    site.store.add_plan("after the rotation")
    site.publish()
    site.pull()
    assert site.same()
    # (the next root that there is not yet ends the chain, at every pull)
    assert "404 /metadata/2.root.json -" in site.nginx.seen()


def test_a_server_that_compresses_changes_no_hash(site: Site) -> None:
    """nginx compresses for those who ask for it; keystore does not, since all is compressed."""
    site.replicate(site.nginx.url)
    assert site.same()
    assert {line.split()[2] for line in site.nginx.seen()} == {"-"}


def test_https_with_a_certificate_of_ones_own(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(TargetUnavailableError, match="UnknownIssuer") as caught:
        site.replicate(site.nginx.secure_url)
    said(caught.value)
    monkeypatch.setenv("SSL_CERT_FILE", str(site.nginx.authority))
    site.replicate(site.nginx.secure_url)
    assert site.same()


def test_a_site_that_has_moved_is_followed(site: Site) -> None:
    site.replicate(site.nginx.moved_url)
    assert site.same()


def test_maintenance_is_a_pause_and_nothing_else(site: Site) -> None:
    site.replicate(site.nginx.url)
    site.store.add_plan("later")
    site.publish()
    site.nginx.down()
    with pytest.raises(TargetUnavailableError, match="Connection refused"):
        site.pull()
    site.nginx.up(server="return 503;")
    with pytest.raises(TargetUnavailableError, match="503 Service") as caught:
        site.pull()
    said(caught.value)
    site.nginx.down()
    site.nginx.up()
    site.pull()
    assert site.same()


def test_a_server_that_is_killed_in_the_middle_costs_only_the_rest(site: Site) -> None:
    site.replicate(site.nginx.url)
    grow(site.store)
    site.publish()
    site.nginx.down()
    site.nginx.up(http="limit_rate 1m;")
    with (
        pytest.raises(TargetUnavailableError) as caught,
        reaching(once("download.chunk", site.nginx.down)),
    ):
        site.pull()
    said(caught.value)
    site.nginx.up()
    site.pull()
    assert site.same()
    assert [line.split()[0] for line in site.nginx.seen() if "/targets/" in line][-1] == "206"


def test_a_server_that_refuses_is_told_from_one_that_lacks_a_file(site: Site) -> None:
    site.replicate(site.nginx.url)
    site.nginx.down()
    site.nginx.up(server="return 403;")
    with pytest.raises(TargetUnavailableError, match="refuses access"):
        site.pull()
    site.nginx.down()
    site.nginx.up(server="error_page 404 =403 /;")  # as a bucket behind a CDN may answer
    site.store.add_plan("later")
    site.publish()
    site.pull()
    assert site.same()


def test_only_what_readers_need_is_served_and_caches_are_told(site: Site, tmp_path: Path) -> None:
    opener = build_opener(ProxyHandler({}))
    found: dict[str, str] = {}
    for name in (".lock", "retired.json", "metadata/.x.draft", *storage_of(site.url).names()):
        (tmp_path / "site" / name).touch()
        with suppress(HTTPError), opener.open(f"{site.nginx.url}/{name}", timeout=30) as answer:
            found[name] = answer.headers["Cache-Control"]
    (target,) = [name for name in found if name.startswith("targets/")]
    assert found.pop("metadata/timestamp.json") == "no-cache"
    assert sorted(re.sub(r"/\d+\.", "/N.", name) for name in found) == [
        "metadata/N.root.json",
        "metadata/N.snapshot.json",
        "metadata/N.targets.json",
        target,
    ]
    assert set(found.values()) == {"max-age=31536000, immutable"}


def test_publishing_over_http_is_refused(site: Site) -> None:
    with pytest.raises(KeystoreError, match="can only be read") as caught:
        targets.sync(site.store.file, site.nginx.url, keys=site.keys)
    said(caught.value)
