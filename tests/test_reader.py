"""The ChangeLog reader: small pages, changes while it reads, and no pinned WAL."""

import tracemalloc
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from keystore import Store
from keystore.changelog import Page, Reader
from keystore.sync import digest, engine
from keystore.sync.digest import Bucket
from keystore.sync.protocols import Origin, PageCounts, TargetState
from tests.conftest import NewStore


class Void:
    """A target that keeps nothing of what it is sent, so that only the sender's memory counts."""

    target_id = "void"
    state = TargetState(0, None, wants_everything=True)

    @contextmanager
    def push(self, origin: Origin) -> "Iterator[Void]":
        self.origin = origin
        yield self

    def start_over(self) -> None:
        pass

    def digests(self) -> None:
        return None

    def bucket_pages(self, _: Collection[Bucket]) -> Iterator[Page]:
        return iter(())

    def highest_ids(self) -> PageCounts:
        return {}

    def send(self, page: Page) -> None:
        pass

    def commit(self, **_: object) -> None:
        pass


def many(store: Store, count: int) -> None:
    with store.file.write() as conn:
        conn.executemany(
            "INSERT INTO Plans (name) VALUES (?)", [(f"plan {number}",) for number in range(count)]
        )


def test_many_changes_to_one_record_are_one_look(store: Store) -> None:
    before = store.status().last_change
    for number in range(100):
        store.file.conn.execute("UPDATE Plans SET max_staleness_seconds = ?", (number + 1,))
    pages = list(Reader(store.file, before))
    assert [(page.table.name, len(page.rows)) for page in pages] == [("Plans", 1)]


def test_what_changes_while_it_reads_is_read_again_and_the_cut_is_consistent(store: Store) -> None:
    many(store, 50)
    for after in (None, 0):
        reader, pages = Reader(store.file, after, page_size=7), []
        for number, page in enumerate(reader):
            pages.append(page)
            if number < 5:
                with Store.open(store.file.path) as other:
                    other.file.conn.execute("DELETE FROM Plans WHERE plan_id = ?", (number + 10,))
                    other.add_plan(f"late {after} {number}")
        assert digest.digest_pages(pages) == digest.digest_store(store.file)
        assert reader.up_to == store.status().last_change
        assert any(page.repeats for page in pages)


def test_counts_are_those_of_the_cut(store: Store) -> None:
    many(store, 10)
    reader = Reader(store.file, None, page_size=4)
    for number, _ in enumerate(reader):
        if number == 0:
            store.add_plan("late")
    assert reader.counts is not None
    assert reader.counts["Plans"] == 12
    assert reader.counts == store.status().records


def test_no_read_transaction_is_open_between_two_pages(store: Store, tmp_path: Path) -> None:
    """An open reader would pin the WAL; with none, a checkpoint can truncate it."""
    many(store, 30)
    with Store.open(store.file.path) as other:
        for _ in Reader(store.file, None, page_size=5):
            busy, *_ = other.file.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            assert busy == 0


def test_the_memory_of_a_push_does_not_grow_with_the_backlog(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "Reader", partial(Reader, page_size=500))
    peaks = []
    for count in (2_000, 16_000):
        store = new_store(f"{count}.db")
        many(store, count)
        tracemalloc.start()
        engine.push(store.file, Void(), "void:", engine.Report("void:"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]
