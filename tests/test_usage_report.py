"""Reports of usage: each row once, by an index, and no roll-up changes a total."""

import csv
import io
import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keystore import Store
from keystore.admin import usage as admin_usage
from keystore.admin.reports import By, Per, UsageTotal
from keystore.doctor import examine
from keystore.errors import InvalidInputError, NotFoundError
from tests.test_cli import run

ADA = "ada@example.org"
_INSERT = (
    "INSERT INTO UsageLog (principal_type, principal_id, account_id, service_id, amount,"
    " request_id, occurred_at) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_RECEIVED = (
    "INSERT INTO ReceivedUsage (store_id, usage_id, nonce, principal_type, principal_id,"
    " account_id, service_id, amount, request_id, occurred_at)"
    " VALUES ('r', ?, 1, ?, ?, ?, ?, ?, ?, ?)"
)
Use = tuple[str, int, int | None, int | None, int, str | None, str]


def fill(store: Store, *uses: Use) -> None:
    store.file.conn.executemany(_INSERT, uses)


@pytest.fixture
def used(store: Store) -> Store:
    """A store with usage of two keys of two accounts, and of a client, on two days."""
    store.add_account("eve@example.org", plan="free")
    store.add_service("tts")
    store.add_service("ocr")
    store.issue_key(ADA)
    store.issue_key("eve@example.org")
    fill(
        store,
        ("api_key", 1, 1, 1, 1, "r1", "2026-01-01 10:59:59"),
        ("api_key", 1, 1, 2, 2, None, "2026-01-01 11:00:00"),
        ("api_key", 2, 2, 1, 4, None, "2026-01-01 11:30:00"),
        ("oauth_client", 2, 2, None, 8, "r1", "2026-01-02 11:00:00"),
    )
    store.file.conn.execute(_RECEIVED, (1, "api_key", 1, 1, 1, 16, "r2", "2026-01-02 11:00:00"))
    return store


def amounts(store: Store, **wanted: Any) -> dict[str, int]:
    return {item.label: item.amount for item in store.usage_report(**wanted)}


def test_usage_is_told_apart_by_key_account_service_and_principal(used: Store) -> None:
    first, second = (key.api_key for key in used.keys())  # noqa: SIM118 - a method of the store
    assert amounts(used) == {"all": 31}
    assert amounts(used, by="key") == {f"api_key {first}": 19, f"api_key {second}": 4}
    assert amounts(used, by="account") == {ADA: 19, "eve@example.org": 12}
    assert amounts(used, by="service") == {"tts": 21, "ocr": 2, "no service": 8}
    assert amounts(used, by="principal") == {
        f"api_key {first}": 19,
        f"api_key {second}": 4,
        "oauth_client 2": 8,
    }
    assert [item.label for item in used.usage_report(by="account", top=1)] == [ADA]
    assert used.usage_report()[0].rows == 5


def test_only_what_is_asked_for_counts(used: Store) -> None:
    first, second = (key.api_key for key in used.keys())  # noqa: SIM118 - a method of the store
    assert amounts(used, key=first) == {"all": 19}
    assert amounts(used, key=second, service="tts") == {"all": 4}
    assert amounts(used, account=ADA, by="service") == {"tts": 17, "ocr": 2}
    assert amounts(used, request_id="r1") == {"all": 9}
    assert amounts(used, request_id="r1", account=ADA) == {"all": 1}
    with pytest.raises(NotFoundError, match="no service"):
        used.usage_report(service="nope")
    with pytest.raises(NotFoundError, match="such a key"):
        used.usage_report(key="nope")
    with pytest.raises(InvalidInputError):
        used.usage_report(top=0)


