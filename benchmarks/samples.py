"""Stores to measure on, filled straight through SQL: issuing keys one by one would take minutes."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uuid_utils.compat

from keystore import db, migrate, tokens
from keystore.sync import engine
from keystore.sync.memory import MemoryHub

KEYS_PER_ACCOUNT = 100
INSERT_KEY = "INSERT INTO APIKeys (api_key, account_id, api_key_hash, label) VALUES (?, ?, ?, ?)"

SERVICE = "search"
_LIMITS = (
    "INSERT INTO Plans (name, rate_limit, rate_window_seconds) VALUES ('rated', 1000000000, 1)",
    "UPDATE Accounts SET plan_id = 2 WHERE account_id = 1",
    f"INSERT INTO Services (name) VALUES ('{SERVICE}')",
    """INSERT INTO APIKeyServiceQuotas (api_key_id, service_id, initial_quota, remaining_quota)
       SELECT api_key_id, 1, 1000000000000, 1000000000000 FROM APIKeys WHERE account_id = 2""",
    "UPDATE APIKeys SET allowed_networks = '192.0.2.0/24 2001:db8::/32' WHERE account_id = 3",
)

KeyRow = tuple[str, int, str, str]
"""The parameters of ``INSERT_KEY``."""


def random_hashes(count: int) -> list[str]:
    """Make up what SHA-256 would give, for stores whose tokens nobody sends."""
    return [secrets.token_hex(32) for _ in range(count)]


def key_rows(hashes: Sequence[str]) -> Iterator[KeyRow]:
    """Yield a key for each hash, dealt out to accounts 1, 2, … in turn."""
    accounts = _accounts_for(len(hashes))
    for number, key_hash in enumerate(hashes):
        uuid = uuid_utils.compat.uuid7()
        yield str(uuid), number % accounts + 1, key_hash, f"key {number}"


def fill(file: db.StoreFile, hashes: Sequence[str]) -> None:
    """Put one plan with a staleness bound, accounts and one key for each hash into a new store."""
    accounts = ((f"account{n}@example.org",) for n in range(_accounts_for(len(hashes))))
    with file.write() as conn:
        conn.execute("INSERT INTO Plans (name, max_staleness_seconds) VALUES ('bench', 86400)")
        conn.executemany("INSERT INTO Accounts (email, plan_id) VALUES (?, 1)", accounts)
        conn.executemany(INSERT_KEY, key_rows(hashes))


def origin(path: Path, hashes: Sequence[str]) -> db.StoreFile:
    """Make an origin store with one key for each hash."""
    file = migrate.create_origin(path)
    fill(file, hashes)
    return file


def limit(file: db.StoreFile) -> None:
    """Put account 1 on a plan with a rate, give 2 a service, and bind 3 to networks."""
    with file.write() as conn:
        for statement in _LIMITS:
            conn.execute(statement)


def limited(issued: Sequence[str]) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """Return the tokens of the accounts that have a rate, a service, networks."""
    first, second, third = (issued[n :: _accounts_for(len(issued))] for n in range(3))
    return first, second, third


def issue(count: int) -> list[str]:
    """Make tokens."""
    return [tokens.new_token(uuid_utils.compat.uuid7()) for _ in range(count)]


def replica(
    path: Path, issued: Sequence[str], also: Callable[[db.StoreFile], object] = lambda _: None
) -> None:
    """Make a replica with a key for each token, and what ``also`` adds to its origin."""
    hub, report = MemoryHub(), engine.Report("memory:")
    origin_path = path.with_name(f"{path.stem}-origin.db")
    with origin(origin_path, [tokens.hash_token(token) for token in issued]) as file:
        also(file)
        engine.push(file, hub, report.target, report)
    db.remove_files(origin_path)
    engine.replicate(hub, report.target, path, report)


def _accounts_for(keys: int) -> int:
    return max(1, keys // KEYS_PER_ACCOUNT)
