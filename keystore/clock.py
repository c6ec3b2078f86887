"""Times as the store writes them: UTC text, ``YYYY-MM-DD HH:MM:SS``, whole seconds."""

import time
from datetime import UTC, datetime

_FORMAT = "%Y-%m-%d %H:%M:%S"
_LENGTH = len("YYYY-MM-DD HH:MM:SS")


def utc_text(timestamp: float | None = None) -> str:
    """Write a Unix timestamp (default: now) as the store writes times."""
    return time.strftime(_FORMAT, time.gmtime(timestamp))


def parse_utc(text: str) -> datetime:
    """Read a time that the store wrote; raises ``ValueError`` on any other form."""
    if len(text) != _LENGTH or text[7] != "-" or text[10] != " ":
        msg = f"{text!r} is not a time of the form YYYY-MM-DD HH:MM:SS"
        raise ValueError(msg)
    return datetime.fromisoformat(text).replace(tzinfo=UTC)  # strptime takes ten times as long


def seconds(text: str) -> float:
    """Read a time that the store wrote as a Unix timestamp."""
    return parse_utc(text).timestamp()
