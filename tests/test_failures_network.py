"""The network between a store and its hub loses an answer, breaks anywhere, or falls silent."""

import random
from collections.abc import Iterator

import pytest

from keystore import Store
from keystore.db import StoreFile
from keystore.errors import TargetUnavailableError
from keystore.sync import engine, hub_connection, targets
from keystore.sync.protocols import TargetState
from tests.conftest import new_hub
from tests.failures import Site, once, reaching, said
from tests.proxy import Proxy

SEED = 20261120
CUTS = 8


@pytest.fixture(scope="module")
def site(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with new_hub(postgres_url) as url:
        yield Site(tmp_path_factory.mktemp("site"), url)


@pytest.fixture
def proxy(site: Site) -> Iterator[Proxy]:
    with Proxy(site.url) as made:
        yield made


@pytest.mark.parametrize(
    ("who", "nth"),
    [("origin", 1), ("origin", 2), ("replica", 1), ("replica", 2), ("replica", 3)],
    ids=["push", "usage of an origin", "pull", "usage", "check-in"],
)
def test_an_acknowledgement_that_is_lost_makes_nothing_happen_twice(
    site: Site, proxy: Proxy, who: str, nth: int
) -> None:
    site.change()
    path = site.origin if who == "origin" else site.replica
    if who == "replica":
        site.sync(site.origin)
    proxy.lose_commit = nth
    with pytest.raises(TargetUnavailableError) as caught:
        site.sync(path, url=proxy.url)
    assert "Nothing is lost" in said(caught.value)
    assert proxy.lose_commit == -1
    report = site.sync(path)
    assert not report.pushed
    assert not report.pulled or nth == 1
    site.settle()
    site.check()


@pytest.mark.parametrize("who", ["origin", "replica"])
def test_a_connection_that_breaks_at_any_byte_leaves_the_old_state_or_the_new_one(
    site: Site, who: str
) -> None:
    path = site.origin if who == "origin" else site.replica
    site.settle()
    site.change()
    if who == "replica":
        site.sync(site.origin)
    with Proxy(site.url) as whole:
        site.sync(path, url=whole.url)
    almost_all = range(whole.passed * 9 // 10)  # the next ones may be a little shorter
    positions = random.Random(SEED).sample(almost_all, CUTS)  # noqa: S311
    for position in sorted(positions):
        site.change()
        if who == "replica":
            site.sync(site.origin)
        with Proxy(site.url) as broken:
            broken.cut_at = position
            with pytest.raises(TargetUnavailableError):
                site.sync(path, url=broken.url)
        site.settle()
        site.check()


@pytest.mark.parametrize("step", ["push.page", "push.staged", "pull.opened", "usage.page"])
def test_a_hub_that_falls_silent_is_given_up(
    site: Site, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    site.change()
    path = site.replica if step.startswith("pull") else site.origin

    def fall_silent() -> None:
        proxy.stall()
        # only now: a machine under load may take that long for an honest answer
        monkeypatch.setattr(hub_connection, "ANSWER_TIMEOUT_SECONDS", 0.2)

    with reaching(once(step, fall_silent)), pytest.raises(TargetUnavailableError) as caught:
        site.sync(path, url=proxy.url)
    assert "stopped answering" in said(caught.value)
    monkeypatch.undo()
    proxy.close()  # the server hears of it, too
    site.settle()
    site.check()


def shorten(monkeypatch: pytest.MonkeyPatch, patience: str, to: str) -> None:
    """Shorten one of the two times that the server is asked to wait."""
    statements = dict(hub_connection._Q)
    statements["give_up_in_time"] = statements["give_up_in_time"].replace(patience, to)
    monkeypatch.setattr(hub_connection, "_Q", statements)


def test_a_pusher_that_falls_silent_does_not_keep_the_next_one_out_for_ever(
    site: Site, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    said_by_second: list[str] = []
    shorten(monkeypatch, "30s", to="50ms")
    site.change()

    def second() -> None:
        proxy.stall()
        with Store.open(site.origin) as store, pytest.raises(TargetUnavailableError) as caught:
            targets.sync(store.file, site.url)
        said_by_second.append(said(caught.value))
        monkeypatch.setattr(hub_connection, "ANSWER_TIMEOUT_SECONDS", 0.2)

    with reaching(once("push.page", second)), pytest.raises(TargetUnavailableError):
        site.sync(site.origin, url=proxy.url)
    assert "another push of this store is under way" in said_by_second[0]
    monkeypatch.undo()
    proxy.close()
    site.settle()
    site.check()


def test_a_pusher_that_idles_in_its_transaction_is_ended_by_the_server(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next pusher gets the lock while the first, which is ended, still lives."""
    shorten(monkeypatch, "5min", to="1s")
    site.change()
    pushed: list[int | None] = []
    start = engine._start

    def hang(file: StoreFile, state: TargetState) -> int | None:
        """While a page is under way the server would not take the pusher for idle."""
        patch.undo()
        monkeypatch.undo()  # the second has all the time it needs, however slow this machine is
        with Store.open(site.origin) as store:
            (report,) = targets.sync(store.file, site.url)
        pushed.append(report.pushed)
        return start(file, state)

    with monkeypatch.context() as patch, pytest.raises(TargetUnavailableError):
        patch.setattr(engine, "_start", hang)
        site.sync(site.origin)
    assert pushed
    assert pushed[0]
    site.settle()
    site.check()
