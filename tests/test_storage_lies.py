"""Disks that say that they have written, and have not: what keystore notices then, and what not.

No database can keep what such a disk loses. ``docs/disks.md`` says what remains.
"""

import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from keystore import Reason, Store, Validator, db, tokens
from keystore.db import open_store
from keystore.doctor import examine
from keystore.errors import ForkedStoreError, KeystoreError
from keystore.sync import digest, targets
from keystore.sync.engine import Report
from tests.storage import Disk, lay_out
from tests.storage_scenes import ADA, Hub, populate, state, state_of, sync
from tests.test_storage import folder, sample

__all__ = ["folder"]


class Lying:
    """An origin on a disk whose syncs do nothing: it revokes a key, and pushes, twice.

    ``never`` are tokens that no state of the store has ever allowed; ``token`` was allowed first.
    """

    def __init__(self, folder: Path) -> None:
        base = folder / "base"
        base.mkdir()
        self.folder, self.hub, path = folder, Hub(), base / "store.db"
        self.token, gone = populate(path)
        with Store.open(path) as store:
            store.revoke_key(gone)
            expired = store.issue_key(ADA)
            store.expire_key(expired.key.api_key, "2020-01-01")
        self.never = (gone, expired.token, tokens.new_token(uuid.uuid4()))
        sync(path, self.hub)
        before, self.disk = state_of(path), Disk(base)
        with self.disk.watching(lambda conn: self.disk.note("commit", state(conn))):
            for turn in range(2):
                with Store.open(path) as store:
                    store.revoke_key(self.token)
                    for number in range(4):
                        store.add_plan(f"plan {turn} {number}")
                sync(path, self.hub)
        self.states = [before, *self.disk.noted("commit", len(self.disk.events))]

    def left(self, mode: str) -> Iterator[Path]:
        """Yield the store that there is after the power has gone, at many moments."""
        for at in sample(self.disk.points(), 12):
            files, chance = self.disk.after_power_loss(at, mode, lies=True)
            left = self.folder / f"{mode} {at}"
            left.mkdir()
            lay_out(files, left, chance)
            yield left / "store.db"


@pytest.fixture
def lying(folder: Path) -> Lying:
    return Lying(folder)


def test_an_origin_that_has_lost_what_it_had_pushed_is_stopped_and_can_be_reconciled(
    lying: Lying,
) -> None:
    stopped = 0
    for path in lying.left("kept"):  # in the order of the writes, but only up to some moment
        hub = lying.hub.twin()
        with open_store(path) as file:
            try:
                targets.sync_opened(file, hub, Report("hub:"))
            except ForkedStoreError:
                stopped += 1
                targets.sync_opened(file, hub, Report("hub:"), reconcile=True)
            else:
                (held,) = lying.hub._stores.values()
                head = db.scalar(file.conn, "SELECT max(change_id) FROM ChangeLog")
                assert head >= held.acknowledged_change
            with hub.pull(None, None) as cut:
                assert cut.digests() == digest.digest_store(file)
            assert [item for item in examine(file) if item.severity != "info"] == []
    assert stopped


def look(lying: Lying, path: Path) -> str:
    """Say in a word what has become of a store."""
    try:
        with open_store(path) as file:
            if any(item.severity == "error" for item in examine(file)):
                return "damaged, the doctor says"
            return "a state that was" if state(file.conn) in lying.states else "a mixture"
    except KeystoreError:
        return "damaged, and refused"


def reasons(path: Path, asked: tuple[str, ...]) -> list[Reason]:
    """What a validator says of tokens; one that cannot be opened says nothing."""
    try:
        with Validator(path) as validator:
            return [validator.check(token, cost=0).reason for token in asked]
    except KeystoreError:
        return [Reason.UNAVAILABLE] * len(asked)


@pytest.mark.parametrize("mode", ["lost", "torn", "scattered", "scattered again"])
def test_no_mixture_of_what_was_written_allows_what_was_never_allowed(
    lying: Lying, mode: str
) -> None:
    found: Counter[str] = Counter()
    for path in lying.left(mode):
        known, *others = reasons(path, (lying.token, *lying.never))
        assert Reason.OK not in others
        what = look(lying, path)
        if what.startswith("a "):  # where nothing looks wrong, the answer is one that was right
            assert known in {Reason.OK, Reason.REVOKED}
        found[f"{what}: {known}"] += 1
    print(mode, dict(found))
