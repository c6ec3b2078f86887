"""A follower as operators run it: `keystore sync --follow`, in a process of its own."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def following(url: str, path: Path, *, poll: float = 30) -> Iterator[int]:
    """Follow a hub with a store during the block, which starts after the first round.

    Yields the process id.
    """
    command = [sys.executable, "-m", "keystore", "sync", "--follow", "--json", "--db", str(path)]
    with subprocess.Popen(
        [*command, "--poll", str(poll), url], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            first = process.stdout.readline() if process.stdout else ""
            if '"following"' not in first:
                msg = f"the follower did not start: {first}"
                raise RuntimeError(msg)
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()
