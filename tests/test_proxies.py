"""Real proxies in front of a real `keystore serve`, with the configurations that the docs show."""

import json
import os
import posixpath
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

import pytest

from keystore import Store
from keystore.db import open_store
from keystore.doctor import examine
from keystore.sync import engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from tests.buckets import free_ports
from tests.proxies import KINDS, Answer, Checker, Kind, app, ask, proxy

(HAPROXY,) = (kind for kind in KINDS if kind.name == "haproxy")
NAMES = (
    *("status", "reason", "key", "client", "account", "plan", "service"),
    *("as-of-change", "age-seconds", "grace-until"),
)
FORGED = tuple((f"X-Auth-{name.title()}", "forged") for name in NAMES)
UNDERSCORED = (("X_Auth_Account", "forged"), ("x-auth_key", "forged"), ("X_AUTH-PLAN", "forged"))
USAGE = """
SELECT k.api_key, sum(u.amount)
FROM UsageLog AS u
JOIN APIKeys AS k ON u.principal_type = 'api_key' AND k.api_key_id = u.principal_id
GROUP BY k.api_key
"""
HERE, ELSEWHERE = "127.0.0.2", "127.0.0.3"


class Site:
    """A store, `keystore serve` on it, a proxy that asks that, and an application behind."""

    def __init__(self, kind: Kind, folder: Path, stack: ExitStack) -> None:
        self.kind, self.folder = kind, folder
        self.path = folder / "origin.db"
        self.store = stack.enter_context(Store.create(self.path))
        self.store.add_service("search")
        self.store.add_plan("free")
        self.store.add_plan("slow", rate_limit=2, rate_window_seconds=3600)
        self.store.add_plan("fresh", max_staleness_seconds=60)
        for plan in ("free", "slow", "fresh"):
            self.store.add_account(f"{plan}@example.org", plan=plan)
        self.app = stack.enter_context(app())
        (port,) = free_ports(1)
        self.checker = Checker(folder / "checker", port)
        stack.callback(self.checker.kill)
        self.checker.up(self.path)
        self.url = stack.enter_context(proxy(kind, folder / "proxy", port, self.app.port))

    def key(self, plan: str = "free", *networks: str, service: str | None = None) -> str:
        """Return the token of a new key."""
        quotas = {service: 1_000_000} if service else None
        return self.store.issue_key(f"{plan}@example.org", networks=networks, quotas=quotas).token

    def usage(self) -> dict[str, int]:
        """What is in the UsageLog for each key, by its UUID."""
        return dict(self.store.file.conn.execute(USAGE))

    def ask(self, path: str, token: str | None, *headers: tuple[str, str], **more: str) -> Answer:
        """Ask the proxy."""
        return ask(self.url + path, token, *headers, **more)

    def refuses(
        self, path: str, token: str | None, *headers: tuple[str, str], **more: str
    ) -> Answer:
        """Ask the proxy, and see that the application hears nothing of it."""
        before = len(self.app.seen)
        answer = self.ask(path, token, *headers, **more)
        assert answer.status >= 400
        assert len(self.app.seen) == before
        return answer


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    kind: Kind = request.param
    if kind.program is None:
        pytest.skip(f"{kind.name} is not installed ({kind.install})")
    with ExitStack() as stack:
        made = Site(kind, tmp_path_factory.mktemp(kind.name), stack)
        yield made
        assert [item for item in examine(made.store.file) if item.severity == "error"] == []


def reason_of(answer: Answer) -> str | None:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = json.loads(answer.body)
    assert problem["status"] == answer.status
    reason: str | None = problem.get("reason")
    return reason


@pytest.mark.parametrize("path", ["/", "/a/b?c=d", "/search/x?service=other&cost=0"])
def test_a_key_passes_and_the_application_learns_whose_it_is(site: Site, path: str) -> None:
    token = site.key(service="search")
    for headers in [("Authorization", f"Bearer {token}")], [("X-API-Key", token)]:
        answer = site.ask(path, None, *headers)
        assert answer.status == 200
        assert json.loads(answer.body)["path"] == path
        arrived = answer.arrived
        assert arrived["x-auth-account"] == "free@example.org"
        assert arrived["x-auth-key"] == site.store.key(token).api_key
        assert arrived["x-auth-plan"] == "free"
        assert (arrived["x-auth-status"], arrived["x-auth-reason"]) == ("200", "ok")
        assert arrived.get("x-auth-service", "") == ("search" if "search" in path else "")
        assert arrived["x-auth-as-of-change"].isdigit()
        assert arrived["x-auth-age-seconds"] == "0"
        assert arrived.get("x-auth-grace-until", "") == ""


