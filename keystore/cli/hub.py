"""Commands of a hub's operator."""

import uuid
from dataclasses import asdict
from types import SimpleNamespace
from typing import TYPE_CHECKING

import click

from keystore import pricing
from keystore.cli.common import (
    json_option,
    plural,
    printable,
    seconds,
    show,
    show_table,
    wants_json,
    with_credits,
)
from keystore.sync import targets
from keystore.sync.extras import extra

if TYPE_CHECKING:
    from keystore.sync.hub_compact import Compaction
    from keystore.sync.hub_usage import AccountTotal


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

    Roles that were granted keep their work: they get the rights that they need on what is new.

    \b
    Example:
      keystore hub migrate postgresql://hub.example.org/keystore
    """
    with targets.hub_admin(url) as admin:
        before, after = admin.migrate()
    text = f"Hub migrated from version {before} to {after}." if before < after else "Up to date."
    show({"before": before, "after": after}, text)


@hub.command("grant", short_help="Let a role push as an origin, or be a replica of one.")
@click.argument("url")
@click.argument("role")
@click.option("--origin", "origin_id", type=click.UUID, help="ROLE pushes this origin.")
@click.option("--replica-of", type=click.UUID, help="ROLE reads this origin.")
@click.option("--print", "only_print", is_flag=True, help="Print the SQL instead of running it.")
@json_option
def hub_grant(
    url: str,
    role: str,
    origin_id: uuid.UUID | None,
    replica_of: uuid.UUID | None,
    only_print: bool,
) -> None:
    """Let ROLE push as an origin, or be a replica of one, and no more. Safe to repeat.

    An origin writes its own rows only; a replica reads its origin's, and writes its own usage. The
    origin need not have pushed yet: `keystore status` there shows its id. A role that does not
    exist is made, with LOGIN and without a password: set one in psql with \\password ROLE.

    What --print prints is for psql, to be run by the hub's owner; URL is not connected to.

    \b
    Example:
      keystore hub grant postgresql://hub.example.org/keystore edge7 \\
        --replica-of 0198c2f0-7a3e-7c11-9f6d-2f1f5f0c9d11
    """
    if (origin_id is None) == (replica_of is None):
        raise click.UsageError("give one of --origin and --replica-of")
    store = {
        "origin_id": str(origin_id) if origin_id else None,
        "replica_of": str(replica_of) if replica_of else None,
    }
    with extra("postgres"):
        from keystore.sync import hub_grants
    if only_print:
        text = f"BEGIN;\n{hub_grants.script(role, **store)}COMMIT;"
        show({"role": role, **store, "sql": text}, text)
        return
    with targets.hub_admin(url) as admin:
        is_new = hub_grants.grant(admin, role, **store)
    name = printable(role)
    what = f"push as {origin_id}" if origin_id else f"read {replica_of} and hand up usage"
    made = f"Made role {name}, without a password: set one with \\password.\n" if is_new else ""
    show({"role": role, **store, "is_new": is_new}, f"{made}{name} may {what}.")


@hub.command("ungrant")
@click.argument("url")
@click.argument("role")
@json_option
def hub_ungrant(url: str, role: str) -> None:
    """Take every right at the hub from ROLE; the role itself stays.

    \b
    Example:
      keystore hub ungrant postgresql://hub.example.org/keystore edge7
    """
    with extra("postgres"):
        from keystore.sync import hub_grants
    with targets.hub_admin(url) as admin:
        hub_grants.ungrant(admin, role)
    show({"role": role}, f"{printable(role)} may do nothing at this hub.")


@hub.command("usage", short_help="What accounts have used at all edges, and what they have.")
@click.argument("url")
@json_option
def hub_usage(url: str) -> None:
    """Show what each account has used of each service, at all stores, and what its ledger sums to.

    As of what the stores have handed up.

    \b
    Example:
      keystore hub usage postgresql://hub.example.org/keystore
    """
    with extra("postgres"):
        from keystore.sync.hub_usage import totals
    with targets.hub_admin(url) as admin:
        found = totals(admin)
    if wants_json():
        show([with_credits(asdict(total)) for total in found], "")
        return
    lines = [line for total in found for line in _lines(total)]
    columns = ["account", "service", "units", "stores", "credits"]
    if len({total.origin_id for total in found}) > 1:
        columns.append("origin")
    show_table(lines, columns, empty="Nothing was handed up yet.")


def _lines(total: "AccountTotal") -> list[SimpleNamespace]:
    """Return a line for each service; the account's credits stand in the first."""
    account = total.account or (f"{total.account_id} (deleted)" if total.account_id else None)
    lines = [
        SimpleNamespace(
            account=account,
            service=item.service or (f"{item.service_id} (deleted)" if item.service_id else None),
            units=item.units,
            stores=item.stores,
            credits=None,
            origin=total.origin_id,
        )
        for item in total.services
    ] or [
        SimpleNamespace(
            account=account, service=None, units=0, stores=0, credits=None, origin=total.origin_id
        )
    ]
    if total.balance_nano is not None:
        lines[0].credits = pricing.text(total.balance_nano)
    return lines


@hub.command("compact", short_help="Forget deletions that every live replica has seen.")
@click.argument("url")
@click.option(
    "--lease",
    type=seconds,
    default="30d",
    show_default=True,
    metavar="DURATION",
    help="Who has not called for longer holds nothing back, and gets everything when it returns.",
)
@json_option
def hub_compact(url: str, lease: int) -> None:
    """Forget, for each origin, the deletions that every live replica has seen.

    \b
    Example:
      keystore hub compact postgresql://hub.example.org/keystore --lease 90d
    """
    with extra("postgres"):
        from keystore.sync.hub_compact import compact
    done: list[Compaction] = []
    try:
        with targets.hub_admin(url) as admin:
            for item in compact(admin, lease):
                done.append(item)  # noqa: PERF402
    finally:  # what was done is said, even if one origin was busy
        if done:
            show(done, "\n".join(map(_sentence, done)))


def _sentence(done: "Compaction") -> str:
    held = f"; held back by {', '.join(done.held_by)}" if done.held_by else ""
    return (
        f"{done.origin_id}: forgot {plural(done.removed, 'deletion')}, kept {done.kept}; "
        f"horizon {done.horizon}{held}."
    )


COMMANDS: tuple[click.Command, ...] = (hub,)
