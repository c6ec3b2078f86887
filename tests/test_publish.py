"""Whatever an origin publishes, and whenever somebody reads: it is one whole state of it."""

import itertools
import json
import math
import shutil
import signal
import tempfile
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from keystore import Store
from keystore.backup import backup, restore
from keystore.changelog import Page
from keystore.db import SCHEMA_VERSION, open_store
from keystore.errors import (
    ConstraintError,
    ForkedStoreError,
    KeystoreError,
    StaleTargetError,
    TargetNotReadyError,
    TargetUnavailableError,
    UntrustedRepositoryError,
)
from keystore.repair import mend
from keystore.sync import compact, engine, segments, targets
from keystore.sync.engine import Report
from keystore.sync.files import FileRepository
from keystore.sync.folder import Folder
from keystore.sync.memory import MemoryHub
from keystore.sync.protocols import Origin, Sink
from keystore.sync.repository import file_name
from keystore.tables import BY_NAME, TRACKED, WireRow
from tests.failures import Children, reaching, said
from tests.repositories import Clock, Shelf, digest_of
from tests.test_failures_histories import FAST, HASHES, UUIDS, statements

WHEN = "2026-11-20 12:00:00"
ORIGIN = Origin(
    "01890a5d-ac96-774b-bcce-b302099a8057",
    "01890a5d-ac96-774b-bcce-b302099a8058",
    "sk-x-",
    SCHEMA_VERSION,
)
STEPS = ("publish.files", "publish.metadata", "publish.timestamp")
TOKEN = "00000000-0000-4000-8000-000000000001"
which = st.integers(0, 3)


