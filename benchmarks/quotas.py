"""What metering and a quota add to a hot check, and what the check of an OAuth client takes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import samples
from benchmarks.harness import Side, compare, main
from benchmarks.results import Row
from keystore import db, tokens
from keystore.edge import Validator
from keystore.quotas import LARGEST_LEASE

KEYS = 1_000
HOT = 20
IN_A_ROUND = 200
"""Checks of each token; a lease lasts for more, and is on disk before the first of it is spent."""
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
        # What a flush writes is the disk's, not the check's; a lease, too, but where a row says so.
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
    def side(threads: int = 1, *, service: str | None = None, cost: int = 1) -> Side:
        """Return ``IN_A_ROUND`` checks of each token, dealt out to threads."""
        sent = [*issued] * (IN_A_ROUND // threads)

        def prepare() -> None:
            # As many as are left of a thousand: of each lease all is used, and it is taken here.
            validator.flush()
            for token in [*issued] * (LARGEST_LEASE - IN_A_ROUND):
                _must_pass(validator.check(token, service=service, cost=cost).allowed)

        def run() -> None:
            _send(validator, sent, service, cost)

        def in_threads() -> None:
            for future in [pool.submit(run) for _ in range(threads)]:
                future.result()

        return Side(run if threads == 1 else in_threads, prepare)

    ours, rows = "check(token, service=…), hot, metered, with a quota", []
    for against, cost in (("check(token, cost=0), neither", 0), ("check(token), metered only", 1)):
        for threads in (1, THREADS):
            also = f", {threads} threads" if threads > 1 else ""
            rows.append(
                compare(
                    f"{ours}{also}",
                    f"{against}{also}",
                    side(threads, service=samples.SERVICE),
                    side(threads, cost=cost),
                    goal=1.3,
                    quick=quick,
                )
            )
    whole = [*issued] * LARGEST_LEASE
    rows.append(
        compare(
            f"{ours}, and its lease for each {LARGEST_LEASE:,}",
            "check(token), metered only",
            Side(lambda: _send(validator, whole, samples.SERVICE, 1), validator.flush),
            Side(lambda: _send(validator, whole, None, 1), validator.flush),
            goal=None,
            quick=quick,
        )
    )
    return rows


def _send(validator: Validator, sent: Sequence[str], service: str | None, cost: int) -> None:
    check = validator.check
    if service is not None:
        for token in sent:
            check(token, service=service)
    elif cost:
        for token in sent:
            check(token)
    else:
        for token in sent:
            check(token, cost=0)


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
