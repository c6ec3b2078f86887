"""Roles at the hub: each may do its own work over a real connection, and nothing else."""

import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql

from keystore import Store, Validator
from keystore.cli import main
from keystore.db import open_store
from keystore.errors import (
    InvalidInputError,
    NotFoundError,
    TargetError,
    TargetNotReadyError,
)
from keystore.sync import digest, engine, hub_grants, targets, urls
from keystore.sync.postgres import PostgresHub
from keystore.sync.protocols import CheckIn, Usage
from keystore.sync.verify import verify
from keystore.tables import TRACKED
from keystore.testing import postgres
from tests.conftest import NewStore

NEW = "01890a5d-ac96-774b-bcce-b302099a8099"
ROW = Usage(1, "api_key", 1, 1, None, 5, None, "2026-11-20 12:00:00", 7)
UNCHANGED = (
    "SELECT relname, relacl::TEXT FROM pg_class WHERE relnamespace = 'keystore'::regnamespace"
    " UNION ALL SELECT attname, attacl::TEXT FROM pg_attribute WHERE attacl IS NOT NULL"
    " UNION ALL SELECT role_name, access FROM keystore.grants"
    " UNION ALL SELECT proname, proacl::TEXT FROM pg_proc WHERE proname = 'is_origin'"
    " UNION ALL SELECT nspname, nspacl::TEXT FROM pg_namespace WHERE nspname = 'keystore'"
    " ORDER BY 1, 2"
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def as_role(url: str, role: str) -> str:
    host = urlsplit(url).netloc.rpartition("@")[2]
    return urlsplit(url)._replace(netloc=f"{quote(role, safe='')}@{host}").geturl()


def query(url: str, statement: str, *values: object) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as conn:
        cursor = conn.execute(statement, values)  # type: ignore[call-overload,unused-ignore]
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def role_name(database_url: str) -> Iterator[Callable[[str], str]]:
    """Names of roles that are gone after the test: roles belong to the whole server."""
    names: list[str] = []

    def make(name: str) -> str:
        names.append(f"{name} {uuid.uuid4().hex[:12]}")
        return names[-1]

    yield make
    with psycopg.connect(database_url, autocommit=True) as conn:
        for name in reversed(names):
            if conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,)).fetchall():
                for statement in (
                    "REASSIGN OWNED BY {} TO CURRENT_USER",
                    "DROP OWNED BY {}",
                    "DROP ROLE {}",
                ):
                    conn.execute(sql.SQL(statement).format(sql.Identifier(name)))


@dataclass
class World:
    """A hub of two origins, each with a role that pushes it and a replica's role."""

    url: str
    stores: list[Store]
    ids: list[str]
    origins: list[str]
    edges: list[str]
    names: list[str]


@pytest.fixture
def world(hub_url: str, new_store: NewStore, role_name: Callable[[str], str]) -> World:
    stores = [new_store("a.db"), new_store("b.db")]
    ids = [made.info.store_id for made in stores]
    pushers = [role_name("origin"), role_name("origin")]
    pullers = [role_name("edge"), role_name("edge")]
    for store_id, pusher, puller in zip(ids, pushers, pullers, strict=True):
        assert run("hub", "grant", hub_url, pusher, "--origin", store_id).exit_code == 0
        assert run("hub", "grant", hub_url, puller, "--replica-of", store_id).exit_code == 0
    origins = [as_role(hub_url, name) for name in pushers]
    edges = [as_role(hub_url, name) for name in pullers]
    for made, url in zip(stores, origins, strict=True):
        made.add_plan("free")
        made.add_account("ada@example.org", plan="free")
        made.issue_key("ada@example.org")
        targets.sync(made.file, url)
    return World(hub_url, stores, ids, origins, edges, pushers + pullers)


