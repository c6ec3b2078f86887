"""The simulator of fleets: all guarantees after every step of seeded histories, and its own tests.

``KEYSTORE_FLEET_SEEDS`` is how many histories are run; CI has time for some.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from keystore.changelog import Page
from keystore.cli import main
from keystore.edge.commits import HEADER_BYTES, Commits
from keystore.sync import memory
from keystore.sync.memory import MemoryHub
from keystore.sync.protocols import Usage
from keystore.testing.fleet import crowd, history, steps
from keystore.testing.fleet.history import Outcome

SEEDS = int(os.environ.get("KEYSTORE_FLEET_SEEDS", "20"))
STEPS = 200
AT_ONCE = 10


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_every_guarantee_holds_after_every_step(first: int) -> None:
    for seed in range(first, min(first + AT_ONCE, SEEDS)):
        outcome = history.run(seed, history.steps_of(seed, STEPS))
        assert outcome.broken is None, f"keystore fleet simulate --seed {seed} --steps {STEPS}"
        assert sum(outcome.kinds.values()) == STEPS


def test_a_seed_repeats_exactly() -> None:
    wanted = history.steps_of(3, 80)
    first, second = history.run(3, wanted), history.run(3, wanted)
    assert first.trail == second.trail
    assert len(first.trail) == 80
    assert sum("=" in line for line in first.trail) > 40  # (digests of who acted)
    assert first.digest != history.run(4, history.steps_of(4, 80)).digest


def test_a_seed_repeats_exactly_in_another_process() -> None:
    command = [sys.executable, "-m", "keystore", "fleet", "simulate", "--steps", "40", "--json"]
    digests = {
        json.loads(
            subprocess.run(
                command,
                env={**os.environ, "PYTHONHASHSEED": number},
                capture_output=True,
                check=True,
            ).stdout
        )["digest"]
        for number in ("1", "2")
    }
    assert digests == {history.run(0, history.steps_of(0, 40)).digest}


def test_every_kind_of_step_and_fault_comes() -> None:
    found = [step for seed in range(20) for step in history.steps_of(seed, STEPS)]
    assert {step.kind for step in found} == set(steps.BY_NAME)
    assert {step.fault for step in found} == {"", "crash", "cut", "lost", "twice", "full"}


def _broken(guarantee: int, seeds: Sequence[int] = range(8)) -> Outcome:
    """Find a seed whose history breaks a guarantee."""
    for seed in seeds:
        outcome = history.run(seed, history.steps_of(seed, STEPS))
        if outcome.broken is not None and outcome.guarantee == guarantee:
            return outcome
    pytest.fail(f"nothing breaks guarantee {guarantee}")


def test_a_validator_that_looks_for_no_commits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    first: dict[int, bytes] = {}

    def look(self: Commits) -> bytes | None:
        return first.setdefault(id(self), bytes(self.header[:HEADER_BYTES]))

    monkeypatch.setattr(Commits, "look", look)
    assert "pass" in str(_broken(2).broken)


def test_a_push_that_drops_a_row_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    send = memory._MemoryPush.send

    def drop(self: Any, page: Page) -> None:
        rows = [row for row in page.rows if page.table.name != "APIKeys" or int(row[0] or 0) % 5]
        send(self, Page(page.table, rows, page.deleted))

    monkeypatch.setattr(memory._MemoryPush, "send", drop)
    assert "the hub has" in str(_broken(1).broken)


def _push_usage_twice(self: MemoryHub, store: str, origin: str, rows: Sequence[Usage]) -> None:
    for usage in rows:
        number = len(self.usage)  # (a row that comes again is another)
        self.usage[store, usage.usage_id, usage.nonce + number] = (origin, usage)


def test_usage_that_counts_twice_is_found_and_the_history_shrunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MemoryHub, "push_usage", _push_usage_twice)
    found = run("fleet", "simulate", "--seed", "1", "--steps", "60", "--json")
    assert found.exit_code == 1
    said = json.loads(found.output)
    assert said["seed"] == 1
    assert "guarantee 3" in said["broken"]
    assert 1 <= len(said["steps"]) <= 4  # somebody uses a key, and hands that up
    again = run(*said["command"].split()[1:])
    assert again.exit_code == 1
    assert said["broken"] in again.output
    monkeypatch.undo()
    assert run(*said["command"].split()[1:]).exit_code == 0


def test_many_edges_follow_and_what_everybody_did_is_counted() -> None:
    found = crowd.simulate(12, seed=5)
    assert (found.files.edges, found.hub.edges) == (6, 6)
    for feed in (found.files, found.hub):
        assert {where: len(times) for where, times in feed.denied.items()} == {
            "origin": 6,
            "hub": 6,
        }
        assert len(feed.arrived) == 6 * 3  # of what was published, each at each
        assert min(feed.arrived) > 0
    assert found.cdn.requests == found.cdn.hits + found.storage.requests
    assert sum(found.cdn.by_name.values()) == found.cdn.requests
    assert crowd.simulate(12, seed=5).as_dict() == found.as_dict()


def test_many_edges_are_shown_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    picture = tmp_path / "revocation.svg"
    shown = run("fleet", "simulate", "--edges", "4", "--plot", str(picture))
    assert shown.exit_code == 0
    assert shown.output.splitlines()[0].split() == ["what", "files", "hub"]
    assert picture.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize("only", ["x", "3-", "1,,2"])
def test_numbers_of_steps_that_are_none_are_refused(only: str) -> None:
    assert run("fleet", "simulate", "--only", only).exit_code == 2
