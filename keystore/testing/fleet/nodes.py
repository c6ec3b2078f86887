"""The nodes of a simulated fleet: origins and edges, each with its file, its clock, its process."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from keystore import sql
from keystore.backup import backup, restore
from keystore.db import StoreFile, open_store, remove_files, scalar
from keystore.edge import Validator
from keystore.errors import KeystoreError
from keystore.store import Store
from keystore.testing.fleet.links import LinkedStorage
from keystore.testing.fleet.world import Clock, World

_Q = sql.named("simulator")
_NO_END = 0xFFFF_FFFE
"""SQLite's own bound of pages."""


@dataclass(slots=True)
class Issued:
    """A key that an operator has issued: its UUID, its id at its origin, its token."""

    api_key: str
    api_key_id: int
    token: str


class Node:
    """One store, and the process that has it open.

    ``counted`` is what its validator has let pass in units, ``written`` what stood in the UsageLog
    when that was opened.
    """

    def __init__(self, world: World, name: str, folder: Path, max_pending: int) -> None:
        self.world, self.name = world, name
        self.folder, self.path = folder, folder / f"{name}.db"
        self.clock = Clock()
        self.cut_until = 0.0
        self.backup: Path | None = None
        self.counted = self.written = 0
        self.shown: tuple[float, float, object] | None = None
        self._max_pending = max_pending
        self._file: StoreFile | None = None
        self._validator: Validator | None = None

    @property
    def is_cut(self) -> bool:
        """Whether the network leaves it out."""
        return self.world.now < self.cut_until

    @property
    def file(self) -> StoreFile:
        """The open store."""
        if self._file is None:
            self._file = open_store(self.path)
        return self._file

    @property
    def validator(self) -> Validator:
        """The open validator."""
        if self._validator is None:
            self.written = self.metered()
            self.counted, self.shown = 0, None
            self._validator = Validator(self.path, max_pending=self._max_pending)
        return self._validator

    @property
    def is_checking(self) -> bool:
        """Whether its validator is open."""
        return self._validator is not None

    def metered(self) -> int:
        """Return the units that its validators have written to the UsageLog."""
        return int(scalar(self.file.conn, _Q["metered"]))

    def stop(self) -> None:
        """End the process in order."""
        validator, self._validator = self._validator, None
        try:
            if validator is not None:
                validator.close()
        finally:
            self._close()

    def die(self) -> None:
        """End the process as SIGKILL does: what was counted and not written is gone."""
        validator, self._validator = self._validator, None
        if validator is not None:
            validator.stop_after_fork()  # it forgets what it has counted and leased
            with suppress(KeystoreError):
                validator.close()
        self._close()
        self.clock.boot(self.world.now, self.world.rng.uniform(0, 3600))

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    @contextmanager
    def without_room(self) -> Iterator[None]:
        """Let the disk be full: the database cannot grow."""
        conns = [self.file.conn]
        if self._validator is not None:
            conns.append(self._validator._writer.conn)  # noqa: SLF001 - nobody else needs it
        for conn in conns:
            conn.execute("PRAGMA max_page_count = 1")  # (what there is, stays)
        try:
            yield
        finally:
            for conn in conns:
                with suppress(Exception):
                    conn.execute(f"PRAGMA max_page_count = {_NO_END}")

    def back_up(self) -> None:
        """Keep a backup."""
        path = self.folder / f"{self.name}.backup"
        remove_files(path)
        backup(self.file, path)
        self.backup = path

    def restore(self, *, as_image: bool) -> bool:
        """Put the store back to the last backup; whether there was one.

        ``as_image``: as a disk's image is put back, without a word to the store.
        """
        if self.backup is None:
            return False
        self.die()
        remove_files(self.path)
        if as_image:
            with open_store(self.backup) as file:
                backup(file, self.path)
        else:
            restore(self.backup, self.path)
        return True

    def time_went_back(self) -> str:
        """Say if a replica's time, in one process and without a newer pull, is not what it was."""
        validator = self.validator
        fresh = validator.freshness()
        ticks, now = self.clock.ticks(self.world.now), validator.now()
        as_of = fresh and (fresh.as_of_change, fresh.as_of_at)
        before, self.shown = self.shown, (ticks, now, as_of)
        if before is None or as_of is None or before[2] != as_of:
            return ""
        least = before[1] + ticks - before[0]
        return (
            f"its time is {now:.0f}, and should be {least:.0f} at least" if now < least - 1 else ""
        )


class Origin(Node):
    """Where an operator writes; it publishes to the hub, and to files if it has keys."""

    def __init__(self, world: World, name: str, folder: Path) -> None:
        super().__init__(world, name, folder, max_pending=50)
        self.keys = folder / f"{name}.keys"
        self.issued: list[Issued] = []
        self.inbox = folder / f"{name}.inbox"
        self.inbox.mkdir()
        self.lost = folder / f"{name}.lost"
        self.lost.mkdir()
        Store.create(self.path).close()
        self.store_id = self.file.info().store_id

    @property
    def store(self) -> Store:
        """The admin side, over the open file."""
        return Store(self.file)


class Edge(Node):
    """A replica, fed by the hub or by files.

    ``has_called``: it has checked in at the hub since it was made or copied, or either put back.
    """

    def __init__(
        self, world: World, name: str, folder: Path, origin: Origin, storage: LinkedStorage | None
    ) -> None:
        super().__init__(world, name, folder, max_pending=world.rng.choice([1, 5, 100]))
        self.origin, self.storage = origin, storage
        self.has_called = False
        self.key = folder / f"{name}.usage-key.pem"
        self.outbox = folder / f"{name}.outbox"
        self.outbox.mkdir()
