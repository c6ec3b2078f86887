"""Following: news arrive by themselves, nothing is lost while a side is away, idleness is cheap."""

import http.client
import json
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import urlsplit

import psycopg
import pytest

from keystore import Store, Validator
from keystore.db import open_store
from keystore.edge.decision import Reason
from keystore.errors import ForkedStoreError, KeystoreError, TargetUnavailableError
from keystore.sync import engine, follow, repository, targets
from keystore.sync.engine import Report
from keystore.sync.folder import Folder
from keystore.sync.follow import Event, Follower, backoff
from keystore.sync.hub_connection import HubConnection
from keystore.sync.memory import MemoryHub
from keystore.sync.postgres import PostgresHub
from keystore.sync.protocols import News, Origin, Pull
from keystore.testing import postgres
from tests.conftest import NewStore

DEADLINE_SECONDS = 30.0
OTHER_CLIENT = (
    "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit()"
)


def wait_until(condition: Callable[[], object]) -> None:
    """Look until it is so; fail if it never is."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def write(path: Path, statement: str) -> None:
    """Write as another program does, with a SQLite of its own."""
    subprocess.run([sys.executable, "-c", OTHER_CLIENT, str(path), statement], check=True)


def allowed(path: Path, token: str) -> bool:
    with Validator(path) as validator:
        return validator.check(token, cost=0).allowed


def hub_rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as conn:
        return conn.execute(statement).fetchall()  # type: ignore[call-overload,no-any-return,unused-ignore]


class Running:
    """A `keystore` process whose output is read line by line."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "keystore", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.stderr: list[str] = []
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.threads = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines.put)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.stderr.append)),
        ]
        for thread in self.threads:
            thread.start()

    def _read(self, stream: IO[str], put: Callable[[str], None]) -> None:
        with stream:
            for line in stream:
                put(line.rstrip("\n"))

    def wait_for(self, pattern: str) -> str:
        """Return the next line that matches; skip what comes before."""
        seen = []
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            try:
                seen.append(self.lines.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                pytest.fail(f"no line matches {pattern!r}: {seen}, {self.stderr}")
            if re.search(pattern, seen[-1]):
                return seen[-1]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        code = self.process.wait(timeout=DEADLINE_SECONDS)
        for thread in self.threads:
            thread.join(DEADLINE_SECONDS)
        return code


Run = Callable[..., Running]


@pytest.fixture
def run() -> Iterator[Run]:
    """Starts `keystore` processes; none outlives the test."""
    started: list[Running] = []

    def start(*arguments: object) -> Running:
        started.append(Running(*map(str, arguments)))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.ended()


@pytest.fixture
def replica(store: Store, hub_url: str, tmp_path: Path, healthy: list[Path]) -> Path:
    """A replica of the fixture's store, by way of a hub."""
    path = tmp_path / "replica.db"
    targets.sync(store.file, hub_url)
    targets.replicate(hub_url, path)
    healthy.append(path)
    return path


def follow_both(run: Run, store: Store, replica: Path) -> tuple[Running, Running]:
    """Follow at both sides, with no poll that could help out."""
    both = tuple(
        run("sync", "--follow", "--poll", 3600, "--db", path) for path in (store.file.path, replica)
    )
    for each in both:
        each.wait_for("following")
    return both  # type: ignore[return-value]


# -- the real thing ----------------------------------------------------------------------------


def test_a_write_of_any_client_at_the_origin_arrives_at_the_replica(
    run: Run, store: Store, replica: Path
) -> None:
    origin, edge = follow_both(run, store, replica)
    write(store.file.path, "INSERT INTO Plans (name) VALUES ('from outside')")
    assert "pushed 1 record; as of change 8, 0 changes waiting." in origin.wait_for("pushed")
    assert re.search(
        r"pulled 1 record; as of change 8, \d+ s old, 0 changes behind", edge.wait_for("pulled")
    )
    with open_store(replica) as file:
        assert ("from outside",) in file.conn.execute("SELECT name FROM Plans").fetchall()
    assert (origin.end(), edge.end(signal.SIGINT)) == (0, 0)
    assert (origin.stderr, edge.stderr) == ([], [])


def test_usage_of_a_following_replica_arrives_once(
    run: Run, store: Store, replica: Path, hub_url: str
) -> None:
    token = store.issue_key("ada@example.org").token
    origin, edge = follow_both(run, store, replica)
    wait_until(lambda: allowed(replica, token))
    for cost in (1, 10, 100):
        with Validator(replica) as validator:
            assert validator.check(token, cost=cost).allowed
        edge.wait_for("handed up 1 usage row;")
    assert hub_rows(hub_url, "SELECT count(*), sum(amount) FROM keystore.usage_log") == [(3, 111)]
    assert (origin.end(), edge.end()) == (0, 0)


def test_a_revocation_at_the_hub_reaches_replica_and_origin_and_is_pushed(
    run: Run, store: Store, replica: Path, hub_url: str
) -> None:
    issued = store.issue_key("ada@example.org")
    origin, edge = follow_both(run, store, replica)
    wait_until(lambda: allowed(replica, issued.token))
    with Validator(replica) as validator, targets.hub_admin(hub_url) as admin:
        assert validator.check(issued.token, cost=0).allowed
        admin.revoke(issued.key.api_key)
        wait_until(lambda: not validator.check(issued.token, cost=0).allowed)
        assert validator.check(issued.token, cost=0).reason is Reason.REVOKED
    assert "took over 1 revocation, pushed 2 records" in origin.wait_for("revocation")
    assert not allowed(store.file.path, issued.token)
    assert store.key(issued.key.api_key).status == "revoked"
    assert hub_rows(hub_url, "SELECT status FROM keystore.api_keys") == [("revoked",)]
    edge.wait_for("pulled 2 records")
    with open_store(replica) as file:
        assert file.conn.execute("SELECT status FROM APIKeys").fetchall() == [("revoked",)]


def test_a_revocation_is_denied_at_the_edge_though_the_origin_is_away(
    run: Run, store: Store, replica: Path, hub_url: str
) -> None:
    issued = store.issue_key("ada@example.org")
    targets.sync(store.file, hub_url)
    edge = run("sync", "--follow", "--poll", 3600, "--db", replica)
    edge.wait_for("following, pulled 1 record")
    with targets.hub_admin(hub_url) as admin:
        admin.revoke(issued.key.api_key)
    edge.wait_for("took over 1 revocation")
    assert not allowed(replica, issued.token)


def test_a_connection_that_is_cut_while_listening_comes_back_and_hears(
    run: Run, store: Store, replica: Path, hub_url: str
) -> None:
    token = store.issue_key("ada@example.org").token
    origin, edge = follow_both(run, store, replica)
    wait_until(lambda: allowed(replica, token))
    with psycopg.connect(hub_url, autocommit=True) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'keystore' AND datname = current_database()"
        )
    for each in (origin, edge):
        each.wait_for("lost; as of change 8")
        each.wait_for("back")
    store.revoke_key(token)
    edge.wait_for("pulled 2 records")
    assert not allowed(replica, token)
    assert (origin.end(), edge.end()) == (0, 0)
    assert [line.partition(": ")[0] for line in origin.stderr] == ["keystore"]
    assert edge.stderr[0].endswith("Trying again.")


