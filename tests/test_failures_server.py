"""The hub's server is killed, restarted, made read-only or loses commits, at every step of a sync.

A server process that is killed takes the whole server with it, which then recovers from its log.
Without ``synchronous_commit`` it may lose what it had acknowledged: that is a hub put back.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from keystore import failpoint
from keystore.db import StoreFile, open_store
from keystore.errors import ForkedStoreError, TargetUnavailableError
from keystore.sync import targets
from keystore.testing import postgres
from keystore.testing.postgres import EmbeddedPostgres
from tests.conftest import new_hub
from tests.failures import Site, kill_backends, once, reaching, said, wait_for

ELSEWHERE = {"replicate", "compact", "export", "ingest"}
AT_THE_HUB = [step for step in failpoint.STEPS if step.partition(".")[0] not in ELSEWHERE]
MIDDLE = ["push.page", "push.pending", "push.staged", "pull.opened", "usage.page", "usage.sent"]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with postgres.running(settings={"synchronous_commit": "on"}) as made:
        yield made


@pytest.fixture(scope="module")
def site(server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with new_hub(server.url) as url:
        yield Site(tmp_path_factory.mktemp("site"), url)


def fail(site: Site, step: str, act: Callable[[], object]) -> None:
    """Sync everybody while ``act`` is done at a step; whoever notices says so clearly."""
    reached: list[str] = []
    on_reach = once(step, act)

    def note(name: str) -> None:
        reached.append(name)
        on_reach(name)

    errors: list[TargetUnavailableError] = []
    for path in (site.origin, site.replica):
        with reaching(note):
            try:
                site.sync(path)
            except TargetUnavailableError as error:
                errors.append(error)
        if step in reached:
            break
    assert step in reached
    assert all("Nothing is lost" in said(error) for error in errors)


@pytest.mark.parametrize("step", AT_THE_HUB)
def test_a_hub_that_is_killed_at_any_step_is_gone_and_back(
    server: EmbeddedPostgres, site: Site, step: str
) -> None:
    site.change()
    fail(site, step, lambda: kill_backends(server.url))
    wait_for(server.url)
    site.settle()
    site.check()


@pytest.mark.parametrize("step", MIDDLE)
def test_a_hub_that_restarts_in_the_middle_is_gone_and_back(
    server: EmbeddedPostgres, site: Site, step: str
) -> None:
    def restart() -> None:
        server.stop()
        server.start()

    site.change()
    fail(site, step, restart)
    site.settle()
    site.check()


@pytest.mark.parametrize("step", MIDDLE)
def test_a_hub_that_becomes_read_only_in_the_middle_takes_the_rest_later(
    server: EmbeddedPostgres, site: Site, step: str
) -> None:
    site.change()
    with psycopg.connect(server.url, autocommit=True) as conn:
        try:
            fail(site, step, lambda: set_read_only(conn, is_on=True))
            with pytest.raises(TargetUnavailableError, match="read-only"):
                site.sync(site.origin)
        finally:
            set_read_only(conn, is_on=False)
    site.settle()
    site.check()


def set_read_only(conn: psycopg.Connection[tuple[object, ...]], *, is_on: bool) -> None:
    conn.execute("SET default_transaction_read_only = off")
    value = "on" if is_on else "off"
    conn.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")  # type: ignore[call-overload,unused-ignore]
    conn.execute("SELECT pg_reload_conf()")
    seen = None
    while seen != (value,):
        with psycopg.connect(conn.info.dsn) as fresh:
            seen = fresh.execute("SHOW default_transaction_read_only").fetchone()


def test_a_hub_that_lost_what_it_had_acknowledged_is_noticed_and_brought_up_to_date(
    tmp_path: Path,
) -> None:
    # with a writer of the log that sleeps for long, and rows that no checkpoint has written
    lazy = {"synchronous_commit": "off", "wal_writer_delay": "10s", "checkpoint_timeout": "1h"}
    with postgres.running(settings=lazy) as server, new_hub(server.url) as url:
        site = Site(tmp_path, url)
        for _ in range(10):
            site.change()
            site.settle()
            with psycopg.connect(server.url, autocommit=True) as conn:
                conn.execute("CHECKPOINT")
            site.change()
            site.settle()
            with open_store(site.origin) as file, targets.opened(url):
                before = acknowledged(url, file)
                kill_backends(server.url)
                wait_for(server.url)
                after = acknowledged(url, file)
            if after < before:
                break
        assert after < before
        with pytest.raises(ForkedStoreError, match="put back") as caught:
            site.sync(site.origin)
        assert "--reconcile" in said(caught.value)
        site.sync(site.origin, reconcile=True)
        site.settle()
        site.check()


def acknowledged(url: str, file: StoreFile) -> int:
    with psycopg.connect(url) as conn:
        row = conn.execute(
            "SELECT acknowledged_change FROM keystore.stores WHERE store_id = %s",
            (file.info().store_id,),
        ).fetchone()
    return int((row or (0,))[0])
