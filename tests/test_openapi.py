"""The OpenAPI file says what the server answers, no more and no less.

What the code can answer is held against the file, and the file against what was answered. Then
schemathesis makes requests of the file, good ones and bad ones, and sends them to a running server.
"""

import json
import re
import subprocess
import sys
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema_rs import Draft202012Validator

from keystore import Decision, Reason, Store
from keystore.edge.decision import Freshness, Limit, QuotaLeft, Rate, RateLimit
from keystore.http import check, connection, server, unkey
from keystore.http.answers import Response
from keystore.http.check import Request, respond
from keystore.http.counts import Counts
from keystore.http.health import State
from tests.test_server import Start, start

__all__ = ["start"]

FILE = Path(__file__).parent.parent / "docs" / "reference" / "openapi.yaml"
API: dict[str, Any] = yaml.safe_load(FILE.read_text())
CHECKS = ("/check", "/services/{service}/check", "/nginx/check", "/nginx/services/{service}/check")
FRAMING = {400, 408, 414, 431, 503}
"""What any request may be answered before it is understood; a body that is wanted 413, too."""
WHO = {"account": "ada@example.org", "account_id": 1, "plan": "free"}
KEY = {"api_key": "01890a5d-ac96-774b-bcce-b302099a8057", "principal_type": "api_key", **WHO}
CLIENT = {"client_id": "billing", "principal_type": "oauth_client", **WHO}
FRESH = Freshness(7, "2026-11-20 12:00:00", 3.9)
LIMIT = Limit("2026-11-20 12:00:00", "2026-12-20 12:00:00", is_in_grace=True, is_over=False)
RATE = Rate(100, 60, 50)


class Fixed:
    """A checker with one answer."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision

    def check(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        return self.decision

    def check_client(
        self,
        client_id: str,
        secret: str,
        *,
        service: str | None = None,
        cost: int = 1,
        ip: str | None = None,
    ) -> Decision:
        return self.decision


class Left:
    """Units that are left of a quota."""

    remaining = 3


class FixedHealth:
    """The health of a store that is as it is said to be."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason

    def state(self) -> State:
        return State(self.reason, FRESH, 0)


def decided(reason: Reason, **fields: Any) -> Decision:
    return Decision(reason is Reason.OK, reason)._replace(freshness=FRESH, **fields)


def decisions() -> Iterator[Decision]:
    """Every kind of decision that a validator makes."""
    for reason in Reason:
        who = {} if reason in {Reason.MALFORMED, Reason.UNKNOWN, Reason.UNAVAILABLE} else KEY
        yield decided(reason, **who)
    yield Decision(allowed=False, reason=Reason.NOT_SYNCED)
    yield decided(Reason.OK, **KEY)._replace(freshness=FRESH._replace(limit=LIMIT))
    yield decided(Reason.OK, **KEY, rate=RateLimit(RATE, 49, 0.6, 0.0))
    yield decided(Reason.RATE_LIMITED, **KEY, rate=RateLimit(RATE, 0, 30.2, 0.6))
    for renews_at in (None, 4e9):
        quota = QuotaLeft(Left(), "search", 1_000, renews_at)
        yield decided(Reason.QUOTA_EXCEEDED, **KEY, quota=quota)
        yield decided(
            Reason.OK, **KEY, quota=quota, label="laptop", metadata='{"a": 1}', expires_at=4e9
        )


def check_answers() -> Iterator[tuple[str, str, Response]]:
    """What checks are answered: the path as the file has it, the method, the answer."""
    basic = {"authorization": f"Basic {b64encode(b'billing:secret').decode()}"}
    unreadable = {"authorization": "Basic !"}
    for path in CHECKS:
        target = path.replace("{service}", "search")
        for decision in decisions():
            made = respond(Fixed(decision), Request("GET", target, {"x-api-key": "t"}))
            yield path, "get", made
        for reason in Reason:
            decision = decided(reason, **CLIENT)
            yield path, "get", respond(Fixed(decision), Request("GET", target, basic))
        none = Fixed(Decision(allowed=False, reason=Reason.MALFORMED))
        for headers in ({}, unreadable):
            yield path, "get", respond(none, Request("GET", target, headers))


def other_answers() -> Iterator[tuple[str, str, Response]]:
    """What everything else is answered."""
    verified = {"key": "k"}, {"key": "k", "permissions": "search"}
    refused = {"key": ""}, {"key": "k", "ratelimits": [1]}
    for decision, body in product(decisions(), (*verified, *refused)):
        request = Request("POST", check.VERIFY_PATH, {}, body=json.dumps(body).encode())
        yield check.VERIFY_PATH, "post", respond(Fixed(decision), request)
    for reason in (Reason.OK, Reason.STALE, Reason.OFFLINE, Reason.NOT_SYNCED, Reason.UNAVAILABLE):
        pages = server._pages(Counts(), FixedHealth(reason))  # type: ignore[arg-type]
        for path, page in pages.items():
            yield path, "get", page()


