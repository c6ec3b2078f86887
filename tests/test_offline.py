"""Without contact: allowed as long as it is signed for, then "not now", whatever clocks show."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystore import Reason, Store, Validator, clock
from keystore.db import StoreInfo, open_store
from keystore.doctor import examine
from keystore.edge.decision import Freshness
from keystore.edge.guard import ClockGuard
from keystore.sync import engine, verify
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from keystore.sync.protocols import Pull
from tests.failures import once, reaching
from tests.test_cli import run

HOUR, DAY = 3600.0, 86_400.0
VALID, GRACE = 7 * DAY, 30 * DAY
NOON = clock.seconds("2026-11-20 12:00:00")


class Machine:
    """A machine's clocks: anybody may set the one on the wall; the other one just goes on."""

    def __init__(self, wall: float = NOON) -> None:
        self.wall, self.ticks = wall, 1000.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.ticks

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.ticks += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made, utc_text = Machine(), clock.utc_text
    monkeypatch.setattr("keystore.edge.guard.time", made)
    for module in ("keystore.changelog", "keystore.clock"):
        monkeypatch.setattr(
            f"{module}.utc_text",
            lambda timestamp=None: utc_text(made.wall if timestamp is None else timestamp),
        )
    return made


class SignedFiles(MemoryHub):
    """A target whose rows may be used until its signatures expire, and for a grace after that."""

    valid_until: str | None = None
    max_offline_seconds: int | None = int(GRACE)

    @contextmanager
    def pull(self, origin_id: str | None, after: int | None) -> Iterator[Pull]:
        with super().pull(origin_id, after) as cut:
            cut.valid_until, cut.max_offline_seconds = self.valid_until, self.max_offline_seconds
            cut.source_state = f"as of {cut.as_of_at}"
            yield cut


class Edge:
    """An origin, what it publishes, and a replica that has pulled once."""

    def __init__(self, store: Store, path: Path, machine: Machine) -> None:
        self.store, self.path, self.machine = store, path, machine
        self.files = SignedFiles()
        self.token = store.issue_key("ada@example.org").token
        self.publish()
        engine.replicate(self.files, "files:", path, Report(""))

    def publish(self) -> None:
        engine.push(self.store.file, self.files, "files:", Report(""))
        self.files.valid_until = clock.utc_text(self.machine.wall + VALID)

    def pull(self, source: MemoryHub | None = None) -> None:
        with open_store(self.path) as file:
            engine.pull(file, source or self.files, "files:", Report(""))

    @property
    def info(self) -> StoreInfo:
        with open_store(self.path) as file:
            return file.info()

    def execute(self, statement: str) -> None:
        with open_store(self.path) as file:
            file.conn.execute(statement)


@pytest.fixture
def edge(store: Store, tmp_path: Path, machine: Machine) -> Edge:
    return Edge(store, tmp_path / "replica.db", machine)


def fresh(validator: Validator) -> Freshness:
    found = validator.freshness()
    assert found is not None
    return found


# -- the end -----------------------------------------------------------------------------------


def test_past_the_end_the_very_next_check_is_not_now_without_any_commit(
    edge: Edge, machine: Machine
) -> None:
    with Validator(edge.path) as validator:
        assert validator.check(edge.token, cost=0).allowed
        machine.wait(VALID + GRACE)
        assert validator.check(edge.token, cost=0).allowed
        machine.wait(1)
        decision = validator.check(edge.token, cost=0)
        assert decision.reason is Reason.OFFLINE
        assert decision.reason.is_not_now


def test_in_the_grace_a_check_passes_and_says_until_when(edge: Edge, machine: Machine) -> None:
    with Validator(edge.path) as validator:
        for wait, in_grace, is_over in (
            (VALID, False, False),
            (1, True, False),
            (GRACE, False, True),
        ):
            machine.wait(wait)
            limit = fresh(validator).limit
            assert limit is not None
            assert (limit.is_in_grace, limit.is_over) == (in_grace, is_over)
            assert limit.valid_until == "2026-11-27 12:00:00"
            assert limit.usable_until == "2026-12-27 12:00:00"


