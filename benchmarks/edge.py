"""The check of a token at an edge, against the least that it could cost and against peers."""

import random
from collections.abc import Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import uuid_utils.compat
from sqlite_utils import Database

from benchmarks import samples
from benchmarks.harness import Row, Side, compare, main
from keystore import db, sql, tokens
from keystore.edge import Validator
from keystore.sync import engine
from keystore.sync.memory import MemoryHub

if TYPE_CHECKING:
    import sqlite3

HOT_TOKENS = 1000
"""Tokens that come again and again; at an edge few keys make most of the traffic."""
COLD_CHECKS = 5000


def measure(quick: bool) -> list[Row]:
    """Measure on a replica of 20,000 keys (quick) or 100,000."""
    count = 20_000 if quick else 100_000
    with TemporaryDirectory(prefix="keystore-bench-") as folder:
        path = Path(folder) / "replica.db"
        issued = [tokens.new_token(uuid_utils.compat.uuid7()) for _ in range(count)]
        _replica(path, issued)
        return [
            *_hot(path, random.sample(issued, HOT_TOKENS), quick),
            _cold(path, random.sample(issued, COLD_CHECKS), count, quick),
        ]


def _replica(path: Path, issued: Sequence[str]) -> None:
    hub, report = MemoryHub(), engine.Report("memory:")
    hashes = [tokens.hash_token(token) for token in issued]
    with samples.origin(path.with_name("origin.db"), hashes) as file:
        engine.push(file, hub, report.target, report)
    engine.replicate(hub, report.target, path, report)


def _hot(path: Path, hot: Sequence[str], quick: bool) -> list[Row]:
    keys: dict[str, object] = {tokens.hash_token(token): token for token in hot}
    many = list(hot) * 3
    # No flush falls into the time measured: what writing costs is the disk's, not the check's.
    with Validator(path, max_pending=1 << 40, max_seconds=86400.0) as validator:
        checks = _Checks(validator, many)
        floor = Side(lambda: _floor(keys, many))
        rows = [
            compare(
                "check(token, cost=0), hot",
                "one SHA-256 and one dict look-up",
                Side(checks.free, checks.warm_up),
                floor,
                goal=2.5,
                quick=quick,
            ),
            compare(
                "check(token), hot, usage counted in memory",
                "one SHA-256 and one dict look-up",
                Side(checks.counted, checks.warm_up),
                floor,
                goal=2.5,
                quick=quick,
            ),
        ]
        with closing(Database(path)) as peer:
            hashes = [tokens.hash_token(token) for token in many]
            rows.append(
                compare(
                    "check(token), hot, usage counted in memory",
                    "sqlite-utils rows_where(hash), hash given",
                    Side(checks.counted, checks.warm_up),
                    Side(lambda: _rows_where(peer, hashes)),
                    goal=1 / 15,
                    quick=quick,
                )
            )
    return rows


class _Checks:
    """Checks of the same tokens with one validator."""

    def __init__(self, validator: Validator, issued: Sequence[str]) -> None:
        self._validator, self._issued = validator, issued

    def warm_up(self) -> None:
        """Flush what was counted, and have every token known; a refusal is not worth timing."""
        self._validator.flush()
        if not all(self._validator.check(token, cost=0).allowed for token in self._issued):
            msg = "a token that was just issued is refused"
            raise RuntimeError(msg)

    def free(self) -> None:
        check = self._validator.check
        for token in self._issued:
            check(token, cost=0)

    def counted(self) -> None:
        check = self._validator.check
        for token in self._issued:
            check(token)


def _floor(keys: dict[str, object], issued: Sequence[str]) -> None:
    for token in issued:
        keys[sha256(token.encode()).hexdigest()]


def _rows_where(peer: Database, hashes: Sequence[str]) -> None:
    keys = peer["APIKeys"]
    for key_hash in hashes:
        for _ in keys.rows_where("api_key_hash = ?", [key_hash]):
            pass


def _cold(path: Path, issued: Sequence[str], count: int, quick: bool) -> Row:
    with closing(_Cold(path, issued)) as cold:
        return compare(
            f"check(token, cost=0), cold, {count:,} keys",
            "the same SELECT alone, prepared, hash given",
            Side(cold.check, cold.open_validator),
            Side(cold.select, cold.open_bare),
            goal=1.5,
            quick=quick,
        )


class _Cold:
    """Each token once, on a connection that has read nothing yet, through the same driver."""

    def __init__(self, path: Path, issued: Sequence[str]) -> None:
        self._path, self._issued = path, issued
        self._hashes = [tokens.hash_token(token) for token in issued]
        self._statement = sql.named("edge")["entry"]
        self._validator: Validator | None = None
        self._bare: sqlite3.Connection | None = None

    def close(self) -> None:
        for opened in (self._validator, self._bare):
            if opened is not None:
                opened.close()

    def open_validator(self) -> None:
        if self._validator is not None:
            self._validator.close()
        self._validator = Validator(self._path)
        self._validator.check("")  # it reads who the store is on its first check

    def open_bare(self) -> None:
        if self._bare is not None:
            self._bare.close()
        self._bare = db.connect(self._path)
        db.apply_pragmas(self._bare)

    def check(self) -> None:
        if self._validator is not None:
            for token in self._issued:
                self._validator.check(token, cost=0)

    def select(self) -> None:
        if self._bare is not None:
            for key_hash in self._hashes:
                self._bare.execute(self._statement, (key_hash,)).fetchone()


if __name__ == "__main__":
    main(measure)
