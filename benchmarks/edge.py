"""The check of a token at an edge, against the least that it could cost and against peers."""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks import edge_peers, samples
from benchmarks.harness import Side, compare, main
from benchmarks.results import Found, Missing, Row
from keystore import db, sql, tokens
from keystore.edge import Validator

if TYPE_CHECKING:
    import sqlite3

HOT_TOKENS = 1000
"""Tokens that come again and again: at an edge few keys make most of the traffic.

Once in a round, which is so short that it is seldom interrupted by what else the machine does."""
COLD_CHECKS = 5000
THREADS = 4
FEW = 10_000
"""Keys of the store that a large one is compared with."""
FLOOR = "one SHA-256 and one dict look-up"
ADDRESS = "192.0.2.7"


def measure(quick: bool) -> list[Found]:
    """Measure on a replica of 20,000 keys (quick) or 1,000,000, and on one of 10,000."""
    with TemporaryDirectory(prefix="keystore-bench-") as folder, ExitStack() as stack:
        large, small = (
            _Edge(Path(folder) / f"{count}.db", count, stack)
            for count in (20_000 if quick else 1_000_000, FEW)
        )
        return [
            *_hot(large, small, quick),
            *_special(large, quick),
            *_threads(large, quick),
            *_cold(large, small, quick),
            *_peers(large, stack, quick),
        ]


class _Edge:
    """A replica with its tokens, and one validator for what is hot."""

    def __init__(self, path: Path, count: int, stack: ExitStack) -> None:
        self.path, self.count = path, count
        self.issued = samples.issue(count)
        samples.replica(path, self.issued, samples.limit)
        self.rated, self.serviced, self.bound = samples.limited(self.issued)
        plain = set(self.issued).difference(self.rated, self.serviced, self.bound)
        self.hot = random.sample(sorted(plain), HOT_TOKENS)
        # No flush falls into the time measured: what writing costs is the disk's, not the check's.
        self.validator = stack.enter_context(
            Validator(path, max_pending=1 << 40, max_seconds=86400.0)
        )

    def checks(
        self,
        issued: Sequence[str] = (),
        *,
        cost: int = 1,
        service: str | None = None,
        ip: str | None = None,
    ) -> Side:
        """Return one check of each token."""
        sent = [*(issued or self.hot)]
        validator = self.validator

        def warm_up() -> None:
            """Flush what was counted, have every token known; no refusal is worth timing."""
            validator.flush()
            for token in sent:
                if not validator.check(token, cost=0, service=service, ip=ip).allowed:
                    msg = "a token that was just issued is refused"
                    raise RuntimeError(msg)

        def free() -> None:
            check = validator.check
            for token in sent:
                check(token, cost=0)

        def counted() -> None:
            check = validator.check
            for token in sent:
                check(token)

        def bound() -> None:
            check = validator.check
            for token in sent:
                check(token, service=service, ip=ip)

        if service is not None or ip is not None:
            return Side(bound, warm_up)
        return Side(counted if cost else free, warm_up)


def _floor(issued: Sequence[str]) -> Side:
    keys: dict[bytes, object] = {sha256(token.encode()).digest(): token for token in issued}

    def look_up() -> None:
        for token in issued:
            keys[sha256(token.encode()).digest()]

    return Side(look_up)


def _hot(large: _Edge, small: _Edge, quick: bool) -> list[Row]:
    floor = _floor(large.hot)
    counted = f"check(token), hot, counted, {large.count:,} keys"
    few = f"the same, {small.count:,} keys"
    return [
        compare(
            f"check(token, cost=0), hot, {large.count:,} keys",
            FLOOR,
            large.checks(cost=0),
            floor,
            goal=2.5,
            quick=quick,
        ),
        compare(counted, FLOOR, large.checks(), floor, goal=2.5, quick=quick),
        compare(counted, few, large.checks(), small.checks(), goal=1.1, quick=quick),
    ]


def _special(large: _Edge, quick: bool) -> list[Row]:
    return [
        compare(what, FLOOR, checks, _floor(issued), goal=None, quick=quick)
        for what, issued, checks in (
            ("check(token) of a key with a rate", large.rated, large.checks(large.rated)),
            (
                "check(token, service=…)",
                large.serviced,
                large.checks(large.serviced, service=samples.SERVICE),
            ),
            (
                "check(token, ip=…) of a key bound to networks",
                large.bound,
                large.checks(large.bound, ip=ADDRESS),
            ),
        )
    ]


