"""Usage as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keystore.cli.common import printable
from keystore.sync.extras import extra

if TYPE_CHECKING:
    from keystore.admin.reports import UsageTotal

_MOST_NAMES = 20


def draw(found: Sequence["UsageTotal"], path: Path) -> None:
    """Draw totals into a .png or .svg file: columns over time, stacked, or a bar for each name.

    Raises:
        UnsupportedTargetError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    with extra("plot"):
        from matplotlib.figure import Figure
    # (a "$" would begin a formula)
    names = {item.label: printable(item.label).replace("$", r"\$") for item in found}
    periods = sorted({item.period for item in found if item.period is not None})
    tall = len(names) if not periods else min(len(names), _MOST_NAMES)
    figure = Figure(figsize=(10, max(4.0, 1.5 + 0.3 * tall)), layout="constrained")
    axes = figure.add_subplot()
    if periods:
        place = {period: number for number, period in enumerate(periods)}
        base = [0] * len(periods)
        for label, name in names.items():
            heights = [0] * len(periods)
            for item in found:
                if item.label == label and item.period is not None:
                    heights[place[item.period]] += item.amount
            axes.bar(range(len(periods)), heights, bottom=base, label=name)
            base = [below + height for below, height in zip(base, heights, strict=True)]
        step = -(-len(periods) // 12)
        axes.set_xticks(range(0, len(periods), step), periods[::step], rotation=45, ha="right")
        axes.set_ylabel("units")
        if names.keys() != {"all"}:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    else:
        axes.barh(list(names.values()), [item.amount for item in found])
        axes.invert_yaxis()  # the largest above
        axes.set_xlabel("units")
    figure.savefig(path)
