"""Commands for a repository of signed files: create, info, rotate, renew, gc."""

import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keystore import clock
from keystore.cli.common import (
    db_option,
    json_option,
    plural,
    printable,
    seconds,
    show,
    show_pairs,
)
from keystore.cli.offline import duration
from keystore.cli.sync import keys_option, read_root, root_option, signing_keys
from keystore.db import open_store
from keystore.errors import WrongRoleError
from keystore.sync import engine, targets, urls
from keystore.sync.extras import extra

if TYPE_CHECKING:
    from keystore.store import Store
    from keystore.sync.repository_format import Scope

root_key_option = click.option(
    "--root-key",
    "root_key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The root key. Default: offline/root.pem in the folder of the keys.",
)


_LEAST_SECONDS = 600


@click.group()
def repo() -> None:
    """A repository of signed files, and its keys."""


@repo.command("create", short_help="Make an empty repository, and its keys.")
@click.argument("target")
@keys_option
@root_key_option
@click.option(
    "--expires",
    type=seconds,
    default="7d",
    show_default=True,
    metavar="TIME",
    help="How long a publication is good for: sync more often than this.",
)
@click.option(
    "--max-offline",
    type=seconds,
    default="30d",
    show_default=True,
    metavar="TIME",
    help="How long a replica may go on after that, without contact; then it denies.",
)
@click.option("--account", metavar="EMAIL", help="Carry the rows of this account only.")
@click.option("--service", metavar="NAME", help="Carry the rows of this service only.")
@db_option
@json_option
def repo_create(
    db_path: Path,
    target: str,
    keys_path: Path | None,
    root_key: Path | None,
    expires: int,
    max_offline: int,
    account: str | None,
    service: str | None,
) -> None:
    """Make an empty repository at TARGET (file:///…, a path, or s3://…) and the keys that sign it.

    From then on `keystore sync` publishes there. A store may publish to several repositories, each
    with keys of its own: those in the default folder, or a folder in it, are found by themselves.

    \b
    Example:
      keystore repo create file:///srv/keys
      keystore repo create s3://bucket/keys --max-offline 60d
      keystore repo create /srv/ada --keys keystore.db.keys/ada --account ada@example.org
    """
    if account is not None and service is not None:
        raise click.UsageError("--account and --service exclude each other.")
    if 0 < expires < _LEAST_SECONDS:
        raise click.UsageError("--expires below 10m: an origin that follows signs every 5 minutes.")
    from keystore.store import Store

    with extra("files"):
        from keystore.sync import repository, repository_keys
        from keystore.sync.storage import storage_of
    url, keys = urls.normalized(target), signing_keys(keys_path, db_path)
    storage = storage_of(url)
    with Store.open(db_path) as store:
        if not store.file.info().is_origin:
            raise WrongRoleError(
                f"{db_path} is a replica; only an origin publishes.", hint="Run it at the origin."
            )
        root = repository.create(
            storage,
            keys,
            root_key=root_key,
            lifetime=timedelta(seconds=expires),
            max_offline=timedelta(seconds=max_offline),
            scope=_scope(store, account, service),
        )
        repository_id = repository.identity(storage, root.read_bytes())
        engine.remember(store.file, repository_id, urls.redacted(url))
    root_key = root_key or repository_keys.root_key_path(keys)
    online = keys / repository_keys.ONLINE_KEY
    said = ""
    if signing_keys(None, db_path) not in (keys, keys.parent):
        said = (
            f"\nThe keys are apart: name them at each sync, `keystore sync {target} --keys {keys}`."
        )
    show(
        {
            "url": urls.redacted(url),
            "root": str(root),
            "keys": str(keys),
            "root_key": str(root_key),
        },
        f"Made repository {urls.redacted(url)}.\n"
        f"Replicas trust {root}: hand it to them by a way that you trust.\n"
        f"Move {root_key} offline; keep {online} here: it signs each sync.\n"
        f"Sync more often than every {_words(expires)}: the signatures expire.{said}",
    )


@repo.command("info")
@click.argument("target")
@keys_option
@root_option
@db_option
@json_option
def repo_info(db_path: Path, target: str, keys_path: Path | None, root_path: Path | None) -> None:
    """Show what a repository offers, and until when it does.

    Who publishes needs no --root: it lies in the folder of the keys.

    \b
    Example:
      keystore repo info file:///srv/keys
      keystore repo info https://cdn.example.org/keys --root root.json
    """
    with extra("files"):
        from keystore.sync import repository_info, repository_keys
        from keystore.sync.storage import storage_of
    url = urls.normalized(target)
    root = read_root(root_path)
    if root is None:
        root = repository_keys.trusted_root(_keys_of(target, keys_path, db_path))
    info = repository_info.look(storage_of(url), root)
    snapshot = None
    if info.snapshot_bytes:
        snapshot = f"{info.snapshot_bytes:,} bytes, as of change {info.snapshot_change}"
    show_pairs(
        info,
        [
            ("repository", info.repository_id),
            ("origin", info.origin_id),
            ("carries", info.scope or "everything"),
            ("as of", f"change {info.as_of_change}, {info.as_of_at}" if info.as_of_at else None),
            ("good until", _until(info.expires_at) or "nothing is published yet"),
            ("max offline", f"{_words(info.max_offline_seconds)} after that"),
            (
                "root file",
                f"version {info.root_version}, good until {_until(info.root_expires_at)}",
            ),
            ("keys", f"{info.root_keys} root, {info.online_keys} online"),
            ("snapshot", snapshot),
            ("changes", f"{plural(info.segments, 'file')}, {info.segment_bytes:,} bytes"),
        ],
    )
    for warning in info.warnings:
        click.echo(f"keystore: warning: {printable(warning)}", err=True)


