"""Backup and restore, through SQLite's own backup API: safe while others write.

A file that is copied while it is open can be torn. And a store that is put back to an earlier state
must not pass for the one that went on: a restore gives it a new incarnation.
"""

from pathlib import Path

from keystore import changelog, db, disk, sql
from keystore.errors import DamagedStoreError
from keystore.migrate import draft_path, publish

_Q = sql.named("store")


def backup(file: db.StoreFile, path: Path | str) -> None:
    """Write a complete copy of an open store to a new file (mode 0600), whole or not at all.

    Raises:
        StoreExistsError: something is at ``path``.
        KeystoreError: reading or writing failed.
    """
    _copy(file, Path(path), new_incarnation=False)


def restore(source: Path | str, path: Path | str) -> db.StoreInfo:
    """Make a store at ``path`` from a backup; the two share all but the incarnation.

    Raises:
        StoreExistsError: something is at ``path``; move it away first.
        NotAKeystoreError, SchemaVersionError: the backup is none, or of another version.
        DamagedStoreError: the backup is damaged; nothing was made.
    """
    with db.open_store(source) as file:
        with file.read() as conn:
            said = db.scalar(conn, _Q["quick_check"])
        if said != "ok":
            raise DamagedStoreError(f"{source}: {said}.", hint="Use another backup.")
        _copy(file, Path(path), new_incarnation=True)
    with db.open_store(path) as restored:
        return restored.info()


def _copy(file: db.StoreFile, path: Path, *, new_incarnation: bool) -> None:
    draft = draft_path(path)
    try:
        with disk.errors(path.parent):
            draft.touch(mode=0o600, exist_ok=False)
        target = db.connect(draft)
        try:
            with file.errors():
                file.conn.backup(target)
                if new_incarnation:
                    db.renew_incarnation(target)
                    if not file.info().is_origin:
                        changelog.skip_usage_ids(target)
        finally:
            target.close()
        publish(draft, path)
    finally:
        db.remove_files(draft)
