"""The guard of the clock, to the second, without a file; ``test_offline`` has it with one."""

import math
from dataclasses import replace

import pytest

from keystore import clock
from keystore.db import StoreInfo
from keystore.edge.decision import Freshness, Limit
from keystore.edge.guard import ClockGuard
from keystore.errors import DamagedStoreError
from tests.test_offline import DAY, HOUR, NOON, Machine, replica_info
from tests.test_validator import changed

SINCE = NOON - HOUR
VALID, USABLE = NOON + DAY, NOON + 3 * DAY
SIGNED = replace(
    replica_info(), valid_until=clock.utc_text(VALID), max_offline_seconds=int(2 * DAY)
)
NEWER = replace(replica_info(), as_of_change=2)
NEVER_SYNCED = replace(replica_info(), as_of_change=None, as_of_at=None)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr("keystore.edge.guard.time", made)
    return made


def looking(info: StoreInfo) -> ClockGuard:
    guard = ClockGuard()
    guard.look(info)
    return guard


def fresh(guard: ClockGuard, now: float, behind: float = 0.0) -> Freshness:
    found = guard.freshness(now, behind)
    assert found is not None
    return found


def test_before_it_has_looked_and_at_an_origin_the_wall_clock_is_right(machine: Machine) -> None:
    for guard in (ClockGuard(), looking(NEVER_SYNCED)):
        assert guard.now() == (NOON, 0.0)
        machine.wall -= DAY
        assert guard.now() == (NOON - DAY, 0.0)
        machine.wall += DAY
        assert guard.freshness(NOON, 0.0) is None
        assert not guard.should_mark(NOON + 1000 * DAY)


def test_a_time_goes_on_by_the_monotonic_clock_and_says_how_far_the_wall_is_behind(
    machine: Machine,
) -> None:
    guard = looking(replica_info())
    assert guard.now() == (NOON, 0.0)
    machine.wait(5)
    machine.wall -= 100
    assert guard.now() == (NOON + 5, 100.0)
    machine.wait(10)
    assert guard.now() == (NOON + 15, 100.0)
    machine.wall += 200
    assert guard.now() == (NOON + 115, 0.0)


def test_the_data_the_mark_and_what_was_shown_each_hold_the_time(machine: Machine) -> None:
    machine.wall = SINCE - DAY
    assert looking(replica_info()).now() == (SINCE, DAY)
    assert looking(replica_info(clock.utc_text(SINCE + 7))).now() == (SINCE + 7, DAY + 7)
    assert looking(replica_info(clock.utc_text(SINCE - 7))).now() == (SINCE, DAY)


def test_only_something_newer_takes_back_what_a_clock_has_shown(machine: Machine) -> None:
    guard = looking(replica_info())
    machine.wall += 100 * DAY
    guard.now()
    machine.wall -= 100 * DAY
    guard.look(replica_info())
    assert guard.now()[0] == NOON + 100 * DAY
    guard.look(NEWER)
    assert guard.now() == (NOON, 0.0)


def test_a_clock_may_be_a_minute_behind_before_the_data_count_as_older(machine: Machine) -> None:
    guard = looking(replica_info())
    assert fresh(guard, SINCE, 60.0).age_seconds == 0
    assert fresh(guard, SINCE, 60.001).age_seconds == 60.001
    assert fresh(guard, SINCE + 90, 61.0).age_seconds == 90
    assert fresh(guard, SINCE - 5).age_seconds == 0
    assert fresh(guard, NOON)[:2] == (1, clock.utc_text(SINCE))


def test_the_end_of_the_signatures_and_of_the_grace_are_still_within(machine: Machine) -> None:
    guard = looking(SIGNED)
    ends = (clock.utc_text(VALID), clock.utc_text(USABLE))
    for now, in_grace, is_over in (
        (VALID, False, False),
        (VALID + 0.001, True, False),
        (USABLE, True, False),
        (USABLE + 0.001, False, True),
    ):
        assert fresh(guard, now).limit == Limit(*ends, is_in_grace=in_grace, is_over=is_over)
    assert fresh(looking(replica_info()), math.inf).limit is None


