"""What a validator remembers of tokens, and what a commit makes it forget.

A commit is looked at by the ChangeLog's tail: of the keys that it names the entries go, and all
entries if it names anything else that a check depends on, or if the tail does not follow on what
was seen. A commit that only records usage makes nobody forget anything.
"""

import hmac
from collections.abc import Mapping, Sequence
from hashlib import sha256
from ipaddress import ip_network
from itertools import islice
from typing import TYPE_CHECKING, Any

from keystore import clock, sql
from keystore.db import StoreInfo, scalar
from keystore.edge.decision import ClientCredentials, Decision, Entry, Rate
from keystore.edge.leases import Grant, Lease
from keystore.edge.usage import Use
from keystore.errors import DamagedStoreError
from keystore.tokens import hash_token

if TYPE_CHECKING:
    import sqlite3

CACHE_SIZE = 100_000
"""Tokens remembered, about 140 MB with their answers."""
MOST_ADDRESSES = 1_000
"""Client addresses remembered for one key that is bound to networks."""
CLIENT_BYTES = b"\xff%b\xff%b"
"""What is hashed of a client's id and secret. No UTF-8 has the byte FF."""
_LONGEST_TAIL = 1_000
# What is settled is asked for with each lease, and not remembered.
_NOT_CHECKED = {
    "APIKeyStatusEvents",
    "PlanServiceQuotas",
    "Providers",
    "Models",
    "ModelPricing",
    "UsageSettlements",
}

_Q = sql.named("edge")


def digest_of(sent: str | ClientCredentials) -> bytes:
    """Return by what a token, or a client's id and secret, are remembered.

    A client's is never a token's, nor another client's.
    """
    if isinstance(sent, str):
        return sha256(sent.encode("utf-8", "surrogatepass")).digest()
    client_id, secret = (part.encode("utf-8", "surrogatepass") for part in sent)
    return sha256(CLIENT_BYTES % (client_id, secret)).digest()


class Granted:
    """What an answer needs to know of a service: whose units to take, and what to say then."""

    __slots__ = ("decision", "lease", "use")

    def __init__(self, lease: Lease, decision: Decision, use: Use) -> None:
        self.lease, self.decision, self.use = lease, decision, use


_NO_SERVICES: Mapping[str, Granted] = {}


class Answer:
    """A "yes" that holds for every check of a token until a time, in Unix seconds.

    For the ``services`` that are in it, while their leases last; and if ``addresses`` is not
    ``None``, from those. If there is a ``rate``, and something of it is left.
    """

    __slots__ = ("addresses", "decision", "is_plain", "rate", "services", "until", "use")

    def __init__(self, until: float, decision: Decision, entry: Entry) -> None:
        self.until, self.decision = until, decision
        self.use: Use = (entry.principal, entry.account_id, None, None, None, 1)
        self.rate: Rate | None = entry.rate
        self.services: Mapping[str, Granted] = _NO_SERVICES
        self.addresses: set[str | None] | None = None if entry.networks is None else set()
        self.is_plain = entry.rate is None and entry.networks is None

    def admit(self, ip: str | None, granted: Granted | None, behind: float) -> None:
        """Note what the same answer was found for; ``behind``: the wall clock's, in seconds."""
        quota = granted.decision.quota if granted is not None else None
        if granted is not None and quota is not None:
            self.services = {**self.services, quota.service: granted}
            if quota.renews_at is not None:
                self.until = min(self.until, quota.renews_at - behind)
        if self.addresses is not None:
            if len(self.addresses) >= MOST_ADDRESSES:
                self.addresses.clear()
            self.addresses.add(ip)


