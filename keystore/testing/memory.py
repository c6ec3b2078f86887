"""A store in memory, for the tests of programs that check keys.

:class:`MemoryKeys` takes the place of a ``Validator``. It has no file, its clock stands still until
it is set, and it goes stale when it is told to. Decisions are made by the same code.
"""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from ipaddress import ip_network
from uuid import uuid4

from keystore import clock, tokens
from keystore.edge.decision import (
    ClientCredentials,
    Decision,
    Entry,
    Freshness,
    Limit,
    QuotaLeft,
    Rate,
    RateLimit,
    Reason,
    decide,
)
from keystore.edge.rates import peek, spend
from keystore.edge.slow import MAX_COST, is_malformed
from keystore.errors import AlreadyExistsError, NotFoundError

_DAY = 86_400.0


class _Held:
    """Units of a service that a key may use."""

    def __init__(self, units: int) -> None:
        self.initial = self.remaining = units


class MemoryKeys:
    """Keys in memory, and the checks of a ``Validator``. Safe to share between threads.

    ``now`` is the time by which keys are judged, in Unix seconds; set it, or :meth:`wait`.
    """

    def __init__(self, *, token_prefix: str = tokens.DEFAULT_PREFIX) -> None:
        self.now = time.time()
        self._prefix = token_prefix
        self._lock = threading.RLock()
        self._entries: dict[str | ClientCredentials, Entry] = {}
        self._services: dict[int, dict[str, _Held]] = {}
        self._accounts: dict[str, int] = {}
        self._usage: dict[int, int] = {}
        self._whole_at: dict[int, float] = {}
        self._change = 0
        self._age = 0.0
        self._is_over = False
        self._failure: Reason | None = None

    def issue(
        self,
        account: str = "ada@example.org",
        *,
        plan: str = "free",
        label: str | None = None,
        expires_at: float | None = None,
        networks: Sequence[str] = (),
        metadata: Mapping[str, object] | None = None,
        services: Sequence[str] = (),
        quotas: Mapping[str, int] | None = None,
        rate_limit: int | None = None,
        rate_window_seconds: int = 60,
        rate_burst: int | None = None,
        max_staleness_seconds: int | None = 3600,
    ) -> str:
        """Issue a key and return its token; the account, plan and services need not be added first.

        The rate and the bound on staleness, which a real store takes from the plan, are the key's.
        ``expires_at`` is in Unix seconds, ``networks`` are in CIDR notation. The key may use any
        amount of ``services``, and so many units of ``quotas``, which are never renewed.
        """
        with self._lock:
            api_key = uuid4()
            entry = Entry(
                principal=len(self._entries) + 1,
                api_key=str(api_key),
                is_active=True,
                status="assigned",
                expires_at=expires_at,
                networks=tuple(map(ip_network, networks)) or None,
                label=label,
                metadata=json.dumps(metadata) if metadata else None,
                account_id=self._accounts.setdefault(account, len(self._accounts) + 1),
                account=account,
                account_is_active=True,
                plan=plan,
                max_staleness_seconds=max_staleness_seconds,
                stale_action="deny",
                rate=Rate(rate_limit, rate_window_seconds, rate_burst or rate_limit)
                if rate_limit
                else None,
            )
            token = tokens.new_token(api_key, self._prefix)
            held = {name: _Held(MAX_COST) for name in services}
            held |= {name: _Held(units) for name, units in (quotas or {}).items()}
            self._services[entry.principal] = held
            self._put(token, entry)
            return token

    def issue_client(
        self,
        account: str = "ada@example.org",
        *,
        client_id: str | None = None,
        plan: str = "free",
        rate_limit: int | None = None,
        rate_window_seconds: int = 60,
        rate_burst: int | None = None,
        max_staleness_seconds: int | None = 3600,
    ) -> ClientCredentials:
        """Add an OAuth client; its id and secret stand for it below, as a token for a key.

        The rest is as for :meth:`issue`.

        Raises:
            AlreadyExistsError: there is a client of that id.
        """
        with self._lock:
            if client_id in {entry.client_id for entry in self._entries.values()} - {None}:
                raise AlreadyExistsError(
                    f"client {client_id!r} exists already.", hint="Name another."
                )
            token = self.issue(
                account,
                plan=plan,
                rate_limit=rate_limit,
                rate_window_seconds=rate_window_seconds,
                rate_burst=rate_burst,
                max_staleness_seconds=max_staleness_seconds,
            )
            entry = self._entries.pop(token)
            sent = ClientCredentials(
                client_id or str(uuid4()), tokens.new_client_secret(self._prefix)
            )
            self._put(
                sent,
                entry._replace(principal=-entry.principal, api_key=None, client_id=sent.client_id),
            )
            return sent

    def revoke(self, token: str) -> None:
        """Revoke a key, for good.

        Raises:
            NotFoundError: no key has that token; so in all that follow.
        """
        self._put(token, self._entry(token)._replace(is_active=False, status="revoked"))

    def suspend(self, token: str | ClientCredentials) -> None:
        """Give a key a status that allows no access, or deactivate a client."""
        self._put(token, self._entry(token)._replace(is_active=False, status="suspended"))

    def expire(self, token: str) -> None:
        """Let a key expire now."""
        self._put(token, self._entry(token)._replace(expires_at=self.now))

    def deactivate_account(self, token: str | ClientCredentials) -> None:
        """Deactivate the account of a key or client, with all of either."""
        account_id = self._entry(token).account_id
        with self._lock:
            for other, entry in list(self._entries.items()):
                if entry.account_id == account_id:
                    self._put(other, entry._replace(account_is_active=False))

    def usage(self, token: str | ClientCredentials) -> int:
        """Return the units of usage counted for a key or client."""
        return self._usage.get(self._entry(token).principal, 0)

    def wait(self, seconds: float) -> None:
        """Set the clock forward: keys expire, bursts fill up again; data do not grow older."""
        self.now += seconds

    def go_stale(self, age_seconds: float = _DAY) -> None:
        """Let the data be as old as that: more than an hour is too old for keys of ``issue()``."""
        self._age = age_seconds

    def go_offline(self) -> None:
        """Be without contact for longer than data from signed files may be used."""
        self._is_over = True

    def fail(self, reason: Reason = Reason.UNAVAILABLE) -> None:
        """Answer "not now": ``UNAVAILABLE`` as with a damaged file, or ``NOT_SYNCED``.

        Raises:
            ValueError: another reason, which is the answer to some checks and not to all.
        """
        if reason not in {Reason.UNAVAILABLE, Reason.NOT_SYNCED}:
            msg = f"{reason} is no failure"
            raise ValueError(msg)
        self._failure = reason

    def recover(self) -> None:
        """End what :meth:`go_stale`, :meth:`go_offline` and :meth:`fail` have begun."""
        self._age, self._is_over, self._failure = 0.0, False, None

    def check(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        """Decide on a token, as ``Validator.check`` does.

        Raises:
            ValueError: ``cost`` is negative or above ``MAX_COST``.
        """
        return self._check(token, service, cost, ip)

    def check_client(
        self,
        client_id: str,
        secret: str,
        *,
        service: str | None = None,
        cost: int = 1,
        ip: str | None = None,
    ) -> Decision:
        """Decide on an OAuth client, as ``Validator.check_client`` does.

        Raises:
            ValueError: ``cost`` is negative or above ``MAX_COST``.
        """
        return self._check(ClientCredentials(client_id, secret), service, cost, ip)

    async def check_async(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        """Decide like :meth:`check`."""
        return self.check(token, service=service, cost=cost, ip=ip)

    async def check_client_async(
        self,
        client_id: str,
        secret: str,
        *,
        service: str | None = None,
        cost: int = 1,
        ip: str | None = None,
    ) -> Decision:
        """Decide like :meth:`check_client`."""
        return self.check_client(client_id, secret, service=service, cost=cost, ip=ip)

    def _check(
        self, sent: str | ClientCredentials, service: str | None, cost: int, ip: str | None
    ) -> Decision:
        if not 0 <= cost <= MAX_COST:
            msg = f"cost is {cost}; it must be 0 to {MAX_COST}"
            raise ValueError(msg)
        with self._lock:
            decision = self._decide(sent, service, cost, ip)
            if decision.allowed and cost:
                principal = self._entry(sent).principal
                self._usage[principal] = self._usage.get(principal, 0) + cost
            return decision

    def _decide(
        self, sent: str | ClientCredentials, service: str | None, cost: int, ip: str | None
    ) -> Decision:
        if self._failure is Reason.UNAVAILABLE:
            return Decision(allowed=False, reason=Reason.UNAVAILABLE)
        if is_malformed(sent, self._prefix):
            return Decision(allowed=False, reason=Reason.MALFORMED)
        if self._failure is not None:
            return Decision(allowed=False, reason=self._failure)
        fresh = self._freshness()
        entry = self._entries.get(sent)
        if entry is None:
            reason = Reason.OFFLINE if self._is_over else Reason.UNKNOWN
            return Decision(allowed=False, reason=reason, freshness=fresh)
        has_service = service is None or service in self._services.get(entry.principal, ())
        decision = decide(entry, self.now, fresh, ip, has_service=has_service)
        held = None
        if decision.allowed and service is not None:
            held = self._services[entry.principal][service]
            decision = decision._replace(quota=QuotaLeft(held, service, held.initial, None))
            if held.remaining < max(1, cost):
                decision = decision._replace(allowed=False, reason=Reason.QUOTA_EXCEEDED)
        if decision.allowed and entry.rate is not None:
            decision = decision.with_rate(self._take(entry.principal, entry.rate, cost))
        if held is not None and decision.allowed and held.initial < MAX_COST:
            held.remaining -= cost
        return decision

    def _take(self, principal: int, rate: Rate, cost: int) -> RateLimit:
        whole_at = self._whole_at.get(principal, self.now)
        if not cost:
            return peek(whole_at, self.now, rate)
        left, self._whole_at[principal] = spend(whole_at, self.now, rate)
        return left

    def _freshness(self) -> Freshness:
        as_of = self.now - self._age
        limit = None
        if self._is_over:
            end = clock.utc_text(self.now - 1)
            limit = Limit(end, end, is_in_grace=False, is_over=True)
        return Freshness(self._change, clock.utc_text(as_of), self._age, limit)

    def _entry(self, token: str | ClientCredentials) -> Entry:
        entry = self._entries.get(token)
        if entry is None:
            if isinstance(token, ClientCredentials):
                raise NotFoundError(
                    f"no client {token.client_id!r} has that secret.",
                    hint="Make one with issue_client().",
                )
            digest = sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
            raise NotFoundError(
                f"no key has the token with SHA-256 {digest[:12]}….", hint="Issue one with issue()."
            )
        return entry

    def _put(self, token: str | ClientCredentials, entry: Entry) -> None:
        with self._lock:
            self._entries[token] = entry
            self._change += 1