@cache
def answers() -> tuple[tuple[str, str, Response], ...]:
    return (*check_answers(), *other_answers())


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """Return what a node refers to, or the node."""
    while "$ref" in node:
        found: Any = API
        for name in node["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        node = found
    return node


def schema_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"components": API["components"], "allOf": [schema]}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in API["paths"].items():
        for method, operation in methods.items():
            if method != "parameters":
                yield path, method, operation


def assert_described(response: Response, described: dict[str, Any]) -> None:
    """Each header, its value and the body of an answer are as the file says."""
    headers = dict(response.headers)
    content_type = headers.pop("Content-Type", None)
    known = {name: resolved(one) for name, one in described.get("headers", {}).items()}
    assert headers.keys() <= known.keys()
    assert {name for name, one in known.items() if one.get("required")} <= headers.keys()
    for name, value in headers.items():
        schema = known[name]["schema"]
        is_number = resolved(schema).get("type") == "integer"
        Draft202012Validator(schema_of(schema)).validate(int(value) if is_number else value)
    if content_type is None:
        assert (response.body, described.get("content")) == (b"", None)
        return
    (media_type, media) = next(iter(described["content"].items()))
    assert content_type.partition(";")[0] == media_type
    body = json.loads(response.body) if "json" in media_type else response.body.decode()
    Draft202012Validator(schema_of(media["schema"])).validate(body)


# -- what the code says is in the file ---------------------------------------------------------


def test_every_answer_is_as_the_file_says() -> None:
    for path, method, response in answers():
        responses = API["paths"][path][method]["responses"]
        assert str(response.status.value) in responses, (path, response)
        assert_described(response, resolved(responses[str(response.status.value)]))


@pytest.mark.parametrize("target", ["/", "/nginx", "/services/a", "/v2/keys.verifyKey", "/v2"])
def test_any_other_path_is_answered_as_the_file_says(target: str) -> None:
    found = respond(Fixed(decided(Reason.OK)), Request("GET", target, {"x-api-key": "t"}))
    assert found.status == 404
    assert_described(found, API["components"]["responses"]["NotFound"])


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PURGE"])
@pytest.mark.parametrize("below", ["", "/", "/any/path?q=1"])
def test_any_method_and_any_path_below_is_the_check_that_the_file_has(
    method: str, below: str
) -> None:
    checker = Fixed(decided(Reason.OK, **KEY))
    for path in CHECKS:
        target = path.replace("{service}", "search")
        wanted = respond(checker, Request("GET", target, {"x-api-key": "t"}))
        assert respond(checker, Request(method, target + below, {"x-api-key": "t"})) == wanted


def test_what_is_refused_before_it_is_understood_is_in_the_file(start: Start) -> None:
    assert set(connection._KINDS) | {503} == FRAMING | {413}
    running = start()
    large = check.MAX_BODY_BYTES + 1
    for path, method, operation in operations():
        found = {int(status) for status in operation["responses"]}
        wanted = FRAMING | ({413} if check.wants_body(method.upper(), path) else set())
        assert wanted <= found, path
        asked = f"{method.upper()} {path.replace('{service}', 'search')}"
        length = f"Content-Length: {large if 413 in found else 0}\r\n"
        requests = {
            400: f"{asked} HTTP/1.1\r\nX-API-Key: a\r\nX-API-Key: b\r\n\r\n",
            414: f"{asked}?{'x' * connection.MAX_TARGET_BYTES} HTTP/1.1\r\n\r\n",
            431: f"{asked} HTTP/1.1\r\n" + "X: y\r\n" * (connection.MAX_FIELDS + 1) + "\r\n",
        } | ({413: f"{asked} HTTP/1.1\r\n{length}\r\n{' ' * large}"} if 413 in found else {})
        for status, request in requests.items():
            head = running.raw(request.encode()).partition(b"\r\n\r\n")
            lines = head[0].decode().split("\r\n")
            assert lines[0].split()[1] == str(status), (path, lines)
            assert sorted(lines[1:]) == ["Connection: close", "Content-Length: 0"]
            assert head[2] == b""
            described = resolved(operation["responses"][str(status)])
            known = map(resolved, described.get("headers", {}).values())
            assert not any(header.get("required") for header in known)


# -- what is in the file the code says ---------------------------------------------------------


