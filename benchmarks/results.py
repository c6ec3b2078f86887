"""What benchmarks find, and the file that keeps it: one for each benchmark, in the folder of a run.

Reports, charts and the page of the documentation are drawn from these files and from nothing else.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
_MEASURE = re.compile(r"^def measure\(", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. ``ratio`` is the median over the rounds of *our time / their time*.

    ``low`` and ``high`` are the quartiles. The goal is met by a ratio that is not above it; without
    a goal both ``goal`` and ``met`` are ``None``, and the row is there to be looked at.
    """

    what: str
    against: str
    ratio: float
    low: float
    high: float
    goal: float | None
    met: bool | None


@dataclass(frozen=True, slots=True)
class Figure:
    """One absolute number. It says as much about the machine as about the program."""

    what: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Missing:
    """What could not be measured here, and why."""

    what: str
    why: str


Found = Row | Figure | Missing


@dataclass(frozen=True, slots=True)
class Result:
    """All that one benchmark has found, and where.

    ``measured`` is UTC, ``seconds`` what it took, ``load`` the machine's when it began. They and
    ``machine`` and ``versions`` are unknown of what was measured before such files were kept;
    ``remark`` then tells what is known. ``error`` is the end of what a failed benchmark has said.
    """

    benchmark: str
    quick: bool
    rows: list[Row] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    measured: str | None = None
    seconds: float | None = None
    load: float | None = None
    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    remark: str | None = None
    error: str | None = None


def names() -> list[str]:
    """Return the benchmarks that there are, in order; without importing what one of them needs."""
    return sorted(
        path.stem for path in PACKAGE.glob("*.py") if _MEASURE.search(path.read_text("utf-8"))
    )


def keep(folder: Path, result: Result) -> None:
    """Write a result into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(result), indent=1, ensure_ascii=False)
    (folder / f"{result.benchmark}.json").write_text(f"{text}\n", encoding="utf-8")


def load(folder: Path, name: str) -> Result | None:
    """Read the result of one benchmark, if the folder has it.

    Raises:
        ValueError: the file is not such a result.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    try:
        read: dict[str, Any] = json.loads(path.read_text("utf-8"))
        read["rows"] = [Row(**item) for item in read["rows"]]
        read["figures"] = [Figure(**item) for item in read["figures"]]
        read["missing"] = [Missing(**item) for item in read["missing"]]
        return Result(**read)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path} is not the result of a benchmark: {error}"
        raise ValueError(msg) from error


def load_all(folder: Path) -> dict[str, Result]:
    """Read the results that a folder has, in the order of their names."""
    found = {name: load(folder, name) for name in names()}
    return {name: result for name, result in found.items() if result is not None}