def test_a_hub_that_was_away_gets_everything_when_it_is_back(
    run: Run, store: Store, tmp_path: Path
) -> None:
    replica = tmp_path / "replica.db"
    with postgres.running() as server:
        with targets.hub_admin(server.url) as admin:
            admin.init()
        targets.sync(store.file, server.url)
        token = store.issue_key("ada@example.org").token
        targets.sync(store.file, server.url)
        targets.replicate(server.url, replica)
        origin = run("sync", "--follow", "--json", "--db", store.file.path)
        edge = run("sync", "--follow", "--json", "--db", replica)
        origin.wait_for("following")
        edge.wait_for("following")
        server.stop()
        lost = json.loads(origin.wait_for('"lost"'))
        assert lost["error"]["code"] == "target_unavailable"
        edge.wait_for('"lost"')
        store.add_plan("made meanwhile")
        with Validator(replica) as validator:
            validator.check(token, cost=7)
        server.start()
        back = json.loads(origin.wait_for('"back"'))
        assert (back["pushed"], back["lag"]["changes"]) == (1, 0)
        assert json.loads(edge.wait_for('"back"'))["usage"] == 1
        wait_until(lambda: "made meanwhile" in plans_of(replica))
        assert hub_rows(server.url, "SELECT amount FROM keystore.usage_log") == [(7,)]
        server.stop()
        for each in (origin, edge):
            each.wait_for('"lost"')
            assert each.end() == 0  # in the middle of a backoff
            assert each.stderr == []


