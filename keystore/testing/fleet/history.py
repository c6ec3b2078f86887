"""Runs seeded histories, checks what must hold after each step, and shrinks one that fails."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random

from keystore.errors import ConstraintError, DiskFullError, KeystoreError, TargetUnavailableError
from keystore.testing.fleet import steps
from keystore.testing.fleet.heal import check_all, heal
from keystore.testing.fleet.links import state_of
from keystore.testing.fleet.model import BrokenError
from keystore.testing.fleet.nodes import Edge, Node
from keystore.testing.fleet.setup import Fleet
from keystore.testing.fleet.world import Crash, Fault, World

ORIGINS = 2
_FAULTS = ("crash", "crash", "cut", "lost", "twice", "full")
_FAULTY = 0.35
"""How many steps meet a fault."""
_LATEST = 14
"""How many points a step may pass before its fault strikes."""
_EXPECTED = frozenset(
    {
        "already_exists",
        "compacted_log",
        "expired_repository",
        "forked_store",
        "insufficient_credits",
        "invalid_input",
        "not_found",
        "rolled_back_repository",
        "stale_target",
        "target_not_ready",
    }
)
"""Codes of errors that tell a node, rightly, that something is not to be had now."""
RAM = Path("/dev/shm")  # noqa: S108 - a folder of an own name is made there


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a history: its number, its kind, what goes wrong, and after how many points."""

    number: int
    kind: str
    fault: str = ""
    after: int = 0

    def __str__(self) -> str:
        wrong = f", {self.fault} after {self.after}" if self.fault else ""
        return f"{self.number}: {self.kind}{wrong}"


@dataclass(slots=True)
class Outcome:
    """What a history came to; ``trail`` has a line for each step, with the digests of who acted.

    ``broken`` is what did not hold, and ``at`` the number of the step after which it did not;
    ``None``: everything held, or it was only seen when all had healed.
    """

    seed: int
    steps: list[Step]
    trail: list[str] = field(default_factory=list)
    broken: str | None = None
    guarantee: int = 0
    at: int | None = None
    kinds: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def digest(self) -> str:
        """One digest of the trail."""
        return sha256("\n".join(self.trail).encode()).hexdigest()


def steps_of(seed: int, count: int) -> list[Step]:
    """Return the steps that a seed stands for."""
    rng = Random(f"steps of {seed}")  # noqa: S311 - a simulation repeats
    kinds = [step.__name__ for step in steps.WEIGHTS]
    weights = list(steps.WEIGHTS.values())
    found = []
    for number in range(count):
        (kind,) = rng.choices(kinds, weights)
        is_faulty, fault, after = (
            rng.random() < _FAULTY,
            rng.choice(_FAULTS),
            rng.randrange(_LATEST),
        )
        found.append(Step(number, kind, fault, after) if is_faulty else Step(number, kind))
    return found


def run(seed: int, wanted: Sequence[Step]) -> Outcome:
    """Run a history from its beginning, heal, and check; see :class:`Outcome`."""
    outcome = Outcome(seed, list(wanted))
    with workplace() as folder, ExitStack() as ends:
        world = World(f"setup of {seed}")
        ends.enter_context(world.installed())
        fleet = _begin(world, folder)
        ends.callback(_close, fleet)
        step: Step | None = None
        try:
            for step in wanted:
                outcome.trail.append(_step(fleet, seed, step, outcome))
            step = None
            world.rng.seed(f"heal {seed}")
            heal(fleet)
            check_all(fleet)
        except Exception as error:  # noqa: BLE001 - whatever it is, it should not be
            outcome.broken = _said(error)
            outcome.guarantee = error.guarantee if isinstance(error, BrokenError) else 0
            outcome.at = step.number if step else None
    return outcome


