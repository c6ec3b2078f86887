"""Virtual time and chance for keystore's own code, in one process and one thread.

While :meth:`World.installed` lasts, the modules of keystore see other ``time``, ``datetime``,
``uuid`` and ``secrets`` than the rest of the program. Whoever acts (:meth:`World.acting`) has a
clock of its own, and all that is random comes from one seeded generator. SQLite's own
CURRENT_TIMESTAMP and random() are replaced on each connection; ``datetime('now')``, which only the
lease of a compaction and one finding of the doctor ask for, shows the real time.
"""

import datetime as dt
import secrets
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import uuid_utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api import _payload as tuf_payload
from tuf.ngclient._internal import trusted_metadata_set as tuf_trust

from keystore import clock, db, failpoint
from keystore.errors import DiskFullError
from keystore.sync import repository_keys, usage_keys

BEGIN = 1_577_836_800.0
"""When every history begins, Unix seconds: long ago, so that no real time is later by accident."""
_OURS = "keystore."
_NOT_OURS = "keystore.testing."


class Crash(BaseException):
    """Stands for the end of a process: nothing catches it on the way."""


@dataclass(slots=True)
class Clock:
    """What a node's clock shows: ``offset`` seconds off, and ``drift`` seconds per second.

    The monotonic clock drifts, too. It cannot be set, and starts anew with the machine.
    """

    offset: float = 0.0
    drift: float = 0.0
    _since: float = BEGIN
    _ticked: float = 0.0

    def wall(self, now: float) -> float:
        """Return the time that it shows at the true time ``now``."""
        return now + self.offset + (now - self._since) * self.drift

    def ticks(self, now: float) -> float:
        """Return the monotonic time."""
        return self._ticked + (now - self._since) * (1 + self.drift)

    def set(self, now: float, offset: float, drift: float) -> None:
        """Set it ``offset`` seconds from the true time, and let it drift."""
        self._ticked, self._since = self.ticks(now), now
        self.offset, self.drift = offset, drift

    def boot(self, now: float, ticks: float) -> None:
        """Start the monotonic time anew; the clock on the board has gone on."""
        self.set(now, self.wall(now) - now, self.drift)
        self._ticked = ticks


@dataclass(slots=True)
class Fault:
    """What goes wrong during a step, when it has come ``after`` so many points; once."""

    kind: str = ""
    after: int = 0
    has_struck: bool = False
    last: str = ""

    def strikes(self) -> bool:
        """Count a point; whether it is the one."""
        if self.has_struck or self.after:
            self.after -= 1
            return False
        self.has_struck = True
        return True


class World:
    """The true time, whose clock is looked at, what is random, and what goes wrong."""

    def __init__(self, seed: object) -> None:
        self.now = BEGIN
        self.rng = Random(str(seed))  # noqa: S311 - a simulation repeats
        self.clock = Clock()
        self.fault = Fault()

    def time(self) -> float:
        """Return what the clock of whoever acts shows."""
        return self.clock.wall(self.now)

    def pass_time(self, seconds: float) -> None:
        """Let so many seconds go by."""
        self.now += seconds

    @contextmanager
    def acting(self, clock: Clock) -> Iterator[None]:
        """Let keystore see this clock."""
        before, self.clock = self.clock, clock
        try:
            yield
        finally:
            self.clock = before

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Let something go wrong meanwhile."""
        before, self.fault = self.fault, fault
        try:
            yield
        finally:
            self.fault = before

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace what tells keystore of time and chance, and be told of its failpoints.

        Not for two worlds at once, nor for a program whose other threads use keystore.
        """
        undo: list[tuple[Any, str, Any]] = []

        def put(place: Any, name: str, value: Any) -> None:
            undo.append((place, name, getattr(place, name)))
            setattr(place, name, value)

        shown = self._shown()
        for name, module in list(sys.modules.items()):
            if not name.startswith(_OURS) or name.startswith(_NOT_OURS) or module is None:
                continue
            for attribute, value in list(vars(module).items()):
                if id(value) in shown:
                    put(module, attribute, shown[id(value)])
        put(tuf_payload, "datetime", shown[id(dt.datetime)])
        replaced = _Shown(dt, datetime=shown[id(dt.datetime)])
        put(tuf_trust, "datetime", replaced)
        put(repository_keys, "CryptoSigner", self._signer())
        put(usage_keys, "Ed25519PrivateKey", _Shown(Ed25519PrivateKey, generate=self._key))
        put(db, "connect", self._connect(db.connect))
        put(failpoint, "on_reach", self._on_reach)
        try:
            yield
        finally:
            for place, name, value in reversed(undo):
                setattr(place, name, value)

    def uuid4(self) -> uuid.UUID:
        """Return a UUID of version 4."""
        return uuid.UUID(int=self.rng.getrandbits(128), version=4)

    def uuid7(self) -> uuid.UUID:
        """Return a UUID of version 7, by the clock of whoever acts; each is a moment later."""
        self.now += 0.001
        moment = int(self.time() * 1000)
        bits = moment << 80 | self.rng.getrandbits(80)
        bits = bits & ~(0xF << 76) | 7 << 76
        return uuid.UUID(int=bits & ~(0x3 << 62) | 2 << 62)

    def _time_ns(self) -> int:
        self.now += 0.000_001
        return int(self.time() * 1_000_000) * 1000

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.rng.randbytes(32))

    def _signer(self) -> type[CryptoSigner]:
        world = self

        class Signer(CryptoSigner):
            @staticmethod
            def generate_ed25519(keyid: str | None = None) -> CryptoSigner:  # noqa: ARG004
                return CryptoSigner(world._key())

        return Signer

    def _on_reach(self, step: str) -> None:
        fault = self.fault
        is_again, fault.last = step == fault.last, step
        if is_again:
            return  # pages are many, and would take most of the faults
        if fault.kind == "crash" and fault.strikes():
            raise Crash(step)
        if fault.kind == "full" and fault.strikes():
            raise DiskFullError(f"no room left, at {step}.", hint="Make room, then try again.")

    def _shown(self) -> dict[int, Any]:
        world = self

        class VirtualDatetime(dt.datetime):
            @classmethod
            def now(cls, tz: dt.tzinfo | None = None) -> "VirtualDatetime":
                return cls.fromtimestamp(world.time(), tz)

        virtual_time = _Shown(
            time,
            time=self.time,
            time_ns=self._time_ns,
            monotonic=lambda: self.clock.ticks(self.now),
            gmtime=lambda at=None: time.gmtime(self.time() if at is None else at),
            sleep=self.pass_time,
        )
        return {
            id(time): virtual_time,
            id(dt.datetime): VirtualDatetime,
            id(uuid): _Shown(uuid, uuid4=self.uuid4),
            id(uuid_utils): _Shown(uuid_utils, compat=_Shown(uuid_utils.compat, uuid7=self.uuid7)),
            id(secrets): _Shown(secrets, randbits=self.rng.getrandbits),
        }

    def _connect(self, connect: Any) -> Any:
        def connected(path: Path, **options: Any) -> Any:
            conn = connect(path, **options)
            # (functions of the same name take the place of SQLite's own, in defaults as well)
            conn.create_function("current_timestamp", 0, lambda: clock.utc_text(self.time()))
            conn.create_function("random", 0, lambda: self.rng.getrandbits(64) - (1 << 63))
            return conn

        return connected


class _Shown:
    """A module or a class, some of whose names are others."""

    def __init__(self, real: Any, **names: Any) -> None:
        self._real = real
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
