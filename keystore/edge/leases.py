"""The units of quotas that this process has taken from the file and may spend.

Spending one unit takes no lock: a step of an iterator is atomic, and an iterator that has ended stays
ended. Other amounts are taken by one thread at a time.
"""

from collections.abc import Iterator
from typing import NamedTuple

from keystore import quotas
from keystore.db import StoreFile


class Grant(NamedTuple):
    """What a key may use a service by: its quota, as the last look at the file found it."""

    quota_id: int
    service_id: int


class QuotaLeft:
    """What is left of a key's quota for a service; it goes on counting after the answer.

    ``remaining`` units were left here: in the file when it was last asked, and in this process.
    ``renews_at`` is in Unix seconds, ``None`` for a quota that never renews.
    """

    __slots__ = ("_lease", "initial", "renews_at", "service")

    def __init__(
        self, lease: "Lease", service: str, initial: int, renews_at: float | None
    ) -> None:
        self._lease, self.service = lease, service
        self.initial, self.renews_at = initial, renews_at

    @property
    def remaining(self) -> int:
        """Units that were left."""
        return self._lease.remaining

    def _asdict(self) -> dict[str, object]:
        return {
            "service": self.service,
            "initial": self.initial,
            "remaining": self.remaining,
            "renews_at": self.renews_at,
        }


class Lease:
    """Units of one quota. The caller serialises access, ``next(lease.singles)`` apart."""

    __slots__ = ("_units", "grant", "left", "period", "seen", "singles")

    def __init__(self, grant: Grant) -> None:
        self.grant = grant
        self.period = ""
        self.left: quotas.Left | None = None
        self.seen: bytes | None = None
        self._units = 0
        self.singles: Iterator[int] = iter(())

    @property
    def remaining(self) -> int:
        """Units that are left, in the file as far as it is known and here."""
        held = self._units + self.singles.__length_hint__()  # type: ignore[attr-defined]
        return held + (self.left.remaining if self.left else 0)

    def take(self, units: int) -> bool:
        """Take units, if there are so many."""
        if self._units < units:
            self._units += self.drain()
        if self._units < units:
            return False
        self._units -= units
        return True

    def add(self, units: int) -> None:
        """Put units in."""
        self._units += units

    def offer_singles(self) -> None:
        """Let what is here be spent one by one."""
        self._units += self.drain()
        self.singles, self._units = iter(range(self._units)), 0

    def drain(self) -> int:
        """Take all of what may be spent one by one; steps of other threads are not in it."""
        return sum(1 for _ in self.singles)

    def empty(self) -> int:
        """Take everything."""
        units, self._units = self._units + self.drain(), 0
        return units


class Leases:
    """All leases of one process. The caller serialises access."""

    def __init__(self) -> None:
        self._leases: dict[int, Lease] = {}

    def find(self, grant: Grant) -> Lease:
        """Return the lease of a quota; an empty one, if there is none."""
        lease = self._leases.get(grant.quota_id)
        if lease is None:
            lease = self._leases[grant.quota_id] = Lease(grant)
        return lease

    def spend(
        self,
        lease: Lease,
        grant: Grant,
        units: int,
        file: StoreFile,
        store_id: str,
        now: float,
        seen: bytes,
        *,
        is_buffered: bool,
    ) -> bool:
        """Take units of a lease, and more of them from the file where it has too few.

        ``seen`` is what the file looked like: a quota that was used up then is used up still.

        Raises:
            KeystoreError: the file cannot be written.
        """
        is_current = lease.grant is grant and lease.left is not None
        ends = lease.left.renews_at if lease.left else None
        if is_current and (ends is None or now < ends):
            if lease.take(units):
                return True
            if lease.seen == seen and lease.left is not None and lease.left.remaining < units:
                return False
        with file.write() as conn:
            most = quotas.LARGEST_LEASE if is_buffered else units
            found = quotas.lease(conn, grant.quota_id, store_id, now, units, most)
        lease.grant, lease.seen = grant, seen
        if found is None:
            lease.left = None
            return False
        taken, lease.left = found
        lease.period = lease.left.period
        lease.add(taken)
        return lease.take(units)

    def give_back(self, file: StoreFile) -> None:
        """Give back everything that was not spent.

        Raises:
            KeystoreError: the file cannot be written; the units count as spent, then.
        """
        held = [(lease, lease.empty()) for lease in self._leases.values()]
        self._leases.clear()
        if any(units for _, units in held):
            with file.write() as conn:
                for lease, units in held:
                    quotas.give_back(conn, lease.grant.quota_id, units, lease.period)

    def clear(self) -> None:
        """Forget all leases: these quotas are another store's."""
        for lease in self._leases.values():
            lease.empty()
        self._leases.clear()
