"""Many keys at once: all or none, a bad line is named, and no token gets into a message."""

import csv
import json
import os
import pty
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner, Result

import keystore.cli.bulk as command
from keystore import Store, Validator, migrate, tokens
from keystore.admin import bulk
from keystore.admin.bulk import BulkAdmin, BulkImport, BulkIssue, IssuedRow
from keystore.cli import main
from keystore.errors import (
    DamagedStoreError,
    InvalidInputError,
    KeystoreError,
    NotFoundError,
    WrongRoleError,
)
from keystore.sync.memory import MemoryHub
from tests.conftest import NewStore
from tests.test_tracking import assert_pushed_copy_is_equal

SECRET = "old-system-s3cret-token"
OTHER = "another-0ld-token"
KEY = "01890a5d-ac96-774b-bcce-b302099a8057"
OURS = tokens.build(UUID(KEY), 1)
MISTYPED = OURS[:-1] + ("0" if OURS[-1] != "0" else "1")
SHOUTED = tokens.hash_token(SECRET).upper()


def run(*arguments: str, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(main, arguments, input=stdin)


@pytest.fixture
def db(store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that KEYSTORE_DB names."""
    monkeypatch.setenv("KEYSTORE_DB", str(store.file.path))
    return store.file.path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "tokens.csv"


@pytest.fixture(autouse=True)
def _folder(out: Path) -> None:
    out.parent.mkdir()


def issue(text: str, out: Path) -> Result:
    return run("key", "issue", "--from", "-", "--out", str(out), stdin=text)


def imported(text: str | bytes, kind: str = "csv", *more: str) -> Result:
    return run("key", "import", "-", "--format", kind, *more, stdin=text)


def allows(db: Path, token: str, ip: str | None = None) -> str:
    with Validator(db) as validator:
        return validator.check(token, cost=0, ip=ip).reason.value


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.output.count("\n") == 1, result.output
    assert result.output.startswith("keystore: ")
    for part in parts:
        assert part in result.output
    for token in (SECRET, OTHER, OURS, MISTYPED, "s3cret", "0ld", SHOUTED):
        assert token not in result.output


# -- issue --from -------------------------------------------------------------------------------


def test_every_token_that_is_written_passes_and_the_file_is_for_its_owner_only(
    db: Path, store: Store, out: Path
) -> None:
    text = "account,label,expires\nada@example.org,laptop,90d\n\nADA@example.org,,\n"
    done = issue(text, out)
    assert done.output == f"Issued 2 keys. Keep {out} safe: the tokens are nowhere else.\n"
    assert out.stat().st_mode & 0o777 == 0o600
    assert list(out.parent.iterdir()) == [out]
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["account", "label", "api_key", "token"]
    assert [row["label"] for row in rows] == ["laptop", ""]
    assert {allows(db, row["token"]) for row in rows} == {"ok"}
    keys = store.keys()
    assert [key.api_key for key in keys] == [row["api_key"] for row in rows]
    assert [key.account for key in keys] == ["ada@example.org"] * 2
    assert keys[0].expires_at
    assert not keys[1].expires_at
    assert_pushed_copy_is_equal(db, MemoryHub())


def test_issuing_speaks_json(db: Path, out: Path) -> None:
    result = run(
        *("key", "issue", "--from", "-", "--out", str(out), "--json"),
        stdin="account\nada@example.org",
    )
    assert json.loads(result.stdout) == {"issued": 1, "tokens_file": str(out)}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "line 1"),
        ("ada@example.org\n", "line 1: column 1"),
        (f"account,{SECRET}\nada@example.org,x\n", "line 1: column 2"),
        ("account,account\n", "line 1: column 2"),
        ("label\nx\n", "line 1"),
        ("account\nada@example.org\nbob@example.org\n", "line 3: there is no such account"),
        ("account\nada@example.org\nno-address\n", "line 3: account"),
        ("account,label\nada@example.org,a\x07b\n", "line 2: label"),
        ("account,expires\nada@example.org,soon\n", "line 2: expires"),
        ("account,expires\nada@example.org,2001-01-01\n", "line 2: the key would have expired"),
        ("account,label\nada@example.org\n", "line 2: has 1 cell, the header 2"),
        ('account,label\nada@example.org,"a\nb"x\n', "line 2: is not CSV"),
        ('account,label\n\nada@example.org,"never closed\n\n', "line 3: is not CSV"),
        ('account,label\nada@example.org,"two\nlines"\n', "line 2: label"),
        ("account\n" + "ada@example.org\n" * 6_000 + "bob@example.org\n", "line 6002"),
    ],
)
def test_a_bad_line_is_named_and_neither_file_is_written(
    db: Path, store: Store, out: Path, text: str, where: str
) -> None:
    before = store.status()
    assert_one_line(issue(text, out), where)
    assert store.status() == before
    assert list(out.parent.iterdir()) == []


def test_an_existing_tokens_file_is_refused_and_stays(db: Path, store: Store, out: Path) -> None:
    out.write_text("mine")
    assert_one_line(issue("account\nada@example.org\n", out), "already exists")
    assert out.read_text() == "mine"
    assert store.keys() == []


def test_a_tokens_file_that_appears_meanwhile_stays_and_no_token_is_lost(
    db: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = migrate.publish

    def late(draft: Path, path: Path) -> None:
        path.write_text("mine")
        publish(draft, path)

    monkeypatch.setattr(migrate, "publish", late)
    result = issue("account\nada@example.org\n", out)
    (draft,) = out.parent.glob(".*.draft")
    assert_one_line(result, "the keys are issued", draft.name)
    assert out.read_text() == "mine"
    assert allows(db, draft.read_text().splitlines()[1].split(",")[3]) == "ok"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_the_draft_is_whole_before_the_commit_and_outlives_an_interrupt_after_it(
    db: Path, store: Store, out: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    real = BulkAdmin.issue_keys
    seen = []

    def interrupted(self: BulkAdmin, *arguments: object, **options: object) -> int:
        before_commit = options["before_commit"]

        def look() -> None:
            before_commit()  # type: ignore[operator]
            (draft,) = out.parent.iterdir()
            seen.append((draft.read_bytes().count(b"\n"), store.status().records["APIKeys"]))

        real(self, *arguments, **{**options, "before_commit": look})  # type: ignore[arg-type]
        raise error

    monkeypatch.setattr(BulkAdmin, "issue_keys", interrupted)
    issue("account\nada@example.org\nada@example.org\n", out)
    assert seen == [(3, 0)]
    assert [path.name for path in out.parent.iterdir()] == ["tokens.csv"]
    assert allows(db, out.read_text().splitlines()[2].split(",")[3]) == "ok"


def test_tokens_stay_while_the_store_cannot_say_whether_their_keys_are_issued(
    db: Path, store: Store, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DamagedStoreError("the disk is gone.")

    sync = command._TokensFile.sync

    def fail_later(self: command._TokensFile) -> None:
        sync(self)
        fail()

    monkeypatch.setattr(command._TokensFile, "sync", fail_later)
    monkeypatch.setattr(Store, "key", fail)
    result = issue("account\nada@example.org\n", out)
    (draft,) = out.parent.iterdir()
    assert_one_line(result, "the disk is gone. Whether the keys are issued", draft.name)


def test_a_commit_that_fails_leaves_neither_keys_nor_tokens(
    db: Path, store: Store, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = command._TokensFile.sync

    def full(self: command._TokensFile) -> None:
        sync(self)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command._TokensFile, "sync", full)
    assert_one_line(issue("account\nada@example.org\n", out), "No space left")
    assert store.keys() == []
    assert list(out.parent.iterdir()) == []


# -- import ------------------------------------------------------------------------------------


def test_tokens_of_another_system_go_on_working_by_token_and_by_hash(
    db: Path, store: Store
) -> None:
    text = (
        "\ufeffaccount,token,api_key_hash,label,api_key\r\n"
        f"ada@example.org,{SECRET},,one,\r\n"
        f"ADA@example.org,,{tokens.hash_token(OTHER).upper()},two,{KEY.upper()}\r\n"
    )
    done = imported(text.encode())
    assert done.output == "Imported 2 keys.\n"
    assert (allows(db, SECRET), allows(db, OTHER)) == ("ok", "ok")
    found = store.keys()
    assert [key.label for key in found] == ["one", "two"]
    assert store.key(OTHER).api_key == KEY
    assert_pushed_copy_is_equal(db, MemoryHub())


@pytest.mark.parametrize("secret", [KEY, KEY.replace("-", "")], ids=["uuid", "32 hex digits"])
def test_a_token_of_another_system_names_its_key_though_it_reads_as_a_uuid(
    db: Path, store: Store, secret: str
) -> None:
    imported(f"account,token\nada@example.org,{secret}\n".encode())
    (key,) = store.keys()
    assert store.key(secret).api_key == key.api_key != KEY
    # what is one key's UUID names that key, whatever another one's token is
    imported(f"account,token,api_key\nada@example.org,{OTHER},{KEY}\n".encode())
    assert store.key(secret).api_key == KEY
    store.delete_key(KEY)
    store.grant("ada@example.org", "1")
    store.add_provider("acme")
    store.add_model("large", provider="acme", input_per_1k="0.001", output_per_1k="0")
    charged = store.charge("ada@example.org", "large", input_tokens=1, key=secret)
    (usage,) = store.usage_report(by="key")
    assert (usage.name, charged.input_tokens) == (key.api_key, 1)
    assert run("key", "revoke", "--db", str(db), "-", stdin=secret).exit_code == 0
    assert allows(db, secret) == "revoked"


def test_json_lines_and_csv_carry_the_same_fields(
    db: Path, store: Store, new_store: NewStore, tmp_path: Path
) -> None:
    values = {
        "account": "ada@example.org",
        "label": "old",
        "expires_at": "2999-01-01T02:00:00+02:00",
        "status": "suspended",
        "allowed_networks": "192.0.2.0/24 2001:db8::/32",
    }
    other = new_store("other.db")
    other.add_plan("free")
    other.add_account("ada@example.org", plan="free")
    jsonl, as_csv = tmp_path / "keys.ndjson", tmp_path / "keys.csv"
    as_lists = {**values, "token": SECRET, "allowed_networks": ["192.0.2.0/24", "2001:db8::/32"]}
    jsonl.write_text("\n" + json.dumps({**as_lists, "metadata": {"team": 7}, "api_key": None}))
    with as_csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*values, "token", "metadata"])
        writer.writeheader()
        writer.writerow({**values, "token": SECRET, "metadata": '{"team": 7}'})
    assert run("key", "import", str(jsonl)).exit_code == 0
    assert run("key", "import", str(as_csv), "--db", str(other.file.path)).exit_code == 0
    varying = {"api_key", "api_key_id", "created_at", "updated_at"}
    for found in (store.key(SECRET), other.key(SECRET)):
        assert found.model_dump(exclude=varying) == {
            **values,
            "expires_at": "2999-01-01 00:00:00",
            "account_id": 1,
            "is_active": False,
            "status_reason": None,
            "metadata": '{"team": 7}',
        }


def test_status_expiry_and_networks_decide_over_an_imported_key(db: Path, store: Store) -> None:
    store.add_status("trial", allows_access=True)
    rows: list[dict[str, object]] = [
        {"token": "revoked-token", "status": "revoked"},
        {"token": "expired-token", "expires_at": "2020-01-01"},
        {"token": "bound-token", "allowed_networks": ["192.0.2.0/24"]},
        {"token": "trial-token", "status": "trial"},
    ]
    lines = [json.dumps({"account": "ada@example.org", **row}) for row in rows]
    result = imported("\n".join(lines), "jsonl", "--json")
    assert json.loads(result.stdout) == {"imported": 4}
    reasons = [allows(db, str(row["token"]), "192.0.2.7") for row in rows]
    assert reasons == ["revoked", "expired", "ok", "ok"]
    assert allows(db, "bound-token") == "network"
    # written right at once: no trigger had to settle anything
    assert [change.operation for change in store.changes()][-4:] == ["INSERT"] * 4


def test_a_token_of_our_own_form_keeps_the_uuid_that_it_carries(db: Path, store: Store) -> None:
    assert imported(f"account,token\nada@example.org,{OURS}\n").exit_code == 0
    assert store.key(OURS).api_key == KEY
    assert allows(db, OURS) == "ok"


def line(**values: object) -> str:
    return json.dumps({"account": "ada@example.org", **values}) + "\n"


GOOD = line(token="good-token")
BAD_LINES = {
    "no json": f'{{"token": "{SECRET}",',
    "no object": f'["{SECRET}"]',
    "not a string": line(token=12345),
    "a name twice": f'{{"token": "{SECRET}", "token": "{OTHER}"}}',
    "not a number": line(token=SECRET, metadata={"x": float("nan")}),
    "infinite": line(token=SECRET, metadata={"x": 1})[:-4] + "1e999}}",
    "a long number": line(token=SECRET, metadata={"x": 1})[:-4] + "9" * 5000 + "}}",
    "too deep": line(token=SECRET, metadata={"x": 1})[:-4] + "[" * 99_999,
    "too long": line(token=SECRET, label="x" * (1 << 20)),
    "neither": line(label="x"),
    "both": line(token=SECRET, api_key_hash=SHOUTED),
    "an empty token": line(token=""),
    "a long token": line(token=SECRET * 30),
    "a blank token": line(token=f" {SECRET}"),
    "a token with a control character": line(token=f"{SECRET}\x1b[2J"),
    "half a character": line(token=f"{SECRET}\ud800"),
    "a mistyped token": line(token=MISTYPED),
    "a token for a hash": line(api_key_hash=SECRET),
    "a token for a name": line(token="x", **{SECRET: 1}),
    "a token for a uuid": line(token="x", api_key=SECRET),
    "a token for an account": line(token="x", account=SECRET),
    "a token for an address": line(token="x", account=f"{SECRET}@example.org"),
    "a token for a status": line(token="x", status=SECRET),
    "a token for a time": line(token="x", expires_at=SECRET),
    "a token for a network": line(token="x", allowed_networks=SECRET),
    "a token for metadata": line(token="x", metadata=SECRET),
    "a token for a label": line(token="x", label=SECRET * 30),
    "no account": json.dumps({"token": SECRET}),
    "an unknown account": line(token=SECRET, account="bob@example.org"),
    "an unknown status": line(token=SECRET, status="Assigned"),
    "a year": line(token=SECRET, expires_at=2027),
    "a year out of range": line(token=SECRET, expires_at="0999-01-01"),
    "no network": line(token=SECRET, allowed_networks=[]),
    "host bits": line(token=SECRET, allowed_networks="192.0.2.1/24"),
    "a scope": line(token=SECRET, allowed_networks=["fe80::%\0/64"]),
    "a number for a network": line(token=SECRET, allowed_networks=[1]),
    "metadata of another kind": line(token=SECRET, metadata=[1]),
    "a line for a field": line(token=SECRET, line=7),
    "a private field": line(token=SECRET, _line=7),
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_without_its_token_and_nothing_is_imported(
    db: Path, store: Store, bad: str
) -> None:
    before = store.status()
    assert_one_line(imported(f"{GOOD}\n{bad}\n{line(token='later')}", "jsonl"), "line 3: ")
    assert store.status() == before
    as_json = json.loads(imported(f"{GOOD}\n{bad}\n", "jsonl", "--json").stderr)["error"]
    assert as_json["message"].startswith("line 3: ")
    assert as_json["hint"]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"account,token\nada@example.org,\xff\xfe\n", "line 2: is not UTF-8"),
        (f"ada@example.org,{SECRET}\n".encode(), "line 1: column 1"),
        (f"account,token,api_key_hash\nada@example.org,{SECRET}\n".encode(), "line 2"),
        (f"account\rada@example.org,{SECRET}\r".encode(), "line 1"),
        (f'account,token\nada@example.org,"{SECRET}'.encode(), "line 2"),
        (f"account,token\nada@example.org,{SECRET}{'x' * 200_000}".encode(), "line 2"),
    ],
)
def test_a_bad_line_of_csv_is_named(db: Path, store: Store, text: bytes, where: str) -> None:
    assert_one_line(imported(text), where)
    assert store.keys() == []


def many(*extra: str, number: int = 6_000) -> str:
    return "".join([*(line(token=f"token-{n}") for n in range(number)), *extra])


@pytest.mark.parametrize("number", [3, 6_000], ids=["in a chunk", "across chunks"])
@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        (line(token=SECRET), line(api_key_hash=SHOUTED), "token"),
        (line(token=SECRET, api_key=KEY), line(token=OTHER, api_key=KEY.upper()), "api_key"),
    ],
    ids=["hash", "uuid"],
)
def test_a_key_that_stands_twice_is_named_with_both_lines(
    db: Path, store: Store, first: str, second: str, what: str, number: int
) -> None:
    text = f"\n{line(token='zero')}\n{first}{many(number=number)}{second}"
    assert_one_line(imported(text, "jsonl"), f"line {number + 5}: line 4 has the same {what}.")
    assert store.keys() == []


def test_a_key_that_the_store_has_is_named_with_its_line(db: Path, store: Store) -> None:
    known = store.issue_key("ada@example.org")
    store.delete_key(store.issue_key("ada@example.org").key.api_key)
    for text, what in (
        (line(token=known.token, api_key=KEY), "token"),
        (line(token=SECRET, api_key=known.key.api_key), "api_key"),
    ):
        result = imported(GOOD + text, "jsonl")
        assert_one_line(result, f"line 2: the store has a key with this {what} already.")
        assert known.token not in result.output
    assert len(store.keys()) == 1


def test_a_file_is_read_by_its_suffix_and_one_without_needs_a_format(
    db: Path, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "keys.JSONL"
    path.write_text(GOOD)
    assert run("key", "import", str(path)).exit_code == 0
    assert_one_line(run("key", "import", "-", stdin=GOOD), "--format")
    assert_one_line(run("key", "import", str(tmp_path / "none.csv")), "No such file")
    assert_one_line(run("key", "import", str(tmp_path), "--format", "csv"), "directory")
    assert len(store.keys()) == 1


# -- both --------------------------------------------------------------------------------------


def test_a_replica_neither_issues_nor_imports(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "replica.db"
    migrate.build_replica(path, origin_id=store.file.info().origin_id, token_prefix="sk-")
    with Store.open(path) as replica:
        admin = BulkAdmin(replica.file)
        with pytest.raises(WrongRoleError):
            admin.import_keys([])
        with pytest.raises(WrongRoleError):
            admin.issue_keys([], write_token=print)


def test_rows_of_a_program_are_named_by_their_number(store: Store) -> None:
    admin = BulkAdmin(store.file)
    good, bad = (BulkIssue(account=name) for name in ("ada@example.org", "bob@example.org"))
    with pytest.raises(NotFoundError, match="row 2: there is no such account"):
        admin.issue_keys([good, bad], write_token=lambda _: None)
    kept: list[IssuedRow] = []
    assert admin.issue_keys([good], write_token=kept.append) == 1
    assert kept[0].token not in repr(kept)
    assert SECRET not in repr(BulkImport(account="ada@example.org", token=SECRET))


def test_what_a_callback_raises_undoes_everything(store: Store) -> None:
    admin = BulkAdmin(store.file)

    def stop(_: object = None) -> None:
        raise KeystoreError("stop")

    rows = [BulkIssue(account="ada@example.org")]
    with pytest.raises(KeystoreError, match="stop"):
        admin.issue_keys(rows, write_token=stop)
    with pytest.raises(KeystoreError, match="stop"):
        admin.issue_keys(rows, write_token=lambda _: None, before_commit=stop)
    with pytest.raises(KeystoreError, match="stop"):
        admin.import_keys([BulkImport(account="ada@example.org", token=SECRET)], stop)
    assert store.keys() == []


def test_the_rows_are_read_before_others_have_to_wait(store: Store) -> None:
    """At least a chunk of them: what is typed at a terminal locks nobody out."""
    admin = BulkAdmin(store.file)

    def typed() -> Iterator[BulkImport]:
        yield BulkImport(account="ada@example.org", token=SECRET)
        assert not store.file.conn.in_transaction

    assert admin.import_keys(typed()) == 1


def test_memory_stays_bounded_however_many_rows(db: Path, store: Store, tmp_path: Path) -> None:
    admin, number = BulkAdmin(store.file), 20_000
    done: list[int] = []
    tracemalloc.start()
    try:
        admin.issue_keys(
            (BulkIssue.read(n, {"account": "ada@example.org"}) for n in range(number)),
            write_token=lambda _: None,
            on_progress=done.append,
        )
        rows = ({"account": "ada@example.org", "token": f"token-{n}"} for n in range(number))
        admin.import_keys(BulkImport.read(n, row) for n, row in enumerate(rows, 1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6
    assert done == [5_000, 10_000, 15_000, 20_000]
    assert store.status().records["APIKeys"] == 2 * number
    assert allows(db, f"token-{number - 1}") == "ok"
    assert_pushed_copy_is_equal(db, MemoryHub())


def test_strict_json_says_what_is_wrong_without_the_text() -> None:
    with pytest.raises(ValueError, match="must be JSON: Expecting value"):
        bulk.strict_json(SECRET)
    with pytest.raises(InvalidInputError, match="line 9: token"):
        BulkImport.read(9, {"account": "ada@example.org", "token": "\n"})


PROGRAM = "import keystore.cli.bulk, sys; from keystore.cli import main; {}"
AND_SAY_IF_RICH = "import atexit; atexit.register(lambda: print('rich' in sys.modules)); main()"


def test_a_progress_bar_is_drawn_at_a_terminal_and_nowhere_else(db: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    path.write_text(GOOD)
    arguments = [sys.executable, "-c", PROGRAM.format(AND_SAY_IF_RICH), "key", "import", str(path)]
    piped = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    assert (piped.stdout, piped.stderr) == ("Imported 1 key.\nFalse\n", "")
    path.write_text(line(token=SECRET))
    controller, terminal = pty.openpty()
    try:
        subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm"},
            check=True,
            timeout=60,
        )
        assert b"Importing" in os.read(controller, 10_000)
    finally:
        os.close(terminal)
        os.close(controller)
