"""Usage: reports, and signed files: keys, export at a replica, ingest at its origin."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keystore.cli import metering
from keystore.cli.common import plural, printable, show, show_table, store_options
from keystore.db import open_store
from keystore.errors import UsageFileError
from keystore.sync.extras import extra

if TYPE_CHECKING:
    from keystore.sync.usage_files import Gap

_ENROLMENT_BYTES = 64 << 10
_NUMBERS = re.compile(r"([1-9]\d{0,17})(?:-([1-9]\d{0,17}))?")


def _numbers(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = _NUMBERS.fullmatch(text)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise click.BadParameter(f"{text!r} is neither a number nor like 3-7")
    return int(match[1]), int(match[2] or match[1])


def _key_path(path: Path | None, db_path: Path) -> Path:
    return path or db_path.parent / f"{db_path.name}.usage-key.pem"


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(map(printable, lines))


def _missing(gap: "Gap") -> str:
    return (
        f"Missing of {gap.store_id} ({gap.incarnation[:8]}): {gap.missing}. "
        f"At the replica: keystore usage export --again {gap.missing}"
    )


key_option = click.option(
    "--key",
    "key_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The replica's private key. Default: <store's file>.usage-key.pem",
)


class _Usage(click.Group):
    """Reports when no subcommand is named: it is what most want, most of the time."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_report = not args or (args[0].startswith("-") and args[0] not in {"-h", "--help"})
        return super().parse_args(ctx, ["report", *args] if is_report else args)


@click.group(cls=_Usage)
def usage() -> None:
    """What was used: totals (without a subcommand), and usage in signed files.

    \b
    Example:
      keystore usage                        # the same as: keystore usage report
      keystore usage --by key --since 7d
    """


@usage.command("key", short_help="At a replica: make its key, and what enrolls it.")
@click.argument("enrolment", type=click.Path(path_type=Path))
@key_option
@store_options
def key(db_path: Path, enrolment: Path, key_path: Path | None) -> None:
    """At a replica: write to ENROLMENT what its origin must know to take its usage files.

    Makes the replica's key first, if it has none. The key stays here; ENROLMENT holds no secret.

    \b
    Example:
      keystore usage key edge.enrolment --db edge.db
    """
    with extra("files"):
        from keystore.sync import usage_keys
        from keystore.sync.usage_place import place
    path = _key_path(key_path, db_path)
    with open_store(db_path) as file:
        data, fingerprint, is_new = usage_keys.make_key(file, path)
    place(enrolment, data)
    show(
        {
            "key": str(path),
            "is_new": is_new,
            "fingerprint": fingerprint,
            "enrolment": str(enrolment),
        },
        f"{'Made' if is_new else 'Found'} key {path}; keep it here.\n"
        f"Its fingerprint is {fingerprint}.\n"
        f"Take {enrolment} to the origin: keystore usage enroll.",
    )


@usage.command("enroll", short_help="At an origin: take a replica's key.")
@click.argument("enrolment", type=click.Path(path_type=Path))
@click.option("--label", metavar="TEXT", help="Whose key that is, for the list of keys.")
@store_options
def enroll(db_path: Path, enrolment: Path, label: str | None) -> None:
    """At an origin: take the usage files that a replica's key signs.

    Compare the fingerprint with the one that the replica shows, by a way that you trust.

    \b
    Example:
      keystore usage enroll edge.enrolment --label "shop in Trento"
    """
    with extra("files"):
        from keystore.sync import usage_keys
        from keystore.sync.usage_place import read
    with open_store(db_path) as file:
        try:
            data = read(enrolment, _ENROLMENT_BYTES, follow=True)
            added, is_new = usage_keys.enroll(file, data, label)
        except UsageFileError as error:
            error.message = f"{enrolment}: {error.message}"
            raise
        others = [
            other
            for other in usage_keys.keys(file)
            if other.store_id == added.store_id
            and other.fingerprint != added.fingerprint
            and other.revoked_at is None
        ]
    said = "Enrolled" if is_new else "Already enrolled:"
    lines = [f"{said} key {added.fingerprint} of replica {added.store_id}."]
    lines += [f"The replica's key {other.fingerprint} counts as well." for other in others]
    show(added, "\n".join(lines))


