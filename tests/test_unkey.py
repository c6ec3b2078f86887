"""Unkey's own clients are answered as by Unkey, and nothing that restricts a key is overlooked."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unkey.py import Unkey, errors, models
from unkey.py.utils import BackoffStrategy, RetryConfig

from keystore import Decision, Reason, Store
from keystore.edge.decision import Rate, RateLimit
from keystore.http.answers import Response
from keystore.http.check import Checker, Request, respond, wants_body
from tests.checkers import KeysOnly
from tests.serving import Server

PATH = "/v2/keys.verifyKey"


class Holder(KeysOnly):
    """A checker of one key, which has some services."""

    def __init__(self, *services: str, **fields: Any) -> None:
        self.services = services
        self.decision = Decision(allowed=True, reason=Reason.OK)._replace(**fields)
        self.counted = 0

    def check(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        if service is not None and service not in self.services:
            return Decision(allowed=False, reason=Reason.SERVICE)
        self.counted += cost
        return self.decision


def verify(checker: Holder, body: object) -> Response:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return respond(checker, Request("POST", PATH, {}, body=text))


def data(response: Response) -> dict[str, Any]:
    assert response.status == 200
    found: dict[str, Any] = json.loads(response.body)["data"]
    return found


@contextmanager
def serving(checker: Checker) -> Iterator[str]:
    """URL of a server that answers from ``checker``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request("POST", self.path, headers, self.client_address[0], body)
            response = respond(checker, request)
            self.send_response(response.status)
            for name, value in response.headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(response.body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    """A running `keystore serve`."""
    made = Server(store.file.path)
    yield made
    made.stop(signal.SIGKILL)


@pytest.fixture
def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


def test_unkeys_own_client_verifies_a_key(store: Store, url: str) -> None:
    store.add_service("documents.read")
    issued = store.issue_key(
        "ada@example.org", label="laptop", metadata={"team": "a"}, expires_at="2031-01-01"
    )
    store.set_quota(issued.key.api_key, "documents.read", 10)
    with Unkey(root_key="any", server_url=url) as unkey:
        found = unkey.keys.verify_key(
            key=issued.token,
            permissions="documents.read OR documents.write",
            credits={"cost": 3},
            tags=["path=/x"],
        )
        assert found.meta.request_id
        assert (found.data.valid, found.data.code) == (True, models.Code.VALID)
        assert (found.data.key_id, found.data.name) == (issued.key.api_key, "laptop")
        assert (found.data.meta, found.data.enabled) == ({"team": "a"}, True)
        assert found.data.expires == 1_924_992_000_000
        assert found.data.permissions == ["documents.read"]
        assert found.data.identity is not None
        assert found.data.identity.external_id == "ada@example.org"
        denied = unkey.keys.verify_key(key=issued.token, permissions="documents.write")
        assert (denied.data.valid, denied.data.code) == (False, "INSUFFICIENT_PERMISSIONS")
        assert unkey.keys.verify_key(key="guess").data.code is models.Code.NOT_FOUND
        store.revoke_key(issued.key.api_key)
        revoked = unkey.keys.verify_key(key=issued.token)
        assert (revoked.data.code, revoked.data.enabled) == (models.Code.DISABLED, False)


def test_what_the_client_sends_as_cost_is_counted_once(
    store: Store, server: Server, url: str
) -> None:
    store.add_service("a")
    store.add_service("b")
    issued = store.issue_key("ada@example.org")
    for name in "ab":
        store.set_quota(issued.key.api_key, name, 10)
    with Unkey(root_key="any", server_url=url) as unkey:
        found = unkey.keys.verify_key(key=issued.token, permissions="a AND b", credits={"cost": 7})
    assert found.data.permissions == ["a", "b"]
    server.stop()
    assert store.status().usage_total == 7


def test_a_body_that_is_too_large_is_refused(url: str) -> None:
    with Unkey(root_key="any", server_url=url) as unkey:
        with pytest.raises(errors.UnkeyError) as caught:
            unkey.keys.verify_key(key="k" * 70_000)
        assert caught.value.status_code == 413


def test_unkeys_own_client_is_told_of_a_used_up_rate(store: Store, url: str) -> None:
    store.add_plan("tight", rate_limit=1, rate_window_seconds=3600)
    store.add_account("bob@example.org", plan="tight")
    token = store.issue_key("bob@example.org").token
    with Unkey(root_key="any", server_url=url) as unkey:
        first, second = (unkey.keys.verify_key(key=token).data for _ in range(2))
    assert (first.code, second.code) == (models.Code.VALID, models.Code.RATE_LIMITED)
    assert second.ratelimits is not None
    (left,) = second.ratelimits
    assert (left.exceeded, left.limit, left.duration) == (True, 1, 3_600_000)
    assert left.reset > time.time() * 1000


def test_unkeys_own_client_reads_the_errors_of_a_bad_body(url: str) -> None:
    with Unkey(root_key="any", server_url=url) as unkey:
        with pytest.raises(errors.BadRequestErrorResponse) as caught:
            unkey.keys.verify_key(key="k", permissions="a AND")
        assert [one.location for one in caught.value.data.error.errors] == ["body.permissions"]
        with pytest.raises(errors.BadRequestErrorResponse) as caught:
            unkey.keys.verify_key(key="k", ratelimits=[{"name": "requests", "limit": 5}])
    (found,) = caught.value.data.error.errors
    assert (found.location, found.fix) == ("body.ratelimits", "Leave it out; the plan has a rate.")


def test_unkeys_own_client_tries_not_now_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystore.http.unkey.RETRY_AFTER_SECONDS", 1)  # for which it waits

    class Recovering(Holder):
        def check(
            self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
        ) -> Decision:
            self.counted += 1
            if self.counted < 2:
                return Decision(allowed=False, reason=Reason.UNAVAILABLE)
            return self.decision

    checker = Recovering()
    soon = RetryConfig("backoff", BackoffStrategy(1, 1, 1.0, 60_000), False)
    with serving(checker) as url, Unkey(root_key="any", server_url=url) as unkey:
        assert unkey.keys.verify_key(key="k", retries=soon).data.valid
    assert checker.counted == 2


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.OK, "VALID"),
        (Reason.MALFORMED, "NOT_FOUND"),
        (Reason.UNKNOWN, "NOT_FOUND"),
        (Reason.REVOKED, "DISABLED"),
        (Reason.SUSPENDED, "DISABLED"),
        (Reason.EXPIRED, "EXPIRED"),
        (Reason.ACCOUNT_INACTIVE, "FORBIDDEN"),
        (Reason.NETWORK, "FORBIDDEN"),
        (Reason.SERVICE, "INSUFFICIENT_PERMISSIONS"),
        (Reason.QUOTA_EXCEEDED, "USAGE_EXCEEDED"),
        (Reason.RATE_LIMITED, "RATE_LIMITED"),
    ],
)
def test_each_reason_has_its_code(reason: Reason, code: str) -> None:
    found = data(verify(Holder(allowed=reason is Reason.OK, reason=reason), {"key": "k"}))
    assert found == {"valid": reason is Reason.OK, "code": code}