def test_a_store_and_its_replica_live_their_whole_life_without_being_the_owner(
    world: World, tmp_path: Path
) -> None:
    store, origin, edge = world.stores[0], world.origins[0], world.edges[0]
    path = tmp_path / "replica.db"
    targets.replicate(edge, path)
    doomed = store.issue_key("ada@example.org")
    (report,) = targets.sync(store.file, origin)
    assert report.pushed == 1
    with open_store(path) as replica:
        targets.sync(replica, edge)
    with Validator(path) as validator:
        assert validator.check(doomed.token, cost=3).allowed
    store.delete_key(doomed.key.api_key)
    kept = store.issue_key("ada@example.org")
    targets.sync(store.file, origin)
    targets.sync(store.file, origin, reconcile=True)
    with targets.hub_admin(world.url) as admin:
        admin.revoke(kept.token, reason="leaked")
    (report,) = targets.sync(store.file, origin)
    assert report.revocations == 1
    with open_store(path) as replica:
        (report,) = targets.sync(replica, edge)
        assert (report.usage, report.revocations) == (1, 1)
        assert digest.digest_store(replica) == digest.digest_store(store.file)
        for file, url in ((replica, edge), (store.file, origin)):
            with targets.opened(url) as target:
                assert target.source is not None
                assert verify(file, target.source, "").differences == []
        checked_in = query(world.url, "SELECT store_id::TEXT, as_of_change FROM keystore.replicas")
        assert checked_in == [(replica.info().store_id, replica.info().as_of_change)]
    assert query(world.url, "SELECT sum(amount) FROM keystore.usage_log") == [(3,)]


def test_an_origins_role_learns_what_its_keys_have_used_and_no_others(
    world: World, tmp_path: Path
) -> None:
    store, origin, edge = world.stores[0], world.origins[0], world.edges[0]
    store.add_service("tts")
    token = store.issue_key("ada@example.org", quotas={"tts": 10}).token
    targets.sync(store.file, origin)
    path = tmp_path / "replica.db"
    targets.replicate(edge, path)
    with Validator(path) as validator:
        assert validator.check(token, service="tts", cost=4).allowed
    with open_store(path) as replica:
        targets.sync(replica, edge)
    for url in (*world.origins, *world.edges[1:]):
        with targets.opened(url) as target:
            assert target.hub is not None
            found = target.hub.consumption(world.ids[0], {})
        assert [row.amount for used in found for row in used.rows] == ([4] if url == origin else [])
    targets.sync(store.file, origin)
    assert [quota.left for quota in store.quotas(token)] == [6]


def test_a_copy_of_another_store_is_reconciled_by_a_role(world: World, tmp_path: Path) -> None:
    store, origin = world.stores[0], world.origins[0]
    copy = tmp_path / "copy.db"
    store.file.conn.execute("VACUUM INTO ?", (str(copy),))
    store.delete_key(store.issue_key("ada@example.org").key.api_key)
    store.add_plan("lost")
    targets.sync(store.file, origin)
    with Store.open(copy) as twin:
        (report,) = targets.sync(twin.file, origin, reconcile=True)
        assert report.reconciled
        with targets.opened(origin) as target:
            assert target.source is not None
            assert verify(twin.file, target.source, "").differences == []


# -- what is refused ----------------------------------------------------------------------------


def usage(store: str, origin: str) -> str:
    return (
        "INSERT INTO keystore.usage_log (store_id, origin_id, usage_id, principal_type,"
        " principal_id, amount, occurred_at, nonce)"
        f" VALUES ({store}, {origin}, 1, 'api_key', 1, 1, now(), 1)"
    )


def entry(store: str, role: str, access: str) -> str:
    columns = "(store_id, role_name, access)"
    return f"INSERT INTO keystore.grants {columns} VALUES ({store}, {role}, '{access}')"


