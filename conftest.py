"""Runs every example of README.md and docs/: docs cannot lie.

``python`` blocks are executed, block after block in one namespace per page. ``console`` blocks are
a shell session: each line that starts with ``$`` is a command, what follows is its output, in
which ``...`` stands for anything. Each page gets an empty folder, exported variables carry over
from command to command, ``$HUB`` is the URL of an empty database (a page that names it gets a
server), ``$EXAMPLES`` the folder of the examples, and port 8080 is a free one.
"""

import doctest
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest import SkipTest

import psycopg
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from keystore.errors import KeystoreError
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
    program, path = command.split(maxsplit=1)[0], namespace["environment"]["PATH"]
    if program in {"curl", "sqlite3", "psql", "pg_dump"} and not shutil.which(program, path=path):
        raise SkipTest(f"{program} is not installed")
    if "$HUB" in command and "HUB" not in namespace["environment"]:
        _start_hub(namespace)
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


def _start_hub(namespace: dict[str, Any]) -> None:
    """Make the database that ``$HUB`` names; most pages need none, and a server takes seconds."""
    server = namespace["server"]
    url = os.environ.get(postgres.ENVIRONMENT_VARIABLE)
    url = url or server.enter_context(postgres.running()).url
    database = f"docs_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {database}")  # type: ignore[call-overload,unused-ignore]
    namespace["environment"]["HUB"] = f"{url.rpartition('/')[0]}/{database}"


def _setup(namespace: dict[str, Any]) -> None:
    folder = tempfile.mkdtemp(prefix="keystore-docs-")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("KEYSTORE_")
    }
    programs = [Path(sys.executable).parent]
    with suppress(KeystoreError):  # pg_dump of the server's own version, or of a newer one
        programs.append(postgres.binaries())
    environment["PATH"] = os.pathsep.join([*map(str, programs), environment["PATH"]])
    environment["EXAMPLES"] = str(Path(__file__).parent / "examples")
    namespace.update(
        folder=folder,
        server=ExitStack(),
        port=str(postgres.free_port()),
        environment=environment,
        before=Path.cwd(),
    )
    os.chdir(folder)


def _teardown(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["before"])
    namespace["server"].close()
    shutil.rmtree(namespace["folder"])


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), ConsoleParser()],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    setup=_setup,
    teardown=_teardown,
).pytest()