@pytest.fixture
def shelf(store: Store, tmp_path: Path) -> Shelf:
    return Shelf(store, tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch.setattr)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges, new snapshots and a chain that is cut short, all the time."""
    monkeypatch.setattr(segments, "FAN_OUT", 2)
    monkeypatch.setattr(segments, "room", lambda _: 1500)


class Publishing:
    """An origin without a store: plans, each time one push."""

    def __init__(self, sink: Sink) -> None:
        self.sink, self.seen = sink, set[object]()

    def __call__(self, number: int, rows: list[WireRow]) -> None:
        with self.sink.push(ORIGIN) as session:
            self.seen |= {row[0] for row in rows}
            if rows:
                session.send(Page(BY_NAME["Plans"], rows))
            counts = {table.name: 0 for table in TRACKED} | {"Plans": len(self.seen)}
            session.commit(up_to=number + 1, as_of_at=WHEN, token=TOKEN, counts=counts)


class Publications(RuleBasedStateMachine):
    """One origin, which publishes to a folder and to a hub, and replicas that read both."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self._folder = tempfile.TemporaryDirectory(prefix="keystore-publish-")
        self.base = Path(self._folder.name)
        self.hub = MemoryHub()
        self.replicas: list[Path] = []
        self.backups: list[Path] = []

    @initialize()
    def start(self) -> None:
        store = Store.create(self.base / "origin.db")
        store.file.conn.execute("INSERT INTO Plans (name) VALUES ('plan 1')")
        store.file.conn.execute("INSERT INTO Accounts (email, plan_id) VALUES ('1@x.org', 1)")
        self.shelf = Shelf(store, self.base)
        self.published: object = None
        self.publish(None)
        self.replicas = [self.shelf.replicate() for _ in range(2)]

    @property
    def store(self) -> Store:
        return self.shelf.store

    @rule(writes=statements, recursive=st.booleans())
    def write(self, writes: list[tuple[str, int, int, int, int]], recursive: bool) -> None:
        with suppress(ConstraintError):
            self.store.file.conn.execute(f"PRAGMA recursive_triggers = {int(recursive)}")
            with self.store.file.write() as conn:
                for text, a, b, key, secret in writes:
                    values = {"a": a, "b": b, "uuid": UUIDS[key], "hash": HASHES[secret]}
                    conn.execute(text.format(**values))

    @rule(step=st.sampled_from([None, *STEPS]))
    def publish(self, step: str | None) -> None:
        """Publish; at one step, somebody copies the folder, and reads the copy later."""
        before = self.published
        with self.shelf.seen_at(step or "") as copies:
            self.shelf.publish()
        self.published = digest_of(self.base / "origin.db")
        for seen, copy in copies.items():
            wanted = self.published if seen == "publish.timestamp" else before
            if wanted is not None:
                assert digest_of(self.shelf.replicate(folder=copy)) == wanted
                twin = self.base / f"{copy.name}.db"
                with open_store(self.replicas[0]) as file:
                    backup(file, twin)
                with suppress(StaleTargetError):
                    self.shelf.pull(twin, folder=copy)
                    assert digest_of(twin) == wanted

    @rule(which=which)
    def pull(self, which: int) -> None:
        path = self.replicas[which % len(self.replicas)]
        with suppress(StaleTargetError):  # it has something later from the hub
            self.shelf.pull(path)
            assert digest_of(path) == self.published

    @rule()
    def start_fresh(self) -> None:
        path = self.shelf.replicate()
        assert digest_of(path) == self.published
        self.replicas.append(path)

    @rule(which=which)
    def sync_by_the_hub(self, which: int) -> None:
        engine.push(self.store.file, self.hub, "hub:", Report("hub:"))
        path = self.replicas[which % len(self.replicas)]
        with open_store(path) as file:
            engine.pull(file, self.hub, "hub:", Report("hub:"))
        assert digest_of(path) == digest_of(self.base / "origin.db")

    @rule(
        what=st.sampled_from(["compact", "distrust", "back up", "restore", "lose a file"]),
        which=which,
    )
    def upset(self, what: str, which: int) -> None:
        """What makes everything be published; one rule, so that it is not done all the time."""
        match what:
            case "compact":
                self.compact()
            case "distrust":
                self.lose_faith_in_the_log()
            case "back up":
                self.back_up()
            case "restore":
                self.restore(which)
            case _:
                self.lose_a_file(which)

    @rule(rounds=st.lists(statements, min_size=2, max_size=8), which=which)
    def publish_often(self, rounds: list[list[tuple[str, int, int, int, int]]], which: int) -> None:
        for number, writes in enumerate(rounds):
            self.write(writes, recursive=False)
            self.publish(None)
            if number == which:
                self.pull(which)

    def compact(self) -> None:
        compact.compact(self.store.file, lease=timedelta(0))

    def lose_faith_in_the_log(self) -> None:
        conn = self.store.file.conn
        conn.execute("DROP TRIGGER trg_plans_insert")
        conn.execute("INSERT INTO Plans (name) SELECT 'unseen ' || count(*) FROM Plans")
        mend(self.store.file)

    def back_up(self) -> None:
        path = self.base / f"backup-{len(self.backups)}.db"
        with open_store(self.base / "origin.db") as file:
            backup(file, path)
        self.backups.append(path)

    def restore(self, which: int) -> None:
        """The origin is put back to a backup, and goes on."""
        if not self.backups:
            return
        self.store.close()
        path = self.base / "origin.db"
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        restore(self.backups[which % len(self.backups)], path)
        self.shelf.store = Store.open(path)
        self.shelf.publish(reconcile=True)
        self.published = digest_of(path)
        engine.push(self.store.file, self.hub, "hub:", Report("hub:"), reconcile=True)

    def lose_a_file(self, which: int) -> None:
        """Lose what is published; it heals at the next look."""
        found = sorted((self.shelf.folder / "targets").iterdir())
        found[which % len(found)].unlink()
        self.clock.advance(hours=1)
        self.publish(None)

    @rule(hours=st.integers(1, 30))
    def wait(self, hours: int) -> None:
        self.clock.advance(hours=hours)

    def teardown(self) -> None:
        if hasattr(self, "shelf"):
            self.publish(None)
            for path in (*self.replicas, self.shelf.replicate()):
                self.shelf.pull(path)
                assert digest_of(path) == self.published
            self.store.close()
        self._folder.cleanup()


