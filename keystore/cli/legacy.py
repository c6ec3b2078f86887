"""The command that moves a store of the old schema: import-legacy."""

from pathlib import Path

import click

from keystore.cli.common import json_option, plural, printable, progress_bar, show
from keystore.legacy import Imported
from keystore.legacy import import_legacy as move


@click.command("import-legacy", short_help="Move a store whose keys have UUIDs as primary key.")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--orphans",
    type=click.Choice(["refuse", "set-aside"]),
    default="refuse",
    show_default=True,
    help="What to do with rows that cannot be carried.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to write the rows that are set aside; a new file.",
)
@json_option
def import_legacy(old: Path, new: Path, orphans: str, report: Path | None) -> None:
    """Move the store OLD, whose keys have their UUID as primary key, to a new store NEW.

    Ids, UUIDs, hashes, states and times are kept, so tokens go on working. OLD stays as it is, and
    nothing is overwritten. Keys without account, accounts without plan, and rows that are
    invalid or duplicate are refused or, with --orphans set-aside, written to the report.

    \b
    Example:
      keystore import-legacy old.db keystore.db
      keystore import-legacy old.db keystore.db --orphans set-aside --report aside.jsonl
    """
    if (orphans == "set-aside") != (report is not None):
        raise click.UsageError("--orphans set-aside and --report FILE go together.")
    with progress_bar("rows") as progress:
        done = move(old, new, report=report, progress=progress)
    show(done, _told(old, done))


def _told(old: Path, done: Imported) -> str:
    nouns = {"Plans": "plan", "Accounts": "account", "APIKeys": "key"}
    counts = [plural(done.carried[table], noun) for table, noun in nouns.items()]
    lines = [f"Moved {counts[0]}, {counts[1]} and {counts[2]} from {old} to {done.path}."]
    if done.report is not None:
        reasons = ", ".join(f"{number} {kind}" for kind, number in done.reasons.items())
        told = f" ({reasons})" if reasons else ""
        aside = plural(sum(done.set_aside.values()), "row")
        lines.append(f"Set {aside} aside{told} in {done.report}.")
    columns = [
        f"{table}.{name}" for table, names in done.columns_not_carried.items() for name in names
    ]
    if columns:
        lines.append(f"Columns not carried: {', '.join(columns)}.")
    if done.tables_not_carried:
        lines.append(f"Tables not carried: {', '.join(done.tables_not_carried)}.")
    return "\n".join(map(printable, lines))


COMMANDS: tuple[click.Command, ...] = (import_legacy,)
