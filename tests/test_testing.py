"""``MemoryKeys`` answers as a ``Validator`` on a real replica does: the same cases for both."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from keystore import Decision, Reason, Store, Validator
from keystore.db import open_store
from keystore.edge.decision import ClientCredentials
from keystore.edge.slow import MAX_COST
from keystore.errors import NotFoundError
from keystore.sync import engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from keystore.testing.memory import MemoryKeys

BOB = "bob@example.org"


class Keys(Protocol):
    """What both can do."""

    def issue(
        self,
        account: str = ...,
        *,
        plan: str = ...,
        label: str | None = ...,
        metadata: dict[str, object] | None = ...,
        networks: tuple[str, ...] = ...,
        services: tuple[str, ...] = ...,
        rate_limit: int | None = ...,
        rate_window_seconds: int = ...,
        rate_burst: int | None = ...,
        max_staleness_seconds: int | None = ...,
    ) -> str: ...
    def check(
        self, token: str, *, service: str | None = ..., cost: int = ..., ip: str | None = ...
    ) -> Decision: ...
    async def check_async(
        self, token: str, *, service: str | None = ..., cost: int = ..., ip: str | None = ...
    ) -> Decision: ...
    def issue_client(
        self,
        account: str = ...,
        *,
        client_id: str | None = ...,
        rate_limit: int | None = ...,
        rate_window_seconds: int = ...,
    ) -> ClientCredentials: ...
    def check_client(
        self,
        client_id: str,
        secret: str,
        *,
        service: str | None = ...,
        cost: int = ...,
        ip: str | None = ...,
    ) -> Decision: ...
    def revoke(self, token: str) -> None: ...
    def suspend(self, token: str | ClientCredentials) -> None: ...
    def deactivate_account(self, token: str | ClientCredentials) -> None: ...
    def usage(self, token: str | ClientCredentials) -> int: ...
    def go_stale(self) -> None: ...
    def go_offline(self) -> None: ...
    def fail(self, reason: Reason = ...) -> None: ...


class RealKeys:
    """An origin, and a validator on a replica that pulls after each change."""

    def __init__(self, store: Store, path: Path) -> None:
        self._store, self._path, self._hub = store, path, MemoryHub()
        engine.push(store.file, self._hub, "memory:", Report(""))
        engine.replicate(self._hub, "memory:", path, Report(""))
        self._validator = Validator(path)
        self.check = self._validator.check
        self.check_async = self._validator.check_async
        self.check_client = self._validator.check_client
        self.close = self._validator.close

    def issue(
        self,
        account: str = "ada@example.org",
        *,
        services: tuple[str, ...] = (),
        networks: tuple[str, ...] = (),
        label: str | None = None,
        metadata: dict[str, object] | None = None,
        plan: str = "",
        max_staleness_seconds: int | None = 3600,
        **rate: Any,
    ) -> str:
        number = len(self._store.plans())
        plan = self._store.add_plan(
            plan or f"plan-{number}", max_staleness_seconds=max_staleness_seconds, **rate
        ).name
        accounts = {found.email for found in self._store.accounts()}
        if account in accounts:
            self._store.change_account(account, plan=plan)
        else:
            self._store.add_account(account, plan=plan)
        for name in services:
            self._store.add_service(name)
        quotas = dict.fromkeys(services, 1)
        issued = self._store.issue_key(
            account, label=label, metadata=metadata, networks=networks, quotas=quotas
        )
        self._pull()
        return issued.token

    def revoke(self, token: str) -> None:
        self._store.revoke_key(token)
        self._pull()

    def suspend(self, token: str | ClientCredentials) -> None:
        if isinstance(token, str):
            self._store.set_key_status(token, "suspended")
        else:
            self._store.change_oauth_client(token.client_id, is_active=False)
        self._pull()

    def deactivate_account(self, token: str | ClientCredentials) -> None:
        if isinstance(token, str):
            account = self._store.key(token).account
        else:
            account = self._store.oauth_client(token.client_id).account
        self._store.change_account(str(account), is_active=False)
        self._pull()

    def issue_client(
        self, account: str = "ada@example.org", *, client_id: str | None = None, **rate: Any
    ) -> ClientCredentials:
        self.issue(account, **rate)
        issued = self._store.add_oauth_client(account, client_id=client_id)
        self._pull()
        return ClientCredentials(issued.client.client_id, issued.secret)

    def usage(self, token: str | ClientCredentials) -> int:
        self._validator.flush()
        sums = "SELECT sum(amount) FROM UsageLog WHERE principal_type = ? AND principal_id = ?"
        if isinstance(token, str):
            who = ("api_key", self._store.key(token).api_key_id)
        else:
            who = ("oauth_client", self._store.oauth_client(token.client_id).oauth_client_id)
        with open_store(self._path) as file:
            row = file.conn.execute(sums, who).fetchone()
        return int(row[0] or 0)

    def go_stale(self) -> None:
        self._execute("UPDATE StoreInfo SET as_of_at = datetime('now', '-1 day')")

    def go_offline(self) -> None:
        past = "datetime('now', '-1 hour')"
        self._execute(f"UPDATE StoreInfo SET valid_until = {past}, max_offline_seconds = 0")

    def fail(self, reason: Reason = Reason.UNAVAILABLE) -> None:
        if reason is Reason.NOT_SYNCED:
            self._execute("UPDATE StoreInfo SET as_of_change = NULL, as_of_at = NULL")
        else:
            self._execute("UPDATE StoreInfo SET as_of_at = 'tomorrow'")

    def _pull(self) -> None:
        engine.push(self._store.file, self._hub, "memory:", Report(""))
        with open_store(self._path) as file:
            engine.pull(file, self._hub, "memory:", Report(""))

    def _execute(self, statement: str) -> None:
        with open_store(self._path) as file:
            file.conn.execute("PRAGMA ignore_check_constraints = ON")
            file.conn.execute(statement)


@pytest.fixture(params=["memory", "real"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Keys]:
    """Keys of either kind."""
    if request.param == "memory":
        yield MemoryKeys()
        return
    store: Store = request.getfixturevalue("new_store")()
    real = RealKeys(store, tmp_path / "replica.db")
    yield real
    real.close()


def test_a_key_passes_with_its_identity(keys: Keys) -> None:
    token = keys.issue("ada@example.org", plan="pro", label="laptop", metadata={"team": "a"})
    decision = keys.check(token)
    assert (decision.allowed, decision.reason) == (True, Reason.OK)
    assert (decision.account, decision.plan, decision.label) == ("ada@example.org", "pro", "laptop")
    assert (decision.metadata, decision.expires_at) == ('{"team": "a"}', None)
    assert decision.rate is None
    assert decision.api_key is not None
    assert decision.freshness is not None
    assert decision.freshness.as_of_at is not None
    assert decision.freshness.limit is None


def test_an_asynchronous_check_answers_the_same(keys: Keys) -> None:
    token = keys.issue()

    async def twice() -> list[Reason]:
        found = [await keys.check_async(token, cost=0), await keys.check_async("guess")]
        return [decision.reason for decision in found]

    assert asyncio.run(twice()) == [Reason.OK, Reason.UNKNOWN]


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("", Reason.MALFORMED),
        ("x" * 513, Reason.MALFORMED),
        ("x" * 512, Reason.UNKNOWN),
        ("sk-miro-api-" + "0" * 55, Reason.MALFORMED),
        ("\ud800", Reason.UNKNOWN),
    ],
)
def test_what_is_no_token_is_refused(keys: Keys, token: str, reason: Reason) -> None:
    assert keys.check(token).reason is reason


def test_a_client_passes_with_its_identity_and_none_of_a_key(keys: Keys) -> None:
    client = keys.issue_client("ada@example.org", client_id="billing")
    decision = keys.check_client(*client, cost=2)
    assert (decision.allowed, decision.principal_type) == (True, "oauth_client")
    assert (decision.client_id, decision.account) == ("billing", "ada@example.org")
    assert (decision.api_key, decision.api_key_id) == (None, None)
    assert keys.usage(client) == 2
    assert keys.check_client(*client, service="search").reason is Reason.SERVICE


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (("billing", "guess"), Reason.UNKNOWN),
        (("nobody", "guess"), Reason.UNKNOWN),
        (("", "guess"), Reason.MALFORMED),
        (("billing", ""), Reason.MALFORMED),
        (("billing", "x" * 513), Reason.MALFORMED),
        (("\ud800", "guess"), Reason.MALFORMED),
        (("billing", "\ud800"), Reason.UNKNOWN),
        (("billing\0", "guess"), Reason.UNKNOWN),
    ],
)
def test_what_is_no_client_is_refused(keys: Keys, sent: tuple[str, str], reason: Reason) -> None:
    keys.issue_client(client_id="billing")
    decision = keys.check_client(*sent)
    assert (decision.reason, decision.principal_type) == (reason, None)


def test_a_clients_life_and_rate_are_as_a_keys(keys: Keys) -> None:
    client = keys.issue_client(BOB, rate_limit=2, rate_window_seconds=3600)
    found = [keys.check_client(*client).reason for _ in range(3)]
    assert found == [Reason.OK, Reason.OK, Reason.RATE_LIMITED]
    first, second = keys.issue_client(), keys.issue_client()
    keys.suspend(first)
    assert keys.check_client(*first).reason is Reason.SUSPENDED
    assert keys.check_client(*second).allowed
    keys.deactivate_account(second)
    assert keys.check_client(*second).reason is Reason.ACCOUNT_INACTIVE
    keys.go_stale()
    assert keys.check_client(*client, cost=0).reason is Reason.STALE
    keys.fail()
    assert keys.check_client(*client).reason is Reason.UNAVAILABLE


def bring_about(keys: Keys, token: str, reason: Reason) -> None:
    match reason:
        case Reason.REVOKED:
            keys.revoke(token)
        case Reason.SUSPENDED:
            keys.suspend(token)
        case Reason.ACCOUNT_INACTIVE:
            keys.deactivate_account(token)
        case Reason.STALE:
            keys.go_stale()
        case Reason.OFFLINE:
            keys.go_offline()
        case _:
            keys.fail(reason)


@pytest.mark.parametrize(
    ("reason", "of_unknown"),
    [
        (Reason.REVOKED, Reason.UNKNOWN),
        (Reason.SUSPENDED, Reason.UNKNOWN),
        (Reason.ACCOUNT_INACTIVE, Reason.UNKNOWN),
        (Reason.STALE, Reason.UNKNOWN),
        (Reason.OFFLINE, Reason.OFFLINE),
        (Reason.UNAVAILABLE, Reason.UNAVAILABLE),
        (Reason.NOT_SYNCED, Reason.NOT_SYNCED),
    ],
)
def test_a_change_is_seen_by_the_next_check(keys: Keys, reason: Reason, of_unknown: Reason) -> None:
    token = keys.issue()
    assert keys.check(token).allowed
    bring_about(keys, token, reason)
    decision = keys.check(token)
    assert (decision.allowed, decision.reason) == (False, reason)
    assert keys.check("guess").reason is of_unknown
    if reason not in {Reason.UNAVAILABLE, Reason.NOT_SYNCED}:
        assert keys.usage(token) == 1


def test_what_is_no_for_certain_is_no_however_old_the_data(keys: Keys) -> None:
    token = keys.issue()
    keys.revoke(token)
    keys.go_stale()
    assert keys.check(token).reason is Reason.REVOKED


def test_a_plan_without_a_bound_never_goes_stale(keys: Keys) -> None:
    token = keys.issue(max_staleness_seconds=None)
    keys.go_stale()
    decision = keys.check(token)
    assert decision.allowed
    assert decision.freshness is not None
    assert decision.freshness.age_seconds >= 86_400


def test_networks_and_services_are_asked_for(keys: Keys) -> None:
    token = keys.issue(networks=("192.0.2.0/24", "2001:db8::/32"), services=("a", "b"))
    for ip in (None, "198.51.100.1", "nonsense"):
        assert keys.check(token, ip=ip).reason is Reason.NETWORK
    for ip in ("192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1"):
        assert keys.check(token, ip=ip).allowed
    assert keys.check(token, ip="192.0.2.7", service="a").allowed
    assert keys.check(token, ip="192.0.2.7", service="c").reason is Reason.SERVICE
    assert keys.check(token, service="c").reason is Reason.NETWORK


def test_a_rate_is_used_up_and_a_check_that_only_asks_takes_nothing(keys: Keys) -> None:
    token = keys.issue(rate_limit=3600, rate_window_seconds=3600 * 24, rate_burst=2)
    left = [keys.check(token, cost=0).rate, keys.check(token, cost=0).rate]
    assert [rate and rate.remaining for rate in left] == [2, 2]
    assert [keys.check(token).allowed for _ in range(3)] == [True, True, False]
    decision = keys.check(token)
    assert decision.reason is Reason.RATE_LIMITED
    assert decision.rate is not None
    assert (decision.rate.remaining, decision.rate.rate.burst) == (0, 2)
    assert 0 < decision.rate.retry_after <= 24
    assert keys.usage(token) == 2


def test_usage_is_what_passed(keys: Keys) -> None:
    token, other = keys.issue(), keys.issue(BOB)
    keys.check(token, cost=5)
    keys.check(token, cost=0)
    keys.check(token, service="unknown", cost=7)
    assert (keys.usage(token), keys.usage(other)) == (5, 0)


@pytest.mark.parametrize("cost", [-1, MAX_COST + 1])
def test_a_cost_that_is_none_is_an_error(keys: Keys, cost: int) -> None:
    token = keys.issue()
    with pytest.raises(ValueError, match="cost is"):
        keys.check(token, cost=cost)
    assert keys.usage(token) == 0


# -- what only the double can do ---------------------------------------------------------------


def test_the_clock_of_the_double_expires_keys_and_fills_bursts() -> None:
    keys = MemoryKeys()
    token = keys.issue(expires_at=keys.now + 60, rate_limit=1, rate_window_seconds=10)
    assert [keys.check(token).reason for _ in range(2)] == [Reason.OK, Reason.RATE_LIMITED]
    keys.wait(10)
    assert keys.check(token).allowed
    keys.wait(50)
    assert keys.check(token).reason is Reason.EXPIRED


def test_the_double_expires_and_recovers() -> None:
    keys = MemoryKeys()
    token, other = keys.issue(), keys.issue()
    for begin in (keys.go_stale, keys.go_offline, keys.fail):
        begin()
        assert keys.check(token).reason.is_not_now
        keys.recover()
        assert keys.check(token).allowed
    keys.expire(token)
    assert keys.check(token).reason is Reason.EXPIRED
    assert keys.check(other).allowed


def test_the_double_refuses_what_it_cannot_do() -> None:
    keys = MemoryKeys()
    with pytest.raises(NotFoundError) as caught:
        keys.revoke("s3cret-token")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ValueError, match="no failure"):
        keys.fail(Reason.REVOKED)


def test_the_double_may_be_shared_between_threads() -> None:
    keys = MemoryKeys()
    token = keys.issue(rate_limit=1000)
    allowed: list[bool] = []

    def ask() -> None:
        for _ in range(500):
            allowed.append(keys.check(token).allowed)  # noqa: PERF401 - seen while it runs

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(allowed), keys.usage(token)) == (1000, 1000)
