"""What an origin deducts of its quotas, and when it would write at all."""

from collections.abc import Callable

import pytest

from keystore import Store, quotas
from keystore.quotas import Consumed

NOON = 1795176000.0  # 2026-11-20 12:00:00
EDGE = "01890a5d-ac96-774b-bcce-b302099a8057"
ADA = "ada@example.org"


@pytest.fixture
def origin(store: Store) -> Store:
    """An origin with a key that has 100 units of a service, for ever."""
    store.add_service("tts")
    store.set_quota(store.issue_key(ADA).key.api_key, "tts", 100)
    return store


def written(store: Store, act: Callable[..., None], *values: object, **options: object) -> bool:
    """Call ``act`` in a transaction; return whether the ChangeLog says that anything changed."""

    def head() -> int:
        (found,) = store.file.conn.execute("SELECT max(change_id) FROM ChangeLog").fetchone()
        return int(found)

    before = head()
    with store.file.write() as conn:
        act(conn, *values, **options)
    return head() > before


def is_due(store: Store) -> bool:
    with store.file.read() as conn:
        found = quotas.is_own_due(conn, store.file.info().store_id, NOON)
    assert type(found) is bool
    return found


def settle_own(store: Store, **options: object) -> bool:
    return written(store, quotas.settle_own, store.file.info().store_id, NOON, **options)


def settled(store: Store) -> int:
    return quotas.settled(store.file.conn).get(store.file.info().store_id, 0)


def used(store: Store, amount: int, *, service_id: int | None = 1, rows: int = 1) -> None:
    store.file.conn.executemany(
        "INSERT INTO UsageLog (principal_type, principal_id, service_id, amount)"
        " VALUES ('api_key', 1, ?, ?)",
        [(service_id, amount)] * rows,
    )


def left(store: Store) -> int:
    return store.quotas(store.keys()[0].api_key)[0].remaining_quota


def test_nothing_is_due_and_nothing_is_written_where_nothing_was_used(origin: Store) -> None:
    assert not is_due(origin)
    assert not settle_own(origin)
    assert not settle_own(origin, is_whole=True)
    assert (left(origin), settled(origin)) == (100, 0)


def test_what_was_used_is_due_and_deducted_once(origin: Store) -> None:
    used(origin, 7)
    assert is_due(origin)
    assert settle_own(origin)
    assert (left(origin), settled(origin)) == (93, 1)
    assert not is_due(origin)
    assert not settle_own(origin)


def test_usage_without_a_quota_is_noted_only_now_and_then(
    origin: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "MOST_UNSETTLED", 5)
    used(origin, 1, service_id=None, rows=4)
    assert not is_due(origin)
    assert not settle_own(origin)
    used(origin, 1, service_id=None)
    assert is_due(origin)
    assert settle_own(origin)
    assert (left(origin), settled(origin)) == (100, 5)
    used(origin, 1, service_id=None, rows=4)
    assert not is_due(origin)


def test_all_is_noted_where_that_is_asked_for(origin: Store) -> None:
    used(origin, 1, service_id=None)
    assert not settle_own(origin)
    assert settle_own(origin, is_whole=True)
    assert settled(origin) == 1
    assert not settle_own(origin, is_whole=True)


@pytest.mark.parametrize("renewal", ["daily", "monthly"])
def test_a_renewal_is_due_and_comes_before_what_was_used_after_it(
    origin: Store, renewal: str
) -> None:
    key = origin.keys()[0].api_key
    acts: list[Callable[[], bool]] = [
        lambda: settle_own(origin),
        lambda: written(origin, quotas.deduct, [], NOON),
    ]
    for act in acts:
        origin.set_quota(key, "tts", 100, renewal=renewal)
        origin.file.conn.execute(
            "UPDATE APIKeyServiceQuotas SET remaining_quota = 1, renewed_at = '2026-10-20 00:00:00'"
        )
        assert is_due(origin)
        assert act()
        assert left(origin) == 100
        assert not is_due(origin)


def test_a_key_that_has_a_unit_again_is_due(origin: Store) -> None:
    origin.set_key_status(origin.keys()[0].api_key, "exhausted")
    assert is_due(origin)
    assert settle_own(origin)
    assert origin.keys()[0].status == "assigned"


def test_usage_is_deducted_by_whoever_is_at_the_very_row_before_it(origin: Store) -> None:
    rows = [Consumed(1, 1, "2999-11-20 12:00:00", 7)]
    assert not written(origin, quotas.settle, EDGE, 5, 9, rows, NOON)
    assert written(origin, quotas.settle, EDGE, 0, 5, rows, NOON)
    assert not written(origin, quotas.settle, EDGE, 0, 9, rows, NOON)
    assert not written(origin, quotas.settle, EDGE, 5, 5, rows, NOON)
    assert not written(origin, quotas.settle, EDGE, 5, 4, rows, NOON)
    assert quotas.settled(origin.file.conn) == {EDGE: 5}
    assert left(origin) == 93


def test_a_note_of_what_is_settled_never_goes_back_and_is_not_repeated(origin: Store) -> None:
    assert written(origin, quotas.note_settled, EDGE, 5)
    assert not written(origin, quotas.note_settled, EDGE, 5)
    assert not written(origin, quotas.note_settled, EDGE, 4)
    assert quotas.settled(origin.file.conn) == {EDGE: 5}


def test_usage_of_what_has_no_quota_is_deducted_of_none(origin: Store) -> None:
    rows = [Consumed(9, 1, "2999-11-20 12:00:00", 7), Consumed(1, 1, "2999-11-20 12:00:00", 3)]
    assert written(origin, quotas.deduct, rows, NOON)
    assert left(origin) == 97


def test_units_without_a_lease_are_off_what_is_left_here(origin: Store) -> None:
    store_id = origin.file.info().store_id
    with origin.file.write() as conn:
        assert quotas.left(conn, 7, store_id, NOON) is None
        before = quotas.left(conn, 1, store_id, NOON)
        quotas.use(conn, 1, 30)
        after = quotas.left(conn, 1, store_id, NOON)
    assert before is not None
    assert after is not None
    assert (before.remaining, after.remaining) == (100, 70)
