"""Many keys at once: `key issue --from` and `key import`. FILE "-" is standard input."""

import csv
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

import click

from keystore import migrate
from keystore.cli.common import FILE_FORMATS, expiry, plural, show, store_options
from keystore.cli.keys import key
from keystore.disk import sync_folder
from keystore.errors import (
    AlreadyExistsError,
    InvalidInputError,
    KeystoreError,
    NotFoundError,
    StoreExistsError,
)

if TYPE_CHECKING:
    from keystore.admin.bulk import BulkIssue, IssuedRow
    from keystore.store import Store

MAX_LINE = 1 << 20
"""Bytes of the longest line that is read."""

_HINT = "Nothing was written; correct the line and try again."
_ISSUE_FIELDS = ("account", "label", "expires")
_source_argument = click.argument("source", metavar="FILE")


@key.command("import")
@_source_argument
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "jsonl"]),
    help="What FILE is. Default: as its name ends, in .csv, .jsonl or .ndjson.",
)
@store_options
def key_import(db_path: Path, source: str, file_format: str | None) -> None:
    """Import keys that another system has issued, all or none. Their tokens go on working.

    FILE is CSV with a header, or JSON Lines. Each line names an account that exists, and either
    the token or its SHA-256 in hex as api_key_hash. It may have api_key (a UUID), label,
    expires_at, status, allowed_networks (CIDR, blanks between), and metadata (a JSON object).

    \b
    Example:
      keystore key import old-keys.csv
    """
    from keystore.admin.bulk import BulkImport
    from keystore.store import Store

    kind = file_format or FILE_FORMATS.get(Path(source).suffix.lower())
    if kind is None:
        raise InvalidInputError(
            "what the file is cannot be told from its name.",
            hint="Add --format csv or --format jsonl.",
        )
    with Store.open(db_path) as store, _opened(source) as file:
        lines = _Lines(file)
        found = _csv(lines, BulkImport.model_fields) if kind == "csv" else _json_lines(lines)
        rows = (BulkImport.read(line, values) for line, values in found)
        with _progress("Importing", lines) as on_progress:
            count = store.import_keys(rows, on_progress)
    show({"imported": count}, f"Imported {plural(count, 'key')}.")


def issue_from(db_path: Path, source: str, out: Path) -> None:
    """Issue a key for each line of a CSV file, write the tokens to a new file, and say so.

    Raises:
        AlreadyExistsError: something is at ``out``.
        InvalidInputError, NotFoundError, WrongRoleError: nothing was issued and ``out`` not made.
        OSError: the same, by the disk.
    """
    from keystore.store import Store

    with Store.open(db_path) as store, _opened(source) as file, _TokensFile(out) as tokens_file:
        lines = _Lines(file)
        try:
            with _progress("Issuing", lines) as on_progress:
                count = store.issue_keys(
                    _issue_rows(lines),
                    write_token=tokens_file.write,
                    before_commit=tokens_file.sync,
                    on_progress=on_progress,
                )
        except BaseException:
            if tokens_file.is_complete:
                _settle(store, tokens_file)
            raise
        tokens_file.publish()
    show(
        {"issued": count, "tokens_file": str(out)},
        f"Issued {plural(count, 'key')}. Keep {out} safe: the tokens are nowhere else.",
    )


def _settle(store: "Store", tokens_file: "_TokensFile") -> None:
    """Publish the tokens if their keys are there: Ctrl-C may come right after the commit."""
    tokens_file.keep = True
    try:
        store.key(tokens_file.last_key)
    except NotFoundError:
        tokens_file.keep = False
    except KeystoreError as error:
        raise KeystoreError(
            f"{error.message} Whether the keys are issued is not known.",
            hint=f"If they are, their tokens are in {tokens_file.draft}.",
        ) from error
    else:
        tokens_file.publish()


