"""A lease, unit by unit; ``test_quotas`` spends it with a validator."""

import pytest

from keystore import Store as Origin
from keystore import quotas
from keystore.edge.leases import Grant, Lease, Leases, Supply
from keystore.quotas import Left

NOON = 1795176000.0  # 2026-11-20 12:00:00
START = "2026-11-20 00:00:00"
GRANT = Grant(1, 1, 1000, "daily", START)


def lease_of(units: int, left: int | None = None) -> Lease:
    lease = Lease(GRANT)
    lease.add(units)
    if left is not None:
        lease.left = Left(1, 1000, left, START, None)
    return lease


def test_what_remains_is_what_is_here_and_in_the_file() -> None:
    lease = lease_of(5, 100)
    assert lease.remaining == 105
    lease.offer_singles()
    assert lease.remaining == 105
    assert next(lease.singles) is not None
    assert lease.remaining == 104
    lease.add(3)
    assert lease.remaining == 107
    assert lease_of(5).remaining == 5
    assert Lease(GRANT).remaining == 0


@pytest.mark.parametrize("is_offered", [False, True])
@pytest.mark.parametrize("units", [1, 2, 5])
def test_units_are_taken_if_there_are_so_many_and_else_none(units: int, is_offered: bool) -> None:
    lease = lease_of(5)
    if is_offered:
        lease.offer_singles()
    while lease.remaining >= units:
        before = lease.remaining
        assert lease.take(units) is True
        assert lease.remaining == before - units
    rest = lease.remaining
    assert rest == 5 % units
    assert lease.take(units) is False
    assert lease.remaining == rest


def test_more_than_one_unit_is_taken_of_both_heaps() -> None:
    lease = lease_of(5)
    lease.offer_singles()
    lease.add(2)
    assert not lease.take(8)
    assert lease.take(7)
    assert lease.remaining == 0


def test_one_unit_comes_from_either_heap() -> None:
    lease = lease_of(2)
    lease.offer_singles()
    lease.add(1)
    assert [lease.take(1) for _ in range(4)] == [True, True, True, False]


def test_what_is_gathered_or_emptied_is_spent_one_by_one_no_more() -> None:
    lease = lease_of(5)
    lease.offer_singles()
    offered = lease.singles
    assert lease.gather() == 5
    assert next(offered, None) is None
    lease.offer_singles()
    assert lease.empty() == 5
    assert (lease.remaining, next(lease.singles, None)) == (0, None)
    lease.offer_singles()
    assert next(lease.singles, None) is None


@pytest.fixture
def origin(store: Origin) -> Origin:
    """An origin with a key that has a daily quota of 1,000 units."""
    store.add_service("tts")
    key = store.issue_key("ada@example.org").key.api_key
    store.set_quota(key, "tts", 1000, renewal="daily")
    store.file.conn.execute("UPDATE APIKeyServiceQuotas SET renewed_at = ?", (START,))
    return store


