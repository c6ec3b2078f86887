"""What proxies rely on, as a pure function: every reason in every mode, and no request else."""

import json
import re
from base64 import b64encode
from http import HTTPStatus
from ipaddress import ip_network
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keystore import Decision, Reason
from keystore.edge.decision import Freshness, Limit, Rate, RateLimit
from keystore.http import answers
from keystore.http.answers import Response
from keystore.http.check import Request, Settings, respond, token_of

IDENTITY = ("X-Auth-Key", "X-Auth-Client", "X-Auth-Account", "X-Auth-Plan", "X-Auth-Service")
ALWAYS = (
    *("X-Auth-Status", "X-Auth-Reason", *IDENTITY),
    *("X-Auth-As-Of-Change", "X-Auth-Age-Seconds", "X-Auth-Grace-Until"),
)
STATUSES = {
    Reason.OK: 200,
    Reason.MALFORMED: 401,
    Reason.UNKNOWN: 401,
    Reason.REVOKED: 401,
    Reason.SUSPENDED: 401,
    Reason.EXPIRED: 401,
    Reason.ACCOUNT_INACTIVE: 403,
    Reason.NETWORK: 403,
    Reason.SERVICE: 403,
    Reason.RATE_LIMITED: 429,
    Reason.QUOTA_EXCEEDED: 429,
    Reason.STALE: 503,
    Reason.OFFLINE: 503,
    Reason.NOT_SYNCED: 503,
    Reason.UNAVAILABLE: 503,
}
PATHS = ("/check", "/services/search/check", "/nginx/check", "/nginx/services/search/check")
KEY = {"x-api-key": "t"}
EVERY_REASON_AND_PATH = [(reason, path) for reason in Reason for path in PATHS]


