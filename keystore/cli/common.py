"""What the commands share: the options, the output, and the one place that catches errors."""

import errno
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from keystore import pricing
from keystore.errors import InvalidInputError, KeystoreError
from keystore.tokens import MAX_TOKEN_LENGTH

_F = TypeVar("_F", bound=Callable[..., Any])
_JSON = "keystore.json"
_SHORT = len("YYYY-MM-DD")
_NUMBER = re.compile(r"-?[\d.]*")
_DURATION = re.compile(r"(\d{1,6})([wdhm])")
FILE_FORMATS: Mapping[str, Literal["csv", "jsonl"]] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
"""What a file is, by how its name ends."""
_RATE = re.compile(r"(\d{1,10})/(\d{1,10})?(s|sec|second|m|min|minute|h|hour|d|day|w|week)")
_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


class KeystoreGroup(click.Group):
    """A group that reports a :class:`KeystoreError` on one line and exits with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeystoreError as error:
            _tell(ctx, error.code, error.message, error.hint, getattr(error, "__notes__", []))
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader of our output has gone; click ends quietly
            where = f"{error.filename}: " if error.filename else ""
            _tell(ctx, KeystoreError.code, f"{where}{error.strerror or error}.")
        except (UnicodeError, OverflowError, MemoryError) as error:
            _tell(ctx, KeystoreError.code, f"{str(error) or type(error).__name__}.")


def _tell(
    ctx: click.Context, code: str, message: str, hint: str = "", others: Sequence[str] = ()
) -> None:
    """Report an error, and exit with 1."""
    if ctx.meta.get(_JSON):
        said = {"code": code, "message": message, "hint": hint}
        also = {"others": others} if others else {}
        click.echo(json.dumps({"error": said, **also}), err=True)
    else:
        for line in (f"{message} {hint}".rstrip(), *others):
            click.echo(f"keystore: {printable(line)}", err=True)
    ctx.exit(1)


def _note_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_JSON] = True


json_option = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    callback=_note_json,
    help="Print JSON, for scripts.",
)

db_option = click.option(
    "--db",
    "db_path",
    type=click.Path(path_type=Path),
    envvar="KEYSTORE_DB",
    show_envvar=True,
    default=Path("keystore.db"),
    show_default=True,
    metavar="FILE",
    help="The store's file.",
)


def expiry(text: str) -> datetime:
    """Read a duration from now, or an ISO 8601 time (UTC if it names no zone)."""
    return _time(text, 1)


def moment(text: str) -> datetime:
    """Read a duration before now, or an ISO 8601 time (UTC if it names no zone)."""
    return _time(text, -1)


def _time(text: str, sign: int) -> datetime:
    try:
        delta = _duration(text)
        return datetime.fromisoformat(text) if delta is None else datetime.now(UTC) + sign * delta
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither like 2w, 90d, 12h or 30m nor an ISO 8601 time"
        ) from None


def seconds(text: str) -> int:
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


def rate(text: str) -> tuple[int, int]:
    """Read a rate as a number of checks and of seconds; ``0`` is (0, 0)."""
    if text == "0":
        return 0, 0
    match = _RATE.fullmatch(text.replace(" ", ""))
    if match is None:
        raise click.BadParameter(f"{text!r} is not like 100/minute, 5/s or 1000/12h")
    unit = timedelta(**{_UNITS[match[3][0]]: 1})
    return int(match[1]), int(match[2] or 1) * int(unit.total_seconds())


def _duration(text: str) -> timedelta | None:
    match = _DURATION.fullmatch(text)
    return timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else None


def store_options(command: _F) -> _F:
    """Add ``--db`` and ``--json``."""
    return db_option(json_option(command))


def wants_json() -> bool:
    """Whether ``--json`` was given to the running command."""
    return bool(click.get_current_context().meta.get(_JSON))


def print_json(value: object) -> None:
    """Print models, dataclasses and lists of them as JSON."""
    from pydantic_core import to_jsonable_python

    click.echo(json.dumps(to_jsonable_python(value), indent=2))


def argument_or_stdin(argument: str) -> str:
    """Return an argument; for "-" the first line of standard input, which no history keeps."""
    if argument != "-":
        return argument
    if sys.stdin is None:
        raise InvalidInputError("standard input is closed.", hint="Pass the token as an argument.")
    return sys.stdin.readline(2 * MAX_TOKEN_LENGTH).strip()


def printable(text: str) -> str:
    """Escape what could move a terminal's cursor or break a line; any client may have stored it."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def plural(number: int, noun: str) -> str:
    """Return "1 row", "2 rows"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def show(value: object, text: str) -> None:
    """Print ``value`` as JSON if asked for, else ``text``."""
    if wants_json():
        print_json(value)
    else:
        click.echo(text)


def show_line(value: object, text: str, *, as_json: bool) -> None:
    """Print one line, JSON or text, from a command that goes on; from any thread."""
    click.echo(json.dumps(value) if as_json else text)


def show_table(rows: Sequence[object], columns: Sequence[str], *, empty: str) -> None:
    """Print objects as a table of some of their attributes, or as JSON with all of them."""
    if wants_json():
        print_json(list(rows))
    elif not rows:
        click.echo(empty)
    else:
        cells = [[_cell(getattr(row, column)) for column in columns] for row in rows]
        _print_table([column.replace("_", " ") for column in columns], cells)


def with_credits(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with each amount in nano-credits also as text, in credits."""
    amounts = {
        name.replace("_nano", ""): None if value is None else pricing.text(value)
        for name, value in row.items()
        if "_nano" in name
    }
    return {**row, **amounts}


def show_pairs(value: object, pairs: Sequence[tuple[str, object]]) -> None:
    """Print labelled lines, or ``value`` as JSON."""
    width = max(len(label) for label, _ in pairs)
    show(value, "\n".join(f"{label:<{width}}  {_cell(item)}".rstrip() for label, item in pairs))


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Draw a progress bar on standard error, at a terminal only; call it with done and total."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _, __: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value))


def _print_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    if is_terminal():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        for number, (name, *column) in enumerate(zip(header, *cells, strict=True)):
            # The first column names the row: it is what the next command wants, so never cut it.
            # Dates, states and numbers are hard to read in pieces, too.
            is_short = max(map(len, column)) <= _SHORT or all(map(_NUMBER.fullmatch, column))
            table.add_column(name, no_wrap=number == 0 or is_short, overflow="fold")
        for row in cells:
            table.add_row(*map(escape, row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for row in (header, *cells):
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def is_terminal() -> bool:
    """Whether somebody looks at the output."""
    return sys.stdout is not None and sys.stdout.isatty()
