"""Says on standard error why checks get 503, and why usage is not on disk: else nobody would know.

Once when it begins, then once a minute; never with what a client has sent.
"""

import time
from math import inf

from keystore.edge import Validator
from keystore.errors import StoreBusyError, in_words
from keystore.http import voice

REPEAT_SECONDS = 60.0
"""After so long the same is said again."""


class Troubles:
    """Tells of one validator's troubles. Each method is for one thread at a time."""

    def __init__(self, validator: Validator) -> None:
        self._validator = validator
        self._again_at = {True: -inf, False: -inf}
        self._failures = 0
        self._has_told = False

    def look(self) -> None:
        """Say why a check since the last look could not be answered, if one could not."""
        why, self._validator.trouble = self._validator.trouble, ""
        if why:
            self._tell(f"{why} Checks get 503.", of_usage=False)

    def flush_if_due(self) -> None:
        """Write usage if it is time; say if it cannot be written, and if it can be again."""
        try:
            flushed = self._validator.flush_if_due()
        except Exception as error:  # noqa: BLE001 - it stays counted; the next round tries again
            self._failures += 1
            # One long transaction of another process is nothing to tell.
            if self._failures > 1 or not isinstance(error, StoreBusyError):
                waiting = self._validator.pending
                what = f"The usage of {waiting} check{'s'[: waiting != 1]} waits."
                self._tell(f"{in_words(error)} {what}", of_usage=True)
                self._has_told = True
            return
        if flushed:
            if self._has_told:
                voice.tell("keystore: usage is written again.")
            self._failures, self._has_told, self._again_at[True] = 0, False, -inf

    def _tell(self, text: str, *, of_usage: bool) -> None:
        now = time.monotonic()
        if now >= self._again_at[of_usage]:
            self._again_at[of_usage] = now + REPEAT_SECONDS
            said = "".join(sign if sign.isprintable() else "?" for sign in text)
            voice.tell(f"keystore: {said}")