def test_without_a_grace_the_end_is_that_of_the_signatures(edge: Edge, machine: Machine) -> None:
    edge.execute("UPDATE StoreInfo SET max_offline_seconds = NULL")
    with Validator(edge.path) as validator:
        machine.wait(VALID)
        assert validator.check(edge.token).allowed
        machine.wait(1)
        assert validator.check(edge.token).reason is Reason.OFFLINE


def test_a_pull_is_seen_by_the_next_check_and_the_replica_goes_on(
    edge: Edge, machine: Machine
) -> None:
    with Validator(edge.path) as validator:
        machine.wait(VALID + GRACE + 1)
        assert validator.check(edge.token).reason is Reason.OFFLINE
        edge.publish()
        edge.pull()
        assert validator.check(edge.token).allowed
        assert fresh(validator).age_seconds == 0


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE APIKeys SET status = 'revoked'", Reason.REVOKED),
        ("UPDATE APIKeys SET status = 'suspended'", Reason.SUSPENDED),
        ("UPDATE APIKeys SET expires_at = '2026-11-21 00:00:00'", Reason.EXPIRED),
        ("UPDATE Accounts SET is_active = 0", Reason.ACCOUNT_INACTIVE),
        ("UPDATE APIKeys SET allowed_networks = '192.0.2.0/24'", Reason.NETWORK),
        ("UPDATE Plans SET max_staleness_seconds = 60", Reason.OFFLINE),
        ("DELETE FROM APIKeys", Reason.OFFLINE),  # younger than the data, perhaps
    ],
)
def test_past_the_end_what_is_no_for_certain_stays_no(
    edge: Edge, machine: Machine, statement: str, reason: Reason
) -> None:
    edge.store.file.conn.execute(statement)
    edge.publish()
    edge.pull()
    machine.wait(VALID + GRACE + 1)
    with Validator(edge.path) as validator:
        assert validator.check(edge.token).reason is reason
        mistyped = edge.token[:-1] + ("a" if edge.token[-1] != "a" else "b")
        assert validator.check(mistyped).reason is Reason.MALFORMED


def test_a_replica_of_a_hub_has_no_end(edge: Edge, machine: Machine) -> None:
    hub = MemoryHub()
    machine.wait(1)
    engine.push(edge.store.file, hub, "hub:", Report(""))
    edge.pull(hub)
    with Validator(edge.path) as validator:
        machine.wait(10 * (VALID + GRACE))
        assert validator.check(edge.token).allowed
        assert fresh(validator).limit is None


def test_a_limit_that_cannot_be_read_is_not_now(edge: Edge) -> None:
    with open_store(edge.path) as file:
        file.conn.execute("PRAGMA ignore_check_constraints = ON")
        file.conn.execute("UPDATE StoreInfo SET valid_until = 'for ever'")
    with Validator(edge.path) as validator:
        assert validator.check(edge.token).reason is Reason.UNAVAILABLE
    edge.execute("UPDATE StoreInfo SET valid_until = NULL")


# -- the clock ---------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_prolongs_nothing(edge: Edge, machine: Machine) -> None:
    with Validator(edge.path) as validator:
        validator.check(edge.token)
        machine.wait(VALID + GRACE - HOUR)
        assert validator.check(edge.token).allowed
        machine.wall -= 40 * DAY
        assert validator.check(edge.token).allowed
        machine.wait(HOUR + 1)
        assert validator.check(edge.token).reason is Reason.OFFLINE


def test_a_clock_that_is_set_back_revives_no_expired_key(edge: Edge, machine: Machine) -> None:
    edge.store.file.conn.execute("UPDATE APIKeys SET expires_at = '2026-11-21 00:00:00'")
    edge.publish()
    edge.pull()
    with Validator(edge.path) as validator:
        machine.wait(DAY)
        assert validator.check(edge.token).reason is Reason.EXPIRED
        machine.wall -= 2 * DAY
        assert validator.check(edge.token).reason is Reason.EXPIRED
    with Validator(edge.path) as restarted:
        assert restarted.check(edge.token).reason is Reason.EXPIRED


