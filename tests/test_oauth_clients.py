"""OAuth clients: an id and a secret, the same answers as a key's, and their own usage."""

import asyncio
import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from fastapi import Depends, FastAPI
from hypothesis import given
from hypothesis import strategies as st

from keystore import Decision, Reason, Store, Validator, tokens
from keystore.admin.clients import IssuedClient
from keystore.cli import main
from keystore.db import open_store
from keystore.edge import slow
from keystore.edge.cache import digest_of
from keystore.edge.decision import ClientCredentials
from keystore.errors import AlreadyExistsError, InUseError, InvalidInputError, NotFoundError
from keystore.http import asgi, wsgi
from keystore.http.answers import Response
from keystore.http.check import Request, Settings, respond
from keystore.http.fastapi import require_key
from keystore.sync import engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from keystore.testing.memory import MemoryKeys
from tests.buckets import free_ports
from tests.proxies import KINDS, Checker, app, ask, proxy
from tests.serving import Server

ADA = "ada@example.org"
(NGINX,) = (kind for kind in KINDS if kind.name == "nginx")
SUMS = """SELECT principal_type, principal_id, account_id, service_id, sum(amount) FROM UsageLog
          GROUP BY 1, 2, 3, 4 ORDER BY 1, 2"""


@pytest.fixture
def billing(store: Store) -> IssuedClient:
    return store.add_oauth_client(ADA, client_id="billing")


def basic(client_id: str, secret: str) -> dict[str, str]:
    return {"authorization": f"Basic {b64encode(f'{client_id}:{secret}'.encode()).decode()}"}


def usage(store: Store) -> list[tuple[object, ...]]:
    return store.file.conn.execute(SUMS).fetchall()


# -- the admin side ----------------------------------------------------------------------------


def test_a_secret_is_shown_once_and_kept_as_its_hash_only(store: Store) -> None:
    issued = store.add_oauth_client(ADA)
    assert issued.client.client_id == store.oauth_clients()[0].client_id
    assert issued.secret.startswith("sk-miro-api-client-")
    assert len(issued.secret) - len("sk-miro-api-client-") - 6 == 27  # of base62: 160 bits
    row = store.file.conn.execute("SELECT client_secret_hash FROM OAuthClients").fetchone()
    assert row == (tokens.hash_token(issued.secret),)
    listed = json.dumps([item.model_dump() for item in store.oauth_clients()])
    assert row[0] not in listed
    store.file.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for said in (listed, repr(issued), str(issued), store.file.path.read_bytes().decode("latin-1")):
        assert issued.secret not in said
    assert issued.secret not in repr(ClientCredentials("a", issued.secret))


def test_two_clients_have_two_ids_and_two_secrets(store: Store) -> None:
    made = [store.add_oauth_client(ADA) for _ in range(10)]
    assert (
        len({item.secret for item in made}) == len({item.client.client_id for item in made}) == 10
    )


def test_a_secret_is_never_taken_for_a_token(store: Store, billing: IssuedClient) -> None:
    assert tokens.shape(billing.secret) is tokens.Shape.OTHER
    with Validator(store.file.path) as validator:
        assert validator.check(billing.secret).reason is Reason.UNKNOWN


@pytest.mark.parametrize("client_id", ["", "a:b", "a b", "-a", "ä", "a\n", "a" * 201, "a@b"])
def test_an_id_that_needs_encoding_somewhere_is_refused(store: Store, client_id: str) -> None:
    with pytest.raises(InvalidInputError, match="client_id"):
        store.add_oauth_client(ADA, client_id=client_id)
    assert store.oauth_clients() == []