def test_each_replica_has_what_was_published_however_often_it_reads(
    monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    clock = Clock(monkeypatch.setattr)
    run_state_machine_as_test(lambda: Publications(clock), settings=settings(FAST, max_examples=12))  # type: ignore[arg-type]


def test_a_replica_that_reads_a_hub_as_well_misses_nothing_when_everything_is_published(
    shelf: Shelf,
) -> None:
    """A row that has changed back is no difference to the repository, and one to the replica."""
    conn, hub = shelf.store.file.conn, MemoryHub()
    shelf.publish()
    replica = shelf.replicate()
    conn.execute("UPDATE Plans SET name = 'meanwhile'")
    engine.push(shelf.store.file, hub, "hub:", Report("hub:"))
    with open_store(replica) as file:
        engine.pull(file, hub, "hub:", Report("hub:"))
    conn.execute("UPDATE Plans SET name = 'free'")
    shelf.store.add_service("another")
    compact.compact(shelf.store.file, lease=timedelta(0))
    shelf.publish()
    shelf.pull(replica)
    assert digest_of(replica) == digest_of(shelf.store.file.path)


def test_hundreds_of_small_publications_leave_few_files_and_small_ones(
    shelf: Shelf, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Through the sink alone: the store would take most of the time.)"""
    monkeypatch.setattr("os.fsync", lambda _: None)
    count = 600
    rows: list[WireRow] = [
        (number, f"plan {number}", None, "deny", None, None, None, WHEN, WHEN) for number in (1, 2)
    ]
    sink = FileRepository(shelf.folder.as_uri(), keys=shelf.keys).sink
    assert sink is not None
    publish = Publishing(sink)
    for number in range(count):
        publish(number, [rows[number % 2]])
        clock.advance(minutes=4)
    state = shelf.state()
    levels = 1 + int(math.log(count, segments.FAN_OUT))
    assert len(state.changes) <= 2 * segments.FAN_OUT * levels
    assert len((shelf.folder / "metadata/timestamp.json").read_bytes()) < 2000
    newest = shelf.folder / f"metadata/{shelf.published().targets_version}.targets.json"
    assert newest.stat().st_size < 1000 * (len(state.changes) + 2)
    # What is not named any more is at most a day and two hours old.
    replaced_each_time = 4
    named = shelf.published().names
    assert len(shelf.files() - named) < 26 * 15 * replaced_each_time
    assert sum(segment.target.length for segment in state.since_snapshot) <= state.snapshot.length
    clock.advance(hours=1)
    publish(count, [])
    clock.advance(days=1)
    publish(count, [])
    assert shelf.files() == shelf.published().names | {
        "metadata/1.root.json",
        "metadata/timestamp.json",
        "retired.json",
    }


def test_a_replica_that_is_a_little_behind_fetches_changes_alone(
    shelf: Shelf, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain has no gap, through merges and new snapshots, and goes back before the snapshot."""
    monkeypatch.setattr(segments, "room", lambda _: 4000)
    shelf.publish()
    seen, merged, snapshots = [], 0, set()
    for number in range(25):
        shelf.store.add_plan(f"plan {number}")
        shelf.store.add_service(f"service {number}")
        shelf.publish()
        state, stamp = shelf.state(), shelf.published().stamp
        assert stamp is not None
        seen.append(stamp.up_to)
        merged += any(one.info.level for one in state.changes)
        snapshots.add(state.snapshot.hashes["sha256"])
        for one, following in itertools.pairwise(state.changes):
            assert one.info.up_to == following.info.after
        for change in seen[-6:]:
            with shelf.source().pull(None, change) as cut:
                assert not cut.is_everything
    assert merged
    assert len(snapshots) > 1
    assert shelf.state().changes[0].info.after < shelf.state().info.up_to


def test_a_slow_reader_finds_what_it_began_with_for_a_day(
    shelf: Shelf, clock: Clock, small: None
) -> None:
    shelf.publish()
    for number in range(5):
        shelf.store.add_plan(f"before {number}")
        shelf.publish()
    wanted = digest_of(shelf.store.file.path)
    with shelf.source().pull(None, None) as slow, shelf.source().pull(None, None) as late:
        for number in range(30):
            clock.advance(minutes=45)
            shelf.store.add_plan(f"plan {number}")
            shelf.publish()
        assert slow.place is not None
        slow.place(shelf.base / "slow.db")
        clock.advance(hours=30)
        for _ in range(2):
            shelf.publish()
            clock.advance(hours=25)
        with pytest.raises(TargetNotReadyError):
            list(late.pages)
    assert digest_of(shelf.base / "slow.db") == wanted


def test_what_a_killed_publisher_left_is_gone_a_day_later(shelf: Shelf, clock: Clock) -> None:
    shelf.publish()
    shelf.store.add_plan("lost")

    def die(step: str) -> None:
        if step == "publish.metadata":
            raise ZeroDivisionError

    with reaching(die), pytest.raises(ZeroDivisionError):
        shelf.publish()
    left = shelf.files() - shelf.published().names
    assert {name.rpartition(".")[2] for name in left} >= {"json", "zst"}
    (shelf.folder / "targets/.half.draft").write_text("half")
    for hours in (1, 25, 25):
        clock.advance(hours=hours)
        shelf.publish()
    names = {path.name for path in shelf.folder.rglob("*") if path.is_file()}
    named = {name.rpartition("/")[2] for name in shelf.published().names}
    assert names == named | {"1.root.json", "timestamp.json", "retired.json", ".lock"}


def test_only_files_of_a_repository_are_ever_removed(shelf: Shelf, clock: Clock) -> None:
    shelf.publish()
    outside = shelf.base / "outside.json"
    inside = shelf.folder / "targets" / "README"
    for path in (outside, inside):
        path.write_text("mine")
    ages_ago = "2020-01-01T00:00:00+00:00"
    notes = {
        "../outside.json": ages_ago,
        "targets/README": ages_ago,
        **dict.fromkeys(shelf.published().names, ages_ago),
    }
    for text in (json.dumps(notes), "[]", '{"targets/README": 7}', "no JSON"):
        (shelf.folder / "retired.json").write_text(text)
        clock.advance(hours=1)
        shelf.publish()
        clock.advance(hours=30)
        shelf.publish()
        assert outside.exists()
        assert inside.exists()
        assert digest_of(shelf.replicate()) == digest_of(shelf.store.file.path)


def lose(path: Path) -> None:
    path.unlink()


def reverse(path: Path) -> None:
    path.write_bytes(bytes(reversed(path.read_bytes())))


@pytest.mark.parametrize("damage", [lose, reverse])
@pytest.mark.parametrize("kind", ["snapshot", "changes"])
def test_a_file_that_is_lost_or_damaged_at_the_publisher_heals(
    shelf: Shelf, clock: Clock, monkeypatch: pytest.MonkeyPatch, damage: Any, kind: str
) -> None:
    """At the latest when the publisher needs it: here, for a merge or for a new snapshot."""
    monkeypatch.setattr(segments, "FAN_OUT", 2)
    shelf.publish()
    for number in range(3):
        shelf.store.add_plan(f"plan {number}")
        shelf.publish()
    replica = shelf.replicate()
    state = shelf.state()
    target = state.snapshot if kind == "snapshot" else state.changes[0].target
    damage(shelf.folder / file_name(target))
    if kind == "snapshot":
        monkeypatch.setattr(segments, "room", lambda _: 0)
    shelf.store.add_plan("last")
    report = shelf.publish()
    assert any("anew" in warning for warning in report.warnings)
    shelf.pull(replica)
    assert digest_of(replica) == digest_of(shelf.store.file.path)
    assert digest_of(shelf.replicate()) == digest_of(shelf.store.file.path)
    assert shelf.publish().warnings == ()


def test_a_file_that_is_missing_is_noticed_within_an_hour(shelf: Shelf, clock: Clock) -> None:
    shelf.publish()
    shelf.store.add_plan("pro")
    shelf.publish()
    lose(next((shelf.folder / "targets").glob("*.changes*")))
    clock.advance(hours=1)
    assert shelf.publish().warnings
    assert digest_of(shelf.replicate()) == digest_of(shelf.store.file.path)


def test_a_repository_that_was_put_back_is_published_again_for_those_who_saw_more(
    shelf: Shelf,
) -> None:
    shelf.publish()
    old = shelf.copied()
    shelf.store.add_plan("later")
    shelf.publish()
    replica = shelf.replicate()
    shutil.rmtree(shelf.folder)
    shutil.copytree(old, shelf.folder)
    with pytest.raises(UntrustedRepositoryError):
        shelf.pull(replica)
    with pytest.raises(ForkedStoreError):
        shelf.publish()
    shelf.publish(reconcile=True)
    shelf.pull(replica)
    assert digest_of(replica) == digest_of(shelf.store.file.path)


@pytest.mark.parametrize("name", ["timestamp.json", "[0-9]*.snapshot.json", "[0-9]*.targets.json"])
@pytest.mark.parametrize("damage", [lose, reverse])
def test_metadata_that_somebody_spoiled_can_be_published_anew(
    shelf: Shelf, name: str, damage: Any
) -> None:
    """Nothing is signed on top of them: the error says what to do, and that works."""
    shelf.publish()
    shelf.store.add_plan("later")
    shelf.publish()
    replica = shelf.replicate()
    path = max((shelf.folder / "metadata").glob(name), key=lambda path: path.stat().st_mtime_ns)
    damage(path)
    with pytest.raises(KeystoreError) as caught:
        shelf.publish()
    assert "--reconcile" in said(caught.value)
    (shelf.folder / "metadata/timestamp.json").unlink(missing_ok=True)
    shelf.publish(reconcile=True)
    shelf.pull(replica)
    assert digest_of(replica) == digest_of(shelf.store.file.path)


def test_metadata_of_two_states_are_not_mixed(shelf: Shelf) -> None:
    """Both were signed. On top of the older one there would be a gap in the chain."""
    shelf.publish()
    old = shelf.published().targets_version
    shelf.store.add_plan("later")
    shelf.publish()
    metadata = shelf.folder / "metadata"
    new = shelf.published().targets_version
    shutil.copy(metadata / f"{old}.targets.json", metadata / f"{new}.targets.json")
    shelf.store.add_plan("latest")
    with pytest.raises(UntrustedRepositoryError, match=f"is version {old}"):
        shelf.publish()


def test_a_file_where_a_folder_belongs_is_not_passed_over(tmp_path: Path, store: Store) -> None:
    shelf = Shelf(store, tmp_path)
    (shelf.folder / "targets").write_text("in the way")
    with pytest.raises(TargetUnavailableError):
        shelf.publish()
    assert not (shelf.folder / "metadata/timestamp.json").exists()


def test_makers_of_one_repository_do_not_mix_their_root_files(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "repository")

    def slow(file: IO[bytes]) -> None:
        file.write(b"ours")
        assert folder.create("metadata/1.root.json", b"theirs")  # another process, meanwhile

    assert not folder._write("metadata/1.root.json", slow, is_new=True)
    assert (folder.path / "metadata/1.root.json").read_bytes() == b"theirs"
    assert [path.name for path in (folder.path / "metadata").iterdir()] == ["1.root.json"]


def test_two_processes_that_publish_one_store_take_turns(shelf: Shelf) -> None:
    shelf.publish()
    replica = shelf.replicate()
    path, errors = shelf.store.file.path, []

    def publish_often() -> None:
        try:
            with open_store(path) as file:
                for _ in range(15):
                    with file.write() as conn:
                        conn.execute("INSERT INTO Plans (name) SELECT 'p' || count(*) FROM Plans")
                    targets.sync(file, str(shelf.folder), keys=shelf.keys)
        except KeystoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=publish_often) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        shelf.pull(replica)
    for thread in threads:
        thread.join()
    shelf.pull(replica)
    assert not errors
    assert digest_of(replica) == digest_of(path)


def test_a_publication_with_nothing_new_is_one_small_file(shelf: Shelf) -> None:
    shelf.publish()
    before = shelf.files()
    shelf.publish()
    assert shelf.files() == before
    shelf.store.add_plan("one")
    shelf.publish()
    (_, one) = shelf.state().snapshot, shelf.state().changes
    assert len(one) == 1
    assert one[0].target.length < 1500


@pytest.mark.parametrize("step", STEPS)
def test_a_publisher_that_is_killed_goes_on_and_readers_see_whole_states(
    shelf: Shelf, step: str
) -> None:
    shelf.publish()
    replica, path = shelf.replicate(), shelf.store.file.path
    before = digest_of(path)
    shelf.store.add_plan("new")
    children = Children()
    arguments = ("sync", shelf.folder, "--keys", shelf.keys, "--db", path)
    assert children.run(*arguments, step=step)[0] == -signal.SIGKILL
    shelf.pull(replica)
    assert digest_of(replica) == (digest_of(path) if step == "publish.timestamp" else before)
    assert children.run(*arguments)[0] == 0
    children.close()
    shelf.pull(replica)
    assert digest_of(replica) == digest_of(path)
