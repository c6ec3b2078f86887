"""Draws what benchmarks have found: a report and its charts, or the page of the documentation.

``python -m benchmarks.report FOLDER`` draws the report of a run again; with ``--publish`` its
results replace those that the documentation shows. Nothing is measured.
"""

import argparse
import ast
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import charts, results
from benchmarks.harness import number
from benchmarks.results import PACKAGE, Figure, Result, Row

PAGE = PACKAGE.parent / "docs" / "benchmarks.md"
PUBLISHED = PAGE.with_suffix("")
"""The results, the charts and the reasons that the page shows."""
REASONS = PUBLISHED / "reasons.toml"
_BLOCK = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
_HEAD = ("what", "against", "ratio", "low", "high", "goal", "met")
_FEW = "measured with `--quick`: little data, a short time"
_UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class Miss:
    """A goal that was missed, and why as far as it is known."""

    benchmark: str
    row: Row
    why: str


def write(folder: Path) -> None:
    """Draw the charts of the results in a folder, and ``report.md`` beside them.

    In the folder of the documentation it is the page that is drawn instead.
    """
    if folder.resolve() == PUBLISHED:
        publish(folder)
        return
    found = results.load_all(folder)
    _draw(folder, found)
    (folder / "report.md").write_text(report(found), encoding="utf-8")


def publish(folder: Path) -> list[str]:
    """Take a run's results into the documentation, and draw its page and charts again.

    Returns the names of those that were not taken: quick ones, and failed ones.
    """
    found = results.load_all(folder)
    taken = {
        name: result
        for name, result in found.items()
        if folder.resolve() == PUBLISHED or not (result.quick or result.error)
    }
    for result in taken.values():
        results.keep(PUBLISHED, result)
    shown = results.load_all(PUBLISHED)
    _draw(PUBLISHED, shown)
    PAGE.write_text(page(PAGE.read_text("utf-8"), shown), encoding="utf-8")
    return sorted(found.keys() - taken.keys())


def report(found: Mapping[str, Result]) -> str:
    """Return the report of a run as Markdown."""
    parts = ["# Benchmarks", where(found), "## Goals that are missed", missed(found)]
    for name, result in found.items():
        parts += [f"## {name}", _title(name), block(result, charts_in="")]
    absent = [name for name in results.names() if name not in found]
    if absent:
        parts.append(f"Not run yet: {', '.join(f'`{name}`' for name in absent)}.")
    return "\n\n".join(parts) + "\n"


def page(text: str, found: Mapping[str, Result]) -> str:
    """Return a page whose blocks, from ``<!-- bench: NAME -->`` to ``<!-- end -->``, are renewed.

    Raises:
        KeyError: there is no result of that name.
    """

    def renew(match: re.Match[str]) -> str:
        head, name, end = match.groups()
        if name == "where":
            drawn = where(found)
        elif name == "missed":
            drawn = missed(found)
        else:
            drawn = block(found[name], charts_in=f"{PUBLISHED.name}/")
        return f"{head}\n{drawn}\n\n{end}"

    return _BLOCK.sub(renew, text)


def block(result: Result, charts_in: str) -> str:
    """Return what one benchmark has found: tables, what is missing, the chart, and when it was."""
    parts = []
    if result.error:
        parts.append(f"It failed:\n\n```text\n{result.error.strip()}\n```")
    if result.remark:
        parts.append(result.remark)
    if result.rows:
        parts.append(_table(_HEAD, [_cells(row) for row in result.rows]))
    if result.figures:
        parts.append(_figures(result.figures))
    parts += [f"- Not measured: {item.what}: {_line(item.why)}." for item in result.missing]
    if result.rows:
        parts.append(f"![The ratios of {result.benchmark}]({charts_in}{result.benchmark}.svg)")
    parts.append(_when(result))
    return "\n\n".join(parts)