class _TokensFile:
    """Tokens on their way to a new file: in a draft beside it until ``publish``."""

    def __init__(self, path: Path) -> None:
        try:
            self.draft = migrate.draft_path(path)
        except StoreExistsError as error:
            raise AlreadyExistsError(error.message, hint=error.hint) from None
        self._path = path
        self.keep = False
        self.is_complete = False
        self.last_key = ""

    def __enter__(self) -> Self:
        descriptor = os.open(self.draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file: IO[str] = os.fdopen(descriptor, "w", encoding="utf-8", newline="")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(("account", "label", "api_key", "token"))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()
        finally:
            if not self.keep:
                self.draft.unlink(missing_ok=True)

    def write(self, row: "IssuedRow") -> None:
        """Add a key and its token."""
        self._rows.writerow((row.account, row.label, row.api_key, row.token))
        self.last_key = row.api_key

    def sync(self) -> None:
        """Bring the draft to disk, whole; only then may the keys be committed."""
        self._file.flush()
        os.fsync(self._file.fileno())
        sync_folder(self._path.parent)
        self.is_complete = bool(self.last_key)

    def publish(self) -> None:
        """Move the draft to its place. The keys are issued, so it is never removed from here on.

        Raises:
            KeystoreError: says where the tokens are instead.
        """
        self.keep = True
        try:
            migrate.publish(self.draft, self._path)
        except (KeystoreError, OSError) as error:
            if not self.draft.exists():
                raise
            raise KeystoreError(
                f"the keys are issued, but {self._path} could not be made.",
                hint=f"Their tokens are in {self.draft}: move it to a safe place.",
            ) from error


class _Lines:
    """A file's lines, as text, and how much of it was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.bytes_read = 0

    @property
    def size(self) -> int | None:
        """The file's size; ``None`` for a pipe."""
        try:
            found = os.fstat(self._file.fileno())
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def __iter__(self) -> Iterator[str]:
        number = 0
        while raw := self._file.readline(MAX_LINE + 1):
            number += 1
            if len(raw) > MAX_LINE:
                raise InvalidInputError(f"line {number}: is longer than 1 MiB.", hint=_HINT)
            self.bytes_read += len(raw)
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise InvalidInputError(f"line {number}: is not UTF-8.", hint=_HINT) from None


def _opened(source: str) -> AbstractContextManager[IO[bytes]]:
    if source == "-":
        if sys.stdin is None:
            raise InvalidInputError("standard input is closed.", hint="Name a file.")
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise InvalidInputError(f"{source}: {error.strerror}.", hint="Check the path.") from None


def _csv(lines: _Lines, names: Mapping[str, object]) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the number and the cells of each record; a blank cell is as none at all."""
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1  # where the record starts: one in quotes may have several
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise InvalidInputError(f"line {line}: is not CSV: {error}.", hint=_HINT) from None
        if not cells:
            continue
        if header is None:
            header = _header(line, cells, names)
        elif len(cells) != len(header):
            raise InvalidInputError(
                f"line {line}: has {plural(len(cells), 'cell')}, the header {len(header)}.",
                hint=_HINT,
            )
        else:
            yield line, {name: cell for name, cell in zip(header, cells, strict=True) if cell}
    if header is None:
        raise InvalidInputError("line 1: there is no header.", hint=_header_hint(names))


def _header(line: int, cells: list[str], names: Mapping[str, object]) -> list[str]:
    # What stands there is not repeated: without a header the first line may hold a token.
    found = [cell.strip() for cell in cells]
    for number, name in enumerate(found, 1):
        if name not in names or name in found[: number - 1]:
            what = "stands twice" if name in names else "is not known"
            raise InvalidInputError(
                f"line {line}: column {number} of the header {what}.", hint=_header_hint(names)
            )
    if "account" not in found:
        raise InvalidInputError(
            f"line {line}: the header has no account.", hint=_header_hint(names)
        )
    return found


def _header_hint(names: Mapping[str, object]) -> str:
    return f"Nothing was written; a header may name {', '.join(names)}."


def _json_lines(lines: _Lines) -> Iterator[tuple[int, dict[str, object]]]:
    from keystore.admin.bulk import strict_json

    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            values = strict_json(text)
        except ValueError as error:
            raise InvalidInputError(f"line {number}: {error}.", hint=_HINT) from None
        if not isinstance(values, dict):
            raise InvalidInputError(f"line {number}: is not a JSON object.", hint=_HINT)
        yield number, values


def _issue_rows(lines: _Lines) -> "Iterator[BulkIssue]":
    from keystore.admin.bulk import BulkIssue

    for line, values in _csv(lines, dict.fromkeys(_ISSUE_FIELDS)):
        expires = values.pop("expires", None)
        if expires is not None:
            try:
                values["expires_at"] = expiry(str(expires).strip())
            except click.BadParameter:
                raise InvalidInputError(
                    f"line {line}: expires: is neither like 90d or 12h nor an ISO 8601 time.",
                    hint=_HINT,
                ) from None
        yield BulkIssue.read(line, values)


@contextmanager
def _progress(what: str, lines: _Lines) -> Iterator[Callable[[int], None] | None]:
    """Draw a progress bar on standard error, at a terminal only."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} keys"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=lines.size, rows=0)

        def on_progress(rows: int) -> None:
            progress.update(task, completed=lines.bytes_read, rows=rows)

        yield on_progress


COMMANDS: tuple[click.Command, ...] = ()  # they are in the group of keystore.cli.keys