class Fixed:
    """A checker with one answer, which notes what it was asked."""

    def __init__(self, reason: Reason = Reason.OK, rate: RateLimit | None = None) -> None:
        fresh = Freshness(7, "2026-11-20 12:00:00", 3.9)
        who = ("01890a5d-ac96-774b-bcce-b302099a8057", 1, "ada@example.org", 1, "free")
        self.decision = Decision(reason is Reason.OK, reason, *who, freshness=fresh, rate=rate)
        self.asked: list[tuple[str, str | None, int, str | None]] = []

    def check(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        self.asked.append((token, service, cost, ip))
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
        return self.check(f"{client_id} {secret}", service=service, cost=cost, ip=ip)


def ask(
    checker: Fixed,
    target: str = "/check",
    headers: dict[str, str] = KEY,
    peer: str | None = "127.0.0.1",
    settings: Settings | None = None,
) -> Response:
    return respond(checker, Request("GET", target, headers, peer), settings or Settings())


def names(response: Response) -> list[str]:
    return [name for name, _ in response.headers]


# -- every reason, every mode ------------------------------------------------------------------


@pytest.mark.parametrize(("reason", "path"), EVERY_REASON_AND_PATH)
def test_each_reason_has_its_status_in_each_mode(reason: Reason, path: str) -> None:
    response = ask(Fixed(reason), path)
    headers, real = dict(response.headers), STATUSES[reason]
    assert headers["X-Auth-Status"] == str(real)
    assert headers["X-Auth-Reason"] == reason.value
    sent = real if real in {200, 401, 403} or "nginx" not in path else 403
    assert response.status == sent
    challenge = {401: 'Bearer error="invalid_token"', 403: 'Bearer error="insufficient_scope"'}
    assert headers.get("WWW-Authenticate") == challenge.get(real)
    assert headers.get("Retry-After") == ("5" if real == 503 else None)


@pytest.mark.parametrize(("reason", "path"), EVERY_REASON_AND_PATH)
def test_every_identity_header_is_there_once_and_empty_in_a_denial(
    reason: Reason, path: str
) -> None:
    response = ask(Fixed(reason), path)
    assert len(set(names(response))) == len(names(response))
    assert set(names(response)) >= set(ALWAYS)
    headers = dict(response.headers)
    service = "search" if "services" in path else ""
    who = ["01890a5d-ac96-774b-bcce-b302099a8057", "", "ada@example.org", "free", service]
    assert [headers[name] for name in IDENTITY] == (who if reason is Reason.OK else [""] * 5)
    assert (headers["X-Auth-As-Of-Change"], headers["X-Auth-Age-Seconds"]) == ("7", "3")


@pytest.mark.parametrize(("reason", "path"), EVERY_REASON_AND_PATH)
def test_a_denial_is_a_problem_and_a_yes_is_none(reason: Reason, path: str) -> None:
    response = ask(Fixed(reason), path)
    headers = dict(response.headers)
    assert headers["Cache-Control"] == "no-store"
    if reason is Reason.OK:
        assert (response.body, "Content-Type" in headers) == (b"", False)
    else:
        body = json.loads(response.body)
        assert headers["Content-Type"] == "application/problem+json"
        assert body.keys() == {"type", "title", "status", "detail", "reason"}
        assert (body["status"], body["reason"]) == (response.status, reason.value)
        assert body["title"] == HTTPStatus(response.status).phrase


@pytest.mark.parametrize("path", PATHS)
def test_without_a_key_nobody_is_asked_and_the_challenge_names_no_error(path: str) -> None:
    checker = Fixed()
    response = ask(checker, path, {})
    headers = dict(response.headers)
    assert (response.status, headers["WWW-Authenticate"]) == (401, "Bearer")
    assert set(names(response)) >= set(ALWAYS)
    assert checker.asked == []


@pytest.mark.parametrize("is_in_grace", [True, False])
def test_an_answer_in_the_grace_says_until_when(is_in_grace: bool) -> None:
    checker = Fixed()
    limit = Limit("2026-11-20 12:00:00", "2026-12-20 12:00:00", is_in_grace, is_over=False)
    fresh = Freshness(7, "2026-11-20 12:00:00", 3.9, limit)
    checker.decision = checker.decision._replace(freshness=fresh)
    headers = dict(ask(checker).headers)
    assert headers["X-Auth-Grace-Until"] == ("2026-12-20 12:00:00" if is_in_grace else "")


# -- rates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "policy", "rest", "retry"),
    [
        (RateLimit(Rate(100, 60, 50), 49, 0.6, 0.0), '"burst";q=50;w=30', '"burst";r=49;t=1', None),
        (RateLimit(Rate(3, 10, 1), 0, 3.3, 0.0), '"burst";q=1;w=4', '"burst";r=0;t=4', None),
        (RateLimit(Rate(1, 60, 1), 0, 59.2, 59.2), '"burst";q=1;w=60', '"burst";r=0;t=60', "60"),
        (RateLimit(Rate(9, 1, 9), 0, 1.0, 0.001), '"burst";q=9;w=1', '"burst";r=0;t=1', "1"),
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_what_is_left_of_a_rate_is_told_in_whole_seconds(
    path: str, left: RateLimit, policy: str, rest: str, retry: str | None
) -> None:
    response = ask(Fixed(Reason.RATE_LIMITED if retry else Reason.OK, left), path)
    headers = dict(response.headers)
    assert (headers["RateLimit-Policy"], headers["RateLimit"]) == (policy, rest)
    assert headers.get("Retry-After") == retry
    assert headers["X-Auth-Status"] == ("429" if retry else "200")


def test_a_plan_without_a_rate_has_no_rate_headers() -> None:
    assert not {"RateLimit", "RateLimit-Policy"} & set(names(ask(Fixed())))


# -- paths -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "service"),
    [
        ("/check", None),
        ("/check/", None),
        ("/check?service=search&cost=0", None),
        ("/check/services/search/check", None),
        ("/check/../services/search/check", None),
        ("/check/any/path?a=/services/b/check", None),
        ("/services/search/check", "search"),
        ("/services/search/check?service=other", "search"),
        ("/services/search/check/client/path", "search"),
        ("/services/search/check/../../other/check", "search"),
        ("/services/two%20words/check", "two words"),
        ("/services/a%2Fb/check", "a/b"),
        ("/services/caf%C3%A9/check", "café"),
        ("/services/%25/check", "%"),
        ("/services/check/check", "check"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/nginx"])
def test_the_service_is_what_the_path_begins_with(
    prefix: str, target: str, service: str | None
) -> None:
    checker = Fixed()
    headers = KEY | {"x-auth-service": "forged", "x-service": "forged", "x-cost": "0"}
    assert ask(checker, prefix + target, headers).status is HTTPStatus.OK
    assert checker.asked == [("t", service, 1, "127.0.0.1")]


@pytest.mark.parametrize(
    "target",
    [
        *("", "*", "/", "/checks", "/CHECK", "//check", "/check%2Fx", "check", "/other/check"),
        *("/services/check", "/services//check", "/services/a/b/check", "/services/a/checks"),
        *("/services/a", "/services/a/", "/services", "/v2/keys.verifyKey", "/v2/check"),
        *("/nginx", "/nginx/", "/nginx/nginx/check", "/nginxcheck", "?/check"),
    ],
)
def test_any_other_path_is_not_found_and_nobody_is_asked(target: str) -> None:
    checker = Fixed()
    response = ask(checker, target)
    assert response.status is HTTPStatus.NOT_FOUND
    assert dict(response.headers)["Content-Type"] == "application/problem+json"
    assert checker.asked == []


# -- who is believed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("127.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("127.8.9.1", "192.0.2.7", "192.0.2.7"),
        ("::1", "192.0.2.7", "192.0.2.7"),
        ("::ffff:127.0.0.1", "192.0.2.7", "192.0.2.7"),
        (None, "192.0.2.7", "192.0.2.7"),
        ("10.1.2.3", "192.0.2.7", "192.0.2.7"),
        ("::ffff:10.1.2.3", "192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", "198.51.100.1, 192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", " 2001:db8::1 ", "2001:db8::1"),
        ("127.0.0.1", "198.51.100.1,", "127.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", None, "127.0.0.1"),
        ("11.1.2.3", "192.0.2.7", "11.1.2.3"),
        ("2001:db8::2", "192.0.2.7", "2001:db8::2"),
        ("nonsense", "192.0.2.7", "nonsense"),
        (None, None, None),
    ],
)
def test_only_a_trusted_proxy_says_who_the_client_is(
    peer: str | None, forwarded: str | None, client: str | None
) -> None:
    checker = Fixed()
    headers = KEY if forwarded is None else KEY | {"x-forwarded-for": forwarded}
    trusted = Settings(trusted=(*Settings().trusted, ip_network("10.0.0.0/8")))
    for _ in range(2):
        ask(checker, headers=headers, peer=peer, settings=trusted)
    assert [asked[3] for asked in checker.asked] == [client, client]


def test_trust_is_remembered_for_a_bounded_number_of_peers() -> None:
    settings = Settings()
    for number in range(5_000):
        assert not settings.trusts(f"10.0.{number >> 8}.{number & 255}")
    assert settings.trusts("127.0.0.1")
    assert len(settings._peers) <= 1_000


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({"authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer   abc "}, "abc"),
        ({"x-api-key": " abc "}, "abc"),
        ({"authorization": "Basic abc", "x-api-key": "def"}, "def"),
        ({"authorization": "Bearer abc", "x-api-key": "def"}, "abc"),
        ({"authorization": "Bearer"}, None),
        ({"x-api-key": ""}, None),
        ({}, None),
    ],
)
def test_where_the_token_is_found(headers: dict[str, str], token: str | None) -> None:
    assert token_of(Request("GET", "/check?token=abc", headers)) == token


