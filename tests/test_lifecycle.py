"""A key's life, and the care for plans and accounts: what each step does, and what it refuses."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from keystore import KeystoreError, Reason, Store, Validator, db
from keystore.doctor import examine
from keystore.errors import InUseError, InvalidInputError, NotFoundError
from keystore.sync import digest, engine, targets
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from tests.test_cli import run

ADA = "ada@example.org"


def statuses(store: Store, key: str) -> list[tuple[str, str | None]]:
    return [(event.status, event.reason) for event in store.history(key)]


def test_during_the_overlap_both_keys_work_and_afterwards_the_old_one_does_not(
    store: Store,
) -> None:
    old = store.issue_key(ADA, label="laptop", networks=["192.0.2.0/24"], metadata={"a": [1]})
    new = store.rotate_key(old.token, overlap=timedelta(hours=1))
    assert (new.key.label, new.key.allowed_networks, new.key.metadata) == (
        "laptop",
        "192.0.2.0/24",
        '{"a": [1]}',
    )
    with Validator(store.file.path) as validator:
        for token in (old.token, new.token):
            assert validator.check(token, ip="192.0.2.1").allowed
        store.file.conn.execute(
            "UPDATE APIKeys SET expires_at = datetime(expires_at, '-1 hour') WHERE api_key = ?",
            (old.key.api_key,),
        )
        assert validator.check(old.token, ip="192.0.2.1").reason is Reason.EXPIRED
        assert validator.check(new.token, ip="192.0.2.1").allowed


def test_an_overlap_never_lengthens_a_keys_life(store: Store) -> None:
    old = store.issue_key(ADA, expires_at="2031-01-01")
    store.rotate_key(old.token, overlap=timedelta(days=36500))
    assert store.key(old.token).expires_at == "2031-01-01 00:00:00"


@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), timedelta(99999 * 7), timedelta.max])
def test_an_overlap_without_a_sensible_end_is_refused(store: Store, overlap: timedelta) -> None:
    old = store.issue_key("ada@example.org")
    before = store.status().last_change
    with pytest.raises(InvalidInputError, match="the overlap is "):
        store.rotate_key(old.token, overlap=overlap)
    assert store.status().last_change == before


def test_without_an_overlap_the_old_key_is_revoked_with_the_reason(store: Store) -> None:
    store.add_service("translation")
    old = store.issue_key(ADA, quotas={"translation": 100})
    new = store.rotate_key(old.key.api_key)
    assert statuses(store, old.token)[0] == ("revoked", f"rotated to {new.key.api_key}")
    assert [quota.remaining_quota for quota in store.quotas(new.token)] == [100]
    with pytest.raises(InvalidInputError, match="revoked"):
        store.rotate_key(old.token)


def test_the_timeline_tells_each_change_once_with_its_reason(store: Store) -> None:
    issued = store.issue_key(ADA)
    store.set_key_status(issued.token, "suspended", reason="unpaid")
    store.set_key_status(issued.token, "suspended", reason="again")
    store.set_key_status(issued.token, "assigned")
    store.revoke_key(issued.token, reason="leaked")
    assert statuses(store, issued.token) == [
        ("revoked", "leaked"),
        ("assigned", None),
        ("suspended", "unpaid"),
        ("assigned", "issued"),
    ]


def test_the_timeline_outlives_the_key(store: Store) -> None:
    issued = store.issue_key(ADA)
    store.revoke_key(issued.token, reason="leaked")
    store.delete_key(issued.token)
    assert statuses(store, issued.key.api_key.upper()) == [("deleted", None), ("revoked", "leaked")]
    with pytest.raises(NotFoundError):
        store.history("01890a5d-ac96-774b-bcce-b302099a8057")
    with pytest.raises(db.Error, match="append-only"):
        store.file.conn.execute("DELETE FROM APIKeyStatusEvents")
    with pytest.raises(db.Error, match="append-only"):
        store.file.conn.execute("UPDATE APIKeyStatusEvents SET status = 'assigned'")


@pytest.mark.parametrize(
    ("write", "is_active", "status"),
    [
        ("is_active = 0", 0, "revoked"),
        ("status = 'suspended'", 0, "suspended"),
        ("status = 'suspended', is_active = 1", 0, "suspended"),
        ("status = 'unassigned', is_active = 0", 0, "unassigned"),
        ("is_active = 1", 1, "assigned"),
    ],
)
def test_is_active_and_status_never_contradict_each_other(
    store: Store, write: str, is_active: int, status: str
) -> None:
    issued = store.issue_key(ADA)
    store.file.conn.execute(f"UPDATE APIKeys SET {write}")
    found = store.file.conn.execute("SELECT is_active, status FROM APIKeys").fetchone()
    assert found == (is_active, status)
    assert store.key(issued.token).is_active == bool(is_active)


@pytest.mark.parametrize(
    ("columns", "values", "found"),
    [
        ("is_active", "0", (0, "revoked")),
        ("status", "'unassigned'", (0, "unassigned")),
        ("is_active, status", "1, 'revoked'", (0, "revoked")),
        ("is_active, status", "0, 'assigned'", (0, "revoked")),
    ],
)
def test_a_key_is_never_born_with_a_contradiction(
    store: Store, columns: str, values: str, found: tuple[int, str]
) -> None:
    store.file.conn.execute(
        f"INSERT INTO APIKeys (api_key, account_id, api_key_hash, {columns})"
        f" VALUES ('01890a5d-ac96-774b-bcce-b302099a8057', 1, '{'a' * 64}', {values})"
    )
    rows = store.file.conn.execute("SELECT is_active, status FROM APIKeys").fetchall()
    assert rows == [found]


def test_a_status_that_changes_its_mind_takes_its_keys_along(store: Store) -> None:
    store.issue_key(ADA)
    store.add_status("trial", description="a month for nothing", allows_access=True)
    conn = store.file.conn
    conn.execute("UPDATE APIKeys SET status = 'trial'")
    for write, is_active in (
        ("allows_access = 0", 0),
        ("allows_access = 1", 1),
        ("is_active = 0", 0),
    ):
        conn.execute(f"UPDATE APIKeyStatuses SET {write} WHERE name = 'trial'")
        assert conn.execute("SELECT is_active FROM APIKeys").fetchone() == (is_active,)
    conn.execute("UPDATE APIKeyStatuses SET name = 'probation' WHERE name = 'trial'")
    assert conn.execute("SELECT status FROM APIKeys").fetchone() == ("probation",)


@pytest.mark.parametrize("foreign_keys", ["ON", "OFF"])
@pytest.mark.parametrize(
    "write",
    [
        "REPLACE INTO APIKeyStatuses (name, allows_access) VALUES ('trial', 0)",
        "UPDATE OR REPLACE APIKeyStatuses SET name = 'trial' WHERE name = 'suspended'",
        "DELETE FROM APIKeyStatuses WHERE name = 'trial'",
        "UPDATE APIKeyStatuses SET name = 'probation', allows_access = 0 WHERE name = 'trial'",
    ],
)
def test_a_status_that_is_taken_from_under_its_keys_closes_them(
    store: Store, foreign_keys: str, write: str
) -> None:
    store.issue_key(ADA)
    store.add_status("trial", allows_access=True)
    conn = store.file.conn
    conn.execute("UPDATE APIKeys SET status = 'trial'")
    conn.execute(f"PRAGMA foreign_keys = {foreign_keys}")
    try:
        conn.execute(write)
    except db.Error:
        assert foreign_keys == "ON"  # refused: nothing has changed
    assert [item.id for item in examine(store.file) if item.id == "contradiction"] == []
    conn.execute("DELETE FROM APIKeys")


def test_a_reason_is_not_taken_for_that_of_the_next_status(store: Store) -> None:
    issued = store.issue_key(ADA)
    conn = store.file.conn
    conn.execute("UPDATE APIKeys SET is_active = 0, status_reason = 'leaked'")
    conn.execute("UPDATE APIKeys SET is_active = 1")
    assert statuses(store, issued.token)[:2] == [("assigned", None), ("revoked", "leaked")]


@pytest.mark.parametrize(
    "values",
    ["1, 'no uuid', 'a', CURRENT_TIMESTAMP", "'x', '{uuid}', 'a', CURRENT_TIMESTAMP",
     "1, '{uuid}', 'a' || char(0), CURRENT_TIMESTAMP", "1, '{uuid}', 'a', 'yesterday'"],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["INSERT", "INSERT OR IGNORE"])
def test_an_event_that_could_not_be_pushed_is_refused(store: Store, values: str, verb: str) -> None:
    given = values.format(uuid="01890a5d-ac96-774b-bcce-b302099a8057")
    with pytest.raises(db.Error, match="written by triggers"):
        store.file.conn.execute(
            f"{verb} INTO APIKeyStatusEvents (api_key_id, api_key, status, occurred_at)"
            f" VALUES ({given})"
        )


def test_statuses_that_the_triggers_rely_on_cannot_lie(store: Store) -> None:
    for write in (
        "UPDATE APIKeyStatuses SET allows_access = 0 WHERE name = 'assigned'",
        "UPDATE APIKeyStatuses SET allows_access = 1 WHERE name = 'revoked'",
    ):
        with pytest.raises(db.Error, match="constraint"):
            store.file.conn.execute(write)
    with pytest.raises(db.Error, match="FOREIGN KEY"):
        store.issue_key(ADA)
        store.file.conn.execute("UPDATE APIKeys SET status = 'no such status'")


def test_a_keys_expiry_is_moved_and_taken_away(store: Store) -> None:
    token = store.issue_key(ADA).token
    with Validator(store.file.path) as validator:
        store.expire_key(token, "2020-01-01")
        assert validator.check(token).reason is Reason.EXPIRED
        assert store.key(token).state == "expired"
        store.expire_key(token, None)
        assert validator.check(token).allowed


def test_a_quota_is_set_again_and_not_added(store: Store) -> None:
    store.add_service("translation")
    token = store.issue_key(ADA, quotas={"translation": 5}).token
    assert store.set_quota(token, "translation", 10, renewal="daily").remaining_quota == 10
    assert [(q.initial_quota, q.renewal) for q in store.quotas(token)] == [(10, "daily")]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s.issue_key(ADA, networks=["192.0.2.1/24"]), InvalidInputError),
        (lambda s: s.issue_key(ADA, networks=["everywhere"]), InvalidInputError),
        (lambda s: s.issue_key(ADA, quotas={"nothing": 1}), NotFoundError),
        (lambda s: s.issue_key(ADA, quotas={"nothing": -1}), InvalidInputError),
        (lambda s: s.issue_key(ADA, renewal="hourly"), InvalidInputError),
        (lambda s: s.issue_key(ADA, metadata={"x": object()}), InvalidInputError),
        (lambda s: s.issue_key(ADA, metadata={"x": [float("nan")]}), InvalidInputError),
        (lambda s: s.change_plan("free", rename="pro"), KeystoreError),
        (lambda s: s.change_plan("missing"), NotFoundError),
        (lambda s: s.remove_plan("free"), InUseError),
        (lambda s: s.change_account(ADA, rename="bob@example.org"), KeystoreError),
        (lambda s: s.change_account(ADA, plan="missing"), NotFoundError),
        (lambda s: s.change_account("nobody@example.org"), NotFoundError),
        (lambda s: s.remove_account(ADA), InUseError),
        (lambda s: s.rotate_key("nothing"), NotFoundError),
        (lambda s: s.set_key_status(s.keys()[0].api_key, "missing"), NotFoundError),
        (lambda s: s.revoke_key(s.keys()[0].api_key, reason="a\0b"), InvalidInputError),
        (lambda s: s.expire_key(s.keys()[0].api_key, "soon"), InvalidInputError),
        (lambda s: s.set_quota(s.keys()[0].api_key, "missing", 1), NotFoundError),
        (lambda s: s.keys(status="missing"), NotFoundError),
        (lambda s: s.change_service("missing", is_active=False), NotFoundError),
        (lambda s: s.add_status("revoked"), KeystoreError),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    store: Store, call: object, error: type[KeystoreError]
) -> None:
    store.add_plan("pro")
    store.add_account("bob@example.org", plan="pro")
    store.issue_key(ADA)
    before = (store.status(), digest.digest_store(store.file))
    with pytest.raises(error) as caught:
        call(store)  # type: ignore[operator]
    assert (store.status(), digest.digest_store(store.file)) == before
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_plan_in_use_names_who_uses_it(store: Store) -> None:
    for number in range(5):
        store.add_account(f"user{number}@example.org", plan="free")
    with pytest.raises(InUseError, match=r"ada@example.org, user0@.*, user1@.* and 3 more"):
        store.remove_plan("free")


def test_a_rate_is_given_changed_and_taken_away(store: Store) -> None:
    plan = store.add_plan("pro", rate_limit=100, rate_window_seconds=60, rate_burst=5)
    assert (plan.rate_limit, plan.rate_window_seconds, plan.rate_burst) == (100, 60, 5)
    assert plan.rate == "100/60s, 5 at once"
    assert store.change_plan("pro", rename="max").rate == plan.rate
    assert store.change_plan("max", rate_burst=0).rate == "100/60s"
    assert store.change_plan("max", rate_limit=7, rate_window_seconds=1).rate == "7/1s"
    assert store.change_plan("max", rate_window_seconds=2).rate == "7/2s"
    assert store.change_plan("max", rate_limit=8).rate == "8/2s"
    assert store.change_plan("max", rate_limit=0).rate == "any"
    with pytest.raises(InvalidInputError):
        store.change_plan("max", rate_window_seconds=2)
    halves: tuple[dict[str, Any], ...] = (
        {"rate_limit": 1},
        {"rate_window_seconds": 1},
        {"rate_burst": 1},
        {"rate_limit": -1, "rate_window_seconds": 1},
        {"rate_limit": 10**10, "rate_window_seconds": 1},
    )
    for half in halves:
        with pytest.raises(InvalidInputError):
            store.add_plan("half", **half)
    assert [plan.name for plan in store.plans()] == ["free", "max"]


def test_plans_and_accounts_are_renamed_moved_and_removed(store: Store) -> None:
    token = store.issue_key(ADA).token
    store.add_plan("pro", max_staleness_seconds=60)
    assert (
        store.change_plan("pro", rename="max", max_staleness_seconds=0).max_staleness_seconds
        is None
    )
    assert store.change_account(ADA, rename="ADA@example.org", plan="max").plan == "max"
    with Validator(store.file.path) as validator:
        assert validator.check(token).plan == "max"
        store.change_account("ada@example.org", is_active=False)
        assert validator.check(token).reason is Reason.ACCOUNT_INACTIVE
        store.remove_account(ADA, with_keys=True)
        assert validator.check(token).reason is Reason.UNKNOWN
    store.remove_plan("max")
    assert [plan.name for plan in store.plans()] == ["free"]


def test_changing_nothing_writes_nothing(store: Store) -> None:
    token = store.issue_key(ADA).token
    before = store.status().last_change
    store.change_plan("free")
    store.change_account(ADA, plan="free", is_active=True)
    store.set_key_status(token, "assigned")
    store.expire_key(token, None)
    assert store.status().last_change == before


# -- on the way to a hub and to replicas -------------------------------------------------------


def test_everything_travels_and_a_replay_writes_no_timeline_of_its_own(
    store: Store, hub_url: str, tmp_path: Path
) -> None:
    store.add_service("translation")
    issued = store.issue_key(ADA, quotas={"translation": 100}, metadata={"team": "a"})
    replica = tmp_path / "replica.db"
    targets.sync(store.file, hub_url)
    targets.replicate(hub_url, replica)
    store.set_key_status(issued.token, "suspended", reason="unpaid")
    store.file.conn.execute(
        "INSERT INTO OAuthClients (client_id, account_id, client_secret_hash) VALUES ('c', 1, ?)",
        ("a" * 64,),
    )
    targets.sync(store.file, hub_url)
    with Store.open(replica) as copy:
        targets.sync(copy.file, hub_url)
        assert digest.digest_store(copy.file) == digest.digest_store(store.file)
        assert statuses(copy, issued.token) == [("suspended", "unpaid"), ("assigned", "issued")]
    with Validator(replica) as validator:
        assert validator.check(issued.token).reason is Reason.SUSPENDED
    with psycopg.connect(hub_url) as conn:
        timeline = conn.execute(
            "SELECT status, reason FROM keystore.api_key_status_events"
            " WHERE api_key = %s ORDER BY event_id DESC",
            (issued.key.api_key,),
        ).fetchall()
        quotas = conn.execute(
            "SELECT s.name, q.remaining_quota, q.initial_quota"
            " FROM keystore.api_key_service_quotas AS q"
            " JOIN keystore.services AS s USING (store_id, service_id)"
            " WHERE q.api_key_id = %s",
            (issued.key.api_key_id,),
        ).fetchall()
    assert timeline == [("suspended", "unpaid")]
    assert quotas == [("translation", 100, 100)]


def test_a_status_that_no_longer_allows_reaches_the_replicas_keys(
    store: Store, tmp_path: Path
) -> None:
    hub, replica = MemoryHub(), tmp_path / "replica.db"
    store.add_status("trial", allows_access=True)
    token = store.issue_key(ADA).token
    store.set_key_status(token, "trial")
    engine.push(store.file, hub, "memory:", Report(""))
    engine.replicate(hub, "memory:", replica, Report(""))
    with Validator(replica) as validator:
        assert validator.check(token).allowed
        store.file.conn.execute("UPDATE APIKeyStatuses SET allows_access = 0 WHERE name = 'trial'")
        engine.push(store.file, hub, "memory:", Report(""))
        with db.open_store(replica) as file:
            engine.pull(file, hub, "memory:", Report(""))
            assert digest.digest_store(file) == digest.digest_store(store.file)
        assert validator.check(token).reason is Reason.SUSPENDED


# -- by hand -----------------------------------------------------------------------------------


def test_a_keys_life_by_hand(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYSTORE_DB", str(store.file.path))
    run("service", "add", "translation")
    issued = json.loads(
        run(
            *("key", "issue", ADA, "--network", "192.0.2.0/24", "--quota", "translation=100"),
            *("--renew", "daily", "--meta", "team=a", "--json"),
        ).stdout
    )
    key, token = issued["key"]["api_key"], issued["token"]
    shown = run("key", "show", key).stdout
    assert "translation  100 of 100 left, renewed daily" in shown
    assert "192.0.2.0/24" in shown
    assert json.loads(run("key", "show", token, "--json").stdout)["quotas"][0]["service"] == (
        "translation"
    )
    assert run("check", token).exit_code == 1
    assert run("check", token, "--ip", "192.0.2.9").exit_code == 0
    assert run("key", "suspend", key, "--reason", "unpaid").stdout.startswith("Suspended key")
    assert run("key", "suspend", key).stdout == (
        f"Nothing to do: key {key} of {ADA} is suspended already.\n"
    )
    assert run("key", "resume", key).exit_code == 0
    assert run("key", "quota", key, "translation=7").stdout.startswith("7 units of translation")
    rotated = json.loads(run("key", "rotate", key, "--overlap", "1d", "--json").stdout)
    again = json.loads(run("key", "rotate", rotated["token"], "--json").stdout)
    assert run("check", rotated["token"], "--ip", "192.0.2.9").exit_code == 1
    assert run("key", "delete", again["token"]).exit_code == 0
    assert run("key", "expire", key, "now").exit_code == 0
    assert run("key", "delete", rotated["token"]).exit_code == 0
    lines = run("key", "history", key).stdout.splitlines()
    assert [line.split()[2] for line in lines[1:]] == ["assigned", "suspended", "assigned"]
    assert run("key", "list", "--status", "assigned").stdout.count("\n") == 2
    assert "unassigned" in run("key", "statuses").stdout
    assert run("key", "set-status", key, "unassigned").exit_code == 0
    assert run("account", "set", ADA, "--inactive").stdout.endswith("and not active.\n")
    assert run("plan", "set", "free", "--rename", "basic").exit_code == 0
    assert run("plan", "remove", "basic").stderr.startswith("keystore: plan 'basic' is in use by")
    assert run("service", "set", "translation", "--inactive").exit_code == 0
    assert run("account", "remove", ADA, "--with-keys").exit_code == 0
    assert run("plan", "remove", "basic").exit_code == 0
