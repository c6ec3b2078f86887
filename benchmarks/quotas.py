"""What metering and a quota add to a hot check, and what the check of an OAuth client takes."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import samples
from benchmarks.harness import Row, Side, compare, main
from keystore import db, tokens
from keystore.edge import Validator
from keystore.quotas import LARGEST_LEASE

KEYS = 1_000
HOT = 10
"""Tokens, each checked as often as a lease has units: every round pays for as many leases."""
CLIENTS = 1_000
THREADS = 4
_INSERT_CLIENT = """
INSERT INTO OAuthClients (client_id, account_id, client_secret_hash) VALUES (?, 3, ?)
"""
Client = tuple[str, str]


def measure(quick: bool) -> list[Row]:
    """Measure on a replica."""
    with TemporaryDirectory(prefix="keystore-bench-") as folder, ExitStack() as stack:
        path, issued = Path(folder) / "edge.db", samples.issue(KEYS)
        clients = [(f"client-{n}", tokens.new_client_secret()) for n in range(CLIENTS)]

        def also(file: db.StoreFile) -> None:
            with file.write() as conn:
                rows = [(client_id, tokens.hash_token(secret)) for client_id, secret in clients]
                conn.executemany(_INSERT_CLIENT, rows)
            samples.limit(file)

        samples.replica(path, issued, also)
        # What a flush writes is the disk's; what a lease writes falls into the time measured.
        validator = stack.enter_context(Validator(path, max_pending=1 << 40, max_seconds=86400.0))
        pool = stack.enter_context(ThreadPoolExecutor(THREADS))
        _, serviced, _ = samples.limited(issued)
        return [
            *_quotas(validator, serviced[:HOT], pool, quick),
            _client(validator, clients, quick),
        ]


def _quotas(
    validator: Validator, issued: Sequence[str], pool: ThreadPoolExecutor, quick: bool
) -> list[Row]:
    with_quota = _checks(validator, issued, service=samples.SERVICE)
    metered, free = _checks(validator, issued), _checks(validator, issued, cost=0)

    def all_at_once(side: Side) -> Side:
        def run() -> None:
            for future in [pool.submit(side.run) for _ in range(THREADS)]:
                future.result()

        return Side(run, side.prepare)

    ours = "check(token, service=…), hot, metered, with a quota"
    rows = []
    for against, side in (
        ("check(token, cost=0), neither", free),
        ("check(token), metered only", metered),
    ):
        rows += [
            compare(ours, against, with_quota, side, goal=1.3, quick=quick),
            compare(
                f"{ours}, {THREADS} threads",
                f"{against}, {THREADS} threads",
                all_at_once(with_quota),
                all_at_once(side),
                goal=1.3,
                quick=quick,
            ),
        ]
    return rows


def _checks(
    validator: Validator, issued: Sequence[str], *, service: str | None = None, cost: int = 1
) -> Side:
    sent = [*chain.from_iterable(repeat([*issued], LARGEST_LEASE))]

    def prepare() -> None:
        validator.flush()
        for token in (*issued, *issued):
            _must_pass(validator.check(token, service=service).allowed)
            _must_pass(validator.check(token, cost=0).allowed)

    def free() -> None:
        check = validator.check
        for token in sent:
            check(token, cost=0)

    def metered() -> None:
        check = validator.check
        for token in sent:
            check(token)

    def with_quota() -> None:
        check = validator.check
        for token in sent:
            check(token, service=service)

    run: Callable[[], None] = free if not cost else metered if service is None else with_quota
    return Side(run, prepare)


def _client(validator: Validator, clients: Sequence[Client], quick: bool) -> Row:
    def prepare() -> None:
        validator.flush()
        for client_id, secret in (*clients, *clients):
            _must_pass(validator.check_client(client_id, secret, cost=0).allowed)

    def ours() -> None:
        check = validator.check_client
        for client_id, secret in clients:
            check(client_id, secret)

    known: dict[bytes, object] = {
        sha256(f"{client_id}:{secret}".encode()).digest(): client_id
        for client_id, secret in clients
    }

    def floor() -> None:
        for client_id, secret in clients:
            known[sha256(f"{client_id}:{secret}".encode()).digest()]

    return compare(
        "check_client(id, secret), hot, counted",
        "one SHA-256 of both and one dict look-up",
        Side(ours, prepare),
        Side(floor),
        goal=None,
        quick=quick,
    )


def _must_pass(is_allowed: bool) -> None:
    """No refusal is worth timing."""
    if not is_allowed:
        msg = "somebody who may pass is refused"
        raise RuntimeError(msg)


if __name__ == "__main__":
    main(measure)