NEW_PLAN = "(9, 'mine', NULL, 'deny', NULL, NULL, NULL, now(), now(), 9)"
REGISTER = (
    "INSERT INTO keystore.stores (store_id, incarnation, token_prefix, schema_version,"
    " program_version, acknowledged_change) VALUES ({new}, {new}, '', 3, '', 0)"
)
CHECK_IN = (
    "INSERT INTO keystore.replicas (store_id, incarnation, origin_id, token, schema_version,"
    " program_version, as_of_change, as_of_at, seen_revocation)"
    " VALUES ({new}, {new}, {a}, {new}, 3, '', 9, now(), 9)"
)
SUPPRESS = "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
EVERYONE = [
    "CREATE TABLE keystore.mine (x INTEGER)",
    "CREATE FUNCTION keystore.mine() RETURNS INTEGER LANGUAGE sql RETURN 1",
    "CREATE OR REPLACE FUNCTION keystore.is_origin(id UUID) RETURNS BOOLEAN RETURN FALSE",
    "ALTER TABLE keystore.plans ADD COLUMN mine INTEGER",
    "ALTER TABLE keystore.plans DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE keystore.hub_info OWNER TO CURRENT_USER",
    "ALTER FUNCTION keystore.is_origin(UUID) RENAME TO mine",
    "DROP TABLE keystore.plans",
    "DROP SCHEMA keystore CASCADE",
    "DROP POLICY push ON keystore.plans",
    "CREATE POLICY mine ON keystore.plans USING (TRUE)",
    "TRUNCATE keystore.plans",
    "TRUNCATE keystore.usage_log",
    f"CREATE TRIGGER mine BEFORE UPDATE ON keystore.plans FOR EACH ROW {SUPPRESS}",
    "CREATE INDEX mine ON keystore.api_keys (api_key_hash)",
    "CREATE RULE mine AS ON INSERT TO keystore.plans DO INSTEAD NOTHING",
    "UPDATE keystore.hub_info SET hub_id = gen_random_uuid()",
    "UPDATE keystore.grants SET access = 'push'",
    "DELETE FROM keystore.grants",
    entry("{a}", "{owner}", "own"),
    entry("{b}", "CURRENT_USER", "push"),
    entry("{b}", "CURRENT_USER", "pull"),
    entry("{b}", "CURRENT_USER", "own"),
    entry("{a}", "CURRENT_USER", "own"),
    entry("{new}", "{other}", "own"),
    "INSERT INTO keystore.revocations (store_id, api_key, revocation_id) VALUES ({a}, {a}, 1)",
    "DELETE FROM keystore.revocations",
    "UPDATE keystore.revocation_heads SET head = 9",
    "SELECT * FROM keystore.revocation_heads",
    "UPDATE keystore.usage_log SET amount = 0",
    "DELETE FROM keystore.usage_log",
    "UPDATE keystore.stores SET store_id = gen_random_uuid()",
    "DELETE FROM keystore.stores",
    "DELETE FROM keystore.replicas",
    REGISTER,
    CHECK_IN,
    usage("{b}", "{b}"),
    usage("{a}", "{b}"),
    usage("{new}", "{a}"),
    f"INSERT INTO keystore.plans VALUES ({{b}}, {NEW_PLAN[1:]}",
    "INSERT INTO keystore.tombstones VALUES ({b}, 'APIKeys', 1, 9)",
    "SET ROLE {role}",
    "SET SESSION AUTHORIZATION {role}",
    "SET row_security = off; SELECT * FROM keystore.plans",
]
ORIGINS = [
    "SELECT * FROM keystore.replicas",
    entry("{new}", "CURRENT_USER", "own"),
    "UPDATE keystore.plans SET store_id = {b}",
    "UPDATE keystore.api_keys SET store_id = {new}",
]
REPLICAS = [
    "SELECT push_token FROM keystore.stores",
    "SELECT * FROM keystore.stores",
    "SELECT store_id FROM keystore.stores FOR UPDATE",
    "SELECT plan_id FROM keystore.plans FOR SHARE",
    "LOCK TABLE keystore.plans",
    "UPDATE keystore.plans SET name = 'mine'",
    "DELETE FROM keystore.api_keys",
    f"INSERT INTO keystore.plans VALUES ({{a}}, {NEW_PLAN[1:]}",
    "INSERT INTO keystore.tombstones VALUES ({a}, 'APIKeys', 1, 9)",
    "DELETE FROM keystore.tombstones",
    "UPDATE keystore.stores SET acknowledged_change = 0",
    "UPDATE keystore.replicas SET incarnation = store_id",
    "INSERT INTO keystore.usage_log (received_at) VALUES (now())",
    usage("{a}", "{a}"),
]


@pytest.mark.parametrize(
    ("kind", "statements"), [("origins", EVERYONE + ORIGINS), ("edges", EVERYONE + REPLICAS)]
)
def test_a_role_is_refused_what_is_not_its_own(
    world: World, kind: str, statements: list[str]
) -> None:
    names = {"a": world.ids[0], "b": world.ids[1], "new": NEW, "owner": "keystore", "other": "x"}
    values = {key: sql.Literal(value) for key, value in names.items()}
    allowed = []
    with psycopg.connect(getattr(world, kind)[0]) as conn:
        for statement in statements:
            text = sql.SQL(statement).format(  # type: ignore[arg-type,unused-ignore]
                **values, role=sql.Identifier(world.names[1])
            )
            try:
                conn.execute(text)
                allowed.append(statement)
            except psycopg.errors.InsufficientPrivilege:
                pass
            conn.rollback()
    assert allowed == []


