"""Opens a target by its URL, and syncs a store with it by the store's role.

``postgresql://…`` is a hub, ``file:///…`` a repository in a folder (a plain path means the same),
``s3://…`` one in a bucket, ``https://…`` one to read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from keystore import sql
from keystore.db import StoreFile, open_store, scalar
from keystore.errors import (
    ForkedStoreError,
    IncompleteStateError,
    InvalidInputError,
    KeystoreError,
    NotFoundError,
    StaleTargetError,
    TargetError,
    UnsupportedTargetError,
    WrongRoleError,
)
from keystore.sync import engine, exchange
from keystore.sync import verify as verification
from keystore.sync.engine import Report
from keystore.sync.extras import extra
from keystore.sync.progress import OnProgress, nobody
from keystore.sync.protocols import Target
from keystore.sync.urls import normalized, redacted
from keystore.sync.verify import Verification

if TYPE_CHECKING:
    from keystore.sync.hub_admin import HubAdmin

_Q = sql.named("sync")


@contextmanager
def hub_admin(url: str) -> "Iterator[HubAdmin]":
    """Connect to a hub as its operator, for the length of a ``with`` block.

    Raises:
        UnsupportedTargetError: the URL is no ``postgresql://`` one, or the driver is missing.
        TargetUnavailableError: nobody answers.
    """
    url = normalized(url)
    if urlsplit(url).scheme not in {"postgresql", "postgres"}:
        raise UnsupportedTargetError(
            f"{redacted(url)} is not a hub.", hint="A hub's URL starts with postgresql://."
        )
    with extra("postgres"):
        from keystore.sync.hub_admin import HubAdmin
    admin = HubAdmin(url)
    try:
        yield admin
    finally:
        admin.close()


@contextmanager
def opened(
    target: str,
    *,
    file: StoreFile | None = None,
    keys: Path | None = None,
    root: bytes | None = None,
    beside: Path | None = None,
) -> Iterator[Target]:
    """Open a target for the length of a ``with`` block.

    ``file`` is the store that syncs: it remembers the root of trust of a repository. ``keys`` is
    the folder with the key that signs, ``root`` the pinned root file. What is downloaded lies
    beside the store's file, or ``beside`` where one is to be made.
    """
    url = normalized(target)
    opened_target: Target
    match urlsplit(url).scheme:
        case "postgresql" | "postgres":
            with extra("postgres"):
                from keystore.sync.postgres import PostgresHub
            opened_target = PostgresHub(url)
        case "file" | "s3" | "https" | "http":
            with extra("files"):
                from keystore.sync.files import FileRepository
            state = None
            if file is not None:
                with file.errors():
                    state = scalar(file.conn, _Q["source_state"], redacted(url))
                    beside = file.path
                keys = keys_for(file, url, keys) if keys is not None else None
            opened_target = FileRepository(url, keys=keys, root=root, state=state, beside=beside)
        case scheme:
            raise UnsupportedTargetError(
                f"{scheme}:// is not a kind of target.",
                hint="Use postgresql://…, file:///…, s3://… or https://….",
            )
    try:
        yield opened_target
    finally:
        opened_target.close()


def keys_for(file: StoreFile, target: str, keys: Path) -> Path:
    """Return the folder with the keys of the repository that the store knows at a URL.

    That is ``keys`` itself, or a folder in it. What lies at the URL now is not asked: somebody may
    have put another of our repositories there, to be sent what belongs into that.
    """
    with extra("files"):
        from keystore.sync import repository_keys
    with file.errors():
        known = scalar(file.conn, _Q["target_at"], redacted(normalized(target)))
    return keys if known is None else repository_keys.folder_of(keys, known)


def sync(
    file: StoreFile,
    target: str | None = None,
    *,
    usage_to: str | None = None,
    keys: Path | None = None,
    root: bytes | None = None,
    reconcile: bool = False,
    on_report: Callable[[Report], None] = lambda _: None,
    on_progress: OnProgress = nobody,
) -> list[Report]:
    """Sync a store by its role: an origin pushes, a replica pulls, both hand their usage up.

    Without ``target`` and ``usage_to``, do it with every target that the store knows. One report
    per target; ``on_report`` gets each as it is done. One target that fails does not keep the
    others from their turn.

    Raises:
        InvalidInputError: no target is given and none is known.
        KeystoreError: the first that went wrong, after all had their turn; its notes tell the
            others.
    """
    wanted = wanted_targets(file, target, usage_to)
    reports, failures = [], []
    for url, usage_only in wanted:
        report = Report(redacted(normalized(url)))
        try:
            with opened(url, file=file, keys=keys, root=root) as opened_target:
                sync_opened(
                    file,
                    opened_target,
                    report,
                    usage_only=usage_only,
                    reconcile=reconcile,
                    on_progress=on_progress,
                )
        except KeystoreError as error:
            if len(wanted) > 1 and report.target not in error.message:
                error.message = f"{report.target}: {error.message}"
            failures.append(error)
        else:
            reports.append(report)
            on_report(report)
    if failures:
        for other in failures[1:]:
            failures[0].add_note(str(other))
        raise failures[0]
    return reports


def wanted_targets(
    file: StoreFile, target: str | None, usage_to: str | None
) -> list[tuple[str, bool]]:
    """Return the URLs to sync with, and whether each only takes usage.

    Raises:
        InvalidInputError: no target is given and none is known.
    """
    wanted = [(t, only) for t, only in ((target, False), (usage_to, True)) if t is not None]
    if not wanted:
        with file.read() as conn:
            wanted = [(url, bool(only)) for url, only in conn.execute(_Q["targets"])]
    if not wanted:
        raise InvalidInputError(
            f"{file.path} knows no target yet.", hint="Name one: `keystore sync TARGET`."
        )
    return wanted


def forget(file: StoreFile, target: str) -> str:
    """Take a target off the list that a bare sync goes through; return its URL, without secrets.

    What was noted of it stays: should it return, the next sync goes on from there.

    Raises:
        NotFoundError: the store does not sync with it.
    """
    url = redacted(normalized(target))
    with file.write() as conn:
        if not conn.execute(_Q["forget_url"], (url,)).rowcount:
            raise NotFoundError(
                f"{file.path} does not sync with {url}.",
                hint="`keystore status` lists its targets.",
            )
    return url


def replicate(
    target: str,
    path: Path,
    *,
    origin_id: str | None = None,
    root: bytes | None = None,
    on_progress: OnProgress = nobody,
) -> Report:
    """Make a replica at ``path`` from a target; see :func:`keystore.sync.engine.replicate`."""
    url = redacted(normalized(target))
    report = Report(url)
    with opened(target, root=root, beside=path) as opened_target:
        if opened_target.source is None:
            raise InvalidInputError(
                f"{url}: a repository needs the root file that this replica is to trust.",
                hint="Pass --root with the root.json that `keystore repo create` wrote.",
            )
        hub = opened_target.hub

        def take_revocations(file: StoreFile) -> None:
            if hub is not None:
                exchange.receive_revocations(file, hub, url, report)

        engine.replicate(
            opened_target.source,
            url,
            path,
            report,
            origin_id=origin_id,
            on_filled=take_revocations,
            on_progress=on_progress,
        )
        if hub is not None:
            with open_store(path) as file:
                exchange.check_in(file, hub)
    return report


def sync_opened(
    file: StoreFile,
    target: Target,
    report: Report,
    *,
    usage_only: bool = False,
    reconcile: bool = False,
    settles: bool = True,
    on_progress: OnProgress = nobody,
) -> None:
    """Sync a store with an open target, by the store's role; ``report`` tells what was done.

    Revocations first: they are few, and only take access away. An origin ``settles`` what its keys
    have used before it pushes, so that everybody learns what is left.
    """
    url, hub = report.target, target.hub
    is_origin = file.info().is_origin
    if usage_only and hub is None:
        raise UnsupportedTargetError(
            f"{url} cannot take usage.",
            hint="Hand it to a hub (postgresql://…), or write files: `keystore usage export`.",
        )
    if reconcile and not is_origin:
        raise WrongRoleError(
            f"{file.path} is a replica; only an origin reconciles.",
            hint="`keystore verify --repair` compares a replica and repairs it.",
        )
    if hub is not None:
        exchange.receive_revocations(file, hub, url, report)
    refused: TargetError | None = None
    try:
        if not usage_only and is_origin:
            _settle_and_push(
                file, target, report, reconcile=reconcile, settles=settles, on_progress=on_progress
            )
        elif not usage_only:
            if target.source is None:
                raise InvalidInputError(
                    f"{url}: this replica has not been told which root file to trust.",
                    hint="Sync once with --root and the root.json that `keystore repo create` "
                    "wrote.",
                )
            if hub is not None:  # it is noted for its usage only so far
                engine.remember(file, hub.target_id, url)
            engine.pull(file, target.source, url, report, on_progress=on_progress)
    except (ForkedStoreError, StaleTargetError, IncompleteStateError) as error:
        refused = error  # the rows do not fit; that is no reason to keep the usage here
    if hub is not None:
        exchange.hand_up_usage(file, hub, url, report, usage_only=usage_only)
        exchange.hand_up_ledger(file, hub, url, report, usage_only=usage_only)
        exchange.check_in(file, hub)
    if refused is not None:
        raise refused
    known = hub or (target.sink if is_origin else target.source)
    if known is not None:
        engine.found_at(file, known.target_id, url)


def _settle_and_push(
    file: StoreFile,
    target: Target,
    report: Report,
    *,
    reconcile: bool,
    settles: bool,
    on_progress: OnProgress,
) -> None:
    url = report.target
    if target.sink is None:
        raise WrongRoleError(
            f"{url} can only be read from here.",
            hint="Publish to its folder (file:///…) or bucket (s3://…).",
        )
    if settles:
        exchange.settle_usage(file, target.hub)
    engine.push(file, target.sink, url, report, reconcile=reconcile, on_progress=on_progress)


def verify(
    file: StoreFile,
    target: str,
    *,
    repair: bool = False,
    keys: Path | None = None,
    root: bytes | None = None,
) -> Verification:
    """Compare a store with a target; see :func:`keystore.sync.verify.verify`.

    A repair at an origin pushes what differs.
    """
    url = redacted(normalized(target))
    with opened(target, file=file, keys=keys, root=root) as opened_target:
        source = opened_target.source
        if source is None:
            raise InvalidInputError(
                f"{url}: whose signatures are to be trusted is not known.",
                hint="Pass --root with the root.json that `keystore repo create` wrote.",
            )
        found = verification.verify(file, source, url, repair=repair)
        if found.repaired and file.info().is_origin:
            if opened_target.sink is None:
                raise WrongRoleError(f"{url} cannot be written from here.", hint="Pass --keys.")
            engine.push(file, opened_target.sink, url, Report(url))
    return found
