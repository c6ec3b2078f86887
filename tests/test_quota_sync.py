"""What edges use of a quota comes back to the origin, is deducted once, and flows to all edges."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from keystore import Reason, Store, Validator, models, sql
from keystore.backup import backup, restore
from keystore.db import open_store
from keystore.sync import engine, targets
from keystore.sync.engine import Report
from keystore.sync.follow import Follower
from keystore.sync.memory import MemoryHub
from keystore.sync.postgres import PostgresHub
from keystore.sync.protocols import News
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


def test_nothing_is_written_where_nothing_was_used(fleet: Fleet) -> None:
    one = fleet.replicate()
    fleet.use(one, 5)
    fleet.use(fleet.store.file.path, 5)
    fleet.sync()
    before = fleet.store.status().last_change
    for _ in range(3):
        fleet.sync()
    assert fleet.store.status().last_change == before


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


def test_a_hub_is_asked_by_an_index_and_takes_any_number(hub_url: str) -> None:
    origin, replica = "01890a5d-ac96-774b-bcce-b302099a8057", "01890a5d-ac96-774b-bcce-b302099a8058"
    with psycopg.connect(hub_url, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO keystore.usage_log (store_id, usage_id, origin_id, principal_type,"
            " principal_id, service_id, amount, occurred_at) SELECT %s::UUID, n, %s, 'api_key', 1,"
            " nullif(n %% 100, 0), 1, now() FROM generate_series(1, 30000) AS n",
            (replica, origin),
        )
        conn.execute("ANALYZE keystore.usage_log")
        conn.execute(
            "INSERT INTO keystore.usage_log (store_id, usage_id, origin_id, principal_type,"
            " principal_id, service_id, amount, occurred_at) VALUES"
            " (%(replica)s, 40001, %(origin)s, 'api_key', 1, 1, 9223372036854775807, 'infinity'),"
            " (%(replica)s, 40002, %(origin)s, 'api_key', 1, 1, 9223372036854775807, 'infinity'),"
            " (%(replica)s, 40003, %(origin)s, 'api_key', 2, 1, -7, '-infinity')",
            {"replica": replica, "origin": origin},
        )
        plan = conn.execute(
            "EXPLAIN " + sql.named("hub")["consumption"],
            {"origin_id": origin, "stores": [replica], "settled": [29_999]},
        ).fetchall()
    text = "\n".join(row[0] for row in plan)
    assert text.count("usage_log_consumed") == 3, text
    assert "Seq Scan" not in text
    hub = PostgresHub(hub_url)
    try:
        (used,) = hub.consumption(origin, {replica: 29_999})
    finally:
        hub.close()
    assert (used.store_id, used.up_to) == (replica, 40_003)
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
    looks = 0

    class Silence:
        """Has no news, and ends it all after so many looks: idleness is no matter of time."""

        def wait(self, _: float) -> list[News]:
            nonlocal looks
            looks += 1
            if looks == 20:
                follower.stop()
            return []

    @contextmanager
    def opened(*_: object, **__: object) -> Iterator[MemoryHub]:
        yield hub

    monkeypatch.setattr(hub, "watch", lambda _: Silence())
    follower = Follower(store.file.path, "memory:", lambda _: None, opened=opened)
    follower.run()
    assert len(rounds) == 1
    assert store.quotas(token)[0].remaining_quota == 991