def test_every_path_of_the_file_is_the_codes() -> None:
    pages = server._pages(Counts(), FixedHealth(Reason.OK))  # type: ignore[arg-type]
    named = f"{check.SERVICES_PATH}{{service}}{check.CHECK_PATH}"
    checks = {prefix + path for prefix in ("", check.NGINX_PATH) for path in ("/check", named)}
    assert API["paths"].keys() == checks | pages.keys() | {check.VERIFY_PATH}
    assert set(CHECKS) == checks


def test_every_answer_of_the_file_is_given_with_each_of_its_headers_and_values() -> None:
    seen: dict[tuple[str, str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path, method, response in answers():
        for name, value in response.headers:
            seen[path, method, str(response.status.value)][name].add(value)
        seen[path, method, str(response.status.value)]["Content-Type"].add("")
    for path, method, operation in operations():
        for status, reference in operation["responses"].items():
            described = resolved(reference)
            found = seen.get((path, method, status))
            if found is None:
                is_framing = int(status) in FRAMING | {413}
                assert is_framing, f"{method} {path} is never answered with {status}"
                assert "content" not in described
                continue
            for name, header in described.get("headers", {}).items():
                assert name in found, f"{method} {path} {status} never has {name}"
                schema = resolved(resolved(header)["schema"])
                if "enum" in schema:
                    assert found[name] == set(schema["enum"]), (path, status, name)


def properties(schema: dict[str, Any], prefix: str = "") -> set[str]:
    """Name the properties that a schema has, and the values of those that have a few only."""
    schema = resolved(schema)
    values = [schema["const"]] if "const" in schema else schema.get("enum", ())
    found = {f"{prefix}={value}" for value in values}
    for part in schema.get("allOf", ()):
        found |= properties(part, prefix)
    if "items" in schema:
        found |= properties(schema["items"], f"{prefix}[]")
    for name, one in schema.get("properties", {}).items():
        found |= {f"{prefix}.{name}"} | properties(one, f"{prefix}.{name}")
    return found


def names(value: object, prefix: str = "") -> set[str]:
    """Name the properties that a body has, and their values."""
    found = set() if isinstance(value, dict | list) else {f"{prefix}={value}"}
    if isinstance(value, dict):
        for name, one in value.items():
            found |= {f"{prefix}.{name}"} | names(one, f"{prefix}.{name}")
    elif isinstance(value, list):
        for one in value:
            found |= names(one, f"{prefix}[]")
    return found


def test_every_property_of_the_file_is_in_a_body_with_each_of_its_values() -> None:
    seen: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for path, method, response in answers():
        if response.body.startswith(b"{"):
            seen[path, method, str(response.status.value)] |= names(json.loads(response.body))
    for path, method, operation in operations():
        for status, reference in operation["responses"].items():
            for media_type, media in resolved(reference).get("content", {}).items():
                if "json" in media_type:
                    wanted = properties(media["schema"])
                    assert wanted <= seen[path, method, status], (path, status)


def test_what_a_request_may_have_is_in_the_file() -> None:
    schemes = API["components"]["securitySchemes"]
    credentials = {"authorization", schemes["apiKey"]["name"].lower()}
    assert {schemes[name]["scheme"] for name in ("bearer", "basic")} == {"bearer", "basic"}
    for path in CHECKS:
        parameters = [resolved(one) for one in API["paths"][path]["get"]["parameters"]]
        headers = {one["name"].lower() for one in parameters}
        assert headers | credentials == set(connection._KEPT.values()) - {"expect"}
    body, made = API["components"]["schemas"]["VerifyRequest"], unkey._Body.model_json_schema()
    assert body["properties"].keys() == made["properties"].keys()
    assert body["required"] == made["required"]


# -- a running server --------------------------------------------------------------------------


def test_a_running_server_keeps_to_the_file_whatever_is_asked(
    store: Store, start: Start, tmp_path: Path
) -> None:
    store.add_service("search")
    issued = store.issue_key("ada@example.org", quotas={"search": 1 << 30})
    running = start()
    config = tmp_path / "schemathesis.toml"
    config.write_text(f'[auth.openapi.apiKey]\napi_key = "{issued.token}"\n')
    command = (
        *(sys.executable, Path(__file__).with_name("openapi_requests.py")),
        *("--config-file", config, "--no-color"),
        *("run", FILE, "--url", running.url.removesuffix("/check"), "--checks", "all"),
        # Any method is a check.
        *("--exclude-checks", "unsupported_method", "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", "25", "--seed", "1", "--mode", "all", "--no-shrink"),
    )
    done = subprocess.run(
        list(map(str, command)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Tested: 8\b", done.stdout), done.stdout
    assert running.get("/check", issued.token).status == 200
    code, said = running.stop()
    assert (code, said) == (0, "")
