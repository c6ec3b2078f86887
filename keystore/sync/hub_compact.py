"""Forgets what a hub keeps of deleted records, once every live replica knows that they are gone.

The hub notes how far it has forgotten (``stores.tombstone_horizon``). A replica that comes from
before, because it was silent for longer than the lease, or never checked in, gets everything.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from keystore.errors import InvalidInputError, TargetError, TargetUnavailableError
from keystore.sync.hub_connection import HubConnection, hub_errors


@dataclass(frozen=True, slots=True)
class Compaction:
    """What was done for one origin.

    ``removed`` and ``kept`` count tombstones. ``horizon`` is the origin's change up to which they
    are forgotten; ``held_by`` are the replicas that keep it from being the latest.
    """

    origin_id: str
    removed: int
    kept: int
    horizon: int
    held_by: list[str]


def compact(hub: HubConnection, lease: float) -> Iterator[Compaction]:
    """Compact each origin in a transaction of its own; a push of it waits meanwhile.

    ``lease`` is in seconds: who has not called for longer holds nothing back. An origin that cannot
    be locked does not keep the others from their turn.

    Raises:
        InvalidInputError: the lease is negative.
        TargetUnavailableError: the first origin that had to be left out, after all had their turn.
        TargetError: whoever is connected does not own the hub.
    """
    if lease < 0:
        raise InvalidInputError("a lease cannot be negative.", hint="Give it like 30d or 12h.")
    _ = hub.target_id
    with hub_errors():
        if hub.row("is_restricted")[0]:
            raise TargetError(
                "only the hub's owner may compact it.", hint="Name the owner in the URL."
            )
        stores = [str(row[0]) for row in hub.rows("stores")]
    failures = []
    for store_id in stores:
        try:
            done = _compact(hub, store_id, lease)
        except TargetUnavailableError as error:
            failures.append(error)
        else:
            yield done
    if failures:
        raise failures[0]


def _compact(hub: HubConnection, store_id: str, lease: float) -> Compaction:
    where: dict[str, object] = {"store_id": store_id}
    with hub_errors(), hub.conn.transaction():
        hub.rows("give_up_in_time")
        # As a push does, and before the tombstones like it, or the two could wait for each other.
        acknowledged, _, before = hub.row("lock_store", **where)
        held = hub.rows("hold", **where, acknowledged=acknowledged, horizon=before, lease=lease)
        horizon, held_by = held[0] if held else (max(before, acknowledged), [])
        (removed,) = hub.row("forget_tombstones", **where, horizon=horizon)
        (kept,) = hub.row("count_tombstones", **where)
        hub.rows("set_horizon", **where, horizon=horizon)
    return Compaction(store_id, removed, kept, horizon, held_by)
