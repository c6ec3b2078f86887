"""The sidecar's rate against nginx, FastAPI and Envoy, and what it costs behind nginx."""

import importlib.util
import random
import statistics
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import client, samples, servers
from benchmarks.harness import main, row
from benchmarks.results import Figure, Found, Missing, Row

TOKENS = 1000
NOT_THERE = "it is not installed"
OURS, NOTHING, OPEN, GUARDED = (
    "sidecar",
    "nginx, return 204",
    "nginx with no check",
    "nginx + auth_request + sidecar",
)
FASTAPI, ENVOY = "the same check in FastAPI on uvicorn", "Envoy, api_key_auth"

_ROWS = (
    (OURS, NOTHING, 1 / 0.7),
    (OURS, FASTAPI, 1 / 4),
    (OURS, ENVOY, 1 / 0.9),
    (GUARDED, OPEN, None),
)
"""What is compared, and how many times as long a request may take."""


@dataclass
class _Subject:
    """One thing to send requests to, and for each round the seconds that a request took."""

    server: servers.Server
    path: str
    allowed: int
    others: tuple[servers.Server, ...] = ()
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def send(self, tokens: Path, seconds: int) -> None:
        before = self._cpu_seconds()
        rate = client.requests_per_second(self.server.url + self.path, tokens, seconds)
        self.seconds.append(1 / rate)
        self.cpu.append((self._cpu_seconds() - before) / (rate * seconds))

    def _cpu_seconds(self) -> float:
        return sum(server.cpu_seconds() for server in (self.server, *self.others))


def measure(quick: bool) -> list[Found]:
    """Measure with 20,000 keys for 3 s each (quick), or with 1,000,000 for half a minute."""
    rounds, seconds = (3, 1) if quick else (11, 3)
    with TemporaryDirectory(prefix="keystore-bench-") as folder, ExitStack() as stack:
        issued = samples.issue(20_000 if quick else 1_000_000)
        db_path, tokens = Path(folder) / "replica.db", Path(folder) / "tokens"
        samples.replica(db_path, issued)
        sent = random.sample(issued, TOKENS)
        tokens.write_text("".join(f"{token}\n" for token in sent), encoding="ascii")
        missing: list[Missing] = []
        subjects = _start(stack, Path(folder), db_path, sent, missing)
        for name, subject in subjects.items():
            _verify(name, subject, sent[0])
        for _ in range(rounds):
            for subject in subjects.values():
                subject.send(tokens, seconds)
        return [*_rows(subjects), *_figures(subjects), *missing]


def _start(
    stack: ExitStack, folder: Path, db_path: Path, sent: list[str], missing: list[Missing]
) -> Mapping[str, _Subject]:
    def place(name: str) -> Path:
        made = folder / name
        made.mkdir()
        return made

    def start(name: str, running: AbstractContextManager[servers.Server]) -> servers.Server | None:
        try:
            return stack.enter_context(running)
        except (OSError, RuntimeError) as error:  # it takes no other with it
            missing.append(Missing(name, str(error)))
            return None

    ours = stack.enter_context(servers.sidecar(db_path, place("sidecar")))
    subjects = {OURS: _Subject(ours, "/check", 200)}
    if servers.NGINX is None:
        missing.append(Missing("nginx, and what a check adds behind it", NOT_THERE))
    elif nginx := start("nginx", servers.nginx(place("nginx"), ours)):
        subjects[NOTHING] = _Subject(nginx, "/nothing", 204)
        subjects[OPEN] = _Subject(nginx, "/open", 200)
        subjects[GUARDED] = _Subject(nginx, "/guarded", 200, (ours,))
    if not all(importlib.util.find_spec(package) for package in ("fastapi", "uvicorn")):
        missing.append(Missing(FASTAPI, NOT_THERE))
    elif fastapi := start(FASTAPI, servers.fastapi(db_path, place("fastapi"))):
        subjects[FASTAPI] = _Subject(fastapi, "/check", 200)
    if servers.ENVOY is None:
        missing.append(Missing(ENVOY, NOT_THERE))
    elif envoy := start(ENVOY, servers.envoy(place("envoy"), sent)):
        subjects[ENVOY] = _Subject(envoy, "/check", 204)
    return subjects


def _verify(name: str, subject: _Subject, token: str) -> None:
    """Make sure that what is timed is a check, and that it says yes."""
    denied = subject.allowed if name in {NOTHING, OPEN} else 401
    for expected, sent in ((subject.allowed, token), (denied, "no token of ours")):
        status = subject.server.status(subject.path, sent)
        if status != expected:
            raise RuntimeError(f"{name} answers {status}, not {expected}")


def _figures(subjects: Mapping[str, _Subject]) -> list[Figure]:
    """Tell the medians: for what one worker does, they say more than a ratio."""
    found = []
    for name, subject in subjects.items():
        found.append(Figure(name, round(1 / statistics.median(subject.seconds)), "requests/s"))
        cpu = statistics.median(subject.cpu)
        found.append(Figure(name, round(cpu * 1e6, 1), "µs of CPU for each"))
    if GUARDED in subjects:
        guarded, bare = subjects[GUARDED].seconds, subjects[OPEN].seconds
        more = statistics.median(a - b for a, b in zip(guarded, bare, strict=True))
        found.append(Figure(GUARDED, round(more * 1e6, 1), "µs that the check adds"))
    return found


def _rows(subjects: Mapping[str, _Subject]) -> list[Row]:
    """Compare the time for a request; and the CPU for it, which a busy machine changes less."""
    compared = [
        (ours, theirs, goal)
        for ours, theirs, goal in _ROWS
        if ours in subjects and theirs in subjects
    ]
    rows = [
        _row(f"a request: {ours}", theirs, subjects[ours].seconds, subjects[theirs].seconds, goal)
        for ours, theirs, goal in compared
    ]
    if not all(second for subject in subjects.values() for second in subject.cpu):
        return rows  # this system does not tell
    return rows + [
        _row(f"CPU for a request: {ours}", theirs, subjects[ours].cpu, subjects[theirs].cpu, None)
        for ours, theirs, _ in compared
    ]


def _row(
    what: str, against: str, ours: list[float], theirs: list[float], goal: float | None
) -> Row:
    return row(what, against, [a / b for a, b in zip(ours, theirs, strict=True)], goal)


if __name__ == "__main__":
    main(measure)
