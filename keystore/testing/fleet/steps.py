"""What can happen in a simulated fleet, one function for each kind of step.

A step draws what it needs from the world's generator, which is seeded anew before each; so a
history from which others were dropped goes on as it did, as far as it can.
"""

from collections.abc import Callable
from datetime import timedelta

from keystore.edge.decision import Reason
from keystore.sync import compact, rotation, usage_files, verify
from keystore.sync.repository_keys import root_key_path
from keystore.testing.fleet.links import LinkedHub, LinkedStorage, put_back, state_of
from keystore.testing.fleet.model import BrokenError
from keystore.testing.fleet.nodes import Edge, Node, Origin
from keystore.testing.fleet.operators import (
    any_key,
    any_origin,
    change_account,
    credit,
    delete,
    issue,
    revoke,
    revoke_at_hub,
    rotate,
    suspend,
    top_up,
)
from keystore.testing.fleet.setup import MOST_EDGES, Fleet

_DAY = 86_400.0
_RECONCILES = 0.3
"""How often an operator says that this copy is the one to go on with, unasked."""
_LEASES = (timedelta(0), timedelta(days=36_500))
"""Of a compaction: no target counts as live, or each."""

Step = Callable[[Fleet], None]


def _edge(fleet: Fleet, *, by_files: bool | None = None) -> Edge | None:
    found = [
        edge for edge in fleet.edges if by_files is None or (edge.storage is not None) == by_files
    ]
    return fleet.world.rng.choice(found) if found else None


def _node(fleet: Fleet) -> Node:
    return fleet.world.rng.choice(fleet.nodes)


def check(fleet: Fleet) -> None:
    """Let clients come."""
    node, rng = _node(fleet), fleet.world.rng
    with fleet.acting(node):
        may_fail = fleet.world.fault.kind == "full"
        origin = node if isinstance(node, Origin) else node.origin  # type: ignore[attr-defined]
        validator = node.validator
        for _ in range(rng.randint(1, 6)):
            key = any_key(fleet, origin)
            cost = rng.randint(1, 9)
            if rng.random() < 0.4:
                if validator.check(key.token, service="tts", cost=cost).allowed:
                    node.counted += cost
                continue
            decision = validator.check(key.token, cost=cost)
            node.counted += cost if decision.allowed else 0
            fleet.model.check(node, key.api_key, decision, may_fail=may_fail)
            fleet.world.pass_time(rng.choice([0.0, 0.01, 2.0]))
        if rng.random() < 0.5:
            validator.flush()


def sync_origin(fleet: Fleet) -> None:
    """An origin syncs with the hub."""
    origin = any_origin(fleet)
    with fleet.acting(origin):
        fleet.sync(origin, reconcile=fleet.world.rng.random() < _RECONCILES)


def publish(fleet: Fleet) -> None:
    """An origin publishes in files."""
    origin = any_origin(fleet)
    with fleet.acting(origin):
        fleet.publish(origin, reconcile=fleet.world.rng.random() < _RECONCILES)


def sync_edge(fleet: Fleet) -> None:
    """An edge syncs with the hub."""
    edge = _edge(fleet, by_files=False)
    if edge is not None:
        with fleet.acting(edge):
            fleet.sync(edge)


def pull_files(fleet: Fleet) -> None:
    """An edge pulls from files."""
    edge = _edge(fleet, by_files=True)
    if edge is not None:
        with fleet.acting(edge):
            fleet.pull_files(edge)


def tamper(fleet: Fleet) -> None:
    """Somebody on the way gives an edge other files than were published."""
    edge, rng = _edge(fleet, by_files=True), fleet.world.rng
    if edge is None or edge.storage is None:
        return
    older = fleet.older[edge.origin.name]
    name = rng.choice(sorted(edge.storage.files))
    data = bytearray(edge.storage.files[name])
    if rng.random() < 0.3 and older:
        name, data = "metadata/timestamp.json", bytearray(rng.choice(older))
    elif rng.random() < 0.5:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        del data[rng.randrange(len(data)) :]
    edge.storage.altered = {name: bytes(data)}
    try:
        with fleet.acting(edge):
            fleet.pull_files(edge)
    finally:
        edge.storage.altered = {}


def replicate(fleet: Fleet) -> None:
    """A new edge."""
    if len(fleet.edges) < MOST_EDGES:
        fleet.add_edge(any_origin(fleet), by_files=fleet.world.rng.random() < 0.4)


def clone(fleet: Fleet) -> None:
    """An edge's disk is copied, and both go on."""
    edge = _edge(fleet)
    if edge is not None and len(fleet.edges) < MOST_EDGES:
        with fleet.acting(edge):
            fleet.add_clone(edge)
        fleet.touched.append(fleet.edges[-1])


def stop(fleet: Fleet) -> None:
    """A process ends in order."""
    node = _node(fleet)
    with fleet.acting(node):
        node.stop()


def kill(fleet: Fleet) -> None:
    """A process is killed."""
    node = _node(fleet)
    with fleet.acting(node):
        node.die()


def back_up(fleet: Fleet) -> None:
    """A node is backed up."""
    node = _node(fleet)
    with fleet.acting(node):
        node.back_up()


def restore(fleet: Fleet) -> None:
    """A node is put back to its last backup."""
    node = _node(fleet)
    with fleet.acting(node):
        if node.restore(as_image=fleet.world.rng.random() < 0.4):
            fleet.model.forget(node)
            fleet.is_exact = False
            if isinstance(node, Edge):
                node.has_called = False