def plans_of(path: Path) -> list[str]:
    with open_store(path) as file:
        return [name for (name,) in file.conn.execute("SELECT name FROM Plans")]


def test_what_does_not_pass_by_itself_ends_it_with_that_error(
    run: Run, store: Store, hub_url: str, tmp_path: Path
) -> None:
    targets.sync(store.file, hub_url)
    copy = tmp_path / "copy.db"
    store.file.conn.execute("VACUUM INTO ?", (str(copy),))
    store.add_plan("later")
    targets.sync(store.file, hub_url)
    twin = run("sync", "--follow", "--json", "--db", copy, hub_url)
    assert twin.ended() == 1
    assert json.loads("".join(twin.stderr))["error"]["code"] == "forked_store"
    origin = run("sync", "--follow", "--db", store.file.path)
    origin.wait_for("following")
    with Store.open(copy) as opened:
        targets.sync(opened.file, hub_url, reconcile=True)
    store.add_plan("too late")
    assert origin.ended() == 1
    assert "another copy" in origin.stderr[-1]
    assert not any("Traceback" in line for line in origin.stderr)


def test_all_known_targets_are_followed_and_files_are_as_well(
    run: Run, store: Store, replica: Path, hub_url: str, tmp_path: Path
) -> None:
    files, keys = tmp_path / "files", tmp_path / "keys"
    root = repository.create(Folder(files), keys)
    targets.sync(store.file, str(files), keys=keys)
    twin = tmp_path / "twin.db"
    targets.replicate(str(files), twin, root=root.read_bytes())
    origin = run("sync", "--follow", "--db", store.file.path, "--keys", keys)
    edge = run("sync", "--follow", "--poll", 0.2, "--db", twin)
    for _ in range(2):
        origin.wait_for("following")
    edge.wait_for("following")
    store.add_plan("everywhere")
    edge.wait_for("pulled 1 record")
    wait_until(lambda: hub_rows(hub_url, "SELECT FROM keystore.plans WHERE name = 'everywhere'"))
    assert (origin.end(), edge.end()) == (0, 0)


def test_a_target_that_never_answers_does_not_keep_it_from_ending(run: Run, store: Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        origin = run(
            "sync", "--follow", "--db", store.file.path, f"postgresql://127.0.0.1:{port}/x"
        )
        conn, _ = silent.accept()
        assert origin.end() == 0
        conn.close()
    assert origin.stderr == []


# -- serve --sync ------------------------------------------------------------------------------


def ask(url: str, token: str) -> int:
    conn = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE_SECONDS)
    conn.request("GET", "/check", headers={"X-API-Key": token})
    status = conn.getresponse().status
    conn.close()
    return status


