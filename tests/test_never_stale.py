"""Never a stale allow: whatever another process commits, the very next check knows it.

A second process writes with whichever means an operator has: keystore, plain SQL, the ``sqlite3``
shell, SQLite's own backup, another file in the store's place. After each commit this process checks
every token at once, for each service and from several threads, most of them remembered from the
round before, and compares with what the rows say.

``KEYSTORE_ROUNDS=100000`` makes it as many.
"""

import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from keystore import Store, Validator, edge, tokens
from keystore.edge import slow

ROUNDS = int(os.environ.get("KEYSTORE_ROUNDS", "3000"))
KEYS = 12
SERVICES = ("chat", "images")
RATE = 1_000_000
"""More than any round takes."""
HAS_SHELL = shutil.which("sqlite3") is not None

USE = "INSERT INTO UsageLog (principal_type, principal_id, amount) VALUES ('session', 1, 1)"
COMPACT = [
    "UPDATE StoreInfo SET replaying = 1",
    """DELETE FROM ChangeLog WHERE change_id NOT IN
       (SELECT max(change_id) FROM ChangeLog GROUP BY table_name, record_id)""",
    """UPDATE StoreInfo SET replaying = 0,
       compacted_to = (SELECT max(change_id) FROM ChangeLog)""",
]
Said = dict[str, tuple[Any, ...]]
"""By token: key, label, account, plan, rate, services. Of tokens that may pass."""


