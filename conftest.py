"""Runs every example of README.md and docs/: docs cannot lie.

``python`` blocks are executed, block after block in one namespace per page. ``console`` blocks are
a shell session: each line that starts with ``$`` is a command, what follows is its output, in
which ``...`` stands for anything. Each page gets an empty folder, exported variables carry over
from command to command, ``$HUB`` is the URL of an empty database, and port 8080 is a free one.
"""

import doctest
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any
from unittest import SkipTest

import psycopg
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from keystore.testing import postgres

_COMMAND = re.compile(
    r"^\$ (?P<command>.*(?:\n> .*)*)\n?(?P<output>(?:(?!\$ ).*\n?)*)", re.MULTILINE
)
_CARRY_OVER = "{ export -p; } > .environment"


class ConsoleParser(CodeBlockParser):
    """Evaluates ``console`` blocks."""

    language = "console"

    def evaluate(self, example: Example) -> str | None:
        for match in _COMMAND.finditer(example.parsed):
            command = match["command"].replace("\n> ", "\n")
            wanted, got = match["output"], _run(command, example.namespace)
            if not doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS):
                return f"$ {command}\nwanted:\n{wanted}\ngot:\n{got}"
        return None


def _run(command: str, namespace: dict[str, Any]) -> str:
    program = command.split(maxsplit=1)[0]
    if program in {"curl", "sqlite3"} and shutil.which(program) is None:
        raise SkipTest(f"{program} is not installed")
    script = (
        f"source ./.environment 2>/dev/null\n"
        f"{command.replace('8080', namespace['port'])}\n"
        f"code=$?\n{_CARRY_OVER}\nexit $code"
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=namespace["folder"],
        env=namespace["environment"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    output = done.stdout.replace(namespace["port"], "8080")
    return output if done.returncode == 0 else f"{output}exit code {done.returncode}\n"


def _setup(namespace: dict[str, Any]) -> None:
    folder = tempfile.mkdtemp(prefix="keystore-docs-")
    server = postgres.running()
    url = os.environ.get(postgres.ENVIRONMENT_VARIABLE) or server.__enter__().url
    database = f"docs_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {database}")  # type: ignore[call-overload,unused-ignore]
    port = str(postgres.free_port())
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("KEYSTORE_")
    }
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["HUB"] = f"{url.rpartition('/')[0]}/{database}"
    namespace.update(
        folder=folder, server=server, port=port, environment=environment, before=Path.cwd()
    )
    os.chdir(folder)


def _teardown(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["before"])
    if not os.environ.get(postgres.ENVIRONMENT_VARIABLE):
        namespace["server"].__exit__(None, None, None)
    shutil.rmtree(namespace["folder"])


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), ConsoleParser()],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    setup=_setup,
    teardown=_teardown,
).pytest()