class TokenCache:
    """Entries and answers by :func:`digest_of`. Whoever changes it holds the lock."""

    def __init__(self) -> None:
        self.answers: dict[bytes, Answer] = {}
        self._entries: dict[bytes, Entry] = {}
        self._digests: dict[int, bytes] = {}
        self._services: dict[int, dict[str, Grant]] = {}
        self._quota_keys: dict[int, int] = {}
        self._identity: tuple[Any, ...] = ()
        self._last_change: tuple[Any, ...] | None = None
        self._last_revocation = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: bytes) -> Entry | None:
        """Return what is remembered of a token."""
        return self._entries.get(digest)

    def read(
        self, conn: "sqlite3.Connection", digest: bytes, client: ClientCredentials | None = None
    ) -> Entry | None:
        """Look a token or a client up and remember it, if it is there: others are endless.

        Raises:
            DamagedStoreError: a value cannot be read.
        """
        if client is None:
            row = conn.execute(_Q["entry"], (digest.hex(),)).fetchone()
        else:
            row = conn.execute(_Q["client"], (client.client_id,)).fetchone()
            if row is not None and not hmac.compare_digest(hash_token(client.secret), row[-1]):
                return None
        if row is None:
            return None
        try:
            entry = _entry(row[:18], client and client.client_id)
        except (ValueError, TypeError) as error:  # written with the CHECKs off
            what = f"key {row[0]}" if client is None else f"client {-row[0]}"
            raise DamagedStoreError(
                f"{what} cannot be read: {error}.", hint="`keystore doctor` tells more."
            ) from error
        # What a commit has changed since the last look is read already: nobody else could then tell
        # that what is remembered of this key under another token is to be forgotten.
        self._forget(entry.principal)
        if len(self._entries) >= CACHE_SIZE:
            # The oldest hundredth: who is asked for often comes back at once.
            for old in list(islice(self._entries.values(), CACHE_SIZE // 100)):
                self._forget(old.principal)
        self._entries[digest] = entry
        self._digests[entry.principal] = digest
        return entry

    def services(self, conn: "sqlite3.Connection", api_key_id: int) -> dict[str, Grant]:
        """Return by what a key may use the active services, by their names."""
        found = self._services.get(api_key_id)
        if found is None:
            rows = conn.execute(_Q["services"], (api_key_id,)).fetchall()
            found = {name: Grant(*ids) for name, *ids in rows}
            for quota_id, *_ in found.values():
                before = self._quota_keys.get(quota_id)
                if before is not None:
                    self._forget(before)  # as in read(): the quota has moved
                self._quota_keys[quota_id] = api_key_id
            self._services[api_key_id] = found
        return found

    def clear(self) -> None:
        """Forget everything."""
        for remembered in (
            self.answers,
            self._entries,
            self._digests,
            self._services,
            self._quota_keys,
        ):
            remembered.clear()

    def look(self, conn: "sqlite3.Connection", info: StoreInfo, *, is_first: bool = False) -> None:
        """Forget what has changed since the last look; call it in a read transaction.

        If it ``is_first``, of this file or after a failure, what has changed may be anything. So it
        may where a backup was written into the file: the ChangeLog is another one, then, and tells
        nothing. SQLite counts the schema's version up when it does that (sqlite3_backup_step).
        """
        identity = (
            scalar(conn, _Q["schema_version"]),
            info.store_id,
            info.incarnation,
            info.origin_id,
            info.origin_incarnation,
            info.token_prefix,
        )
        is_same = identity == self._identity and not is_first
        changed = self._changed(conn) if is_same else None
        if changed is None:
            self.clear()
        else:
            for principal in changed:
                self._forget(principal)
        self._identity = identity
        self._last_change = conn.execute(_Q["last_change"]).fetchone()
        self._last_revocation = scalar(conn, _Q["last_revocation"])

    def _forget(self, principal: int) -> None:
        for quota_id, *_ in self._services.pop(principal, {}).values():
            self._quota_keys.pop(quota_id, None)
        digest = self._digests.get(principal)
        if digest is not None:
            # In this order: a signal's exception may come after each, and who looks again must
            # still find what is left.
            self.answers.pop(digest, None)
            self._entries.pop(digest, None)
            del self._digests[principal]

    def _changed(self, conn: "sqlite3.Connection") -> set[int] | None:
        """Return the keys and clients that have changed; ``None`` if it may be anything."""
        last = self._last_change
        window = {"last": last[0] if last else 0, "limit": _LONGEST_TAIL + 1}
        tail = conn.execute(_Q["tail"], window).fetchall()
        if last is not None:
            # Not only its id: a backup that was copied into the file may have as many changes.
            if not tail or tail[0] != last:
                return None
            del tail[0]
        if len(tail) > _LONGEST_TAIL:
            return None
        changed = set()
        for _, table, record_id, _ in tail:
            if table == "APIKeys":
                changed.add(record_id)
            elif table == "OAuthClients":
                changed.add(-record_id)
            elif table == "APIKeyServiceQuotas":
                changed |= self._keys_of_quota(conn, record_id)
            elif table not in _NOT_CHECKED:
                return None
        if scalar(conn, _Q["last_revocation"]) != self._last_revocation:
            revoked = conn.execute(_Q["revoked_since"], (self._last_revocation,)).fetchall()
            changed.update(api_key_id for (api_key_id,) in revoked)
        return changed

    def _keys_of_quota(self, conn: "sqlite3.Connection", quota_id: int) -> set[int]:
        """Return the key that a quota is for, and the one that it was for."""
        rows = conn.execute(_Q["quota_key"], (quota_id,)).fetchall()
        known = self._quota_keys.get(quota_id)
        return {api_key_id for (api_key_id,) in rows} | ({known} if known is not None else set())


def _entry(row: Sequence[Any], client_id: str | None) -> Entry:
    (
        principal,
        api_key,
        is_active,
        status,
        allows_access,
        expires_at,
        networks,
        label,
        metadata,
        account_id,
        account,
        account_is_active,
        plan,
        max_staleness_seconds,
        stale_action,
        rate_limit,
        rate_window_seconds,
        rate_burst,
    ) = row
    if (principal > 0) == (client_id is not None):
        msg = "its id is not above 0"
        raise ValueError(msg)
    # (half of what Entry(…) takes)
    return tuple.__new__(
        Entry,
        (
            principal,
            api_key,
            is_active == 1 and allows_access == 1,
            status,
            clock.seconds(expires_at) if expires_at else None,
            tuple(map(ip_network, networks.split())) if networks is not None else None,
            label,
            metadata,
            account_id,
            account,
            account_is_active == 1,
            plan,
            max_staleness_seconds,
            stale_action,
            Rate(rate_limit, rate_window_seconds, rate_burst or rate_limit) if rate_limit else None,
            client_id,
        ),
    )
