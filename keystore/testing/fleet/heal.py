"""The end of a history: everything heals, everybody syncs, and then all must agree."""

from collections import defaultdict
from contextlib import suppress

from keystore import sql
from keystore.doctor import examine
from keystore.errors import (
    AlreadyExistsError,
    CompactedLogError,
    ExpiredRepositoryError,
    ForkedStoreError,
    NotFoundError,
    RevokedUsageKeyError,
    StaleTargetError,
    UntrustedRepositoryError,
)
from keystore.sync import digest, usage_files, usage_keys
from keystore.testing.fleet.model import BrokenError, fingerprint, received, secrets_at_rest
from keystore.testing.fleet.nodes import Edge, Origin
from keystore.testing.fleet.setup import LARGE_QUOTA, Fleet
from keystore.testing.fleet.world import Fault

_Q = sql.named("simulator")
_ROUNDS = 40
"""How often an origin may have to write until an edge that was ahead of it follows."""


def heal(fleet: Fleet) -> None:
    """Set clocks right, mend the network, and let everybody sync until nothing is left to tell."""
    fleet.world.fault = Fault()
    fleet.world.pass_time(3600)
    for node in fleet.nodes:
        node.clock.set(fleet.world.now, 0.0, 0.0)
        node.cut_until = 0.0
        with fleet.world.acting(node.clock):
            node.stop()
    for number in range(3):
        for origin in fleet.origins:
            with fleet.acting(origin):
                origin.store.add_service(f"healed-{number}-{fleet.world.rng.getrandbits(60)}")
                _settle(fleet, origin)
        for edge in fleet.edges:
            _follow(fleet, edge)
            _hand_over(fleet, edge)
        fleet.world.pass_time(60)
    for origin in fleet.origins:
        with fleet.acting(origin):
            _settle(fleet, origin)
    for edge in fleet.edges:
        _follow(fleet, edge)


def check_all(fleet: Fleet) -> None:
    """Check what must hold when everybody has heard of everything.

    Raises:
        BrokenError: it does not.
    """
    for node in fleet.nodes:
        with fleet.world.acting(node.clock):
            fleet.model.look(node)
    fleet.model.look_at_hub(fleet.hub)
    for origin in fleet.origins:
        wanted = fingerprint(digest.digest_store(origin.file))
        with fleet.hub.pull(origin.store_id, None) as cut:
            if fingerprint(cut.digests() or {}) != wanted:
                raise BrokenError(1, f"the hub is not as {origin.name}")
        for edge in fleet.edges:
            if edge.origin is origin and fingerprint(digest.digest_store(edge.file)) != wanted:
                raise BrokenError(1, f"{edge.name} is not as {origin.name}")
        _check_quotas(fleet, origin)
    _check_revocations(fleet)
    _check_usage(fleet)
    for node in fleet.nodes:
        with fleet.world.acting(node.clock):
            found = [item for item in examine(node.file) if item.severity != "info"]
        if found:
            raise BrokenError(0, f"the doctor of {node.name}: {found[0].id}: {found[0].what}")
    tokens = [issued.token for origin in fleet.origins for issued in origin.issued]
    if leaked := secrets_at_rest(fleet.folder, tokens):
        raise BrokenError(7, f"a token is in {leaked[0]}")


def _settle(fleet: Fleet, origin: Origin) -> None:
    """Sync an origin as its operator does: reconcile if, and only if, that is asked for."""
    for act in (fleet.sync, fleet.publish):
        for _ in range(2):
            try:
                act(origin)
            except ForkedStoreError:
                act(origin, reconcile=True)
            except CompactedLogError:
                act(origin)


def _follow(fleet: Fleet, edge: Edge) -> None:
    """Pull; if the edge is ahead of an origin that was put back, when that has counted past it."""
    for _ in range(_ROUNDS):
        try:
            with fleet.acting(edge):
                if edge.storage is None:
                    fleet.sync(edge)
                else:
                    fleet.pull_files(edge)
        except (StaleTargetError, ExpiredRepositoryError, UntrustedRepositoryError) as error:
            last = error
            with fleet.acting(edge.origin):
                for _ in range(20):
                    name = f"for-a-moment-{fleet.world.rng.getrandbits(60)}"
                    edge.origin.store.add_service(name)
                fleet.world.pass_time(60)
                _settle(fleet, edge.origin)
        else:
            return
    raise BrokenError(6, f"{edge.name} cannot follow its origin any more: {last.code}: {last}")