# -- the token in the query --------------------------------------------------------------------

QUERY = Settings(query_token="key")


@pytest.mark.parametrize(
    ("target", "headers", "peer", "token"),
    [
        ("/check?key=t", {}, "10.1.2.3", "t"),
        ("/check/x?a=b&key=a%20b", {}, "10.1.2.3", "a b"),
        ("/check?key=t", {"x-api-key": "header"}, "10.1.2.3", "header"),
        ("/check?key=t", {"authorization": "Bearer header"}, "10.1.2.3", "header"),
        ("/check?key=t", {"authorization": "Digest x"}, "10.1.2.3", "t"),
        ("/check?key=", {}, "10.1.2.3", None),
        ("/check?KEY=t&token=t", {}, "10.1.2.3", None),
        ("/check?key=one&key=two", {}, "10.1.2.3", None),
        ("/check", {"x-original-uri": "/x?key=t"}, "127.0.0.1", "t"),
        ("/check?a=b", {"x-forwarded-uri": "/x?key=t"}, "127.0.0.1", "t"),
        ("/check", {"x-forwarded-uri": "/x?key=t"}, None, "t"),
        ("/check?key=own", {"x-original-uri": "/x?key=t"}, "127.0.0.1", "own"),
        ("/check", {"x-original-uri": "/x?key=one&key=two"}, "127.0.0.1", None),
        ("/check", {"x-original-uri": "/x?key=t"}, "10.1.2.3", None),
        ("/check", {"x-forwarded-uri": "/x?key=t"}, "10.1.2.3", None),
    ],
)
def test_a_token_in_the_query_counts_only_where_the_operator_says_so(
    target: str, headers: dict[str, str], peer: str | None, token: str | None
) -> None:
    checker = Fixed()
    ask(checker, target, headers, peer, QUERY)
    assert [asked[0] for asked in checker.asked] == ([] if token is None else [token])
    in_headers = {"header"} & {token}
    checker = Fixed()
    ask(checker, target, headers, peer)
    assert {asked[0] for asked in checker.asked} == in_headers


