"""What a sync target is. The engine knows these protocols and no driver.

Delivery guarantees that every implementation gives, and one contract test suite checks:

* A push is all or nothing: leave the session without :meth:`PushSession.commit` and the target is
  as it was. Two sessions for one store never overlap: the second waits or is refused.
* A pull is one consistent cut of the origin, never older than what was acknowledged to it.
* Usage handed up twice is counted once; the identity is ``(store_id, usage_id)``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from keystore.changelog import Page

PageCounts = Mapping[str, int]
"""Rows by table name."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a target must know about the origin that pushes to it."""

    store_id: str
    incarnation: str
    token_prefix: str
    schema_version: int


@dataclass(frozen=True, slots=True)
class TargetState:
    """What a target holds of an origin before a push.

    ``token`` is what the last push left there, ``None`` if there was none; the engine compares it
    with its own record to tell a lost acknowledgement from a restored or copied file.
    ``acknowledged_change`` is the change up to which the target is complete. ``wants_everything``
    asks for all rows rather than those that changed since.
    """

    acknowledged_change: int
    token: str | None
    wants_everything: bool


class PushSession(Protocol):
    """One push, from the target's lock to its commit."""

    state: TargetState

    def send(self, page: Page) -> None:
        """Take one page; nothing of it is visible before the commit."""

    def commit(self, *, up_to: int, as_of_at: str, token: str, counts: PageCounts | None) -> None:
        """Make the pages the target's state, together with the acknowledgement and the token.

        ``counts`` is given when everything was sent: rows that were not sent are then deleted.
        """


class Sink(Protocol):
    """Where an origin pushes to."""

    @property
    def target_id(self) -> str:
        """The identity that the target states itself; a target made anew has a new one."""

    def push(self, origin: Origin) -> AbstractContextManager[PushSession]:
        """Start a push; leaving the block without a commit changes nothing."""


@dataclass(slots=True)
class Pull:
    """One consistent cut of an origin, or what changed in it since an earlier one.

    ``pages`` must be consumed inside the block that :meth:`Source.pull` opened. ``counts`` is
    given when the pages are everything: what they add up to, and records that they do not name
    are gone. ``source_state`` is kept for the source and handed back when it is opened again.
    """

    origin: Origin
    as_of_change: int
    as_of_at: str
    counts: PageCounts | None
    pages: Iterable[Page]
    source_state: str | None = None


class Source(Protocol):
    """Where a replica pulls from."""

    @property
    def target_id(self) -> str:
        """The identity that the target states itself."""

    def pull(self, origin_id: str | None, after: int | None) -> AbstractContextManager[Pull]:
        """Open one cut of an origin's rows.

        ``after`` is the origin's change up to which the replica has everything; ``None`` asks for
        everything there is. The target may give everything anyway.

        ``origin_id`` ``None`` means the only origin there is.

        Raises:
            TargetNotReadyError: nothing of that origin was ever pushed here, or several origins
                were and none is named.
            ForeignOriginError: the target serves one origin, and it is another.
        """


@dataclass(frozen=True, slots=True)
class Usage:
    """One row of a UsageLog as it travels; ``store_id`` of the recorder goes along."""

    usage_id: int
    principal_type: str
    principal_id: int
    account_id: int | None
    amount: int
    request_id: str | None
    occurred_at: str


class UsageSink(Protocol):
    """Where a store hands its usage up to."""

    @property
    def target_id(self) -> str:
        """The identity that the target states itself."""

    def usage_held(self, store_id: str) -> int:
        """Return the highest usage id that is held of a store, 0 if none."""

    def push_usage(self, store_id: str, origin_id: str, rows: Sequence[Usage]) -> None:
        """Take usage rows; those already there are not counted again.

        Raises:
            ForkedStoreError: a row is there already with another content, so two files record
                under one ``store_id``.
        """


class Target(Protocol):
    """An open target: what it can do is ``None`` where it cannot."""

    @property
    def sink(self) -> Sink | None: ...
    @property
    def source(self) -> Source | None: ...
    @property
    def usage_sink(self) -> UsageSink | None: ...

    def close(self) -> None:
        """Give connections back."""


def everything(source: Source, origin_id: str | None) -> Iterator[Page]:
    """Yield all of an origin's pages from a source, as a fresh replica would get them."""
    with source.pull(origin_id, None) as pull:
        yield from pull.pages
