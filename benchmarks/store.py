"""What change tracking costs a writer: our triggers, no tracking, and the peers in their place."""

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import peers, samples
from benchmarks.harness import Side, compare, main
from benchmarks.results import Found, Missing, Row
from keystore import migrate

GOAL = 1.3
_TRANSACTIONS = {1: 20, 1000: 2}
"""How many transactions make a round, by their size."""
_LABEL = """
UPDATE APIKeys SET label = 'relabelled ' || random(), updated_at = CURRENT_TIMESTAMP
WHERE api_key_id = ?
"""
_SWITCH = """
UPDATE APIKeys SET is_active = 1 - is_active, updated_at = CURRENT_TIMESTAMP WHERE api_key_id = ?
"""
# What the triggers make of _SWITCH, for a table without them.
_SWITCH_BY_HAND = (
    """
    UPDATE APIKeys SET is_active = 1 - is_active, updated_at = CURRENT_TIMESTAMP,
        status = CASE WHEN is_active THEN 'revoked' ELSE 'assigned' END
    WHERE api_key_id = ?
    """,
    """
    INSERT INTO APIKeyStatusEvents (api_key_id, api_key, old_status, status, reason)
    SELECT api_key_id, api_key, CASE WHEN is_active THEN 'revoked' ELSE 'assigned' END, status,
           status_reason
    FROM APIKeys WHERE api_key_id = ?
    """,
)
_DELETE = "DELETE FROM APIKeys WHERE api_key_id = ?"

Batch = Sequence[Sequence[object]]
Work = Callable[[peers.Table, int], Side]
"""Makes the side that writes to a table, so many rows a transaction."""


def measure(quick: bool) -> list[Found]:
    """Measure on tables of 10,000 keys (quick) or 100,000."""
    count = 10_000 if quick else 100_000
    with TemporaryDirectory(prefix="keystore-bench-") as folder, ExitStack() as stack:

        def table(make: Callable[[Path], peers.Table]) -> peers.Table:
            made = make(Path(folder) / f"{make.__name__}.db")
            stack.enter_context(made.file)
            # A checkpoint after every thousandth page or so would fall into more rounds of one
            # side than of the other; each round ends with one of its own instead.
            made.file.conn.execute("PRAGMA wal_autocheckpoint = 0")
            samples.fill(made.file, samples.random_hashes(count))
            return made

        tracked, plain = table(_tracked), table(peers.plain)
        own = _own_cost(tracked, plain, quick)
        found: list[Found] = [*own]
        if missing := peers.missing_chronicle():
            found.append(Missing("sqlite-chronicle", missing))
        else:
            found += _chronicle(tracked, table(peers.chronicle), quick)
        if missing := peers.missing_session():
            found.append(Missing("SQLite's session extension", missing))
        else:
            session, bare = table(peers.session), table(peers.apsw_plain)
            found += _session(session, bare, own, quick)
    return found


def _own_cost(tracked: peers.Table, plain: peers.Table, quick: bool) -> list[Row]:
    without = "the same without the triggers"
    works: tuple[tuple[str, int, Work, Work, str, float | None], ...] = (
        # A transaction of one row is a wait for the disk, whatever the row costs: no goal.
        ("insert", 1, _inserts, _inserts, without, None),
        ("insert", 1000, _inserts, _inserts, without, GOAL),
        ("update", 1, _updates, _updates, without, None),
        ("update", 1000, _updates, _updates, without, GOAL),
        ("delete", 1, _deletes, _deletes, without, None),
        ("delete", 1000, _deletes, _deletes, without, GOAL),
        # Without the triggers, this one leaves the status and the timeline as they were.
        ("switch", 1000, _switches, _switches, without, None),
        ("switch", 1000, _switches, _switches_by_hand, "status and timeline by hand", None),
    )
    return [
        compare(
            _what(name, size),
            against,
            ours(tracked, size),
            theirs(plain, size),
            goal=goal,
            quick=quick,
        )
        for name, size, ours, theirs, against, goal in works
    ]


