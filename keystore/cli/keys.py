"""Commands about keys, from issue to deletion. KEY is a UUID or a token; "-" is standard input."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keystore.cli.common import (
    argument_or_stdin,
    expiry,
    seconds,
    show,
    show_pairs,
    show_table,
    store_options,
)

if TYPE_CHECKING:
    from keystore.models import APIKey, IssuedKey
    from keystore.store import Store

key_argument = click.argument("key_name", metavar="KEY")
renew_option = click.option(
    "--renew",
    type=click.Choice(["never", "daily", "monthly"]),
    help="When quotas are filled up again.  [default: never]",
)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not of the form NAME=VALUE")
    return name, value


def _quota(text: str) -> tuple[str, int]:
    name, value = _pair(text)
    try:
        return name, int(value)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not of the form SERVICE=UNITS") from None


def quota_change(text: str) -> tuple[str, str, int]:
    """Read SERVICE=UNITS, SERVICE=+UNITS or SERVICE=none: the service, what to do, and how many."""
    name, value = _pair(text)
    if value == "none":
        return name, "remove", 0
    _, units = _quota(text)
    return name, "add" if value.startswith("+") else "set", units


@click.group()
def key() -> None:
    """Keys: issue, rotate, revoke, and look at them.

    KEY is a key's UUID or its token; "-" reads it from standard input.
    """


@key.command("issue")
@click.argument("account_email", metavar="[ACCOUNT]", required=False)
@click.option(
    "--from",
    "source",
    metavar="FILE",
    help="Issue one for each line of a CSV file with the columns account, and label and expires.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="TOKENS_FILE",
    help="With --from: a new file for the tokens, for your eyes only (mode 0600).",
)
@click.option("--label", metavar="TEXT", help="What the key is for, in your words.")
@click.option(
    "--expires",
    type=expiry,
    metavar="WHEN",
    help="2w, 90d, 12h or 30m from now, or an ISO 8601 time (UTC). Default: never.",
)
@click.option(
    "--network", "networks", multiple=True, metavar="CIDR", help="Pass from here only; repeatable."
)
@click.option(
    "--quota",
    "quotas",
    type=_quota,
    multiple=True,
    metavar="SERVICE=UNITS",
    help="Units of a service; repeatable.",
)
@renew_option
@click.option(
    "--meta",
    "metadata",
    type=_pair,
    multiple=True,
    metavar="NAME=VALUE",
    help="Data of your own; repeatable.",
)
@store_options
def key_issue(
    db_path: Path,
    account_email: str | None,
    source: str | None,
    out: Path | None,
    label: str | None,
    expires: datetime | None,
    networks: tuple[str, ...],
    quotas: tuple[tuple[str, int], ...],
    renew: str | None,
    metadata: tuple[tuple[str, str], ...],
) -> None:
    """Issue a key to ACCOUNT and print its token, once: the store keeps only a hash.

    With --from, issue many keys, all or none. TOKENS_FILE is CSV: account, label, api_key, token.
    It appears when the keys are issued and not before; should the machine stop in between, the
    tokens are in a hidden file beside it whose name ends in .draft.

    \b
    Example:
      keystore key issue ada@example.org --label laptop --expires 90d
      keystore key issue --from accounts.csv --out tokens.csv
    """
    if source is not None:
        if account_email or label or expires or networks or quotas or renew or metadata:
            raise click.UsageError("with --from, what the keys are belongs into the file")
        if out is None:
            raise click.UsageError("--from needs --out TOKENS_FILE")
        from keystore.cli.bulk import issue_from

        issue_from(db_path, source, out)
        return
    if account_email is None:
        raise click.UsageError("name an ACCOUNT, or a file of them with --from")
    if out is not None:
        raise click.UsageError("--out goes with --from")
    if renew is not None and not quotas:
        raise click.UsageError("--renew goes with --quota; a plan's quotas renew as the plan says")
    from keystore.store import Store

    with Store.open(db_path) as store:
        issued = store.issue_key(
            account_email,
            label=label,
            expires_at=expires,
            networks=networks,
            metadata=dict(metadata) or None,
            quotas=dict(quotas),
            renewal=renew or "never",
        )
    _show_issued(issued)


@key.command("rotate")
@key_argument
@click.option(
    "--overlap",
    type=seconds,
    default="0",
    metavar="AGE",
    help="For how long the old key still works: 1d, 12h. Default: revoked at once.",
)
@store_options
def key_rotate(db_path: Path, key_name: str, overlap: int) -> None:
    """Issue a successor to KEY, alike in all but the token.

    \b
    Example:
      keystore key rotate 01890a5d-ac96-774b-bcce-b302099a8057 --overlap 1d
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        issued = store.rotate_key(argument_or_stdin(key_name), overlap=timedelta(seconds=overlap))
    _show_issued(issued)