def test_every_reason_has_a_code_or_is_not_now() -> None:
    for reason in Reason:
        response = verify(Holder(allowed=reason is Reason.OK, reason=reason), {"key": "k"})
        assert response.status == (503 if reason.is_not_now else 200)
        assert ("Retry-After" in dict(response.headers)) == reason.is_not_now


@pytest.mark.parametrize(
    ("query", "is_met"),
    [
        ("a", True),
        ("c", False),
        ("a AND b", True),
        ("a and c", False),
        ("a OR c", True),
        ("c OR d", False),
        ("c AND a OR b", True),
        ("c AND (a OR b)", False),
        ("a OR b AND c", True),
        ("((a)) AND (c OR (b))", True),
        ("(" * 450 + "a" + ")" * 450, True),
    ],
)
def test_permissions_are_services(query: str, is_met: bool) -> None:
    checker = Holder("a", "b")
    found = data(verify(checker, {"key": "k", "permissions": query, "credits": {"cost": 2}}))
    assert found["valid"] is is_met
    assert checker.counted == (2 if is_met else 0)


@pytest.mark.parametrize(
    "query", ["", " ", "()", "a b", "a AND", "OR a", "(a", "a)", "a AND AND b"]
)
def test_a_permission_query_that_is_none_is_refused(query: str) -> None:
    checker = Holder("a", "b")
    assert verify(checker, {"key": "k", "permissions": query}).status == 400
    assert checker.counted == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b"[" * 60_000,
        b'"\xff"',
        {},
        {"key": ""},
        {"key": 7},
        {"key": "k", "credits": {"cost": -1}},
        {"key": "k", "credits": {"cost": True}},
        {"key": "k", "credits": {"cost": 10**30}},
        {"key": "k", "credits": {"cost": 1.5}},
        {"key": "k", "credits": {"cost": 1e300}},
        {"key": "k", "credits": {"cost": float("nan")}},
        {"key": "k", "credits": {"cost": "2"}},
        {"key": "k", "credits": {}},
        {"key": "k", "ratelimits": [{"name": "x"}]},
        {"key": "k", "keyspaces": ["ks_1"]},
        {"key": "k", "onlyFrom": "192.0.2.0/24"},
    ],
)
def test_what_cannot_be_answered_is_refused_in_unkeys_shape(body: object) -> None:
    checker = Holder()
    response = verify(checker, body)
    found = json.loads(response.body)
    assert response.status == found["error"]["status"] == 400
    assert found["meta"]["requestId"]
    assert found["error"]["errors"][0]["location"].startswith("body")
    assert checker.counted == 0


