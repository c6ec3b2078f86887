"""Keeps a store and one target in step, until it is told to stop.

Three things wake it: a commit to the file by anybody (``PRAGMA data_version``, on a connection that
never writes: its own commits would not show), the hub's news, and the clock as a backstop. What it
then does is what `keystore sync` does. So a notification that is lost costs time and nothing else.

An idle follower sends a hub about ten statements per poll and nothing in between.
"""

import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from keystore import changelog, clock, sql
from keystore.db import StoreFile, identity, open_store, scalar
from keystore.errors import (
    CompactedLogError,
    DiskFullError,
    ExpiredRepositoryError,
    FencedPublisherError,
    IncompleteStateError,
    KeystoreError,
    StaleTargetError,
    StoreBusyError,
    TargetNotReadyError,
    TargetUnavailableError,
)
from keystore.sync import exchange, targets, urls
from keystore.sync.engine import Report
from keystore.sync.protocols import News, Target

POLL_SECONDS = 30.0
"""How often everything is looked at, whether or not there was news."""
PUBLISH_SECONDS = 1.0
"""How often files are published at most: what each publication replaces stays for a day."""
SIGN_SECONDS = 300.0
"""How often an origin signs files anew that have not changed: every edge asks for more then."""
TICK_SECONDS = 0.1
"""How often the file is asked whether anybody has committed; 2 µs each."""
USAGE_SECONDS = 1.0
"""How often usage goes up at most: a busy edge commits some all the time."""
SETTLE_SECONDS = 5.0
"""How often an origin settles what was used at most: each time, quotas travel to every edge."""
LONGEST_BACKOFF_SECONDS = 60.0

PASSING = (
    CompactedLogError,
    DiskFullError,
    ExpiredRepositoryError,
    FencedPublisherError,
    IncompleteStateError,
    StaleTargetError,
    StoreBusyError,
    TargetNotReadyError,
    TargetUnavailableError,
)
"""Errors that may be gone at the next attempt, without anybody doing anything here."""

_MANY_FAILURES = 7
_Q = sql.named("follow")


