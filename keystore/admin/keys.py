"""Keys, from issue to deletion. A token is returned once and stored nowhere."""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import uuid_utils.compat

from keystore import clock, models, quotas, sql, tokens
from keystore.admin.base import Admin
from keystore.admin.plan_quotas import give_plan_quotas
from keystore.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    import sqlite3

_CENTURY = timedelta(days=36_525)
_Q = sql.named("store")


class KeyAdmin(Admin):
    """Issues, rotates, revokes and lists keys."""

    def issue_key(
        self,
        account: str,
        *,
        label: str | None = None,
        expires_at: object = None,
        networks: Sequence[str] = (),
        metadata: Mapping[str, object] | None = None,
        quotas: Mapping[str, int] | None = None,
        renewal: str = "never",
    ) -> models.IssuedKey:
        """Issue a key to an account and return it with its token.

        ``expires_at`` is a ``datetime`` or ISO 8601 text; without a zone it is UTC. ``networks``
        are in CIDR notation; with any, the key passes from these addresses only. ``quotas`` maps
        service names to units, renewed ``daily``, ``monthly`` or ``never``; of other services the
        key gets what the account's plan says (:meth:`set_plan_quota`).

        Raises:
            InvalidInputError, NotFoundError (the account, a service), WrongRoleError
        """
        wanted = models.validated(
            models.KeyInput,
            "key",
            account=account,
            label=label,
            expires_at=expires_at,
            networks=tuple(networks),
            metadata=metadata,
            quotas=dict(quotas or {}),
            renewal=renewal,
        )
        with self._write():
            account_id = self._find("account", wanted.account)
            expiry = wanted.expires_at and clock.utc_text(wanted.expires_at.timestamp())
            if expiry and expiry <= clock.utc_text():
                raise InvalidInputError(
                    f"the key would have expired already, at {expiry} UTC.",
                    hint="Nothing was written; name a time to come.",
                )
            issued = self._insert_key(
                {
                    "account_id": account_id,
                    "label": wanted.label,
                    "expires_at": expiry,
                    "allowed_networks": " ".join(wanted.networks) or None,
                    "metadata": json.dumps(wanted.metadata) if wanted.metadata else None,
                }
            )
            for service, quota in wanted.quotas.items():
                self._insert_quota(issued.key.api_key_id, service, quota, wanted.renewal)
            give_plan_quotas(self.file.conn, issued.key.api_key_id)
            return issued

    def rotate_key(self, key: str, *, overlap: timedelta = timedelta(0)) -> models.IssuedKey:
        """Issue a successor with the same account, label, networks and metadata.

        The old key goes on for ``overlap`` (or until its own expiry, if that is sooner) and is
        expired afterwards; without an overlap it is revoked at once. Its quotas, with what is left
        of them, move to the successor at once: two keys would spend them twice.

        Raises:
            InvalidInputError: the key passes no longer, or the overlap is negative or endless.
            NotFoundError, WrongRoleError
        """
        if overlap < timedelta(0):
            raise InvalidInputError("the overlap is negative.", hint="Name a time to come.")
        if overlap > _CENTURY:  # its end would be past what a store can say
            raise InvalidInputError(
                "the overlap is more than a century.", hint="Name a shorter one."
            )
        with self._write() as conn:
            old = self._key(key)
            if not old.is_active or old.state == "expired":
                raise InvalidInputError(
                    f"key {old.api_key} is {old.state}; there is nothing to rotate.",
                    hint="Issue a new one with `keystore key issue`.",
                )
            issued = self._insert_key(
                {
                    "account_id": old.account_id,
                    "label": old.label,
                    "expires_at": old.expires_at,
                    "allowed_networks": old.allowed_networks,
                    "metadata": old.metadata,
                }
            )
            self._move_quotas(conn, old.api_key_id, issued.key.api_key_id)
            if overlap:
                end = clock.utc_text((datetime.now(UTC) + overlap).timestamp())
                self._set(
                    "APIKeys", old.api_key_id, {"expires_at": min(end, old.expires_at or end)}
                )
            else:
                self._set_status(old, "revoked", f"rotated to {issued.key.api_key}")
            return models.IssuedKey(key=self._key(issued.key.api_key), token=issued.token)

    def revoke_key(self, key: str, *, reason: str | None = None) -> models.APIKey:
        """Stop a key for good. Doing it twice changes nothing.

        A key is named by its UUID or by its token, here and below.

        Raises:
            NotFoundError, InvalidInputError (the reason), WrongRoleError
        """
        return self.set_key_status(key, "revoked", reason=reason)

    def set_key_status(self, key: str, status: str, *, reason: str | None = None) -> models.APIKey:
        """Give a key a status; the timeline keeps when and why. The same one changes nothing.

        Raises:
            NotFoundError (the key, the status), InvalidInputError, WrongRoleError
        """
        wanted = models.validated(models.ReasonInput, "status", reason=reason)
        with self._write():
            found = self._key(key)
            self._find("status", status)
            if found.status != status:
                self._set_status(found, status, wanted.reason)
            return self._key(found.api_key)

    def expire_key(self, key: str, expires_at: object) -> models.APIKey:
        """Set or move a key's expiry; ``None`` takes it away, a past time expires it now.

        Raises:
            NotFoundError, InvalidInputError, WrongRoleError
        """
        wanted = models.validated(models.ExpiryInput, "key", expires_at=expires_at)
        with self._write():
            found = self._key(key)
            expiry = wanted.expires_at and clock.utc_text(wanted.expires_at.timestamp())
            if expiry != found.expires_at:
                self._set("APIKeys", found.api_key_id, {"expires_at": expiry})
            return self._key(found.api_key)

    def delete_key(self, key: str) -> models.APIKey:
        """Delete a key. Its timeline and its usage stay.

        Raises:
            NotFoundError, WrongRoleError
        """
        with self._write():
            found = self._key(key)
            self._db.table("APIKeys").delete(found.api_key_id)
            return found

    def key(self, key: str) -> models.APIKey:
        """Return one key.

        Raises:
            NotFoundError
        """
        with self.file.read():
            return self._key(key)

    def keys(self, *, account: str | None = None, status: str | None = None) -> list[models.APIKey]:
        """Return the keys, oldest first: all, or those of an account or with a status.

        Raises:
            NotFoundError: no such account or status.
        """
        with self.file.read():
            if account is not None:
                self._find("account", account)
            if status is not None:
                self._find("status", status)
            found = self._query("keys", account=account, status=status)
            return [models.APIKey(**row) for row in found]

    def history(self, key: str) -> list[models.StatusEvent]:
        """Return a key's timeline, newest first; that of a deleted key by its UUID.

        Raises:
            NotFoundError: no such key, and none in the past.
        """
        with self.file.read():
            try:
                api_key = self._key(key).api_key
            except NotFoundError:
                api_key = key.lower()
            events = [models.StatusEvent(**row) for row in self._query("history", api_key=api_key)]
            if not events:
                raise _no_such_key()
            return events

    def set_quota(
        self, key: str, service: str, quota: int, *, renewal: str = "never"
    ) -> models.Quota:
        """Give a key so many units of a service, now and at each renewal.

        Raises:
            NotFoundError (the key, the service), InvalidInputError, WrongRoleError
        """
        wanted = models.validated(
            models.QuotaInput, "quota", service=service, quota=quota, renewal=renewal
        )
        with self._write() as conn:
            found = self._key(key)
            # What was used before is not to be deducted from the new quota.
            quotas.settle_own(conn, self.info.store_id, time.time())
            self._insert_quota(found.api_key_id, wanted.service, wanted.quota, wanted.renewal)
            quotas.mark_exhausted(conn)
            return self._quota(found.api_key_id, wanted.service)

    def top_up(self, key: str, service: str, units: int) -> models.Quota:
        """Raise what is left of a key's quota, and what it gets at each renewal, by so many units.

        The period goes on; an exhausted key passes again.

        Raises:
            NotFoundError (the key, its quota), InvalidInputError, WrongRoleError
        """
        wanted = models.validated(models.QuotaInput, "quota", service=service, quota=units)
        with self._write() as conn:
            found, quota = self._settled_quota(conn, key, wanted.service)
            if quota.initial_quota + wanted.quota >= 1 << 62:
                raise InvalidInputError("that is too much.", hint="Nothing was written.")
            which = {"api_key_id": found.api_key_id, "service": wanted.service}
            conn.execute(_Q["top_up"], {**which, "units": wanted.quota})
            quotas.mark_exhausted(conn)
            return self._quota(found.api_key_id, wanted.service)

    def remove_quota(self, key: str, service: str) -> models.Quota:
        """Take a quota from a key, which may not use the service any more.

        Raises:
            NotFoundError (the key, its quota), WrongRoleError
        """
        with self._write() as conn:
            found, quota = self._settled_quota(conn, key, service)
            conn.execute(
                _Q["remove_quota"], {"api_key_id": found.api_key_id, "service": quota.service}
            )
            quotas.mark_exhausted(conn)
            return quota

    def quotas(self, key: str) -> list[models.Quota]:
        """Return what a key may use and what is left of it here and now, by service.

        Raises:
            NotFoundError
        """
        with self.file.read():
            return self._quotas(self._key(key).api_key_id)

    def _insert_key(self, values: dict[str, object]) -> models.IssuedKey:
        # Version 7: in the order of time, so that the UNIQUE index grows at its end.
        api_key = uuid_utils.compat.uuid7()
        token = tokens.new_token(api_key, self.info.token_prefix)
        row = {"api_key": str(api_key), "api_key_hash": tokens.hash_token(token), **values}
        self._db.table("APIKeys").insert(row)
        return models.IssuedKey(key=self._key(str(api_key)), token=token)

    def _insert_quota(self, api_key_id: int, service: str, quota: int, renewal: str) -> None:
        service_id = self._find("service", service)
        self.file.conn.execute(
            _Q["set_quota"],
            {
                "api_key_id": api_key_id,
                "service_id": service_id,
                "quota": quota,
                "renewal": renewal,
            },
        )

    def _quotas(self, api_key_id: int) -> list[models.Quota]:
        now = time.time()
        found = quotas.of_key(self.file.conn, api_key_id, self.info.store_id, now)
        return [models.Quota(**row, renews_at=_renewal_text(row["renewal"], now)) for row in found]

    def _quota(self, api_key_id: int, service: str) -> models.Quota:
        for quota in self._quotas(api_key_id):
            if quota.service == service:
                return quota
        raise NotFoundError(
            f"the key has no quota for {service!r}.", hint="`keystore key quota` gives it one."
        )

    def _settled_quota(
        self, conn: "sqlite3.Connection", key: str, service: str
    ) -> tuple[models.APIKey, models.Quota]:
        """Find a quota, and deduct what was used here: in its period, before it changes."""
        found = self._key(key)
        quotas.settle_own(conn, self.info.store_id, time.time())
        return found, self._quota(found.api_key_id, service)

    def _move_quotas(self, conn: "sqlite3.Connection", old: int, new: int) -> None:
        quotas.settle_own(conn, self.info.store_id, time.time())
        values = {"old": old, "new": new}
        # What edges have used and not told yet is deducted from the successor, too.
        for statement in ("move_quotas", "move_successors", "add_successor"):
            conn.execute(_Q[statement], values)
        quotas.mark_exhausted(conn)  # (to have used up all moves with them)

    def _set_status(self, key: models.APIKey, status: str, reason: str | None) -> None:
        self._set("APIKeys", key.api_key_id, {"status": status, "status_reason": reason})

    def _key(self, key: str) -> models.APIKey:
        for row in self._query("key", **tokens.key_names(key)):
            return models.APIKey(**row)
        raise _no_such_key()


def _no_such_key() -> NotFoundError:
    # What was typed may be a token, so it is not repeated in the message.
    return NotFoundError(
        "there is no such key.",
        hint="Name it by its UUID (`keystore key list`) or by its token.",
    )


def _renewal_text(renewal: str, now: float) -> str | None:
    end = quotas.renews_at(renewal, now)
    return None if end is None else clock.utc_text(end)
