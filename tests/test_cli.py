"""The command line: one-line errors, exit codes, JSON, and help with an example everywhere."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from keystore import Store
from keystore.cli import main
from keystore.db import SCHEMA_VERSION
from keystore.sync import repository, urls
from keystore.sync.folder import Folder
from keystore.testing.postgres import running

NOWHERE = "postgresql://user:s3cret@127.0.0.1:1/nowhere?sslpassword=s3cret"


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(main, arguments, input=stdin)


@pytest.fixture
def db(store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that KEYSTORE_DB names."""
    monkeypatch.setenv("KEYSTORE_DB", str(store.file.path))
    return store.file.path


def all_commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if isinstance(command, click.Group):
            yield from all_commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("command", list(all_commands(main)), ids=" ".join)
def test_every_command_has_help_with_an_example_and_json(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert f"Example:\n    keystore {' '.join(command)}" in result.output
    assert "--json" in result.output


@pytest.mark.parametrize("command", list(all_commands(main)), ids=" ".join)
def test_every_option_says_what_it_is_for(command: tuple[str, ...]) -> None:
    found: click.Command | None = main
    for name in command:
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), name)
    assert found is not None
    for option in found.params:
        assert isinstance(option, click.Argument) or getattr(option, "help", None), option.opts


def test_a_command_of_an_edge_loads_no_administration() -> None:
    """Its models take longer to import than all the rest."""
    program = """
import sys
from keystore.cli import main
for command in ("check", "serve", "sync", "replicate", "verify", "doctor"):
    main([command, "--help"], standalone_mode=False)
heavy = "keystore.store pydantic sqlite_utils psycopg tuf obstore rich"
print([name for name in heavy.split() if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_whole_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init").exit_code == 0
    assert run("plan", "add", "free").output == "Added plan free.\n"
    assert run("account", "add", "ada@example.org", "--plan", "free").exit_code == 0
    issued = json.loads(run("key", "issue", "ada@example.org", "--expires", "90d", "--json").stdout)
    token = issued["token"]
    assert run("check", token, "--cost", "2").exit_code == 0
    assert run("check", "-", stdin=token + "\n").stdout.startswith("allowed: ada@example.org")
    revoked = run("key", "revoke", "-", stdin=token)
    assert revoked.output == f"Revoked key {issued['key']['api_key']} of ada@example.org.\n"
    denied = run("check", "--json", token)
    assert (denied.exit_code, json.loads(denied.stdout)["reason"]) == (1, "revoked")
    assert [c["table_name"] for c in json.loads(run("changes", "--json").stdout)[5:]] == [
        "Plans",
        "Accounts",
        "APIKeys",
        "APIKeyStatusEvents",
        "APIKeys",
        "APIKeys",
    ]
    assert "2 units recorded" in run("status").stdout
    assert run("doctor").stdout == "keystore.db: nothing is wrong.\n"
    for kind in ("plan", "account", "key"):
        assert len(json.loads(run(kind, "list", "--json").stdout)) == 1
        assert len(run(kind, "list").stdout.splitlines()) == 2


def test_a_check_by_hand_only_asks_unless_it_is_told_a_cost(db: Path, store: Store) -> None:
    token = store.issue_key("ada@example.org").token
    assert run("check", token).exit_code == 0
    assert store.status().usage_total == 0
    assert run("check", token, "--cost", "3").exit_code == 0
    assert store.status().usage_total == 3


@pytest.mark.parametrize(
    ("text", "limit", "seconds"),
    [("100/minute", 100, 60), ("5/s", 5, 1), ("1000/12h", 1000, 43_200), ("7/2d", 7, 172_800)],
)
def test_a_rate_is_read_as_people_write_it(
    store: Store, db: Path, text: str, limit: int, seconds: int
) -> None:
    assert run("plan", "add", "pro", "--rate", text, "--burst", "2").exit_code == 0
    (plan,) = [plan for plan in store.plans() if plan.name == "pro"]
    assert (plan.rate_limit, plan.rate_window_seconds, plan.rate_burst) == (limit, seconds, 2)
    assert run("plan", "set", "pro", "--rate", "0").exit_code == 0
    assert [plan.rate for plan in store.plans()] == ["any", "any"]


@pytest.mark.parametrize(
    "text", ["100", "/s", "0/s", "5/year", "5 per minute", "5/0s", "9/9999999999w"]
)
def test_a_rate_that_is_none_is_refused(store: Store, db: Path, text: str) -> None:
    assert run("plan", "add", "pro", "--rate", text).exit_code in {1, 2}
    assert [plan.name for plan in store.plans()] == ["free"]


def test_a_check_for_a_service_needs_a_quota_there(store: Store, db: Path) -> None:
    issued = store.issue_key("ada@example.org")
    run("service", "add", "tts")
    refused = run("check", issued.token, "--service", "tts")
    assert refused.exit_code == 1
    assert "no quota for that service" in refused.output
    run("key", "quota", issued.key.api_key, "tts=10")
    assert run("check", issued.token, "--service", "tts").exit_code == 0
    run("service", "set", "tts", "--inactive")
    assert run("check", issued.token, "--service", "tts").exit_code == 1


def test_what_is_left_of_a_rate_is_said(store: Store, db: Path) -> None:
    token = store.issue_key("ada@example.org").token
    run("plan", "set", "free", "--rate", "5/minute")
    said = json.loads(run("check", token, "--json").output)
    assert said["rate"]["rate"] == {"limit": 5, "window_seconds": 60, "burst": 5}
    assert (said["rate"]["remaining"], said["rate"]["retry_after"]) == (5, 0.0)


def test_not_now_is_told_apart_from_no(db: Path, store: Store, tmp_path: Path) -> None:
    token = store.issue_key("ada@example.org").token
    run("plan", "add", "strict", "--max-staleness", "1d", "--when-stale", "deny")
    assert [plan.max_staleness_seconds for plan in store.plans()] == [None, 86_400]
    store.file.conn.execute("UPDATE Plans SET max_staleness_seconds = 60")
    run("repo", "create", str(tmp_path / "files"))
    run("sync", str(tmp_path / "files"))
    root = tmp_path / "files" / "metadata" / "1.root.json"
    replica = tmp_path / "replica.db"
    run("replicate", str(tmp_path / "files"), str(replica), "--root", str(root))
    with Store.open(replica) as opened:
        opened.file.conn.execute("UPDATE StoreInfo SET as_of_at = datetime('now', '-1 hour')")
    result = run("check", token, "--db", str(replica))
    assert result.exit_code == 1
    assert result.stdout.startswith("not now: this replica's data are older")


def test_keys_are_listed_with_their_state(db: Path, store: Store) -> None:
    active, revoked, expired = (store.issue_key("ada@example.org").key for _ in range(3))
    store.revoke_key(revoked.api_key)
    store.file.conn.execute(
        "UPDATE APIKeys SET expires_at = '2020-01-01 00:00:00' WHERE api_key = ?",
        (expired.api_key,),
    )
    lines = run("key", "list").stdout.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [
        [active.api_key, "assigned"],
        [revoked.api_key, "revoked"],
        [expired.api_key, "expired"],
    ]


def test_the_column_that_names_a_row_is_never_cut_at_a_terminal(
    db: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = "a label that is rather long " * 3
    key = store.issue_key("ada@example.org", label=label, expires_at="2031-02-03").key
    monkeypatch.setattr("keystore.cli.common.is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("key", "list").stdout.splitlines()
    assert lines[1].split()[:3] == [key.api_key, "assigned", "2031-02-03"]
    assert max(map(len, lines)) <= 80


def test_what_a_quota_has_left_is_said(store: Store, db: Path) -> None:
    store.add_service("tts")
    issued = store.issue_key("ada@example.org", quotas={"tts": 5}, renewal="daily")
    denied = run("check", issued.token, "--service", "tts", "--cost", "6").stdout
    assert "the key's quota of tts has 5 units left; it is renewed at 2" in denied
    store.set_quota(issued.token, "tts", 0)
    assert "has used up all of its quotas" in run("check", issued.token).stdout


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["plan", "quotas", "fre"], "'free'"),
        (["key", "list", "--account", "ada@example.com"], "'ada@example.org'"),
        (["key", "list", "--status", "Revokd"], "'revoked'"),
        (["usage", "--service", "TTS"], "'tts'"),
        (["client", "remove", "biling"], "'billing'"),
    ],
)
def test_what_is_not_there_is_told_with_the_nearest_names(
    store: Store, db: Path, arguments: list[str], nearest: str
) -> None:
    store.add_service("tts")
    store.add_oauth_client("ada@example.org", client_id="billing")
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert f"Did you mean {nearest}?" in refused.stderr


def test_of_very_many_names_none_is_suggested(
    store: Store, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keystore.admin.base._MOST_NAMES", 0)
    refused = run("plan", "quotas", "fre").stderr
    assert refused.startswith("keystore: there is no plan 'fre'. `keystore plan list`")


def bad_input(tmp_path: Path) -> list[tuple[str, list[str], str]]:
    newer, junk = tmp_path / "newer.db", tmp_path / "junk.db"
    with Store.create(newer) as made:
        made.file.conn.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    junk.write_text("this is no database" * 99)
    for name in ("ours", "theirs"):
        repository.create(Folder(tmp_path / name), tmp_path / f"{name}.keys")
    return [
        ("a wrong token", ["check", "sk-miro-api-" + "a" * 55], ""),
        ("an unknown token", ["check", "whatever"], ""),
        ("an unknown plan", ["account", "add", "b@example.org", "--plan", "gold"], "not_found"),
        ("an unknown account", ["key", "issue", "nobody@example.org"], "not_found"),
        ("an unknown key", ["key", "revoke", "01890a5d-ac96-774b-bcce-b302099a8057"], "not_found"),
        ("a missing file", ["status", "--db", str(tmp_path / "missing.db")], "store_not_found"),
        ("a missing file, checked", ["check", "x", "--db", "missing.db"], "store_not_found"),
        ("no keystore", ["plan", "list", "--db", str(junk)], "not_a_keystore"),
        ("a folder", ["doctor", "--db", str(tmp_path)], "not_a_keystore"),
        ("a newer schema", ["sync", "--db", str(newer), "/tmp"], "schema_version"),
        ("a hub that is down", ["sync", NOWHERE], "target_unavailable"),
        ("a hub that is down, at first", ["replicate", NOWHERE, "new.db"], "target_unavailable"),
        ("no such target", ["sync", "ftp://example.org"], "unsupported_target"),
        ("no target known", ["sync"], "invalid_input"),
        ("no repository", ["sync", str(tmp_path / "nowhere")], "target_not_ready"),
        (
            "keys of another repository",
            ["sync", str(tmp_path / "ours"), "--keys", str(tmp_path / "theirs.keys")],
            "foreign_root",
        ),
        ("a repository twice", ["repo", "create", str(tmp_path / "ours")], "already_exists"),
        (
            "a root file that is none",
            ["replicate", str(tmp_path / "ours"), "new.db", "--root", str(junk)],
            "invalid_input",
        ),
        ("no root file", ["replicate", str(tmp_path / "ours"), "new.db"], "invalid_input"),
        ("a hub that is no hub", ["hub", "init", "file:///tmp"], "unsupported_target"),
    ]


def test_bad_input_is_one_line_that_says_what_to_do_and_writes_nothing(
    db: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cases = bad_input(tmp_path)
    before = (store.status(), sorted(tmp_path.rglob("*")))
    for name, arguments, code in cases:
        result = run(*arguments)
        said = result.stderr or result.stdout
        assert result.exit_code == 1, (name, said)
        assert said.count("\n") == 1, (name, said)
        assert "Traceback" not in said, name
        assert "s3cret" not in said, name
        if code:
            assert said.startswith("keystore: "), name
            as_json = json.loads(run(*arguments, "--json").stderr)
            assert as_json["error"]["code"] == code, name
            assert as_json["error"]["hint"], name
    assert (store.status(), sorted(tmp_path.rglob("*"))) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["plan", "add"],
        ["account", "add", "b@example.org"],
        ["key", "issue", "ada@example.org", "--expires", "soon"],
        ["key", "issue"],
        ["key", "issue", "--from", "accounts.csv"],
        ["key", "issue", "ada@example.org", "--out", "tokens.csv"],
        ["key", "issue", "ada@example.org", "--from", "a.csv", "--out", "b.csv"],
        ["key", "issue", "ada@example.org", "--renew", "daily"],
        ["check", "x", "--cost", "-1"],
        ["serve", "--port", "99999"],
        ["serve", "--host", ""],
        ["sync", "--poll", "5"],
        ["sync", "--follow", "--reconcile"],
        ["sync", "--follow", "--poll", "0"],
        ["changes", "--since", "9" * 30],
        ["replicate", "file:///x", "y.db", "--origin", "not-a-uuid"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(db: Path, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_a_password_in_a_url_is_used_and_never_stored(db: Path, store: Store, hub_url: str) -> None:
    with_password = hub_url.replace("keystore@", "keystore:s3cret@")
    assert run("sync", with_password).exit_code == 0
    store.file.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"s3cret" not in b"".join(p.read_bytes() for p in db.parent.glob(f"{db.name}*"))
    assert "s3cret" not in run("status").output + run("status", "--json").output


SECRETS = [
    "postgresql://user:s3cret%zz@127.0.0.1:1/db",
    "postgresql://user:pa@s3cret@127.0.0.1:1/db",
    "postgresql://user:pa/s3cret@127.0.0.1:1/db",
    "postgresql://user@127.0.0.1:1/db#s3cret",
    "postgresql://user:s3cret@[::1/db",
    "postgresql://user:s3cret\uff20host@127.0.0.1/db",
    "POSTGRESQL://user:s3cret@127.0.0.1:1/db",
    " postgresql://user:s3cret@127.0.0.1:1/db",
    "postgresql:/user:s3cret@127.0.0.1/db",
    "host=127.0.0.1 port=1 password=s3cret",
    "postgresql://127.0.0.1:1/db?password=s3cret&sslpassword=s3cret&oauth_client_secret=s3cret",
    "https://user:s3cret@127.0.0.1:1/files",
    "s3://user:s3cret@bucket",
]


@pytest.mark.parametrize("url", SECRETS)
@pytest.mark.parametrize("command", ["sync", "hub init", "replicate", "repo create"])
def test_no_error_ever_shows_a_password(db: Path, tmp_path: Path, url: str, command: str) -> None:
    arguments = [*command.split(), url] + (
        [str(tmp_path / "new.db")] if command == "replicate" else []
    )
    result = run(*arguments)
    assert result.exit_code == 1
    assert "s3cret" not in result.output
    assert result.output.count("\n") == 1
    assert not isinstance(result.exception, ValueError)


def test_a_url_is_stored_to_the_letter_without_its_secrets() -> None:
    url = "postgresql://ada:pw@h:1/db?options=-c%20x%3D1&password=pw&sslmode=require&new_secret=pw"
    assert urls.redacted(url) == ("postgresql://ada@h:1/db?options=-c%20x%3D1&sslmode=require")
    assert urls.normalized("file:///srv/keys/") == "file:///srv/keys"


def test_control_characters_of_other_clients_do_not_reach_the_terminal(
    db: Path, store: Store
) -> None:
    store.file.conn.execute("UPDATE Plans SET name = 'a' || char(27) || '[2J' || char(10) || 'b'")
    assert "a\\x1b[2J\\nb" in run("plan", "list").stdout


def test_sync_replicate_and_hub_init_speak_json(db: Path, store: Store, database_url: str) -> None:
    made = json.loads(run("hub", "init", database_url, "--json").stdout)
    again = json.loads(run("hub", "init", database_url, "--json").stdout)
    assert (made["is_new"], again["is_new"]) == (True, False)
    assert made["hub_id"] == again["hub_id"]
    (report,) = json.loads(run("sync", database_url, "--json").stdout)
    assert (report["pushed"], report["usage"], report["as_of_change"]) == (7, 0, 7)
    replica = db.parent / "replica.db"
    report = json.loads(run("replicate", database_url, str(replica), "--json").stdout)
    assert report["pulled"] == 7
    assert "never" not in run("status", "--db", str(replica)).stdout
    assert "all changes there" in run("status").stdout


def test_a_hub_that_went_away_is_told_and_nothing_is_lost(db: Path, store: Store) -> None:
    with running() as server:
        assert run("hub", "init", server.url).exit_code == 0
        assert run("sync", server.url).exit_code == 0
        store.issue_key("ada@example.org")
        server.stop()
        result = run("sync")
        assert result.exit_code == 1
        assert result.stderr.startswith("keystore: the hub cannot be reached")
        server.start()
        assert "pushed 1 record," in run("sync").stdout


@pytest.mark.parametrize(
    "command", [("sync", NOWHERE), ("verify", NOWHERE), ("repo", "create", "files")], ids=" ".join
)
@pytest.mark.parametrize("path", [".", "/"])
def test_a_folder_in_place_of_a_store_is_told(
    command: tuple[str, ...], path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*command, "--db", path)
    assert result.exit_code == 1
    assert result.stderr.startswith("keystore: ")
    assert result.stderr.count("\n") == 1


def test_a_refused_login_tells_to_check_the_url(db: Path, database_url: str) -> None:
    result = run("sync", f"{database_url}_misspelt")
    assert result.exit_code == 1
    assert "does not exist. Check the URL" in result.stderr


def test_python_m_keystore_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keystore", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("keystore, version ")


@pytest.mark.parametrize("tty", [True, False])
def test_tables_are_plain_in_a_pipe_and_drawn_at_a_terminal(
    db: Path, tty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keystore.cli.common.is_terminal", lambda: tty)
    output = run("plan", "list").output
    assert "free" in output
    assert output.splitlines()[0].split()[:2] == ["name", "max"]