@pytest.mark.parametrize("kind", ["origins", "edges"])
def test_a_role_sees_no_row_of_another_origin_by_any_way(world: World, kind: str) -> None:
    url, other = getattr(world, kind)[0], world.ids[1]
    tables = [table.hub_name for table in TRACKED]
    for table in [*tables, "stores", "tombstones", "revocations", "usage_log", "grants"]:
        seen = query(url, f"SELECT count(*) FROM keystore.{table} WHERE store_id = %s", other)
        assert seen == [(0,)], table
    # a function of one's own is not asked about rows that one may not see
    found = []
    with psycopg.connect(url, autocommit=True) as conn:
        conn.add_notice_handler(lambda notice: found.append(notice.message_primary))
        conn.execute(
            "CREATE FUNCTION pg_temp.leak(TEXT) RETURNS BOOLEAN LANGUAGE plpgsql COST 0.0001"
            " AS 'BEGIN RAISE NOTICE ''%'', $1; RETURN TRUE; END'"
        )
        conn.execute("SELECT FROM keystore.api_keys WHERE pg_temp.leak(store_id::TEXT)")
    assert set(found) == {world.ids[0]}


@pytest.mark.parametrize("kind", ["origins", "edges"])
def test_a_role_changes_no_row_of_another_origin(world: World, kind: str) -> None:
    before = query(world.url, "SELECT * FROM keystore.api_keys WHERE store_id = %s", world.ids[1])
    for statement in (
        "UPDATE keystore.api_keys SET label = 'mine' WHERE store_id = %s",
        "DELETE FROM keystore.api_keys WHERE store_id = %s",
    ):
        try:
            query(getattr(world, kind)[0], statement, world.ids[1])
        except psycopg.errors.InsufficientPrivilege:
            assert kind == "edges"
    after = query(world.url, "SELECT * FROM keystore.api_keys WHERE store_id = %s", world.ids[1])
    assert before
    assert after == before


def test_a_replicas_id_belongs_to_the_role_that_called_first(world: World, tmp_path: Path) -> None:
    path = tmp_path / "replica.db"
    targets.replicate(world.edges[0], path)
    with open_store(path) as file:
        mine = file.info()
    run("hub", "grant", world.url, world.names[3], "--replica-of", world.ids[0])
    thief = PostgresHub(world.edges[1])
    with pytest.raises(TargetError, match="row-level security"):
        thief.push_usage(mine.store_id, world.ids[0], [ROW])
    who = CheckIn(mine.store_id, mine.incarnation, world.ids[0], 3, "", 99, "2030-01-01", 0)
    with pytest.raises(TargetError, match="row-level security"):
        thief.check_in(who, last=None, token=NEW)
    assert thief.holds_usage(mine.store_id, 1, 7) is False
    thief.close()
    assert query(world.edges[1], "SELECT count(*) FROM keystore.replicas") == [(0,)]
    with open_store(path) as file:
        targets.sync(file, world.edges[0])


def test_whoever_is_granted_an_origin_takes_its_id_from_a_squatter(
    world: World, new_store: NewStore
) -> None:
    late = new_store("late.db")
    squatter = PostgresHub(world.edges[0])
    squatter.push_usage(late.info.store_id, world.ids[0], [ROW])
    with targets.hub_admin(world.url) as admin:
        hub_grants.grant(admin, world.names[0], origin_id=late.info.store_id)
    with pytest.raises(TargetError, match="row-level security"):
        squatter.push_usage(late.info.store_id, world.ids[0], [ROW])
    squatter.close()
    targets.sync(late.file, world.origins[0])


def test_a_role_may_push_one_origin_and_mirror_another(world: World, tmp_path: Path) -> None:
    run("hub", "grant", world.url, world.names[0], "--replica-of", world.ids[1])
    both, path = world.origins[0], tmp_path / "replica.db"
    targets.replicate(both, path, origin_id=world.ids[1])
    world.stores[0].add_plan("pro")
    targets.sync(world.stores[0].file, both)
    with open_store(path) as file:
        targets.sync(file, both)
    with pytest.raises(TargetError, match="row-level security"):
        targets.sync(world.stores[1].file, both)
    with psycopg.connect(both) as conn:
        locked = conn.execute("SELECT store_id::TEXT FROM keystore.stores FOR UPDATE").fetchall()
        assert locked == [(world.ids[0],)]