def test_a_server_that_follows_denies_what_is_revoked_and_hands_up_its_usage_at_the_end(
    run: Run, store: Store, replica: Path, hub_url: str
) -> None:
    kept, revoked = (store.issue_key("ada@example.org") for _ in range(2))
    targets.sync(store.file, hub_url)
    server = run("serve", "--db", replica, "--port", 0, "--sync", hub_url)
    lines = [server.wait_for("Serving|following") for _ in range(2)]
    (url,) = re.findall(r"http://\S+", " ".join(lines))
    wait_until(lambda: allowed(replica, revoked.token))
    assert (ask(url, kept.token), ask(url, revoked.token)) == (200, 200)
    with targets.hub_admin(hub_url) as admin:
        admin.revoke(revoked.key.api_key)
    wait_until(lambda: ask(url, revoked.token) == 401)
    assert ask(url, kept.token) == 200
    assert server.end() == 0
    with open_store(replica) as file:
        (used,) = file.conn.execute("SELECT sum(amount) FROM UsageLog").fetchone()
    assert used >= 3
    assert hub_rows(hub_url, "SELECT sum(amount)::INT FROM keystore.usage_log") == [(used,)]
    assert server.stderr == []


def test_a_server_goes_on_without_its_hub_and_ends_without_it(
    run: Run, store: Store, tmp_path: Path
) -> None:
    token = store.issue_key("ada@example.org").token
    nowhere = "postgresql://ada:s3cret@127.0.0.1:1/nowhere"
    server = run("serve", "--json", "--db", store.file.path, "--port", 0, "--sync", nowhere)
    lines = [json.loads(server.wait_for("url|lost")) for _ in range(2)]
    (url,) = [line["url"] for line in lines if "url" in line]
    assert ask(f"{url}/check", token) == 200
    assert server.end() == 0
    assert store.status().usage_total == 1
    assert "s3cret" not in json.dumps(lines) + "".join(server.stderr)


def test_a_server_goes_on_after_an_error_that_does_not_pass(
    run: Run, store: Store, hub_url: str, tmp_path: Path
) -> None:
    token = store.issue_key("ada@example.org").token
    with psycopg.connect(hub_url) as conn:
        conn.execute("UPDATE keystore.hub_info SET schema_version = 99")
    server = run("serve", "--db", store.file.path, "--port", 0, "--sync", hub_url)
    lines = [server.wait_for("Serving|lost") for _ in range(2)]
    (url,) = re.findall(r"http://\S+", " ".join(lines))
    assert ask(url, token) == 200
    assert server.end() == 0
    assert "schema version is 99" in server.stderr[0]


def test_a_server_without_a_store_says_how_to_get_one(run: Run, hub_url: str) -> None:
    server = run("serve", "--db", "missing.db", "--port", 0, "--sync", hub_url)
    assert server.ended() == 1
    (said,) = server.stderr
    assert "missing.db: no such file" in said
    assert "keystore replicate" in said


# -- the hub's news ----------------------------------------------------------------------------


@pytest.fixture(params=["memory", "postgres"])
def hub(request: pytest.FixtureRequest) -> Iterator[MemoryHub | PostgresHub]:
    if request.param == "memory":
        yield MemoryHub()
        return
    opened = PostgresHub(request.getfixturevalue("hub_url"))
    yield opened
    opened.close()


@contextmanager
def admin_of(hub: MemoryHub | PostgresHub, url: str) -> Iterator[Any]:
    with nullcontext(hub) if isinstance(hub, MemoryHub) else targets.hub_admin(url) as admin:
        yield admin


def test_a_watch_hears_of_what_moved_and_of_nothing_else(
    store: Store, new_store: NewStore, hub: MemoryHub | PostgresHub, hub_url: str
) -> None:
    key = store.issue_key("ada@example.org").key.api_key
    watch = hub.watch(store.info.store_id)
    assert watch.wait(0) == []
    engine.push(store.file, hub, "hub:", Report(""))
    # What comes while other statements run is kept.
    assert hub.revocations(store.info.store_id, 0, None) == []
    assert watch.wait(DEADLINE_SECONDS) == [News("change", 8)]
    engine.push(store.file, hub, "hub:", Report(""))
    engine.push(new_store("other.db").file, hub, "hub:", Report(""))
    with admin_of(hub, hub_url) as admin:
        (revoked,) = admin.revoke(key)
        admin.revoke(key)
    assert watch.wait(DEADLINE_SECONDS) == [News("revocation", revoked.revocation_id)]
    assert watch.wait(0) == []


