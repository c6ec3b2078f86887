"""What a hub promises beside the rows, whichever it is: revocations and who has what."""

from pathlib import Path

import pytest
import uuid_utils.compat

from keystore import Reason, Store, Validator
from keystore.db import SCHEMA_VERSION, open_store
from keystore.errors import NotFoundError
from keystore.sync import engine, exchange
from keystore.sync.engine import Report
from keystore.sync.protocols import CheckIn
from tests.centre import Centre


@pytest.fixture
def replica(centre: Centre, store: Store, tmp_path: Path) -> Path:
    store.issue_key("ada@example.org")
    centre.sync(store.file.path)
    engine.replicate(centre.hub, "hub:", tmp_path / "replica.db", Report(""))
    return tmp_path / "replica.db"


def test_a_revocation_denies_at_a_replica_before_the_origin_has_heard_of_it(
    centre: Centre, store: Store, replica: Path
) -> None:
    issued = store.issue_key("ada@example.org")
    centre.sync(store.file.path)
    centre.sync(replica)
    with Validator(replica) as validator:
        assert validator.check(issued.token).allowed
        centre.revoke(issued.key.api_key, "leaked")
        assert centre.sync(replica).revocations == 1
        assert validator.check(issued.token).reason is Reason.REVOKED
    assert store.key(issued.key.api_key).status == "assigned"
    assert centre.sync(replica).revocations == 0


def test_a_revocation_becomes_the_status_of_the_key_at_its_origin(
    centre: Centre, store: Store
) -> None:
    issued = store.issue_key("ada@example.org")
    centre.sync(store.file.path)
    centre.revoke(issued.key.api_key, "leaked")
    report = centre.sync(store.file.path)
    assert (report.revocations, report.pushed) == (1, 2)  # the key, and the line in its timeline
    key = store.key(issued.key.api_key)
    assert (key.status, key.status_reason, key.is_active) == ("revoked", "leaked", False)


def test_numbers_are_those_of_the_commits_and_a_second_revocation_is_the_first(
    centre: Centre, store: Store
) -> None:
    keys = [store.issue_key("ada@example.org").key.api_key for _ in range(3)]
    centre.sync(store.file.path)
    numbers = [centre.revoke(key).revocation_id for key in keys]
    assert numbers == sorted(set(numbers))
    assert centre.revoke(keys[1]).revocation_id == numbers[1]
    found = centre.hub.revocations(store.info.store_id, numbers[0], keys[0])
    assert [item.api_key for item in found] == keys[1:]


def test_a_hub_that_gave_a_number_again_tells_everything(centre: Centre, store: Store) -> None:
    keys = [store.issue_key("ada@example.org").key.api_key for _ in range(2)]
    centre.sync(store.file.path)
    number = centre.revoke(keys[0]).revocation_id
    found = centre.hub.revocations(store.info.store_id, number, keys[1])
    assert [item.api_key for item in found] == [keys[0]]


def test_an_unknown_key_is_not_revoked(centre: Centre, store: Store) -> None:
    centre.sync(store.file.path)
    with pytest.raises(NotFoundError):
        centre.revoke("01890a5d-ac96-774b-bcce-b302099a8057")


def check_in(incarnation: str = "0" * 8 + "-0000-4000-8000-" + "0" * 12) -> CheckIn:
    return CheckIn(
        store_id="01890a5d-ac96-774b-bcce-b302099a8057",
        incarnation=incarnation,
        origin_id="01890a5d-ac96-774b-bcce-b302099a8058",
        schema_version=SCHEMA_VERSION,
        program_version="0",
        as_of_change=1,
        as_of_at="2026-11-20 12:00:00",
        seen_revocation=0,
    )


def test_only_the_store_that_left_the_last_token_checks_in(centre: Centre) -> None:
    one, three, four = sorted(str(uuid_utils.compat.uuid7()) for _ in range(3))
    hub = centre.hub
    assert hub.check_in(check_in(), last=None, token=one)
    assert hub.check_in(check_in(), last=None, token=one)  # the acknowledgement was lost
    assert hub.check_in(check_in(), last=one, token=three)
    assert not hub.check_in(check_in(), last=one, token=four)  # a copy from before `three`
    assert not hub.check_in(check_in(), last=None, token=four)  # one that never called
    # a hub that was put back shows a token older than the last: this is nobody's copy
    assert hub.check_in(check_in(), last=four, token=four)


def test_a_copied_replica_becomes_a_replica_of_its_own(
    centre: Centre, store: Store, replica: Path
) -> None:
    centre.sync(replica)
    twin = replica.with_name("twin.db")
    with open_store(replica) as file:
        file.conn.execute("VACUUM INTO ?", (str(twin),))
        before = file.info().incarnation
    store.add_plan("new")
    centre.sync(store.file.path)
    for path in (replica, twin, replica, twin):
        centre.sync(path)
    with open_store(replica) as first, open_store(twin) as second:
        assert first.info().store_id == second.info().store_id
        assert first.info().incarnation == before
        assert second.info().incarnation != before


def test_a_lost_acknowledgement_of_a_check_in_makes_no_second_replica(
    centre: Centre, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CutError(Exception):
        pass

    def cut(step: str) -> None:
        if step == "check_in.sent":
            raise CutError

    with open_store(replica) as file:
        before = file.info().incarnation
    with monkeypatch.context() as patch, open_store(replica) as file:
        patch.setattr("keystore.failpoint.on_reach", cut)
        for _ in range(2):
            with pytest.raises(CutError):
                exchange.check_in(file, centre.hub)
    centre.sync(replica)
    centre.sync(replica)
    with open_store(replica) as file:
        assert file.info().incarnation == before


def test_a_copy_made_after_a_check_in_that_was_cut_off_is_told_apart(
    centre: Centre, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have the token that the hub has, and that neither knows to be there."""

    class CutError(Exception):
        pass

    def cut(step: str) -> None:
        if step == "check_in.sent":
            raise CutError

    centre.sync(replica)
    with monkeypatch.context() as patch, open_store(replica) as file:
        patch.setattr("keystore.failpoint.on_reach", cut)
        with pytest.raises(CutError):
            exchange.check_in(file, centre.hub)
    twin = replica.with_name("twin.db")
    with open_store(replica) as file:
        file.conn.execute("VACUUM INTO ?", (str(twin),))
        before = file.info().incarnation
    centre.sync(replica)
    centre.sync(twin)
    with open_store(replica) as first, open_store(twin) as second:
        assert first.info().incarnation == before
        assert second.info().incarnation != before


def test_two_processes_that_sync_one_replica_are_no_copies(
    centre: Centre, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower one shows a token that the faster one has replaced meanwhile."""
    with open_store(replica) as file:
        before = file.info().incarnation

    def overtake(step: str) -> None:
        if step == "check_in.pending":
            patch.undo()
            for _ in range(2):
                centre.sync(replica)

    with monkeypatch.context() as patch, open_store(replica) as file:
        patch.setattr("keystore.failpoint.on_reach", overtake)
        exchange.check_in(file, centre.hub)
    centre.sync(replica)
    with open_store(replica) as file:
        assert file.info().incarnation == before
