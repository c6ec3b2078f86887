"""Commands that compare a store with its targets, and shorten its log: verify, compact."""

from datetime import timedelta
from pathlib import Path

import click

from keystore.cli.common import plural, printable, seconds, show, store_options
from keystore.cli.sync import keys_option, read_root, root_option, signing_keys
from keystore.db import open_store
from keystore.sync import compact as compaction
from keystore.sync import targets
from keystore.sync.verify import Verification

SHOWN = 20
"""Differences that are named on a terminal; --json has them all."""


@click.command(short_help="Compare the store with a target, and repair.")
@click.argument("target")
@click.option("--repair", is_flag=True, help="Bring over again just what differs.")
@keys_option
@root_option
@store_options
def verify(
    db_path: Path, target: str, repair: bool, keys_path: Path | None, root_path: Path | None
) -> None:
    """Compare the store with TARGET by digests, and name the records that differ.

    Exits with 1 if something differs and was not repaired. The origin is right: a repair there
    pushes what differs; a repair at a replica takes it from TARGET.

    \b
    Example:
      keystore verify postgresql://hub.example.org/keystore
      keystore verify --db edge.db postgresql://hub.example.org/keystore --repair
    """
    with open_store(db_path) as file:
        found = targets.verify(
            file,
            target,
            repair=repair,
            keys=signing_keys(keys_path, db_path),
            root=read_root(root_path),
        )
    show(found, _told(found))
    if len(found.differences) > found.repaired:
        click.get_current_context().exit(1)


def _told(found: Verification) -> str:
    where = f"{found.target} as of change {found.as_of_change}"
    if not found.differences:
        return f"Nothing differs from {where}: {plural(found.buckets, 'digest')} compared."
    lines = [f"{plural(len(found.differences), 'record')} not as in {where}:"]
    lines += [f"  {d.table} {d.record_id}: {d.kind}" for d in found.differences[:SHOWN]]
    if len(found.differences) > SHOWN:
        lines.append(f"  and {len(found.differences) - SHOWN} more; --json names all.")
    lines.append("Repaired." if found.repaired else "Add --repair to bring them over again.")
    return "\n".join(map(printable, lines))


@click.command(short_help="Shorten the ChangeLog.")
@click.option(
    "--lease",
    type=seconds,
    metavar="DURATION",
    default=str(int(compaction.DEFAULT_LEASE.total_seconds())),
    show_default=False,
    help="A target that was silent for longer gets everything when it returns. Default: 30d",
)
@store_options
def compact(db_path: Path, lease: int) -> None:
    """Shorten the ChangeLog: drop what every target has, and all but the latest of each record.

    The file does not shrink; the room in it is used again.

    \b
    Example:
      keystore compact
      keystore compact --lease 7d
    """
    with open_store(db_path) as file:
        done = compaction.compact(file, lease=timedelta(seconds=lease))
    removed = f"Removed {plural(done.removed, 'log row')}, kept {done.kept}"
    lines = [f"{removed}; the log starts after change {done.horizon}."]
    if done.held_by:
        lines.append(f"{done.held_by} has not got the later ones yet.")
    lines += [f"{url} was silent for too long: it will get everything." for url in done.released]
    show(done, "\n".join(map(printable, lines)))


COMMANDS: tuple[click.Command, ...] = (verify, compact)
