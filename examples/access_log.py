"""Reads the real access log that the demo and the tests replay (see NOTICE for its source)."""

import lzma
import re
from collections.abc import Iterator
from pathlib import Path

LOG = Path(__file__).parent / "data" / "access.log.xz"
_LINE = re.compile(r'(?P<client>\S+) \S+ \S+ \[[^\]]+\] "')


def clients(path: Path = LOG) -> Iterator[str]:
    """Yield the client address of each request, in the order of the log.

    Raises:
        ValueError: a line is not in Apache combined format; names its number.
    """
    with lzma.open(path, "rt", encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            match = _LINE.match(line)
            if match is None:
                msg = f"{path}, line {number}: not in Apache combined format"
                raise ValueError(msg)
            yield match["client"]