def test_what_does_not_exist_or_does_already_is_said(store: Store, billing: IssuedClient) -> None:
    with pytest.raises(AlreadyExistsError, match="billing"):
        store.add_oauth_client(ADA, client_id="billing")
    for fails in (
        lambda: store.add_oauth_client("nobody@example.org"),
        lambda: store.rotate_oauth_client("nobody"),
        lambda: store.change_oauth_client("nobody", is_active=True),
        lambda: store.remove_oauth_client("nobody"),
        lambda: store.oauth_client("nobody"),
        lambda: store.oauth_clients(account="nobody@example.org"),
    ):
        with pytest.raises(NotFoundError, match="nobody"):
            fails()
    assert [item.client_id for item in store.oauth_clients(account=ADA)] == ["billing"]


def test_an_account_with_clients_is_not_removed_unasked(
    store: Store, billing: IssuedClient
) -> None:
    with pytest.raises(InUseError, match="0 keys and 1 OAuth clients"):
        store.remove_account(ADA)
    assert store.remove_account(ADA, with_keys=True).clients == 1
    assert store.oauth_clients() == []


def test_to_say_what_is_so_already_changes_nothing(store: Store, billing: IssuedClient) -> None:
    before = store.status().last_change
    assert store.change_oauth_client("billing", is_active=True) == billing.client
    assert store.status().last_change == before


# -- the check ---------------------------------------------------------------------------------


def test_a_client_passes_by_its_id_and_secret(store: Store, billing: IssuedClient) -> None:
    with Validator(store.file.path) as validator:
        for _ in range(3):
            decision = validator.check_client("billing", billing.secret)
            assert (decision.allowed, decision.reason) == (True, Reason.OK)
            assert (decision.principal_type, decision.client_id) == ("oauth_client", "billing")
            assert (decision.api_key, decision.api_key_id) == (None, None)
            assert (decision.account, decision.plan) == (ADA, "free")
            assert decision.freshness is not None
        key = validator.check(store.issue_key(ADA).token)
        assert (key.principal_type, key.client_id) == ("api_key", None)
        assert validator.check_client("billing", "guess").reason is Reason.UNKNOWN
        assert validator.check_client("other", billing.secret).reason is Reason.UNKNOWN
    assert json.dumps(decision.as_dict())


def test_a_hit_runs_no_sql(
    store: Store, billing: IssuedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow, "LOOK_SECONDS", 3600.0)
    store.add_plan("fast", rate_limit=1000, rate_window_seconds=1)
    store.add_account("bob@example.org", plan="fast")
    rated = store.add_oauth_client("bob@example.org", client_id="rated")
    sent = [("billing", billing.secret), ("rated", rated.secret)]
    with Validator(store.file.path) as validator:
        for _ in range(2):
            assert all(
                validator.check_client(*one, cost=cost).allowed for one in sent for cost in (0, 1)
            )
        ran: list[str] = []
        for file in (validator._file, validator._writer):
            file.conn.set_trace_callback(ran.append)
        before = validator.slow_checks
        for _ in range(3):
            assert all(
                validator.check_client(*one, cost=cost).allowed
                for one in sent
                for cost in (0, 1, 5)
            )
        assert (ran, validator.slow_checks) == ([], before)


def test_it_is_found_by_an_index(store: Store, billing: IssuedClient) -> None:
    with Validator(store.file.path) as validator:
        ran: list[str] = []
        validator._file.conn.set_trace_callback(ran.append)
        assert validator.check_client("nobody", "guess").reason is Reason.UNKNOWN
        (statement,) = [one for one in ran if "OAuthClients" in one]
        plan = validator._file.conn.execute("EXPLAIN QUERY PLAN " + statement).fetchall()
        assert not [step for *_, step in plan if step.startswith("SCAN")], plan


def test_a_client_may_be_used_for_no_service(store: Store, billing: IssuedClient) -> None:
    store.add_service("tts")
    store.issue_key(ADA, quotas={"tts": 5})  # key 1, and client 1
    with Validator(store.file.path) as validator:
        for _ in range(3):
            for name in ("tts", "nothing"):
                decision = validator.check_client("billing", billing.secret, service=name)
                assert decision.reason is Reason.SERVICE
            assert validator.check_client("billing", billing.secret).allowed