@pytest.mark.parametrize("seconds", [None, 0, -5])
def test_without_a_grace_the_end_comes_at_once(machine: Machine, seconds: int | None) -> None:
    guard = looking(replace(SIGNED, max_offline_seconds=seconds))
    assert fresh(guard, VALID).limit == Limit(
        clock.utc_text(VALID), clock.utc_text(VALID), is_in_grace=False, is_over=False
    )
    limit = fresh(guard, VALID + 0.001).limit
    assert limit is not None
    assert limit.is_over


@pytest.mark.parametrize(
    "values",
    [
        {"as_of_at": "for ever"},
        {"clock_mark": 7},
        {"valid_until": "2026-13-01 00:00:00"},
        {"valid_until": "2026-11-20 12:00:00", "max_offline_seconds": 10**300},
        {"valid_until": "2026-11-20 12:00:00", "max_offline_seconds": 2**62},
        {"valid_until": "2026-11-20 12:00:00", "max_offline_seconds": "long"},
    ],
)
def test_a_time_that_is_none_is_damage_and_changes_nothing(
    machine: Machine, values: dict[str, object]
) -> None:
    guard = looking(SIGNED)
    with pytest.raises(DamagedStoreError):
        guard.look(replace(SIGNED, **values))  # type: ignore[arg-type]
    assert fresh(guard, NOON) == fresh(looking(SIGNED), NOON)


@pytest.mark.parametrize(
    ("bound", "action", "now", "until"),
    [
        (None, "deny", NOON, VALID),
        (None, "deny", VALID, VALID),
        (None, "deny", VALID + 1, USABLE),
        (7200, "allow", NOON, VALID),
        (7200, "deny", NOON, NOON + HOUR),
        (10**9, "deny", NOON, VALID),
        (None, None, NOON, VALID),
    ],
)
def test_a_decision_holds_until_it_may_be_offline_or_stale(
    machine: Machine, bound: int | None, action: str | None, now: float, until: float
) -> None:
    guard = looking(SIGNED)
    entry = changed(max_staleness_seconds=bound, stale_action=action)
    assert guard.holds_until(entry, now, fresh(guard, now)) == until


class Writer:
    """Keeps what is written, or fails."""

    def __init__(self) -> None:
        self.written: list[dict[str, object]] = []
        self.fails = False

    def execute(self, statement: str, values: dict[str, object]) -> None:
        if self.fails:
            raise TimeoutError
        self.written.append(values)


def mark(guard: ClockGuard, writer: Writer) -> None:
    guard.mark(writer)  # type: ignore[arg-type]


def test_a_mark_is_due_after_ten_minutes_and_tried_again_after_ten_more(machine: Machine) -> None:
    guard, writer = looking(replica_info(clock.utc_text(NOON))), Writer()
    assert not guard.should_mark(NOON + 599.999)
    assert guard.should_mark(NOON + 600)
    machine.wait(600)
    writer.fails = True
    with pytest.raises(TimeoutError):
        mark(guard, writer)
    machine.wait(599.5)
    assert not guard.should_mark(guard.now()[0])
    machine.wait(0.5)
    assert guard.should_mark(guard.now()[0])
    writer.fails = False
    mark(guard, writer)
    assert writer.written == [
        {
            "mark": clock.utc_text(NOON + 1200),
            "as_of_change": 1,
            "as_of_at": clock.utc_text(SINCE),
        }
    ]
    guard.look(NEWER)  # something newer need not wait
    assert guard.should_mark(NOON + 1200)


def test_a_replica_without_a_mark_is_due_for_one_at_once(machine: Machine) -> None:
    assert looking(replica_info()).should_mark(NOON)


def test_where_there_is_nothing_to_guard_nothing_is_marked(machine: Machine) -> None:
    writer = Writer()
    mark(ClockGuard(), writer)
    mark(looking(NEVER_SYNCED), writer)
    assert writer.written == []
