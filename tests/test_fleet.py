"""The fleet: each copy of each store is one line, told of truly, and forgotten on demand."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from keystore import Store, failpoint
from keystore._version import __version__
from keystore.backup import backup, restore
from keystore.cli.fleet import human_age
from keystore.db import SCHEMA_VERSION, open_store
from keystore.errors import InvalidInputError, NotFoundError
from keystore.sync import hub_fleet, repository, targets
from keystore.sync.folder import Folder
from keystore.sync.hub_fleet import Member
from keystore.testing.postgres import running
from tests.conftest import NewStore
from tests.test_cli import run
from tests.test_revocations import ADA, execute, receipts, replica, revoke, store_id, sync

__all__ = ["replica"]

HOUR = 3600


def fleet(url: str, stale_after: int = hub_fleet.STALE_AFTER_SECONDS) -> list[Member]:
    with targets.hub_admin(url) as admin:
        return hub_fleet.fleet(admin, stale_after_seconds=stale_after)


def replicas(url: str) -> list[Member]:
    return [member for member in fleet(url) if member.role == "replica"]


def incarnation(path: Path) -> str:
    with open_store(path) as file:
        return file.info().incarnation


def copy_file(path: Path, to: Path) -> None:
    shutil.copy(path, to)


def copy_by_backup(path: Path, to: Path) -> None:
    with open_store(path) as file:
        backup(file, to)


def test_each_store_and_replica_is_told_of_with_its_origin(
    hub_url: str, new_store: NewStore, tmp_path: Path
) -> None:
    assert fleet(hub_url) == []
    wanted = set()
    for number in range(2):
        made = new_store(f"origin{number}.db")
        made.add_plan("free")
        targets.sync(made.file, hub_url)
        origin_id = made.info.store_id
        wanted.add((origin_id, "origin", origin_id))
        for name in ("a", "b"):
            path = tmp_path / f"{name}{number}.db"
            targets.replicate(hub_url, path, origin_id=origin_id)
            wanted.add((store_id(path), "replica", origin_id))
    found = fleet(hub_url)
    assert {(member.store_id, member.role, member.origin_id) for member in found} == wanted
    assert [member.role for member in found] == ["origin", "replica", "replica"] * 2
    assert {(member.program_version, member.schema_version) for member in found} == {
        (__version__, SCHEMA_VERSION)
    }
    assert {member.as_of_change for member in found} == {6}
    assert not any(member.is_stale for member in found)


def test_lag_counts_what_the_origin_has_pushed_and_the_replica_has_not(
    store: Store, hub_url: str, replica: Path
) -> None:
    store.add_plan("pro")
    store.add_plan("gold")
    assert [member.behind for member in fleet(hub_url)] == [0, 0]
    targets.sync(store.file, hub_url)
    assert [member.behind for member in fleet(hub_url)] == [0, 2]
    sync(replica, hub_url)
    assert [member.behind for member in fleet(hub_url)] == [0, 0]


def test_who_has_changes_that_the_hub_has_not_is_seen_to_be_ahead(
    store: Store, hub_url: str, replica: Path
) -> None:
    """The hub was put back, or somebody has written to it: such a replica takes nothing from it."""
    with psycopg.connect(hub_url) as conn:
        conn.execute("UPDATE keystore.stores SET acknowledged_change = acknowledged_change - 2")
    assert [member.behind for member in fleet(hub_url)] == [0, -2]


def test_revocations_that_are_missing_are_counted(
    store: Store, hub_url: str, replica: Path
) -> None:
    tokens = [store.issue_key(ADA).token for _ in range(2)]
    targets.sync(store.file, hub_url)
    for token in tokens:
        revoke(hub_url, token)
    assert [member.missing_revocations for member in fleet(hub_url)] == [2, 2]
    sync(replica, hub_url)
    assert [member.missing_revocations for member in fleet(hub_url)] == [2, 0]


def test_stale_is_whose_data_are_older_than_the_strictest_plan_of_their_own_origin(
    store: Store, hub_url: str, replica: Path, new_store: NewStore
) -> None:
    other = new_store("other.db")
    other.add_plan("strict", max_staleness_seconds=60)
    targets.sync(other.file, hub_url)
    targets.sync(store.file, hub_url)
    execute(hub_url, "UPDATE keystore.replicas SET as_of_at = now() - INTERVAL '2 hours'")
    (member,) = replicas(hub_url)
    assert not member.is_stale
    assert member.age_seconds is not None
    assert 2 * HOUR <= member.age_seconds < 2 * HOUR + 60
    store.add_plan("lax", max_staleness_seconds=24 * HOUR)
    targets.sync(store.file, hub_url)
    assert not replicas(hub_url)[0].is_stale
    store.add_plan("hourly", max_staleness_seconds=HOUR)
    targets.sync(store.file, hub_url)
    assert replicas(hub_url)[0].is_stale
    execute(hub_url, "UPDATE keystore.replicas SET as_of_at = now() + INTERVAL '2 hours'")
    assert replicas(hub_url)[0].is_stale, "a clock that is off by so much, as the validator has it"
    sync(replica, hub_url)
    assert not replicas(hub_url)[0].is_stale


def test_stale_is_who_has_been_silent_for_longer_than_asked(
    store: Store, hub_url: str, replica: Path
) -> None:
    execute(
        hub_url,
        "UPDATE keystore.stores SET last_seen_at = now() - INTERVAL '23 hours'",
        "UPDATE keystore.replicas SET last_seen_at = now() - INTERVAL '25 hours'",
    )
    assert [member.is_stale for member in fleet(hub_url)] == [False, True]
    assert [member.is_stale for member in fleet(hub_url, 22 * HOUR)] == [True, True]
    assert [member.is_stale for member in fleet(hub_url, 26 * HOUR)] == [False, False]
    assert [int(member.silent_seconds // HOUR) for member in fleet(hub_url)] == [23, 25]
    sync(replica, hub_url)
    assert not fleet(hub_url)[1].is_stale


def test_an_origin_whose_first_push_is_not_done_has_no_age(store: Store, hub_url: str) -> None:
    def stop(step: str) -> None:
        if step == "push.sent":
            raise ZeroDivisionError

    failpoint.on_reach = stop
    try:
        with pytest.raises(ZeroDivisionError):
            targets.sync(store.file, hub_url)
    finally:
        failpoint.on_reach = None
    (member,) = fleet(hub_url)
    assert (member.role, member.as_of_change, member.age_seconds) == ("origin", None, None)
    assert not member.is_stale
    assert run("fleet", hub_url).stdout.splitlines()[1].split()[:4] == [
        store.info.store_id,
        "origin",
        __version__,
        "-",
    ]


def test_a_replica_of_signed_files_that_hands_its_usage_up_is_seen(
    store: Store, hub_url: str, tmp_path: Path
) -> None:
    files, keys, edge = tmp_path / "files", tmp_path / "keys", tmp_path / "edge.db"
    root = repository.create(Folder(files), keys).read_bytes()
    targets.sync(store.file, str(files), keys=keys)
    targets.replicate(str(files), edge, root=root)
    with open_store(edge) as file:
        targets.sync(file, str(files), usage_to=hub_url)
    (member,) = fleet(hub_url)
    assert (member.store_id, member.origin_id) == (store_id(edge), store.info.store_id)
    assert member.behind is None, "the hub does not know how far the origin is"
    targets.sync(store.file, hub_url)
    assert replicas(hub_url)[0].behind == 0


@pytest.mark.parametrize("copy", [copy_file, copy_by_backup])
def test_a_copied_replica_is_a_line_of_its_own_and_shares_no_receipt(
    store: Store,
    hub_url: str,
    replica: Path,
    tmp_path: Path,
    copy: Callable[[Path, Path], None],
) -> None:
    token = store.issue_key(ADA).token
    targets.sync(store.file, hub_url)
    sync(replica, hub_url)
    twin = tmp_path / "twin.db"
    copy(replica, twin)
    sync(replica, hub_url)
    sync(twin, hub_url)
    assert incarnation(twin) != incarnation(replica)
    lines = {member.incarnation for member in replicas(hub_url)}
    assert lines == {incarnation(twin), incarnation(replica)}
    assert {member.store_id for member in replicas(hub_url)} == {store_id(replica)}
    revoke(hub_url, token)
    sync(twin, hub_url)
    (receipt,) = receipts(hub_url)
    assert [holder.incarnation for holder in receipt.have] == [incarnation(twin)]
    assert incarnation(replica) in [holder.incarnation for holder in receipt.lack]
    sync(replica, hub_url)
    sync(twin, hub_url)
    assert {member.incarnation for member in replicas(hub_url)} == lines


@pytest.mark.parametrize("step", ["check_in.pending", "check_in.sent"])
def test_a_check_in_that_was_cut_off_leaves_no_ghost(
    store: Store, hub_url: str, replica: Path, step: str
) -> None:
    def stop(reached: str) -> None:
        if reached == step:
            raise ZeroDivisionError

    for _ in range(2):
        failpoint.on_reach = stop
        try:
            with pytest.raises(ZeroDivisionError):
                sync(replica, hub_url)
        finally:
            failpoint.on_reach = None
    sync(replica, hub_url)
    sync(replica, hub_url)
    assert [member.incarnation for member in replicas(hub_url)] == [incarnation(replica)]


@pytest.mark.parametrize("forgets_all", [True, False])
def test_a_hub_that_was_put_back_makes_no_ghost(
    store: Store, hub_url: str, replica: Path, forgets_all: bool
) -> None:
    with psycopg.connect(hub_url, autocommit=True) as conn:
        conn.execute("CREATE TABLE before AS SELECT * FROM keystore.replicas")
        for _ in range(2):
            sync(replica, hub_url)
        conn.execute("TRUNCATE keystore.replicas")
        if not forgets_all:
            conn.execute("INSERT INTO keystore.replicas SELECT * FROM before")
    sync(replica, hub_url)
    assert [member.incarnation for member in replicas(hub_url)] == [incarnation(replica)]


def test_a_restored_replica_appears_anew_and_the_old_one_falls_silent(
    store: Store, hub_url: str, replica: Path, tmp_path: Path
) -> None:
    copy_by_backup(replica, tmp_path / "backup.db")
    sync(replica, hub_url)
    restored = restore(tmp_path / "backup.db", tmp_path / "restored.db")
    execute(hub_url, "UPDATE keystore.replicas SET last_seen_at = now() - INTERVAL '2 days'")
    sync(tmp_path / "restored.db", hub_url)
    assert {(member.incarnation, member.is_stale) for member in replicas(hub_url)} == {
        (incarnation(replica), True),
        (restored.incarnation, False),
    }


def test_a_forgotten_replica_is_off_the_list_with_all_its_copies_until_it_calls(
    store: Store, hub_url: str, replica: Path, tmp_path: Path
) -> None:
    copy_file(replica, tmp_path / "twin.db")
    targets.replicate(hub_url, tmp_path / "stays.db")
    sync(replica, hub_url)
    sync(tmp_path / "twin.db", hub_url)
    assert len(replicas(hub_url)) == 3
    name = store_id(replica)
    result = run("hub", "forget", hub_url, name)
    assert result.stdout == f"Forgot replica {name} (2 incarnations).\n"
    assert [member.store_id for member in replicas(hub_url)] == [store_id(tmp_path / "stays.db")]
    again = run("hub", "forget", hub_url, name)
    assert again.exit_code == 1
    assert again.stderr.startswith(f"keystore: the hub knows no replica {name}.")
    sync(replica, hub_url)
    assert len(replicas(hub_url)) == 2
    one = json.loads(run("hub", "forget", hub_url, name, "--json").stdout)
    assert one == {"replica_id": name, "incarnations": 1}


def test_an_origin_is_not_forgotten_by_mistake(store: Store, hub_url: str) -> None:
    targets.sync(store.file, hub_url)
    with targets.hub_admin(hub_url) as admin, pytest.raises(InvalidInputError, match="origin"):
        hub_fleet.forget(admin, store.info.store_id)
    assert run("hub", "forget", hub_url, "not-a-uuid").exit_code == 2


def test_a_forgotten_target_no_longer_fails_each_sync_and_goes_on_where_it_stood(
    store: Store, hub_url: str, tmp_path: Path
) -> None:
    files, keys = tmp_path / "files", tmp_path / "keys"
    root = repository.create(Folder(files), keys).read_bytes()
    targets.sync(store.file, str(files), keys=keys)
    targets.sync(store.file, hub_url)
    files.rename(tmp_path / "gone")
    db = ("--db", str(store.file.path))
    assert run("sync", *db, "--keys", str(keys)).exit_code == 1
    result = run("forget", *db, str(files))
    assert result.stdout == f"{store.file.path} syncs with {files.as_uri()} no longer.\n"
    assert [target.url for target in store.status().targets] == [hub_url]
    assert run("sync", *db).exit_code == 0
    with pytest.raises(NotFoundError, match="does not sync with"):
        targets.forget(store.file, str(files))
    (tmp_path / "gone").rename(files)
    (report,) = targets.sync(store.file, str(files), keys=keys, root=root)
    assert report.pushed == 0
    assert len(store.status().targets) == 2


def test_forget_never_repeats_a_password(store: Store) -> None:
    url = "postgresql://ada:s3cret@127.0.0.1:1/nowhere"
    result = run("forget", "--db", str(store.file.path), url)
    assert result.exit_code == 1
    assert "s3cret" not in result.output


def test_the_json_of_each_command_has_everything(store: Store, hub_url: str, replica: Path) -> None:
    key = store.issue_key(ADA).key.api_key
    targets.sync(store.file, hub_url)
    (done,) = json.loads(run("revoke", "--at", hub_url, key, "--json").stdout)
    assert done.keys() == {
        "origin_id",
        "revocation_id",
        "api_key",
        "reason",
        "revoked_at",
        "is_new",
    }
    (receipt,) = json.loads(run("revocations", hub_url, "--json").stdout)
    assert receipt["api_key"] == key
    holder = {"store_id", "incarnation", "role", "last_seen_at", "silent_seconds"}
    assert receipt["have"] == []
    assert [item.keys() for item in receipt["lack"]] == [holder, holder]
    members = json.loads(run("fleet", hub_url, "--json").stdout)
    assert [member["role"] for member in members] == ["origin", "replica"]
    assert {member["missing_revocations"] for member in members} == {1}
    assert members[1].keys() >= {"incarnation", "as_of_at", "age_seconds", "behind", "is_stale"}


def test_the_table_fits_a_terminal_of_80_columns(
    store: Store, hub_url: str, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(
        hub_url,
        "UPDATE keystore.stores SET acknowledged_change = 9999",
        "UPDATE keystore.replicas SET as_of_at = now() - INTERVAL '90 weeks',"
        " as_of_change = 0, last_seen_at = now() - INTERVAL '99 days'",
    )
    monkeypatch.setattr("keystore.cli.common.is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    result = run("fleet", hub_url)
    assert result.exit_code == 0, "a view: stale is no failure"
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["store", "role", "version", "as", "of", "lag", "seen", "stale"]
    assert lines[2].split() == [
        *(store_id(replica), "replica", __version__, "90", "w", "9999", "99", "d", "yes")
    ]
    assert max(map(len, lines)) <= 80


def test_ages_are_short() -> None:
    wanted = {0: "0 s", 99.9: "99 s", 100: "1 m", 5999: "99 m", 6000: "1 h", 2 * 86_400: "2 d"}
    wanted |= {100 * 86_400: "14 w", 700 * 86_400: "1 y", 9_999 * 86_400: "27 y"}
    assert {age: human_age(age) for age in wanted} == wanted


def test_watch_ends_quietly_when_it_is_interrupted(
    store: Store, hub_url: str, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = 0

    def interrupt(_: float) -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("keystore.cli.fleet.time.sleep", interrupt)
    before = signal.getsignal(signal.SIGTERM)
    result = run("fleet", hub_url, "--watch")
    assert result.exit_code == 0
    assert result.stdout.count("store ") == 3
    assert signal.getsignal(signal.SIGTERM) == before


def test_watch_survives_a_hub_that_goes_away_for_a_while(store: Store) -> None:
    with running() as server:
        with targets.hub_admin(server.url) as admin:
            admin.init()
        targets.sync(store.file, server.url)
        command = [sys.executable, "-m", "keystore", "fleet", server.url, "--watch", "--json"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as watch:
            assert watch.stdout is not None
            assert watch.stderr is not None
            try:
                (first,) = json.loads(watch.stdout.readline())
                server.stop()
                said = json.loads(watch.stderr.readline())
                server.start()
                later = json.loads(watch.stdout.readline())
                while later[0]["silent_seconds"] <= first["silent_seconds"]:
                    later = json.loads(watch.stdout.readline())
            finally:
                watch.terminate()
            assert watch.wait(20) == 0
    assert said["error"]["code"] == "target_unavailable"
    assert first["store_id"] == store.info.store_id
