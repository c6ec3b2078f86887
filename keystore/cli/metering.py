"""Usage logged by hand, added up, drawn, and summed by the hour when it is old."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from keystore.admin.reports import By, Per
from keystore.cli.common import (
    is_terminal,
    moment,
    plural,
    printable,
    seconds,
    show,
    show_table,
    store_options,
    wants_json,
)

if TYPE_CHECKING:
    from keystore.admin.reports import UsageTotal

_FIELDS = ("period", "kind", "id", "name", "amount", "rows")
_BAR = 40
_SHORTEST_BAR = 10
"""Characters that the longest bar of the chart takes: what names leave of a narrow terminal."""


@click.command("report", short_help="Add up what was used.")
@click.option("--by", type=click.Choice(get_args(By)), help="Tell these apart.")
@click.option("--per", type=click.Choice(get_args(Per)), help="Tell hours or days (UTC) apart.")
@click.option("--key", metavar="UUID", help="Count this key's only.")
@click.option("--account", metavar="EMAIL", help="Count this account's only.")
@click.option("--service", metavar="NAME", help="Count this service's only.")
@click.option("--request-id", metavar="ID", help="Count this request's only.")
@click.option(
    "--since", type=moment, metavar="TIME", help="From then on: 7d, 12h, or an ISO 8601 time."
)
@click.option("--until", type=moment, metavar="TIME", help="Up to then, likewise.")
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="The N with the most only.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw it into a file, .png or .svg (needs keystore[plot]).",
)
@store_options
def report(
    db_path: Path,
    by: By | None,
    per: Per | None,
    key: str | None,
    account: str | None,
    service: str | None,
    request_id: str | None,
    since: datetime | None,
    until: datetime | None,
    top: int | None,
    as_csv: bool,
    plot: Path | None,
) -> None:
    """Add up what was used: recorded here, and at an origin also what replicas sent in files.

    Windows are of whole hours (UTC). What has no name any more is shown, and named, by its
    internal id.

    \b
    Example:
      keystore usage report --by key --top 10 --since 30d
      keystore usage report --account ada@example.org --per day --plot ada.svg
    """
    from keystore.store import Store

    if as_csv and wants_json():
        raise click.UsageError("--csv and --json exclude each other.")
    if plot is not None and plot.suffix.lower() not in {".png", ".svg"}:
        raise click.BadParameter("its name must end in .png or .svg", param_hint="--plot")
    with Store.open(db_path) as store:
        found = store.usage_report(
            by=by,
            per=per,
            key=key,
            account=account,
            service=service,
            request_id=request_id,
            since=since,
            until=until,
            top=top,
        )
    if plot is not None:
        from keystore.cli.plot import draw

        draw(found, plot)
    if as_csv:
        click.echo(_csv(found), nl=False)
    elif found and is_terminal() and not wants_json():
        _chart(found, by=by, per=per)
    else:
        columns = [*(["period"] if per else []), *(["label"] if by else []), "amount", "rows"]
        show_table(found, columns, empty="No usage.")
    if plot is not None:
        click.echo(f"Drew {plot}.", err=True)


@click.command("log", short_help="Log usage.")
@click.argument("kind", type=click.Choice(["api_key", "oauth_client", "session"]))
@click.argument("principal")
@click.option("--amount", type=int, default=1, show_default=True, metavar="N", help="Units.")
@click.option("--service", metavar="NAME", help="Of which service.")
@click.option("--request-id", metavar="ID", help="Log it once, however often it is asked.")
@click.option("--account", metavar="EMAIL", help="Whose session it is.")
@store_options
def log(
    db_path: Path,
    kind: str,
    principal: str,
    amount: int,
    service: str | None,
    request_id: str | None,
    account: str | None,
) -> None:
    """Log units that PRINCIPAL has used: a key's UUID, a client_id, a session's number.

    Or an internal id, of something that need not exist any more.

    \b
    Example:
      keystore usage log oauth_client 13 --amount 5 --service tts --request-id r-1
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        entry = store.log_usage(
            kind, principal, amount, service=service, request_id=request_id, account=account
        )
    show(entry, f"Logged {plural(entry.amount, 'unit')} as usage {entry.usage_id}.")


@click.command("compact", short_help="Sum old usage by the hour.")
@click.option(
    "--older-than",
    type=seconds,
    required=True,
    metavar="AGE",
    help="How old the usage must be: 90d, 12h, or seconds.",
)
@store_options
def compact(db_path: Path, older_than: int) -> None:
    """Sum usage that is older by the hour, and remove its rows. No total changes.

    Kept is what happened since this month began, what a hub, a usage file or the origin still
    needs, and the newest row. A request id is forgotten with its row.

    \b
    Example:
      keystore usage compact --older-than 90d
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        done = store.compact_usage(timedelta(seconds=older_than))
    text = f"Summed {plural(done.summed, 'row')} from before {done.before} UTC."
    if done.held_by:
        text += f" {plural(done.held, 'row')} as old stay, for {done.held_by}."
    show(done, printable(text))


def _csv(found: Sequence["UsageTotal"]) -> str:
    from keystore.export import csv_cell

    lines = [",".join(_FIELDS)]
    lines += [",".join(csv_cell(getattr(item, name)) for name in _FIELDS) for item in found]
    return "".join(f"{line}\r\n" for line in lines)


def _chart(found: Sequence["UsageTotal"], *, by: str | None, per: str | None) -> None:
    """Draw a table with bars; at a terminal only."""
    from rich.bar import Bar
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    names = [*(["period"] if per else []), *([by] if by else [])]
    for name in names:
        table.add_column(name, no_wrap=name == "period", overflow="fold")
    table.add_column("amount", justify="right", no_wrap=True)
    cells = [
        [
            *([item.period or ""] if per else []),
            *([printable(item.label)] if by else []),
            f"{item.amount:,}",
        ]
        for item in found
    ]
    console = Console()
    columns = zip([*names, "amount"], *cells, strict=True)
    room = console.width - sum(max(map(len, column)) + len("  ") for column in columns)
    width = max(_SHORTEST_BAR, min(_BAR, room))
    table.add_column("", width=width)
    largest = max(item.amount for item in found)
    for item, texts in zip(found, cells, strict=True):
        bar = Bar(max(1, largest), 0, item.amount, width=width, color="cyan")
        table.add_row(*map(escape, texts), bar)
    console.print(table)


COMMANDS: tuple[click.Command, ...] = (report, log, compact)