def test_a_key_that_is_unknown_revoked_or_absent_is_401_with_a_challenge(site: Site) -> None:
    token = site.key()
    assert site.ask("/", token).status == 200
    site.store.revoke_key(token)
    for given, reason, challenge in (
        (token, "revoked", 'Bearer error="invalid_token"'),
        ("guess", "unknown", 'Bearer error="invalid_token"'),
        (None, "malformed", "Bearer"),
    ):
        answer = site.refuses("/", given)
        assert (answer.status, reason_of(answer)) == (401, reason)
        assert answer.headers["www-authenticate"] == challenge


def test_two_keys_in_one_request_are_refused(site: Site) -> None:
    one, two = site.key(), site.key()
    assert site.refuses("/", None, ("X-API-Key", one), ("X-API-Key", two)).status >= 400
    bearers = [("Authorization", f"Bearer {token}") for token in (one, two)]
    assert site.refuses("/", None, *bearers).status >= 400


def test_a_key_without_the_service_is_403(site: Site) -> None:
    token = site.key()
    assert site.ask("/x", token).status == 200
    for forged in ((), (("X-Auth-Service", "search"),)):
        answer = site.refuses("/search/x", token, *forged)
        assert (answer.status, reason_of(answer)) == (403, "service")
        assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope"'


FORGERIES = (
    (),
    (("X-Forwarded-For", HERE),),
    (("X-Forwarded-For", "127.0.0.1"),),
    (("X-Forwarded-For", HERE), ("X-Forwarded-For", HERE)),
    (("Forwarded", f"for={HERE}"), ("X-Real-IP", HERE), ("True-Client-IP", HERE)),
    (("X-Original-Forwarded-For", HERE), ("X-Envoy-External-Address", HERE)),
    # a header that is named here is for one connection only: it is not passed on
    (("Connection", "close, X-Forwarded-For"),),
    (("Connection", "X-Forwarded-For, X-Real-IP, X-Auth-Account"), ("X-Forwarded-For", HERE)),
)


@pytest.mark.parametrize("forged", FORGERIES, ids=str)
def test_a_key_bound_to_a_network_passes_from_there_only(
    site: Site, forged: tuple[tuple[str, str], ...]
) -> None:
    bound = site.key("free", f"{HERE}/32", "127.0.0.1/32")
    allowed = site.ask("/", bound, *forged, source=HERE)
    answer = site.refuses("/", bound, *forged, source=ELSEWHERE)
    if site.kind.name == "envoy" and forged and forged[0][0] == "Connection":
        assert (allowed.status, answer.status) == (400, 400)
        return
    assert allowed.status == 200
    assert (answer.status, reason_of(answer)) == (403, "network")


def test_a_used_up_rate_is_429_and_says_when_to_come_again(site: Site) -> None:
    token = site.key("slow")
    assert [site.ask("/", token).status for _ in range(2)] == [200, 200]
    answer = site.refuses("/", token)
    assert (answer.status, reason_of(answer)) == (429, "rate_limited")
    assert 0 < int(answer.headers["retry-after"]) <= 1800
    assert answer.headers["ratelimit-policy"] == '"burst";q=2;w=3600'
    assert answer.headers["ratelimit"].startswith('"burst";r=0;t=')


@pytest.mark.parametrize("path", ["/x", "/search/x", "/public/x"])
@pytest.mark.parametrize("forged", [FORGED, UNDERSCORED], ids=["as they are", "underscored"])
def test_no_identity_of_a_clients_own_reaches_the_application(
    site: Site, path: str, forged: tuple[tuple[str, str], ...]
) -> None:
    answer = site.ask(path, site.key(service="search"), *forged)
    assert answer.status == 200
    assert "forged" not in answer.arrived.values()
    own = {name for name in answer.arrived if name.replace("_", "-").startswith("x-auth-")}
    assert own <= {f"x-auth-{name}" for name in NAMES}
    if path == "/public/x":
        assert not any(answer.arrived[name] for name in own)


