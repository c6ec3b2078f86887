"""What change tracking costs a writer: the same writes with the triggers and without them."""

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import samples
from benchmarks.harness import Row, Side, compare, main
from keystore import db, sql

GOAL = 1.3
_UPDATE = """
UPDATE APIKeys SET is_active = 1 - is_active, updated_at = CURRENT_TIMESTAMP WHERE api_key_id = ?
"""
_DELETE = "DELETE FROM APIKeys WHERE api_key_id = ?"

Batch = Sequence[Sequence[object]]


def measure(quick: bool) -> list[Row]:
    """Measure on tables of 20,000 keys (quick) or 100,000."""
    count = 20_000 if quick else 100_000
    with TemporaryDirectory(prefix="keystore-bench-") as folder, ExitStack() as stack:
        tracked, plain = (
            stack.enter_context(_table(Path(folder) / f"{name}.db", scripts, count))
            for name, scripts in (("tracked", ("schema", "triggers")), ("plain", ("schema",)))
        )
        return [
            compare(
                f"{name}, {size:,} a transaction, {count:,} keys, tracked",
                "the same without the triggers",
                side(tracked, size, transactions),
                side(plain, size, transactions),
                # A transaction of one row is a wait for the disk, whatever the row costs.
                goal=GOAL if size > 1 else None,
                quick=quick,
            )
            for name, side in (("insert", _inserts), ("update", _updates), ("delete", _deletes))
            for size, transactions in ((1, 50), (1000, 3))
        ]


def _table(path: Path, scripts: Sequence[str], count: int) -> db.StoreFile:
    """Make a file as ``keystore init`` does, from some of its scripts."""
    file = db.StoreFile(path, db.connect(path, create=True))
    db.apply_pragmas(file.conn)
    file.conn.execute("PRAGMA journal_mode = WAL")
    for script in scripts:
        file.conn.executescript(sql.read(script))
    # A checkpoint after every thousandth page or so would fall into more rounds of one side than
    # of the other; each round ends with one of its own instead.
    file.conn.execute("PRAGMA wal_autocheckpoint = 0")
    samples.fill(file, samples.random_hashes(count))
    return file


def _inserts(file: db.StoreFile, size: int, transactions: int) -> Side:
    def rows() -> Batch:
        return list(samples.key_rows(samples.random_hashes(size * transactions)))

    return _writes(file, samples.INSERT_KEY, rows, size)


def _updates(file: db.StoreFile, size: int, transactions: int) -> Side:
    return _writes(file, _UPDATE, lambda: _some_ids(file, size * transactions), size)


def _deletes(file: db.StoreFile, size: int, transactions: int) -> Side:
    count = size * transactions

    def ids() -> Batch:
        # As many come as go: the table keeps its size from round to round.
        with file.write() as conn:
            conn.executemany(samples.INSERT_KEY, samples.key_rows(samples.random_hashes(count)))
        return _some_ids(file, count)

    return _writes(file, _DELETE, ids, size)


def _some_ids(file: db.StoreFile, count: int) -> Batch:
    ids = file.conn.execute("SELECT api_key_id FROM APIKeys").fetchall()
    return random.sample(ids, count)


def _checkpoint(file: db.StoreFile) -> None:
    file.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _writes(file: db.StoreFile, statement: str, rows: Callable[[], Batch], size: int) -> Side:
    batches: list[Batch] = []

    def prepare() -> None:
        todo = rows()
        batches[:] = [todo[start : start + size] for start in range(0, len(todo), size)]
        _checkpoint(file)

    def run() -> None:
        for batch in batches:
            with file.write() as conn:
                conn.executemany(statement, batch)
        _checkpoint(file)

    return Side(run, prepare)


if __name__ == "__main__":
    main(measure)
