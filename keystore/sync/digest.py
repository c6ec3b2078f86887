"""Digests of a store's rows, equal wherever the same rows are held.

Rows are hashed in buckets of 1,024 ids, so that two sides find where they differ without
exchanging the rows. The encoding is one that SQL can produce as well: each value is its length in
bytes, ``:``, its text, ``,``; NULL is ``-,``; a row is its values, a bucket is its rows by id.
"""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import groupby, islice
from typing import TYPE_CHECKING

from keystore import changelog
from keystore.changelog import Page, Record
from keystore.db import StoreFile
from keystore.tables import BY_NAME, TRACKED, Table, WireRow

if TYPE_CHECKING:
    import sqlite3

BUCKET_SIZE = 1024
BUCKETS_AT_ONCE = 64

Bucket = tuple[str, int]
"""Table name and number of the bucket: the id divided by ``BUCKET_SIZE``."""
Buckets = dict[Bucket, str]
"""SHA-256 in hex by bucket; buckets without rows are absent."""
Rows = dict[Record, WireRow]


def bucket_of(table: Table, row: WireRow) -> Bucket:
    """Return the bucket of a row."""
    return table.name, int(row[0] or 0) // BUCKET_SIZE


def digest_rows(table: Table, rows: Iterable[WireRow]) -> Iterator[tuple[Bucket, str]]:
    """Digest rows of one table that come in the order of their ids."""
    for bucket, found in groupby(rows, lambda row: bucket_of(table, row)):
        yield bucket, sha256(b"".join(map(encode_row, found))).hexdigest()


def digest_store(file: StoreFile) -> Buckets:
    """Digest the key tables of an open store, origin or replica, in one snapshot."""
    digests: Buckets = {}
    with file.read() as conn:
        for table in TRACKED:
            digests.update(digest_rows(table, changelog.all_records(conn, table)))
    return digests


def digest_pages(pages: Iterable[Page]) -> Buckets:
    """Digest pages of a whole state, in any order of pages and rows; holds all of it in memory.

    Records that a later page repeats or deletes count as the later page has them.
    """
    rows: dict[Table, dict[int, WireRow]] = {table: {} for table in TRACKED}
    for page in pages:
        held = rows[page.table]
        held.update({int(row[0] or 0): row for row in page.rows})
        for record_id in page.deleted:
            held.pop(record_id, None)
    digests: Buckets = {}
    for table, held in rows.items():
        digests.update(digest_rows(table, (held[record_id] for record_id in sorted(held))))
    return digests


def differing(ours: Buckets, theirs: Buckets) -> set[Bucket]:
    """Return the buckets that two states do not share."""
    return {bucket for bucket, _ in ours.items() ^ theirs.items()}


def batches(buckets: Iterable[Bucket]) -> Iterator[list[Bucket]]:
    """Yield buckets in order, a few at a time: as many as their rows fit into memory well."""
    rest = iter(sorted(buckets))
    while batch := list(islice(rest, BUCKETS_AT_ONCE)):
        yield batch


def rows_of_buckets(conn: "sqlite3.Connection", buckets: Iterable[Bucket]) -> Rows:
    """Read the rows of some buckets; call it in a read transaction."""
    return {
        (table.name, int(row[0] or 0)): row
        for table, first, last in ranges(buckets)
        for row in changelog.records_of(conn, table, first, last)
    }


def rows_by_record(pages: Iterable[Page]) -> Rows:
    """Collect the rows of pages."""
    return {(page.table.name, int(row[0] or 0)): row for page in pages for row in page.rows}


def compare(ours: Rows, theirs: Rows) -> Iterator[tuple[Record, WireRow | None, WireRow | None]]:
    """Yield what is not the same: the record, our row and their row."""
    for record in sorted(ours.keys() | theirs.keys()):
        our_row, their_row = ours.get(record), theirs.get(record)
        if our_row != their_row:
            yield record, our_row, their_row


def summary(buckets: Buckets) -> str:
    """Fold all buckets into one SHA-256 in hex."""
    total = sha256()
    for (table, bucket), value in sorted(buckets.items()):
        total.update(f"{table}/{bucket}={value}\n".encode())
    return total.hexdigest()


def encode_row(row: WireRow) -> bytes:
    """Encode one row; the form is part of the protocol."""
    parts = []
    for value in row:
        if value is None:
            parts.append(b"-,")
        else:
            text = str(value).encode()
            parts.append(b"%d:%b," % (len(text), text))
    return b"".join(parts)


def ranges(buckets: Iterable[Bucket]) -> Iterator[tuple[Table, int, int]]:
    """Yield table, first id and last id of each bucket."""
    for name, number in sorted(buckets):
        yield BY_NAME[name], number * BUCKET_SIZE, number * BUCKET_SIZE + BUCKET_SIZE - 1
