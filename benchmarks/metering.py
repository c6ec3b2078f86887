"""What metering costs: reports of usage, against the bare SELECT with the same index."""

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import Side, compare, main
from benchmarks.results import Row
from keystore import Store

GOAL = 1.3
_KEYS = 1_000
_FILL = """
WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < :rows - 1)
INSERT INTO UsageLog (principal_type, principal_id, account_id, service_id, amount, occurred_at)
SELECT 'api_key', 1 + (i * 7919) % :keys, 1 + (i * 7919) % :keys / 10, 1 + i % 3, 1 + i % 5,
       datetime(1750000000 + i * 30000000 / :rows, 'unixepoch')
FROM n
"""
_INDEXES = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'UsageLog'"
_ONE_KEY = """
SELECT sum(amount), count(*) FROM UsageLog WHERE principal_type = 'api_key' AND principal_id = 7
"""
_ONE_ACCOUNT = """
SELECT substr(occurred_at, 1, 10), sum(amount), count(*) FROM UsageLog
WHERE account_id = 7 AND occurred_at >= '2026-01-01 00:00:00' GROUP BY 1
"""
_BY_KEY = """
SELECT principal_id, sum(amount) AS units, count(*) FROM UsageLog
WHERE principal_type = 'api_key' GROUP BY 1 ORDER BY units DESC LIMIT 10
"""


def measure(quick: bool) -> list[Row]:
    """Measure over 200,000 rows of usage (quick) or 10,000,000."""
    rows = 200_000 if quick else 10_000_000
    with (
        TemporaryDirectory(prefix="keystore-bench-") as folder,
        Store.create(Path(folder) / "origin.db") as store,
    ):
        _fill(store, rows)
        return _reports(store, rows, quick)


def _fill(store: Store, rows: int) -> None:
    """Fill the UsageLog; its indexes are made afterwards, which takes a fraction of the time."""
    with store.file.write() as conn:
        indexes = conn.execute(_INDEXES).fetchall()
        for name, _ in indexes:
            conn.execute(f"DROP INDEX {name}")
        conn.execute(_FILL, {"rows": rows, "keys": _KEYS})
        for _, text in indexes:
            conn.execute(text)


def _reports(store: Store, rows: int, quick: bool) -> list[Row]:
    since = datetime(2026, 1, 1, tzinfo=UTC)

    def bare(statement: str) -> Side:
        return Side(lambda: store.file.conn.execute(statement).fetchall())

    def row(what: str, ours: Side, against: str, theirs: Side, goal: float | None) -> Row:
        what = f"usage report, {rows:,} rows, {what}"
        return compare(what, against, ours, theirs, goal=goal, quick=quick)

    select = "the bare SELECT"
    one_key = Side(lambda: store.usage_report(key="7"))
    by_key = Side(lambda: store.usage_report(by="key", top=10))
    days = Side(lambda: store.usage_report(account="7", per="day", since=since))
    return [
        row("top 10 keys", by_key, select, bare(_BY_KEY), GOAL),
        # A report opens a snapshot and asks three tables: over few rows (quick), that is most of
        # its time, and misses the goal.
        row("one account per day", days, select, bare(_ONE_ACCOUNT), GOAL),
        row("one key", one_key, select, bare(_ONE_KEY), GOAL),
        # Its time follows the rows that it reads, a thousandth, and not those that there are.
        row("one key", one_key, "the report of all keys", by_key, 0.05),
    ]


if __name__ == "__main__":
    main(measure)
