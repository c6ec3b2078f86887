"""Forks a child for each order on standard input: it runs ``keystore`` and dies at a step.

A fork of a process that has imported everything takes a hundredth of the time of a new Python, and
is as mortal. This one opens no store and no connection.
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence

from keystore import failpoint
from keystore.cli import main
from keystore.sync import files, postgres

__all__ = ["files", "postgres"]  # imported before the fork


def die_at(step: str, nth: int) -> None:
    """Have this process killed at the nth time that a step is reached."""
    left = nth

    def on_reach(reached: str) -> None:
        nonlocal left
        left -= reached == step
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoint.on_reach = on_reach


def run(arguments: Sequence[str], step: str, nth: int) -> tuple[int, str]:
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            status = 70
            try:
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
                if step:
                    die_at(step, nth)
                main(list(arguments), standalone_mode=True)
            except SystemExit as ended:
                status = int(ended.code or 0)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode()


if __name__ == "__main__":
    for line in sys.stdin:
        order = json.loads(line)
        status, said = run(order["arguments"], order["step"], order["nth"])
        print(json.dumps({"status": status, "said": said}), flush=True)
