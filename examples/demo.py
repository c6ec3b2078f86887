"""The main job, end to end, on real input: ``make demo``.

1. An origin store gets an account and a key for each client of a real access log.
2. It pushes to a real PostgreSQL and publishes a repository of signed files.
3. One replica is made from the hub, one from the files. Then both uplinks are cut.
4. The two replicas validate every request of the log, offline; meanwhile the key of the busiest
   client is revoked at the origin.
5. The uplinks return. One sync each, and: the revoked key is denied on both replicas, the usage of
   every client is at the hub, exactly as often as the log says, and all five copies are equal.

Exits with 1 if any of that is false.
"""

import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import psycopg
from rich.console import Console
from rich.table import Table

from examples import access_log
from keystore import Reason, Store, Validator
from keystore.db import open_store
from keystore.errors import TargetError
from keystore.sync import digest, repository, targets
from keystore.sync.folder import Folder
from keystore.sync.protocols import everything
from keystore.testing.postgres import EmbeddedPostgres, running

HUB_TOTALS = """
SELECT a.email, u.store_id::TEXT, sum(u.amount)::BIGINT
FROM keystore.usage_log AS u
JOIN keystore.accounts AS a ON a.store_id = u.origin_id AND a.account_id = u.account_id
GROUP BY a.email, u.store_id
"""


@dataclass
class Result:
    """What the demo saw; ``checks`` says of each promise whether it held."""

    requests: int = 0
    clients: int = 0
    allowed: int = 0
    denied: int = 0
    p50_us: float = 0.0
    p99_us: float = 0.0
    digests: dict[str, str] = field(default_factory=dict)
    totals: list[tuple[str, int, int, int, int]] = field(default_factory=list)
    """The busiest clients: address, log, hub, of that from replica 1, from replica 2."""
    checks: dict[str, bool] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every promise held."""
        return bool(self.checks) and all(self.checks.values())


class Demo:
    """The scene: one origin, two replicas, two uplinks, all in one folder."""

    def __init__(self, folder: Path, server: EmbeddedPostgres, console: Console) -> None:
        self.folder, self.server, self.console = folder, server, console
        self.origin, self.keys = folder / "origin.db", folder / "keys"
        self.repository, self.root = folder / "repository", folder / "pinned-root.json"
        self.replicas = [folder / "from-hub.db", folder / "from-files.db"]
        self.log = list(access_log.clients())
        self.expected = Counter(self.log)
        self.tokens: dict[str, str] = {}
        self.result = Result(requests=len(self.log), clients=len(self.expected))

    @property
    def files_url(self) -> str:
        """URL of the file repository."""
        return self.repository.as_uri()

    def issue(self) -> None:
        """Give every client of the log an account and a key."""
        with Store.create(self.origin) as store:
            store.add_plan("web")
            for client in self.expected:
                email = store.add_account(address(client), plan="web").email
                self.tokens[client] = store.issue_key(email, label="access log").token
        self.say(f"issued {len(self.tokens):,} keys")

    def distribute(self) -> None:
        """Push to the hub, publish the files, make a replica from each."""
        with targets.hub_admin(self.server.url) as admin:
            admin.init()
        self.root.write_bytes(repository.create(Folder(self.repository), self.keys).read_bytes())
        with open_store(self.origin) as file:
            for url in (self.server.url, self.files_url):
                (report,) = targets.sync(file, url, keys=self.keys)
                self.say(f"pushed {report.pushed:,} records to {scheme(url)}")
        sources = [(self.server.url, None), (self.files_url, self.root.read_bytes())]
        for (url, root), path in zip(sources, self.replicas, strict=True):
            report = targets.replicate(url, path, root=root)
            self.say(f"made {path.name} with {report.pulled:,} records from {scheme(url)}")

    def cut_uplinks(self) -> None:
        """Stop the server and take the files away; prove that nothing gets through."""
        self.server.stop()
        self.repository.rename(self.repository.with_suffix(".gone"))
        refused = 0
        for path in self.replicas:
            with open_store(path) as file:
                try:
                    targets.sync(file)
                except TargetError:
                    refused += 1
        self.result.checks["both uplinks were cut"] = refused == len(self.replicas)
        self.say("cut both uplinks")

    def validate(self) -> None:
        """Check every request of the log, by turns on the two replicas; revoke a key half way."""
        times: list[int] = []
        busiest = self.expected.most_common(1)[0][0]
        with Validator(self.replicas[0]) as one, Validator(self.replicas[1]) as two:
            for number, client in enumerate(self.log):
                if number == len(self.log) // 2:
                    with Store.open(self.origin) as store:
                        store.revoke_key(self.tokens[busiest])
                validator = two if number % 2 else one
                before = time.perf_counter_ns()
                decision = validator.check(self.tokens[client])
                times.append(time.perf_counter_ns() - before)
                if decision.allowed:
                    self.result.allowed += 1
                else:
                    self.result.denied += 1
        cuts = statistics.quantiles(times, n=100)
        self.result.p50_us, self.result.p99_us = cuts[49] / 1000, cuts[98] / 1000
        self.result.checks["offline, every request of the log was allowed"] = (
            self.result.allowed == len(self.log) and self.result.denied == 0
        )
        self.say(f"validated {len(self.log):,} requests offline; revoked the busiest key meanwhile")

    def reconnect(self) -> None:
        """Bring the uplinks back and sync each store once."""
        self.server.start()
        self.repository.with_suffix(".gone").rename(self.repository)
        with open_store(self.origin) as file:
            targets.sync(file, keys=self.keys)
        with open_store(self.replicas[0]) as file:
            targets.sync(file)
        with open_store(self.replicas[1]) as file:
            targets.sync(file, self.files_url, usage_to=self.server.url)
        self.say("reconnected; one sync for each store")

    def judge(self) -> None:
        """Compare what is there now with what was promised."""
        busiest = self.expected.most_common(1)[0][0]
        reasons = []
        for path in self.replicas:
            with Validator(path) as validator:
                reasons.append(validator.check(self.tokens[busiest]).reason)
        checks = self.result.checks
        checks["the revoked key is denied on both replicas"] = reasons == [Reason.REVOKED] * 2
        by_store = self._hub_totals()
        total = sum(by_store.values(), Counter[str]())
        wanted = Counter({address(client): count for client, count in self.expected.items()})
        checks["every client's total at the hub is the log's"] = total == wanted
        parts = [by_store.get(store_id(path), Counter()) for path in self.replicas]
        self.result.totals = [
            (client, count, total[email], parts[0][email], parts[1][email])
            for client, count in self.expected.most_common(5)
            for email in [address(client)]
        ]
        self.result.digests = self._digests()
        checks["origin, hub, files and replicas are equal"] = (
            len(set(self.result.digests.values())) == 1
        )

    def _hub_totals(self) -> dict[str, Counter[str]]:
        """Ask the hub, in plain SQL and with a connection of our own, who used how much."""
        found: dict[str, Counter[str]] = {}
        with psycopg.connect(self.server.url) as conn:
            for email, recorder, amount in conn.execute(HUB_TOTALS):
                found.setdefault(recorder, Counter())[email] += amount
        return found

    def _digests(self) -> dict[str, str]:
        found = {}
        for path in (self.origin, *self.replicas):
            with open_store(path) as file:
                found[path.name] = digest.summary(digest.digest_store(file))
        for url, root in ((self.server.url, None), (self.files_url, self.root.read_bytes())):
            with targets.opened(url, root=root) as target:
                if target.source is not None:
                    pages = everything(target.source, store_id(self.origin))
                    found[scheme(url)] = digest.summary(digest.digest_pages(pages))
        return found

    def say(self, text: str) -> None:
        """Tell how far the demo is."""
        self.console.print(f"  {text}", highlight=False)


def address(client: str) -> str:
    """Return the e-mail address of a client's account."""
    return f"{client}@clients.example"