def _hand_over(fleet: Fleet, edge: Edge) -> None:
    """Write all usage files of an edge, again as well, and take them at its origin."""
    if edge.storage is None:
        return
    with fleet.acting(edge):
        data, _, _ = usage_keys.make_key(edge.file, edge.key)
        # (elsewhere: who was put back as an image may have written other files of these numbers)
        outbox = edge.outbox / "again"
        outbox.mkdir(exist_ok=True)
        usage_files.export(edge.file, outbox, edge.key)
        with suppress(NotFoundError):  # it has recorded nothing
            usage_files.export_again(edge.file, outbox, edge.key, 1, 1 << 40)
    with fleet.acting(edge.origin):
        try:
            usage_keys.enroll(edge.origin.file, data)
        except (AlreadyExistsError, RevokedUsageKeyError) as error:
            raise BrokenError(3, f"{edge.name} cannot be enrolled: {error}") from error
        done = usage_files.ingest(edge.origin.file, sorted(edge.outbox.rglob("*.usage")))
    if done.refused:
        raise BrokenError(3, f"a file of {edge.name} is refused: {done.refused[0].message}")


def _check_usage(fleet: Fleet) -> None:
    usage = {("usage", *row) for row in fleet.hub.usage}
    ledger = {("ledger", *row) for row in fleet.hub.ledger}
    for origin in fleet.origins:
        if missing := fleet.model.missing(origin, usage | ledger):
            raise BrokenError(3, f"the hub lacks {missing[0]} of {origin.name}")
        for balance, total in origin.file.conn.execute(_Q["balances"]):
            if balance != total:
                raise BrokenError(3, f"a balance of {origin.name} is {balance}, not {total}")
        taken = received(origin)
        for row, amount in taken.items():
            if fleet.model.rows.get(row) != amount:
                raise BrokenError(3, f"{origin.name} has taken {row}, which nobody recorded")
        for edge in fleet.edges:
            if edge.origin is not origin:
                continue
            held = usage if edge.storage is None else taken.keys()
            if missing := fleet.model.missing(edge, held):
                raise BrokenError(3, f"{missing[0]} of {edge.name} has not arrived")


def _check_quotas(fleet: Fleet, origin: Origin) -> None:
    """What is left of a large quota is what was given less what was used; no less otherwise."""
    used: defaultdict[tuple[int, int], int] = defaultdict(int)
    counted = set()
    heirs = dict(origin.file.conn.execute(_Q["successors"]))  # a rotation moves quotas
    for row, (owner, found) in fleet.hub.usage.items():
        if owner == origin.store_id and found.principal_type == "api_key" and found.service_id:
            counted.add(row)
            heir = heirs.get(found.principal_id, found.principal_id)
            used[heir, found.service_id] += found.amount
    for row in origin.file.conn.execute(_Q["received_of_services"]):
        if row[:3] not in counted:
            used[heirs.get(row[3], row[3]), row[4]] += row[5]
    for key, service, initial, remaining in origin.file.conn.execute(_Q["quotas"]):
        if initial >= LARGE_QUOTA and (fleet.is_exact or remaining > initial):
            left = initial - used[key, service]
            if remaining != left:
                raise BrokenError(3, f"a quota of {origin.name} has {remaining} left, not {left}")


def _check_revocations(fleet: Fleet) -> None:
    for node in fleet.nodes:
        origin = node if isinstance(node, Origin) else node.origin  # type: ignore[attr-defined]
        revoked = {item.api_key for item in fleet.hub.revocations(origin.store_id, 0, None)}
        with fleet.world.acting(node.clock):
            for issued in origin.issued:
                decision = node.validator.check(issued.token, cost=0)
                if decision.allowed and issued.api_key in revoked:
                    raise BrokenError(2, f"{node.name} lets a key pass that the hub has revoked")
                fleet.model.check(node, issued.api_key, decision, may_fail=False)
