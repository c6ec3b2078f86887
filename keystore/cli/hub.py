"""Commands of a hub's operator."""

import click

from keystore.cli.common import json_option, show
from keystore.sync import targets


@click.group()
def hub() -> None:
    """The central PostgreSQL."""


@hub.command("init")
@click.argument("url")
@json_option
def hub_init(url: str) -> None:
    """Create the hub's schema in the database at URL. Doing it twice changes nothing.

    \b
    Example:
      keystore hub init postgresql://hub.example.org/keystore
    """
    with targets.hub_admin(url) as admin:
        is_new, hub_id = admin.init(), admin.target_id
    text = f"Made hub {hub_id}." if is_new else f"Hub {hub_id} was there already."
    show({"hub_id": hub_id, "is_new": is_new}, text)


@hub.command("migrate")
@click.argument("url")
@json_option
def hub_migrate(url: str) -> None:
    """Bring an older hub to this program's schema version. Safe to repeat.

    \b
    Example:
      keystore hub migrate postgresql://hub.example.org/keystore
    """
    with targets.hub_admin(url) as admin:
        before, after = admin.migrate()
    text = f"Hub migrated from version {before} to {after}." if before < after else "Up to date."
    show({"before": before, "after": after}, text)


COMMANDS: tuple[click.Command, ...] = (hub,)
