"""Commands on plans: what an account's keys may do."""

from pathlib import Path

import click

from keystore.cli.common import rate, seconds, show, show_table, store_options
from keystore.cli.keys import quota_change, renew_option


@click.group()
def plan() -> None:
    """Plans: what an account's keys may do."""


@plan.command("add")
@click.argument("name")
@click.option(
    "--max-staleness",
    type=seconds,
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
@click.option(
    "--rate",
    "checks_in",
    type=rate,
    metavar="N/TIME",
    help="How many checks each key may pass at an edge: 100/minute, 5/s, 1000/1d. Default: any.",
)
@click.option(
    "--burst",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many of them at once; they come back one by one. Default: all of them.",
)
@store_options
def plan_add(
    db_path: Path,
    name: str,
    max_staleness: int | None,
    when_stale: str,
    checks_in: tuple[int, int] | None,
    burst: int | None,
) -> None:
    """Add a plan.

    \b
    Example:
      keystore plan add pro --max-staleness 1d --rate 100/minute
    """
    limit, window = checks_in or (None, None)
    from keystore.store import Store

    with Store.open(db_path) as store:
        added = store.add_plan(
            name,
            max_staleness_seconds=max_staleness,
            stale_action=when_stale,
            rate_limit=limit,
            rate_window_seconds=window,
            rate_burst=burst,
        )
    show(added, f"Added plan {added.name}.")


@plan.command("set")
@click.argument("name")
@click.option("--rename", metavar="NAME", help="A new name.")
@click.option(
    "--max-staleness", type=seconds, metavar="AGE", help="As with `plan add`; 0 takes it away."
)
@click.option("--when-stale", type=click.Choice(["deny", "allow"]), help="As with `plan add`.")
@click.option(
    "--rate",
    "checks_in",
    type=rate,
    metavar="N/TIME",
    help="As with `plan add`; 0 takes it away, and the burst.",
)
@click.option(
    "--burst",
    type=click.IntRange(min=0),
    metavar="N",
    help="As with `plan add`; 0 takes it away.",
)
@store_options
def plan_set(
    db_path: Path,
    name: str,
    rename: str | None,
    max_staleness: int | None,
    when_stale: str | None,
    checks_in: tuple[int, int] | None,
    burst: int | None,
) -> None:
    """Change what is given of a plan.

    \b
    Example:
      keystore plan set pro --rename professional --max-staleness 12h --rate 5/s
    """
    limit, window = checks_in or (None, None)
    from keystore.store import Store

    with Store.open(db_path) as store:
        changed = store.change_plan(
            name,
            rename=rename,
            max_staleness_seconds=max_staleness,
            stale_action=when_stale,
            rate_limit=limit,
            rate_window_seconds=window,
            rate_burst=burst,
        )
    show(changed, f"Plan {changed.name} is as you said.")


@plan.command("remove")
@click.argument("name")
@store_options
def plan_remove(db_path: Path, name: str) -> None:
    """Remove a plan that no account is on.

    \b
    Example:
      keystore plan remove trial
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        removed = store.remove_plan(name)
    show(removed, f"Removed plan {removed.name}.")


@plan.command("quota")
@click.argument("name", metavar="PLAN")
@click.argument("change", type=quota_change, metavar="SERVICE=UNITS")
@renew_option
@store_options
def plan_quota(db_path: Path, name: str, change: tuple[str, str, int], renew: str | None) -> None:
    """Give keys that are issued on PLAN from now on so many units of a service.

    SERVICE=none takes that away. Keys that are there keep what they have.

    \b
    Example:
      keystore plan quota pro translation=1000 --renew monthly
    """
    from keystore.store import Store

    service, what, units = change
    if what == "add" or (renew is not None and what != "set"):
        raise click.UsageError("name SERVICE=UNITS, or SERVICE=none without --renew")
    with Store.open(db_path) as store:
        if what == "remove":
            removed = store.remove_plan_quota(name, service)
            show(removed, f"Plan {removed.plan} gives no {removed.service} any more.")
            return
        given = store.set_plan_quota(name, service, units, renewal=renew or "never")
    show(
        given,
        f"Plan {given.plan} gives {given.initial_quota} units of {given.service}, renewed "
        f"{given.renewal}.",
    )


@plan.command("quotas")
@click.argument("name", metavar="[PLAN]", required=False)
@store_options
def plan_quotas(db_path: Path, name: str | None) -> None:
    """List what keys that are issued on PLAN get of services; without PLAN, of all plans.

    \b
    Example:
      keystore plan quotas pro
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        rows = store.plan_quotas(name)
    columns = ("plan", "service", "initial_quota", "renewal")
    show_table(rows, columns, empty="No quotas; `keystore plan quota PLAN SERVICE=UNITS` sets one.")


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
    columns = ("name", "max_staleness_seconds", "stale_action", "rate", "accounts", "created_at")
    show_table(rows, columns, empty="No plans yet; `keystore plan add NAME` adds one.")


COMMANDS: tuple[click.Command, ...] = (plan,)
