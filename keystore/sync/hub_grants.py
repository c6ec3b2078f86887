"""Gives roles of a hub the least that they need, and takes it away again.

Two things bound a role. GRANT says which tables and columns it may touch; the row-level security of
``hub_schema.sql`` says which rows: those of the stores that ``keystore.grants`` lists for it. A
replica's own id is not listed beforehand: the first role that calls with it owns it from then on.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import errors
from psycopg.sql import Identifier, Literal

from keystore import sql
from keystore.errors import InvalidInputError, NotFoundError, TargetError
from keystore.sync.hub_connection import HubConnection, first_line, hub_errors
from keystore.tables import TRACKED

_LONGEST_NAME = 63  # bytes; PostgreSQL cuts what is longer, and then it is another name
_NO_ROLES = {"public", "none"}  # even in quotes PostgreSQL takes them for keywords
_Q = sql.named("hub_grants")


def script(role: str, *, origin_id: str | None = None, replica_of: str | None = None) -> str:
    """Return the SQL that lets ``role`` push as an origin, or be a replica of one.

    It is to run in one transaction, by the hub's owner; running it again changes nothing. A role
    that does not exist is made, with LOGIN and without a password.

    Raises:
        InvalidInputError: no role can have that name; neither or both of the stores are given.
    """
    _refuse_name(role)
    store_id = origin_id or replica_of
    if store_id is None or (origin_id and replica_of):
        raise InvalidInputError(
            "a role is made an origin's or a replica's.", hint="Name one store."
        )
    parts = (
        _do("make_role", role),
        _fill("grant_push" if origin_id else "grant_pull", role, store_id),
    )
    return "".join(f"{part};\n" for part in parts)


def grant(
    hub: HubConnection, role: str, *, origin_id: str | None = None, replica_of: str | None = None
) -> bool:
    """Run :func:`script` at a hub; return whether the role had to be made.

    Raises:
        InvalidInputError: as :func:`script`; or nothing binds this role: a superuser, say.
        TargetError: whoever is connected may not give rights, or make roles.
    """
    text = script(role, origin_id=origin_id, replica_of=replica_of)
    _ = hub.target_id
    with _owner_only(), hub.conn.transaction():
        is_new = not _has_role(hub, role)
        try:
            hub.conn.execute(text.encode())
        except errors.RaiseException as error:
            raise InvalidInputError(
                f"row-level security does not bind the role {role}.",
                hint="Use a role that is no superuser, no member of the hub's owner, and has no "
                "BYPASSRLS.",
            ) from error
    return is_new


def grant_again(hub: HubConnection) -> None:
    """Give each role that has rights at a hub those that it lacks there since a migration.

    To be called in the migration's transaction, by the hub's owner.
    """
    for role, access, store_id in hub.conn.execute(_Q["granted_roles"]).fetchall():
        hub.conn.execute(_fill(f"grant_{access}", role, store_id).encode())


def ungrant(hub: HubConnection, role: str) -> None:
    """Take every right at this hub from a role; the role itself stays.

    The ids of its replicas are free again: the next role that calls with one owns it.

    Raises:
        NotFoundError: there is no such role, and nothing was granted to one.
        TargetError: whoever is connected may not take rights.
    """
    _refuse_name(role)
    _ = hub.target_id
    with _owner_only(), hub.conn.transaction():
        had_rows = hub.conn.execute(_Q["forget_grants"], (role,)).fetchall()
        if _has_role(hub, role):
            hub.conn.execute(_do("revoke_rights", role).encode())
        elif not had_rows:
            raise NotFoundError(f"there is no role {role}.", hint="Check its spelling.")


@contextmanager
def _owner_only() -> Iterator[None]:
    with hub_errors():
        try:
            yield
        except errors.InsufficientPrivilege as error:
            raise TargetError(
                f"the hub refused: {first_line(error)}.",
                hint="Run it as the hub's owner, with the right to make roles; or give what "
                "`keystore hub grant --print` prints to who has it.",
            ) from error


def _has_role(hub: HubConnection, role: str) -> bool:
    (found,) = hub.conn.execute(_Q["has_role"], (role,)).fetchone() or (False,)
    return bool(found)


def _refuse_name(role: str) -> None:
    if (
        not 0 < len(role.encode()) <= _LONGEST_NAME
        or "\0" in role
        or role in _NO_ROLES
        or role.startswith("pg_")
    ):
        raise InvalidInputError(
            f"{role!r} cannot be the name of a role.",
            hint=f"Use 1 to {_LONGEST_NAME} bytes; public, none and pg_… are PostgreSQL's own.",
        )


def _do(name: str, role: str) -> str:
    return _Q["run_body"].format(body=_quoted(_fill(name, role)))


def _fill(name: str, role: str, store_id: str | None = None) -> str:
    return _Q[name].format(
        role=Identifier(role).as_string(),
        name=_quoted(role),
        store_id=store_id and _quoted(store_id),
        tables=", ".join(f"keystore.{table.hub_name}" for table in TRACKED),
    )


def _quoted(text: str) -> str:
    return Literal(text).as_string()