def test_a_window_is_of_whole_hours(used: Store) -> None:
    def at(day: int, hour: int, minute: int = 0) -> datetime:
        return datetime(2026, 1, day, hour, minute, tzinfo=UTC)

    assert amounts(used, since=at(1, 11)) == {"all": 30}
    assert amounts(used, since=at(1, 10, 59)) == {"all": 31}
    assert amounts(used, until=at(1, 11)) == {"all": 1}
    assert amounts(used, until=at(1, 11, 1)) == {"all": 7}
    assert amounts(used, since=at(1, 11), until=at(2, 11), by="account") == {
        ADA: 2,
        "eve@example.org": 4,
    }
    naive = datetime(2026, 1, 1, 11)  # noqa: DTZ001 - it is read as UTC
    assert amounts(used, since=naive) == {"all": 30}


def test_sums_past_64_bits_are_told(used: Store) -> None:
    fill(used, *[("session", 9, None, 1, 2**63 - 1, None, "2026-01-01 10:00:00")] * 3)
    assert amounts(used) == {"all": 31 + 3 * (2**63 - 1)}
    assert amounts(used, by="service")["tts"] == 21 + 3 * (2**63 - 1)


def test_totals_per_hour_and_day(used: Store) -> None:
    def found(**wanted: Any) -> list[tuple[str | None, int]]:
        return [(item.period, item.amount) for item in used.usage_report(**wanted)]

    assert found(per="hour") == [
        ("2026-01-01 10:00:00", 1),
        ("2026-01-01 11:00:00", 6),
        ("2026-01-02 11:00:00", 24),
    ]
    assert found(per="day") == [("2026-01-01", 7), ("2026-01-02", 24)]
    # (the one with the most over the whole time, with all its days)
    assert found(per="day", by="account", top=1) == [("2026-01-01", 3), ("2026-01-02", 16)]


def test_no_usage_is_a_total_of_none(store: Store) -> None:
    (found,) = store.usage_report()
    assert (found.amount, found.rows) == (0, 0)
    assert store.usage_report(by="key") == []


# -- no total changes --------------------------------------------------------------------------

_ONE = st.tuples(
    st.sampled_from(["api_key", "oauth_client", "session"]),
    st.integers(1, 3),
    st.sampled_from([None, 1, 2]),
    st.sampled_from([None, 1, 2]),
    st.integers(0, 2**40),
    st.none(),
    st.integers(0, 200).map(
        lambda half_hours: (
            (datetime(2020, 1, 1, tzinfo=UTC) + timedelta(minutes=27 * half_hours))
            .replace(tzinfo=None)
            .isoformat(" ")
        )
    ),
)
_HISTORY = st.lists(st.one_of(_ONE, st.integers(0, 120)), max_size=30)


def _all_reports(store: Store) -> list[list[UsageTotal]]:
    early, late = datetime(2020, 1, 2, 3, 30, tzinfo=UTC), datetime(2020, 1, 3, 4, 15, tzinfo=UTC)
    bys: list[By | None] = [None, "key", "account", "service", "principal"]
    pers: list[Per | None] = [None, "hour", "day"]
    windows = [(None, None), (early, None), (early, late)]
    return [
        store.usage_report(by=by, per=per, since=since, until=until)
        for by, per, (since, until) in product(bys, pers, windows)
    ]


def _at(time: str, amount: int) -> Use:
    return ("session", 1, None, None, amount, None, f"2020-01-01 {time}:00")