class Opener(Protocol):
    """Opens a target for the length of a block; :func:`keystore.sync.targets.opened` does."""

    def __call__(
        self, target: str, *, file: StoreFile, keys: Path | None, root: bytes | None
    ) -> AbstractContextManager[Target]: ...


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a store and a target are apart, as far as this side knows.

    ``as_of_change`` is the origin's change that both have. ``age_seconds`` is how old a replica's
    data are, ``None`` at an origin. ``changes`` have not arrived: at the target, if this is the
    origin; here, if this is a replica, of those that the hub has told of. ``usage`` and ``ledger``
    are the numbers of such rows that wait here.
    """

    as_of_change: int | None
    age_seconds: int | None
    changes: int
    usage: int
    ledger: int = 0

    @property
    def waits_here(self) -> bool:
        """Whether the hub lacks something that is only ever appended here."""
        return bool(self.usage or self.ledger)


@dataclass(frozen=True, slots=True)
class Event:
    """Something to tell an operator.

    ``kind`` is ``following`` after the first round, ``synced`` after a round that moved something,
    ``lost`` with the ``error`` when rounds began to fail (or fail otherwise now), ``back`` when
    they succeed again, and ``warned`` after a round whose only news is the report's warnings; each
    warning is told once.
    """

    kind: str
    report: Report
    lag: Lag
    error: KeystoreError | None = None


def backoff(failures: int, share: float) -> float:
    """Return how long to wait after so many failures in a row, in seconds.

    The longest is 1 s after the first, then twice as long each time, up to a minute; of that the
    ``share``, 0 to 1, which is to be random: a fleet must not come back all at once.
    """
    return share * min(LONGEST_BACKOFF_SECONDS, 2.0 ** (min(failures, _MANY_FAILURES) - 1))


class Follower:
    """Follows one target with a connection of its own to the file; runs in a thread of its own.

    Args:
        path: the store's file. If another file takes its place, that one is followed.
        target: the target's URL.
        on_event: called in the follower's thread.
        usage_only: only hand usage up.
        keys: see :func:`keystore.sync.targets.opened`; ``root`` too, which counts for the first
            round and is remembered from then on.
        poll: seconds between two full rounds when there is no news; by default
            ``POLL_SECONDS``, or ``SIGN_SECONDS`` where an origin publishes files.
        gives_up: whether an error that will not pass by itself ends :meth:`run`. If not, it is
            tried again as well, rarely.
        opened: opens the target.
    """

    def __init__(
        self,
        path: Path,
        target: str,
        on_event: Callable[[Event], None],
        *,
        usage_only: bool = False,
        keys: Path | None = None,
        root: bytes | None = None,
        poll: float | None = None,
        gives_up: bool = True,
        opened: Opener = targets.opened,
    ) -> None:
        self.target = urls.redacted(urls.normalized(target))
        self._path, self._url, self._on_event = path, target, on_event
        self._usage_only, self._keys, self._root = usage_only, keys, root
        self._poll, self._gives_up, self._opened = poll, gives_up, opened
        self._stop = threading.Event()
        self._hands_up = False
        self._has_begun = False
        self._failures = 0
        self._lost: str | None = None
        self._warned: tuple[str, ...] = ()
        self._announced = 0
        self._has_hub = True
        self._target_id: str | None = None
        self._lag = Lag(None, None, 0, 0)
        self._settle_at = 0.0

    def stop(self, *, hand_up: bool = False) -> None:
        """Let :meth:`run` return soon; with ``hand_up``, after a last attempt to bring all there.

        A round that is under way is finished first. Not for signal handlers.
        """
        self._hands_up = hand_up
        self._stop.set()

    def run(self) -> None:
        """Follow until :meth:`stop`.

        Raises:
            KeystoreError: one that will not pass by itself.
        """
        while not self._stop.is_set():
            self._attempt(self._session)
        if self._hands_up:
            self._attempt(self._hand_up_last)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            if self._gives_up and not isinstance(error, PASSING):
                raise
            passes = isinstance(error, PASSING)
            self._failures = self._failures + 1 if passes else _MANY_FAILURES
            self._tell_loss(_as_ours(error))
            self._stop.wait(backoff(self._failures, random.random()))  # noqa: S311 - no secret

    def _session(self) -> None:
        """Follow on one connection, until told to stop or the file is replaced."""
        followed = identity(self._path)
        with (
            open_store(self._path) as file,
            open_store(self._path) as eye,
            self._opened(self._url, file=file, keys=self._keys, root=self._root) as target,
        ):
            info = file.info()
            known = target.hub or (target.source if not info.is_origin else target.sink)
            self._has_hub = target.hub is not None
            self._target_id = None if known is None else known.target_id
            self._announced = 0
            # Before the first round, so that what it does not bring is heard of.
            watch = target.hub.watch(info.origin_id) if target.hub else None
            is_publisher = info.is_origin and not self._has_hub
            poll = self._poll or (SIGN_SECONDS if is_publisher else POLL_SECONDS)
            rounds, poll_at, push_at, usage_at = 0, 0.0, 0.0, 0.0
            is_called, seen = False, None
            while not self._stop.is_set() and identity(self._path) == followed:
                with eye.errors():
                    version = scalar(eye.conn, _Q["data_version"])
                if version != seen:
                    seen, self._lag = version, self._look(file)
                now = time.monotonic()
                has_changed = info.is_origin and self._lag.changes and now >= push_at
                if is_called or now >= poll_at or has_changed:
                    if rounds and target.hub is None:
                        return  # a repository is opened anew, with what is remembered of it
                    self._round(file, target)
                    rounds, is_called, seen = rounds + 1, False, None
                    now = time.monotonic()
                    poll_at, usage_at = now + poll, now + USAGE_SECONDS
                    push_at = now if self._has_hub else now + PUBLISH_SECONDS
                elif target.hub and self._lag.waits_here and now >= usage_at:
                    self._round(file, target, whole=False)
                    usage_at, seen = time.monotonic() + USAGE_SECONDS, None
                if watch is None:
                    self._stop.wait(TICK_SECONDS)
                else:
                    for news in watch.wait(TICK_SECONDS):
                        is_called |= self._concerns(file, news)

    def _hand_up_last(self) -> None:
        with open_store(self._path) as file:
            lag = self._look(file)
            if lag.waits_here or (file.info().is_origin and lag.changes):
                with self._opened(self._url, file=file, keys=self._keys, root=self._root) as target:
                    self._round(file, target)

    def _round(self, file: StoreFile, target: Target, *, whole: bool = True) -> None:
        report = Report(self.target)
        if whole:
            settles = time.monotonic() >= self._settle_at
            targets.sync_opened(file, target, report, usage_only=self._usage_only, settles=settles)
            if settles:
                self._settle_at = time.monotonic() + SETTLE_SECONDS
        elif target.hub is not None:
            only = self._usage_only
            exchange.hand_up_usage(file, target.hub, self.target, report, usage_only=only)
            exchange.hand_up_ledger(file, target.hub, self.target, report, usage_only=only)
        self._root, self._failures = None, 0
        self._lag = self._look(file)
        was_lost, self._lost = self._lost, None
        has_begun, self._has_begun = self._has_begun, True
        warnings, self._warned = self._warned, report.warnings
        if warnings == report.warnings:
            report.warnings = ()  # it was said
        if was_lost:
            self._on_event(Event("back", report, self._lag))
        elif not has_begun:
            self._on_event(Event("following", report, self._lag))
        elif report.pushed or report.pulled or report.usage or report.ledger or report.revocations:
            self._on_event(Event("synced", report, self._lag))
        elif report.warnings:
            self._on_event(Event("warned", report, self._lag))

    def _concerns(self, file: StoreFile, news: News) -> bool:
        """Whether a round is due because of the hub's news."""
        if news.kind == "revocation":
            return True
        info = file.info()
        if news.kind != "change" or info.is_origin or self._usage_only:
            return False
        self._announced = max(self._announced, news.number)
        return news.number > (info.as_of_change or 0)

    def _look(self, file: StoreFile) -> Lag:
        """Ask the store, not the target, what waits."""
        info = file.info()
        where = {"target_id": self._target_id, "url": self.target, "has_hub": self._has_hub}
        with file.read() as conn:
            head = changelog.head(conn)
            change, usage, ledger = conn.execute(_Q["waiting"], where).fetchone()
        if info.is_origin:
            changes = 0 if self._usage_only else max(0, head - change)
            return Lag(change, None, changes, usage, ledger)
        age = None
        if info.as_of_at is not None:
            age = max(0, int(time.time() - clock.seconds(info.as_of_at)))
        behind = max(0, self._announced - (info.as_of_change or 0))
        return Lag(info.as_of_change, age, behind, usage)

    def _tell_loss(self, error: KeystoreError) -> None:
        """Tell of an error once, and again only if it becomes another one."""
        if error.code == self._lost:
            return
        self._lost = error.code
        # (if it is the store that is lost, what was known of it last)
        with suppress(KeystoreError), open_store(self._path) as file:
            self._lag = self._look(file)
        self._on_event(Event("lost", Report(self.target), self._lag, error))


def _as_ours(error: Exception) -> KeystoreError:
    if isinstance(error, KeystoreError):
        return error
    return KeystoreError(f"{type(error).__name__}: {error}.", hint="Please report this.")
