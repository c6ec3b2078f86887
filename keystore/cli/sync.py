"""Commands that talk to a target: sync and replicate."""

import uuid
from pathlib import Path

import click

from keystore.cli.common import json_option, plural, printable, progress_bar, show, store_options
from keystore.db import open_store
from keystore.errors import InvalidInputError
from keystore.sync import targets
from keystore.sync.engine import Report

root_option = click.option(
    "--root",
    "root_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Signed files: the root file to trust (root.json); needed once, then remembered.",
)
keys_option = click.option(
    "--keys",
    "keys_path",
    type=click.Path(path_type=Path),
    envvar="KEYSTORE_KEYS",
    show_envvar=True,
    metavar="FOLDER",
    help="Signed files: the folder with the signing keys. Default: <store's file>.keys",
)


@click.command(short_help="Push, pull, and hand usage up, by the store's role.")
@click.argument("target", required=False)
@click.option(
    "--usage-to",
    metavar="TARGET",
    help="Hand usage to this hub; for a replica that gets its keys from files.",
)
@click.option("--follow", is_flag=True, help="Go on until SIGTERM: sync at once what changes.")
@click.option(
    "--poll",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="With --follow: how often to look even if there was no news. Default: 30; to publish "
    "files, 300.",
)
@click.option(
    "--reconcile",
    is_flag=True,
    help="This copy of the origin is the one that counts (after a restore): replace what another "
    "copy has pushed.",
)
@keys_option
@root_option
@store_options
def sync(
    db_path: Path,
    target: str | None,
    usage_to: str | None,
    follow: bool,
    poll: float | None,
    keys_path: Path | None,
    root_path: Path | None,
    reconcile: bool,
) -> None:
    """Sync the store with TARGET: an origin pushes, a replica pulls and hands its usage up.

    TARGET is postgresql://… (a hub), file:///… or a path (a repository of signed files), s3://…
    (one in a bucket), or https://… (one to read). Without it, every target that this store has
    synced with.
    A password belongs into PGPASSWORD or ~/.pgpass: it is never stored.

    \b
    Example:
      keystore sync postgresql://hub.example.org/keystore
      keystore sync --db edge.db
      keystore sync --db edge.db --follow
    """
    keys, root = signing_keys(keys_path, db_path), read_root(root_path)
    if poll is not None and not follow:
        raise click.UsageError("--poll goes with --follow.")
    if reconcile and follow:
        raise click.UsageError("--reconcile is done once: without --follow.")
    if follow:
        from keystore.cli.follow import follow_until_signal

        follow_until_signal(db_path, target, usage_to, keys=keys, root=root, poll=poll)
        return
    reports: list[Report] = []
    try:
        with open_store(db_path) as file, progress_bar("records") as on_progress:
            targets.sync(
                file,
                target,
                usage_to=usage_to,
                keys=keys,
                root=root,
                reconcile=reconcile,
                on_report=reports.append,
                on_progress=on_progress,
            )
    finally:  # what was done is said, even if another target failed
        if reports:
            show(reports, "\n".join(map(_sentence, reports)))
        for warning in (warning for report in reports for warning in report.warnings):
            click.echo(f"keystore: warning: {printable(warning)}", err=True)


@click.command(short_help="Make a replica.")
@click.argument("target")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--origin",
    "origin_id",
    type=click.UUID,
    metavar="UUID",
    help="Which of a hub's origins to mirror.",
)
@root_option
@json_option
def replicate(target: str, path: Path, origin_id: uuid.UUID | None, root_path: Path | None) -> None:
    """Make a replica of TARGET's origin at PATH, complete with its first pull.

    \b
    Example:
      keystore replicate postgresql://hub.example.org/keystore edge.db
      keystore replicate https://cdn.example.org/keys edge.db --root root.json
    """
    origin = str(origin_id) if origin_id else None
    with progress_bar("records") as on_progress:
        report = targets.replicate(
            target, path, origin_id=origin, root=read_root(root_path), on_progress=on_progress
        )
    show(report, f"Made replica {path}. {_sentence(report)}")


def signing_keys(keys_path: Path | None, db_path: Path) -> Path:
    """Return the folder with a repository's keys.

    Raises:
        InvalidInputError: the store's path is a folder's, which has no name to go by.
    """
    if not db_path.name:
        raise InvalidInputError(
            f"{db_path}: a folder, where a store's file is meant.", hint="Check the path (--db)."
        )
    return keys_path or db_path.with_name(db_path.name + ".keys")


def read_root(path: Path | None) -> bytes | None:
    """Read the root file to trust."""
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"{path}: {error.strerror}.",
            hint="Pass the root.json that `keystore repo create` wrote (--root).",
        ) from error


def _sentence(report: Report) -> str:
    done = []
    if report.revocations:
        done.append(f"took over {plural(report.revocations, 'revocation')}")
    if report.pushed is not None:
        done.append(f"pushed {plural(report.pushed, 'record')}")
    if report.reconciled is not None:
        done.append(f"reconciled {plural(report.reconciled, 'record')}")
    if report.pulled is not None:
        done.append(f"pulled {plural(report.pulled, 'record')}")
    if report.usage is not None:
        done.append(f"handed up {plural(report.usage, 'usage row')}")
    if report.ledger:
        done.append(f"handed up {plural(report.ledger, 'ledger row')}")
    as_of = f"; as of change {report.as_of_change}" if report.as_of_change is not None else ""
    return f"{report.target}: {', '.join(done)}{as_of}."


COMMANDS: tuple[click.Command, ...] = (sync, replicate)
