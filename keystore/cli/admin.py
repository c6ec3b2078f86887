"""Commands of the admin side: init, plan, account, key, changes, status."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from keystore import clock, tokens
from keystore.cli.common import (
    argument_or_stdin,
    json_option,
    plural,
    show,
    show_pairs,
    show_table,
    store_options,
)

_DURATION = re.compile(r"(\d{1,6})([wdhm])")
_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes"}


def _expiry(text: str) -> datetime:
    """Read a duration from now, or an ISO 8601 time (UTC if it names no zone)."""
    try:
        delta = _duration(text)
        return datetime.fromisoformat(text) if delta is None else datetime.now(UTC) + delta
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither like 2w, 90d, 12h or 30m nor an ISO 8601 time"
        ) from None


def _seconds(text: str) -> int:
    """Read a duration, or a plain number of seconds."""
    delta = _duration(text)
    if delta is not None:
        return int(delta.total_seconds())
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither like 2w, 1d, 12h or 30m nor a number of seconds"
        ) from None


def _duration(text: str) -> timedelta | None:
    match = _DURATION.fullmatch(text)
    return timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else None


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
def plan() -> None:
    """Plans: what an account's keys may do."""


@plan.command("add")
@click.argument("name")
@click.option(
    "--max-staleness",
    type=_seconds,
    metavar="AGE",
    help="How old a replica's data may be for this plan's keys: 1d, 12h, or seconds; its origin "
    "must sync at least this often. Default: any age.",
)
@click.option(
    "--when-stale",
    type=click.Choice(["deny", "allow"]),
    default="deny",
    show_default=True,
    help="What to answer past that age; deny answers 'not now' (HTTP 503).",
)
@store_options
def plan_add(db_path: Path, name: str, max_staleness: int | None, when_stale: str) -> None:
    """Add a plan.

    \b
    Example:
      keystore plan add pro --max-staleness 1d
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        added = store.add_plan(name, max_staleness_seconds=max_staleness, stale_action=when_stale)
    show(added, f"Added plan {added.name}.")


@plan.command("list")
@store_options
def plan_list(db_path: Path) -> None:
    """List the plans.

    \b
    Example:
      keystore plan list --json
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        rows = store.plans()
    columns = ("name", "max_staleness_seconds", "stale_action", "accounts", "created_at")
    show_table(rows, columns, empty="No plans yet; `keystore plan add NAME` adds one.")


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
def key() -> None:
    """Keys: issue, list, revoke."""


@key.command("issue")
@click.argument("account_email", metavar="ACCOUNT")
@click.option("--label", metavar="TEXT", help="What the key is for, in your words.")
@click.option(
    "--expires",
    type=_expiry,
    metavar="WHEN",
    help="2w, 90d, 12h or 30m from now, or an ISO 8601 time (UTC). Default: never.",
)
@store_options
def key_issue(
    db_path: Path, account_email: str, label: str | None, expires: datetime | None
) -> None:
    """Issue a key to ACCOUNT and print its token, once: the store keeps only a hash.

    \b
    Example:
      keystore key issue ada@example.org --label laptop --expires 90d
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        issued = store.issue_key(account_email, label=label, expires_at=expires)
    show_pairs(
        issued,
        [
            ("key", issued.key.api_key),
            ("account", issued.key.account),
            ("expires", issued.key.expires_at or "never"),
            ("token", issued.token),
        ],
    )
    click.echo("Keep the token now: it is not stored and cannot be shown again.", err=True)


@key.command("list")
@click.option("--account", "account_email", metavar="EMAIL", help="Only this account's keys.")
@store_options
def key_list(db_path: Path, account_email: str | None) -> None:
    """List the keys, oldest first.

    \b
    Example:
      keystore key list --account ada@example.org
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        rows = store.keys(account=account_email)
    columns = ("api_key", "account", "state", "expires_at", "label")
    show_table(rows, columns, empty="No keys yet; `keystore key issue ACCOUNT` issues one.")


@key.command("revoke")
@click.argument("key_name", metavar="KEY")
@store_options
def key_revoke(db_path: Path, key_name: str) -> None:
    """Revoke KEY, named by its UUID or by its token ("-" reads that from standard input).

    \b
    Example:
      keystore key revoke 01890a5d-ac96-774b-bcce-b302099a8057
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        revoked = store.revoke_key(argument_or_stdin(key_name))
        targets = store.status().targets
    text = f"Revoked key {revoked.api_key} of {revoked.account}."
    if targets:
        text += " Replicas learn of it with the next `keystore sync`."
    show(revoked, text)


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


@click.command()
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
    info = found.info
    pairs: list[tuple[str, object]] = [
        ("store", f"{info.store_id} ({info.role})"),
        ("file", f"{found.path} (schema version {found.schema_version})"),
    ]
    pairs += [(name, count) for name, count in found.records.items()]
    if info.is_origin:
        pairs.append(("last change", found.last_change))
    else:
        age = f"{_age(info.as_of_at)} old" if info.as_of_at else "never synced"
        pairs.append(("origin", info.origin_id))
        pairs.append(("as of", f"change {info.as_of_change}, {age}"))
    pairs.append(("usage", f"{plural(found.usage_total, 'unit')} recorded"))
    for target in found.targets:
        parts = [f"last sync {target.synced_at or 'never'}"]
        if info.is_origin and not target.usage_only:
            behind = found.last_change - target.acknowledged_change
            parts.append(f"{plural(behind, 'change')} behind" if behind else "all changes there")
        waiting = found.last_usage - target.acknowledged_usage
        if target.acknowledged_usage or target.usage_only:
            parts.append(
                f"{plural(waiting, 'usage row')} waiting" if waiting else "all usage there"
            )
        pairs.append(("target", f"{target.url}: {', '.join(parts)}"))
    show_pairs(found, pairs)


def _age(as_of_at: str) -> str:
    seconds = max(0, int(datetime.now(UTC).timestamp() - clock.seconds(as_of_at)))
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} seconds"


COMMANDS: tuple[click.Command, ...] = (init, plan, account, key, changes, status)
