"""What edges use of a quota comes back to the origin, is deducted once, and flows to all edges."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result

from keystore import Decision, Reason, Store, Validator, models, quotas, sql
from keystore.admin.bulk import BulkIssue
from keystore.backup import backup, restore
from keystore.cli import main
from keystore.db import open_store
from keystore.doctor import examine
from keystore.errors import NotFoundError
from keystore.http.answers import answer
from keystore.http.unkey import verify
from keystore.scope import ScopedReader
from keystore.sync import engine, exchange, follow, targets, usage_files, usage_keys
from keystore.sync.engine import Report
from keystore.sync.follow import Follower
from keystore.sync.memory import MemoryHub
from keystore.sync.postgres import PostgresHub
from keystore.sync.protocols import News
from keystore.testing.memory import MemoryKeys
from tests.centre import Centre
from tests.failures import Children, once, reaching

ADA = "ada@example.org"


class Fleet:
    """An origin with one key of 1,000 units, and replicas of it."""

    def __init__(self, centre: Centre, store: Store, folder: Path) -> None:
        self.centre, self.store, self.folder = centre, store, folder
        store.add_service("tts")
        self.issued = store.issue_key(ADA, quotas={"tts": 1000})
        self.key = self.issued.key.api_key
        self.replicas: list[Path] = []
        self.sync_origin()

    def replicate(self) -> Path:
        path = self.folder / f"replica{len(self.replicas)}.db"
        engine.replicate(self.centre.hub, "hub:", path, Report(""))
        self.replicas.append(path)
        return path

    def use(self, path: Path, units: int, token: str | None = None) -> Reason:
        with Validator(path) as validator:
            return validator.check(token or self.issued.token, service="tts", cost=units).reason

    def sync_origin(self) -> None:
        self.centre.sync(self.store.file.path)

    def sync(self) -> None:
        """Bring usage up, settle it, and bring the result down."""
        for path in self.replicas:
            self.centre.sync(path)
        self.sync_origin()
        for path in self.replicas:
            self.centre.sync(path)

    def quota(self, path: Path | None = None, key: str | None = None) -> models.Quota:
        with Store.open(path or self.store.file.path) as store:
            (found,) = store.quotas(key or self.key)
        return found

    def statuses(self) -> list[str]:
        return [event.status for event in self.store.history(self.key)][::-1]


@pytest.fixture
def fleet(centre: Centre, store: Store, tmp_path: Path) -> Fleet:
    return Fleet(centre, store, tmp_path)


def test_what_all_edges_have_used_is_deducted_at_the_origin_once(fleet: Fleet) -> None:
    one, two = fleet.replicate(), fleet.replicate()
    assert [fleet.use(one, 100), fleet.use(two, 20), fleet.use(fleet.store.file.path, 3)] == [
        Reason.OK
    ] * 3
    for _ in range(3):
        fleet.sync()
        assert fleet.quota().remaining_quota == 877
        assert [fleet.quota(path).left for path in (fleet.store.file.path, one, two)] == [877] * 3
    fleet.use(one, 7)
    assert fleet.quota(one).left == 870
    fleet.sync()
    assert [fleet.quota(path).left for path in (fleet.store.file.path, one, two)] == [870] * 3


def test_a_key_that_is_used_up_at_the_edges_is_exhausted_everywhere_until_more_is_given(
    fleet: Fleet,
) -> None:
    one, two = fleet.replicate(), fleet.replicate()
    fleet.use(one, 600)
    fleet.use(two, 400)
    fleet.sync()
    assert fleet.statuses() == ["assigned", "exhausted"]
    for path in (one, two, fleet.store.file.path):
        assert fleet.use(path, 1) is Reason.QUOTA_EXCEEDED
    raised = fleet.store.top_up(fleet.key, "tts", 50)
    assert (raised.left, raised.initial_quota) == (50, 1050)
    assert fleet.statuses() == ["assigned", "exhausted", "assigned"]
    fleet.sync()
    assert fleet.use(one, 50) is Reason.OK
    assert fleet.use(one, 1) is Reason.QUOTA_EXCEEDED


def test_a_key_whose_last_quota_is_removed_is_exhausted_no_more(store: Store) -> None:
    for service in ("tts", "ocr"):
        store.add_service(service)
    removed, dropped, other = (
        store.issue_key(ADA, quotas={"tts": 0, "ocr": 0}).token for _ in range(3)
    )
    by_hand = store.issue_key(ADA).token
    for token in (removed, dropped, other):
        store.set_quota(token, "tts", 0)
    store.set_key_status(by_hand, "exhausted")

    def status(token: str) -> str:
        return store.key(token).status

    assert [status(token) for token in (removed, dropped, other)] == ["exhausted"] * 3
    store.remove_quota(removed, "tts")
    assert status(removed) == "exhausted"  # of the other
    store.remove_quota(removed, "ocr")
    assert store.history(removed)[0].reason == "no quota is used up any more"
    with Validator(store.file.path) as validator:
        assert validator.check(removed).allowed
        assert validator.check(removed, service="tts").reason is Reason.SERVICE
    store.file.conn.execute("DELETE FROM APIKeyServiceQuotas WHERE api_key_id = 2")
    exchange.settle_usage(store.file, None)
    assert not quotas.is_own_due(store.file.conn, store.file.info().store_id, time.time())
    assert [status(token) for token in (removed, dropped)] == ["assigned"] * 2
    # what an operator says, or an import, is not taken back
    assert [status(token) for token in (other, by_hand)] == ["exhausted"] * 2


def test_a_renewal_lifts_what_was_exhausted(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.store.set_quota(fleet.key, "tts", 10, renewal="daily")
    fleet.sync_origin()
    one, two = fleet.replicate(), fleet.replicate()
    fleet.use(one, 10)
    fleet.sync()
    assert fleet.use(two, 1) is Reason.QUOTA_EXCEEDED
    tomorrow = time.time() + 86_400
    monkeypatch.setattr("time.time", lambda: tomorrow)
    fleet.sync()
    assert fleet.statuses() == ["assigned", "exhausted", "assigned"]
    assert [fleet.use(two, 4), fleet.use(two, 7)] == [Reason.OK, Reason.QUOTA_EXCEEDED]


def test_a_quota_whose_first_use_is_in_a_later_period_is_deducted_in_that_period(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.store.set_quota(fleet.key, "tts", 10, renewal="daily")
    fleet.store.file.conn.execute(
        "UPDATE APIKeyServiceQuotas SET renewed_at = datetime(renewed_at, '-3 days')"
    )
    fleet.sync_origin()
    one = fleet.replicate()
    fleet.use(one, 6)
    fleet.use(fleet.store.file.path, 1)
    fleet.sync()
    fleet.sync()
    assert [fleet.quota(path).left for path in (fleet.store.file.path, one)] == [3, 3]


def test_a_lost_acknowledgement_deducts_nothing_twice(fleet: Fleet) -> None:
    one = fleet.replicate()
    fleet.use(one, 100)
    fleet.centre.sync(one)
    with open_store(one) as file:
        file.conn.execute("UPDATE SyncTargets SET acknowledged_usage = 0")
    for step in ("settle.received", "settle.store", "push.pending", "push.committed"):

        def lose() -> None:
            raise KeyboardInterrupt

        fleet.use(one, 1)
        fleet.centre.sync(one)
        with reaching(once(step, lose)), pytest.raises(KeyboardInterrupt):
            fleet.sync_origin()
    fleet.sync()
    assert [fleet.quota(path).left for path in (fleet.store.file.path, one)] == [896, 896]


def test_two_who_have_heard_of_the_same_usage_deduct_it_once(fleet: Fleet) -> None:
    used = [quotas.Consumed(1, 1, "2999-01-01 00:00:00", 100)]
    for after, up_to in ((0, 7), (0, 7), (0, 9), (7, 8)):
        with fleet.store.file.write() as conn:
            quotas.settle(conn, REPLICA, after, up_to, used, time.time())
    assert fleet.quota().remaining_quota == 800
    assert quotas.settled(fleet.store.file.conn)[REPLICA] == 8


def test_what_a_restored_replica_uses_is_deducted_though_the_lost_copy_came_further(
    fleet: Fleet,
) -> None:
    one = fleet.replicate()
    fleet.use(one, 1)
    with open_store(one) as file:
        backup(file, fleet.folder / "backup.db")
    for _ in range(5):
        fleet.use(one, 10)
    fleet.sync()
    assert fleet.quota().left == 949
    restored = fleet.folder / "restored.db"
    restore(fleet.folder / "backup.db", restored)
    fleet.replicas = [restored]
    fleet.use(restored, 100)
    fleet.sync()
    assert [fleet.quota(path).left for path in (fleet.store.file.path, restored)] == [849, 849]
    fleet.use(restored, 9)
    assert fleet.quota(restored).left == 840


def test_a_rotation_moves_what_is_left_and_what_edges_tell_later(fleet: Fleet) -> None:
    one = fleet.replicate()
    fleet.use(one, 100)
    fleet.use(fleet.store.file.path, 10)
    middle = fleet.store.rotate_key(fleet.key, overlap=timedelta(hours=1))
    new = fleet.store.rotate_key(middle.key.api_key)
    assert fleet.store.quotas(fleet.key) == []
    assert fleet.quota(key=new.key.api_key).left == 990
    assert fleet.use(fleet.store.file.path, 1) is Reason.SERVICE
    with Validator(fleet.store.file.path) as validator:
        assert validator.check(fleet.issued.token, cost=0).allowed
    fleet.sync()
    assert fleet.quota(key=new.key.api_key).left == 890
    assert fleet.quota(one, key=new.key.api_key).left == 890


def test_a_rotation_of_a_key_that_has_used_up_all_moves_that_too(store: Store) -> None:
    store.add_service("tts")
    issued = store.issue_key(ADA, quotas={"tts": 10})
    with Validator(store.file.path) as validator:
        assert validator.check(issued.token, service="tts", cost=10).allowed
    successor = store.rotate_key(issued.token, overlap=timedelta(hours=1))
    assert successor.key.status == "exhausted"
    with Validator(store.file.path) as validator:
        assert validator.check(successor.token).reason is Reason.QUOTA_EXCEEDED
        assert validator.check(issued.token).allowed  # which has no quotas any more
    assert examine(store.file) == []


def test_nothing_is_written_where_nothing_was_used(fleet: Fleet) -> None:
    one = fleet.replicate()
    fleet.use(one, 5)
    fleet.use(fleet.store.file.path, 5)
    fleet.sync()
    before = fleet.store.status().last_change
    for _ in range(3):
        fleet.sync()
    assert fleet.store.status().last_change == before


_OF_A_KEY = "principal_type=? AND principal_id=? AND occurred_at>?"


@pytest.mark.parametrize(
    ("statement", "path"),
    [
        ("own_use", "SEARCH l USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        *(
            (name, f"SEARCH l USING INDEX idx_usagelog_principal ({_OF_A_KEY})")
            for name in ("count_use", "of_key")
        ),
    ],
    ids=str,
)
def test_usage_that_is_settled_or_anothers_is_not_read(
    store: Store, statement: str, path: str
) -> None:
    text = sql.named("quotas")[statement]
    values = dict.fromkeys(re.findall(r":([a-z_]+)", text), 1)
    plan = [row[3] for row in store.file.conn.execute(f"EXPLAIN QUERY PLAN {text}", values)]
    assert [step for step in plan if " l " in step] == [path]


def test_usage_without_a_quota_is_passed_over_in_large_steps(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keystore.quotas.MOST_UNSETTLED", 5)
    changes = []
    for _ in range(10):
        with Validator(fleet.store.file.path) as validator:
            validator.check(fleet.issued.token)
        fleet.sync_origin()
        changes.append(fleet.store.status().last_change)
    assert len(set(changes)) == 3


ORIGIN, REPLICA = "01890a5d-ac96-774b-bcce-b302099a8057", "01890a5d-0000-774b-bcce-000000000042"
_ADD_USAGE = (
    "INSERT INTO keystore.usage_log (store_id, usage_id, origin_id, principal_type, principal_id,"
    " service_id, amount, occurred_at) "
)


def test_a_hub_reads_what_is_new_and_not_what_is_settled_or_anothers(hub_url: str) -> None:
    with psycopg.connect(hub_url, autocommit=True) as conn:
        # 60 replicas of 1,000 rows each; a third are ours
        conn.execute(
            _ADD_USAGE
            + "SELECT format('01890a5d-0000-774b-bcce-%%s', lpad(s::TEXT, 12, '0'))::UUID,"
            " n, CASE WHEN s > 40 THEN %s::UUID ELSE gen_random_uuid() END, 'api_key', 1, 1, 1,"
            " now()"
            " FROM generate_series(1, 60) AS s, generate_series(1, 1000) AS n",
            (ORIGIN,),
        )
        conn.execute("ANALYZE keystore.usage_log")
        replicas = [f"01890a5d-0000-774b-bcce-{number:012}" for number in range(41, 61)]
        plan = conn.execute(
            "EXPLAIN (ANALYZE) " + sql.named("hub")["consumption"],
            {"origin_id": ORIGIN, "stores": replicas, "settled": [990] * 20},
        ).fetchall()
    text = "\n".join(row[0] for row in plan)
    assert "Seq Scan" not in text, text
    removed = re.findall(r"Rows Removed by [A-Za-z ]+: (\d+)", text)
    assert sum(map(int, removed)) < 1000, text
    hub = PostgresHub(hub_url)
    try:
        found = hub.consumption(ORIGIN, dict.fromkeys(replicas, 990))
    finally:
        hub.close()
    assert [used.store_id for used in found] == replicas
    assert {(used.up_to, used.rows[0].amount) for used in found} == {(1000, 10)}


def test_no_number_that_a_replica_tells_stops_the_origin(hub_url: str) -> None:
    with psycopg.connect(hub_url, autocommit=True) as conn:
        conn.execute(
            _ADD_USAGE
            + "VALUES (%(replica)s, 1, %(origin)s, 'api_key', 1, 1, %(most)s, 'infinity'),"
            " (%(replica)s, 2, %(origin)s, 'api_key', 1, 1, %(most)s, 'infinity'),"
            " (%(replica)s, 3, %(origin)s, 'api_key', 2, 1, -7, '-infinity')",
            {"replica": REPLICA, "origin": ORIGIN, "most": 2**63 - 1},
        )
    hub = PostgresHub(hub_url)
    try:
        (used,) = hub.consumption(ORIGIN, {})
    finally:
        hub.close()
    assert (used.store_id, used.up_to) == (REPLICA, 3)
    assert sorted(row.amount for row in used.rows) == [0, 1 << 62]


@pytest.mark.parametrize(
    "step", ["settle.own", "settle.received", "settle.store", "push.committed"]
)
def test_usage_is_deducted_once_through_a_kill(
    store: Store, hub_url: str, tmp_path: Path, children: Children, step: str
) -> None:
    store.add_service("tts")
    token = store.issue_key(ADA, quotas={"tts": 1000}).token
    targets.sync(store.file, hub_url)
    replica = tmp_path / "replica.db"
    targets.replicate(hub_url, replica)
    for path, cost in ((store.file.path, 10), (replica, 100)):
        with Validator(path) as validator:
            assert validator.check(token, service="tts", cost=cost).allowed
    with open_store(replica) as file:
        targets.sync(file, hub_url)
    status, said = children.run("sync", hub_url, "--db", store.file.path, step=step)
    assert status == -9, said
    targets.sync(store.file, hub_url)
    with open_store(replica) as file:
        targets.sync(file, hub_url)
    for path in (store.file.path, replica):
        with Store.open(path) as opened:
            assert [quota.left for quota in opened.quotas(token)] == [890]


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    running = Children()
    yield running
    running.close()


def follow_for(
    looks: int,
    store: Store,
    hub: MemoryHub,
    monkeypatch: pytest.MonkeyPatch,
    poll: float | None = None,
) -> None:
    """Follow a hub that has no news, until it was asked so often: idleness is no matter of time."""

    class Silence:
        asked = 0

        def wait(self, _: float) -> list[News]:
            self.asked += 1
            if self.asked == looks:
                follower.stop()
            return []

    @contextmanager
    def opened(*_: object, **__: object) -> Iterator[MemoryHub]:
        yield hub

    monkeypatch.setattr(hub, "watch", lambda _: Silence())
    follower = Follower(store.file.path, "memory:", lambda _: None, opened=opened, poll=poll)
    follower.run()


def test_a_follower_at_work_settles_now_and_then(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "SETTLE_SECONDS", 1e6)
    store.add_service("tts")
    token = store.issue_key(ADA, quotas={"tts": 1000}).token
    seen: list[int] = []
    sync_opened = targets.sync_opened

    def used(*args: object, **kwargs: object) -> None:
        with Validator(store.file.path) as validator:
            assert validator.check(token, service="tts").allowed
        sync_opened(*args, **kwargs)  # type: ignore[arg-type]
        seen.append(store.quotas(token)[0].remaining_quota)

    monkeypatch.setattr(targets, "sync_opened", used)
    follow_for(3, store, MemoryHub(), monkeypatch, poll=1e-9)
    assert seen == [999] * 3
    assert store.quotas(token)[0].left == 997


def test_an_idle_follower_settles_once_and_then_stays_idle(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = MemoryHub()
    store.add_service("tts")
    token = store.issue_key(ADA, quotas={"tts": 1000}).token
    rounds: list[int] = []
    sync_opened = targets.sync_opened

    def counted(*args: object, **kwargs: object) -> None:
        sync_opened(*args, **kwargs)  # type: ignore[arg-type]
        rounds.append(store.status().last_change)

    monkeypatch.setattr(targets, "sync_opened", counted)
    with Validator(store.file.path) as validator:
        assert validator.check(token, service="tts", cost=9).allowed
    follow_for(20, store, hub, monkeypatch)
    assert len(rounds) == 1
    assert store.quotas(token)[0].remaining_quota == 991


def test_usage_files_are_deducted_once_in_any_order(fleet: Fleet, tmp_path: Path) -> None:
    one = fleet.replicate()
    folder, key = tmp_path / "out", tmp_path / "usage.key"
    folder.mkdir()
    files = []
    with open_store(one) as file:
        enrolment, *_ = usage_keys.make_key(file, key)
        replica_id = file.info().store_id
        for cost in (1, 20, 300):
            fleet.use(one, cost)
            files += [Path(item.path) for item in usage_files.export(file, folder, key)]
    store = fleet.store.file
    usage_keys.enroll(store, enrolment)

    for file_, left, rows in ((2, 700, 0), (0, 699, 1), (0, 699, 1), (1, 679, 3), (2, 679, 3)):
        usage_files.ingest(store, [files[file_]])
        assert fleet.quota().left == left
        assert quotas.settled(store.conn).get(replica_id, 0) == rows
        fleet.sync_origin()
        with open_store(one) as file:  # (the hub gets no usage of it)
            engine.pull(file, fleet.centre.hub, "hub:", Report(""))
        assert fleet.quota(one).left == left - {0: 321, 1: 320, 3: 0}[rows]


@pytest.mark.parametrize("step", ["ingest.verified", "ingest.inserted", "ingest.taken"])
def test_a_usage_file_is_deducted_once_through_a_kill(
    store: Store, tmp_path: Path, children: Children, step: str
) -> None:
    store.add_service("tts")
    token = store.issue_key(ADA, quotas={"tts": 1000}).token
    hub, replica, key = MemoryHub(), tmp_path / "replica.db", tmp_path / "usage.key"
    engine.push(store.file, hub, "memory:", Report(""))
    engine.replicate(hub, "memory:", replica, Report(""))
    with Validator(replica) as validator:
        assert validator.check(token, service="tts", cost=100).allowed
    with open_store(replica) as file:
        usage_keys.enroll(store.file, usage_keys.make_key(file, key)[0])
        (written,) = usage_files.export(file, tmp_path, key)
    order = ("usage", "ingest", written.path, "--db", store.file.path)
    status, said = children.run(*order, step=step)
    assert status == -9, said
    assert children.run(*order)[0] == 0
    assert [quota.left for quota in store.quotas(token)] == [900]


def test_keys_get_the_quotas_of_their_plan_unless_others_are_given(store: Store) -> None:
    for name in ("tts", "ocr"):
        store.add_service(name)
    store.set_plan_quota("free", "tts", 5, renewal="daily")
    store.set_plan_quota("free", "ocr", 6)
    alone = store.issue_key(ADA, quotas={"ocr": 9})
    before = store.keys()
    rows = [BulkIssue(account=ADA), BulkIssue(account=ADA)]
    assert store.issue_keys(rows, write_token=lambda _: None) == 2
    issued = store.keys()
    found = [
        [(quota.service, quota.left, quota.renewal) for quota in store.quotas(key.api_key)]
        for key in issued
    ]
    assert found == [
        [("ocr", 9, "never"), ("tts", 5, "daily")],
        *[[("ocr", 6, "never"), ("tts", 5, "daily")]] * 2,
    ]
    store.remove_plan_quota("free", "tts")
    assert [quota.service for quota in store.plan_quotas("free")] == ["ocr"]
    assert [quota.service for quota in store.quotas(store.issue_key(ADA).token)] == ["ocr"]
    assert [quota.service for quota in store.quotas(alone.token)] == ["ocr", "tts"]
    assert before == [alone.key]
    with pytest.raises(NotFoundError):
        store.remove_plan_quota("free", "tts")


def test_a_quota_is_topped_up_in_its_period_and_taken_away(store: Store) -> None:
    store.add_service("tts")
    token = store.issue_key(ADA, quotas={"tts": 10}).token
    with Validator(store.file.path) as validator:
        assert validator.check(token, service="tts", cost=8).allowed
        assert store.top_up(token, "tts", 5).left == 7
        assert validator.check(token, service="tts", cost=7).allowed
        assert not validator.check(token, service="tts").allowed
        store.remove_quota(token, "tts")
        assert validator.check(token, service="tts").reason is Reason.SERVICE
    with pytest.raises(NotFoundError):
        store.top_up(token, "tts", 5)


def test_commands_set_raise_show_and_take_quotas(store: Store) -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, "--db", str(store.file.path)])

    store.add_service("tts")
    said = run("plan", "quota", "free", "tts=10", "--renew", "monthly")
    assert said.output == "Plan free gives 10 units of tts, renewed monthly.\n"
    key = store.issue_key(ADA).key.api_key
    assert "15 units of tts" in run("key", "quota", key, "tts=+5").output
    (shown,) = json.loads(run("key", "quotas", key, "--json").output)
    assert (shown["left"], shown["initial_quota"], shown["renewal"]) == (15, 15, "monthly")
    assert shown["renews_at"].endswith("-01 00:00:00")
    assert "15 of 15 left" in run("key", "show", key).output
    assert run("key", "quota", key, "tts=none").exit_code == 0
    assert run("key", "quota", key, "tts=+1").exit_code == 1
    assert run("key", "quota", key, "tts=+1", "--renew", "daily").exit_code == 2
    assert "tts" in run("plan", "quotas").output
    assert run("plan", "quota", "free", "tts=+1").exit_code == 2
    assert run("plan", "quota", "free", "tts=none").exit_code == 0
    assert run("plan", "quota", "free", "tts=none").exit_code == 1


def test_a_quota_that_is_used_up_is_429_until_it_renews(store: Store) -> None:
    store.add_service("tts")
    token = store.issue_key(ADA, quotas={"tts": 1}, renewal="daily").token
    forever = store.issue_key(ADA, quotas={"tts": 0}).token
    with Validator(store.file.path) as validator:
        yes = answer(validator.check(token, service="tts"), "tts")
        no = answer(validator.check(token, service="tts"), "tts")
        never = answer(validator.check(forever, service="tts"), "tts")
    assert (yes.status, no.status, never.status) == (200, 429, 429)
    headers = dict(no.headers)
    assert 0 < int(headers["Retry-After"]) <= 86_400
    assert headers["RateLimit-Policy"] == '"quota";q=1'
    assert headers["RateLimit"].startswith('"quota";r=0;t=')
    assert json.loads(no.body)["reason"] == "quota_exceeded"
    assert "Retry-After" not in dict(never.headers)
    assert answer(validator_decision(), "tts", is_nginx=True).status == 403


def validator_decision() -> Decision:
    return Decision(allowed=False, reason=Reason.QUOTA_EXCEEDED)


def test_keys_in_memory_spend_quotas_as_a_store_does(store: Store) -> None:
    keys = MemoryKeys()
    store.add_service("tts")
    memory, real = keys.issue(quotas={"tts": 5}), store.issue_key(ADA, quotas={"tts": 5}).token
    with Validator(store.file.path) as validator:
        for cost in (0, 3, 3, 2, 0, 1):
            one = keys.check(memory, service="tts", cost=cost)
            other = validator.check(real, service="tts", cost=cost)
            assert one.reason is other.reason
            assert one.quota is not None
            assert other.quota is not None
            assert one.quota.remaining == other.quota.remaining


def test_the_doctor_finds_quotas_that_cannot_be(store: Store) -> None:
    store.add_service("tts")
    key = store.issue_key(ADA, quotas={"tts": 10}).key.api_key
    store.set_key_status(key, "exhausted")
    store.file.conn.execute("UPDATE APIKeyServiceQuotas SET remaining_quota = 11")
    assert {item.id for item in examine(store.file)} == {"exhausted", "quota_above_initial"}
    targets.sync_opened(store.file, MemoryHub(), Report("memory:"))
    assert {item.id for item in examine(store.file)} == {"quota_above_initial"}
    assert [event.status for event in store.history(key)] == ["assigned", "exhausted", "assigned"]


def test_a_part_of_the_rows_tells_each_replica_up_to_where_it_is_settled(store: Store) -> None:
    store.add_service("tts")
    with Validator(store.file.path) as validator:
        token = store.issue_key(ADA, quotas={"tts": 10}).token
        assert validator.check(token, service="tts").allowed
    store.set_plan_quota("free", "tts", 5)
    targets.sync_opened(store.file, MemoryHub(), Report("memory:"))
    for kind in ("account", "service"):
        reader = ScopedReader(store.file, kind, 1)
        assert sum(len(page.rows) for page in reader) > 3
        assert (reader.counts["UsageSettlements"], reader.counts["PlanServiceQuotas"]) == (1, 0)


def test_a_key_is_refused_for_what_is_used_up_and_may_use_the_rest(store: Store) -> None:
    for name in ("tts", "ocr"):
        store.add_service(name)
    token = store.issue_key(ADA, quotas={"tts": 0, "ocr": 7}).token
    found = []
    with Validator(store.file.path) as validator:
        for query in ("tts", "tts OR ocr", "tts AND ocr"):
            body = json.dumps({"key": token, "permissions": query}).encode()
            found.append(json.loads(verify(validator, body, None).body)["data"])
    assert [data["code"] for data in found] == ["USAGE_EXCEEDED", "VALID", "USAGE_EXCEEDED"]
    assert [data["credits"] for data in found] == [0, 6, 0]
