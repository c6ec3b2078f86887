"""Commands about the status of keys: revoke, suspend, resume, and the timeline."""

from pathlib import Path

import click

from keystore.cli.common import argument_or_stdin, show, show_table, store_options
from keystore.cli.keys import key, key_argument, replica_hint

_reason_option = click.option("--reason", metavar="TEXT", help="Why; kept in the timeline.")


@key.command("history")
@key_argument
@store_options
def key_history(db_path: Path, key_name: str) -> None:
    """Show the status timeline of a key, newest first; of a deleted key by its UUID.

    \b
    Example:
      keystore key history 01890a5d-ac96-774b-bcce-b302099a8057
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        rows = store.history(argument_or_stdin(key_name))
    show_table(rows, ("occurred_at", "status", "old_status", "reason"), empty="No events.")


@key.command("revoke")
@key_argument
@_reason_option
@store_options
def key_revoke(db_path: Path, key_name: str, reason: str | None) -> None:
    """Stop KEY for good.

    \b
    Example:
      keystore key revoke 01890a5d-ac96-774b-bcce-b302099a8057 --reason leaked
    """
    _change(db_path, key_name, "Revoked", "revoked", reason)


@key.command("suspend")
@key_argument
@_reason_option
@store_options
def key_suspend(db_path: Path, key_name: str, reason: str | None) -> None:
    """Stop KEY for a while.

    \b
    Example:
      keystore key suspend 01890a5d-ac96-774b-bcce-b302099a8057 --reason "unpaid bill"
    """
    _change(db_path, key_name, "Suspended", "suspended", reason)


@key.command("resume")
@key_argument
@_reason_option
@store_options
def key_resume(db_path: Path, key_name: str, reason: str | None) -> None:
    """Let KEY pass again, whatever stopped it.

    \b
    Example:
      keystore key resume 01890a5d-ac96-774b-bcce-b302099a8057
    """
    _change(db_path, key_name, "Resumed", "assigned", reason)


@key.command("set-status")
@key_argument
@click.argument("status_name", metavar="STATUS")
@_reason_option
@store_options
def key_set_status(db_path: Path, key_name: str, status_name: str, reason: str | None) -> None:
    """Give KEY any status that `keystore key statuses` lists.

    \b
    Example:
      keystore key set-status 01890a5d-ac96-774b-bcce-b302099a8057 unassigned
    """
    _change(db_path, key_name, "Changed", status_name, reason)


@key.command("statuses")
@store_options
def key_statuses(db_path: Path) -> None:
    """List the statuses that keys may have. INSERT INTO APIKeyStatuses adds one.

    \b
    Example:
      keystore key statuses
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        rows = store.statuses()
    show_table(rows, ("name", "allows_access", "is_active", "keys", "description"), empty="None.")


def _change(db_path: Path, key_name: str, verb: str, status: str, reason: str | None) -> None:
    from keystore.store import Store

    with Store.open(db_path) as store:
        name = argument_or_stdin(key_name)
        before = store.key(name)
        changed = store.set_key_status(name, status, reason=reason)
        hint = replica_hint(store)
    if before.status == changed.status:
        verb, hint = "Nothing to do:", f" is {status} already."
    else:
        hint = f".{hint}"
    show(changed, f"{verb} key {changed.api_key} of {changed.account}{hint}")


COMMANDS: tuple[click.Command, ...] = ()  # they are all below `key`