class Process:
    """Takes units as a validator does, and counts how often that writes."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self.leases, self.now, self.seen = Leases(), NOON, b"1"
        self.grant = GRANT

    def take(self, units: int, *, is_buffered: bool = True) -> tuple[bool, bool]:
        """Return whether there were so many, and whether the file was asked."""
        file = self._origin.file
        before = file.conn.total_changes, self.held
        lease = self.leases.find(self.grant)
        known = lease.left
        supply = Supply(file, self._origin.file.info().store_id, self.now, self.seen)
        passes = self.leases.take(lease, self.grant, units, supply, is_buffered=is_buffered)
        assert type(passes) is bool
        return passes, lease.left is not known or before[0] != file.conn.total_changes

    @property
    def held(self) -> int:
        return self.leases.find(self.grant).gather()

    def left(self) -> int:
        with self._origin.file.write() as conn:
            found = quotas.left(conn, 1, self._origin.file.info().store_id, self.now)
        assert found is not None
        return found.remaining


def test_a_part_is_taken_from_the_file_and_the_rest_stays_for_others(origin: Origin) -> None:
    process = Process(origin)
    assert process.take(1) == (True, True)
    assert (process.held, process.left()) == (1000 // quotas.SHARE - 1, 1000 - 1000 // quotas.SHARE)
    assert process.take(2) == (True, False)
    assert process.take(200) == (True, True)
    assert process.held + process.left() == 1000 - 203
    lease = process.leases.find(process.grant)
    assert lease.remaining == 1000 - 203


def test_without_a_buffer_no_unit_more_is_taken_than_is_spent(origin: Origin) -> None:
    process = Process(origin)
    assert process.take(3, is_buffered=False) == (True, True)
    assert (process.held, process.left()) == (0, 997)
    process.leases.put_back(1, 2)
    assert process.take(5, is_buffered=False) == (True, True)
    assert (process.held, process.left()) == (0, 994)


def test_to_ask_takes_nothing_and_one_unit_is_enough(origin: Origin) -> None:
    process = Process(origin)
    assert process.take(0) == (True, True)
    assert (process.held, process.left()) == (0, 1000)
    assert process.take(0) == (True, False)
    assert process.take(999, is_buffered=False)[0]
    assert process.take(0) == (True, False)
    assert Process(origin).take(0) == (True, True)
    assert process.take(1, is_buffered=False)[0]
    assert process.take(0) == (False, False)
    assert Process(origin).take(0) == (False, True)


def test_what_is_used_up_is_asked_for_again_only_after_a_commit(origin: Origin) -> None:
    process = Process(origin)
    assert process.take(1000) == (True, True)
    assert process.take(1) == (False, False)
    process.seen = b"2"
    assert process.take(1) == (False, True)
    origin.set_quota(origin.keys()[0].api_key, "tts", 1000, renewal="daily")
    origin.file.conn.execute("UPDATE APIKeyServiceQuotas SET renewed_at = ?", (START,))
    assert process.take(1) == (False, False)


def test_what_nobody_can_have_seen_is_always_asked_for(origin: Origin) -> None:
    process = Process(origin)
    process.seen = None  # type: ignore[assignment]
    assert process.take(1000) == (True, True)
    assert process.take(1)[0] is False
    with origin.file.write() as conn:
        conn.execute("UPDATE QuotaUse SET leased = 0")
    assert process.take(1)[0] is True


def test_more_than_is_left_is_refused_and_less_still_passes(origin: Origin) -> None:
    process = Process(origin)
    assert process.take(1001) == (False, True)
    assert process.left() == 1000
    assert process.take(1001) == (False, False)
    assert process.take(1000) == (True, True)


def test_a_lease_ends_at_the_renewal_and_the_next_period_is_whole(origin: Origin) -> None:
    process = Process(origin)
    assert process.take(1) == (True, True)
    held = process.held
    process.now = NOON + 43_200 - 0.001
    assert process.take(1) == (True, False)
    assert process.held == held - 1
    process.now = NOON + 43_200
    assert process.take(1) == (True, True)
    assert process.held + process.left() == 999


def test_a_quota_that_is_set_anew_ends_the_lease_of_the_old_one(origin: Origin) -> None:
    process = Process(origin)
    process.take(1)
    origin.file.conn.execute("UPDATE APIKeyServiceQuotas SET initial_quota = 2000")
    process.grant = GRANT._replace(initial_quota=2000)
    held = process.held
    assert process.take(1) == (True, True)
    assert process.held == held - 1  # of the same period: they are still this quota's
    lease = process.leases.find(process.grant)
    assert lease.left is not None
    assert (lease.grant.initial_quota, lease.left.initial) == (2000, 2000)


def test_a_quota_that_is_gone_is_refused_and_its_lease_is_empty(origin: Origin) -> None:
    process = Process(origin)
    process.take(1)
    origin.file.conn.execute("DELETE FROM APIKeyServiceQuotas")
    process.grant = GRANT._replace(renewed_at="2026-11-20 01:00:00")
    assert process.take(1) == (False, True)
    assert (process.held, process.leases.find(process.grant).left) == (0, None)
    assert process.take(0)[0] is False


def test_what_was_not_spent_is_given_back_once(origin: Origin) -> None:
    process = Process(origin)
    assert process.take(1) == (True, True)
    process.leases.find(process.grant).offer_singles()
    process.leases.put_back(1, 1)
    process.leases.put_back(None, 7)
    process.leases.give_back(origin.file)
    assert (process.held, process.left()) == (0, 1000)
    before = origin.file.conn.total_changes
    process.leases.give_back(origin.file)
    assert origin.file.conn.total_changes == before


def test_of_several_leases_those_with_something_left_are_given_back(origin: Origin) -> None:
    process = Process(origin)
    process.leases.find(GRANT._replace(quota_id=7))
    process.leases.find(GRANT._replace(quota_id=8)).add(3)  # never looked for in the file
    process.take(1)
    process.leases.give_back(origin.file)
    assert process.left() == 999


def test_forgotten_leases_are_spent_no_more(origin: Origin) -> None:
    process = Process(origin)
    process.take(1)
    lease = process.leases.find(process.grant)
    lease.offer_singles()
    offered = lease.singles
    process.leases.clear()
    assert next(offered, None) is None
    assert process.leases.find(process.grant) is not lease
    process.leases.give_back(origin.file)
    assert process.left() == 1000 - 1000 // quotas.SHARE
