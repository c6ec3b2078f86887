"""Clocks that jump: what is lost is at most a name in the list of replicas, never a row."""

import time
from itertools import count
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
import uuid_utils.compat

from keystore import clock
from keystore.db import open_store
from tests.failures import Site, copy

DAY = 86_400.0


class Clock:
    """This process's clock, as the store and the tokens of a check-in see it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset, self._numbers = 0.0, count()
        utc_text = clock.utc_text
        for module in ("keystore.changelog", "keystore.clock"):
            monkeypatch.setattr(
                f"{module}.utc_text",
                lambda timestamp=None: utc_text(self.now if timestamp is None else timestamp),
            )
        monkeypatch.setattr(
            uuid_utils.compat, "uuid7", lambda: token_at(self.now, next(self._numbers))
        )

    @property
    def now(self) -> float:
        return time.time() + self.offset


def token_at(now: float, number: int) -> UUID:
    """Make a UUID of version 7 as of a time."""
    return UUID(int=int(now * 1000) << 80 | 0x7 << 76 | 0x2 << 62 | number)


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def site(hub_url: str, tmp_path: Path) -> Site:
    return Site(tmp_path, hub_url)


def names(site: Site) -> int:
    with psycopg.connect(site.url) as conn:
        return len(conn.execute("SELECT 1 FROM keystore.replicas").fetchall())


def test_a_token_as_of_a_time_is_ordered_as_real_ones_are() -> None:
    real = uuid_utils.compat.uuid7()
    assert token_at(time.time() - DAY, 0) < UUID(str(real)) < token_at(time.time() + DAY, 0)


@pytest.mark.parametrize("days", [(-1,), (1, -1), (-1, 1), (400, -400), (-1, -2, -3)])
def test_an_origin_and_a_replica_whose_clock_jumps_lose_nothing(
    site: Site, jumping: Clock, days: tuple[int, ...]
) -> None:
    for jump in (*days, 0):
        jumping.offset = jump * DAY
        for _ in range(2):
            site.change()
            site.settle()
    with open_store(site.replica) as file:
        assert file.info().as_of_at == clock.utc_text(clock.seconds(file.info().as_of_at or ""))
    site.check()
    assert names(site) == 1


@pytest.mark.parametrize("first", ["replica", "twin"])
def test_a_copy_is_told_apart_at_once_though_the_clock_was_put_back(
    site: Site, jumping: Clock, first: str
) -> None:
    """No token is older than the last one, or it would look like one of a hub that was put back."""
    site.settle()
    twin = copy(site.replica, "twin.db")
    jumping.offset = -DAY
    paths = [site.replica, twin] if first == "replica" else [twin, site.replica]
    site.sync(paths[0])
    jumping.offset = 0
    site.sync(paths[1])
    assert names(site) == 2
    for _ in range(2):
        site.change()
        site.sync(site.origin)
        for path in (site.replica, twin):
            site.sync(path)
    assert names(site) == 2
    site.settle()
    site.sync(twin)
    site.check(twin)


def test_a_hub_put_back_beyond_a_jump_knows_a_replica_under_its_name(
    site: Site, jumping: Clock
) -> None:
    jumping.offset = DAY
    site.settle()
    with psycopg.connect(site.url) as conn:
        left = conn.execute("SELECT token FROM keystore.replicas").fetchone()
    jumping.offset = 0
    site.change()
    site.settle()
    with psycopg.connect(site.url) as conn:
        conn.execute("UPDATE keystore.replicas SET token = %s", left)
    site.settle()
    site.settle()
    assert names(site) == 1
    site.check()