# -- whatever comes ----------------------------------------------------------------------------

SAFE = re.compile(r"[!-~](?:[ -~]*[!-~])?|")
ANY_TEXT = st.text(max_size=40) | st.text(alphabet='\r\n\0: ,"X-Auth%\t\x7f\x85\u2028', max_size=40)


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT.filter(bool), st.booleans())
def test_no_name_can_break_a_header_and_each_can_be_read_back(
    account: str, plan: str, service: str, has_rate: bool
) -> None:
    checker = Fixed(rate=RateLimit(Rate(1, 1, 1), 0, 0.0, 0.0) if has_rate else None)
    checker.decision = checker.decision._replace(account=account, plan=plan)
    response = ask(checker, f"/services/{quote(service, safe='', errors='surrogatepass')}/check")
    for name, value in response.headers:
        assert re.fullmatch(r"[A-Za-z-]+", name)
        assert SAFE.fullmatch(value), (name, value)
    headers = dict(response.headers)
    read = [unquote(headers[name], errors="surrogatepass") for name in IDENTITY[2:]]
    assert read == [account, plan, checker.asked[0][1]]


def test_a_surrogate_in_a_name_is_encoded_too() -> None:
    checker = Fixed()
    checker.decision = checker.decision._replace(account="\ud800")
    assert dict(ask(checker).headers)["X-Auth-Account"] == "%ED%A0%80"


@given(
    st.sampled_from(["GET", "HEAD", "POST", "OPTIONS", "PURGE", ""]),
    st.text(max_size=60)
    | st.builds(
        "".join,
        st.lists(
            st.sampled_from([*"/?%&=", "/v2/keys.verifyKey", *PATHS, "services/", "key=", "%00"])
        ),
    ),
    st.dictionaries(
        st.sampled_from(
            ["authorization", "x-api-key", "x-forwarded-for", "x-original-uri", "x-forwarded-uri"]
        ),
        ANY_TEXT
        | st.just("/?key=t")
        | st.text(max_size=10).map("Bearer {}".format)
        | st.binary(max_size=10).map(lambda sent: f"Basic {b64encode(sent).decode()}"),
    ),
    st.none() | st.sampled_from(["127.0.0.1", "::1", "fe80::1%eth0", "x", ""]),
    st.sampled_from(list(Reason)),
    st.binary(max_size=20),
)
@example("GET", "/check", KEY, None, Reason.OK, b"")  # seldom found: most requests name no key
def test_any_request_has_exactly_one_answer(
    method: str,
    target: str,
    headers: dict[str, str],
    peer: str | None,
    reason: Reason,
    body: bytes,
) -> None:
    checker = Fixed(reason)
    request = Request(method, target, headers, peer, body)
    response = respond(checker, request, QUERY)
    assert response.status in {200, 400, 401, 403, 404, 429, 503}
    assert len(checker.asked) <= 1
    is_yes = response.status == 200
    assert is_yes <= (reason is Reason.OK and len(checker.asked) == 1)
    assert response.body == b"" if is_yes else json.loads(response.body)
    assert respond(checker, request, QUERY).status == response.status


# -- answers that are kept ---------------------------------------------------------------------


def test_the_same_decision_has_the_same_answer_and_an_equal_one_of_another_has_not() -> None:
    one, other = Fixed(), Fixed()
    assert ask(one) is ask(one)
    assert ask(one) is not ask(one, "/nginx/check")
    assert ask(one) is not ask(one, "/services/a/check")
    assert ask(one) is not ask(other)
    assert ask(one) == ask(other)


def test_kept_answers_are_bounded_and_never_those_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "MOST_KEPT", 10)
    monkeypatch.setattr(answers, "_kept", {})
    for number in range(1_000):  # decisions that are dropped: their ids are used again
        checker = Fixed()
        checker.decision = checker.decision._replace(account=f"{number}@example.org")
        for path in PATHS[:2]:
            assert dict(ask(checker, path).headers)["X-Auth-Account"] == f"{number}@example.org"
        assert len(answers._kept) <= 10


def test_what_depends_on_the_moment_is_not_kept() -> None:
    checker = Fixed(rate=RateLimit(Rate(9, 1, 9), 8, 0.1, 0.0))
    kept = len(answers._kept)
    first = dict(ask(checker).headers)
    checker.decision = checker.decision._replace(rate=RateLimit(Rate(9, 1, 9), 7, 0.2, 0.0))
    assert dict(ask(checker).headers)["RateLimit"] != first["RateLimit"]
    assert len(answers._kept) == kept
