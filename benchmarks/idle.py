"""What `sync --follow` costs while nothing happens: statements at the hub, and CPU."""

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import samples
from benchmarks.following import following
from benchmarks.harness import main
from benchmarks.hubs import FreshHub
from benchmarks.results import Figure, Found, Missing, Row
from keystore.sync import engine
from keystore.testing.postgres import EmbeddedPostgres, running

STATEMENTS = 60
"""A minute, which would be one a second."""
CPU_SHARE = 0.01
"""Of one core."""


def measure(quick: bool) -> list[Found]:
    """Measure during two polls, which are a minute (or 6 s, quick). Linux only."""
    if not sys.platform.startswith("linux"):
        return [Missing("an idle follower", "this system does not tell what a process uses")]
    poll = 3.0 if quick else 30.0
    with (
        TemporaryDirectory(prefix="keystore-bench-") as folder,
        running(settings={"log_statement": "all"}) as server,
        FreshHub(server.url, "ours") as hub,
    ):
        origin, replica = (Path(folder) / name for name in ("origin.db", "replica.db"))
        with samples.origin(origin, samples.random_hashes(1_000)) as file:
            engine.push(file, hub.hub, "hub:", engine.Report("hub:"))
        engine.replicate(hub.hub, "hub:", replica, engine.Report("hub:"))
        return [
            row
            for role, path in (("origin", origin), ("replica", replica))
            for row in _idle(role, path, server, hub.url, poll)
        ]


def _idle(role: str, path: Path, server: EmbeddedPostgres, url: str, poll: float) -> list[Found]:
    with following(url, path, poll=poll) as process_id:
        before = _statements(server), _cpu_seconds(process_id)
        time.sleep(2 * poll)
        statements = _statements(server) - before[0]
        share = (_cpu_seconds(process_id) - before[1]) / (2 * poll)
    name = f"idle {role}"
    return [
        _row(f"{name}, two polls", f"{STATEMENTS} statements", statements / STATEMENTS),
        _row(name, f"{CPU_SHARE:.0%} of a core", share / CPU_SHARE),
        Figure(name, statements, "statements in two polls"),
        Figure(name, round(share * 100, 2), "% of a core"),
    ]


def _statements(server: EmbeddedPostgres) -> int:
    lines = (server.folder / "server.log").read_text(errors="replace").splitlines()
    return sum(" LOG:  statement: " in line or " LOG:  execute " in line for line in lines)


def _cpu_seconds(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    return (user + system) / os.sysconf("SC_CLK_TCK")


def _row(what: str, against: str, ratio: float) -> Row:
    value = round(ratio, 4)
    return Row(what, against, value, value, value, 1.0, ratio <= 1)


if __name__ == "__main__":
    main(measure)
