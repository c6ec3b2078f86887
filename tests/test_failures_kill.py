"""SIGKILL of the client at every step of every command, and the same command again."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from keystore import failpoint
from keystore.db import StoreFile, open_store
from keystore.sync import compact, targets, usage_files, usage_keys
from tests.conftest import new_hub
from tests.failures import Children, Site, reaching

BY_COMMAND = {
    "origin": ("revocations", "settle", "push", "usage", "ledger"),
    "replica": ("revocations", "pull", "usage", "check_in"),
    "replicate": ("replicate", "revocations", "check_in"),
    "compact": ("compact",),
}
CASES = [
    (command, step)
    for command, kinds in BY_COMMAND.items()
    for step in failpoint.STEPS
    if step.partition(".")[0] in kinds
]


@pytest.fixture(scope="module")
def site(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all steps: what one kill leaves is where the next one starts."""
    with new_hub(postgres_url) as url:
        yield Site(tmp_path_factory.mktemp("site"), url)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    made = Children()
    yield made
    made.close()


def test_every_step_in_the_code_has_a_name_and_every_name_a_step() -> None:
    code = Path(failpoint.__file__).parent.rglob("*.py")
    found = {
        name for path in code for name in re.findall(r'reached\("([^"]+)"\)', path.read_text())
    }
    assert found == {*failpoint.STEPS, *failpoint.FILE_STEPS}


def carry_usage(site: Site, folder: Path) -> None:
    key = folder / "key.pem"
    with open_store(site.replica) as file, open_store(site.origin) as origin:
        usage_keys.enroll(origin, usage_keys.make_key(file, key)[0])
        usage_files.export(file, folder, key)
        assert not usage_files.ingest(origin, [folder]).refused


def test_a_full_round_reaches_every_step(site: Site, tmp_path: Path) -> None:
    seen: list[str] = []
    site.change()
    with reaching(seen.append):
        site.settle()
        site.settle()  # of what the replica has handed up
        targets.replicate(site.url, tmp_path / "new.db")
        with open_store(site.origin) as file:
            compact.compact(file)
        carry_usage(site, tmp_path)
    assert set(seen) == set(failpoint.STEPS)


def revoked(file: StoreFile) -> set[tuple[str]]:
    return set(file.conn.execute("SELECT api_key FROM Revocations"))


@pytest.mark.parametrize(("command", "step"), CASES, ids=map(" ".join, CASES))
def test_a_kill_at_any_step_loses_nothing_and_counts_nothing_twice(
    site: Site, children: Children, tmp_path: Path, command: str, step: str
) -> None:
    new = tmp_path / "new.db"
    site.change()
    site.sync(site.replica if command == "origin" else site.origin)
    match command:
        case "origin":
            arguments = ["sync", site.url, "--db", site.origin]
        case "replica":
            arguments = ["sync", site.url, "--db", site.replica]
        case "replicate":
            arguments = ["replicate", site.url, new]
        case _:
            arguments = ["compact", "--db", site.origin]
    nth = 2 if step in {"push.page", "pull.page"} else 1
    status, said = children.run(*arguments, step=step, nth=nth)
    assert status == -signal.SIGKILL, said
    if command == "replicate" and new.exists():
        with open_store(new) as file, psycopg.connect(site.url) as hub:
            found = hub.execute("SELECT api_key::TEXT FROM keystore.revocations").fetchall()
            assert revoked(file) == set(found)
        arguments = ["sync", site.url, "--db", new]  # it was complete when it appeared
    status, said = children.run(*arguments)
    assert status == 0, said
    site.settle()
    if command == "replicate":
        site.sync(new)
        site.check(new)
    else:
        site.check()