@pytest.mark.parametrize("max_pending", [1, 1000])
def test_key_13_and_client_13_are_not_confused(store: Store, max_pending: int) -> None:
    """Seed 000: an OAuth client's id in the column of a key's, and the log of the use failed."""
    store.add_plan("slow", rate_limit=3, rate_window_seconds=3600)
    store.add_account("bob@example.org", plan="slow")
    with store.file.write() as conn:
        for table in ("APIKeys", "OAuthClients"):
            conn.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, 12)", (table,))
    client = store.add_oauth_client("bob@example.org", client_id="app")
    assert client.client.oauth_client_id == 13
    with Validator(store.file.path, max_pending=max_pending) as validator:
        assert validator.check_client("app", client.secret).allowed  # there is no key 13
        key = store.issue_key("bob@example.org")
        assert key.key.api_key_id == 13
        assert [validator.check(key.token).allowed for _ in range(4)] == [True, True, True, False]
        assert validator.check_client("app", client.secret).allowed
        assert validator.check_client("app", client.secret, cost=5).allowed
        assert validator.check_client("app", client.secret).reason is Reason.RATE_LIMITED
        # One is deleted: the other passes, and what was used stays.
        store.delete_key(key.token)
        assert validator.check(key.token).reason is Reason.UNKNOWN
        assert validator.check_client("app", client.secret, cost=0).reason is Reason.RATE_LIMITED
    account_id = client.client.account_id
    assert usage(store) == [
        ("api_key", 13, account_id, None, 3),
        ("oauth_client", 13, account_id, None, 7),
    ]
    store.remove_oauth_client("app")
    assert len(usage(store)) == 2


@given(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))
def test_what_is_remembered_by_is_unique(a: str, b: str, c: str, d: str) -> None:
    one, other = ClientCredentials(a, b), ClientCredentials(c, d)
    assert (digest_of(one) == digest_of(other)) == (one == other)
    assert digest_of(one) not in {digest_of(a + b), digest_of(f"{a}\0{b}"), digest_of(f"ÿ{a}ÿ{b}")}


def test_ids_that_a_damaged_file_has_are_no_others(store: Store, billing: IssuedClient) -> None:
    issued = store.issue_key(ADA)
    with Validator(store.file.path) as validator:
        assert validator.check(issued.token).allowed
        with open_store(store.file.path) as other:
            other.conn.execute("PRAGMA ignore_check_constraints = ON")
            other.conn.execute("DROP TRIGGER trg_oauthclients_identity")
            other.conn.execute("UPDATE OAuthClients SET oauth_client_id = -1")
        assert validator.check_client("billing", billing.secret).reason is Reason.UNAVAILABLE
        assert validator.check(issued.token).api_key_id == 1
    store.file.conn.execute("DELETE FROM OAuthClients")
    store.file.conn.executescript(
        next(
            part
            for part in (Path(__file__).parent.parent / "triggers.sql").read_text().split("\n\n")
            if "TRIGGER trg_oauthclients_identity" in part
        )
    )


