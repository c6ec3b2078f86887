"""Never a stale allow: whatever another process commits, the very next check knows it.

A second process writes with whichever means an operator has: keystore, plain SQL, the ``sqlite3``
shell, SQLite's own backup. After each commit this process checks every token at once, most of them
remembered from the round before, and compares with what the rows say.

``KEYSTORE_ROUNDS=100000`` makes it as many.
"""

import json
import os
import random
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keystore import Store, Validator, edge
from keystore.edge import validator as validator_module

ROUNDS = int(os.environ.get("KEYSTORE_ROUNDS", "3000"))
KEYS = 12

# What may pass, by the rows alone; every key's token is known to the test by the key's UUID.
PASSING = """
SELECT k.api_key FROM APIKeys AS k
JOIN APIKeyStatuses AS s ON s.name = k.status
JOIN Accounts AS a ON a.account_id = k.account_id
JOIN Plans AS p ON p.plan_id = a.plan_id
WHERE k.is_active AND s.allows_access AND s.is_active AND a.is_active
  AND k.api_key NOT IN (SELECT api_key FROM Revocations)
  AND (k.expires_at IS NULL OR k.expires_at > CURRENT_TIMESTAMP)
"""
USE = "INSERT INTO UsageLog (principal_type, principal_id, amount) VALUES ('session', 1, 1)"
COMPACT = [
    "UPDATE StoreInfo SET replaying = 1",
    """DELETE FROM ChangeLog WHERE change_id NOT IN
       (SELECT max(change_id) FROM ChangeLog GROUP BY table_name, record_id)""",
    """UPDATE StoreInfo SET replaying = 0,
       compacted_to = (SELECT max(change_id) FROM ChangeLog)""",
]
WRITER = f"""
import json, sys
from pathlib import Path
from keystore import db
path = Path(sys.argv[1])
conn = db.connect(path)
conn.execute("PRAGMA synchronous = OFF")
for line in sys.stdin:
    for statement in json.loads(line):
        if statement.startswith("RESTORE "):
            source = db.connect(Path(statement.removeprefix("RESTORE ")))
            source.backup(conn)
            source.close()
        elif statement.startswith("SAVE "):
            target = db.connect(Path(statement.removeprefix("SAVE ")), create=True)
            conn.backup(target)
            target.close()
        else:
            conn.execute(statement).fetchall()
    print(json.dumps([row[0] for row in conn.execute({PASSING!r})]), flush=True)
"""


class Writer:
    """The other process."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", WRITER, str(path)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def do(self, *statements: str) -> set[str]:
        """Run statements; return the keys that may pass then."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(statements) + "\n")
        self._process.stdin.flush()
        return set(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def writer(store: Store) -> Iterator[Writer]:
    made = Writer(store.file.path)
    yield made
    made.close()


@pytest.fixture
def issued(store: Store) -> dict[str, str]:
    """Tokens by key."""
    store.add_plan("second")
    for name in ("bob", "eve"):
        store.add_account(f"{name}@example.org", plan="second")
    store.add_status("paused")
    accounts = [f"{name}@example.org" for name in ("ada", "bob", "eve")]
    keys = [store.issue_key(accounts[number % 3]) for number in range(KEYS)]
    return {item.key.api_key: item.token for item in keys}


def statements(dice: random.Random, keys: list[str], copy: Path) -> list[str]:
    key = dice.choice(keys)
    where = f"WHERE api_key = '{key}'"
    account = dice.randint(1, 3)
    on = dice.randint(0, 1)
    return dice.choice(
        [
            [f"UPDATE APIKeys SET status = 'revoked' {where}"],
            [f"UPDATE APIKeys SET status = 'assigned' {where}"],
            [f"UPDATE APIKeys SET status = 'paused' {where}"],
            [f"UPDATE APIKeys SET is_active = {on} {where}"],
            [f"UPDATE APIKeys SET account_id = {account} {where}"],
            [f"UPDATE APIKeys SET expires_at = '2020-01-01 00:00:00' {where}"],
            [f"UPDATE APIKeys SET expires_at = NULL {where}"],
            [f"UPDATE Accounts SET is_active = {on} WHERE account_id = {account}"],
            [f"UPDATE APIKeyStatuses SET allows_access = {on} WHERE name = 'paused'"],
            [f"INSERT OR REPLACE INTO APIKeys SELECT * FROM APIKeys {where}"],
            [f"UPDATE APIKeys SET label = 'x' {where}"],
            [USE],
            ["BEGIN", f"UPDATE APIKeys SET status = 'revoked' {where}", "ROLLBACK"],
            ["PRAGMA wal_checkpoint(TRUNCATE)"],
            ["PRAGMA wal_checkpoint(RESTART)", f"UPDATE APIKeys SET is_active = {on} {where}"],
            ["VACUUM"],
            [f"SAVE {copy}"],
            [f"RESTORE {copy}"],
            COMPACT,
        ]
    )


def passing(validator: Validator, issued: dict[str, str]) -> set[str]:
    decisions = {key: validator.check(token, cost=0) for key, token in issued.items()}
    return {key for key, decision in decisions.items() if decision.allowed}


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
    seed = secrets.randbits(32)
    dice, keys = random.Random(seed), list(issued)  # noqa: S311 - no secret
    copy = tmp_path / "copy.db"
    writer.do(f"SAVE {copy}")
    with Validator(store.file.path) as validator:
        for number in range(ROUNDS):
            done = statements(dice, keys, copy)
            expected = writer.do(*done)
            assert passing(validator, issued) == expected, (seed, number, done)


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the sqlite3 shell is not installed")
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


def test_a_check_that_is_remembered_asks_the_file_nothing(
    store: Store, issued: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validator_module, "LOOK_SECONDS", 3600.0)
    with Validator(store.file.path) as validator:
        passing(validator, issued)
        asked: list[Any] = []
        validator._file.conn.set_trace_callback(asked.append)
        assert passing(validator, issued) == set(issued)
        assert asked == []
