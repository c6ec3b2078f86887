"""Keeps a forked process away from the SQLite connections of its parent.

SQLite's locks are POSIX locks: they stay with the process that took them, but the library in the
child goes on as if it held them, even on a connection that it opens itself to a file that was open
when the fork happened. Two processes could then write one WAL at once. So in a child such files are
refused, and inherited connections are never used and never closed.
"""

import os
from typing import Any, Protocol
from weakref import WeakSet

from keystore.errors import ForkedError


class Inheritable(Protocol):
    """Something with a connection to a file."""

    path: Any
    conn: Any
    is_inherited: bool


class Told(Protocol):
    """Something that must know that it is in a child now."""

    def stop_after_fork(self) -> None:
        """Called in the child, before anything else runs there."""


_open: "WeakSet[Any]" = WeakSet()
_told: "WeakSet[Any]" = WeakSet()
_inherited: set[tuple[int, int]] = set()
_kept: list[Any] = []
"""Connections of the parent: to be collected would close them."""


def opened(file: Inheritable) -> None:
    """Note an open file."""
    _open.add(file)


def closed(file: Inheritable) -> None:
    """Note that it is open no more."""
    _open.discard(file)


def tell(who: Told) -> None:
    """Call ``who.stop_after_fork()`` in every child."""
    _told.add(who)


def refuse_inherited(file: Inheritable) -> None:
    """Raise ForkedError if the process was forked since ``file`` was opened."""
    if file.is_inherited:
        raise ForkedError(
            f"{file.path}: it was opened before this process was forked.",
            hint="Open it in each process: in a worker's start-up hook, without preloading.",
        )


def refuse_open_in_parent(path: Any) -> None:
    """Raise ForkedError if the file at ``path`` was open when the process was forked."""
    if _inherited and _identity(path) in _inherited:
        raise ForkedError(
            f"{path}: it was open when this process was forked, and cannot be opened here.",
            hint="Open it after the fork only, or start processes with spawn.",
        )


def _identity(path: Any) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - it may be text or a Path
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _after_fork() -> None:
    for file in list(_open):
        file.is_inherited = True
        _kept.append(file.conn)
        found = _identity(file.path)
        if found is not None:
            _inherited.add(found)
    for who in list(_told):
        who.stop_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
