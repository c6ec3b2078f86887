"""Opens a target by its URL, and syncs a store with it by the store's role.

``postgresql://…`` is a hub, ``file:///…`` a repository in a folder (a plain path means the same),
``https://…`` a repository to read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from keystore import sql
from keystore.db import StoreFile, scalar
from keystore.errors import (
    InvalidInputError,
    KeystoreError,
    UnsupportedTargetError,
    WrongRoleError,
)
from keystore.sync import engine
from keystore.sync.engine import Report
from keystore.sync.protocols import Target

if TYPE_CHECKING:
    from keystore.sync.postgres import PostgresHub

_SECRET_PARAMETERS = {"password", "sslpassword"}
_Q = sql.named("sync")


def normalized(target: str) -> str:
    """Return the URL of a target; a plain path becomes a ``file://`` URL."""
    if not target.strip():
        raise InvalidInputError("the target is empty.", hint="Name a URL or a folder.")
    return target if "://" in target else Path(target).absolute().as_uri()


def redacted(url: str) -> str:
    """Return the URL without passwords: what may be stored, shown and logged."""
    parts = urlsplit(url)
    host = parts.netloc
    if "@" in host:
        user, _, host = host.rpartition("@")
        host = f"{user.partition(':')[0]}@{host}"
    query = [
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if name not in _SECRET_PARAMETERS
    ]
    return urlunsplit(parts._replace(netloc=host, query=urlencode(query)))


def open_hub(url: str) -> "PostgresHub":
    """Connect to a hub.

    Raises:
        UnsupportedTargetError: the URL is no ``postgresql://`` one, or the driver is missing.
        TargetUnavailableError: nobody answers.
    """
    if urlsplit(url).scheme not in {"postgresql", "postgres"}:
        raise UnsupportedTargetError(
            f"{redacted(url)} is not a hub.", hint="A hub's URL starts with postgresql://."
        )
    try:
        from keystore.sync.postgres import PostgresHub
    except ImportError as error:
        raise _missing_extra("postgres", error) from error
    return PostgresHub(url)


@contextmanager
def opened(
    target: str,
    *,
    file: StoreFile | None = None,
    keys: Path | None = None,
    root: bytes | None = None,
) -> Iterator[Target]:
    """Open a target for the length of a ``with`` block.

    ``file`` is the store that syncs: it remembers the root of trust of a repository. ``keys`` is
    the folder with the key that signs, ``root`` the pinned root file.
    """
    url = normalized(target)
    opened_target: Target
    match urlsplit(url).scheme:
        case "postgresql" | "postgres":
            opened_target = open_hub(url)
        case "file" | "https" | "http":
            try:
                from keystore.sync.files import FileRepository
            except ImportError as error:
                raise _missing_extra("files", error) from error
            state = None
            if file is not None:
                with file.errors():
                    state = scalar(file.conn, _Q["source_state"], redacted(url))
            opened_target = FileRepository(url, keys=keys, root=root, state=state)
        case scheme:
            raise UnsupportedTargetError(
                f"{scheme}:// is not a kind of target.",
                hint="Use postgresql://…, file:///… or https://….",
            )
    try:
        yield opened_target
    finally:
        opened_target.close()


def sync(
    file: StoreFile,
    target: str | None = None,
    *,
    usage_to: str | None = None,
    keys: Path | None = None,
    root: bytes | None = None,
    on_report: Callable[[Report], None] = lambda _: None,
) -> list[Report]:
    """Sync a store by its role: an origin pushes, a replica pulls, both hand their usage up.

    Without ``target`` and ``usage_to``, do it with every target that the store knows. One report
    per target; ``on_report`` gets each as it is done. One target that fails does not keep the
    others from their turn.

    Raises:
        InvalidInputError: no target is given and none is known.
        KeystoreError: the first that went wrong, after all had their turn.
    """
    wanted = [(t, only) for t, only in ((target, False), (usage_to, True)) if t is not None]
    if not wanted:
        with file.read() as conn:
            wanted = [(url, bool(only)) for url, only in conn.execute(_Q["targets"])]
    if not wanted:
        raise InvalidInputError(
            f"{file.path} knows no target yet.", hint="Name one: `keystore sync TARGET`."
        )
    reports, failures = [], []
    for url, usage_only in wanted:
        try:
            report = _sync_one(file, url, usage_only=usage_only, keys=keys, root=root)
        except KeystoreError as error:
            if len(wanted) > 1:
                error.message = f"{redacted(normalized(url))}: {error.message}"
            failures.append(error)
        else:
            reports.append(report)
            on_report(report)
    if failures:
        raise failures[0]
    return reports


def replicate(
    target: str, path: Path, *, origin_id: str | None = None, root: bytes | None = None
) -> Report:
    """Make a replica at ``path`` from a target; see :func:`keystore.sync.engine.replicate`."""
    url = redacted(normalized(target))
    report = Report(url)
    with opened(target, root=root) as opened_target:
        if opened_target.source is None:
            raise InvalidInputError(
                f"{url}: a repository needs the root file that this replica is to trust.",
                hint="Pass --root with the 1.root.json that `keystore repo create` named.",
            )
        engine.replicate(opened_target.source, url, path, report, origin_id=origin_id)
    return report


def _sync_one(
    file: StoreFile, target: str, *, usage_only: bool, keys: Path | None, root: bytes | None
) -> Report:
    url = redacted(normalized(target))
    report = Report(url)
    is_origin = file.info().is_origin
    with opened(target, file=file, keys=keys, root=root) as opened_target:
        if usage_only and opened_target.usage_sink is None:
            raise UnsupportedTargetError(
                f"{url} cannot take usage.", hint="Hand usage to a hub: postgresql://…."
            )
        if not usage_only and is_origin:
            if opened_target.sink is None:
                raise WrongRoleError(
                    f"{url} cannot be written from here.",
                    hint="Publish to a folder (file:///…) with its keys (--keys).",
                )
            engine.push(file, opened_target.sink, url, report)
        elif not usage_only:
            if opened_target.source is None:
                raise InvalidInputError(
                    f"{url}: this replica has not been told which root file to trust.",
                    hint="Pass --root with the 1.root.json that `keystore repo create` named.",
                )
            engine.pull(file, opened_target.source, url, report)
        if opened_target.usage_sink is not None:
            engine.hand_up_usage(file, opened_target.usage_sink, url, report, usage_only=usage_only)
    return report


def _missing_extra(extra: str, error: ImportError) -> UnsupportedTargetError:
    return UnsupportedTargetError(
        f"this target needs the extra {extra!r} ({error.name} is not installed).",
        hint=f"pip install 'keystore[{extra}]'",
    )