def _threads(large: _Edge, quick: bool) -> list[Row]:
    """The same in several threads, each as often as the one before."""
    with ThreadPoolExecutor(THREADS) as pool:

        def all_at_once(side: Side) -> Side:
            return Side(lambda: _in_threads(pool, [side.run] * THREADS), side.prepare)

        return [
            compare(
                f"check(token), hot, counted, {THREADS} threads",
                f"{FLOOR}, {THREADS} threads",
                all_at_once(large.checks()),
                all_at_once(_floor(large.hot)),
                goal=2.5,
                quick=quick,
            )
        ]


def _in_threads(pool: ThreadPoolExecutor, runs: Sequence[Callable[[], object]]) -> None:
    for future in [pool.submit(run) for run in runs]:
        future.result()


def _peers(large: _Edge, stack: ExitStack, quick: bool) -> list[Found]:
    found: list[Found] = []
    for name, peer in edge_peers.peers(stack, large.path, large.issued, large.hot):
        if isinstance(peer, str):
            found.append(Missing(name, peer))
            continue
        found.append(
            compare(
                "check(token), hot, counted",
                name,
                large.checks(),
                Side(peer),
                goal=None if "a dict" in name else 1 / 15,
                quick=quick,
            )
        )
    return found


def _cold(large: _Edge, small: _Edge, quick: bool) -> list[Row]:
    with (
        ThreadPoolExecutor(THREADS) as pool,
        _Cold(large, 1) as one,
        _Cold(large, THREADS) as several,
        _Cold(small, 1) as few,
    ):
        what = f"check(token, cost=0), cold, {large.count:,} keys"
        select = "the same SELECT alone, prepared, hash given"
        return [
            compare(what, select, one.checks(), one.selects(), goal=1.5, quick=quick),
            compare(
                f"{what}, {THREADS} threads",
                f"{select}, a connection each",
                several.checks(pool),
                several.selects(pool),
                goal=1.5,
                quick=quick,
            ),
            compare(
                what, f"the same, {small.count:,} keys", one.checks(), few.checks(), goal=1.5,
                quick=quick,
            ),
        ]  # fmt: skip


class _Cold(db.Closing):
    """Each token once, on a connection that has read nothing yet, through the same driver."""

    def __init__(self, edge: _Edge, threads: int) -> None:
        self._path, self._threads = edge.path, threads
        self._issued = random.sample(edge.issued, COLD_CHECKS)
        # (those that are bound to networks are refused, which is no work less)
        self._hashes = [tokens.hash_token(token) for token in self._issued]
        self._statement = sql.named("edge")["entry"]
        self._validator: Validator | None = None
        self._bare: list[sqlite3.Connection] = []

    def close(self) -> None:
        if self._validator is not None:
            self._validator.close()
        for conn in self._bare:
            conn.close()

    def checks(self, pool: ThreadPoolExecutor | None = None) -> Side:
        """Return one check of each token, dealt out to the threads."""

        def run(part: slice) -> None:
            assert self._validator is not None  # noqa: S101 - prepare() has opened it
            for token in self._issued[part]:
                self._validator.check(token, cost=0)

        return self._side(run, self._open_validator, pool)

    def selects(self, pool: ThreadPoolExecutor | None = None) -> Side:
        """Return one SELECT for each token, dealt out to the threads."""

        def run(part: slice) -> None:
            conn, statement = self._bare[part.start], self._statement
            for key_hash in self._hashes[part]:
                conn.execute(statement, (key_hash,)).fetchone()

        return self._side(run, self._open_bare, pool)

    def _side(
        self,
        run: Callable[[slice], None],
        prepare: Callable[[], None],
        pool: ThreadPoolExecutor | None,
    ) -> Side:
        if pool is None:
            return Side(lambda: run(slice(0, None, 1)), prepare)
        parts = [slice(number, None, self._threads) for number in range(self._threads)]
        return Side(lambda: [*pool.map(run, parts)], prepare)

    def _open_validator(self) -> None:
        if self._validator is not None:
            self._validator.close()
        self._validator = Validator(self._path)
        self._validator.check("")  # it reads who the store is on its first check

    def _open_bare(self) -> None:
        for conn in self._bare:
            conn.close()
        self._bare = [db.connect(self._path) for _ in range(self._threads)]
        for conn in self._bare:
            db.apply_pragmas(conn)


if __name__ == "__main__":
    main(measure)
