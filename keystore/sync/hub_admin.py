"""What an operator does at a hub: make it, migrate it, revoke keys."""

from dataclasses import dataclass

from keystore import models, sql
from keystore.errors import NotFoundError, TargetNotReadyError
from keystore.sync import hub_grants
from keystore.sync.hub_connection import (
    HUB_SCHEMA_VERSION,
    HubConnection,
    channel_of,
    hub_errors,
    no_hub,
    other_version,
)
from keystore.tokens import key_names


@dataclass(frozen=True, slots=True)
class Revoked:
    """A key's revocation; ``is_new`` unless the key was revoked here before. Times are UTC text."""

    origin_id: str
    revocation_id: int
    api_key: str
    reason: str | None
    revoked_at: str
    is_new: bool


class HubAdmin(HubConnection):
    """An operator's connection to a hub."""

    def init(self) -> bool:
        """Create the schema ``keystore`` in one transaction; ``False`` if the hub was there.

        Raises:
            TargetNotReadyError: a schema of that name exists and is not ours.
        """
        with hub_errors(), self.conn.transaction():
            self.rows("lock_init")
            has_hub, has_schema = self.row("exists")
            if has_hub:
                return False
            if has_schema:
                raise TargetNotReadyError(
                    "this database has a schema named keystore that is not a hub.",
                    hint="Use another database.",
                )
            (encoding,) = self.row("server_encoding")
            if encoding != "UTF8":
                raise TargetNotReadyError(
                    f"this database is in {encoding}; a hub needs UTF8.",
                    hint="Make one with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0.",
                )
            self.conn.execute(sql.read("hub_schema"))
        return True

    def migrate(self) -> tuple[int, int]:
        """Bring the hub to this program's schema version, in one transaction.

        Its roles are granted what they lack at what is new. Returns the version before and after.

        Raises:
            TargetNotReadyError: there is no hub.
            SchemaVersionError: the hub is newer than this program.
        """
        with hub_errors(), self.conn.transaction():
            self.rows("lock_init")
            has_hub, _ = self.row("exists")
            if not has_hub:
                raise no_hub()
            _, before = self.row("hub_info")
            if before > HUB_SCHEMA_VERSION:
                raise other_version(before)
            for version in range(before + 1, HUB_SCHEMA_VERSION + 1):
                self.conn.execute(sql.read(f"hub_migrations/{version:04}"))
            if before < HUB_SCHEMA_VERSION:
                hub_grants.grant_again(self)
        return before, HUB_SCHEMA_VERSION

    def revoke(self, key: str, *, reason: str | None = None) -> list[Revoked]:
        """Revoke a key for good, by its UUID or its token; return the revocation, new or not.

        Every replica and the origin take it over with their next sync; those that follow, at once.
        Several are returned if several origins know that key.

        Raises:
            NotFoundError: the hub has no such key.
            InvalidInputError: the reason could not be stored everywhere.
        """
        reason = models.validated(models.ReasonInput, "revoke", reason=reason).reason
        _ = self.target_id
        with hub_errors(), self.conn.transaction():
            owners = self.rows("key_owners", **key_names(key))
            if not owners:
                raise NotFoundError(
                    "the hub has no such key.",
                    hint="Check the UUID or the token. Push from its origin first, or revoke it "
                    "there: `keystore key revoke`.",
                )
            return [self._revoke(store_id, api_key, reason) for store_id, api_key in owners]

    def _revoke(self, store_id: str, api_key: str, reason: str | None) -> Revoked:
        where = {"store_id": store_id, "api_key": api_key}
        is_new = False
        if not self.rows("revocation", **where):
            (number,) = self.row("next_revocation", store_id=store_id)
            # (none, if somebody else has revoked it while we waited for the number)
            is_new = bool(self.rows("add_revocation", **where, revocation_id=number, reason=reason))
            if is_new:
                payload = f"revocation {number}"
                self.rows("notify", channel=channel_of(store_id), payload=payload)
        number, uuid, reason, revoked_at = self.row("revocation", **where)
        return Revoked(store_id, number, uuid, reason, revoked_at, is_new)