def test_nobody_looks_at_a_clock_to_learn_a_secret(
    store: Store, billing: IssuedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    with Validator(store.file.path) as validator:
        assert validator.check_client("billing", "guess").reason is Reason.UNKNOWN
    hashes = tokens.hash_token("guess"), tokens.hash_token(billing.secret)
    assert compared == [hashes]


def test_an_asynchronous_check_answers_the_same(store: Store, billing: IssuedClient) -> None:
    async def twice(validator: Validator) -> list[Reason]:
        found = [await validator.check_client_async("billing", billing.secret) for _ in range(2)]
        found.append(await validator.check_client_async("billing", "guess"))
        return [decision.reason for decision in found]

    with Validator(store.file.path) as validator:
        assert asyncio.run(twice(validator)) == [Reason.OK, Reason.OK, Reason.UNKNOWN]
    assert [row[-1] for row in usage(store)] == [2]


def test_a_cost_that_would_give_back_is_refused(store: Store, billing: IssuedClient) -> None:
    with Validator(store.file.path) as validator:
        for _ in range(2):
            with pytest.raises(ValueError, match="cost"):
                validator.check_client("billing", billing.secret, cost=-1)
            assert validator.check_client("billing", billing.secret).allowed


# -- never a stale allow -----------------------------------------------------------------------

CHANGES = {
    "rotated": f"""UPDATE OAuthClients SET client_secret_hash = '{"0" * 64}'
                   WHERE client_id = 'billing'""",
    "deactivated": "UPDATE OAuthClients SET is_active = 0 WHERE client_id = 'billing'",
    "account": "UPDATE Accounts SET is_active = 0",
    "moved": """INSERT INTO Plans (name) VALUES ('p');
                INSERT INTO Accounts (email, plan_id, is_active) VALUES ('x@x.org', 2, 0);
                UPDATE OAuthClients SET account_id = 2 WHERE oauth_client_id = 1""",
    "removed": "DELETE FROM OAuthClients WHERE oauth_client_id = 1",
    "replaced": f"""REPLACE INTO OAuthClients (client_id, account_id, client_secret_hash)
                    VALUES ('billing', 1, '{"0" * 64}')""",
}
REASONS = {
    "rotated": Reason.UNKNOWN,
    "deactivated": Reason.SUSPENDED,
    "account": Reason.ACCOUNT_INACTIVE,
    "moved": Reason.ACCOUNT_INACTIVE,
    "removed": Reason.UNKNOWN,
    "replaced": Reason.UNKNOWN,
}


def elsewhere(path: Path, script: str) -> None:
    """Write from another process."""
    program = (
        "import sys; from pathlib import Path; from keystore import db;"
        "c = db.connect(Path(sys.argv[1])); c.executescript(sys.argv[2]); c.close()"
    )
    subprocess.run([sys.executable, "-c", program, str(path), script], check=True, timeout=60)


@pytest.mark.parametrize("change", CHANGES)
def test_what_another_process_commits_the_next_check_knows(
    store: Store, billing: IssuedClient, change: str
) -> None:
    other, key = store.add_oauth_client(ADA, client_id="other"), store.issue_key(ADA)
    with Validator(store.file.path) as validator:
        for _ in range(3):
            assert validator.check_client("billing", billing.secret).allowed
            assert validator.check_client("other", other.secret).allowed
            assert validator.check(key.token).allowed
        elsewhere(store.file.path, CHANGES[change])
        assert validator.check_client("billing", billing.secret).reason is REASONS[change]
        if change != "account":
            # Nobody else is forgotten, but where a table has changed that all depend on.
            assert validator.cached == {"deactivated": 3, "moved": 1}.get(change, 2)
            assert validator.check_client("other", other.secret).allowed
            assert validator.check(key.token).allowed


def test_a_new_secret_passes_at_once_and_the_old_one_no_more(
    store: Store, billing: IssuedClient
) -> None:
    with Validator(store.file.path) as validator:
        secret = billing.secret
        for _ in range(5):
            assert all(validator.check_client("billing", secret).allowed for _ in range(3))
            old, secret = secret, store.rotate_oauth_client("billing").secret
            assert validator.check_client("billing", old).reason is Reason.UNKNOWN
            assert validator.check_client("billing", secret).allowed
            assert validator.check_client("billing", old).reason is Reason.UNKNOWN
        assert validator.cached == 1
        store.change_oauth_client("billing", is_active=False)
        assert validator.check_client("billing", secret).reason is Reason.SUSPENDED
        assert validator.check_client("billing", old).reason is Reason.UNKNOWN
        store.change_oauth_client("billing", is_active=True)
        assert validator.check_client("billing", secret).allowed


def test_a_replica_knows_clients_and_their_usage_goes_up(
    store: Store, billing: IssuedClient, tmp_path: Path
) -> None:
    hub, replica = MemoryHub(), tmp_path / "replica.db"
    engine.push(store.file, hub, "memory:", Report(""))
    engine.replicate(hub, "memory:", replica, Report(""))
    with Validator(replica) as validator:
        for _ in range(3):
            assert validator.check_client("billing", billing.secret).allowed
        store.change_oauth_client("billing", is_active=False)
        engine.push(store.file, hub, "memory:", Report(""))
        with open_store(replica) as file:
            engine.pull(file, hub, "memory:", Report(""))
        assert validator.check_client("billing", billing.secret).reason is Reason.SUSPENDED
    with open_store(replica) as file:
        assert file.conn.execute(SUMS).fetchall() == [("oauth_client", 1, 1, None, 3)]


# -- HTTP --------------------------------------------------------------------------------------

CHALLENGE = 'Basic realm="keystore", charset="UTF-8", Bearer'


def asked(validator: Validator, headers: dict[str, str], target: str = "/check") -> Response:
    return respond(validator, Request("GET", target, headers), Settings())


def test_basic_credentials_pass_and_say_whose_they_are(store: Store, billing: IssuedClient) -> None:
    with Validator(store.file.path) as validator:
        for _ in range(3):
            response = asked(validator, basic("billing", billing.secret))
            headers = dict(response.headers)
            assert (response.status, headers["X-Auth-Client"]) == (200, "billing")
            assert (headers["X-Auth-Key"], headers["X-Auth-Account"]) == ("", ADA)
        # A key in the same request goes first, as it did before there were clients.
        key = store.issue_key(ADA)
        both = basic("billing", billing.secret) | {"x-api-key": key.token}
        headers = dict(asked(validator, both).headers)
        assert (headers["X-Auth-Key"], headers["X-Auth-Client"]) == (key.key.api_key, "")
        assert asked(validator, basic("billing", billing.secret) | {"x-api-key": "x"}).status == 401


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "x",
        "=",
        "ä",
        "Zm9v",  # foo
        "OnNlY3JldA==",  # :secret
        "YmlsbGluZzo=",  # billing:
        "/////w==",
        b64encode(b"\xff:\xff").decode(),
        b64encode(b"billing:guess").decode() + "!",
        b64encode(b"billing:" + b"x" * 513).decode(),
    ],
)
@pytest.mark.parametrize("path", ["/check", "/nginx/check", "/services/tts/check"])
def test_malformed_basic_is_401_and_says_how(
    store: Store, billing: IssuedClient, sent: str, path: str
) -> None:
    with Validator(store.file.path) as validator:
        response = asked(validator, {"authorization": f"Basic {sent}"}, path)
    headers = dict(response.headers)
    assert (response.status, headers["X-Auth-Reason"]) == (401, "malformed")
    assert headers["WWW-Authenticate"] == CHALLENGE
    assert [name for name, _ in response.headers].count("WWW-Authenticate") == 1