def scheme(url: str) -> str:
    """Return a short name for a target."""
    return "the hub" if url.startswith("postgresql") else "the files"


def store_id(path: Path) -> str:
    """Return a store's id."""
    with open_store(path) as file:
        return file.info().store_id


def run(console: Console) -> Result:
    """Play the whole scene in a temporary folder and return what was seen."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="keystore-demo-") as folder, running() as server:
        demo = Demo(Path(folder), server, console)
        demo.issue()
        demo.distribute()
        demo.cut_uplinks()
        demo.validate()
        demo.reconnect()
        demo.judge()
    demo.result.seconds = time.monotonic() - started
    return demo.result


def show(result: Result, console: Console) -> None:
    """Print the tables that a person wants to read."""
    console.print()
    numbers = Table("requests", "clients", "allowed", "denied", "p50 check", "p99 check", "took")
    numbers.add_row(
        f"{result.requests:,}",
        f"{result.clients:,}",
        f"{result.allowed:,}",
        f"{result.denied:,}",
        f"{result.p50_us:.1f} µs",
        f"{result.p99_us:.1f} µs",
        f"{result.seconds:.1f} s",
    )
    console.print(numbers)
    clients = Table("busiest clients", "in the log", "at the hub", "via hub edge", "via files edge")
    for row in result.totals:
        clients.add_row(*map(str, row))
    console.print(clients)
    digests = Table("copy", "digest")
    for name, value in result.digests.items():
        digests.add_row(name, value[:16])
    console.print(digests)
    for check, held in result.checks.items():
        console.print("[green]✓[/]" if held else "[red]✗[/]", check, highlight=False)


@click.command(help=__doc__)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here.")
def main(json_path: Path | None) -> None:
    """Run the demo."""
    console = Console()
    console.print("keystore demo: a real access log, a real PostgreSQL, signed files, no network")
    result = run(console)
    show(result, console)
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(result) | {"ok": result.ok}, indent=2))
    sys.exit(0 if result.ok else 1)


if __name__ == "__main__":
    main()
