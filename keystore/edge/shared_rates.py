"""What is left of each key's rate, for all processes that map the same memory.

A table of key ids and times in groups of a few slots; a key belongs to one group, and whoever looks
at a group has locked it: with a range of a POSIX lock against other processes, which the system
takes back from one that dies, and with a mutex against other threads. The times are those of the
monotonic clock, which is the same in all processes of a machine.

A group that is full drops a key whose burst is whole, which is as if it had never come. If there is
none, a key that is not in it must wait: the table never forgets what was used.
"""

import fcntl
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

from keystore.edge.decision import Rate, RateLimit
from keystore.edge.rates import peek, spend

GROUPS = 8192
SLOTS = 32
"""Room for 262,144 keys that are short of their burst at once, in 4 MB that are used as needed."""
_ORIGIN_BYTES = 16
_SLOT_BYTES = 16
SIZE = 64 + GROUPS * SLOTS * _SLOT_BYTES
"""Bytes of memory that the table takes."""


def anonymous_file(size: int) -> int:
    """Return a descriptor of memory that children may inherit, and that goes with the last one."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("keystore")
    else:
        descriptor, path = tempfile.mkstemp(prefix="keystore-")
        os.unlink(path)  # noqa: PTH108 - a Path is no use here
    os.ftruncate(descriptor, size)
    return descriptor


class SharedRates:
    """The times of several processes.

    Args:
        descriptor: a file that all of them have open, which nobody else locks: closing another
            descriptor of it in this process would give back the locks.
        memory: the same file, mapped; the table takes its first :data:`SIZE` bytes.
    """

    def __init__(self, descriptor: int, memory: mmap.mmap) -> None:
        whole = memoryview(memory)
        self._descriptor = descriptor
        self._origin = whole[:_ORIGIN_BYTES]
        middle = 64 + GROUPS * SLOTS * 8
        self._ids = whole[64:middle].cast("q")
        self._times = whole[middle:SIZE].cast("d")
        self._mutex = threading.Lock()

    def take(self, api_key_id: int, rate: Rate) -> RateLimit:
        """Count one check of a key, if its rate allows one."""
        first = api_key_id % GROUPS * SLOTS
        with self._locked(first, 1):
            now = time.monotonic()
            slot, free_at = self._slot(api_key_id, first, now)
            if slot < 0:
                return RateLimit(rate, 0, free_at - now, free_at - now)
            whole_at = self._times[slot] if self._ids[slot] == api_key_id else now
            left, whole_at = spend(whole_at, now, rate)
            if not left.retry_after:
                # In this order: killed in between, this is at worst another key's time, too late.
                self._times[slot] = whole_at
                self._ids[slot] = api_key_id
        return left

    def look(self, api_key_id: int, rate: Rate) -> RateLimit:
        """Say what is left for a key, and count nothing."""
        first = api_key_id % GROUPS * SLOTS
        with self._locked(first, 1):
            now = time.monotonic()
            slot, free_at = self._slot(api_key_id, first, now)
            if slot < 0:
                return RateLimit(rate, 0, free_at - now, free_at - now)
            whole_at = self._times[slot] if self._ids[slot] == api_key_id else now
        return peek(whole_at, now, rate)

    def clear(self, origin_id: str) -> None:
        """Forget all keys, unless another process has done so for this origin."""
        origin = sha256(origin_id.encode()).digest()[:_ORIGIN_BYTES]
        with self._locked(0, GROUPS * SLOTS):
            if self._origin != origin:
                self._ids[:] = memoryview(bytes(GROUPS * SLOTS * 8)).cast("q")
                self._origin[:] = origin

    def _slot(self, api_key_id: int, first: int, now: float) -> tuple[int, float]:
        """Return the slot of a key, or one that is free; or -1, and when one will be."""
        ids = self._ids[first : first + SLOTS].tolist()
        for wanted in (api_key_id, 0):
            if wanted in ids:
                return first + ids.index(wanted), now
        free_at, slot = min(
            zip(self._times[first : first + SLOTS].tolist(), range(SLOTS), strict=True)
        )
        return (first + slot, now) if free_at <= now else (-1, free_at)

    @contextmanager
    def _locked(self, first: int, length: int) -> Iterator[None]:
        with self._mutex:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX, length, first)
            try:
                yield
            finally:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, length, first)