# -- what our own client says ---------------------------------------------------------------------


def test_a_role_that_may_not_push_says_so(world: World) -> None:
    for url in (world.origins[1], world.edges[0]):
        result = run("sync", url, "--db", str(world.stores[0].file.path))
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        assert "the hub refused" in result.stderr
        assert "keystore hub grant" in result.stderr


def test_a_url_that_failed_does_not_replace_the_one_that_worked(world: World) -> None:
    for store, right, wrong in (
        (world.stores[0], world.origins[0], world.origins[1]),
        (world.stores[0], world.origins[0], world.edges[0]),
    ):
        targets.sync(store.file, right)
        with pytest.raises(TargetError, match="the hub refused"):
            targets.sync(store.file, wrong)
        targets.sync(store.file)
    targets.sync(world.stores[0].file, world.url)  # it works, so it is the one to go on with
    assert targets.wanted_targets(world.stores[0].file, None, None) == [
        (urls.redacted(world.url), False)
    ]


def test_a_role_without_any_grant_is_told_whom_to_ask(
    world: World, role_name: Callable[[str], str], tmp_path: Path
) -> None:
    name = role_name("stranger")
    query(world.url, sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)).as_string())
    url = as_role(world.url, name)
    with pytest.raises(TargetError, match="permission denied") as caught:
        targets.replicate(url, tmp_path / "replica.db")
    assert "hub grant" in caught.value.hint
    with pytest.raises(TargetError, match="permission denied"):
        targets.sync(world.stores[0].file, url)


def test_a_replica_of_another_origin_is_told_that_it_may_not_be_its_own(
    world: World, tmp_path: Path
) -> None:
    with pytest.raises(TargetNotReadyError, match="did not grant it to this role"):
        targets.replicate(world.edges[0], tmp_path / "replica.db", origin_id=world.ids[1])