@key.command("list")
@click.option("--account", "account_email", metavar="EMAIL", help="Only this account's keys.")
@click.option("--status", "status_name", metavar="NAME", help="Only keys with this status.")
@store_options
def key_list(db_path: Path, account_email: str | None, status_name: str | None) -> None:
    """List the keys, oldest first.

    \b
    Example:
      keystore key list --account ada@example.org --status revoked
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        rows = store.keys(account=account_email, status=status_name)
    columns = ("api_key", "state", "expires", "account", "label")
    show_table(rows, columns, empty="No keys; `keystore key issue ACCOUNT` issues one.")


@key.command("show")
@key_argument
@store_options
def key_show(db_path: Path, key_name: str) -> None:
    """Show all about one key, its quotas included.

    \b
    Example:
      keystore key show - < token.txt
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        found = store.key(argument_or_stdin(key_name))
        quotas = store.quotas(found.api_key)
    pairs: list[tuple[str, object]] = [
        ("key", found.api_key),
        ("account", found.account),
        ("state", found.state),
        ("reason", found.status_reason),
        ("label", found.label),
        ("expires", found.expires_at or "never"),
        ("networks", found.allowed_networks or "any"),
        ("metadata", found.metadata),
        ("created", found.created_at),
    ]
    pairs += [
        (
            item.service,
            f"{item.left} of {item.initial_quota} left, renewed {item.renewal}",
        )
        for item in quotas
    ]
    show_pairs({**found.model_dump(), "state": found.state, "quotas": quotas}, pairs)


@key.command("expire")
@key_argument
@click.argument("when")
@store_options
def key_expire(db_path: Path, key_name: str, when: str) -> None:
    """Move KEY's expiry to WHEN: "now", "never", 90d, 12h, or an ISO 8601 time (UTC).

    \b
    Example:
      keystore key expire 01890a5d-ac96-774b-bcce-b302099a8057 now
    """
    from keystore.store import Store

    moment = None if when == "never" else expiry("0m" if when == "now" else when)
    with Store.open(db_path) as store:
        changed = store.expire_key(argument_or_stdin(key_name), moment)
        hint = replica_hint(store)
    show(changed, f"Key {changed.api_key} expires {changed.expires_at or 'never'}.{hint}")


@key.command("delete")
@key_argument
@store_options
def key_delete(db_path: Path, key_name: str) -> None:
    """Delete KEY. Its timeline and its usage stay.

    \b
    Example:
      keystore key delete 01890a5d-ac96-774b-bcce-b302099a8057
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        deleted = store.delete_key(argument_or_stdin(key_name))
        hint = replica_hint(store)
    show(deleted, f"Deleted key {deleted.api_key} of {deleted.account}.{hint}")


@key.command("quota")
@key_argument
@click.argument("change", type=quota_change, metavar="SERVICE=UNITS")
@renew_option
@store_options
def key_quota(
    db_path: Path, key_name: str, change: tuple[str, str, int], renew: str | None
) -> None:
    """Give KEY so many units of a service, now and at each renewal.

    SERVICE=+UNITS adds them to what is left, and to what it gets at each renewal. SERVICE=none
    takes the quota away, and with it the service.

    \b
    Example:
      keystore key quota 01890a5d-ac96-774b-bcce-b302099a8057 translation=1000 --renew monthly
      keystore key quota 01890a5d-ac96-774b-bcce-b302099a8057 translation=+100
    """
    from keystore.store import Store

    service, what, units = change
    if renew is not None and what != "set":
        raise click.UsageError("--renew goes with SERVICE=UNITS")
    with Store.open(db_path) as store:
        name = argument_or_stdin(key_name)
        if what == "remove":
            removed = store.remove_quota(name, service)
            show(removed, f"No quota of {removed.service} any more.{replica_hint(store)}")
            return
        if what == "add":
            given = store.top_up(name, service, units)
        else:
            given = store.set_quota(name, service, units, renewal=renew or "never")
    show(given, f"{given.left} units of {given.service}, renewed {given.renewal}.")


@key.command("quotas")
@key_argument
@store_options
def key_quotas(db_path: Path, key_name: str) -> None:
    """Show what is left to KEY of its services, here and now.

    \b
    Example:
      keystore key quotas 01890a5d-ac96-774b-bcce-b302099a8057
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        rows = store.quotas(argument_or_stdin(key_name))
    columns = ("service", "left", "initial_quota", "renewal", "renews_at")
    show_table(rows, columns, empty="No quotas; `keystore key quota KEY SERVICE=UNITS` gives one.")


def replica_hint(store: "Store") -> str:
    """Say that replicas do not know yet, where there may be some."""
    has_targets = bool(store.status().targets)
    return " Replicas learn of it with the next `keystore sync`." if has_targets else ""


def _show_issued(issued: "IssuedKey") -> None:
    found: APIKey = issued.key
    show_pairs(
        issued,
        [
            ("key", found.api_key),
            ("account", found.account),
            ("expires", found.expires_at or "never"),
            ("token", issued.token),
        ],
    )
    click.echo("Keep the token now: it is not stored and cannot be shown again.", err=True)


COMMANDS: tuple[click.Command, ...] = (key,)
