"""`keystore repo`, and one store that publishes to several repositories."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from keystore import Store
from keystore.cli import main
from keystore.sync import repository
from tests.failures import Children
from tests.repositories import digest_of
from tests.test_follow import Running

ADA, BOB = "ada@example.org", "bob@example.org"


@pytest.fixture
def site(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An origin with two accounts, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEYSTORE_DB", "origin.db")
    store.add_account(BOB, plan="free")
    return store


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == code, result.output
    if code == 1 and result.stderr:
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith(("keystore: ", '{"error"'))
    return result


def create_three() -> None:
    run("repo", "create", "all")
    for name, email in (("ada", ADA), ("bob", BOB)):
        run("repo", "create", name, "--keys", f"origin.db.keys/{name}", "--account", email)


def test_one_sync_publishes_to_all_repositories_each_with_its_own_keys(
    site: Store, tmp_path: Path
) -> None:
    create_three()
    token = site.issue_key(ADA).token
    lines = run("sync").stdout.splitlines()
    assert [line.partition(": ")[2].split(",")[0] for line in lines] == [
        "pushed 9 records; as of change 9.",
        "pushed 4 records; as of change 9.",
        "pushed 2 records; as of change 9.",
    ]
    for name, allowed in (("all", 0), ("ada", 0), ("bob", 1)):
        keys = "origin.db.keys" if name == "all" else f"origin.db.keys/{name}"
        run("replicate", name, f"{name}.db", "--root", f"{keys}/root.json")
        run("check", token, "--db", f"{name}.db", code=allowed)
    for name in ("all", "ada", "bob"):
        run("repo", "rotate", name, "--online", "--root")
        run("repo", "renew", name)
        run("repo", "gc", name)
    assert "pushed 0 records" in run("sync").stdout
    for name in ("all", "ada", "bob"):
        run("sync", "--db", f"{name}.db")
    assert digest_of(tmp_path / "all.db") == digest_of(tmp_path / "origin.db")
    run("verify", "all")


def test_all_repositories_are_followed(site: Store, tmp_path: Path) -> None:
    create_three()
    run("sync")
    run("replicate", "ada", "ada.db", "--root", "origin.db.keys/ada/root.json")
    origin = Running("sync", "--follow")
    try:
        for _ in range(3):
            origin.wait_for("following")
        token = site.issue_key(ADA).token
        origin.wait_for("ada: pushed 2 records")
        run("sync", "--db", "ada.db")
        run("check", token, "--db", "ada.db")
    finally:
        assert origin.end(signal.SIGTERM) == 0
    assert origin.stderr == []


def test_another_repository_of_ours_at_a_known_url_is_not_taken_for_it(
    site: Store, tmp_path: Path
) -> None:
    """Who can write there would get what belongs elsewhere."""
    create_three()
    run("sync")
    shutil.rmtree("ada")
    shutil.copytree("all", "ada")
    error = run("sync", "ada", code=1).stderr
    assert "is another repository" in error
    assert json.loads(run("repo", "info", "all", "--json").stdout)["as_of_change"] == 8


def test_what_creation_says_is_where_things_are(site: Store) -> None:
    said = json.loads(
        run("repo", "create", "files", "--root-key", "safe/root.pem", "--json").stdout
    )
    assert said["url"] == Path("files").absolute().as_uri()
    for name, mode in (("root", 0o644), ("root_key", 0o600)):
        assert Path(said[name]).stat().st_mode & 0o777 == mode & ~_umask()
    assert said["root_key"] == "safe/root.pem"
    assert sorted(os.listdir(said["keys"])) == ["online.pem", "root.json"]  # noqa: PTH208
    assert not list(Path("files").rglob("*.pem"))
    run("sync")  # it is known already
    run("repo", "renew", "files", code=1)
    run("repo", "renew", "files", "--root-key", "safe/root.pem")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def remove_the_keys() -> None:
    shutil.rmtree("origin.db.keys")


def make_it_a_replica() -> None:
    run("repo", "create", "first")
    run("sync")
    run("replicate", "first", "replica.db", "--root", "origin.db.keys/root.json")
    os.environ["KEYSTORE_DB"] = "replica.db"


def fill_the_folder() -> None:
    Path("files").mkdir()
    Path("files/mine").write_text("mine")


def nothing() -> None:
    pass


REFUSED: list[tuple[str, Callable[[], object], list[str], str]] = [
    ("an unknown account", nothing, ["create", "files", "--account", "x@y.org"], "not_found"),
    ("an unknown service", nothing, ["create", "files", "--service", "none"], "not_found"),
    ("no store", nothing, ["create", "files", "--db", "none.db"], "store_not_found"),
    ("a replica", make_it_a_replica, ["create", "files"], "wrong_role"),
    ("a folder in use", fill_the_folder, ["create", "files"], "already_exists"),
    ("a file", lambda: Path("files").write_text(""), ["create", "files"], "target_unavailable"),
    ("https", nothing, ["create", "https://127.0.0.1:1/x"], ""),
    ("a hub", nothing, ["create", "postgresql://127.0.0.1:1/x"], "unsupported_target"),
    ("too long", nothing, ["create", "files", "--expires", "999999w"], "invalid_input"),
    ("no time", nothing, ["create", "files", "--expires", "0"], "invalid_input"),
    ("no repository", nothing, ["info", "files"], "target_not_ready"),
    ("no repository to sign", nothing, ["rotate", "files", "--online"], "target_not_ready"),
    ("no repository to sweep", nothing, ["gc", "files"], "target_not_ready"),
    ("no repository to renew", nothing, ["renew", "files"], "target_not_ready"),
    ("no root file", nothing, ["info", "files", "--root", "none.json"], "invalid_input"),
]


@pytest.mark.parametrize(
    ("prepare", "arguments", "code"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_what_cannot_be_done_is_told_on_one_line_and_leaves_nothing(
    site: Store,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[], object],
    arguments: list[str],
    code: str,
) -> None:
    monkeypatch.setenv("KEYSTORE_DB", "origin.db")  # and puts it back
    prepare()
    before = {path for path in Path().rglob("*") if path.suffix not in {".db-shm", ".db-wal"}}
    error = json.loads(run("repo", *arguments, "--json", code=1).stderr)["error"]
    assert not code or error["code"] == code
    assert error["hint"]
    after = {path for path in Path().rglob("*") if path.suffix not in {".db-shm", ".db-wal"}}
    assert after == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "x", "--account", ADA, "--service", "maps"],
        ["rotate", "x"],
        ["create"],
        ["create", "x", "--expires", "soon"],
        ["create", "x", "--expires", "9m"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(site: Store, arguments: list[str]) -> None:
    run("repo", *arguments, code=2)


def test_the_words_of_info_and_its_warnings(site: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run("repo", "create", "files", "--account", ADA)
    assert "nothing is published yet" in run("repo", "info", "files").stdout
    run("sync")
    said = run("repo", "info", "files")
    for text in ("account ada@example.org", "in 6 days", "30 days after that", "version 1"):
        assert text in said.stdout
    assert said.stderr == ""
    run("repo", "info", "files", "--root", "files/metadata/1.root.json", "--keys", "none")
    children = Children()
    status, _ = children.run(
        *("repo", "rotate", Path("files").absolute(), "--online"),
        *("--db", Path("origin.db").absolute()),
        step="rotate.root",
    )
    children.close()
    assert status == -signal.SIGKILL
    monkeypatch.setattr(repository, "ROOT_WARNING", repository.ROOT_LIFETIME)
    said = run("repo", "info", "files")
    assert "1 root, 2 online" in said.stdout
    assert "root file expires in 729 days" in said.stderr
    assert "old online key" in said.stderr
    assert len(json.loads(run("repo", "info", "files", "--json").stdout)["warnings"]) == 2


@pytest.mark.parametrize("module", ["tuf", "obstore"])
@pytest.mark.parametrize(
    "arguments",
    [
        "repo create s3://bucket/keys",
        "repo info https://cdn.example.org/keys --root origin.db.keys/root.json",
        "repo rotate s3://bucket/keys --online",
        "repo renew s3://bucket/keys",
        "repo gc s3://bucket/keys",
        "sync s3://bucket/keys",
        "replicate https://cdn.example.org/keys edge.db --root origin.db.keys/root.json",
    ],
)
def test_every_command_names_the_extra_that_is_missing(
    site: Store, tmp_path: Path, module: str, arguments: str
) -> None:
    run("repo", "create", "all")
    lacking = "import sys; from importlib.abc import MetaPathFinder\n"
    lacking += "class Lacking(MetaPathFinder):\n  def find_spec(self, name, *_):\n"
    lacking += (
        "    if name.partition('.')[0] == sys.argv[1]: raise ModuleNotFoundError(name=name)\n"
    )
    lacking += "sys.meta_path.insert(0, Lacking())\n"
    lacking += "from keystore.cli import main; main(sys.argv[2:])"
    ended = subprocess.run(
        [sys.executable, "-c", lacking, module, *arguments.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "the extra 'files' (" + module in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_repository_that_never_answered_is_not_among_those_of_a_bare_sync(site: Store) -> None:
    run("repo", "create", "all")
    run("sync")
    run("replicate", "all", "edge.db", "--root", "origin.db.keys/root.json")
    run("repo", "create", "empty", "--keys", "origin.db.keys/empty")
    root = "origin.db.keys/empty/root.json"
    run("sync", "empty", "--db", "edge.db", "--root", root, code=1)
    run("sync", "--db", "edge.db")
    run("sync", "empty")
    run("sync", "empty", "--db", "edge.db", "--root", root)
    assert len(run("sync", "--db", "edge.db").stdout.splitlines()) == 2


def test_keys_elsewhere_are_told_of_and_how_a_bare_sync_misses_them(site: Store) -> None:
    run("repo", "create", "all")
    said = run("repo", "create", "ada", "--account", ADA, "--keys", "ada.keys").stdout
    assert "--keys ada.keys" in said.splitlines()[-1]
    error = run("sync", code=1).stderr
    assert error.count("file://") == 1
    assert "--keys" in error


def test_what_is_missing_is_said_once(site: Store, tmp_path: Path) -> None:
    run("repo", "create", "all")
    error = run("replicate", "all", "edge.db", "--root", "origin.db.keys/root.json", code=1).stderr
    assert error == (
        f"keystore: {(tmp_path / 'all').as_uri()} lacks the file metadata/timestamp.json. "
        "Check the URL; publish from the origin first, or try again.\n"
    )


def test_a_lost_online_key_says_which_command_makes_a_new_one(site: Store) -> None:
    run("repo", "create", "all")
    Path("origin.db.keys/online.pem").unlink()
    assert "repo rotate TARGET --online" in run("sync", code=1).stderr
    Path("origin.db.keys/offline/root.pem").rename("safe.pem")
    assert "--root-key" in run("repo", "rotate", "all", "--online", code=1).stderr
    run("repo", "rotate", "all", "--online", "--root-key", "safe.pem")
    run("sync")


def test_who_follows_a_repository_untold_whom_to_trust_is_asked_for_the_root(site: Store) -> None:
    run("repo", "create", "all")
    run("sync")
    run("replicate", "all", "edge.db", "--root", "origin.db.keys/root.json")
    assert "--root" in run("sync", "other", "--follow", "--db", "edge.db", code=1).stderr
