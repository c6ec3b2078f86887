"""What a repository of files offers a replica, by what that has; see test_files_attacks.py."""

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from keystore import Store, clock
from keystore.db import open_store
from keystore.errors import ForeignOriginError, TargetNotReadyError
from keystore.sync import digest, files_source
from keystore.sync.files_source import FileSource
from keystore.sync.repository_format import Scope, terms_of
from keystore.sync.trust import Trusted
from tests.repositories import Shelf

ADA = "ada@example.org"
LAST = "2031-01-01 00:00:00"


def source(shelf: Shelf, state: str | None = None) -> FileSource:
    return FileSource(shelf.storage, None if state else shelf.root, state, None)


@pytest.fixture(params=[None, "account"])
def shelf(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Shelf:
    """A repository of everything, or of an account; two publications."""
    scope = request.param and Scope(kind=request.param, record_id=1, name=ADA)
    made = Shelf(store, tmp_path, scope=scope)
    for _ in range(2):
        store.issue_key(ADA)
        made.publish()
    return made


def test_who_has_its_rows_is_offered_the_changes_and_who_has_another_part_everything(
    shelf: Shelf,
) -> None:
    is_part = terms_of(shelf.root).scope is not None
    with source(shelf).pull(None, None) as cut:
        first = cut
        assert cut.is_everything
        assert cut.place is not None
        assert (cut.scope is not None) is is_part
    assert first.source_state is not None
    overtaken = json.dumps(json.loads(first.source_state) | {"overtaken": ""})
    for state, has_its_rows in ((first.source_state, True), (overtaken, False), (None, False)):
        with source(shelf, state).pull(first.origin.store_id, first.as_of_change - 1) as cut:
            assert cut.is_everything is (is_part and not has_its_rows)
            assert (cut.place is None) is not cut.is_everything
            assert sum(len(page.rows) for page in cut.pages) > 0
            assert cut.source_state == first.source_state


def test_a_new_replica_has_what_came_after_the_snapshot(shelf: Shelf, store: Store) -> None:
    assert shelf.state().since_snapshot
    with open_store(shelf.replicate()) as replica:
        keys = replica.conn.execute("SELECT count(*) FROM APIKeys").fetchone()
        assert keys == (2,)
        if terms_of(shelf.root).scope is None:
            assert digest.digest_store(replica) == digest.digest_store(store.file)


def test_what_offers_nothing_yet_is_not_ready(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = Shelf(store, tmp_path)
    with pytest.raises(TargetNotReadyError), source(empty).pull(None, None):
        pass
    empty.publish()
    monkeypatch.setattr(Trusted, "state", lambda _: None)  # signed, and no snapshot among it
    with pytest.raises(TargetNotReadyError), source(empty).pull(None, None):
        pass


def test_another_origins_repository_is_refused(shelf: Shelf) -> None:
    with pytest.raises(ForeignOriginError), source(shelf).pull("another", None):
        pass


@pytest.mark.parametrize(
    ("expires", "lifetime", "wanted"),
    [
        ("2030-06-01 00:00:00", 366 * 86400, "2030-06-01 00:00:00"),
        ("2999-01-01 00:00:00", 365 * 86400, LAST),
    ],
)
def test_signatures_are_good_until_they_say_and_no_longer_than_the_root_key_allows(
    expires: str, lifetime: int, wanted: str
) -> None:
    trusted: Any = SimpleNamespace(
        timestamp=SimpleNamespace(expires=datetime.fromtimestamp(clock.seconds(expires), UTC)),
        terms=SimpleNamespace(lifetime_seconds=lifetime),
    )
    stamp: Any = SimpleNamespace(as_of_at="2030-01-01 00:00:00")
    assert files_source._valid_until(trusted, stamp) == clock.seconds(wanted)