@settings(max_examples=25, deadline=None)
@given(_HISTORY)
# an hour that is added to twice
@example([_at("10:15", 1), _at("10:45", 2), 48, _at("10:50", 4), _at("11:00", 8), 48])
def test_no_total_changes_by_any_roll_up(history: list[Use | int]) -> None:
    """Rows, and roll-ups of what is so many hours younger than the first row may be."""
    now = datetime.now(UTC) - datetime(2020, 1, 1, tzinfo=UTC)
    with (
        TemporaryDirectory() as folder,
        Store.create(Path(folder, "rolled.db")) as rolled,
        Store.create(Path(folder, "plain.db")) as plain,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(admin_usage, "ROWS_PER_STEP", 3)
        for item in history:
            if isinstance(item, int):
                rolled.compact_usage(now - timedelta(hours=item))
            else:
                fill(rolled, item)
                fill(plain, item)
        assert _all_reports(rolled) == _all_reports(plain)
        assert rolled.status().usage_total == plain.status().usage_total
        assert [item for item in examine(rolled.file) if item.severity != "info"] == []


# -- by an index -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ({"key": "1"}, "principal"),
        ({"key": "1", "since": datetime(2026, 1, 1, tzinfo=UTC)}, "principal"),
        ({"key": "1", "per": "day"}, "principal"),
        ({"by": "key"}, "principal"),
        ({"by": "principal"}, "principal"),
        ({"account": "1", "since": datetime(2026, 1, 1, tzinfo=UTC)}, "account"),
        ({"account": "1", "by": "service"}, "account"),
        ({"by": "account"}, "account"),
        ({"service": "1", "since": datetime(2026, 1, 1, tzinfo=UTC)}, "service"),
        ({"by": "service"}, "service"),
        ({"since": datetime(2026, 1, 1, tzinfo=UTC)}, "occurred_at"),
        ({"since": datetime(2026, 1, 1, tzinfo=UTC), "by": "account"}, "occurred_at"),
        ({"request_id": "r1"}, "request"),
        ({"request_id": "r1", "key": "1"}, "request"),
        ({"request_id": "r1", "account": "1", "per": "day"}, "request"),
    ],
    ids=str,
)
def test_each_report_reads_an_index(store: Store, wanted: dict[str, Any], index: str) -> None:
    asked: list[str] = []
    store.file.conn.set_trace_callback(asked.append)
    store.usage_report(**wanted)
    store.file.conn.set_trace_callback(None)
    reports = [text for text in asked if "sum(amount" in text]
    assert len(reports) == (2 if "request_id" in wanted else 3)
    for text in reports:
        table = text.split("FROM ")[1].split()[0]
        plan = " ".join(
            row[3] for row in store.file.conn.execute(f"EXPLAIN QUERY PLAN {text}").fetchall()
        )
        name = "identity" if (table, index) == ("UsageHours", "occurred_at") else index
        assert f"INDEX idx_{table.lower()}_{name}" in plan, plan
        is_all = wanted.get("by") in {"account", "service", "principal"} and len(wanted) == 1
        assert plan.startswith(f"{'SCAN' if is_all else 'SEARCH'} {table}"), plan


def test_a_roll_up_goes_by_the_index_of_times(store: Store) -> None:
    fill(store, *[("session", 1, None, None, 1, None, "2020-01-01 10:00:00")] * 3)
    asked: list[str] = []
    store.file.conn.set_trace_callback(asked.append)
    store.compact_usage(timedelta(days=90))
    store.file.conn.set_trace_callback(None)
    # (a statement that fires triggers is told of again for each)
    steps = {text for text in asked if "LIMIT" in text and "occurred_at <" in text}
    assert len(steps) == 2
    for text in steps:
        plan = [row[3] for row in store.file.conn.execute(f"EXPLAIN QUERY PLAN {text}")]
        assert any("SEARCH UsageLog USING COVERING INDEX idx_usagelog_occ" in row for row in plan)
        assert any("USING INTEGER PRIMARY KEY" in row for row in plan)
        assert not any("ORDER BY" in row for row in plan)


def test_a_request_is_looked_up_by_its_index(store: Store) -> None:
    asked: list[str] = []
    store.file.conn.set_trace_callback(asked.append)
    store.log_usage("session", 1, request_id="r1")
    store.file.conn.set_trace_callback(None)
    (lookup,) = [text for text in asked if "request_id = 'r1'" in text]
    plan = store.file.conn.execute(f"EXPLAIN QUERY PLAN {lookup}").fetchall()
    assert "INDEX idx_usagelog_request" in plan[0][3]


# -- the command -------------------------------------------------------------------------------


