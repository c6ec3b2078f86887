"""Several of one: origins and replicas copied or restored, and processes that race for one file."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from keystore import Store
from keystore.backup import backup, restore
from keystore.db import open_store
from keystore.errors import ForkedStoreError
from keystore.sync import engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from tests.failures import Children, Site, copy, once, pull, push, reaching, record, said


@pytest.fixture
def site(hub_url: str, tmp_path: Path) -> Site:
    return Site(tmp_path, hub_url)


@pytest.fixture(scope="module")
def children() -> Iterator[list[Children]]:
    made = [Children() for _ in range(3)]
    yield made
    for item in made:
        item.close()


def incarnations(site: Site) -> int:
    with psycopg.connect(site.url) as conn:
        row = conn.execute("SELECT count(DISTINCT incarnation) FROM keystore.replicas").fetchone()
    return int((row or (0,))[0])


def test_of_two_live_twins_of_an_origin_the_second_is_stopped(site: Site) -> None:
    twin = copy(site.origin, "twin.db")
    for path, name in ((site.origin, "first"), (twin, "second")):
        with Store.open(path) as store:
            store.add_plan(name)
    site.sync(site.origin)
    for _ in range(2):
        with pytest.raises(ForkedStoreError, match="another copy") as caught:
            site.sync(twin)
        assert "--reconcile" in said(caught.value)
    site.change()
    site.settle()
    site.check()


def test_a_twin_that_reconciles_stops_the_other(site: Site) -> None:
    twin = copy(site.origin, "twin.db")
    site.change()
    site.settle()
    with Store.open(twin) as store:
        store.issue_key("ada@example.org")
    site.sync(twin, reconcile=True)
    with pytest.raises(ForkedStoreError):
        site.sync(site.origin)
    site.origin = twin
    site.settle()
    site.check()


def test_a_kill_while_reconciling_is_followed_by_another_try(
    site: Site, children: list[Children]
) -> None:
    twin = copy(site.origin, "twin.db")
    site.change()
    site.settle()
    order = ["sync", site.url, "--db", twin, "--reconcile"]
    for step in ("push.sent", "push.pending", "push.staged"):
        status, output = children[0].run(*order, step=step)
        assert status < 0, output
    status, output = children[0].run(*order, step="push.committed")
    assert status < 0, output
    site.sync(twin)  # without --reconcile: what was committed is known by its token
    site.origin = twin
    site.settle()
    site.check()


def test_copied_and_restored_replicas_count_each_row_once_and_call_under_their_own_names(
    site: Site,
) -> None:
    with open_store(site.replica) as file:
        site.usage += record(file, 7)
        backup(file, site.replica.with_name("backup.db"))
    twin = copy(site.replica, "twin.db")
    restored = site.replica.with_name("restored.db")
    restore(site.replica.with_name("backup.db"), restored)
    everybody = (site.replica, twin, restored)
    for _ in range(3):
        site.change()
        site.sync(site.origin)
        for path in everybody:
            with open_store(path) as file:
                site.usage += record(file, 1)
            site.sync(path)
    site.settle()
    for path in everybody:
        site.sync(path)
    site.check(twin, restored)
    assert incarnations(site) == 3


def test_several_pushers_of_one_store_take_turns_as_processes(
    site: Site, children: list[Children]
) -> None:
    site.change()
    for _ in range(3):
        for child in children:
            child.start("sync", site.url, "--db", site.origin)
        with Store.open(site.origin) as store:
            store.issue_key("ada@example.org")
        for child in children:
            status, output = child.wait()
            assert status == 0, output
    site.settle()
    site.check()


def test_several_pullers_of_one_replica_disturb_nobody_as_processes(
    site: Site, children: list[Children]
) -> None:
    for _ in range(3):
        site.change()
        site.sync(site.origin)
        for child in children:
            child.start("sync", site.url, "--db", site.replica)
        for child in children:
            status, output = child.wait()
            assert status == 0, output
    site.settle()
    site.check()
    assert incarnations(site) == 1


def test_a_pull_that_another_one_has_overtaken_changes_nothing_and_is_no_error(
    store: Store, tmp_path: Path
) -> None:
    hub, path = MemoryHub(), tmp_path / "replica.db"
    push(store, hub)
    engine.replicate(hub, "", path, Report(""))
    store.add_plan("one")
    push(store, hub)

    def overtake() -> None:
        store.add_plan("two")
        push(store, hub)
        assert pull(path, hub).pulled == 2

    with reaching(once("pull.staged", overtake)):
        report = pull(path, hub)
    assert report.pulled == 0
    with open_store(path) as file:
        assert report.as_of_change == file.info().as_of_change