def _chronicle(tracked: peers.Table, chronicle: peers.Table, quick: bool) -> list[Row]:
    return [
        compare(
            _what(name, size),
            "sqlite-chronicle",
            side(tracked, size),
            side(chronicle, size),
            goal=None,
            quick=quick,
        )
        for name, side, size in _peer_works()
    ]


def _session(session: peers.Table, bare: peers.Table, own: list[Row], quick: bool) -> list[Row]:
    """Compare *overheads*, each over the same SQLite library without tracking.

    The session extension comes with a library of its own, and that one being a faster or slower
    build says nothing about tracking.
    """
    factors = {(row.what, row.against): row for row in own}
    rows: list[Row] = []
    for name, side, size in _peer_works():
        theirs = compare(
            f"{name}, {size:,} a transaction, session extension",
            "the same without the session",
            side(session, size),
            side(bare, size),
            goal=None,
            quick=quick,
        )
        ours = factors[_what(name, size), "the same without the triggers"]
        rows += [
            theirs,
            Row(
                what=f"{_what(name, size)}: overhead",
                against="overhead of the session extension",
                ratio=round(ours.ratio / theirs.ratio, 4),
                low=round(ours.low / theirs.high, 4),
                high=round(ours.high / theirs.low, 4),
                goal=None,
                met=None,
            ),
        ]
    return rows


def _peer_works() -> tuple[tuple[str, Work, int], ...]:
    return (
        ("insert", _inserts, 1),
        ("insert", _inserts, 1000),
        ("update", _updates, 1000),
        ("delete", _deletes, 1000),
    )


def _what(name: str, size: int) -> str:
    return f"{name}, {size:,} a transaction, tracked"


def _tracked(path: Path) -> peers.Table:
    return peers.Table(migrate.create_origin(path))


def _inserts(table: peers.Table, size: int) -> Side:
    def rows() -> Batch:
        return list(samples.key_rows(samples.random_hashes(size * _TRANSACTIONS[size])))

    return _writes(table, [samples.INSERT_KEY], rows, size)


def _updates(table: peers.Table, size: int) -> Side:
    return _writes(table, [_LABEL], lambda: _some_ids(table, size), size)


def _switches(table: peers.Table, size: int) -> Side:
    return _writes(table, [_SWITCH], lambda: _some_ids(table, size), size)


def _switches_by_hand(table: peers.Table, size: int) -> Side:
    return _writes(table, _SWITCH_BY_HAND, lambda: _some_ids(table, size), size)


def _deletes(table: peers.Table, size: int) -> Side:
    def ids() -> Batch:
        # As many come as go: the table keeps its size from round to round.
        hashes = samples.random_hashes(size * _TRANSACTIONS[size])
        with table.file.write() as conn:
            conn.executemany(samples.INSERT_KEY, samples.key_rows(hashes))
        return _some_ids(table, size)

    return _writes(table, [_DELETE], ids, size)


def _some_ids(table: peers.Table, size: int) -> Batch:
    ids = table.file.conn.execute("SELECT api_key_id FROM APIKeys").fetchall()
    return random.sample(ids, size * _TRANSACTIONS[size])


def _checkpoint(table: peers.Table) -> None:
    table.file.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _writes(
    table: peers.Table, statements: Sequence[str], rows: Callable[[], Batch], size: int
) -> Side:
    batches: list[Batch] = []

    def prepare() -> None:
        todo = rows()
        batches[:] = [todo[start : start + size] for start in range(0, len(todo), size)]
        _checkpoint(table)

    def run() -> None:
        for batch in batches:
            with table.file.write() as conn, table.recording(conn):
                for statement in statements:
                    conn.executemany(statement, batch)
        _checkpoint(table)

    return Side(run, prepare)


if __name__ == "__main__":
    main(measure)
