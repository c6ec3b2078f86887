"""From a revocation at the hub to the first denial at an edge, against a bare NOTIFY round trip."""

import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import psycopg
import uuid_utils.compat

from benchmarks import samples
from benchmarks.following import following
from benchmarks.harness import main
from benchmarks.hubs import FreshHub
from benchmarks.results import Figure, Found, Row
from keystore import tokens
from keystore.edge import Validator
from keystore.sync import engine, targets
from keystore.testing.postgres import running

_TIMEOUT_SECONDS = 30.0
_OURS = "from a revocation's commit to its denial at an edge"
_THEIRS = "a bare NOTIFY"


def measure(quick: bool) -> list[Found]:
    """Measure 100 revocations (quick) or 1,000 in turns with as many notifications."""
    rounds = 100 if quick else 1_000
    issued = [tokens.new_token(uuid_utils.compat.uuid7()) for _ in range(rounds + 1)]
    with (
        TemporaryDirectory(prefix="keystore-bench-") as folder,
        running() as server,
        FreshHub(server.url, "ours") as hub,
    ):
        replica = Path(folder) / "replica.db"
        hashes = [tokens.hash_token(token) for token in issued]
        with samples.origin(Path(folder) / "origin.db", hashes) as file:
            engine.push(file, hub.hub, "hub:", engine.Report("hub:"))
        engine.replicate(hub.hub, "hub:", replica, engine.Report("hub:"))
        with (
            targets.hub_admin(hub.url) as admin,
            following(hub.url, replica),
            Validator(replica) as edge,
            _echo(server.url) as round_trip,
        ):

            def revoke(token: str) -> float:
                if not edge.check(token, cost=0).allowed:
                    msg = "the key was denied before it was revoked"
                    raise RuntimeError(msg)
                admin.revoke(token)
                start = perf_counter()
                while edge.check(token, cost=0).allowed:
                    if perf_counter() - start > _TIMEOUT_SECONDS:
                        msg = "the revocation did not arrive"
                        raise RuntimeError(msg)
                return perf_counter() - start

            revoke(issued[0]), round_trip()  # warms both up
            pairs = [(revoke(token), round_trip()) for token in issued[1:]]
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    return [
        *(_compare(ours, theirs, percent) for percent in (50, 99)),
        *(
            Figure(what, round(_percentile(times, percent) * 1000, 2), f"ms, p{percent}")
            for what, times in ((_OURS, ours), (_THEIRS, theirs))
            for percent in (50, 99)
        ),
    ]


def _compare(ours: Sequence[float], theirs: Sequence[float], percent: int) -> Row:
    """Compare a percentile; the quartiles are those of ten parts of the run."""

    def ratio(a: Sequence[float], b: Sequence[float]) -> float:
        return _percentile(a, percent) / _percentile(b, percent)

    parts = [ratio(ours[part::10], theirs[part::10]) for part in range(10)]
    low, _, high = statistics.quantiles(parts, n=4, method="inclusive")
    return Row(
        what=f"{_OURS}, p{percent}",
        against=f"{_THEIRS}, p{percent}",
        ratio=round(ratio(ours, theirs), 4),
        low=round(low, 4),
        high=round(high, 4),
        goal=None,
        met=None,
    )


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


@contextmanager
def _echo(url: str) -> Iterator["_RoundTrip"]:
    with (
        psycopg.connect(url, autocommit=True) as sender,
        psycopg.connect(url, autocommit=True) as listener,
    ):
        listener.execute("LISTEN bare")
        trip = _RoundTrip(sender)
        thread = threading.Thread(target=trip.listen, args=(listener,), daemon=True)
        thread.start()
        try:
            yield trip
        finally:
            trip.over.set()
            thread.join()


class _RoundTrip:
    """Times one NOTIFY, from its sending to its arrival in another connection's thread."""

    def __init__(self, sender: "psycopg.Connection[tuple[object, ...]]") -> None:
        self._sender = sender
        self._heard = threading.Event()
        self.over = threading.Event()

    def listen(self, listener: "psycopg.Connection[tuple[object, ...]]") -> None:
        while not self.over.is_set():
            for _ in listener.notifies(timeout=0.2, stop_after=1):
                self._heard.set()

    def __call__(self) -> float:
        self._heard.clear()
        start = perf_counter()
        self._sender.execute("NOTIFY bare")
        if not self._heard.wait(_TIMEOUT_SECONDS):
            msg = "the notification did not arrive"
            raise RuntimeError(msg)
        return perf_counter() - start


if __name__ == "__main__":
    main(measure)