def test_a_grant_that_is_taken_while_a_push_runs_stops_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, pushed = world.stores[0], engine._send
    store.delete_key(store.file.conn.execute("SELECT api_key FROM APIKeys").fetchone()[0])

    def take_then_send(*arguments: object) -> int:
        query(world.url, "DELETE FROM keystore.grants WHERE store_id = %s", world.ids[0])
        return pushed(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(TargetError, match="the hub refused"):
        patch.setattr(engine, "_send", take_then_send)
        targets.sync(store.file, world.origins[0])
    run("hub", "grant", world.url, world.names[0], "--origin", world.ids[0])
    targets.sync(store.file, world.origins[0])
    with targets.opened(world.origins[0]) as target:
        assert target.source is not None
        assert verify(store.file, target.source, "").differences == []


@pytest.mark.parametrize("kind", ["origins", "edges"])
def test_only_the_owner_gives_rights(world: World, kind: str) -> None:
    before = query(world.url, UNCHANGED)
    for command in (
        ["grant", world.names[0], "--origin", world.ids[1]],
        ["grant", world.names[2], "--replica-of", world.ids[1]],
        ["grant", "new", "--replica-of", world.ids[1]],
        ["ungrant", world.names[1]],
        ["compact"],
    ):
        name, *arguments = command
        result = run("hub", name, getattr(world, kind)[0], *arguments)
        assert query(world.url, UNCHANGED) == before
        assert result.exit_code == 1
        assert result.stderr.startswith(("keystore: the hub refused: ", "keystore: only the hub's"))
        assert result.stderr.count("\n") == 1


# -- giving and taking ----------------------------------------------------------------------------

NAMES = ['we"ird', "it's", "back\\slash", "Ünicode ☂", "$$", "; DROP SCHEMA keystore --", "a{b}%s"]


def test_a_role_of_any_name_is_granted_and_twice_is_as_once(
    hub_url: str, role_name: Callable[[str], str]
) -> None:
    for name in map(role_name, NAMES):
        store_id = str(uuid.uuid4())
        with targets.hub_admin(hub_url) as admin:
            assert hub_grants.grant(admin, name, replica_of=store_id)
            assert hub_grants.grant(admin, name, origin_id=str(uuid.uuid4())) is False
            before = query(hub_url, UNCHANGED)
            assert hub_grants.grant(admin, name, replica_of=store_id) is False
            assert query(hub_url, UNCHANGED) == before
            assert query(as_role(hub_url, name), "SELECT count(*) FROM keystore.plans") == [(0,)]
            hub_grants.ungrant(admin, name)
            hub_grants.ungrant(admin, name)


def test_a_migrated_hubs_roles_have_the_rights_that_a_fresh_grant_gives(
    database_url: str, new_store: NewStore, role_name: Callable[[str], str], tmp_path: Path
) -> None:
    store = new_store()
    store.add_provider("openai")
    store_id = store.info.store_id
    pusher, puller, gone = (role_name(name) for name in ("origin", "edge", "gone"))
    with psycopg.connect(database_url) as conn:
        conn.execute((Path(__file__).parent / "fixtures" / "hub-v4.sql").read_bytes())
        for name, access in ((pusher, "push"), (puller, "pull"), (gone, "pull")):
            conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
            conn.execute(
                "INSERT INTO keystore.grants (store_id, role_name, access) VALUES (%s, %s, %s)",
                (store_id, name, access),
            )
        for name in (pusher, puller):
            usage = sql.SQL("GRANT USAGE ON SCHEMA keystore TO {}")
            conn.execute(usage.format(sql.Identifier(name)))
    assert run("hub", "migrate", database_url).exit_code == 0
    migrated = query(database_url, UNCHANGED)
    assert not any(gone in str(acl) for relation, acl in migrated if relation != gone)
    with targets.hub_admin(database_url) as admin:
        assert hub_grants.grant(admin, pusher, origin_id=store_id) is False
        assert hub_grants.grant(admin, puller, replica_of=store_id) is False
    assert query(database_url, UNCHANGED) == migrated
    targets.sync(store.file, as_role(database_url, pusher))
    targets.replicate(as_role(database_url, puller), tmp_path / "replica.db")


@pytest.mark.parametrize("name", ["", "x" * 64, "ü" * 32, "public", "none", "pg_x", "nul\0"])
def test_a_name_that_no_role_can_have_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError):
        hub_grants.script(name, origin_id=NEW)


@pytest.mark.parametrize("option", ["--origin", "--replica-of"])
def test_what_is_printed_does_in_psql_what_grant_does(
    hub_url: str, role_name: Callable[[str], str], option: str
) -> None:
    for name in map(role_name, NAMES):
        same_by_psql(hub_url, name, option, str(uuid.uuid4()))