def test_each_denial_of_a_client_has_its_status(store: Store, billing: IssuedClient) -> None:
    store.add_service("tts")
    right = basic("billing", billing.secret)
    with Validator(store.file.path) as validator:
        for headers, path, status, reason in (
            (basic("billing", "guess"), "/check", 401, "unknown"),
            (basic("nobody", billing.secret), "/check", 401, "unknown"),
            (right, "/services/tts/check", 403, "service"),
        ):
            response = asked(validator, headers, path)
            body, got = json.loads(response.body), dict(response.headers)
            assert (response.status, body["reason"]) == (status, reason)
            assert got.get("WWW-Authenticate") == (CHALLENGE if status == 401 else None)
            assert (got["X-Auth-Client"], got["X-Auth-Account"]) == ("", "")
            assert "key" not in body["detail"]
        store.change_oauth_client("billing", is_active=False)
        assert asked(validator, right).status == 401
        store.change_account(ADA, is_active=False)
        store.change_oauth_client("billing", is_active=True)
        assert asked(validator, right).status == 403
    # Without anything there is only one challenge, as before.
    with Validator(store.file.path) as validator:
        assert dict(asked(validator, {}).headers)["WWW-Authenticate"] == "Bearer"


def by_wsgi(keys: MemoryKeys, headers: dict[str, str], service: str | None) -> httpx.Response:
    def index(environ: dict[str, object], start: Callable[..., object]) -> list[bytes]:
        decision = environ["keystore.decision"]
        assert isinstance(decision, Decision)
        start("200 OK", [])
        return [(decision.client_id or "").encode()]

    guarded = wsgi.KeystoreMiddleware(index, keys, service=service)
    with httpx.Client(transport=httpx.WSGITransport(guarded), base_url="http://t") as client:
        return client.get("/", headers=headers)