def back_up_hub(fleet: Fleet) -> None:
    """The hub is backed up."""
    fleet.hub_backup = state_of(fleet.hub)


def restore_hub(fleet: Fleet) -> None:
    """The hub is put back."""
    put_back(fleet.hub, fleet.hub_backup)
    fleet.model.forget_hub()
    fleet.is_exact = False
    for edge in fleet.edges:
        edge.has_called = False  # as far as the hub knows


def set_clock(fleet: Fleet) -> None:
    """A clock jumps, drifts, or is set right."""
    node, rng = _node(fleet), fleet.world.rng
    clock, now = node.clock, fleet.world.now
    offset = clock.wall(now) - now
    match rng.randrange(3):
        case 0:
            clock.set(now, 0.0, 0.0)
        case 1:
            jump = rng.choice([-1, 1]) * rng.choice([3, 90, 4000, _DAY])
            clock.set(now, offset + jump, clock.drift)
        case 2:
            clock.set(now, offset, rng.uniform(-0.01, 0.01))


def wait(fleet: Fleet) -> None:
    """Hours or days go by."""
    fleet.world.pass_time(fleet.world.rng.choice([600, 4000, _DAY / 2, 2 * _DAY]))


def cut(fleet: Fleet) -> None:
    """The network leaves a node out for a while."""
    node = _node(fleet)
    node.cut_until = fleet.world.now + fleet.world.rng.uniform(600, 2 * _DAY)


def export_usage(fleet: Fleet) -> None:
    """An edge writes its usage into files."""
    edge = _edge(fleet, by_files=True)
    if edge is not None:
        with fleet.acting(edge):
            usage_files.export(edge.file, edge.outbox, edge.key)


def ingest_usage(fleet: Fleet) -> None:
    """Usage files come to an origin: some of them, in any order, some of them twice."""
    origin, rng = any_origin(fleet), fleet.world.rng
    found = [
        path
        for edge in fleet.edges
        if edge.origin is origin
        for path in sorted(edge.outbox.glob("*.usage"))
    ]
    if found:
        with fleet.acting(origin):
            usage_files.ingest(origin.file, rng.choices(found, k=rng.randint(1, len(found))))


def lose_file(fleet: Fleet) -> None:
    """A store's file is away for a moment: nobody passes, and nobody is told "no"."""
    node = _node(fleet)
    with fleet.acting(node):
        origin = node if isinstance(node, Origin) else node.origin  # type: ignore[attr-defined]
        key = any_key(fleet, origin)
        node.validator.check(key.token, cost=0)
        away = node.path.with_suffix(".away")
        node.path.rename(away)
        try:
            fleet.world.pass_time(1)
            decision = node.validator.check(key.token, cost=0)
        finally:
            away.rename(node.path)
        if decision.reason is not Reason.UNAVAILABLE:
            raise BrokenError(5, f"without its file {node.name} says {decision.reason.value}")


def lose_usage(fleet: Fleet) -> None:
    """A usage file is lost on the way."""
    edge = _edge(fleet, by_files=True)
    if edge is not None and (found := sorted(edge.outbox.glob("*.usage"))):
        fleet.world.rng.choice(found).unlink()


def rotate_keys(fleet: Fleet) -> None:
    """The keys that sign a repository are replaced, or its root lives longer."""
    origin, rng = any_origin(fleet), fleet.world.rng
    with fleet.acting(origin):
        rotation.rotate(
            LinkedStorage(fleet.world, fleet.storages[origin.name]),
            origin.keys,
            root_key=root_key_path(origin.keys),
            online=rng.random() < 0.6,
            root=rng.random() < 0.4,
        )


def shorten(fleet: Fleet) -> None:
    """A ChangeLog is compacted."""
    node = _node(fleet)
    with fleet.acting(node):
        compact.compact(node.file, lease=fleet.world.rng.choice(_LEASES))


def repair(fleet: Fleet) -> None:
    """A replica is compared with the hub, and repaired: nothing was to be repaired."""
    edge = _edge(fleet, by_files=False)
    if edge is not None and not edge.is_cut:
        with fleet.acting(edge):
            hub = LinkedHub(fleet.world, fleet.hub)
            found = verify.verify(edge.file, hub, "hub:", repair=True)
            if found.differences and fleet.is_exact:
                raise BrokenError(1, f"{edge.name} differs from the hub")


WEIGHTS: dict[Step, int] = {
    check: 24,
    sync_edge: 14,
    sync_origin: 9,
    pull_files: 5,
    publish: 4,
    issue: 5,
    revoke: 3,
    revoke_at_hub: 3,
    rotate: 2,
    delete: 2,
    suspend: 2,
    change_account: 1,
    top_up: 2,
    credit: 3,
    wait: 3,
    set_clock: 3,
    cut: 1,
    stop: 1,
    kill: 2,
    back_up: 2,
    restore: 1,
    clone: 1,
    replicate: 1,
    back_up_hub: 1,
    restore_hub: 1,
    export_usage: 3,
    ingest_usage: 3,
    lose_usage: 1,
    lose_file: 1,
    rotate_keys: 1,
    tamper: 2,
    shorten: 1,
    repair: 1,
}
"""Every kind of step, and how often it comes."""

BY_NAME = {step.__name__: step for step in WEIGHTS}