@pytest.fixture
def db(used: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store with usage, which KEYSTORE_DB names."""
    monkeypatch.setenv("KEYSTORE_DB", str(used.file.path))
    return used.file.path


def test_usage_alone_shows_the_totals(db: Path) -> None:
    assert run("usage").stdout.split() == ["amount", "rows", "31", "5"]
    assert run("usage").stdout == run("usage", "report").stdout
    found = json.loads(run("usage", "--by", "account", "--json").stdout)
    assert [(item["name"], item["amount"]) for item in found] == [
        (ADA, 19),
        ("eve@example.org", 12),
    ]
    assert "ingest" in run("usage", "--help").stdout
    assert run("usage", "--db", str(db), "export").exit_code == 2  # and not into another store


def test_csv_holds_the_same(db: Path, used: Store) -> None:
    used.add_service("=cmd|' /C calc'!A0")
    used.log_usage("session", 1, 100, service="=cmd|' /C calc'!A0")
    text = run("usage", "--by", "service", "--per", "day", "--csv").stdout
    assert "\"'=cmd" in text  # (a spreadsheet would execute it)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert sum(int(row["amount"]) for row in rows) == 131
    assert rows[0]["period"] == "2026-01-01"
    assert run("usage", "--csv", "--json").exit_code == 2


@pytest.mark.parametrize("options", [["--per", "hour", "--by", "account"], ["--by", "key"]])
def test_a_terminal_gets_bars_that_leave_the_names_whole(
    db: Path, used: Store, options: list[str]
) -> None:
    used.log_usage("session", 1, 10**9, account=ADA)
    own, its = pty.openpty()
    program = [sys.executable, "-m", "keystore", "usage", *options, "--db", str(db)]
    try:
        subprocess.run(program, stdout=its, check=True, env={**os.environ, "COLUMNS": "80"})
        text = os.read(own, 100_000).decode()
    finally:
        os.close(own)
        os.close(its)
    assert "█" in text
    names = {item.label for item in used.usage_report(by="key")} if "key" in options else {ADA}
    assert all(name in text for name in names)


def test_a_window_that_ends_before_it_begins_is_refused(db: Path) -> None:
    refused = run("usage", "--since", "1d", "--until", "7d")
    assert refused.exit_code == 1
    assert "--since 7d --until 1d" in refused.stderr
    assert run("usage", "--since", "0m", "--until", "0m").exit_code == 0


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("options", [[], ["--per", "day"], ["--by", "account", "--per", "hour"]])
def test_a_plot_is_drawn(db: Path, tmp_path: Path, suffix: str, options: list[str]) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    path = tmp_path / f"usage.{suffix}"
    done = run("usage", *options, "--plot", str(path))
    assert (done.exit_code, done.stderr) == (0, f"Drew {path}.\n")
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    refused = run("usage", "--plot", str(tmp_path / "usage.gif"))
    assert refused.exit_code == 2


def test_a_plot_of_many_draws_the_smallest_as_one(db: Path, used: Store, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    fill(used, *(("session", n, None, None, n, None, "2026-01-03 01:00:00") for n in range(500)))
    used.add_service("_$1 and $2")
    used.log_usage("session", 1, 10**6, service="_$1 and $2")
    for by in ("principal", "service"):
        path = tmp_path / f"{by}.svg"
        assert run("usage", "--by", by, "--plot", str(path)).exit_code == 0
        assert path.stat().st_size < 1 << 20


def test_usage_is_logged_and_compacted_by_hand(db: Path, used: Store) -> None:
    logged = run("usage", "log", "oauth_client", "13", "--amount", "5", "--service", "tts")
    assert logged.stdout == "Logged 5 units as usage 5.\n"
    assert run("usage", "log", "oauth_client", "nobody").exit_code == 1
    assert run("usage").stdout.split()[2] == "36"
    done = json.loads(run("usage", "compact", "--older-than", "0d", "--json").stdout)
    assert done["held_by"] is None
    assert run("usage").stdout.split()[2] == "36"