def by_asgi(keys: MemoryKeys, headers: dict[str, str], service: str | None) -> httpx.Response:
    async def index(scope: asgi.Scope, _: asgi.Receive, send: asgi.Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body = scope["keystore"].client_id.encode()
        await send({"type": "http.response.body", "body": body})

    return _asked_async(asgi.KeystoreMiddleware(index, keys, service=service), headers)


def by_fastapi(keys: MemoryKeys, headers: dict[str, str], service: str | None) -> httpx.Response:
    api = FastAPI()
    needed = Depends(require_key(keys, service=service))

    @api.get("/")
    def index(decision: Decision = needed) -> str | None:
        return decision.client_id

    return _asked_async(api, headers)


def _asked_async(guarded: asgi.App, headers: dict[str, str]) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(guarded)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            return await client.get("/", headers=headers)

    return asyncio.run(go())


@pytest.mark.parametrize("by", [by_wsgi, by_asgi, by_fastapi])
def test_clients_pass_the_middlewares_and_the_dependency(
    by: Callable[[MemoryKeys, dict[str, str], str | None], httpx.Response],
) -> None:
    keys = MemoryKeys()
    client = keys.issue_client(client_id="billing")
    answer = by(keys, basic(*client), None)
    assert (answer.status_code, answer.text.strip('"')) == (200, "billing")
    assert keys.usage(client) == 1
    for headers, service, status in (
        (basic("billing", "guess"), None, 401),
        ({"authorization": "Basic x"}, None, 401),
        (basic(*client), "search", 403),
    ):
        answer = by(keys, headers, service)
        assert answer.status_code == status
        assert answer.headers.get("www-authenticate") == (CHALLENGE if status == 401 else None)


def test_unkeys_question_is_for_keys_only(store: Store, billing: IssuedClient) -> None:
    body = json.dumps({"key": f"billing:{billing.secret}"}).encode()
    with Validator(store.file.path) as validator:
        request = Request(
            "POST", "/v2/keys.verifyKey", basic("billing", billing.secret), None, body
        )
        assert json.loads(respond(validator, request).body)["data"]["code"] == "NOT_FOUND"


def test_a_real_server_takes_basic_and_counts_and_says_no_secret(
    store: Store, billing: IssuedClient
) -> None:
    server = Server(store.file.path)
    try:
        credentials = httpx.BasicAuth("billing", billing.secret)
        with httpx.Client(base_url=server.url.removesuffix("/check"), auth=credentials) as client:
            for _ in range(3):
                assert client.get("/check").headers["x-auth-client"] == "billing"
            refused = client.get("/check", auth=("billing", "guess"))
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, CHALLENGE)
            metrics = client.get("/metrics").text
        assert 'reason="ok"} 3' in metrics
    finally:
        server.process.terminate()
        said = "".join(server.process.communicate(timeout=20))
    assert server.process.returncode == 0
    assert billing.secret not in said + metrics
    assert usage(store) == [("oauth_client", 1, 1, None, 3)]