def test_a_header_cannot_be_taken_away_as_one_for_the_connection(site: Site) -> None:
    names = ", ".join(f"X-Auth-{name}" for name in NAMES)
    answer = site.ask("/", site.key(), ("Connection", f"close, {names}"), *FORGED)
    if site.kind.name == "envoy":
        assert answer.status == 400
        return
    assert answer.status == 200
    assert answer.arrived["x-auth-account"] == "free@example.org"
    assert "forged" not in answer.arrived.values()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_any_method_is_checked_and_arrives_as_it_was(site: Site, method: str) -> None:
    token = site.key()
    assert site.ask("/x", token, ("Content-Length", "0"), method=method).status == 200
    assert site.app.seen[-1]["method"] == method
    assert site.refuses("/x", "guess", ("Content-Length", "0"), method=method).status == 401


SPELLINGS = (
    *("/public/../x", "/public/%2e%2e/x", "/public/..%2fx", "/public/..%2Fx", "/public/.%2e/x"),
    *("//public/../x", "/public//../../x", "/public/./../x", "/public/..;/x", "/public%2f..%2fx"),
    *("/public/..\\x", "/public/%5c../x", "/public/%252e%252e/x", "/x/../public/../x", "/public"),
    *("/public/#/../../x", "/public#/../x"),
)


@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_of_a_path_gets_around_the_check(site: Site, path: str) -> None:
    answer = site.ask(path, None)
    if answer.status == 200:
        assert meant(json.loads(answer.body)["path"]).startswith("/public/")


@pytest.mark.parametrize(
    "path",
    [
        *("/search/x", "/%73earch/x", "//search/x", "/x/../search/x", "/search%2fx", "/./search/x"),
        *("/x/%2e%2e/search/x", "/public/../search/x", "/search//x", "/search/./x"),
        "/x#/../search/x",
    ],
)
def test_no_spelling_of_a_path_gets_around_the_service(site: Site, path: str) -> None:
    answer = site.ask(path, site.key())
    if answer.status == 200:
        assert not meant(json.loads(answer.body)["path"]).startswith("/search/")


def test_no_path_is_read_out_of_a_host_or_a_query(site: Site) -> None:
    # of which the path is "/"
    for line in ("GET http://h?/public/x HTTP/1.0", "GET http://h?a/public/ HTTP/1.1\r\nHost: h?a"):
        before = len(site.app.seen)
        with socket.create_connection(("127.0.0.1", urlsplit(site.url).port), 30) as client:
            client.sendall(f"{line}\r\nConnection: close\r\n\r\n".encode())
            answer = client.makefile("rb").read()
        assert len(site.app.seen) == before, (line, answer)


def meant(path: str) -> str:
    """What a lenient application takes a path for."""
    return "/" + posixpath.normpath(unquote(path.partition("?")[0])).lstrip("/")


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_a_large_body_goes_to_the_application_and_not_to_the_checker(
    site: Site, is_chunked: bool
) -> None:
    count, part = 100, b"x" * (1 << 20)
    token = site.key()
    before = received(site.checker.process.pid)
    if is_chunked:
        line = b"%x\r\n" % len(part)
        body = (*([line + part + b"\r\n"] * count), b"0\r\n\r\n")
        header = ("Transfer-Encoding", "chunked")
    else:
        body = (part,) * count
        header = ("Content-Length", str(count << 20))
    answer = ask(f"{site.url}/upload", token, header, method="POST", body=body)
    assert answer.status == 200
    assert json.loads(answer.body)["length"] == count << 20
    assert 0 < received(site.checker.process.pid) - before < 1 << 20


def test_who_is_denied_need_not_send_the_body(site: Site) -> None:
    announced = (("Content-Length", str(100 << 20)), ("Expect", "100-continue"))
    assert site.refuses("/upload", "guess", *announced, method="POST").status == 401


def received(pid: int) -> int:
    """How many bytes a process has read so far, from sockets, too."""
    counts = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(counts["rchar"])


def test_checks_share_connections(site: Site) -> None:
    token = site.key()
    before = connections(site.checker.at)
    assert [site.ask("/", token).status for _ in range(30)] == [200] * 30
    assert len(connections(site.checker.at) - before) < 10


def connections(port: object) -> set[tuple[str, str]]:
    """Both ends of the connections to a port, those that were closed a moment ago among them."""
    at = f"0100007F:{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    ends = [tuple(line.split()[1:3]) for line in lines]
    return {(local, remote) for local, remote in ends if at in {local, remote}}


