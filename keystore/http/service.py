"""What the connections of a process share: the limits, the counts, and one look at all of them."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from keystore.http import voice
from keystore.http.answers import Response
from keystore.http.check import Checker, Settings
from keystore.http.counts import CONNECTIONS, CountedChecker, Counts

if TYPE_CHECKING:
    from keystore.http.connection import Connection

HEADER_SECONDS = 10.0
"""How long a client may take for the headers of a request, and before its first one."""
IDLE_SECONDS = 75.0
"""How long a connection may wait for its next request, or for the next piece of a body."""
LINGER_SECONDS = 2.0
"""How long a client may take to close, after it was told that the answer is the last."""
MOST_CONNECTIONS = 10_000
"""At once in one process, if the system lets it have as many."""
SPARE_CONNECTIONS = 64
"""Past the cap, so many at once are told so; any further ones are cut without a word."""


class Service:
    """What the connections of a process share.

    Args:
        checker: what answers the checks.
        settings: what the operator has decided.
        counts: where everything is counted.
        pages: what is answered without a token, by path.
        most: connections at once.
    """

    def __init__(
        self,
        checker: Checker,
        settings: Settings,
        counts: Counts,
        pages: Mapping[str, Callable[[], Response]] | None = None,
        most: int = MOST_CONNECTIONS,
    ) -> None:
        self.checker: Checker = CountedChecker(checker, counts)
        self.settings, self.counts, self.pages, self.most = settings, counts, pages or {}, most
        self.row = counts.row
        self.connections: set[Connection] = set()
        self.is_ending = False
        self.sweep()

    def sweep(self) -> None:
        """Close what has been silent for too long; call it once a second."""
        now = time.monotonic()
        self.header_due, self.idle_due = now + HEADER_SECONDS, now + IDLE_SECONDS
        self.linger_due = now + LINGER_SECONDS
        for connection in [one for one in self.connections if one.due <= now]:
            connection.time_out()
        self.row[CONNECTIONS] = len(self.connections)

    def end(self) -> None:
        """Close what waits for a request; what is under way is answered, and closed then."""
        self.is_ending = True
        for connection in tuple(self.connections):
            connection.end()

    def abort(self) -> None:
        """Close all connections at once."""
        for connection in tuple(self.connections):
            connection.abort()

    def report(self, error: BaseException | None) -> None:
        """Say on standard error what went wrong, and where; never with what a client has sent.

        It may have been a request, which is answered with 503, or anything else in the loop.
        """
        self.counts.refused("error")
        trace = error.__traceback__ if error is not None else None
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f" in {trace.tb_frame.f_code.co_qualname}" if trace is not None else ""
        voice.tell(f"keystore: {type(error).__name__}{where}; the server goes on.")
