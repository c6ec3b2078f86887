"""Tells, in 50 ns, whether anybody has committed to a store since the last look.

In WAL mode every commit of any process rewrites the header of the WAL-index: the first 48 bytes of
the ``-shm`` file, part of SQLite's documented format (walformat.html, section 2.1). So a mapped
slice that is unchanged means that nobody has committed. Where there is no such file, or its header
is of another version, ``PRAGMA data_version`` is asked instead: right everywhere, and 2 µs.
"""

import mmap
import os
from typing import TYPE_CHECKING, Protocol

from keystore import sql
from keystore.db import StoreFile, scalar

if TYPE_CHECKING:
    import sqlite3

HEADER_BYTES = 48
_VERSION = (3_007_000).to_bytes(4, "little")
"""Of the header, in the byte order of the machine; on others the fallback serves."""
_IS_INITIALIZED = 12
"""Offset of the byte that says that the header was written."""

_Q = sql.named("edge")

_mapped: dict[tuple[int, int], mmap.mmap] = {}
"""Mappings by device and inode, never given back. SQLite's locks on a ``-shm`` file are POSIX
locks, and those are lost when *any* descriptor of the file is closed in the process: a connection
of somebody else here could then be overtaken in the middle of a write."""


class Header(Protocol):
    """What :func:`header_of` returns: ``header[:HEADER_BYTES]`` changes with every commit."""

    def __getitem__(self, part: slice, /) -> bytes: ...


def header_of(file: StoreFile) -> Header:
    """Return what to look at; ``file`` never writes, and stays open for as long."""
    conn = file.conn
    # The -shm file is there as soon as the database was read in WAL mode.
    scalar(conn, _Q["data_version"])
    if scalar(conn, _Q["journal_mode"]) == "wal":
        conn.execute(_Q["touch"]).fetchone()
        found = _map(f"{file.path}-shm")
        if found is not None and _is_known(found[:HEADER_BYTES]):
            return found
    return _DataVersion(conn)


class _DataVersion:
    def __init__(self, conn: "sqlite3.Connection") -> None:
        self._conn = conn

    def __getitem__(self, _: slice) -> bytes:
        return int(scalar(self._conn, _Q["data_version"])).to_bytes(8, "little")


def _is_known(header: bytes) -> bool:
    return header[:4] == _VERSION and header[_IS_INITIALIZED] == 1


def _map(path: str) -> mmap.mmap | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path is no use here
        if (found.st_dev, found.st_ino) in _mapped:
            return _mapped[found.st_dev, found.st_ino]
        descriptor = os.open(path, os.O_RDONLY)
        opened = os.fstat(descriptor)
        return _mapped.setdefault(
            (opened.st_dev, opened.st_ino),
            mmap.mmap(descriptor, HEADER_BYTES, access=mmap.ACCESS_READ),
        )
    except (OSError, ValueError):
        return None
