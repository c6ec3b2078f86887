"""The units of quotas that this process has taken from the file and may spend.

Spending one unit takes no lock: a step of an iterator is atomic, and an iterator that has ended
stays ended. Other amounts are taken by one thread at a time.
"""

from operator import length_hint
from typing import TYPE_CHECKING, NamedTuple

from keystore import quotas
from keystore.db import StoreFile

if TYPE_CHECKING:
    from collections.abc import Iterator


class Grant(NamedTuple):
    """What a key may use a service by: its quota, as the last look at the file found it.

    Without what is left, which others spend: what was taken of it stays taken.
    """

    quota_id: int
    service_id: int
    initial_quota: int
    renewal: str
    renewed_at: str


class Supply(NamedTuple):
    """Where leases come from, at a time: ``seen`` changes with each commit, ``None``: who knows."""

    file: StoreFile
    store_id: str
    now: float
    seen: bytes | None


class Lease:
    """Units of one quota. The caller serialises access, ``next(lease.singles)`` apart."""

    __slots__ = ("_units", "grant", "left", "seen", "singles")

    def __init__(self, grant: Grant) -> None:
        self.grant = grant
        self.left: quotas.Left | None = None
        self.seen: bytes | None = None
        self._units = 0
        self.singles: Iterator[int] = iter(())

    @property
    def remaining(self) -> int:
        """Units that are left, in the file as far as it is known and here."""
        return self.held + (self.left.remaining if self.left else 0)

    @property
    def held(self) -> int:
        """Units that are here."""
        return self._units + length_hint(self.singles)

    def take(self, units: int) -> bool:
        """Take units, if there are so many."""
        if units == 1 and not self._units:
            return next(self.singles, None) is not None
        if self._units < units and self.gather() < units:
            return False
        self._units -= units
        return True

    def add(self, units: int) -> None:
        """Put units in."""
        self._units += units

    def offer_singles(self) -> None:
        """Let what is here be spent one by one, with ``next(lease.singles)``."""
        if self._units:
            units = self.gather()
            self._units, self.singles = 0, iter(range(units))

    def gather(self) -> int:
        """Let nothing be spent one by one any more; return how many units are here."""
        self._units += sum(1 for _ in self.singles)  # without the steps of other threads
        return self._units

    def empty(self) -> int:
        """Take everything."""
        units, self._units = self.gather(), 0
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

    def take(
        self, lease: Lease, grant: Grant, units: int, supply: Supply, *, is_buffered: bool
    ) -> bool:
        """Take units of a lease, and more of them from the file where it has too few.

        With no units to take, say whether there is one.

        Raises:
            KeystoreError: the file cannot be written.
        """
        file, store_id, now, seen = supply
        ends = lease.left.renews_at if lease.left else None
        if lease.grant == grant and lease.left is not None and (ends is None or now < ends):
            if units and lease.take(units):
                return True
            if not units and lease.remaining:
                return True
            # Used up, and nobody has written anything since: so it is still.
            if (
                lease.seen is not None
                and lease.seen == seen
                and lease.left.remaining < max(1, units)
            ):
                return False
        with file.write() as conn:
            found = quotas.left(conn, grant.quota_id, store_id, now)
            is_over = found is None or (
                lease.left is not None and found.period != lease.left.period
            )
            held, taken = 0 if is_over else lease.gather(), 0
            if found is not None and held < units:
                most = quotas.LARGEST_LEASE if is_buffered else units - held
                taken, found = quotas.lease(conn, found, units - held, most)
        # Only now: what was not committed is nobody's to spend.
        if is_over:
            lease.empty()
        lease.grant, lease.left, lease.seen = grant, found, seen
        lease.add(taken)
        if not units:
            return lease.remaining > 0
        return found is not None and lease.take(units)

    def put_back(self, quota_id: int | None, units: int) -> None:
        """Let units that were taken of a lease a moment ago be taken again."""
        if quota_id is not None:
            self._leases[quota_id].add(units)

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
                    if units and lease.left is not None:
                        quotas.give_back(conn, lease.left, units)

    def clear(self) -> None:
        """Forget all leases: these quotas are another store's."""
        for lease in self._leases.values():
            lease.empty()
        self._leases.clear()
