"""What the workers count, in memory that all of them map: each writes its own row, any reads all.

Numbers are 64 bits and each row has one writer, the worker's event loop, so nothing is locked; a
worker that is started again goes on with the row of the one that died, so no counter runs back.
"""

import mmap
from http import HTTPStatus

from keystore.edge.decision import Decision, Reason
from keystore.http.check import Checker

REASONS = tuple(reason.value for reason in Reason)
STATUSES = tuple(status.value for status in HTTPStatus if status.value >= 200)
REFUSALS = (
    "bad_request",
    "body_too_large",
    "connections",
    "error",
    "headers_too_large",
    "target_too_long",
    "timeout",
)
"""What kept a request from being answered: the client's fault, but for ``error``, which is ours."""
BOUNDS_NS = tuple(
    int(seconds * 1e9)
    for seconds in (
        *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
        *(0.025, 0.05, 0.1, 0.25, 1.0),
    )
)

DECISIONS = 0
RESPONSES = DECISIONS + len(REASONS)
REFUSED = RESPONSES + len(STATUSES)
LATENCY = REFUSED + len(REFUSALS)
LATENCY_SUM_NS = LATENCY + len(BOUNDS_NS) + 1
SLOW_CHECKS = LATENCY_SUM_NS + 1
RESTARTS = SLOW_CHECKS + 1
CONNECTIONS = RESTARTS + 1
"""From here on they are what is now, not what was since the start."""
PENDING = CONNECTIONS + 1
CACHED = PENDING + 1
_NUMBERS = CACHED + 1
ROW_BYTES = (_NUMBERS * 8 + 63) // 64 * 64

_REASON_AT = {reason: DECISIONS + number for number, reason in enumerate(Reason)}
_OK_AT = _REASON_AT[Reason.OK]
_STATUS_AT = {status: RESPONSES + number for number, status in enumerate(STATUSES)}
_REFUSAL_AT = {kind: REFUSED + number for number, kind in enumerate(REFUSALS)}


class Counts:
    """The rows of ``workers``, of which ``own`` is written here.

    Args:
        memory: at least ``workers * ROW_BYTES`` from ``offset`` on; default: this process's own.
    """

    def __init__(
        self, workers: int = 1, own: int = 0, memory: mmap.mmap | None = None, offset: int = 0
    ) -> None:
        memory = mmap.mmap(-1, workers * ROW_BYTES) if memory is None else memory
        whole = memoryview(memory)[offset : offset + workers * ROW_BYTES].cast("Q")
        width = ROW_BYTES // 8
        self._rows = [whole[row * width : (row + 1) * width] for row in range(workers)]
        self.row = self._rows[own]
        for gauge in (CONNECTIONS, PENDING, CACHED):
            self.row[gauge] = 0

    def total(self, number: int) -> int:
        """Return the sum of all workers' numbers of one kind."""
        return sum(row[number] for row in self._rows)

    def refused(self, kind: str) -> None:
        """Count one of :data:`REFUSALS`."""
        self.row[_REFUSAL_AT[kind]] += 1

    def restarted(self, worker: int) -> None:
        """Count a worker that was started again; for its supervisor, while it does not run."""
        for gauge in (CONNECTIONS, PENDING, CACHED):
            self._rows[worker][gauge] = 0
        self._rows[worker][RESTARTS] += 1


def status_number(status: HTTPStatus) -> int:
    """Return where the answers of a status are counted."""
    return _STATUS_AT[status.value]


class CountedChecker:
    """Counts what another checker decides."""

    __slots__ = ("_check", "_check_client", "_row")

    def __init__(self, checker: Checker, counts: Counts) -> None:
        self._check, self._check_client = checker.check, checker.check_client
        self._row = counts.row

    def check(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        """Decide on a token."""
        return self._counted(self._check(token, service=service, cost=cost, ip=ip))

    def check_client(
        self,
        client_id: str,
        secret: str,
        *,
        service: str | None = None,
        cost: int = 1,
        ip: str | None = None,
    ) -> Decision:
        """Decide on an OAuth client."""
        decision = self._check_client(client_id, secret, service=service, cost=cost, ip=ip)
        return self._counted(decision)

    def _counted(self, decision: Decision) -> Decision:
        if decision.allowed:  # (the hash of a reason takes as long as all this)
            self._row[_OK_AT] += 1
        else:
            self._row[_REASON_AT[decision.reason]] += 1
        return decision
