"""What a sync target is. The engine knows these protocols and no driver.

Delivery guarantees that every implementation gives, and one contract test suite checks:

* A push is all or nothing: leave the session without :meth:`PushSession.commit` and the target is
  as it was. Two sessions for one store never overlap: the second waits or is refused.
* A pull is one consistent cut of the origin, never older than what was acknowledged to it.
* Usage handed up twice is counted once; the identity is ``(store_id, usage_id, nonce)``. So is the
  ledger, by ``(store_id, ledger_id, nonce)``.
* Revocations only grow, and are numbered in the order in which they became visible.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from keystore.changelog import Page
from keystore.quotas import Consumed
from keystore.sync.digest import Bucket, Buckets

PageCounts = Mapping[str, int]
"""Rows by table name."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a target must know about the origin that pushes to it."""

    store_id: str
    incarnation: str
    token_prefix: str
    schema_version: int
    program_version: str = ""
    seen_revocation: int = 0


@dataclass(frozen=True, slots=True)
class TargetState:
    """What a target holds of an origin before a push.

    ``token`` is what the last push left there, ``None`` if there was none; the engine compares it
    with its own record to tell a lost acknowledgement from a restored or copied file.
    ``acknowledged_change`` is the change up to which the target is complete. ``wants_everything``
    asks for all rows rather than those that changed since. With a ``scope``, a kind and an internal
    id, all rows are those of that scope. ``warnings`` are for the operator.
    """

    acknowledged_change: int
    token: str | None
    wants_everything: bool
    scope: tuple[str, int] | None = None
    warnings: tuple[str, ...] = ()


class PushSession(Protocol):
    """One push, from the target's lock to its commit.

    ``origin`` is what the commit writes down of the store.
    """

    state: TargetState
    origin: Origin

    def digests(self) -> Buckets | None:
        """Digest what the target holds of this origin; ``None`` where that is not worth it."""

    def bucket_pages(self, buckets: Collection[Bucket]) -> Iterator[Page]:
        """Yield the rows that the target holds in some buckets."""

    def highest_ids(self) -> PageCounts:
        """Return the highest id that the target has ever seen, by table name; absent is 0."""

    def start_over(self) -> None:
        """Be told that the pages to come are everything: what they do not name is gone."""

    def send(self, page: Page) -> None:
        """Take one page; nothing of it is visible before the commit."""

    def commit(self, *, up_to: int, as_of_at: str, token: str, counts: PageCounts) -> int | None:
        """Make the pages the target's state, together with the acknowledgement and the token.

        ``counts`` is what the origin has now. It is kept for the replicas: a target that loses
        rows later is noticed by them. Returns how many records were others than before, where the
        target compares.
        """


class Sink(Protocol):
    """Where an origin pushes to."""

    @property
    def target_id(self) -> str:
        """The identity that the target states itself; a target made anew has a new one."""

    def push(self, origin: Origin) -> AbstractContextManager[PushSession]:
        """Start a push; leaving the block without a commit changes nothing.

        Raises:
            DamagedTargetError: inside the block; the next push is asked for everything.
        """


def _no_digests() -> Buckets | None:
    return None


def _no_bucket_pages(_: Collection[Bucket]) -> Iterator[Page]:
    return iter(())


@dataclass(slots=True)
class Pull:
    """One consistent cut of an origin, or what changed in it since an earlier one.

    ``pages`` must be consumed inside the block that :meth:`Source.pull` opened. With
    ``is_everything`` records that they do not name are gone. ``counts`` is what the origin had at
    the cut, as it said itself, or ``None`` where nobody can tell. ``source_state`` is kept for the
    source and handed back when it is opened again. After ``valid_until`` (UTC text) the rows may be
    used for ``max_offline_seconds`` more; ``None`` where there is no such end.

    ``scope`` says in words which part of the origin's rows this is, if it is not all.

    ``place``, where a target has it, puts the whole cut at a path as a store's file, without
    triggers, for a replica that is made there.

    ``digests`` and ``bucket_pages`` look at the whole cut, whatever ``pages`` holds of it; a source
    that cannot do so cheaply returns ``None`` for the digests.
    """

    origin: Origin
    as_of_change: int
    as_of_at: str
    counts: PageCounts | None
    is_everything: bool
    pages: Iterable[Page]
    source_state: str | None = None
    valid_until: str | None = None
    max_offline_seconds: int | None = None
    place: Callable[[Path], None] | None = None
    scope: str | None = None
    digests: Callable[[], Buckets | None] = field(default=_no_digests)
    bucket_pages: Callable[[Collection[Bucket]], Iterator[Page]] = field(default=_no_bucket_pages)


