"""``keystore fleet simulate``: a fleet in one process, where everything goes wrong."""

import re
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keystore.cli.common import (
    json_option,
    printable,
    progress_bar,
    show,
    show_table,
    wants_json,
)
from keystore.sync.extras import extra

if TYPE_CHECKING:
    from keystore.testing.fleet.history import Outcome
    from keystore.testing.fleet.tallies import Crowd

_NUMBERS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def _only(_: click.Context, __: click.Parameter, text: str | None) -> frozenset[int] | None:
    """Read numbers like 3,7-9."""
    if text is None:
        return None
    if not _NUMBERS.fullmatch(text):
        raise click.BadParameter(f"{text!r} is not like 3,7-9")
    found: set[int] = set()
    for part in text.split(","):
        first, *last = part.split("-")
        found.update(range(int(first), int(last[0] if last else first) + 1))
    return frozenset(found)


@click.command("simulate", short_help="Run a fleet in one process, where everything goes wrong.")
@click.option("--seed", default=0, show_default=True, metavar="S", help="The first seed.")
@click.option("--seeds", default=1, show_default=True, metavar="N", help="How many, from S on.")
@click.option("--steps", default=200, show_default=True, metavar="K", help="Steps of each history.")
@click.option("--only", callback=_only, metavar="NUMBERS", help="Only these steps: 3,7-9.")
@click.option("--no-shrink", is_flag=True, help="Show a history that fails as it is.")
@click.option("--edges", type=click.IntRange(2), metavar="N", help="Instead: so many edges.")
@click.option(
    "--minutes", default=10.0, show_default=True, metavar="M", help="With --edges: for how long."
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="With --edges: draw how fast a revocation spreads (.png, .svg).",
)
@json_option
def simulate(
    seed: int,
    seeds: int,
    steps: int,
    only: frozenset[int] | None,
    no_shrink: bool,
    edges: int | None,
    minutes: float,
    plot: Path | None,
) -> None:
    """Run a fleet in this process, in virtual time, and check all guarantees after every step.

    Two origins, edges fed by a hub and by signed files, operators, clients; and crashes, lost
    messages, full disks, clocks that jump, restored and copied files. A seed decides everything, so
    a history that fails is shown with the command that repeats it, cut down to the steps that it
    takes. Exits with 1 if a guarantee does not hold.

    With --edges: many replicas and what a CDN, the hub and they did.

    \b
    Example:
      keystore fleet simulate --seeds 20
      keystore fleet simulate --edges 10000 --plot revocation.svg
    """
    with extra("files"):
        from keystore.testing.fleet import history
    if plot is not None:  # said now, not when all has been counted
        with extra("plot"):
            import matplotlib.figure  # noqa: F401
    if plot is not None and edges is None:
        raise click.UsageError("--plot draws what --edges has counted.")
    if edges is not None:
        _crowd(edges, seed, minutes, plot)
        return
    began, totals = time.process_time(), Counter[str]()
    outcomes, done = Counter[str](), 0
    with progress_bar("Histories") as advance:
        for number in range(seed, seed + seeds):
            wanted = [
                step
                for step in history.steps_of(number, steps)
                if only is None or step.number in only
            ]
            outcome = history.run(number, wanted)
            done += 1
            advance(done, seeds)
            totals += outcome.kinds
            outcomes += outcome.outcomes
            if outcome.broken is not None:
                break
    if outcome.broken is not None:
        if not no_shrink:
            with progress_bar("Steps left") as left:
                outcome = history.shrink(outcome, on_try=lambda count: left(count, len(wanted)))
        _show_broken(outcome, steps)
        click.get_current_context().exit(1)
    seconds = time.process_time() - began
    said = {
        "seeds": [seed, seed + seeds - 1],
        "steps": totals.total(),
        "digest": outcome.digest,
        "cpu_seconds": round(seconds, 1),
        "kinds": dict(totals),
        "outcomes": dict(outcomes),
    }
    crashes = sum(count for name, count in outcomes.items() if name.startswith("crash"))
    refused = outcomes.total() - outcomes["ok"] - crashes
    which = f"Seed {seed}" if seeds == 1 else f"Seeds {seed} to {seed + seeds - 1}"
    show(
        said,
        f"{which}: {totals.total()} steps, {crashes} of them ended by a "
        f"crash and {refused} by an error. Every guarantee held.",
    )


def _show_broken(outcome: "Outcome", steps: int) -> None:
    numbers = ",".join(str(step.number) for step in outcome.steps)
    command = f"keystore fleet simulate --seed {outcome.seed} --steps {steps}"
    command += f" --only {numbers} --no-shrink" if numbers else ""
    said = {
        "seed": outcome.seed,
        "broken": outcome.broken,
        "steps": [str(step) for step in outcome.steps],
        "command": command,
    }
    when = "when all had healed" if outcome.at is None else f"after step {outcome.at}"
    lines = [
        f"Seed {outcome.seed}: {printable(outcome.broken or '')}",
        f"Seen {when}. The history, as short as it gets:",
        *(f"  {printable(line)}" for line in outcome.trail or map(str, outcome.steps)),
        f"Again: {command}",
    ]
    show(said, "\n".join(lines))


def _crowd(edges: int, seed: int, minutes: float, plot: Path | None) -> None:
    from keystore.testing.fleet import crowd

    with progress_bar("Turns") as advance:
        found = crowd.simulate(edges, seed=seed, minutes=minutes, on_progress=advance)
    if plot is not None:
        _draw(found, plot)
    if wants_json():
        show(found.as_dict(), "")
    else:
        show_table(found.lines(), ("what", "files", "hub"), empty="")


def _draw(found: "Crowd", path: Path) -> None:
    from keystore.cli.plot import draw_curves

    draw_curves(found.curves(), path, f"{found.edges:,} edges")
