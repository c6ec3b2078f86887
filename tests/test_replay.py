"""A replica takes over what adds up, and nothing else; ``test_target_contract`` has all targets."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keystore import Store
from keystore.db import open_store
from keystore.errors import IncompleteStateError
from keystore.sync import engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from keystore.sync.protocols import Pull


class Short(MemoryHub):
    """A target that has lost a row on the way, or is thought to."""

    missing: str | None = None

    @contextmanager
    def pull(self, origin_id: str | None, after: int | None) -> Iterator[Pull]:
        with super().pull(origin_id, after) as cut:
            if self.missing is not None:
                assert cut.counts is not None
                cut.counts = {**cut.counts, self.missing: cut.counts[self.missing] + 1}
            yield cut


@pytest.mark.parametrize("missing", ["Plans", "APIKeys", "Providers"])
def test_a_state_with_a_row_missing_makes_no_replica_and_changes_none(
    store: Store, tmp_path: Path, missing: str
) -> None:
    hub, path = Short(), tmp_path / "replica.db"
    store.issue_key("ada@example.org")
    engine.push(store.file, hub, "hub:", Report(""))
    hub.missing = missing
    with pytest.raises(IncompleteStateError, match=missing):
        engine.replicate(hub, "hub:", path, Report(""))
    assert not path.exists()
    hub.missing = None
    engine.replicate(hub, "hub:", path, Report(""))
    store.add_plan("later")
    engine.push(store.file, hub, "hub:", Report(""))
    hub.missing = missing
    with open_store(path) as replica:
        before = replica.info()
        with pytest.raises(IncompleteStateError, match=missing):
            engine.pull(replica, hub, "hub:", Report(""))
        assert replica.info() == before
        hub.missing = None
        engine.pull(replica, hub, "hub:", Report(""))
        assert replica.info().as_of_change == before.as_of_change + 1  # type: ignore[operator]
