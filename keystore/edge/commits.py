"""Tells, in 50 ns, whether anybody has committed to a store since the last look.

In WAL mode every commit of any process rewrites the header of the WAL-index: the first 48 bytes of
the ``-shm`` file, and a copy of them behind, part of SQLite's documented format (walformat.html,
section 2.1). So a mapped slice that is unchanged means that nobody has committed. Where there is no
such file, or its header is of another version, ``PRAGMA data_version`` is asked instead: right
everywhere, and 2 µs.
"""

import mmap
import os
from collections import deque
from contextlib import suppress

from keystore import sql
from keystore.db import StoreFile, scalar

HEADER_BYTES = 48
_VERSION = (3_007_000).to_bytes(4, "little")
"""Of the header, in the byte order of the machine; on others the fallback serves."""
_IS_INITIALIZED = 12
"""Offset in the header: whether it was written."""

_Q = sql.named("edge")

_mapped: dict[tuple[int, int], mmap.mmap] = {}
"""Mappings by device and inode, kept for as long as the file has a name. SQLite's locks on a
``-shm`` file are POSIX locks, and those are lost when *any* descriptor of the file is closed in the
process: a connection of somebody else here could then be overtaken in the middle of a write."""
_kept: deque[tuple[tuple[int, int], int, mmap.mmap]] = deque()
"""All of them, with their descriptors: two threads may map one file at once, and only one's stands
above."""


class Commits:
    """Looks at one store. ``file`` never writes, and stays open for as long.

    ``header[:HEADER_BYTES]`` changes with each commit, and may be looked at by any thread; it is
    empty where the fallback serves.
    """

    def __init__(self, file: StoreFile) -> None:
        self._conn = file.conn
        self.header: mmap.mmap | bytes = b""
        if scalar(self._conn, _Q["journal_mode"]) == "wal":
            # The -shm file is there as soon as the database was read in WAL mode.
            scalar(self._conn, _Q["touch"])
            found = _map(f"{file.path}-shm")
            if found is not None and _is_known(found):
                self.header = found

    def look(self) -> bytes | None:
        """Return what is different after each commit; ``None`` if one is just under way.

        Call it outside of transactions: ``data_version`` stands still inside.
        """
        if not self.header:
            return int(scalar(self._conn, _Q["data_version"])).to_bytes(8, "little")
        both = self.header[: 2 * HEADER_BYTES]
        return both[:HEADER_BYTES] if both[:HEADER_BYTES] == both[HEADER_BYTES:] else None


def _is_known(header: mmap.mmap) -> bool:
    return header[:4] == _VERSION and header[_IS_INITIALIZED] == 1


def _map(path: str) -> mmap.mmap | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path is no use here
        if (found.st_dev, found.st_ino) in _mapped:
            return _mapped[found.st_dev, found.st_ino]
        _let_go()
        descriptor = os.open(path, os.O_RDONLY)
        opened = os.fstat(descriptor)
        made = mmap.mmap(descriptor, 2 * HEADER_BYTES, access=mmap.ACCESS_READ)
        identity = opened.st_dev, opened.st_ino
        _kept.append((identity, descriptor, made))
        return _mapped.setdefault(identity, made)
    except (OSError, ValueError):
        return None


def _let_go() -> None:
    """Give back the mappings of files that are gone, with a store that another one has replaced.

    Nobody opens such a file any more. Each is taken out first, so that no other thread closes it.
    """
    for _ in range(len(_kept)):
        try:
            identity, descriptor, mapping = _kept.popleft()
        except IndexError:
            return
        with suppress(OSError):  # a daemon may have closed all that it had, and have others now
            found = os.fstat(descriptor)
            if (found.st_dev, found.st_ino) == identity and not found.st_nlink:
                _mapped.pop(identity, None)
                os.close(descriptor)
                continue
        _kept.append((identity, descriptor, mapping))
