"""Draws the ratios of one benchmark as a small SVG.

By hand, since the file is committed: drawn with a library it would change with the library's
version and its fonts; this way it follows from the results alone. An image does not learn which
theme a page has, so it has no background, and each colour can be read on white and on black.
"""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.results import Row

WIDTH = 760
_LEFT, _RIGHT = 20, 640
_TOP, _STEP = 34, 38
INK, MET, MISSED = "#7a7a7a", "#2f80d0", "#cc5a1a"
_TICKS = tuple(digit * 10.0**power for power in range(-4, 4) for digit in (1, 2, 5))
_MOST_TICKS = 8


def draw(title: str, rows: Sequence[Row]) -> str:
    """Draw at least one row: the median, the quartiles around it, and the goal."""
    scale = _Scale(rows)
    bottom = _TOP + _STEP * len(rows)
    height = bottom + 24
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    said = "ratio to what is in italics: median and quartiles; a thick mark is the goal"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f'<g font-family="system-ui, sans-serif" font-size="11.5" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<text x="{_LEFT}" y="14">{said}</text>',
    ]
    for tick in scale.ticks:
        x = scale.place(tick)
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for number, row in enumerate(rows):
        parts += _row(row, scale, _TOP + _STEP * number)
    return "\n".join([*parts, "</g>", "</svg>", ""])


class _Scale:
    """From ratios to places, by the logarithm: half and twice are equally far from 1."""

    def __init__(self, rows: Sequence[Row]) -> None:
        marks = [n for row in rows for n in (row.ratio, row.low, row.high, row.goal) if n]
        positive = [mark for mark in [*marks, 0.8, 1.25] if mark > 0]
        self._least, self._most = math.log(min(positive) * 0.9), math.log(max(positive) * 1.1)
        ticks = [t for t in _TICKS if self._least <= math.log(t) <= self._most]
        if len(ticks) > _MOST_TICKS:
            ticks = [tick for tick in ticks if math.log10(tick).is_integer()]
        self.ticks = ticks

    def place(self, ratio: float) -> float:
        share = (math.log(max(ratio, 1e-9)) - self._least) / (self._most - self._least)
        return round(_LEFT + min(1.0, max(0.0, share)) * (_RIGHT - _LEFT), 1)


def _row(row: Row, scale: _Scale, top: int) -> list[str]:
    y = top + 24
    colour = MISSED if row.met is False else MET
    low, middle, high = (scale.place(ratio) for ratio in (row.low, row.ratio, row.high))
    said = f"{row.ratio:.3g}{' missed' if row.met is False else ''}"
    against = f'<tspan font-style="italic">/ {escape(row.against)}</tspan>'
    parts = [
        f'<text x="{_LEFT}" y="{top + 12}">{escape(row.what)} {against}</text>',
        *(
            f'<path d="M{scale.place(tick)} {y - 6}v12" stroke="{INK}"'
            f' stroke-width="{1 if tick == 1 else 0.3}"/>'
            for tick in scale.ticks
        ),
        f'<path d="M{low} {y}H{high}" stroke="{colour}" stroke-width="3"/>',
    ]
    if row.goal is not None:
        goal = scale.place(row.goal)
        parts.append(f'<path d="M{goal} {y - 7}V{y + 7}" stroke="{INK}" stroke-width="3"/>')
    if row.met is False:  # another shape, for who does not tell the colours apart
        parts.append(
            f'<path d="M{middle} {y - 6}l6 6l-6 6l-6 -6z" fill="{colour}"/>'
        )  # fmt: skip
    else:
        parts.append(f'<circle cx="{middle}" cy="{y}" r="5" fill="{colour}"/>')
    return [*parts, f'<text x="{_RIGHT + 12}" y="{y + 4}" fill="{colour}">{said}</text>']
