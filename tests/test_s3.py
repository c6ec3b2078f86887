"""Signed files in a bucket, on two S3 servers: moto, and SeaweedFS, which checks signatures."""

import functools
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest
from click.testing import CliRunner

from keystore import Store
from keystore.cli import main
from keystore.db import open_store
from keystore.errors import (
    FencedPublisherError,
    ForkedStoreError,
    KeystoreError,
    TargetUnavailableError,
)
from keystore.sync import digest, objects, retention, targets
from keystore.sync.repository import Publisher
from keystore.sync.storage import storage_of
from tests.buckets import S3Server, Site
from tests.failures import copy, grow, reaching, said
from tests.proxy import WebProxy


@pytest.fixture
def site(s3: S3Server, store: Store, tmp_path: Path) -> Site:
    return Site(store, s3.new_url(), tmp_path)


# -- what a bucket does ------------------------------------------------------------------------


def test_a_bucket_serves_every_command(s3: S3Server, tmp_path: Path) -> None:
    url, db, edge = s3.new_url(), str(tmp_path / "origin.db"), str(tmp_path / "edge.db")

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(main, list(arguments), env={"KEYSTORE_DB": db})
        assert done.exit_code == 0, done.output
        return done.output

    run("init")
    run("plan", "add", "free")
    assert f"Made repository {url}." in run("repo", "create", url)
    run("sync", url)
    run("replicate", url, edge, "--root", f"{db}.keys/root.json")
    for index in range(20):  # segments are merged, snapshots replaced
        run("plan", "add", f"plan {index}")
        run("sync")
    run("repo", "rotate", url, "--online", "--root")
    run("repo", "renew", url)
    run("plan", "add", "last")
    run("sync")
    run("repo", "gc", url)
    run("sync", "--db", edge)
    assert "Nothing differs" in run("verify", url)
    assert "1 root, 1 online" in run("repo", "info", url)
    with Store.open(Path(db)) as origin, open_store(Path(edge)) as replica:
        assert digest.digest_store(origin.file) == digest.digest_store(replica)


