"""The main job as an acceptance test: the demo, on the real access log."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from examples import access_log
from examples.demo import Result

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], str]:
    path = tmp_path_factory.mktemp("demo") / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--json", str(path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text()), done.stdout


def test_the_main_job_holds_every_promise(played: tuple[dict[str, object], str]) -> None:
    result, _ = played
    checks = result["checks"]
    assert isinstance(checks, dict)
    assert all(checks.values())
    assert len(checks) == 5
    assert (result["requests"], result["clients"]) == (10_000, 1753)
    assert (result["allowed"], result["denied"]) == (10_000, 0)
    digests = result["digests"]
    assert isinstance(digests, dict)
    assert (len(digests), len(set(digests.values()))) == (5, 1)


def test_the_totals_at_the_hub_are_those_of_the_log(played: tuple[dict[str, object], str]) -> None:
    result, _ = played
    rows = result["totals"]
    assert isinstance(rows, list)
    in_log = Counter(access_log.clients())
    assert in_log.most_common(1) == [("66.249.73.135", 482)]
    for client, wanted, at_hub, via_hub, via_files in rows:
        assert in_log[client] == wanted == at_hub == via_hub + via_files


def test_the_demo_shows_what_a_person_wants_to_read(played: tuple[dict[str, object], str]) -> None:
    _, output = played
    for words in (
        "requests",
        "allowed",
        "denied",
        "p50 check",
        "p99 check",
        "at the hub",
        "digest",
    ):
        assert words in output
    assert output.count("✓") == 5


def test_a_broken_promise_fails_the_demo() -> None:
    assert not Result().ok
    assert not Result(checks={"a": True, "b": False}).ok
    assert Result(checks={"a": True}).ok


def test_a_line_that_is_no_request_is_named(tmp_path: Path) -> None:
    import lzma

    path = tmp_path / "log.xz"
    path.write_bytes(
        lzma.compress(b'1.2.3.4 - - [17/May/2015:10:05:03 +0000] "GET /" 200\nrubbish\n')
    )
    with pytest.raises(ValueError, match="line 2"):
        list(access_log.clients(path))