@pytest.mark.parametrize(("cost", "counted"), [("2.0", 2), ("2e3", 2_000), ("0.0", 0), ("7", 7)])
def test_a_whole_number_is_one_however_json_writes_it(cost: str, counted: int) -> None:
    checker = Holder()
    data(verify(checker, f'{{"key": "k", "credits": {{"cost": {cost}}}}}'.encode()))
    assert checker.counted == counted


def test_the_key_is_in_no_answer() -> None:
    for body in ({"key": "s3cret", "x": 1}, {"key": "s3cret"}, {"key": ["s3cret"]}):
        response = verify(Holder(), body)
        assert b"s3cret" not in response.body
        assert "s3cret" not in str(response.headers)


@pytest.mark.parametrize(
    ("metadata", "meta"),
    [
        ('{"a": 1}', {"a": 1}),
        ("[1]", None),
        ("{", None),
        ('{"a": NaN}', None),
        ('{"a": [1e999]}', None),
    ],
)
def test_only_an_object_of_what_json_has_is_metadata(metadata: str, meta: object) -> None:
    found = data(verify(Holder(api_key="id", metadata=metadata), {"key": "k"}))
    assert found.get("meta") == meta


def test_what_is_left_of_a_rate_is_there_when_the_key_passes() -> None:
    left = RateLimit(Rate(100, 60, 20), 19, 0.6, 0.0)
    found = data(verify(Holder(api_key="id", rate=left), {"key": "k"}))
    (rate,) = found["ratelimits"]
    assert (rate["limit"], rate["duration"], rate["remaining"]) == (20, 12_000, 19)
    assert not rate["exceeded"]


def test_only_this_request_has_a_body() -> None:
    assert wants_body("POST", PATH)
    assert wants_body("POST", f"{PATH}?x=1")
    assert not wants_body("GET", PATH)
    assert not wants_body("POST", f"{PATH}/x")
    assert not wants_body("POST", "/check")
    assert respond(Holder(), Request("GET", PATH, {})).status == 404


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: json.dumps(text).encode()))
def test_no_body_raises(body: bytes) -> None:
    assert verify(Holder(), body).status == 400


@given(st.text(alphabet="ab()ANDOR ", max_size=60))
def test_no_permission_query_raises(query: str) -> None:
    assert verify(Holder("a"), {"key": "k", "permissions": query}).status in {200, 400}
