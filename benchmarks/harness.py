"""Measures two callables in turns, and reports how many times as long the first one takes.

The turns (A B A B …) are what makes a ratio trustworthy: a machine that slows down, slows both
down. Each round gives one ratio; the median counts, the quartiles show how far to believe it.
"""

import argparse
import gc
import inspect
import json
import signal
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

from benchmarks import machine
from benchmarks.results import Figure, Found, Missing, Result, Row, keep


def _nothing() -> None:
    """Need no preparation."""


@dataclass(frozen=True, slots=True)
class Side:
    """Something to time; ``prepare`` is called before each ``run``, off the clock."""

    run: Callable[[], object]
    prepare: Callable[[], object] = _nothing


@dataclass(frozen=True, slots=True)
class _Effort:
    """Rounds to go on for: until ``seconds`` are over, within the two bounds."""

    least: int
    most: int
    seconds: float


SHORTEST = _Effort(least=2, most=2, seconds=0.0)
"""To see what is measured, not how long it takes."""
_QUICK = _Effort(least=3, most=101, seconds=0.6)
_HURRY = _Effort(least=3, most=3, seconds=0.0)
_HURRY_AFTER_SECONDS = 12.0
"""On a busy machine ``--quick`` would else take more than its half minute."""
_BEGAN = perf_counter()
_FULL = _Effort(least=7, most=501, seconds=15.0)


def compare(
    what: str, against: str, ours: Side, theirs: Side, *, goal: float | None, quick: bool
) -> Row:
    """Time both sides in turns; ``goal`` is the ratio not to exceed.

    The first round warms up caches and is not counted. What was allocated before is kept from the
    garbage collector, so that each side pays for the collection of its own garbage only.
    """
    effort = _effort(quick)
    gc.collect()
    gc.freeze()
    try:
        _ratio(ours, theirs)
        ratios: list[float] = []
        start = perf_counter()
        while len(ratios) < effort.least or (
            len(ratios) < effort.most and perf_counter() - start < effort.seconds
        ):
            ratios.append(_ratio(ours, theirs))
    finally:
        gc.unfreeze()
    return row(what, against, ratios, goal)


def _effort(quick: bool) -> _Effort:
    if not quick:
        return _FULL
    return _QUICK if perf_counter() - _BEGAN < _HURRY_AFTER_SECONDS else _HURRY


def row(what: str, against: str, ratios: Sequence[float], goal: float | None) -> Row:
    """Sum up the ratios of at least two rounds."""
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Row(
        what=what,
        against=against,
        ratio=round(median, 4),
        low=round(low, 4),
        high=round(high, 4),
        goal=None if goal is None else round(goal, 4),
        met=None if goal is None else median <= goal,
    )


def table(rows: Sequence[Row]) -> str:
    """Lay the rows out in aligned columns."""
    head = ("our time for", "/ their time for", "ratio", "low", "high", "goal", "met")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def figures(found: Sequence[Figure]) -> str:
    """Lay absolute numbers out, one a line."""
    width = max((len(figure.what) for figure in found), default=0)
    return "\n".join(f"{f.what.ljust(width)}  {number(f.value)} {f.unit}" for f in found)


def number(value: float) -> str:
    """Write a number with the digits that can be believed."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def main(measure: Callable[[bool], Sequence[Found]]) -> None:
    """Run ``measure(quick)`` as a command: print what it found, write it if asked to.

    A goal that is missed is reported and fails nothing: a time is no assertion.
    """
    parser = argparse.ArgumentParser(description="Measure ratios: our time / their time.")
    parser.add_argument("--quick", action="store_true", help="less data, end within 30 seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE as JSON")
    parser.add_argument(
        "--into", type=Path, metavar="FOLDER", help="keep all of it in FOLDER, for a report"
    )
    options = parser.parse_args()
    # A terminated run unwinds as an interrupted one does: folders and servers are cleaned up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start, load = perf_counter(), machine.load()
    found = measure(options.quick)
    seconds = perf_counter() - start
    rows = [item for item in found if isinstance(item, Row)]
    absolute = [item for item in found if isinstance(item, Figure)]
    if rows:
        print(table(rows))
    if absolute:
        print(figures(absolute))
    for item in found:
        if isinstance(item, Missing):
            print(f"Not measured: {item.what}: {item.why}")
    if options.json is not None:
        text = json.dumps([asdict(row) for row in rows], indent=2)
        options.json.write_text(f"{text}\n", encoding="utf-8")
    if options.into is not None:
        result = Result(
            benchmark=Path(inspect.getfile(measure)).stem,
            quick=options.quick,
            rows=rows,
            figures=absolute,
            missing=[item for item in found if isinstance(item, Missing)],
            measured=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
            seconds=round(seconds, 1),
            load=load,
            machine=machine.machine(),
            versions=machine.versions(),
        )
        keep(options.into, result)


def _ratio(ours: Side, theirs: Side) -> float:
    return _seconds(ours) / _seconds(theirs)


def _seconds(side: Side) -> float:
    side.prepare()
    start = perf_counter()
    side.run()
    return perf_counter() - start


def _cells(row: Row) -> tuple[str, ...]:
    numbers = ("-" if n is None else f"{n:.3f}" for n in (row.ratio, row.low, row.high, row.goal))
    return (row.what, row.against, *numbers, {True: "yes", False: "NO", None: "-"}[row.met])
