"""Makes new store files, and brings older ones up to date.

A store is built beside its final place and moved there whole, so that a kill at any point leaves
either no file or a complete one.

Migrations are numbered (``sql/migrations/NNNN.sql``) and go forward only. All that are due run in
one transaction: a kill leaves the old version or the new one. Triggers are made anew afterwards,
because a table rebuild drops them.
"""

import uuid
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import uuid_utils.compat

from keystore import changelog, db, disk, sql, tokens
from keystore.errors import (
    DamagedStoreError,
    InvalidInputError,
    KeystoreError,
    StoreExistsError,
    StoreNotFoundError,
)
from keystore.tables import TRACKED

if TYPE_CHECKING:
    import sqlite3

_Q = sql.named("store")


def create_origin(path: Path | str, *, token_prefix: str = tokens.DEFAULT_PREFIX) -> db.StoreFile:
    """Make a new, empty origin store at ``path`` (mode 0600) and open it.

    Raises:
        StoreExistsError: something is at ``path`` already.
        StoreNotFoundError: the folder does not exist.
        InvalidInputError: the token prefix cannot start a token.
    """
    if not tokens.is_valid_prefix(token_prefix):
        raise InvalidInputError(
            f"token prefix {token_prefix!r} cannot be used.",
            hint="Use 2 to 32 letters, digits, '_', '.' or '-', ending in one of the last three.",
        )
    path = Path(path)
    draft = draft_path(path)
    try:
        _build(draft, role="origin", origin_id=None, token_prefix=token_prefix)
        publish(draft, path)
    finally:
        db.remove_files(draft)
    return db.open_store(path)


def build_replica(path: Path, *, origin_id: str, token_prefix: str) -> None:
    """Build an empty replica of ``origin_id`` at ``path``, without triggers.

    The caller fills it, calls :func:`add_triggers`, then :func:`publish`; or removes it with
    :func:`db.remove_files`.
    """
    _build(path, role="replica", origin_id=origin_id, token_prefix=token_prefix)


def take_identity(conn: "sqlite3.Connection") -> None:
    """Make a replica that was copied into place one of its own; it has no triggers yet."""
    conn.execute(
        _Q["take_identity"],
        {"store_id": str(uuid_utils.compat.uuid7()), "incarnation": str(uuid.uuid4())},
    )
    add_triggers(conn, is_replica=True)


def add_triggers(conn: "sqlite3.Connection", *, is_replica: bool) -> None:
    """Make all triggers of a store that has none."""
    _run(conn, sql.read("triggers"))
    if is_replica:
        _run(conn, sql.read("replica"))


def use_wal(conn: "sqlite3.Connection") -> None:
    """Switch a database to a WAL, where that is possible; the doctor warns where it is not.

    SQLite does not tell of a write that fails on the way, it keeps the mode that was; so once more.
    """
    for _ in range(2):
        if db.scalar(conn, "PRAGMA journal_mode = WAL") == "wal":
            return


def draft_path(path: Path) -> Path:
    """Name a file beside ``path``; refuse when ``path`` is taken or has no folder."""
    _refuse_taken(path)
    if not path.parent.is_dir():
        raise StoreNotFoundError(f"{path.parent}: no such folder.", hint="Make it first.")
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.draft")


def publish(draft: Path, path: Path) -> None:
    """Move a finished, closed file to its place, for good; never over another file.

    Raises:
        StoreExistsError: something is there.
        DiskFullError, KeystoreError: it could not be moved, or be made sure of.
    """
    _refuse_taken(path)
    if Path(f"{draft}-wal").exists():
        # Closing brings all into the one file that is moved. If the disk refuses that, SQLite keeps
        # the WAL, and no driver tells.
        raise KeystoreError(
            f"{path}: its last writes could not be brought to disk.",
            hint="Nothing was made; check the disk and its room, then run the same command again.",
        )
    with disk.errors(path.parent):
        try:
            disk.move_new(draft, path)
        except FileExistsError:
            raise StoreExistsError(
                f"{path}: already exists.", hint="Choose another path."
            ) from None
    try:
        # SQLite has brought the file to disk, not its name; who is told of a store may rely on it.
        disk.sync_folder(path.parent)
    except OSError as error:
        raise KeystoreError(
            f"{path}: it is made, but may be gone after a power cut: {error.strerror}.",
            hint="Check the disk.",
        ) from error


def upgrade(path: Path | str) -> tuple[int, int]:
    """Bring a store to the current schema version; return the version before and after.

    Safe to run in several processes at once: the first does it, the others find it done.

    Raises:
        StoreNotFoundError, NotAKeystoreError, SchemaVersionError: see ``open_store``.
        DamagedStoreError: the result would have new violations of foreign keys; nothing is changed.
    """
    with db.open_store(path, any_version=True) as file:
        conn = file.conn
        with file.errors():
            # Both act only outside a transaction. A rebuild renames the old table away, and what
            # refers to it must go on meaning the new one.
            conn.execute("PRAGMA foreign_keys = OFF")
            conn.execute("PRAGMA legacy_alter_table = ON")
            with file.write():
                _, before = db.versions(conn)
                if before < db.SCHEMA_VERSION:
                    _upgrade(file, before)
    return before, db.SCHEMA_VERSION


