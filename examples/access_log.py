"""Reads the real access log that the demo and the tests replay (see NOTICE for its source)."""

import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LOG = Path(__file__).parent / "data" / "access.log.xz"
_LINE = re.compile(
    r'(?P<client>\S+) \S+ \S+ \[[^\]]+\] "(?:(?P<method>[A-Z]+) (?P<target>\S+) HTTP/[\d.]+")?'
)


class Request(NamedTuple):
    """A line of the log; a method and a target are missing where the client has sent none."""

    client: str
    method: str | None
    target: str | None


def requests(path: Path = LOG) -> Iterator[Request]:
    """Yield each request, in the order of the log.

    Raises:
        ValueError: a line is not in Apache combined format; names its number.
    """
    with lzma.open(path, "rt", encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            match = _LINE.match(line)
            if match is None:
                msg = f"{path}, line {number}: not in Apache combined format"
                raise ValueError(msg)
            yield Request(*match.group("client", "method", "target"))


def clients(path: Path = LOG) -> Iterator[str]:
    """Yield the client address of each request; raises what :func:`requests` does."""
    return (request.client for request in requests(path))
