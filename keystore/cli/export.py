"""The command `export`: rows as JSON Lines or CSV, to a new file or to standard output."""

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import click

from keystore import migrate
from keystore.cli.common import (
    FILE_FORMATS,
    plural,
    printable,
    progress_bar,
    show,
    store_options,
    wants_json,
)
from keystore.db import open_store
from keystore.errors import DiskFullError, KeystoreError
from keystore.tables import TRACKED

if TYPE_CHECKING:
    from keystore.export import Progress, Summary


@click.command(short_help="Export tables or changes, as JSON Lines or CSV.")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["jsonl", "csv"]),
    help="Default: as FILE's name ends, in .csv, .jsonl or .ndjson; else jsonl.",
)
@click.option(
    "--changes-since",
    type=click.IntRange(0, 2**63 - 1),
    metavar="N",
    help="Export the ChangeLog after change N instead of tables.",
)
@click.option("--with-hashes", is_flag=True, help="Include the hashes of tokens and secrets.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A new file, for its owner only. Default: standard output.",
)
@store_options
def export(
    db_path: Path,
    tables: Sequence[str],
    file_format: Literal["jsonl", "csv"] | None,
    changes_since: int | None,
    with_hashes: bool,
    output: Path | None,
) -> None:
    """Export tables as the schema names them, or the changes since N, in one consistent state.

    Without TABLE all tables that are synced. UsageLog, UsageHours, ReceivedUsage, CreditLedger and
    Revocations can be named, too. CSV holds one table. Hashes of tokens and secrets are left out
    unless asked for.

    \b
    Example:
      keystore export APIKeys --output keys.csv
      keystore export --changes-since 100
    """
    from keystore import export as exports

    if str(output) == "-":
        output = None
    if wants_json() and output is None:
        raise click.UsageError("--json goes with --output; without it, --format jsonl is JSON.")
    if changes_since is not None and (tables or with_hashes):
        raise click.UsageError("--changes-since takes neither a TABLE nor --with-hashes.")
    kind = file_format or FILE_FORMATS.get(output.suffix.lower() if output else "", "jsonl")
    names = [_named(name, exports.COLUMNS) for name in dict.fromkeys(map(str.lower, tables))]
    names = names or [table.name for table in TRACKED]
    if kind == "csv" and changes_since is None and len(names) > 1:
        raise click.UsageError("CSV holds one table: name one, or use --format jsonl.")

    with _destination(output) as out, open_store(db_path) as file, _progress(output) as on_progress:
        if changes_since is None:
            summary = exports.export_tables(
                file, out, names, kind, with_hashes=with_hashes, on_progress=on_progress
            )
        else:
            summary = exports.export_changes(
                file, out, changes_since, kind, on_progress=on_progress
            )
    text = _sentence(summary, output, changes_since)
    if output is None:
        click.echo(text, err=True)
    else:
        show({"output": str(output), "format": kind, **asdict(summary)}, text)


def _named(name: str, known: Iterable[str]) -> str:
    """Return a table's name as the schema spells it."""
    spelled = {table.lower(): table for table in known}
    if name in spelled:
        return spelled[name]
    if name == "changelog":
        raise click.UsageError("for the ChangeLog, use --changes-since 0.")
    near = get_close_matches(name, spelled, n=1)
    hint = f"Did you mean {spelled[near[0]]}?" if near else f"There are {', '.join(known)}."
    raise click.UsageError(f"there is no table {name!r}. {hint}")


def _sentence(summary: "Summary", output: Path | None, since: int | None) -> str:
    where = f" to {output}" if output else ""
    count = sum(summary.rows.values())
    if since is not None:
        last = summary.compacted_to
        few = f" (until {last} only the latest of each record)" if since < last else ""
        go_on = f"go on with --changes-since {summary.up_to}"
        return f"Exported {plural(count, 'change')}{few}{where}; {go_on}."
    left_out = {"APIKeys", "OAuthClients"} & summary.rows.keys() and not summary.with_hashes
    without = ", without hashes" if left_out else ""
    return f"Exported {plural(count, 'row')}{where} as of change {summary.up_to}{without}."


@contextmanager
def _progress(output: Path | None) -> Iterator["Progress | None"]:
    if output is None and sys.stdout is not None and sys.stdout.isatty():
        yield None  # a bar between the rows would be in the way
    else:
        with progress_bar("rows") as on_progress:
            yield on_progress


def _destination(output: Path | None) -> AbstractContextManager[IO[bytes]]:
    return _standard_output() if output is None else _new_file(output)


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a new file (mode 0600), whole or not at all."""
    draft = migrate.draft_path(path)
    try:
        with _says_full(path.parent, "Nothing was written; make room, then try again."):
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        migrate.publish(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _standard_output() -> Iterator[IO[bytes]]:
    """Collect in a file without a name, then hand over.

    A reader may be as slow as it likes: the snapshot that the rows were read in, which pins the
    WAL, has ended by then. An error on the way comes before the first row.
    """
    if sys.stdout is None:
        raise KeystoreError("standard output is closed.", hint="Name a file with --output.")
    room = "Make room, name another folder by TMPDIR, or use --output FILE."
    with _says_full(tempfile.gettempdir(), room), tempfile.TemporaryFile() as scratch:
        yield scratch
        scratch.seek(0)
        with _says_full("standard output", "Make room, then try again."):
            if sys.stdout.isatty():
                for line in scratch:  # any client may have stored what moves a terminal's cursor
                    click.echo(printable(line.decode().rstrip("\r\n")))
            else:
                shutil.copyfileobj(scratch, sys.stdout.buffer)
                sys.stdout.buffer.flush()


@contextmanager
def _says_full(where: Path | str, hint: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise DiskFullError(f"{where}: there is no room left on the disk.", hint=hint) from error


COMMANDS: tuple[click.Command, ...] = (export,)