def _upgrade(file: db.StoreFile, before: int) -> None:
    conn = file.conn
    orphans = len(conn.execute("PRAGMA foreign_key_check").fetchall())
    _refuse_unknown_columns(file)
    strangers = _drop_triggers(conn)
    for version in range(before + 1, db.SCHEMA_VERSION + 1):
        _run(conn, sql.read(f"migrations/{version:04}"))
    is_origin = file.info().is_origin
    add_triggers(conn, is_replica=not is_origin)
    if is_origin:
        # Whether the old triggers were whole cannot be told any more; so the next push carries all.
        changelog.distrust(conn)
    for key, text in strangers.items():
        if key not in schema_of(conn):
            conn.execute(text)
    if len(conn.execute("PRAGMA foreign_key_check").fetchall()) > orphans:
        raise DamagedStoreError(
            f"{file.path}: rows would be orphaned by the migration.",
            hint="Nothing was changed; run `keystore doctor` with the version that made the file.",
        )
    conn.execute(f"PRAGMA user_version = {db.SCHEMA_VERSION}")


def _refuse_unknown_columns(file: db.StoreFile) -> None:
    """Refuse a column that somebody added: a rebuild of its table would drop what it holds."""
    for table in TRACKED:
        known = {column.name for column in table.columns}
        found = {row[1] for row in file.conn.execute(f"PRAGMA table_info({table.name})")}
        if found - known:
            raise DamagedStoreError(
                f"{file.path}: {table.name} has columns that are not keystore's: "
                f"{', '.join(sorted(found - known))}.",
                hint="Nothing was changed; move them to a table of your own first.",
            )


def _drop_triggers(conn: "sqlite3.Connection") -> dict[tuple[str, str], str]:
    """Drop our triggers; return what is not ours and might vanish with a table."""
    strangers = {}
    for (kind, name), text in schema_of(conn).items():
        if kind == "trigger" and name.startswith("trg_"):
            conn.execute(f'DROP TRIGGER "{name}"')
        elif kind in {"trigger", "index"} and not name.startswith("idx_"):
            strangers[kind, name] = text
    return strangers


def _run(conn: "sqlite3.Connection", script: str) -> None:
    for statement in sql.statements(script):
        conn.execute(statement)


def verify_tracking(file: db.StoreFile) -> None:
    """Make sure that no trigger is missing or altered, so that the ChangeLog tells everything.

    Raises:
        DamagedStoreError: names the first trigger that is not as it was made.
    """
    have = schema_of(file.conn)
    for key, text in expected_schema(is_replica=not file.info().is_origin).items():
        if key[0] == "trigger" and have.get(key) != text:
            raise DamagedStoreError(
                f"{file.path}: the trigger {key[1]} is missing or altered, so changes may be lost.",
                hint="`keystore doctor --fix` makes it anew, and the next push carries all.",
            )


def schema_of(conn: "sqlite3.Connection") -> dict[tuple[str, str], str]:
    """Return the SQL of each table, index and trigger, by kind and name."""
    return {(kind, name): text for kind, name, text in conn.execute(_Q["schema"])}


@cache
def expected_schema(*, is_replica: bool) -> dict[tuple[str, str], str]:
    """Return what :func:`schema_of` a sound store returns."""
    conn = db.connect_memory()
    try:
        for name in ("schema", "triggers", *(["replica"] if is_replica else [])):
            conn.executescript(sql.read(name))
        return schema_of(conn)
    finally:
        conn.close()


def _refuse_taken(path: Path) -> None:
    # SQLite would replay a left-over journal into whatever file appears beside it.
    for suffix in ("", "-wal", "-shm", "-journal"):
        taken = Path(f"{path}{suffix}")
        if taken.exists() or taken.is_symlink():
            raise StoreExistsError(
                f"{taken}: already exists.",
                hint="Choose another path, or move it away; nothing is ever overwritten.",
            )


def _build(path: Path, *, role: str, origin_id: str | None, token_prefix: str) -> None:
    store_id = str(uuid_utils.compat.uuid7())
    with disk.errors(path.parent):
        path.touch(mode=0o600, exist_ok=False)
    with db.StoreFile(path, db.connect(path)) as file, file.errors():
        conn = file.conn
        db.apply_pragmas(conn)
        use_wal(conn)
        conn.executescript(sql.read("schema"))
        if role == "origin":
            add_triggers(conn, is_replica=False)
        conn.execute(
            _Q["insert_store_info"],
            {
                "store_id": store_id,
                "role": role,
                "incarnation": str(uuid.uuid4()),
                "origin_id": origin_id or store_id,
                "token_prefix": token_prefix,
            },
        )
        if role == "origin":
            conn.executescript(sql.read("statuses"))
        conn.execute(f"PRAGMA user_version = {db.SCHEMA_VERSION}")
        conn.execute(f"PRAGMA application_id = {db.APPLICATION_ID}")