class Writer:
    """The other process."""

    def __init__(self, path: Path, issued: dict[str, str]) -> None:
        self._by_hash = {tokens.hash_token(token): token for token in issued.values()}
        command = [sys.executable, "-m", "tests.stale_writer", str(path)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def do(self, *orders: str) -> Said:
        """Have orders done; return what may pass then."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(orders) + "\n")
        self._process.stdin.flush()
        rows = json.loads(self._process.stdout.readline())
        return {
            self._by_hash[row[0]]: (*row[1:8], frozenset((row[8] or "").split(",")) - {""})
            for row in rows
            if row[0] in self._by_hash
        }

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def writer(store: Store, issued: dict[str, str]) -> Iterator[Writer]:
    made = Writer(store.file.path, issued)
    yield made
    made.close()


@pytest.fixture
def issued(store: Store) -> dict[str, str]:
    """Tokens by key."""
    store.add_plan("second", rate_limit=RATE, rate_window_seconds=60)
    for name in ("bob", "eve"):
        store.add_account(f"{name}@example.org", plan="second")
    for name in SERVICES:
        store.add_service(name)
    store.add_status("paused")
    accounts = [f"{name}@example.org" for name in ("ada", "bob", "eve")]
    keys = [store.issue_key(accounts[number % 3]) for number in range(KEYS)]
    for item in keys[::2]:
        store.set_quota(item.key.api_key, "chat", 10**9)
    return {item.key.api_key: item.token for item in keys}


class Moves:
    """What the other process may do, at random."""

    def __init__(self, dice: random.Random, issued: dict[str, str], folder: Path) -> None:
        self.dice, self.issued = dice, issued
        self.first, self.copy = folder / "first.db", folder / "copy.db"
        self.replaced = 0

    def next(self) -> list[str]:
        """Return what to do now."""
        if self.dice.random() < 0.004:
            self.replaced += 1
            where = f"WHERE api_key_id = {self.dice.randint(1, KEYS)}"
            revoke = f"UPDATE APIKeys SET status = 'revoked' {where}"
            return [self.dice.choice([f"RESTORE {self.copy}", f"RENAME {revoke}"])]
        if HAS_SHELL and self.dice.random() < 0.01:
            return [f"SHELL {'; '.join(self._change())}"]
        return self._change() if self.dice.random() < 0.8 else self._care()

    def _change(self) -> list[str]:
        dice = self.dice
        key = dice.choice(list(self.issued))
        where, on = f"WHERE api_key = '{key}'", dice.randint(0, 1)
        account, service = dice.randint(1, 3), dice.randint(1, 2)
        its_id = f"(SELECT api_key_id FROM APIKeys {where})"
        its_hash = tokens.hash_token(self.issued[key] + dice.choice(["", "", "", "x"]))
        quota = f"WHERE api_key_id = {its_id} AND service_id = {service}"
        return dice.choice(
            [
                [f"UPDATE APIKeys SET status = 'revoked' {where}"],
                [f"UPDATE OR IGNORE APIKeys SET status = 'assigned' {self._unrevoked(key)}"],
                [f"UPDATE OR IGNORE APIKeys SET status = 'paused' {self._unrevoked(key)}"],
                [f"UPDATE APIKeys SET is_active = {on} {self._unrevoked(key)}"],
                [f"UPDATE APIKeys SET account_id = {account} {where}"],
                [f"UPDATE APIKeys SET expires_at = '2020-01-01 00:00:00' {where}"],
                [f"UPDATE APIKeys SET expires_at = NULL {where}"],
                [f"UPDATE APIKeys SET api_key_hash = '{its_hash}' {where}"],
                [f"INSERT OR REPLACE INTO APIKeys SELECT * FROM APIKeys {self._unrevoked(key)}"],
                [f"UPDATE APIKeys SET label = 'label {dice.random()}' {where}"],
                [
                    f"DELETE FROM APIKeys {self._unrevoked(key)}",
                    f"""INSERT INTO APIKeys (api_key, account_id, api_key_hash)
                        SELECT '{key}', {account}, '{its_hash}'
                        WHERE NOT EXISTS (SELECT 1 FROM APIKeys {where})""",
                ],
                [
                    "SAVEPOINT b",
                    f"""INSERT OR IGNORE INTO Revocations (api_key, revoked_at)
                        SELECT '{key}', CURRENT_TIMESTAMP
                        WHERE {on} OR EXISTS (SELECT 1 FROM APIKeys {where}
                                              AND status = 'assigned')""",
                    f"UPDATE APIKeys SET status = 'revoked' {where} AND {on}",
                    "RELEASE b",
                ],
                [
                    f"""INSERT OR REPLACE INTO APIKeyServiceQuotas
                            (api_key_id, service_id, initial_quota, remaining_quota)
                        SELECT api_key_id, {service}, 1000000000, 1000000000 FROM APIKeys {where}"""
                ],
                [f"DELETE FROM APIKeyServiceQuotas {quota}"],
                [f"UPDATE APIKeyServiceQuotas SET remaining_quota = 10000000 {quota}"],
                [f"UPDATE OR REPLACE APIKeyServiceQuotas SET service_id = {3 - service} {quota}"],
                [
                    f"""UPDATE OR REPLACE APIKeyServiceQuotas SET api_key_id = {its_id}
                        WHERE quota_id = (SELECT max(quota_id) FROM APIKeyServiceQuotas)"""
                ],
                [f"UPDATE Services SET is_active = {on} WHERE service_id = {service}"],
                [
                    "UPDATE Services SET name = 's' || rowid",
                    f"UPDATE Services SET name = '{SERVICES[on]}' WHERE service_id = 1",
                    f"UPDATE Services SET name = '{SERVICES[1 - on]}' WHERE service_id = 2",
                ],
                [f"UPDATE Plans SET rate_limit = {RATE + dice.randint(0, 9)} WHERE plan_id = 2"],
                [f"UPDATE Plans SET rate_window_seconds = {30 + on} WHERE plan_id = 2"],
                [f"UPDATE Plans SET rate_burst = {RATE + dice.randint(0, 9)} WHERE plan_id = 2"],
                [f"UPDATE Plans SET rate_burst = NULL, name = 'plan {on}' WHERE plan_id = 2"],
                [
                    f"""UPDATE Plans SET rate_limit = {RATE if on else "NULL"}, rate_burst = NULL,
                        rate_window_seconds = {60 if on else "NULL"} WHERE plan_id = 1"""
                ],
                [f"UPDATE Accounts SET is_active = {on} WHERE account_id = {account}"],
                [f"UPDATE Accounts SET plan_id = {1 + on} WHERE account_id = {account}"],
                [f"UPDATE Accounts SET email = 'a{on}' || account_id WHERE account_id = {account}"],
                [f"UPDATE APIKeyStatuses SET allows_access = {on} WHERE name = 'paused'"],
                [f"UPDATE APIKeyStatuses SET is_active = {on} WHERE name = 'paused'"],
                [
                    "UPDATE APIKeyStatuses SET name = 'later' WHERE name = 'paused'",
                    "UPDATE APIKeyStatuses SET name = 'paused' WHERE name = 'later'",
                ],
            ]
        )

    def _care(self) -> list[str]:
        change = self._change()
        return self.dice.choice(
            [
                [USE],
                ["SAVEPOINT a", *change, "ROLLBACK TO a", "RELEASE a"],
                ["SAVEPOINT a", *change, *self._change(), "RELEASE a"],
                ["SAVEPOINT a", *change, "ROLLBACK TO a", *self._change(), "RELEASE a"],
                ["PRAGMA wal_checkpoint(TRUNCATE)"],
                ["PRAGMA wal_checkpoint(RESTART)", *change],
                ["VACUUM", *change],
                [f"SAVE {self.copy}"],
                [f"LOAD {self.copy}"],
                [f"LOAD {self.first}"],
                COMPACT,
                ["ANALYZE"],
            ]
        )

    @staticmethod
    def _unrevoked(key: str) -> str:
        return f"WHERE api_key = '{key}' AND api_key NOT IN (SELECT api_key FROM Revocations)"


def said(validator: Validator, issued: dict[str, str], *, cost: int = 0, turn: int = 0) -> Said:
    """Check every token, with no service and with each; ``turn``: from which on."""
    found: Said = {}
    all_tokens = list(issued.values())
    for token in all_tokens[turn:] + all_tokens[:turn]:
        decision = validator.check(token, cost=cost)
        has = frozenset(
            name for name in SERVICES if validator.check(token, service=name, cost=cost).allowed
        )
        if decision.allowed:
            found[token] = (
                decision.api_key,
                decision.label,
                decision.account,
                decision.plan,
                *(decision.rate.rate if decision.rate else (None, None, None)),
                has,
            )
        else:
            assert not has
    return found


def passing(validator: Validator, issued: dict[str, str]) -> set[str]:
    by_token = said(validator, issued)
    return {key for key, token in issued.items() if token in by_token}


@pytest.mark.parametrize("is_mapped", [True, False], ids=["WAL-index", "data_version"])
def test_the_very_next_check_knows_what_another_process_has_committed(
    store: Store,
    issued: dict[str, str],
    writer: Writer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_mapped: bool,
) -> None:
    if not is_mapped:
        monkeypatch.setattr(edge.commits, "_map", lambda _: None)
    path = store.file.path
    store.close()  # its connection would not follow the path
    seed = secrets.randbits(32)
    dice = random.Random(seed)  # noqa: S311 - no secret
    moves = Moves(dice, issued, tmp_path)
    writer.do(f"SAVE {moves.first}", f"SAVE {moves.copy}")
    allowed = 0
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(2))
        one, shared, seldom = (stack.enter_context(Validator(path)) for _ in range(3))
        for number in range(ROUNDS):
            orders = moves.next()
            expected = writer.do(*orders)
            expected = {
                token: (*facts[:-1], facts[-1] & set(SERVICES)) for token, facts in expected.items()
            }
            if orders[0].startswith("RENAME"):
                passes = time.monotonic() + slow.LOOK_SECONDS
                while time.monotonic() < passes:
                    pass
            about = (seed, number, orders)
            turn = dice.randrange(KEYS)
            assert said(one, issued, cost=number % 2, turn=turn) == expected, about
            if number % 3 == 0:
                both = [threads.submit(said, shared, issued, turn=turn + n) for n in (0, 3)]
                assert [future.result() for future in both] == [expected, expected], about
            if number % 17 == 0:
                assert said(seldom, issued) == expected, about
            allowed += len(expected)
    # neither all nor nothing, or the rounds have proved nothing
    assert ROUNDS * KEYS * 0.1 < allowed < ROUNDS * KEYS * 0.9
    print(f"{ROUNDS} rounds, {allowed} allowed, {moves.replaced} files replaced")


@pytest.mark.skipif(not HAS_SHELL, reason="the sqlite3 shell is not installed")
def test_the_very_next_check_knows_what_the_sqlite3_shell_has_committed(
    store: Store, issued: dict[str, str], tmp_path: Path
) -> None:
    path, copy = store.file.path, tmp_path / "copy.db"

    def shell(*lines: str) -> None:
        subprocess.run(["sqlite3", str(path), *lines], check=True, capture_output=True)

    shell(f".backup {copy}")
    with Validator(path) as validator:
        assert passing(validator, issued) == set(issued)
        for key, token in issued.items():
            shell(f"UPDATE APIKeys SET status = 'revoked' WHERE api_key = '{key}'")
            assert not validator.check(token).allowed
        shell("UPDATE APIKeys SET status = 'assigned'")
        assert passing(validator, issued) == set(issued)
        shell("PRAGMA foreign_keys = ON; DELETE FROM Accounts WHERE account_id = 1")
        assert len(passing(validator, issued)) == KEYS * 2 // 3
        shell("VACUUM", f".restore {copy}")
        assert passing(validator, issued) == set(issued)


def test_usage_of_others_makes_nobody_forget(
    store: Store, issued: dict[str, str], writer: Writer
) -> None:
    with Validator(store.file.path) as validator:
        passing(validator, issued)
        look_ups: list[Any] = []
        validator._file.conn.set_trace_callback(look_ups.append)
        for _ in range(3):
            writer.do(USE)
            assert passing(validator, issued) == set(issued)
        writer.do("UPDATE APIKeys SET label = 'x' WHERE api_key_id = 1")
        assert passing(validator, issued) == set(issued)
        assert len([text for text in look_ups if "FROM APIKeys AS k" in text]) == 1


@pytest.mark.parametrize("is_mapped", [True, False], ids=["WAL-index", "data_version"])
def test_a_wal_that_begins_anew_makes_nobody_forget(
    store: Store,
    issued: dict[str, str],
    writer: Writer,
    monkeypatch: pytest.MonkeyPatch,
    is_mapped: bool,
) -> None:
    """It does so with every few flushes of thousands of keys, of any process."""
    if not is_mapped:
        monkeypatch.setattr(edge.commits, "_map", lambda _: None)
    with Validator(store.file.path, max_seconds=3600) as validator:
        for _ in range(2):
            passing(validator, issued)
        look_ups: list[Any] = []
        validator._file.conn.set_trace_callback(look_ups.append)
        for _ in range(3):
            writer.do("PRAGMA wal_checkpoint(RESTART)", USE)
            assert passing(validator, issued) == set(issued)
        assert [text for text in look_ups if "FROM APIKeys AS k" in text] == []


def test_a_backup_with_a_changelog_that_ends_alike_is_told_from_a_commit(
    store: Store, issued: dict[str, str], writer: Writer, tmp_path: Path
) -> None:
    """It was written into the file, and then somebody changed the same key in the same second."""
    key, token = next(iter(issued.items()))

    def change(year: int) -> str:
        return f"UPDATE APIKeys SET expires_at = '{year}-01-01 00:00:00' WHERE api_key = '{key}'"

    def last_change() -> Any:
        return store.file.conn.execute(
            "SELECT change_id, table_name, record_id, occurred_at FROM ChangeLog"
            " ORDER BY change_id DESC LIMIT 1"
        ).fetchone()

    with Validator(store.file.path) as validator:
        for number in range(100):
            writer.do(f"SAVE {tmp_path / f'{number}.db'}")
            writer.do(change(2900))
            before = last_change()
            assert passing(validator, issued) == set(issued)
            writer.do(f"LOAD {tmp_path / f'{number}.db'}", change(2001))
            assert not validator.check(token).allowed
            if last_change() == before:
                break
        else:
            pytest.fail("not once in the same second")
