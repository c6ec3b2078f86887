"""Commands that take care of a store's file: migrate, backup, restore, doctor."""

from pathlib import Path

import click

from keystore import backup as backups
from keystore import clock, migrate
from keystore.cli.common import json_option, show, store_options
from keystore.db import SCHEMA_VERSION, open_store, versions


@click.command("migrate")
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
        stamp = clock.utc_text().replace("-", "").replace(":", "").replace(" ", "T")
        copy = db_path.with_name(f"{db_path.name}.v{before}-{stamp}")
        backups.backup(file, copy)
    _, after = migrate.upgrade(db_path)
    show(
        {"before": before, "after": after, "backup": str(copy)},
        f"Migrated {db_path} from version {before} to {after}; the backup is {copy}.",
    )


@click.command()
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


@click.command()
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


@click.command()
@store_options
def doctor(db_path: Path) -> None:
    """Look for what is wrong with the store. Changes nothing; exits with 1 if it is serious.

    \b
    Example:
      keystore doctor --json
    """
    from keystore.doctor import examine

    with open_store(db_path) as file:
        found = examine(file)
    lines = [f"{item.severity} {item.id}: {item.what}\n  {item.hint}" for item in found]
    show(found, "\n".join(lines) or f"{db_path}: nothing is wrong.")
    if any(item.severity == "error" for item in found):
        click.get_current_context().exit(1)


COMMANDS: tuple[click.Command, ...] = (migrate_command, backup, restore, doctor)