def test_a_payload_that_is_none_of_ours_is_no_news(store: Store, hub_url: str) -> None:
    hub = PostgresHub(hub_url)
    watch = hub.watch(store.info.store_id)
    channel = f"keystore_{store.info.store_id.replace('-', '')}"
    for payload in ("", "change", "change x", "change -1", "change " + "9" * 7000, "change 5"):
        hub.conn.execute("SELECT pg_notify(%s, %s)", (channel, payload))
    assert [news for _ in range(50) for news in watch.wait(0.02)] == [News("change", 5)]
    hub.close()


def test_a_hub_that_goes_while_it_is_listened_to_is_noticed(store: Store, hub_url: str) -> None:
    hub = PostgresHub(hub_url)
    watch = hub.watch(store.info.store_id)
    with psycopg.connect(hub_url, autocommit=True) as conn:
        conn.execute("SELECT pg_terminate_backend(%s)", (hub.conn.info.backend_pid,))
    with pytest.raises(TargetUnavailableError):
        wait_until(lambda: watch.wait(0.1))
    hub.close()


def test_a_host_that_vanishes_is_noticed_in_time_unless_the_url_says_otherwise(
    hub_url: str,
) -> None:
    ours, theirs = HubConnection(hub_url), HubConnection(f"{hub_url}?tcp_user_timeout=7000")
    assert ours.conn.info.get_parameters()["tcp_user_timeout"] == "20000"
    assert ours.conn.info.get_parameters()["keepalives_idle"] == "15"
    assert theirs.conn.info.get_parameters()["tcp_user_timeout"] == "7000"
    ours.close()
    theirs.close()


# -- the follower, in this process -------------------------------------------------------------


