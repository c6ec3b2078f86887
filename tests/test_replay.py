"""A replica takes over what adds up, and nothing else; ``test_target_contract`` has all targets."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keystore import Store
from keystore.db import StoreFile, open_store
from keystore.doctor import examine
from keystore.errors import IncompleteStateError, StaleTargetError
from keystore.sync import digest, engine, targets
from keystore.sync.engine import Report
from keystore.sync.files_source import FileSource
from keystore.sync.memory import MemoryHub
from keystore.sync.protocols import Pull
from keystore.tables import TRACKED
from tests.failures import reaching
from tests.signed import Site


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


class Told(MemoryHub):
    """A target whose cuts are what a test says."""

    is_everything = False

    def __init__(self) -> None:
        super().__init__()
        self.says: dict[str, Any] = {}

    @contextmanager
    def pull(self, origin_id: str | None, after: int | None) -> Iterator[Pull]:
        with super().pull(origin_id, None if self.is_everything else after) as cut:
            yield replace(cut, **self.says)


@pytest.fixture
def hub(store: Store) -> Told:
    """A target that knows a key."""
    made = Told()
    store.issue_key("ada@example.org")
    engine.push(store.file, made, "hub:", Report(""))
    return made


@pytest.fixture
def path(hub: Told, tmp_path: Path) -> Path:
    """A replica of it."""
    engine.replicate(hub, "hub:", tmp_path / "replica.db", Report(""))
    return tmp_path / "replica.db"


@pytest.mark.parametrize(
    ("is_everything", "scope", "is_news"),
    [
        (False, None, False),
        (True, None, False),
        (False, "an account's", False),
        (True, "an account's", True),  # it may be another account
    ],
)
def test_the_same_change_as_of_an_earlier_time_says_nothing_new_unless_it_is_of_another_part(
    hub: Told, path: Path, is_everything: bool, scope: str | None, is_news: bool
) -> None:
    hub.is_everything, hub.says = is_everything, {"as_of_at": "2001-01-01 00:00:00", "scope": scope}
    with open_store(path) as replica:
        before, report = replica.info(), Report("")
        engine.pull(replica, hub, "hub:", report)
        assert report.pulled == 0
        if is_news:
            assert replica.info().as_of_at == "2001-01-01 00:00:00"
        else:
            assert replica.info() == before


def test_of_a_cut_of_everything_only_what_differs_is_written(
    store: Store, hub: Told, tmp_path: Path
) -> None:
    for name in ("goes", "stays", "changes"):
        store.add_plan(name)
    engine.push(store.file, hub, "hub:", Report(""))
    engine.replicate(hub, "hub:", tmp_path / "replica.db", Report(""))
    store.remove_plan("goes")
    store.change_plan("changes", rate_limit=1, rate_window_seconds=1)
    store.add_plan("comes")
    engine.push(store.file, hub, "hub:", Report(""))
    hub.is_everything, report = True, Report("")
    with open_store(tmp_path / "replica.db") as replica:
        engine.pull(replica, hub, "hub:", report)
        assert digest.digest_store(replica) == digest.digest_store(store.file)
    assert report.pulled == 3


def test_a_first_pull_says_how_far_it_is(hub: Told, tmp_path: Path) -> None:
    said: list[tuple[int, int | None]] = []
    report = Report("")
    engine.replicate(
        hub, "hub:", tmp_path / "replica.db", report, on_progress=lambda *one: said.append(one)
    )
    assert said == sorted(said, key=lambda one: one[0])
    assert said[-1] == (report.pulled, report.pulled)
    assert said[0][1] == report.pulled


def test_a_later_pull_says_how_far_it_is_and_of_how_much_if_that_is_known(
    store: Store, hub: Told, path: Path
) -> None:
    said: list[tuple[int, int | None]] = []

    def progress(*one: int | None) -> None:
        said.append((one[0] or 0, one[1]))

    plan = store.add_plan("goes")
    engine.push(store.file, hub, "hub:", Report(""))
    with open_store(path) as replica:
        engine.pull(replica, hub, "hub:", Report(""), on_progress=progress)
        assert said[-1] == (1, None)
        store.remove_plan(plan.name)
        store.add_plan("comes")
        engine.push(store.file, hub, "hub:", Report(""))
        said.clear()
        engine.pull(replica, hub, "hub:", Report(""), on_progress=progress)
        assert said[-1] == (2, None)
        said.clear()
        hub.is_everything = True
        engine.pull(replica, hub, "hub:", Report(""), on_progress=progress)
        (total,) = {whole for _, whole in said}
        assert said[-1] == (total, total)


def states(replica: StoreFile) -> dict[str, str | None]:
    return dict(replica.conn.execute("SELECT target_id, source_state FROM SyncTargets"))


def test_of_two_cuts_of_one_time_the_second_counts_and_an_earlier_one_leaves_no_word(
    hub: Told, path: Path
) -> None:
    with open_store(path) as replica:
        for state in ("{}", '{"root": "1"}'):
            hub.says = {"source_state": state, "valid_until": "2031-01-01 00:00:00"}
            engine.pull(replica, hub, "hub:", Report(""))
            assert states(replica) == {hub.target_id: state}
            assert replica.info().valid_until == "2031-01-01 00:00:00"
        hub.says = {"source_state": "{}", "as_of_at": "2001-01-01 00:00:00"}
        engine.pull(replica, hub, "hub:", Report(""))
        assert states(replica) == {hub.target_id: '{"root": "1"}'}
        assert replica.info().valid_until == "2031-01-01 00:00:00"


def test_the_first_word_of_a_target_that_says_nothing_new_is_kept(
    store: Store, hub: Told, path: Path
) -> None:
    other = Told()
    engine.push(store.file, other, "other:", Report(""))
    other.says = {"source_state": "{}", "as_of_at": "2001-01-01 00:00:00"}
    with open_store(path) as replica:
        engine.pull(replica, other, "other:", Report(""))
        assert states(replica) == {hub.target_id: None, other.target_id: "{}"}


def test_a_target_is_told_that_another_one_has_brought_the_rows(
    store: Store, hub: Told, path: Path
) -> None:
    other = Told()
    engine.push(store.file, other, "other:", Report(""))
    hub.says = other.says = {"source_state": "{}"}
    with open_store(path) as replica:
        engine.pull(replica, hub, "hub:", Report(""))
        engine.pull(replica, other, "other:", Report(""))
        assert states(replica) == {hub.target_id: '{"overtaken":""}', other.target_id: "{}"}


def test_a_cut_that_is_older_than_what_is_held_is_refused(hub: Told, path: Path) -> None:
    with open_store(path) as replica:
        before = replica.info()
        hub.says = {"as_of_change": (before.as_of_change or 0) - 1}
        with pytest.raises(StaleTargetError):
            engine.pull(replica, hub, "hub:", Report(""))
        assert replica.info() == before


def test_rows_that_contradict_each_other_are_refused_and_orphans_are_not(
    store: Store, hub: Told, path: Path
) -> None:
    conn = store.file.conn
    conn.execute("PRAGMA foreign_keys = OFF")
    conn.execute("DELETE FROM Accounts")
    engine.push(store.file, hub, "hub:", Report(""))
    with open_store(path) as replica:
        engine.pull(replica, hub, "hub:", Report(""))
        before = digest.digest_store(replica)
        assert before == digest.digest_store(store.file)
        for name in ("one", "two"):
            store.add_plan(name)
        engine.push(store.file, hub, "hub:", Report(""))
        for held in hub._stores.values():
            for record, (change, row) in held.rows.items():
                if row[1] == "two":
                    held.rows[record] = (change, (row[0], "one", *row[2:]))
        with pytest.raises(IncompleteStateError, match="do not fit together"):
            engine.pull(replica, hub, "hub:", Report(""))
        assert digest.digest_store(replica) == before
        assert replica.conn.execute("PRAGMA foreign_keys").fetchone() == (1,)
    conn.execute("DELETE FROM APIKeys")  # the doctor looks at this store afterwards


def test_a_new_replica_of_a_hub_lets_nobody_write_what_comes_from_its_origin(path: Path) -> None:
    with open_store(path) as replica:
        assert examine(replica) == []
        with pytest.raises(Exception, match="read-only replica"):
            replica.conn.execute("UPDATE Plans SET name = 'another'")


def test_a_pull_passes_its_steps_in_their_order(store: Store, hub: Told, path: Path) -> None:
    store.add_plan("later")
    engine.push(store.file, hub, "hub:", Report(""))
    steps: list[str] = []
    with open_store(path) as replica, reaching(steps.append):
        engine.pull(replica, hub, "hub:", Report(""))
    assert list(dict.fromkeys(steps)) == [
        *("pull.opened", "pull.page", "pull.staged", "pull.applied", "pull.done")
    ]


def test_a_replica_of_signed_files_is_whole_from_the_start_and_one_of_its_own(
    store: Store, tmp_path: Path
) -> None:
    site, second = Site(store, tmp_path), tmp_path / "second.db"
    report = targets.replicate(str(site.folder), second, root=site.root)
    with open_store(second) as file, open_store(site.replica) as first:
        assert digest.digest_store(file) == digest.digest_store(store.file)
        count = "SELECT count(*) FROM {}"
        counts = [file.conn.execute(count.format(one.name)).fetchone()[0] for one in TRACKED]
        assert report.pulled == sum(counts)
        assert file.info().as_of_change == first.info().as_of_change == report.as_of_change
        assert file.info().store_id != first.info().store_id
        assert file.conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert examine(file) == []


def test_a_snapshot_that_lacks_a_row_makes_no_replica(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, second, really = Site(store, tmp_path), tmp_path / "second.db", FileSource.pull

    @contextmanager
    def with_one_more(
        source: FileSource, origin_id: str | None, after: int | None
    ) -> Iterator[Pull]:
        with really(source, origin_id, after) as cut:
            assert cut.counts is not None
            yield replace(cut, counts={**cut.counts, "APIKeys": cut.counts["APIKeys"] + 1})

    with monkeypatch.context() as patch, pytest.raises(IncompleteStateError, match="APIKeys"):
        patch.setattr(FileSource, "pull", with_one_more)
        site.replicate(second)
    assert not second.exists()
    site.replicate(second)
