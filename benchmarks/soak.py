"""Millions of checks, by the library and by the sidecar: does the memory they take stay flat?"""

import multiprocessing
import os
import random
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import client, samples, servers
from benchmarks.harness import main
from benchmarks.results import Figure, Found, Missing, Row
from keystore import db, tokens
from keystore.edge import Validator

KEYS = 20_000
HOT_TOKENS = 1000
LIMIT_MB = 4
"""By which the memory may grow once it is warm: an interpreter's heap is never quite still."""
STEPS = 50
"""Samples; after each a key is changed, as by following."""
SENT_TOKENS = 5_000
WARM_UP_SECONDS = 5
"""For the sidecar to have seen each of those more than once."""

Check = tuple[str, str | None, str | None]
"""Token, service, address."""


def measure(quick: bool) -> list[Found]:
    """Make 100,000 checks (quick) or 10,000,000, and send requests for 3 or 120 seconds."""
    if not sys.platform.startswith("linux"):
        return [Missing("growth", "this system does not tell what a process holds in memory")]
    checks, seconds = (100_000, 3) if quick else (10_000_000, 120)
    with TemporaryDirectory(prefix="keystore-bench-") as folder:
        path, issued = Path(folder) / "origin.db", samples.issue(KEYS)
        with samples.origin(path, [tokens.hash_token(token) for token in issued]) as file:
            samples.limit(file)
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            library = alone.apply(_check, (path, issued, checks))
        return [
            *_growth(f"{checks:,} checks", library),
            *_growth(*_serve(path, Path(folder), issued, seconds)),
        ]


def _check(path: Path, issued: Sequence[str], checks: int) -> list[float]:
    """Return the memory of this process, in MB, after each step."""
    held = []
    with Validator(path) as validator:
        for token in (*issued, *issued):  # an answer is kept from the second time on
            validator.check(token)
        for step in range(-STEPS // 5, STEPS):  # a fifth to warm up
            for token, service, ip in _traffic(issued, checks // STEPS):
                validator.check(token, service=service, ip=ip)
            _change_a_key(path)
            if step >= 0:
                held.append(_resident_mb())
    return held


def _traffic(issued: Sequence[str], count: int) -> Iterator[Check]:
    """Of a hundred checks, 80 are of hot keys; two of the others are of no key."""
    hot, (_, serviced, bound) = issued[:HOT_TOKENS], samples.limited(issued)
    some = random.choice
    choices: tuple[Callable[[], Check], ...] = (
        *(lambda: (some(hot), None, None),) * 80,
        *(lambda: (some(issued), None, f"192.0.2.{random.randrange(256)}"),) * 10,  # noqa: S311
        *(lambda: (some(serviced), samples.SERVICE, None),) * 4,
        *(lambda: (some(bound), None, f"2001:db8::{secrets.token_hex(2)}"),) * 4,
        lambda: (samples.issue(1)[0], None, None),
        lambda: (secrets.token_hex(secrets.randbelow(200)), None, None),
    )
    for number in range(count):
        yield choices[number % 100]()


def _change_a_key(path: Path) -> None:
    with db.open_store(path) as file, file.write() as conn:
        conn.execute(
            "UPDATE APIKeys SET label = hex(randomblob(8)) WHERE api_key_id = ?",
            (random.randint(1, KEYS),),  # noqa: S311 - no secret
        )


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _serve(
    path: Path, folder: Path, issued: Sequence[str], seconds: int
) -> tuple[str, list[float]]:
    """Return how many requests there were, and the memory of the sidecar after each second."""
    sent = folder / "tokens"
    allowed = sorted(set(issued).difference(samples.limited(issued)[2]))[:SENT_TOKENS]
    sent.write_text("".join(f"{token}\n" for token in allowed), encoding="ascii")
    held, requests = [], 0.0
    with servers.sidecar(path, folder) as server:
        for second in range(-WARM_UP_SECONDS, seconds):
            rate = client.requests_per_second(f"{server.url}/check", sent, 1)
            _change_a_key(path)
            if second >= 0:
                held.append(server.resident_mb())
                requests += rate
    return f"{int(requests):,} requests to the sidecar", held


def _growth(what: str, held: Sequence[float]) -> list[Found]:
    fifth = max(1, len(held) // 5)
    growth = sum(held[-fifth:]) / fifth - sum(held[:fifth]) / fifth
    ratio = round(growth / LIMIT_MB, 4)
    return [
        Row(f"growth in {what}", f"{LIMIT_MB} MB", ratio, ratio, ratio, 1.0, ratio <= 1),
        Figure(what, round(held[0], 1), "MB when warm"),
        Figure(what, round(growth, 2), "MB more at the end"),
        Figure(what, round(max(held), 1), "MB at most"),
    ]


if __name__ == "__main__":
    main(measure)
