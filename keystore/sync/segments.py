"""Segments of changes: JSON Lines, compressed. The first line is a header, each other one a record.

``["APIKeys", [1, "0189…", …]]`` is a record as it was at the segment's end, its columns in the
order that the header gives; ``["APIKeys", 7]`` is one that was gone.
"""

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from keystore.changelog import PAGE_SIZE, Page
from keystore.errors import DamagedStoreError, IncompleteStateError, SchemaVersionError
from keystore.sync.packing import pack_lines, unpack_lines
from keystore.sync.repository_format import FORMAT, Segment, columns_by_table
from keystore.tables import BY_NAME, Table, WireRow

FAN_OUT = 8
"""So many segments become one; as many again stay as they are, for who is just a little behind."""
_MANY_BRACKETS = 100
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')


def write(path: Path, pages: Iterable[Page]) -> int:
    """Write a segment; return its length before compression."""
    return pack_lines(_lines(pages), path)


def _lines(pages: Iterable[Page]) -> Iterator[bytes]:
    # The name makes each segment's bytes its own: one that nobody refers to can be removed without
    # fear that somebody is just writing it again.
    yield _line({"format": FORMAT, "name": str(uuid.uuid4()), "columns": columns_by_table()})
    for page in pages:
        for row in page.rows:
            try:
                yield _line([page.table.name, row])
            except TypeError as error:  # bytes: written with the CHECKs off
                raise DamagedStoreError(
                    f"{page.table.name} {row[0]} holds what is neither text nor a number.",
                    hint="Correct that row at the origin; nothing was published.",
                ) from error
        for record_id in page.deleted:
            yield _line([page.table.name, record_id])


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def read(packed: IO[bytes], length: int) -> Iterator[Page]:
    """Yield a segment's records; ``length`` is what was signed.

    Raises:
        SchemaVersionError: it has other columns than this program.
        IncompleteStateError: a line is none of ours.
        DecompressionBombError: see :func:`.packing.unpack_lines`.
    """
    lines = unpack_lines(packed, length)
    header = _parsed(next(lines, b""))
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _not_ours("header")
    if header.get("columns") != columns_by_table():
        raise SchemaVersionError(
            "the repository's changes have other columns than this program's tables.",
            hint="Update keystore at the origin and here to the same version, then publish anew.",
        )
    page: Page | None = None
    for line in lines:
        table, value = _record(line)
        if page is None or page.table is not table or _size(page) >= PAGE_SIZE:
            if page is not None:
                yield page
            page = Page(table, [], [], repeats=True)
        if isinstance(value, int):
            page.deleted.append(value)
        else:
            page.rows.append(value)
    if page is not None:
        yield page


def room(snapshot: int) -> int:
    """Return how many bytes of changes may follow a snapshot of some length, and precede it."""
    return snapshot


def to_merge(changes: Sequence[Segment]) -> slice | None:
    """Return which neighbours to merge into one, or ``None``.

    Those that were merged equally often follow each other. So there are at most twice
    ``FAN_OUT`` for each power of it, and a record is written again as often as there are powers.
    """
    first = 0
    while first < len(changes):
        level = changes[first].info.level
        last = first
        while last < len(changes) and changes[last].info.level == level:
            last += 1
        if last - first >= 2 * FAN_OUT:
            return slice(first, first + FAN_OUT)
        first = last
    return None


def _size(page: Page) -> int:
    return len(page.rows) + len(page.deleted)


def _parsed(line: bytes) -> Any:
    # The parser goes as deep as there are brackets, and at the end of the stack it may be somebody
    # else's finalizer that fails. Ours have few, but for those that are in texts.
    if _brackets(line) > _MANY_BRACKETS and _brackets(_TEXT.sub(b"", line)) > _MANY_BRACKETS:
        raise _not_ours("line")
    try:
        return json.loads(line)
    except ValueError as error:
        raise _not_ours("line") from error


def _brackets(line: bytes) -> int:
    return line.count(b"[") + line.count(b"{")


def _record(line: bytes) -> tuple[Table, WireRow | int]:
    match _parsed(line):
        case [str(name), int(record_id)] if name in BY_NAME and _is_integer(record_id):
            return BY_NAME[name], record_id
        case [str(name), list(values)] if name in BY_NAME and _fits(BY_NAME[name], values):
            return BY_NAME[name], tuple(values)
    raise _not_ours("record")


def _fits(table: Table, values: list[Any]) -> bool:
    # (what a column may hold is for the tables' own CHECKs to say)
    return (
        len(values) == len(table.columns)
        and _is_integer(values[0])
        and all(value is None or _is_text(value) or _is_integer(value) for value in values)
    )


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can spell it
        return False
    return True


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


def _not_ours(what: str) -> IncompleteStateError:
    return IncompleteStateError(
        f"the repository's changes have a {what} that is not keystore's.", hint="Publish anew."
    )
