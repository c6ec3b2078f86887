"""A ChangeLog that was shortened: everything or exactly what is missing, never a hole."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystore import Store, changelog
from keystore.changelog import Reader
from keystore.errors import CompactedLogError
from keystore.sync import digest
from keystore.sync.memory import MemoryHub
from tests.failures import once, push, reaching

FAST = settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
WRITES = [
    "INSERT OR REPLACE INTO Plans (plan_id, name) VALUES ({0}, 'plan {0}')",
    "UPDATE OR REPLACE Plans SET name = 'plan {0}' WHERE plan_id = {0} + 1",
    "DELETE FROM Plans WHERE plan_id = {0}",
    "INSERT OR REPLACE INTO Services (name) VALUES ('service {0}')",
]
write = st.tuples(st.sampled_from(WRITES), st.integers(1, 4)).map(lambda w: w[0].format(w[1]))
step = st.one_of(write, st.sampled_from(["push", "compact at", "compact below", "compact above"]))


def held(hub: MemoryHub, store: Store) -> digest.Buckets:
    with hub.pull(store.info.store_id, None) as cut:
        return cut.digests() or {}


@FAST
@given(steps=st.lists(step, max_size=12))
def test_a_target_gets_everything_or_what_it_lacks_whatever_was_compacted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    with Store.create(tmp_path_factory.mktemp("compact") / "origin.db") as store:
        near, far, acknowledged = MemoryHub(), MemoryHub(), 0
        push(store, far)
        for item in steps:
            if item == "push":
                push(store, near)
                assert held(near, store) == digest.digest_store(store.file)
                acknowledged = store.status().last_change
            elif item.startswith("compact"):
                by = {"at": 0, "below": -2, "above": 2}[item.split()[1]]
                with store.file.write() as conn:
                    changelog.compact(conn, max(0, acknowledged + by))
            else:
                store.file.conn.execute(item)
        for hub in (near, far, MemoryHub()):
            push(store, hub)
            assert held(hub, store) == digest.digest_store(store.file)
            assert push(store, hub).pushed == 0


@pytest.mark.parametrize("asked", ["changes", "everything"])
@pytest.mark.parametrize("floor", ["acknowledged", "head"])
def test_a_compaction_between_the_pages_of_a_push_leaves_no_hole(
    store: Store, asked: str, floor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = MemoryHub()
    if asked == "changes":
        push(store, hub)
    monkeypatch.setattr(Reader.__init__, "__kwdefaults__", {"page_size": 2})
    for number in range(5):
        store.add_plan(f"plan {number}")

    def compact() -> None:
        store.file.conn.execute("DELETE FROM Plans WHERE name = 'plan 0'")
        with store.file.write() as conn:
            acknowledged = (
                hub._stores[store.info.store_id].acknowledged_change if hub._stores else 0
            )
            changelog.compact(conn, acknowledged if floor == "acknowledged" else 1 << 40)
        store.add_service("after")

    with reaching(once("push.page", compact)):
        try:
            push(store, hub)
        except CompactedLogError:
            assert floor == "head"
        else:
            assert held(hub, store) == digest.digest_store(store.file)
    push(store, hub)
    assert held(hub, store) == digest.digest_store(store.file)


def test_a_log_is_compacted_whole_or_not_at_all(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), store.file.write() as conn:
        changelog.compact(conn, 3)
        raise ZeroDivisionError
    assert len(store.changes()) == store.status().last_change
    assert store.file.info().log_horizon == 0
