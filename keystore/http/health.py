"""Whether a server should be asked: it has synced, and its data are fresh enough for every plan."""

import time
from math import inf
from pathlib import Path
from typing import NamedTuple

from keystore import db, sql
from keystore.edge import Validator
from keystore.edge.decision import Freshness, Reason
from keystore.edge.slow import IMPATIENT_SECONDS
from keystore.errors import KeystoreError

LOOK_SECONDS = 1.0
"""How long a look at the store serves: anybody may ask for it, as often as they like."""

_Q = sql.named("serve")


class State(NamedTuple):
    """How a store stands; ``reason`` is ``ok`` if it can answer for all of its keys.

    ``usage_waiting`` is how many usage rows no target has yet.
    """

    reason: Reason
    freshness: Freshness | None
    usage_waiting: int


class Health:
    """Looks at the store behind a validator."""

    def __init__(self, validator: Validator, path: Path | str) -> None:
        self._validator, self._path = validator, path
        self._state = State(Reason.NOT_SYNCED, None, 0)
        self._look_at = -inf

    def state(self) -> State:
        """Return how the store stands now, or stood at most :data:`LOOK_SECONDS` ago."""
        if time.monotonic() >= self._look_at:
            try:
                self._state = self._look()
            except KeystoreError:
                self._state = self._state._replace(reason=Reason.UNAVAILABLE)
            self._look_at = time.monotonic() + LOOK_SECONDS
        return self._state

    def _look(self) -> State:
        fresh = self._validator.freshness()
        # Opened for each look, so that it is the file that is at the path now.
        with db.open_store(self._path, busy_timeout=IMPATIENT_SECONDS) as file, file.read() as conn:
            bound = db.scalar(conn, _Q["strictest_bound"])
            waiting = max(0, db.scalar(conn, _Q["usage_waiting"]))
        reason = Reason.OK
        if fresh is None:
            reason = Reason.NOT_SYNCED
        elif fresh.limit is not None and fresh.limit.is_over:
            reason = Reason.OFFLINE
        elif bound is not None and fresh.age_seconds > bound:
            reason = Reason.STALE
        return State(reason, fresh, waiting)