class CountingHub(MemoryHub):
    """Counts what a follower asks of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    @contextmanager
    def push(self, origin: Origin) -> Iterator[Any]:
        self.calls.append("push")
        with super().push(origin) as session:
            yield session

    @contextmanager
    def pull(self, origin_id: str | None, after: int | None) -> Iterator[Pull]:
        self.calls.append("pull")
        with super().pull(origin_id, after) as cut:
            yield cut

    def holds_usage(self, store_id: str, usage_id: int, nonce: int) -> bool:
        self.calls.append("usage")
        return super().holds_usage(store_id, usage_id, nonce)


class InThread:
    """A follower in a thread, and what it tells."""

    def __init__(self, path: Path, hub: MemoryHub | None, **options: Any) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.errors: list[KeystoreError] = []
        if hub is not None:
            options["opened"] = lambda *_, **__: nullcontext(hub)
        given: dict[str, Any] = {"poll": 3600.0, "target": "memory://hub", **options}
        self.follower = Follower(path, on_event=self.events.put, **given)
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.follower.run()
        except KeystoreError as error:
            self.errors.append(error)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, *, hand_up: bool = False) -> None:
        self.follower.stop(hand_up=hand_up)
        self.thread.join(DEADLINE_SECONDS)
        assert not self.thread.is_alive()

    def next(self) -> Event:
        return self.events.get(timeout=DEADLINE_SECONDS)


@pytest.fixture
def memory(store: Store, tmp_path: Path, healthy: list[Path]) -> tuple[CountingHub, Path]:
    """A hub in memory, and a replica by way of it."""
    hub, path = CountingHub(), tmp_path / "edge.db"
    engine.push(store.file, hub, "memory://hub", Report(""))
    engine.replicate(hub, "memory://hub", path, Report(""))
    healthy.append(path)
    hub.calls.clear()
    return hub, path


def test_a_hub_in_memory_can_be_followed(store: Store, memory: tuple[CountingHub, Path]) -> None:
    hub, path = memory
    with InThread(store.file.path, hub) as origin, InThread(path, hub) as edge:
        assert (origin.next().kind, edge.next().kind) == ("following", "following")
        issued = store.issue_key("ada@example.org")
        assert origin.next().report.pushed == 1
        event = edge.next()
        assert (event.kind, event.report.pulled, event.lag.changes) == ("synced", 1, 0)
        assert event.lag.age_seconds is not None
        hub.revoke(issued.key.api_key)
        assert edge.next().report.revocations == 1
        assert not allowed(path, issued.token)


def test_an_idle_follower_makes_no_round_and_its_own_commits_wake_nobody(
    store: Store, memory: tuple[CountingHub, Path]
) -> None:
    hub, path = memory
    token = store.issue_key("ada@example.org").token
    with InThread(store.file.path, hub) as origin, InThread(path, hub) as edge:
        origin.next()
        edge.next()
        wait_until(lambda: allowed(path, token))
        for _ in range(3):  # each a second after the last: ten looks at the file in between
            with Validator(path) as validator:
                assert validator.check(token).allowed
            assert edge.next().report.usage or edge.next().report.usage
    assert hub.calls.count("push") == 1
    assert hub.calls.count("pull") <= 2
    assert hub.calls.count("usage") <= 3


def test_the_poll_makes_a_round_without_news(
    store: Store, memory: tuple[CountingHub, Path]
) -> None:
    hub, path = memory
    with InThread(path, hub, poll=0.05):
        wait_until(lambda: hub.calls.count("pull") >= 3)
    with InThread(store.file.path, hub, poll=0.05) as origin:
        wait_until(lambda: hub.calls.count("push") >= 3)
        origin.next()
        assert origin.events.empty()  # quiet rounds tell nothing


def test_a_quiet_round_costs_a_hub_few_statements(
    store: Store, replica: Path, hub_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    rows = HubConnection.rows

    def counted(self: HubConnection, name: str, *table: Any, **values: object) -> list[Any]:
        asked.append(name)
        return rows(self, name, *table, **values)

    hub = PostgresHub(hub_url)
    with open_store(replica) as file:
        for each in (store.file, file):
            targets.sync_opened(each, hub, Report(hub_url))
            monkeypatch.setattr(HubConnection, "rows", counted)
            targets.sync_opened(each, hub, Report(hub_url))
            monkeypatch.setattr(HubConnection, "rows", rows)
            assert len(asked) <= 7, asked
            asked.clear()
    hub.close()


def test_commits_here_do_not_make_it_knock_at_a_dead_hub(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []

    def refuse(target: str, **_: object) -> Any:
        attempts.append(target)
        raise TargetUnavailableError("nobody answers.", hint="Wait.")

    monkeypatch.setattr(follow, "backoff", lambda *_: 3600.0)
    with InThread(store.file.path, None, opened=refuse) as origin:
        event = origin.next()
        assert (event.kind, event.error and event.error.code) == ("lost", "target_unavailable")
        assert event.lag.changes == 7
        for number in range(50):
            store.add_plan(f"plan {number}")
    assert len(attempts) == 1


def test_a_loss_is_told_once_and_again_when_it_is_another(
    store: Store, memory: tuple[CountingHub, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, _ = memory
    answers: list[KeystoreError | None] = [
        TargetUnavailableError("a"),
        TargetUnavailableError("b"),
        ForkedStoreError("c"),
        ForkedStoreError("d"),
        TargetUnavailableError("e"),
        None,
    ]

    def opened(*_: object, **__: object) -> Any:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return nullcontext(hub)

    monkeypatch.setattr(follow, "backoff", lambda *_: 0.0)
    with InThread(store.file.path, None, opened=opened, gives_up=False) as origin:
        events = [origin.next() for _ in range(4)]
    assert [(event.kind, event.error and event.error.message) for event in events] == [
        ("lost", "a"),
        ("lost", "c"),
        ("lost", "e"),
        ("back", None),
    ]


def test_a_follower_that_gives_up_does_so_at_what_will_not_pass(store: Store) -> None:
    def opened(*_: object, **__: object) -> Any:
        raise ForkedStoreError("another copy.")

    with InThread(store.file.path, None, opened=opened) as origin:
        origin.thread.join(DEADLINE_SECONDS)
    assert [error.code for error in origin.errors] == ["forked_store"]


def test_what_is_left_is_handed_up_at_the_end(
    store: Store, memory: tuple[CountingHub, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, path = memory
    token = store.issue_key("ada@example.org").token
    engine.push(store.file, hub, "memory://hub", Report(""))
    monkeypatch.setattr(follow, "USAGE_SECONDS", 3600.0)
    with InThread(path, hub) as edge:
        edge.next()
        with Validator(path) as validator:
            assert validator.check(token, cost=5).allowed
        edge.stop(hand_up=True)
    assert [usage.amount for _, usage in hub.usage.values()] == [5]


def test_a_replica_that_is_made_anew_at_its_place_is_followed(
    store: Store, memory: tuple[CountingHub, Path], tmp_path: Path
) -> None:
    hub, path = memory
    other = tmp_path / "other.db"
    engine.replicate(hub, "memory://hub", other, Report(""))
    with InThread(path, hub) as edge:
        edge.next()
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        other.replace(path)
        with open_store(path) as file:
            store_id = file.info().store_id
        wait_until(lambda: any(known == store_id for known, _ in hub.replicas))


def waiting(store: Store) -> int:
    """Return how many changes the only target lacks."""
    (target,) = store.status().targets
    return store.status().last_change - target.acknowledged_change


def test_two_urls_of_one_hub_do_not_keep_each_other_awake(
    store: Store, memory: tuple[CountingHub, Path]
) -> None:
    hub, _ = memory
    with (
        InThread(store.file.path, hub, target="memory://one") as one,
        InThread(store.file.path, hub, target="memory://two") as two,
    ):
        one.next()
        two.next()
        for number in range(3):
            store.add_plan(f"plan {number}")
            wait_until(lambda: waiting(store) == 0)
    assert hub.calls.count("push") <= 2 + 3 * 2


def test_the_root_file_counts_for_the_first_round_only(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, keys, path = tmp_path / "files", tmp_path / "keys", tmp_path / "twin.db"
    root = repository.create(Folder(files), keys).read_bytes()
    targets.sync(store.file, str(files), keys=keys)
    targets.replicate(str(files), path, root=root)
    given: list[bytes | None] = []

    def opened(target: str, **options: Any) -> Any:
        given.append(options["root"])
        return targets.opened(target, **options)

    with InThread(path, None, target=str(files), root=root, poll=0.05, opened=opened):
        wait_until(lambda: len(given) >= 3)
    assert given[0] == root
    assert set(given[1:]) == {None}


def test_an_idle_publisher_signs_the_time_anew_and_warns_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, keys = tmp_path / "files", tmp_path / "keys"
    repository.create(Folder(files), keys)
    targets.sync(store.file, str(files), keys=keys)
    before, timestamp = set(Folder(files).names()), files / "metadata/timestamp.json"
    monkeypatch.setattr(repository, "ROOT_WARNING", repository.ROOT_LIFETIME)
    with InThread(store.file.path, None, target=str(files), keys=keys, poll=0.05) as origin:
        seen = {timestamp.read_bytes()}
        for _ in range(3):
            wait_until(lambda: timestamp.read_bytes() not in seen)
            seen.add(timestamp.read_bytes())
    assert set(Folder(files).names()) == before
    first = origin.next()
    assert (first.kind, len(first.report.warnings)) == ("following", 1)
    assert origin.events.empty()


def test_waiting_times_double_up_to_a_minute_and_are_spread() -> None:
    assert [backoff(n, 1.0) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff(100_000, 1.0) == 60
    assert backoff(4, 0.0) == 0
    assert backoff(4, 0.25) == 2