@repo.command("rotate", short_help="Replace the online key, the root key, or both.")
@click.argument("target")
@click.option("--online", is_flag=True, help="Make a new online key.")
@click.option("--root", "root", is_flag=True, help="Make a new root key.")
@keys_option
@root_key_option
@db_option
@json_option
def repo_rotate(
    db_path: Path,
    target: str,
    online: bool,
    root: bool,
    keys_path: Path | None,
    root_key: Path | None,
) -> None:
    """Replace keys. Replicas follow by themselves: each root file is signed by the one before.

    Needs the root key. What is published is signed anew, and the old key counts no more, once a
    replica has pulled. New replicas are given root.json as it is now. Interrupted? Run it again.

    \b
    Example:
      keystore repo rotate file:///srv/keys --online
      keystore repo rotate s3://bucket/keys --root --root-key /media/safe/root.pem
    """
    if not (online or root):
        raise click.UsageError("Say which key: --online, --root, or both.")
    keys = _keys_of(target, keys_path, db_path)
    version = _rotate(target, keys, root_key, online=online, root=root)
    kinds = " and ".join(kind for kind, is_on in (("online", online), ("root", root)) if is_on)
    show({"root_version": version}, f"Replaced the {kinds} key; root file {version}.")


@repo.command("renew")
@click.argument("target")
@keys_option
@root_key_option
@db_option
@json_option
def repo_renew(db_path: Path, target: str, keys_path: Path | None, root_key: Path | None) -> None:
    """Sign a root file that lives two years more, with the same keys.

    \b
    Example:
      keystore repo renew file:///srv/keys --root-key /media/safe/root.pem
    """
    keys = _keys_of(target, keys_path, db_path)
    version = _rotate(target, keys, root_key, online=False, root=False)
    show({"root_version": version}, f"Renewed: root file {version}.")


@repo.command("gc", short_help="Remove what nobody names any more.")
@click.argument("target")
@keys_option
@db_option
@json_option
def repo_gc(db_path: Path, target: str, keys_path: Path | None) -> None:
    """Remove now what nobody names any more, if it was noted a day ago; note what is new.

    A sync does the same once an hour: readers that have begun may need what was replaced.

    \b
    Example:
      keystore repo gc s3://bucket/keys
    """
    with extra("files"):
        from keystore.sync.repository import Publisher
        from keystore.sync.repository_keys import alone
        from keystore.sync.storage import storage_of
    storage, keys = storage_of(urls.normalized(target)), _keys_of(target, keys_path, db_path)
    with alone(keys), storage.lock():
        publisher = Publisher(storage, keys)
        swept = publisher.sweep(publisher.read())
    said = (
        f"Removed {plural(len(swept.removed), 'file')}; "
        f"{plural(len(swept.noted), 'file')} will go a day after they were noted."
    )
    if swept.missing:
        said += f"\nMissing: {', '.join(swept.missing)}. The next sync publishes everything anew."
    show(swept, said)


def _rotate(target: str, keys: Path, root_key: Path | None, *, online: bool, root: bool) -> int:
    with extra("files"):
        from keystore.sync import rotation
        from keystore.sync.storage import storage_of
    storage = storage_of(urls.normalized(target))
    return rotation.rotate(storage, keys, root_key=root_key, online=online, root=root)


def _scope(store: "Store", account: str | None, service: str | None) -> "Scope | None":
    from keystore.sync.repository_format import Scope

    if account is not None:
        found = store.account(account)
        return Scope(kind="account", record_id=found.account_id, name=found.email)
    if service is not None:
        chosen = store.service(service)
        return Scope(kind="service", record_id=chosen.service_id, name=chosen.name)
    return None


def _keys_of(target: str, keys_path: Path | None, db_path: Path) -> Path:
    """Return the folder with a repository's keys; the store, if there is one, knows which it is."""
    keys = signing_keys(keys_path, db_path)
    if not db_path.exists():
        return keys
    with open_store(db_path) as file:
        return targets.keys_for(file, target, keys)


def _until(text: str | None) -> str | None:
    if text is None:
        return None
    left = clock.seconds(text) - time.time()
    return f"{text}, {f'in {duration(left)}' if left > 0 else f'{duration(-left)} ago'}"


def _words(count: int) -> str:
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if count >= size and count % size == 0:
            return plural(count // size, unit)
    return plural(count, "second")


COMMANDS: tuple[click.Command, ...] = (repo,)
