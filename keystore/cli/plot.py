"""Usage, and what a simulated fleet did, as pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keystore.cli.common import printable
from keystore.sync.extras import extra

if TYPE_CHECKING:
    from keystore.admin.reports import UsageTotal

MOST_NAMES = 40
"""What is told apart in a picture; the smaller ones are drawn as one."""


def draw(found: Sequence["UsageTotal"], path: Path) -> None:
    """Draw totals into a .png or .svg file: columns over time, stacked, or a bar for each name.

    Raises:
        UnsupportedTargetError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    with extra("plot"):
        from matplotlib.figure import Figure
    names = _names(found)
    shown = list(dict.fromkeys(names.values()))
    periods = sorted({item.period for item in found if item.period is not None})
    heights: dict[str, list[int]] = {name: [0] * max(1, len(periods)) for name in shown}
    for item in found:
        place = periods.index(item.period) if item.period is not None else 0
        heights[names[item.label]][place] += item.amount
    figure = Figure(figsize=(10, 2 + 0.25 * max(8, len(shown))), layout="constrained")
    axes = figure.add_subplot()
    if periods:
        base = [0] * len(periods)
        for name in shown:
            axes.bar(range(len(periods)), heights[name], bottom=base, label=name)
            base = [below + height for below, height in zip(base, heights[name], strict=True)]
        step = -(-len(periods) // 12)
        axes.set_xticks(range(0, len(periods), step), periods[::step], rotation=45, ha="right")
        axes.set_ylabel("units")
        if len(shown) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    else:
        axes.barh(shown, [heights[name][0] for name in shown])
        axes.invert_yaxis()  # the largest above
        axes.set_xlabel("units")
    figure.savefig(path)


def draw_curves(curves: Mapping[str, Sequence[float]], path: Path, title: str) -> None:
    """Draw, for each name, which share of the edges had denied a key after how many seconds.

    ``curves`` has the seconds by hundredth of the edges, rising.

    Raises:
        UnsupportedTargetError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    with extra("plot"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, seconds in curves.items():
        shares = [100 * number / max(1, len(seconds) - 1) for number in range(len(seconds))]
        axes.step(seconds, shares, where="post", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("seconds since the revocation")
    axes.set_ylabel("% of the edges that deny the key")
    axes.set_title(title)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(path)


def _names(found: Sequence["UsageTotal"]) -> dict[str, str]:
    """Return what to write for each label; the largest first, the smallest under one name."""
    sums: Counter[str] = Counter()
    for item in found:
        sums[item.label] += item.amount
    names = [label for label, _ in sums.most_common()]
    kept = MOST_NAMES if len(names) <= MOST_NAMES else MOST_NAMES - 1
    others = f"{len(names) - kept} others"
    return {
        # (a "$" would begin a formula, and a legend leaves out what begins with "_")
        label: f" {printable(label)}".replace("$", r"\$") if number < kept else others
        for number, label in enumerate(names)
    }