def test_a_clock_that_is_set_back_makes_no_data_look_new(edge: Edge, machine: Machine) -> None:
    edge.store.file.conn.execute("UPDATE Plans SET max_staleness_seconds = 7200")
    edge.publish()
    edge.pull()
    with Validator(edge.path) as validator:
        machine.wait(HOUR)
        assert validator.check(edge.token).allowed
        machine.wall -= 0.75 * HOUR
        machine.wait(HOUR)
        decision = validator.check(edge.token)
        assert decision.allowed
        assert decision.freshness is not None
        assert decision.freshness.age_seconds == 2 * HOUR
        machine.wait(1)
        assert validator.check(edge.token).reason is Reason.STALE


@pytest.mark.parametrize("mark", ["clock_mark", "NULL"])  # a migrated replica has none
def test_a_clock_that_is_behind_counts_as_an_age_from_the_start(
    edge: Edge, machine: Machine, mark: str
) -> None:
    edge.execute(f"UPDATE StoreInfo SET clock_mark = {mark}")
    machine.wall -= 2 * HOUR
    with Validator(edge.path) as validator:
        assert fresh(validator).age_seconds == 2 * HOUR


KILLED = """
import os, signal, sys, time
from keystore import Validator
validator = Validator(sys.argv[1], max_pending=int(sys.argv[3]), max_seconds=3600)
assert validator.check(sys.argv[2], cost=int(sys.argv[4])).allowed
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("max_pending", "cost"), [(1, 1), (1000, 0)], ids=["with usage", "without usage"]
)
def test_the_mark_survives_a_kill(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_pending: int, cost: int
) -> None:
    machine = Machine(time.time())
    edge = Edge(store, tmp_path / "replica.db", machine)
    edge.execute("UPDATE StoreInfo SET clock_mark = NULL, as_of_at = '2026-01-01 00:00:00'")
    before = clock.utc_text()
    arguments = [str(edge.path), edge.token, str(max_pending), str(cost)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    mark = edge.info.clock_mark
    assert mark is not None
    assert mark >= before
    monkeypatch.setattr("keystore.edge.guard.time", machine)
    machine.wall = clock.seconds(mark) - 40 * DAY
    with Validator(edge.path) as restarted:
        assert fresh(restarted).age_seconds >= clock.seconds(mark) - clock.seconds(
            "2026-01-01 00:00:00"
        )
        assert restarted.now() == clock.seconds(mark)


def test_the_mark_is_written_with_usage_and_otherwise_every_ten_minutes(
    edge: Edge, machine: Machine
) -> None:
    with open_store(edge.path) as observer, Validator(edge.path) as validator:

        def commits_of(act: Callable[[], object]) -> int:
            """Whether anybody commits meanwhile: 1 or 0."""
            (before,) = observer.conn.execute("PRAGMA data_version").fetchone()
            act()
            (after,) = observer.conn.execute("PRAGMA data_version").fetchone()
            return int(before != after)

        def check() -> object:
            return validator.check(edge.token, cost=0)

        assert commits_of(check) == 0  # the pull has left one
        machine.wait(599)
        assert commits_of(check) == 0
        with Validator(edge.path) as started:
            assert commits_of(lambda: started.check(edge.token, cost=0)) == 0
        machine.wait(1)
        assert commits_of(check) == 1
        assert edge.info.clock_mark == "2026-11-20 12:10:00"
        assert commits_of(check) == 0
        machine.wait(600)
        assert commits_of(validator.flush_if_due) == 1  # nobody asks, and the time goes on
        machine.wait(10)
        validator.check(edge.token)
        validator.flush()
        assert edge.info.clock_mark == "2026-11-20 12:20:10"


def test_a_mark_that_cannot_be_written_changes_no_answer_and_is_tried_again(
    edge: Edge, machine: Machine
) -> None:
    with Validator(edge.path) as validator:
        conn = validator._writer.conn
        conn.execute("PRAGMA query_only = ON")  # what a read-only file is to a connection
        for _ in range(2):
            machine.wait(601)
            assert validator.check(edge.token, cost=0).allowed
            assert validator.flush_if_due() == 0
            assert edge.info.clock_mark == "2026-11-20 12:00:00"
        machine.wall -= DAY
        assert validator.now() == NOON + 1202
        conn.execute("PRAGMA query_only = OFF")
        machine.wait(601)
        assert validator.check(edge.token, cost=0).allowed
        assert edge.info.clock_mark == "2026-11-20 12:30:03"


def test_a_clock_past_the_calendar_keeps_no_usage_from_being_written(
    edge: Edge, machine: Machine
) -> None:
    edge.execute("UPDATE StoreInfo SET valid_until = NULL")
    with Validator(edge.path, max_pending=1) as validator:
        machine.wall = clock.seconds("2999-12-31 23:59:59") + DAY
        assert validator.check(edge.token).allowed
    assert edge.info.clock_mark == "2026-11-20 12:00:00"
    with Store.open(edge.path) as replica:
        assert replica.status().usage_total == 1


def test_a_clock_that_was_far_ahead_once_does_not_end_a_replica_for_ever(
    edge: Edge, machine: Machine
) -> None:
    with Validator(edge.path) as validator:
        machine.wall += 400 * DAY
        assert validator.check(edge.token).reason is Reason.OFFLINE
        edge.pull()  # while it is wrong
        machine.wall -= 400 * DAY
        edge.pull()  # the same state again: that anybody could do
        assert validator.check(edge.token).reason is Reason.OFFLINE
        with Validator(edge.path) as restarted:
            assert restarted.check(edge.token).reason is Reason.OFFLINE
        machine.wait(HOUR)
        edge.publish()
        edge.pull()
        assert validator.check(edge.token).allowed
        assert validator.now() == machine.wall
    with Validator(edge.path) as restarted:
        assert restarted.check(edge.token).allowed
        assert fresh(restarted).age_seconds == 0


def test_a_later_change_mends_the_clock_though_its_origins_was_ahead(
    edge: Edge, machine: Machine
) -> None:
    machine.wall += 400 * DAY
    edge.publish()
    edge.pull()
    machine.wall -= 400 * DAY
    edge.store.add_plan("later")
    edge.publish()
    edge.pull()
    with Validator(edge.path) as validator:
        assert validator.check(edge.token).allowed
        assert validator.now() == machine.wall


def test_usage_that_was_counted_before_a_pull_does_not_undo_what_it_mended(
    edge: Edge, machine: Machine
) -> None:
    edge.execute("UPDATE StoreInfo SET valid_until = NULL")
    with Validator(edge.path) as validator:
        machine.wall += 400 * DAY
        assert validator.check(edge.token).allowed
        machine.wall -= 400 * DAY
        machine.wait(1)
        edge.publish()
        edge.pull()
        validator.flush()  # it has not looked at the file since
    assert edge.info.clock_mark == "2026-11-20 12:00:01"


def test_the_mark_is_never_before_what_the_data_are_as_of(edge: Edge, machine: Machine) -> None:
    machine.wait(HOUR)
    edge.publish()
    machine.wall -= DAY
    edge.pull()
    assert edge.info.clock_mark == "2026-11-20 13:00:00"


def test_an_origin_goes_by_its_clock_and_has_no_mark(store: Store, machine: Machine) -> None:
    store.issue_key("ada@example.org", expires_at="2026-11-21")
    token = store.issue_key("ada@example.org", expires_at="2026-11-21").token
    with Validator(store.file.path) as validator:
        machine.wait(DAY)
        assert validator.check(token).reason is Reason.EXPIRED
        machine.wall -= DAY
        assert validator.check(token).allowed
    assert store.file.info().clock_mark is None


CLOCKS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0, 1e6)),
        st.tuples(st.just("set"), st.floats(-1e9, 1e9)),
        st.tuples(st.just("look"), st.just(0.0)),
        st.tuples(st.just("restart"), st.just(0.0)),
    ),
    max_size=30,
)


@given(CLOCKS)
@settings(max_examples=200, deadline=None)
def test_time_never_goes_back_without_a_newer_pull(steps: list[tuple[str, float]]) -> None:
    """A restart goes on from the mark, here as exact as it was written."""
    machine, info = Machine(), replica_info()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keystore.edge.guard.time", machine)
        guard = ClockGuard()
        guard.look(info)
        seen = [guard.now()[0]]
        for kind, value in steps:
            if kind == "wait":
                machine.wait(value)
            elif kind == "set":
                machine.wall = NOON + value
            else:
                if kind == "restart":
                    guard = ClockGuard()
                    info = replica_info(clock.utc_text(seen[-1]))
                    seen = [clock.seconds(info.clock_mark or "")]
                guard.look(info)
            now, behind = guard.now()
            assert now - behind == pytest.approx(machine.wall)
            seen.append(now)
    assert all(after >= before - 1e-3 for before, after in pairwise(seen))
    assert min(seen) >= NOON - HOUR


def replica_info(mark: str | None = None) -> StoreInfo:
    return StoreInfo(
        store_id="r",
        role="replica",
        incarnation="i",
        origin_id="o",
        token_prefix="sk-",
        as_of_change=1,
        as_of_at=clock.utc_text(NOON - HOUR),
        origin_incarnation="i",
        valid_until=None,
        max_offline_seconds=None,
        clock_mark=mark,
        replaying=0,
        log_horizon=0,
        compacted_to=0,
        created_at="",
    )


# -- two pulls of one change -------------------------------------------------------------------


def test_of_two_pulls_of_one_change_the_later_one_stays(edge: Edge, machine: Machine) -> None:
    older = SignedFiles()
    engine.push(edge.store.file, older, "older:", Report(""))
    older.valid_until = clock.utc_text(machine.wall + VALID)
    machine.wait(HOUR)
    edge.publish()
    edge.pull()
    held = edge.info
    edge.pull(older)
    assert edge.info == held
    with open_store(edge.path) as file:
        states = dict(file.conn.execute("SELECT target_id, source_state FROM SyncTargets"))
    assert states == {
        edge.files.target_id: "as of 2026-11-20 13:00:00",
        older.target_id: "as of 2026-11-20 12:00:00",  # by which it is trusted from now on
    }


def test_a_pull_that_is_overtaken_by_a_later_one_of_the_same_change_writes_nothing(
    edge: Edge, machine: Machine
) -> None:
    held = []

    def overtake() -> None:
        machine.wait(HOUR)
        edge.publish()
        edge.pull()
        held.append(edge.info)

    with reaching(once("pull.staged", overtake)):
        edge.pull()
    assert [edge.info] == held
    assert edge.info.as_of_at == "2026-11-20 13:00:00"
    with open_store(edge.path) as file:
        states = file.conn.execute("SELECT source_state FROM SyncTargets").fetchall()
    assert states == [("as of 2026-11-20 13:00:00",)]


def test_the_same_change_of_an_origin_that_was_put_back_is_applied_whatever_its_time(
    edge: Edge,
) -> None:
    edge.execute(
        "UPDATE StoreInfo SET as_of_at = '2026-11-21 00:00:00', origin_incarnation = 'another'"
    )
    edge.pull()
    assert edge.info.as_of_at == "2026-11-20 12:00:00"
    assert edge.info.origin_incarnation == edge.store.file.info().incarnation


@pytest.mark.parametrize("is_hub", [False, True])
def test_a_repair_does_not_prolong_what_it_repairs(
    edge: Edge, machine: Machine, is_hub: bool
) -> None:
    held = edge.info
    edge.execute("UPDATE StoreInfo SET replaying = 1")
    edge.execute("UPDATE APIKeys SET label = 'damaged'")
    edge.execute("UPDATE StoreInfo SET replaying = 0")
    machine.wait(DAY)
    edge.publish()
    hub = MemoryHub()
    engine.push(edge.store.file, hub, "hub:", Report(""))
    with open_store(edge.path) as file:
        assert verify.verify(file, hub if is_hub else edge.files, "", repair=True).repaired == 1
    info = edge.info
    assert (info.valid_until, info.max_offline_seconds, info.as_of_at) == (
        held.valid_until,
        held.max_offline_seconds,
        held.as_of_at,
    )


# -- what people are told ----------------------------------------------------------------------


def status_line(edge: Edge) -> str:
    lines = run("status", "--db", str(edge.path)).stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("offline")]
    return line.removeprefix("offline").strip()


def test_status_says_in_words_how_long_a_replica_may_go_on(edge: Edge, machine: Machine) -> None:
    end = "2026-12-27 12:00 UTC"
    assert status_line(edge) == f"may go on without contact until {end} (37 days)"
    machine.wait(VALID + 3 * DAY)
    assert status_line(edge) == f"signatures expired 3 days ago; denies from {end} on (in 27 days)"
    machine.wait(GRACE)
    assert status_line(edge) == f"denies since {end}: sync it"
    said = json.loads(run("status", "--db", str(edge.path), "--json").stdout)
    assert said["freshness"]["limit"] == {
        "valid_until": "2026-11-27 12:00:00",
        "usable_until": "2026-12-27 12:00:00",
        "is_in_grace": False,
        "is_over": True,
    }
    edge.execute("UPDATE StoreInfo SET valid_until = NULL")
    assert status_line(edge) == "no limit"


def test_status_says_that_the_clock_is_behind(edge: Edge, machine: Machine) -> None:
    assert "clock" not in run("status", "--db", str(edge.path)).stdout
    machine.wall -= 2 * HOUR
    assert "2 hours behind" in run("status", "--db", str(edge.path)).stdout


def test_a_check_by_hand_warns_in_the_grace(edge: Edge, machine: Machine) -> None:
    asked = ("check", "--db", str(edge.path), edge.token)
    assert run(*asked).stderr == ""
    machine.wait(VALID + 3 * DAY)
    found = run(*asked)
    assert (found.exit_code, found.stderr.count("\n")) == (0, 1)
    assert "signatures expired 3 days ago; denies from 2026-12-27 12:00 UTC on" in found.stderr
    assert json.loads(run(*asked, "--json").stderr)["offline"]["state"] == "grace"
    machine.wait(GRACE)
    found = run(*asked)
    assert (found.exit_code, found.stderr) == (1, "")
    assert "not now" in found.stdout
    assert "keystore sync" in found.stdout


def test_the_doctor_finds_a_replica_past_its_signatures_and_a_clock_that_is_behind(
    edge: Edge, machine: Machine
) -> None:
    def found() -> list[tuple[str, str]]:
        with open_store(edge.path) as file:
            return [(item.id, item.severity) for item in examine(file)]

    assert found() == []
    machine.wait(VALID + 1)
    assert found() == [("in_grace", "warning")]
    machine.wait(GRACE)
    assert found() == [("offline", "error")]
    edge.publish()
    edge.pull()
    assert found() == []
    machine.wall -= HOUR
    assert found() == [("clock_behind", "warning")]


def test_a_server_tells_each_change_of_state_once(store: Store, tmp_path: Path) -> None:
    edge = Edge(store, tmp_path / "replica.db", Machine(time.time()))
    ends = {"soon": "+12 hours", "grace": "-1 hours", "over": "-40 days", "ok": "+7 days"}

    def end(state: str) -> None:
        edge.execute(f"UPDATE StoreInfo SET valid_until = datetime('now', '{ends[state]}')")

    end("soon")
    command = ["serve", "--db", str(edge.path), "--port", "0", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "keystore", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stderr is not None
            told = [json.loads(server.stderr.readline())["offline"]["state"]]
            for state in ("grace", "over", "ok"):
                end(state)
                told.append(json.loads(server.stderr.readline())["offline"]["state"])
            assert told == ["soon", "grace", "over", "ok"]
            server.send_signal(signal.SIGTERM)
            assert server.communicate(timeout=20)[1] == ""
        finally:
            server.kill()
    assert server.returncode == 0


def test_a_server_ends_though_nobody_reads_what_it_tells(store: Store, tmp_path: Path) -> None:
    edge = Edge(store, tmp_path / "replica.db", Machine(time.time()))
    edge.execute("UPDATE StoreInfo SET valid_until = datetime('now', '-1 hours')")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    with subprocess.Popen(
        [sys.executable, "-m", "keystore", "serve", "--db", str(edge.path), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=writer,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("Serving")
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=20) == 0
        finally:
            server.kill()
            os.close(reader)
            os.close(writer)
