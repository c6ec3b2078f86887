"""The admin side of a store: plans, accounts and keys, as the command line offers them.

sqlite-utils serves inserts and listings here; it is not on the path of a check. Every method is
one transaction, and what is wrong is said before anything is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import uuid_utils.compat
from sqlite_utils import Database

from keystore import changelog, clock, db, migrate, models, sql, tokens
from keystore.errors import (
    AlreadyExistsError,
    InvalidInputError,
    NotFoundError,
    WrongRoleError,
)
from keystore.tables import TRACKED

_Q = sql.named("store")


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """Where a store stands with one sync target (table SyncTargets)."""

    target_id: str
    url: str
    acknowledged_change: int
    acknowledged_usage: int
    usage_only: bool
    synced_at: str | None
    is_pending: bool


@dataclass(frozen=True, slots=True)
class Status:
    """What ``keystore status`` shows."""

    path: str
    info: db.StoreInfo
    schema_version: int
    records: dict[str, int]
    last_change: int
    last_usage: int
    usage_total: int
    targets: list[TargetStatus]


class Store(db.Closing):
    """An open store. Use it in a ``with`` statement, from one thread at a time.

    >>> from keystore import Store
    >>> with Store.create("doctest.db") as store:
    ...     _ = store.add_plan("free")
    ...     _ = store.add_account("ada@example.org", plan="free")
    ...     issued = store.issue_key("ada@example.org", label="laptop")
    >>> issued.token[:12], issued.key.is_active
    ('sk-miro-api-', True)
    """

    def __init__(self, file: db.StoreFile) -> None:
        self.file = file
        self.info = file.info()
        # recursive_triggers is the writer's own choice (ours is off), and plugins are foreign code
        self._db = Database(file.conn, recursive_triggers=False, execute_plugins=False)

    @classmethod
    def create(cls, path: Path | str, *, token_prefix: str = tokens.DEFAULT_PREFIX) -> Self:
        """Make a new origin store; see :func:`keystore.migrate.create_origin`."""
        return cls(migrate.create_origin(path, token_prefix=token_prefix))

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open an existing store; see :func:`keystore.db.open_store`."""
        return cls(db.open_store(path))

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    # -- plans ---------------------------------------------------------------------------------

    def add_plan(
        self, name: str, *, max_staleness_seconds: int | None = None, stale_action: str = "deny"
    ) -> models.Plan:
        """Add a plan.

        ``max_staleness_seconds`` bounds how old a replica's data may be for keys of this plan;
        past it ``stale_action`` decides, ``deny`` (answer 503) or ``allow``.

        Raises:
            InvalidInputError, AlreadyExistsError, WrongRoleError
        """
        wanted = models.validated(
            models.PlanInput,
            "plan",
            name=name,
            max_staleness_seconds=max_staleness_seconds,
            stale_action=stale_action,
        )
        with self._write():
            if db.scalar(self.file.conn, _Q["plan_id"], wanted.name) is not None:
                raise AlreadyExistsError(
                    f"plan {wanted.name!r} exists already.",
                    hint="`keystore plan list` shows the plans.",
                )
            plan_id = self._db.table("Plans").insert(wanted.model_dump()).last_pk
            return next(self._plans(plan_id))

    def plans(self) -> list[models.Plan]:
        """Return all plans, by name."""
        with self.file.read():
            return list(self._plans())

    def _plans(self, plan_id: object = None) -> Iterator[models.Plan]:
        return (models.Plan(**row) for row in self._query("plans", plan_id=plan_id))

    # -- accounts ------------------------------------------------------------------------------

    def add_account(self, email: str, *, plan: str) -> models.Account:
        """Add an account on an existing plan.

        Raises:
            InvalidInputError, NotFoundError (the plan), AlreadyExistsError, WrongRoleError
        """
        wanted = models.validated(models.AccountInput, "account", email=email, plan=plan)
        with self._write() as conn:
            plan_id = db.scalar(conn, _Q["plan_id"], wanted.plan)
            if plan_id is None:
                raise NotFoundError(
                    f"there is no plan {wanted.plan!r}.",
                    hint="Add it with `keystore plan add`; `keystore plan list` shows the plans.",
                )
            if db.scalar(conn, _Q["account_id"], wanted.email) is not None:
                raise AlreadyExistsError(
                    f"account {wanted.email!r} exists already.",
                    hint="`keystore account list` shows the accounts.",
                )
            row = {"email": wanted.email, "plan_id": plan_id}
            account_id = self._db.table("Accounts").insert(row).last_pk
            return next(self._accounts(account_id))

    def accounts(self) -> list[models.Account]:
        """Return all accounts, by e-mail address."""
        with self.file.read():
            return list(self._accounts())

    def _accounts(self, account_id: object = None) -> Iterator[models.Account]:
        return (models.Account(**row) for row in self._query("accounts", account_id=account_id))

    # -- keys ----------------------------------------------------------------------------------

    def issue_key(
        self, account: str, *, label: str | None = None, expires_at: object = None
    ) -> models.IssuedKey:
        """Issue a key to an account and return it with its token.

        The token is not stored and cannot be shown again. ``expires_at`` is a ``datetime`` or
        ISO 8601 text; without a zone it is UTC.

        Raises:
            InvalidInputError, NotFoundError (the account), WrongRoleError
        """
        wanted = models.validated(
            models.KeyInput, "key", account=account, label=label, expires_at=expires_at
        )
        with self._write() as conn:
            account_id = db.scalar(conn, _Q["account_id"], wanted.account)
            if account_id is None:
                raise NotFoundError(
                    f"there is no account {wanted.account!r}.",
                    hint="Add it with `keystore account add`.",
                )
            expiry = wanted.expires_at and clock.utc_text(wanted.expires_at.timestamp())
            if expiry and expiry <= clock.utc_text():
                raise InvalidInputError(
                    f"the key would have expired already, at {expiry} UTC.",
                    hint="Nothing was written; name a time to come.",
                )
            # Version 7: in the order of time, so that the UNIQUE index grows at its end.
            api_key = uuid_utils.compat.uuid7()
            token = tokens.new_token(api_key, self.info.token_prefix)
            self._db.table("APIKeys").insert(
                {
                    "api_key": str(api_key),
                    "account_id": account_id,
                    "api_key_hash": tokens.hash_token(token),
                    "label": wanted.label,
                    "expires_at": expiry,
                }
            )
            return models.IssuedKey(key=self._key(str(api_key)), token=token)

    def keys(self, *, account: str | None = None) -> list[models.APIKey]:
        """Return all keys, or those of one account (by e-mail), oldest first."""
        with self.file.read() as conn:
            if account is not None and db.scalar(conn, _Q["account_id"], account) is None:
                raise NotFoundError(
                    f"there is no account {account!r}.",
                    hint="`keystore account list` shows the accounts.",
                )
            return [models.APIKey(**row) for row in self._query("keys", account=account)]

    def revoke_key(self, key: str) -> models.APIKey:
        """Revoke a key, named by its UUID or by a token of it. Doing it twice changes nothing.

        Raises:
            NotFoundError, WrongRoleError
        """
        with self._write() as conn:
            found = self._key(key)
            if found.is_active:
                conn.execute(_Q["revoke_key"], (found.api_key_id,))
            return self._key(found.api_key)

    def _key(self, key: str) -> models.APIKey:
        try:
            by = {"api_key": str(UUID(key)), "api_key_hash": None}
        except ValueError:
            by = {"api_key": None, "api_key_hash": tokens.hash_token(key)}
        for row in self._query("key", **by):
            return models.APIKey(**row)
        # What was typed may be a token, so it is not repeated in the message.
        raise NotFoundError(
            "there is no such key.",
            hint="Name it by its UUID (`keystore key list`) or by its token.",
        )

    # -- state ---------------------------------------------------------------------------------

    def changes(self, *, after: int = 0, limit: int = -1) -> list[changelog.Change]:
        """Return the ChangeLog after change ``after``, oldest first."""
        with self.file.read() as conn:
            return list(changelog.since(conn, after, limit))

    def status(self) -> Status:
        """Return who this store is, what it holds, and where it stands with its targets."""
        with self.file.read() as conn:
            targets = [TargetStatus(**row) for row in self._query("sync_targets")]
            return Status(
                path=str(self.file.path),
                info=self.file.info(),
                schema_version=db.SCHEMA_VERSION,
                records={t.name: changelog.count_records(conn, t) for t in TRACKED},
                last_change=changelog.head(conn),
                last_usage=int(db.scalar(conn, _Q["usage_head"])),
                usage_total=int(db.scalar(conn, _Q["usage_total"])),
                targets=targets,
            )

    # -- helpers -------------------------------------------------------------------------------

    def _write(self) -> Any:
        if not self.info.is_origin:
            raise WrongRoleError(
                f"{self.file.path} is a read-only replica of store {self.info.origin_id}.",
                hint="Make the change at its origin, then run `keystore sync` here.",
            )
        return self.file.write()

    def _query(self, name: str, **values: object) -> Iterator[dict[str, Any]]:
        return self._db.query(_Q[name], values)
