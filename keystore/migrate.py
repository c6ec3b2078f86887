"""Makes new store files, and (from schema version 2 on) brings older ones up to date.

A store is built beside its final place and moved there whole, so that a kill at any point leaves
either no file or a complete one.
"""

import os
import uuid
from pathlib import Path

import uuid_utils.compat

from keystore import db, sql, tokens
from keystore.errors import InvalidInputError, StoreExistsError, StoreNotFoundError


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


def draft_replica(path: Path | str, *, origin_id: str, token_prefix: str) -> Path:
    """Build an empty replica of ``origin_id`` beside ``path`` and return where.

    The caller fills it, then calls :func:`publish`; or removes it with :func:`db.remove_files`.
    """
    draft = draft_path(Path(path))
    try:
        _build(draft, role="replica", origin_id=origin_id, token_prefix=token_prefix)
    except BaseException:
        db.remove_files(draft)
        raise
    return draft


def draft_path(path: Path) -> Path:
    """Name a file beside ``path``; refuse when ``path`` is taken or has no folder."""
    if path.exists():
        raise StoreExistsError(
            f"{path}: already exists.", hint="Choose another path; nothing is ever overwritten."
        )
    if not path.parent.is_dir():
        raise StoreNotFoundError(f"{path.parent}: no such folder.", hint="Make it first.")
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.draft")


def publish(draft: Path, path: Path) -> None:
    """Move a finished, closed store file to its place; never over another file."""
    try:
        os.link(draft, path)  # unlike rename, link fails where something has appeared meanwhile
    except FileExistsError:
        raise StoreExistsError(f"{path}: already exists.", hint="Choose another path.") from None
    except OSError:
        draft.rename(path)  # a file system without hard links
    else:
        draft.unlink()


def _build(path: Path, *, role: str, origin_id: str | None, token_prefix: str) -> None:
    store_id = str(uuid_utils.compat.uuid7())
    path.touch(mode=0o600, exist_ok=False)
    conn = db.connect(path)
    try:
        db.apply_pragmas(conn)
        conn.execute("PRAGMA journal_mode = WAL")
        conn.executescript(sql.read("schema"))
        conn.executescript(sql.read("triggers"))
        if role == "replica":
            conn.executescript(sql.read("replica"))
        conn.execute(
            sql.named("store")["insert_store_info"],
            {
                "store_id": store_id,
                "role": role,
                "incarnation": str(uuid.uuid4()),
                "origin_id": origin_id or store_id,
                "token_prefix": token_prefix,
            },
        )
        conn.execute(f"PRAGMA user_version = {db.SCHEMA_VERSION}")
        conn.execute(f"PRAGMA application_id = {db.APPLICATION_ID}")
    finally:
        conn.close()
