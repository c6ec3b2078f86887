"""Commands that take care of a store's file: migrate, backup, restore, doctor."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keystore import backup as backups
from keystore import clock, migrate
from keystore.cli.common import json_option, show, store_options
from keystore.db import SCHEMA_VERSION, open_store, versions

if TYPE_CHECKING:
    from keystore.doctor import Finding


@click.command("migrate", short_help="Bring a store to this program's schema version.")
@store_options
def migrate_command(db_path: Path) -> None:
    """Bring an older store to this program's schema version, with a backup first.

    \b
    Example:
      keystore migrate --db keystore.db
    """
    with open_store(db_path, any_version=True) as file:
        with file.errors():
            _, before = versions(file.conn)
        if before == SCHEMA_VERSION:
            show({"before": before, "after": before, "backup": None}, f"{db_path} is up to date.")
            return
        copy = _beside(db_path, f"v{before}")
        backups.backup(file, copy)
    _, after = migrate.upgrade(db_path)
    show(
        {"before": before, "after": after, "backup": str(copy)},
        f"Migrated {db_path} from version {before} to {after}; the backup is {copy}.",
    )


@click.command(short_help="Write a complete copy of the store.")
@click.argument("path", type=click.Path(path_type=Path))
@store_options
def backup(db_path: Path, path: Path) -> None:
    """Write a complete copy of the store to PATH, safely while others write.

    \b
    Example:
      keystore backup /backups/keystore-2027-01-01.db
    """
    with open_store(db_path) as file:
        backups.backup(file, path)
    show({"backup": str(path)}, f"Backed {db_path} up to {path}.")


@click.command(short_help="Make a store from a backup.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def restore(source: Path, path: Path) -> None:
    """Make a store at PATH from the backup SOURCE; nothing may be at PATH.

    The store gets a new incarnation: a target that has seen later changes will refuse it.

    \b
    Example:
      keystore restore /backups/keystore-2027-01-01.db keystore.db
    """
    info = backups.restore(source, path)
    show(info, f"Restored {info.role} store {info.store_id} to {path}.")


@click.command(short_help="Look for what is wrong with the store, and mend it.")
@click.option("--fix", is_flag=True, help="Back up, then mend what can be mended without a guess.")
@store_options
def doctor(db_path: Path, fix: bool) -> None:
    """Look for what is wrong with the store; exits with 1 if something serious is left.

    \b
    Example:
      keystore doctor --fix
    """
    from keystore.doctor import examine
    from keystore.repair import mend

    done: list[str] = []
    with open_store(db_path) as file:
        found = examine(file)
        if fix and any(map(_is_wrong, found)):
            copy = _beside(db_path, "before-fix")
            backups.backup(file, copy)
            done = [f"Backed up to {copy}.", *mend(file)]
            found = examine(file)
    lines = done + [f"{item.severity} {item.id}: {item.what}\n  {item.hint}" for item in found]
    report = {"done": done, "findings": found} if fix else found
    if not any(map(_is_wrong, found)):
        lines.append(f"{db_path}: nothing is wrong.")
    show(report, "\n".join(lines))
    if any(item.severity == "error" for item in found):
        click.get_current_context().exit(1)


def _is_wrong(finding: "Finding") -> bool:
    return finding.severity != "info"


def _beside(path: Path, what: str) -> Path:
    stamp = clock.utc_text().replace("-", "").replace(":", "").replace(" ", "T")
    return path.with_name(f"{path.name}.{what}-{stamp}-{uuid.uuid4().hex[:4]}")


COMMANDS: tuple[click.Command, ...] = (migrate_command, backup, restore, doctor)