def test_garbage_is_removed_from_a_bucket_and_what_is_in_use_stays(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = storage_of(site.url)
    left_behind = f"targets/{'0' * 64}.changes-1-2.jsonl.zst"
    assert storage.create(left_behind, b"x")
    monkeypatch.setattr(retention, "RETENTION", timedelta(seconds=-1))
    publisher = Publisher(storage, site.keys)
    assert publisher.sweep(publisher.read()).removed == [left_behind]
    assert not storage.has(left_behind)
    site.replicate()
    assert site.same()


def test_one_bucket_is_read_as_a_bucket_and_over_plain_http(
    seaweedfs_server: S3Server, monkeypatch: pytest.MonkeyPatch, store: Store, tmp_path: Path
) -> None:
    seaweedfs_server.admit(monkeypatch)
    site = Site(store, seaweedfs_server.new_url(), tmp_path)
    site.replicate()
    over_http = seaweedfs_server.endpoint + site.url.removeprefix("s3:/")
    site.replicate("http.db", over_http)
    store.add_plan("later")
    site.publish()
    for path in (site.replica, tmp_path / "http.db"):
        site.pull(path)
        assert site.same(path)


def test_a_bucket_that_anybody_may_read_needs_no_credentials(
    seaweedfs_server: S3Server, monkeypatch: pytest.MonkeyPatch, store: Store, tmp_path: Path
) -> None:
    seaweedfs_server.admit(monkeypatch)
    site = Site(store, seaweedfs_server.new_url(), tmp_path)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    site.replicate()
    assert site.same()


def test_caches_in_front_of_a_bucket_are_told_what_never_changes(
    seaweedfs_server: S3Server, monkeypatch: pytest.MonkeyPatch, store: Store, tmp_path: Path
) -> None:
    seaweedfs_server.admit(monkeypatch)
    site = Site(store, seaweedfs_server.new_url(), tmp_path)
    over_http = seaweedfs_server.endpoint + site.url.removeprefix("s3:/")
    opener = build_opener(ProxyHandler({}))
    found = {}
    for name in storage_of(site.url).names():
        with opener.open(f"{over_http}/{name}", timeout=30) as answer:
            found[name] = answer.headers["Cache-Control"]
    assert found.pop("metadata/timestamp.json") == "no-cache"
    assert len(found) == 4
    assert set(found.values()) == {"max-age=31536000, immutable"}


def test_a_slash_at_the_end_makes_no_other_target(site: Site) -> None:
    site.replicate()
    with open_store(site.replica) as file:
        targets.sync(file, site.url + "/")
    with Store.open(site.replica) as replica:
        assert [target.url for target in replica.status().targets] == [site.url]


# -- two publishers ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["publish.files", "publish.metadata"])
def test_of_two_publishers_that_race_one_wins_and_the_other_is_fenced(
    site: Site, step: str
) -> None:
    """Two copies of a store, as a failover that went wrong leaves them."""
    twin = copy(site.store.file.path, "twin.db")
    keys = site.keys.with_name("twin.keys")
    shutil.copytree(site.keys, keys)
    with Store.open(twin) as other:
        other.add_plan("of the twin")
    site.store.add_plan("of the first")
    meeting = threading.Barrier(2, timeout=30)

    def outcome(publish: Callable[[], None]) -> KeystoreError | None:
        try:
            publish()
        except KeystoreError as error:
            return error
        return None

    def act(reached: str) -> None:
        if reached == step:
            meeting.wait()

    publishers = [functools.partial(site.publish), functools.partial(site.publish, twin, keys)]
    with reaching(act), ThreadPoolExecutor(2) as pool:
        found = list(pool.map(outcome, publishers))
    (fenced,) = [error for error in found if error]
    assert isinstance(fenced, FencedPublisherError)
    assert fenced.code == "fenced_publisher"
    said(fenced)
    site.replicate()
    with Store.open(site.replica) as replica:
        won = "of the first" if found[0] is None else "of the twin"
        assert {plan.name for plan in replica.plans()} == {"free", won}
    # The winner goes on; the other is told now that it is another copy, and how to go on.
    winner, loser = publishers if found[0] is None else publishers[::-1]
    winner()
    with pytest.raises(ForkedStoreError, match="--reconcile"):
        loser()
    site.pull()


def test_two_processes_that_publish_one_store_wait_for_each_other(site: Site) -> None:
    """Not fenced: the second would have replaced the token that the first had noted."""
    first_is_in, second_has_begun = threading.Event(), threading.Event()

    def act(reached: str) -> None:
        if reached == "push.begin" and first_is_in.is_set():
            second_has_begun.set()
        if reached == "push.pending" and not first_is_in.is_set():
            first_is_in.set()
            assert second_has_begun.wait(30)

    site.store.add_plan("new")
    with reaching(act), ThreadPoolExecutor(2) as pool:
        first = pool.submit(site.publish)
        assert first_is_in.wait(30)
        second = pool.submit(site.publish)
        first.result(60)
        second.result(60)
    site.publish()
    site.replicate()
    assert site.same()


def test_a_copy_of_the_store_is_told_apart_from_a_race(site: Site) -> None:
    twin = copy(site.store.file.path, "twin.db")
    site.store.add_plan("new")
    site.publish()
    with pytest.raises(ForkedStoreError):
        site.publish(twin)
    site.publish()


def test_readers_see_whole_states_while_publications_go_on(site: Site) -> None:
    site.replicate()
    with open_store(site.replica) as file:
        seen = [file.info().as_of_change or 0]
    published = []

    def publish() -> None:
        for index in range(25):
            with Store.open(site.store.file.path) as store:
                store.add_plan(f"left {index}")
                store.add_plan(f"right {index}")
            site.publish()
            published.append(index)

    with ThreadPoolExecutor(1) as pool:
        publisher = pool.submit(publish)
        while not publisher.done():
            site.pull()
            with Store.open(site.replica) as replica:
                names = {plan.name for plan in replica.plans()} - {"free"}
                seen.append(replica.file.info().as_of_change or 0)
            assert sum(name.startswith("left") for name in names) * 2 == len(names)
        publisher.result()
    assert len(published) == 25
    assert seen == sorted(seen)
    site.pull()
    assert site.same()


# -- answers that are lost ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "recovers"),
    [("timestamp.json", True), (".targets.json", True), ("timestamp.json", False)],
)
def test_a_write_whose_answer_is_lost_is_not_taken_for_somebody_elses(
    s3: S3Server, site: Site, name: str, recovers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WebProxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        site.store.add_plan("new")
        folder = re.escape(site.url.removeprefix("s3://"))
        proxy.commit = re.compile(rf"PUT /{folder}/metadata/\d*{re.escape(name)} ".encode())
        proxy.lose_commit, proxy.recovers = 1, recovers
        if recovers:
            site.publish()
        else:  # (and so is every answer to the question whose it is)
            with pytest.raises(TargetUnavailableError):
                site.publish()
        assert proxy.lose_commit <= 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    site.publish()
    site.replicate()
    assert site.same()


def test_a_conditional_write_that_met_itself_counts_as_done(site: Site) -> None:
    storage = storage_of(site.url)
    assert storage.create("metadata/9.targets.json", b"ours")
    assert storage.create("metadata/9.targets.json", b"ours")
    assert not storage.create("metadata/9.targets.json", b"theirs")
    found = storage.read("metadata/9.targets.json")
    assert found is not None
    assert storage.replace("metadata/9.targets.json", b"new", found[1])
    assert storage.replace("metadata/9.targets.json", b"new", found[1])
    assert not storage.replace("metadata/9.targets.json", b"newer", found[1])


def test_a_server_that_goes_away_in_the_middle_costs_only_the_rest(
    s3: S3Server, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site.replicate()
    grow(site.store)
    site.publish()
    with WebProxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.cut_at = 2_500_000
        with pytest.raises(TargetUnavailableError) as caught:
            site.pull()
    assert "\n" not in said(caught.value)
    with WebProxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        site.pull()
        assert proxy.passed < 2_500_000
    assert site.same()


def test_a_publisher_that_loses_the_server_goes_on_later(
    s3: S3Server, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(site.store)
    with WebProxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.cut_at = 1_000_000
        with pytest.raises(TargetUnavailableError) as caught:
            site.publish()
    said(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    site.publish()
    site.replicate()
    assert site.same()


def test_a_silent_server_is_given_up(
    s3: S3Server, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.replicate()
    monkeypatch.setattr(objects, "_CLIENT", objects._CLIENT | {"read_timeout": "200ms"})
    with WebProxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.stall()
        with pytest.raises(TargetUnavailableError, match="no answer in time"):
            site.pull()
