"""Says things without waiting for whoever reads them: checks must not stop for a full pipe."""

import os
import threading

OUT, ERR = 1, 2
_MOST_WAITING = 100

_waiting = threading.Semaphore(_MOST_WAITING)
_turn = {OUT: threading.Lock(), ERR: threading.Lock()}


def tell(text: str, descriptor: int = ERR) -> None:
    """Write a line soon, past Python's buffers, whose locks would hold up the end of the process.

    What nobody reads is dropped, once a hundred lines wait.
    """
    if _waiting.acquire(blocking=False):
        args = (f"{text}\n".encode(errors="backslashreplace"), descriptor)
        threading.Thread(target=_write, args=args, name="voice", daemon=True).start()


def _write(line: bytes, descriptor: int) -> None:
    try:
        with _turn[descriptor]:
            while line:
                line = line[os.write(descriptor, line) :]
    except OSError:
        pass  # the reader has gone; the server serves on
    finally:
        _waiting.release()
