"""Digests of a store's rows, equal wherever the same rows are held.

Rows are hashed in buckets of 1,024 ids, so that two sides find where they differ without
exchanging the rows. The encoding is one that SQL can produce as well: each value is its length in
bytes, ``:``, its text, ``,``; NULL is ``-,``; a row is its values, a bucket is its rows by id.
"""

from collections.abc import Iterable, Iterator
from hashlib import sha256

from keystore.changelog import Page, Reader
from keystore.db import StoreFile
from keystore.tables import TRACKED, WireRow

BUCKET_SIZE = 1024

Buckets = dict[tuple[str, int], str]
"""SHA-256 in hex by table name and bucket number; buckets without rows are absent."""


def digest_pages(pages: Iterable[Page]) -> Buckets:
    """Digest pages of a whole state, in any order of pages and rows.

    Records that a later page repeats or deletes count as the later page has them.
    """
    rows: dict[str, dict[int, WireRow]] = {table.name: {} for table in TRACKED}
    for page in pages:
        held = rows[page.table.name]
        held.update({int(row[0] or 0): row for row in page.rows})
        for record_id in page.deleted:
            held.pop(record_id, None)
    return dict(_buckets(rows))


def digest_store(file: StoreFile) -> Buckets:
    """Digest the key tables of an open store, origin or replica."""
    return digest_pages(Reader(file, None))


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


def _buckets(rows: dict[str, dict[int, WireRow]]) -> Iterator[tuple[tuple[str, int], str]]:
    for table, held in rows.items():
        bucket, state = -1, sha256()
        for record_id in sorted(held):
            if record_id // BUCKET_SIZE != bucket:
                if bucket >= 0:
                    yield (table, bucket), state.hexdigest()
                bucket, state = record_id // BUCKET_SIZE, sha256()
            state.update(encode_row(held[record_id]))
        if bucket >= 0:
            yield (table, bucket), state.hexdigest()