def test_a_checker_that_was_killed_allows_nobody_until_it_is_back(site: Site) -> None:
    token = site.key(service="search")
    assert site.ask("/", token).status == 200
    site.checker.kill()
    try:
        for path in ("/", "/search/x"):
            answer = site.refuses(path, token)
            if site.kind.name == "traefik":
                assert answer.status == 500
            else:
                assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert site.ask("/public/x", None).status == 200
    finally:
        site.checker.up(site.path)
    assert site.ask("/", token).status == 200


def test_a_checker_that_hangs_allows_nobody_until_it_goes_on(site: Site) -> None:
    if site.kind.name == "traefik":
        pytest.skip("Traefik waits for 30 seconds, and has no setting for it; the docs say so")
    token = site.key()
    assert site.ask("/", token).status == 200
    os.kill(site.checker.process.pid, signal.SIGSTOP)
    try:
        assert site.refuses("/", token).status == 503
    finally:
        os.kill(site.checker.process.pid, signal.SIGCONT)
    assert site.ask("/", token).status == 200


def test_a_unix_socket_does_as_well(site: Site, tmp_path: Path) -> None:
    if site.kind.asks is None:
        pytest.skip(f"{site.kind.name} asks over TCP only; the docs say so")
    with TemporaryDirectory(prefix="ks-") as short:  # HAProxy takes no path of 98 characters
        socket = Path(short) / "check.sock"
        checker = Checker(tmp_path / "checker", socket)
        token, bound = site.key(), site.key("free", f"{HERE}/32")
        try:
            with proxy(site.kind, tmp_path / "proxy", socket, site.app.port) as url:
                checker.up(site.path, seen_at=f"{url}/")
                assert ask(url, token).arrived["x-auth-account"] == "free@example.org"
                assert ask(url, "guess").status == 401
                assert ask(url, bound, source=HERE).status == 200
                assert ask(url, bound, source=ELSEWHERE).status == 403
                checker.kill()
                assert ask(url, token).status == 503
        finally:
            checker.kill()


def test_what_is_revoked_is_denied_by_the_next_request(site: Site) -> None:
    for _ in range(20):
        token = site.key()
        assert site.ask("/", token).status == 200
        site.store.revoke_key(token)
        assert site.refuses("/", token).status == 401


def test_each_request_that_passes_is_counted_once_and_no_other(site: Site) -> None:
    tokens = [site.key() for _ in range(3)]
    for index in range(30):
        method = ("GET", "POST", "HEAD")[index // 3 % 3]
        site.ask("/x", tokens[index % 3], ("Content-Length", "0"), method=method)
    site.ask("/search/x", tokens[0])
    site.ask("/public/x", tokens[0])
    site.checker.end()
    site.checker.up(site.path)
    usage = site.usage()
    assert [usage[site.store.key(token).api_key] for token in tokens] == [10, 10, 10]


def test_a_stale_replica_is_503_and_no_401(site: Site) -> None:
    hub, replica = MemoryHub(), site.folder / "replica.db"
    token = site.key("fresh")
    revoked = site.key("fresh")
    site.store.revoke_key(revoked)
    engine.push(site.store.file, hub, "memory:", Report("memory:"))
    engine.replicate(hub, "memory:", replica, Report("memory:"))
    with open_store(replica) as file:
        file.conn.execute("UPDATE StoreInfo SET as_of_at = datetime('now', '-1 hour')")
    site.checker.kill()
    try:
        site.checker.up(replica)
        answer = site.refuses("/", token)
        # (Envoy writes a 503 anew)
        assert reason_of(answer) == (None if site.kind.name == "envoy" else "stale")
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert site.refuses("/", revoked).status == 401
    finally:
        site.checker.kill()
        site.checker.up(site.path)


@pytest.mark.skipif(HAPROXY.program is None, reason="haproxy is not installed")
def test_a_script_of_haproxy_that_fails_allows_nobody(tmp_path: Path) -> None:
    edits = {"    local headers = {": "    error('no')\n    local headers = {"}
    (port,) = free_ports(1)
    with (
        app() as application,
        proxy(HAPROXY, tmp_path / "proxy", port, application.port, edits) as url,
    ):
        before = len(application.seen)
        assert ask(url, "guess").status == 503
        assert "runtime error: " in (tmp_path / "proxy/log").read_text()
        assert len(application.seen) == before