def shrink(failed: Outcome, *, on_try: Callable[[int], None] = lambda _: None) -> Outcome:
    """Drop steps from a history while it still breaks the same guarantee.

    Halves first, then ever smaller pieces, down to single steps. ``on_try`` gets how many steps are
    left.
    """
    best = failed
    if best.at is not None:
        best = _again(best, [step for step in best.steps if step.number <= (best.at or 0)]) or best
    size = max(1, len(best.steps) // 2)
    while True:
        place, has_shrunk = 0, False
        while place < len(best.steps):
            on_try(len(best.steps))
            fewer = best.steps[:place] + best.steps[place + size :]
            found = _again(best, fewer)
            if found is None:
                place += size
            else:
                best, has_shrunk = found, True
        if size == 1 and not has_shrunk:
            break
        size = max(1, size // 2)
    for place, step in enumerate(best.steps):
        if step.fault:
            calm = [*best.steps[:place], Step(step.number, step.kind), *best.steps[place + 1 :]]
            best = _again(best, calm) or best
    return best


def _again(failed: Outcome, fewer: list[Step]) -> Outcome | None:
    found = run(failed.seed, fewer)
    is_same = found.broken is not None and found.guarantee == failed.guarantee
    return found if is_same else None


@contextmanager
def workplace() -> Iterator[Path]:
    """Make a folder in memory, if this machine has such, and remove it."""
    place = RAM if RAM.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="keystore-fleet-", dir=place) as name:
        before, tempfile.tempdir = tempfile.tempdir, name  # (keystore makes folders of its own)
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = before


def _begin(world: World, folder: Path) -> Fleet:
    fleet = Fleet(world, folder)
    for _ in range(ORIGINS):
        fleet.add_origin()
    for origin, by_files in zip((0, 0, 1, 1), (False, True, False, True), strict=True):
        fleet.add_edge(fleet.origins[origin], by_files=by_files)
    fleet.touched = list(fleet.nodes)
    _look(fleet)
    fleet.hub_backup = state_of(fleet.hub)
    return fleet


def _close(fleet: Fleet) -> None:
    for node in fleet.nodes:
        with fleet.world.acting(node.clock), suppress(Exception):
            node.die()


def _step(fleet: Fleet, seed: int, step: Step, outcome: Outcome) -> str:
    world = fleet.world
    world.rng.seed(f"{seed}/{step.number}")
    world.pass_time(world.rng.expovariate(1 / 60))
    fleet.actor, fleet.touched = None, []
    fault = Fault(step.fault, step.after)
    act = steps.BY_NAME[step.kind]
    said = "ok"
    try:
        with world.failing(fault), _disk(fleet, fault):
            act(fleet)
    except Crash as crash:
        said = f"crash at {crash}"
        if fleet.actor is not None:
            with world.acting(fleet.actor.clock):
                fleet.actor.die()
    except KeystoreError as error:
        said = error.code
        if not _may_be(error, step, fleet.actor):
            raise
    outcome.kinds[step.kind] += 1
    outcome.outcomes[said] += 1
    return f"{step}: {said}: {' '.join(_look(fleet))}"


@contextmanager
def _disk(fleet: Fleet, fault: Fault) -> Iterator[None]:
    """Let the disks of all nodes be full, if that is the fault, every other time."""
    is_full = fault.kind == "full" and fault.after % 2 == 0
    if is_full:
        fault.has_struck = True  # (at no failpoint as well)
    with ExitStack() as ends:
        for node in fleet.nodes if is_full else ():
            ends.enter_context(node.without_room())
        yield


def _may_be(error: KeystoreError, step: Step, actor: Node | None) -> bool:
    if isinstance(error, TargetUnavailableError):
        return step.fault in {"cut", "lost"} or (actor is not None and actor.is_cut)
    if isinstance(error, DiskFullError):
        return step.fault == "full"
    if step.kind == "suspend" and isinstance(error, ConstraintError):
        return True  # the hub has revoked that key, for good
    return error.code in _EXPECTED or step.kind == "tamper"


def _look(fleet: Fleet) -> list[str]:
    found = []
    for node in fleet.touched:
        if node not in fleet.nodes:
            continue  # it was not made after all
        with fleet.world.acting(node.clock):
            found.append(f"{node.name}={fleet.model.look(node)[:12]}")
            if fleet.is_exact:
                fleet.model.refuse_overspent(node)
            is_guarded = isinstance(node, Edge) and node.is_checking
            if is_guarded and (wrong := node.time_went_back()):
                raise BrokenError(5, f"{node.name}: {wrong}")
    fleet.model.look_at_hub(fleet.hub)
    return found


def _said(error: Exception) -> str:
    if isinstance(error, BrokenError):
        return str(error)
    code = f" ({error.code})" if isinstance(error, KeystoreError) else ""
    return f"{type(error).__name__}{code}: {error}"