def same_by_psql(hub_url: str, name: str, option: str, store_id: str) -> None:
    printed = run("hub", "grant", hub_url, name, option, store_id, "--print")
    assert printed.exit_code == 0
    empty = query(hub_url, UNCHANGED)
    psql = [str(postgres.binaries() / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", hub_url]
    done = subprocess.run(psql, input=printed.stdout, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    by_psql = query(hub_url, UNCHANGED)
    assert by_psql != empty
    assert run("hub", "grant", hub_url, name, option, store_id).exit_code == 0
    assert query(hub_url, UNCHANGED) == by_psql
    said = json.loads(run("hub", "grant", "-", name, option, store_id, "--print", "--json").stdout)
    assert said["sql"] == printed.stdout.rstrip("\n")


def test_a_role_that_nothing_binds_is_refused(
    hub_url: str, role_name: Callable[[str], str]
) -> None:
    for attribute in ("SUPERUSER", "BYPASSRLS", "IN ROLE CURRENT_USER"):
        name = role_name("mighty")
        create = sql.SQL("CREATE ROLE {} ").format(sql.Identifier(name)).as_string()
        query(hub_url, create + attribute)
        result = run("hub", "grant", hub_url, name, "--origin", NEW)
        assert result.exit_code == 1
        assert "does not bind" in result.stderr
    assert query(hub_url, "SELECT count(*) FROM keystore.grants") == [(0,)]


def test_a_new_role_is_made_to_log_in_and_has_no_password(
    hub_url: str, role_name: Callable[[str], str]
) -> None:
    name = role_name("new")
    result = run("hub", "grant", hub_url, name, "--origin", NEW)
    assert "without a password" in result.stdout
    assert "Made" not in run("hub", "grant", hub_url, name, "--origin", NEW).stdout
    found = "SELECT rolcanlogin, rolpassword FROM pg_authid WHERE rolname = %s"
    assert query(hub_url, found, name) == [(True, None)]


def test_an_ungranted_role_may_nothing_and_its_replica_may_move(
    world: World, tmp_path: Path
) -> None:
    path = tmp_path / "replica.db"
    targets.replicate(world.edges[0], path)
    assert run("hub", "ungrant", world.url, world.names[2]).exit_code == 0
    with open_store(path) as file:
        with pytest.raises(TargetError, match="permission denied"):
            targets.sync(file, world.edges[0])
        run("hub", "grant", world.url, world.names[3], "--replica-of", world.ids[0])
        targets.sync(file, world.edges[1])
    query(world.url, sql.SQL("DROP ROLE {}").format(sql.Identifier(world.names[2])).as_string())
    with targets.hub_admin(world.url) as admin, pytest.raises(NotFoundError):
        hub_grants.ungrant(admin, world.names[2])


def test_what_was_granted_to_a_role_that_is_gone_can_be_taken(
    hub_url: str, role_name: Callable[[str], str]
) -> None:
    name = role_name("gone")
    run("hub", "grant", hub_url, name, "--origin", NEW)
    for statement in ("DROP OWNED BY {}", "DROP ROLE {}"):
        query(hub_url, sql.SQL(statement).format(sql.Identifier(name)).as_string())
    assert run("hub", "ungrant", hub_url, name).exit_code == 0
    assert query(hub_url, "SELECT count(*) FROM keystore.grants") == [(0,)]


@pytest.mark.parametrize("right", ["CREATEROLE", "NOCREATEROLE"])
def test_an_owner_that_is_no_superuser_runs_a_hub(
    database_url: str, role_name: Callable[[str], str], store: Store, tmp_path: Path, right: str
) -> None:
    owner, origin, edge = role_name("owner"), role_name("origin"), role_name("edge")
    create = sql.SQL("CREATE ROLE {} LOGIN ").format(sql.Identifier(owner))
    query(database_url, create.as_string() + right)
    give = sql.SQL("ALTER DATABASE {} OWNER TO {}")
    names = (database_url.rpartition("/")[2], owner)
    query(database_url, give.format(*map(sql.Identifier, names)).as_string())
    owners_url = as_role(database_url, owner)
    assert run("hub", "init", owners_url).exit_code == 0
    if right == "NOCREATEROLE":
        result = run("hub", "grant", owners_url, origin, "--origin", store.info.store_id)
        assert result.exit_code == 1
        assert "permission denied to create role" in result.stderr
        assert "--print" in result.stderr
        for each in (origin, edge):
            statement = sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(each))
            query(database_url, statement.as_string())
    for role, option in ((origin, "--origin"), (edge, "--replica-of")):
        result = run("hub", "grant", owners_url, role, option, store.info.store_id)
        assert result.exit_code == 0
    targets.sync(store.file, as_role(database_url, origin))
    targets.replicate(as_role(database_url, edge), tmp_path / "replica.db")
    assert run("hub", "compact", owners_url).exit_code == 0


def test_a_grant_names_one_store(hub_url: str) -> None:
    assert run("hub", "grant", hub_url, "x").exit_code == 2
    both = run("hub", "grant", hub_url, "x", "--origin", NEW, "--replica-of", NEW)
    assert both.exit_code == 2


def test_nobody_else_has_any_right_at_a_hub(database_url: str) -> None:
    query(database_url, "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC")
    query(database_url, "ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC")
    with targets.hub_admin(database_url) as admin:
        admin.init()
    grants = (
        "SELECT a.grantee FROM pg_class AS c, aclexplode(c.relacl) AS a"
        " WHERE c.relnamespace = 'keystore'::regnamespace AND a.grantee = 0"
        " UNION ALL SELECT a.grantee FROM pg_namespace AS n, aclexplode(n.nspacl) AS a"
        " WHERE n.nspname = 'keystore' AND a.grantee = 0"
        " UNION ALL SELECT a.grantee FROM pg_proc AS p,"
        " aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a"
        " WHERE p.pronamespace = 'keystore'::regnamespace AND a.grantee = 0"
    )
    assert query(database_url, grants) == []
