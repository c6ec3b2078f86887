"""Commands of the admin side: init, plan, account, service, changes, status."""

from dataclasses import asdict
from pathlib import Path

import click

from keystore import tokens
from keystore.cli.common import (
    json_option,
    plural,
    show,
    show_pairs,
    show_table,
    store_options,
)
from keystore.cli.offline import duration, words
from keystore.edge.guard import CLOCK_TOLERANCE_SECONDS, ClockGuard


@click.command(short_help="Make a new origin store.")
@click.argument(
    "path",
    type=click.Path(path_type=Path),
    envvar="KEYSTORE_DB",
    default=Path("keystore.db"),
)
@click.option(
    "--token-prefix",
    default=tokens.DEFAULT_PREFIX,
    show_default=True,
    metavar="TEXT",
    help="What this store's tokens start with.",
)
@json_option
def init(path: Path, token_prefix: str) -> None:
    """Make a new, empty origin store at PATH (default: keystore.db, or KEYSTORE_DB).

    \b
    Example:
      keystore init acme.db --token-prefix acme-live-
    """
    from keystore.store import Store

    with Store.create(path, token_prefix=token_prefix) as store:
        status = store.status()
    show(status, f"Made origin store {status.info.store_id} at {path}.")


@click.group()
def account() -> None:
    """Accounts: who keys belong to."""


@account.command("add")
@click.argument("email")
@click.option("--plan", "plan_name", required=True, metavar="NAME", help="The account's plan.")
@store_options
def account_add(db_path: Path, email: str, plan_name: str) -> None:
    """Add an account.

    \b
    Example:
      keystore account add ada@example.org --plan free
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        added = store.add_account(email, plan=plan_name)
    show(added, f"Added account {added.email} on plan {added.plan}.")


@account.command("set")
@click.argument("email")
@click.option("--rename", metavar="EMAIL", help="A new address.")
@click.option("--plan", "plan_name", metavar="NAME", help="Move it to this plan.")
@click.option("--active/--inactive", default=None, help="Whether its keys pass.")
@store_options
def account_set(
    db_path: Path,
    email: str,
    rename: str | None,
    plan_name: str | None,
    active: bool | None,
) -> None:
    """Change what is given of an account.

    \b
    Example:
      keystore account set ada@example.org --plan pro
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        changed = store.change_account(email, rename=rename, plan=plan_name, is_active=active)
    state = "active" if changed.is_active else "not active"
    show(changed, f"Account {changed.email} is on plan {changed.plan} and {state}.")


@account.command("remove")
@click.argument("email")
@click.option("--with-keys", is_flag=True, help="Delete its keys and OAuth clients as well.")
@store_options
def account_remove(db_path: Path, email: str, with_keys: bool) -> None:
    """Remove an account; the usage and the timelines of its keys stay.

    \b
    Example:
      keystore account remove ada@example.org --with-keys
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        removed = store.remove_account(email, with_keys=with_keys)
    show(removed, f"Removed account {removed.email} and {plural(removed.keys, 'key')}.")


@account.command("list")
@store_options
def account_list(db_path: Path) -> None:
    """List the accounts.

    \b
    Example:
      keystore account list
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        rows = store.accounts()
    columns = ("email", "plan", "is_active", "keys", "created_at")
    show_table(rows, columns, empty="No accounts yet; `keystore account add EMAIL` adds one.")


@click.group()
def service() -> None:
    """Services that keys may be used for."""


@service.command("add")
@click.argument("name")
@store_options
def service_add(db_path: Path, name: str) -> None:
    """Add a service.

    \b
    Example:
      keystore service add translation
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        added = store.add_service(name)
    show(added, f"Added service {added.name}.")


@service.command("set")
@click.argument("name")
@click.option("--active/--inactive", required=True, help="Whether it may be used.")
@store_options
def service_set(db_path: Path, name: str, active: bool) -> None:
    """Switch a service on or off.

    \b
    Example:
      keystore service set translation --inactive
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        changed = store.change_service(name, is_active=active)
    show(changed, f"Service {changed.name} is {'on' if changed.is_active else 'off'}.")


@service.command("list")
@store_options
def service_list(db_path: Path) -> None:
    """List the services.

    \b
    Example:
      keystore service list
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        rows = store.services()
    columns = ("name", "is_active", "keys", "created_at")
    show_table(rows, columns, empty="No services yet; `keystore service add NAME` adds one.")


@click.command()
@click.option(
    "--since",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    metavar="ID",
    help="Only changes after this one.",
)
@click.option(
    "--limit", type=click.IntRange(0, 2**63 - 1), metavar="N", help="At most so many. Default: all."
)
@store_options
def changes(db_path: Path, since: int, limit: int | None) -> None:
    """Show the ChangeLog, oldest first.

    \b
    Example:
      keystore changes --since 100
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        rows = store.changes(after=since, limit=-1 if limit is None else limit)
    columns = ("change_id", "table_name", "record_id", "operation", "occurred_at")
    show_table(rows, columns, empty="No changes.")


@click.command(short_help="Show the store, its targets, how long it may go on.")
@store_options
def status(db_path: Path) -> None:
    """Show who this store is, what it holds, and where it stands with its targets.

    \b
    Example:
      keystore status --db edge.db
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        found = store.status()
    info, guard = found.info, ClockGuard()
    guard.look(info)
    now, behind = guard.now()
    fresh = guard.freshness(now, behind)
    pairs: list[tuple[str, object]] = [
        ("store", f"{info.store_id} ({info.role})"),
        ("file", f"{found.path} (schema version {found.schema_version})"),
    ]
    pairs += [(name, count) for name, count in found.records.items()]
    if info.is_origin:
        pairs.append(("last change", found.last_change))
    else:
        age = f"{duration(fresh.age_seconds)} old" if fresh else "never synced"
        pairs.append(("origin", info.origin_id))
        pairs.append(("as of", f"change {info.as_of_change}, {age}"))
        if fresh:
            pairs.append(("offline", words(fresh.limit, now)))
        if behind > CLOCK_TOLERANCE_SECONDS:
            said = f"{duration(behind)} behind what was known before; keys expire by the latter"
            pairs.append(("clock", said))
    pairs.append(("usage", f"{plural(found.usage_total, 'unit')} recorded"))
    if found.received_rows:
        rows = plural(found.received_rows, "row")
        pairs.append(("received", f"{plural(found.received_usage, 'unit')} in files ({rows})"))
    for target in found.targets:
        parts = [f"last sync {target.synced_at or 'never'}"]
        if info.is_origin and not target.usage_only:
            lacks = found.last_change - target.acknowledged_change
            parts.append(f"{plural(lacks, 'change')} behind" if lacks else "all changes there")
        waiting = found.last_usage - target.acknowledged_usage
        if target.acknowledged_usage or target.usage_only:
            parts.append(
                f"{plural(waiting, 'usage row')} waiting" if waiting else "all usage there"
            )
        pairs.append(("target", f"{target.url}: {', '.join(parts)}"))
    show_pairs(asdict(found) | {"freshness": fresh and fresh._asdict()}, pairs)


COMMANDS: tuple[click.Command, ...] = (init, account, service, changes, status)