def where(found: Mapping[str, Result]) -> str:
    """Return the machines that measured and the versions, each with what it has measured."""
    places: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, result in found.items():
        places.setdefault((*result.machine.items(), *result.versions.items()), []).append(name)
    parts = []
    for place, names in places.items():
        listed = ", ".join(f"`{name}`" for name in names)
        told = ", ".join(f"{what} {value}" for what, value in place)
        parts.append(f"- {listed}: {told or 'machine and versions were not recorded'}.")
    return "\n".join(parts) or "Nothing was measured."


def misses(found: Mapping[str, Result]) -> list[Miss]:
    """Return each goal that is missed, with the reason that ``reasons.toml`` gives for it."""
    reasons = tomllib.loads(REASONS.read_text("utf-8"))
    return [
        Miss(name, row, _reason(reasons.get(name, []), row) or (_FEW if result.quick else ""))
        for name, result in found.items()
        for row in result.rows
        if row.met is False
    ]


def missed(found: Mapping[str, Result]) -> str:
    """Return the goals that are missed as a table, and how many there are."""
    goals = sum(row.goal is not None for result in found.values() for row in result.rows)
    there = misses(found)
    told = f"{goals - len(there)} of {goals} goals are met." if goals else "No goal was set."
    if not there:
        return told
    lines = [
        (
            f"{miss.row.what} (`{miss.benchmark}`)",
            miss.row.against,
            _ratio(miss.row.ratio),
            _ratio(miss.row.goal),
            miss.why or "not known yet",
        )
        for miss in there
    ]
    return f"{told}\n\n" + _table(("what", "against", "ratio", "goal", "why"), lines)


def _reason(reasons: Sequence[Mapping[str, str]], row: Row) -> str:
    for reason in reasons:
        if row.what.startswith(reason["what"]) and row.against.startswith(reason["against"]):
            return reason["why"]
    return ""


def _draw(folder: Path, found: Mapping[str, Result]) -> None:
    for name, result in found.items():
        path = folder / f"{name}.svg"
        if result.rows:
            path.write_text(charts.draw(f"The ratios of {name}", result.rows), encoding="utf-8")
        else:
            path.unlink(missing_ok=True)


def _title(name: str) -> str:
    """Return what a benchmark says of itself, without importing what it needs."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text("utf-8"))
    return (ast.get_docstring(tree) or name).partition("\n")[0]


def _cells(row: Row) -> tuple[str, ...]:
    # What was measured once has no quartiles.
    spread = (None, None) if row.low == row.ratio == row.high else (row.low, row.high)
    numbers = (_ratio(n) for n in (row.ratio, *spread, row.goal))
    met = {True: "yes", False: "**no**", None: _UNKNOWN}[row.met]
    return (row.what, row.against, *numbers, met)


def _ratio(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _figures(found: Sequence[Figure]) -> str:
    """Lay absolute numbers out: a line for each subject, a column for each unit."""
    units = list(dict.fromkeys(figure.unit for figure in found))
    cells: dict[str, dict[str, str]] = {}
    for figure in found:
        cells.setdefault(figure.what, {})[figure.unit] = number(figure.value)
    lines = [(what, *(by.get(unit, _UNKNOWN) for unit in units)) for what, by in cells.items()]
    return _table(("", *units), lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> Iterator[str]:
        return (cell.replace("|", "\\|") for cell in cells)

    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line(cells))} |" for cells in rows)


def _line(text: str) -> str:
    return " ".join(text.split())


def _when(result: Result) -> str:
    command = f"`python -m benchmarks.{result.benchmark}{' --quick' if result.quick else ''}`"
    if result.measured is None or result.seconds is None:
        return f"{command} measures it anew."
    return (
        f"{command}, {result.measured} UTC: {result.seconds:,.0f} s;"
        f" the load was {result.load} when it began."
    )


def main() -> None:
    """Draw again what was measured."""
    parser = argparse.ArgumentParser(description="Draw the results of benchmarks again.")
    parser.add_argument("folder", type=Path, help="the folder of a run")
    parser.add_argument(
        "--publish", action="store_true", help="show its results in docs/benchmarks.md"
    )
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder")
    if options.publish:
        for name in publish(options.folder):
            print(f"{name} is left as it was: only whole runs that ended are shown")
    else:
        write(options.folder)


if __name__ == "__main__":
    main()
