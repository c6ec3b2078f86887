"""Commands about OAuth clients: an id and a secret in place of a token."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from keystore.cli.common import show, show_pairs, show_table, store_options
from keystore.cli.keys import replica_hint

if TYPE_CHECKING:
    from keystore.admin.clients import IssuedClient


@click.group()
def client() -> None:
    """OAuth clients: an id and a secret in place of a token.

    A client sends both by HTTP Basic. It has its account's plan and rate, and no quotas.
    """


@client.command("add")
@click.argument("account_email", metavar="ACCOUNT")
@click.option(
    "--id",
    "client_id",
    metavar="CLIENT_ID",
    help="Letters, digits, '.', '_' and '-'; it never changes. Default: a new UUID.",
)
@store_options
def client_add(db_path: Path, account_email: str, client_id: str | None) -> None:
    """Add a client to ACCOUNT and print its secret, once: the store keeps only a hash.

    \b
    Example:
      keystore client add ada@example.org --id billing
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        issued = store.add_oauth_client(account_email, client_id=client_id)
    _show_issued(issued)


@client.command("list")
@click.option("--account", "account_email", metavar="EMAIL", help="Only this account's clients.")
@store_options
def client_list(db_path: Path, account_email: str | None) -> None:
    """List the clients, oldest first.

    \b
    Example:
      keystore client list --account ada@example.org
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        rows = store.oauth_clients(account=account_email)
    columns = ("client_id", "account", "is_active", "created_at", "updated_at")
    show_table(rows, columns, empty="No clients; `keystore client add ACCOUNT` adds one.")


@client.command("rotate")
@click.argument("client_id")
@store_options
def client_rotate(db_path: Path, client_id: str) -> None:
    """Give CLIENT_ID a new secret and print it, once. The old one stops at once.

    There is no overlap: where both are to work for a while, add a second client.

    \b
    Example:
      keystore client rotate billing
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        issued = store.rotate_oauth_client(client_id)
    _show_issued(issued)


@client.command("set")
@click.argument("client_id")
@click.option("--active/--inactive", required=True, help="Whether it may pass.")
@store_options
def client_set(db_path: Path, client_id: str, active: bool) -> None:
    """Let CLIENT_ID pass, or not.

    \b
    Example:
      keystore client set billing --inactive
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        changed = store.change_oauth_client(client_id, is_active=active)
        hint = replica_hint(store)
    state = "active" if changed.is_active else "not active"
    show(changed, f"Client {changed.client_id} of {changed.account} is {state}.{hint}")


@client.command("remove")
@click.argument("client_id")
@store_options
def client_remove(db_path: Path, client_id: str) -> None:
    """Remove CLIENT_ID. Its usage stays.

    \b
    Example:
      keystore client remove billing
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        removed = store.remove_oauth_client(client_id)
        hint = replica_hint(store)
    show(removed, f"Removed client {removed.client_id} of {removed.account}.{hint}")


def _show_issued(issued: "IssuedClient") -> None:
    show_pairs(
        issued,
        [
            ("client", issued.client.client_id),
            ("account", issued.client.account),
            ("secret", issued.secret),
        ],
    )
    click.echo("Keep the secret now: it is not stored and cannot be shown again.", err=True)


COMMANDS: tuple[click.Command, ...] = (client,)