@pytest.mark.skipif(NGINX.program is None, reason="nginx is not installed")
def test_nginx_lets_a_client_through_and_says_who_it_is(tmp_path: Path) -> None:
    with ExitStack() as stack:
        store = stack.enter_context(Store.create(tmp_path / "origin.db"))
        store.add_plan("free")
        store.add_account(ADA, plan="free")
        issued = store.add_oauth_client(ADA, client_id="billing")
        served = stack.enter_context(app())
        (port,) = free_ports(1)
        checker = Checker(tmp_path / "checker", port)
        stack.callback(checker.kill)
        checker.up(tmp_path / "origin.db")
        url = stack.enter_context(proxy(NGINX, tmp_path / "proxy", port, served.port))
        forged = ("X-Auth-Client", "forged")
        right = ("Authorization", basic("billing", issued.secret)["authorization"])
        answer = ask(f"{url}/", None, right, forged)
        assert (answer.status, answer.arrived["x-auth-client"]) == (200, "billing")
        assert answer.arrived["x-auth-account"] == ADA
        wrong = ("Authorization", basic("billing", "guess")["authorization"])
        answer = ask(f"{url}/", None, wrong)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, CHALLENGE)
        key = store.issue_key(ADA)
        answer = ask(f"{url}/", key.token, forged)
        assert answer.status == 200
        assert answer.arrived.get("x-auth-client", "") == ""
        store.rotate_oauth_client("billing")
        assert ask(f"{url}/", None, right).status == 401


# -- the command line --------------------------------------------------------------------------


@pytest.fixture
def run(store: Store) -> Callable[..., Any]:
    def run(*words: str, code: int = 0, stdin: str = "") -> Any:
        done = CliRunner().invoke(
            main, [*words, "--db", str(store.file.path), "--json"], input=stdin
        )
        assert done.exit_code == code, done.output
        return json.loads(done.stdout or done.stderr)

    return run


def test_a_client_from_the_command_line(store: Store, run: Callable[..., Any]) -> None:
    added = run("client", "add", ADA, "--id", "billing")
    secret = added["secret"]
    assert run("check", "--client", "billing", "-", stdin=f"{secret}\n")["client_id"] == "billing"
    rotated = run("client", "rotate", "billing")["secret"]
    assert run("check", "--client", "billing", secret, code=1)["reason"] == "unknown"
    assert run("check", "--client", "billing", rotated)["allowed"] is True
    listed = run("client", "list", "--account", ADA)
    assert [item["client_id"] for item in listed] == ["billing"]
    assert secret not in json.dumps(listed)
    assert "hash" not in json.dumps(listed)
    assert run("client", "set", "billing", "--inactive")["is_active"] is False
    assert run("check", "--client", "billing", rotated, code=1)["reason"] == "suspended"
    assert run("client", "remove", "billing")["client_id"] == "billing"
    assert run("client", "list") == []
    assert run("client", "rotate", "billing", code=1)["error"]["code"] == "not_found"


def test_what_is_said_in_words(store: Store) -> None:
    at = ("--db", str(store.file.path))
    added = CliRunner().invoke(main, ["client", "add", ADA, "--id", "billing", *at])
    assert "cannot be shown again" in added.stderr
    assert [line.split()[0] for line in added.stdout.splitlines()] == [
        "client",
        "account",
        "secret",
    ]
    secret = added.stdout.split()[-1]
    allowed = CliRunner().invoke(main, ["check", "--client", "billing", secret, *at])
    assert allowed.stdout.startswith(f"allowed: {ADA} on plan free")
    CliRunner().invoke(main, ["client", "set", "billing", "--inactive", *at])
    for sent, word in ((secret, "the client is not active, client billing of"), ("x", "no client")):
        denied = CliRunner().invoke(main, ["check", "--client", "billing", sent, *at])
        assert denied.exit_code == 1
        assert word in denied.stdout
        assert "key" not in denied.stdout


@pytest.mark.parametrize("command", ["add", "list", "rotate", "set", "remove"])
def test_every_command_has_an_example(command: str) -> None:
    done = CliRunner().invoke(main, ["client", command, "--help"])
    assert f"keystore client {command}" in done.stdout
    assert "Example:" in done.stdout
