"""The ChangeLog reader: small pages, changes while it reads, and no pinned WAL."""

from pathlib import Path

from keystore import Store
from keystore.changelog import Reader
from keystore.sync import digest


def many(store: Store, count: int) -> None:
    store.file.conn.executemany(
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
