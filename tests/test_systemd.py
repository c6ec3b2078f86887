"""The systemd units of examples/: systemd takes them, they give little away, the command runs."""

import configparser
import http.client
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import NewStore

EXAMPLES = Path(__file__).parent.parent / "examples"
UNITS = ("keystore.service", "keystore-sync.service")
KEYSTORE = "/opt/keystore/bin/keystore"
MOST_EXPOSED = "15"
"""Of 100, by `systemd-analyze security`; a service without any settings has 96."""


def analyze(*arguments: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


def command_of(unit: str, folder: Path) -> list[str]:
    """The command of a unit, with this machine's paths."""
    lines = (EXAMPLES / unit).read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart="))
    assert words[0] == KEYSTORE
    here = [
        word.replace("/var/lib/keystore", str(folder)).replace("/run/keystore", str(folder))
        for word in words[1:]
    ]
    return [sys.executable, "-m", "keystore", *here]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_understands_a_unit_and_finds_it_safe(unit: str, tmp_path: Path) -> None:
    path = tmp_path / unit
    # (what is to be executed must be there)
    path.write_text((EXAMPLES / unit).read_text().replace(KEYSTORE, sys.executable))
    analyze("verify", "--man=no", str(path))
    analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", str(path))


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_never_gives_a_unit_up(unit: str) -> None:
    """By itself it does after five starts in ten seconds, and an edge would stay down."""
    found = configparser.ConfigParser(strict=False, interpolation=None)
    found.read(EXAMPLES / unit)
    assert found["Service"]["Restart"] == "always"
    pause = float(found["Service"]["RestartSec"].removesuffix("s"))
    assert found["Unit"].get("StartLimitIntervalSec") == "0" or 5 * pause > 10


def test_the_command_of_the_service_answers_at_its_socket(
    new_store: NewStore, tmp_path: Path
) -> None:
    store = new_store("edge.db")
    store.add_plan("free")
    store.add_account("ada@example.org", plan="free")
    token = store.issue_key("ada@example.org").token
    command = command_of("keystore.service", tmp_path)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Serving")
        conn = http.client.HTTPConnection("keystore", timeout=10)
        conn.sock = socket.socket(socket.AF_UNIX)
        conn.sock.connect(str(tmp_path / "check.sock"))
        conn.request("GET", "/check", headers={"X-API-Key": token})
        assert conn.getresponse().status == 200
        conn.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()
    assert store.status().usage_total == 1