class Source(Protocol):
    """Where a replica pulls from."""

    @property
    def target_id(self) -> str:
        """The identity that the target states itself."""

    def pull(self, origin_id: str | None, after: int | None) -> AbstractContextManager[Pull]:
        """Open one cut of an origin's rows.

        ``after`` is the origin's change up to which the replica has everything; ``None`` asks for
        everything there is. The target may give everything anyway, and must when it no longer
        knows all that was deleted since.

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
    service_id: int | None
    amount: int
    request_id: str | None
    occurred_at: str
    nonce: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of an origin's CreditLedger as it travels; amounts are in nano-credits."""

    ledger_id: int
    account_id: int
    kind: str
    amount_nano: int
    balance_nano: int
    request_id: str | None
    note: str | None
    model: str | None
    model_pricing_id: int | None
    input_tokens: int | None
    output_tokens: int | None
    usage_id: int | None
    occurred_at: str
    nonce: int


@dataclass(frozen=True, slots=True)
class Consumption:
    """What the keys of an origin have used of services at another store, up to a usage row."""

    store_id: str
    up_to: int
    rows: Sequence[Consumed]


@dataclass(frozen=True, slots=True)
class Revocation:
    """A key that was revoked at the hub; ``revoked_at`` is the hub's time, UTC text."""

    revocation_id: int
    api_key: str
    reason: str | None
    revoked_at: str


@dataclass(frozen=True, slots=True)
class CheckIn:
    """What a replica says of itself: who it is, and what it has."""

    store_id: str
    incarnation: str
    origin_id: str
    schema_version: int
    program_version: str
    as_of_change: int
    as_of_at: str
    seen_revocation: int


@dataclass(frozen=True, slots=True)
class News:
    """What a hub tells of an origin: the ``number`` of its latest ``change`` or ``revocation``."""

    kind: str
    number: int


class Watch(Protocol):
    """An ear at a hub, for one origin, from the moment it was opened."""

    def wait(self, seconds: float) -> Sequence[News]:
        """Return what has come since the last call; wait up to ``seconds`` if that is nothing.

        News may be lost when a connection is: whoever opens a watch looks at everything once.

        Raises:
            TargetUnavailableError: the hub is gone.
        """


class Hub(Protocol):
    """Where usage and ledgers go, revocations come from, and replicas say what they have."""

    @property
    def target_id(self) -> str:
        """The identity that the target states itself."""

    def holds_usage(self, store_id: str, usage_id: int, nonce: int) -> bool:
        """Whether a usage row is there, and with it all rows that its store recorded before."""

    def push_usage(self, store_id: str, origin_id: str, rows: Sequence[Usage]) -> None:
        """Take usage rows; those already there are not counted again."""

    def holds_ledger(self, store_id: str, ledger_id: int, nonce: int) -> bool:
        """Whether a row of the ledger is there, and with it all rows that came before."""

    def push_ledger(self, store_id: str, rows: Sequence[Entry]) -> None:
        """Take rows of an origin's ledger; those already there are not counted again."""

    def consumption(self, origin_id: str, settled: Mapping[str, int]) -> Sequence[Consumption]:
        """Return what other stores' usage takes from an origin's quotas, by store.

        ``settled`` says up to which ``usage_id`` of a store that is known already. All of it is
        from one snapshot; a store that has nothing new is left out.
        """

    def revocations(self, origin_id: str, after: int, last: str | None) -> Sequence[Revocation]:
        """Return the revocations of an origin's keys that are later than number ``after``.

        ``last`` is the key of that number. If it is not here, the hub was put back to an earlier
        state: then all of them are returned.
        """

    def check_in(self, who: CheckIn, *, last: str | None, token: str) -> bool:
        """Note what a replica has, and leave ``token`` with it.

        ``last`` is the token that the replica left the last time, as far as it knows. ``False`` if
        neither it nor ``token`` is there: a copy of the replica was here meanwhile. But what is
        older than ``last`` was left by a hub that was put back, and is accepted. Tokens are UUIDs
        of version 7, so that they have an order.
        """

    def watch(self, origin_id: str) -> Watch:
        """Listen for pushes of an origin that moved rows, and for revocations of its keys."""


class Target(Protocol):
    """An open target: what it can do is ``None`` where it cannot."""

    @property
    def sink(self) -> Sink | None: ...
    @property
    def source(self) -> Source | None: ...
    @property
    def hub(self) -> Hub | None: ...

    def close(self) -> None:
        """Give connections back."""


def everything(source: Source, origin_id: str | None) -> Iterator[Page]:
    """Yield all of an origin's pages from a source, as a fresh replica would get them."""
    with source.pull(origin_id, None) as pull:
        yield from pull.pages