@usage.command("keys", short_help="At an origin: list the keys of replicas.")
@store_options
def keys(db_path: Path) -> None:
    """At an origin: list the keys that replicas sign their usage files with.

    \b
    Example:
      keystore usage keys
    """
    with extra("files"):
        from keystore.sync import usage_keys
    with open_store(db_path) as file:
        found = usage_keys.keys(file)
    columns = ("fingerprint", "store_id", "label", "enrolled_at", "revoked_at")
    show_table(found, columns, empty="No keys: `keystore usage enroll` adds one.")


@usage.command("revoke-key", short_help="At an origin: take nothing more of a key.")
@click.argument("fingerprint")
@store_options
def revoke_key(db_path: Path, fingerprint: str) -> None:
    """At an origin: take nothing more that this key has signed; what was taken stays.

    \b
    Example:
      keystore usage revoke-key 5f0c...
    """
    with extra("files"):
        from keystore.sync import usage_keys
    with open_store(db_path) as file:
        revoked = usage_keys.revoke_key(file, fingerprint)
    show(
        revoked,
        f"Key {revoked.fingerprint} of replica {revoked.store_id} is revoked "
        f"since {revoked.revoked_at}.",
    )


@usage.command("export", short_help="At a replica: write its usage into files.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--again",
    callback=_numbers,
    metavar="N[-M]",
    help="Write the files of these numbers again, instead of what is new.",
)
@key_option
@store_options
def export(
    db_path: Path, folder: Path, again: tuple[int, int] | None, key_path: Path | None
) -> None:
    """At a replica: write its new usage into signed, numbered files in FOLDER.

    \b
    Example:
      keystore usage export /media/stick --db edge.db
      keystore usage export /media/stick --again 3-5 --db edge.db
    """
    with extra("files"):
        from keystore.sync import usage_files
    path = _key_path(key_path, db_path)
    written: list[usage_files.Written] = []
    try:
        with open_store(db_path) as file:
            if again is None:
                usage_files.export(file, folder, path, on_written=written.append)
            else:
                written += usage_files.export_again(file, folder, path, *again)
    finally:  # what was written is said, even if the next one failed
        if written:
            lines = [f"Wrote {item.path} ({plural(item.rows, 'row')})." for item in written]
            show(written, _lines(lines))
    if not written:
        show([], "No new usage.")


@usage.command("ingest", short_help="At an origin: take usage files.")
@click.argument(
    "paths", metavar="FILE|FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@store_options
def ingest(db_path: Path, paths: tuple[Path, ...]) -> None:
    """At an origin: take usage files, and of each FOLDER all that end in .usage.

    In any order, and again as often as you like: each row counts once. Exits with 1 if a file
    was refused; the others are taken all the same.

    \b
    Example:
      keystore usage ingest /media/stick
    """
    with extra("files"):
        from keystore.sync import usage_files
    with open_store(db_path) as file:
        done = usage_files.ingest(file, paths)
    lines = []
    for item in done.taken:
        line = f"{item.path}: {item.outcome}, {plural(item.rows, 'row')}, {item.new} new."
        if item.outcome == "copy":
            line += f" Another number {item.number} is here: that replica's file was copied."
        lines.append(line)
    lines += [
        f"{item.path}: refused ({item.code}): {item.message} {item.hint}" for item in done.refused
    ]
    lines += [_missing(gap) for gap in done.gaps]
    show(done, _lines(lines or ["No usage files."]))
    if done.refused:
        click.get_current_context().exit(1)


@usage.command("gaps", short_help="At an origin: list the numbers that are missing.")
@store_options
def gaps(db_path: Path) -> None:
    """At an origin: list the numbers that are missing between those that were taken.

    \b
    Example:
      keystore usage gaps
    """
    with extra("files"):
        from keystore.sync import usage_files
    with open_store(db_path) as file:
        found = usage_files.gaps(file)
    show(found, _lines([_missing(gap) for gap in found] or ["No gaps."]))


for _command in metering.COMMANDS:
    usage.add_command(_command)

COMMANDS: tuple[click.Command, ...] = (usage,)
