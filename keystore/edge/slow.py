"""The slow way of a check, which knows all the rules, and what both ways share.

The fast way is in :mod:`keystore.edge.validator`. It compares what this one has left: the header
that was looked at, the answers that hold, and until when nothing else is due.
"""

import os
import threading
import time
from contextlib import ExitStack, suppress
from math import inf
from pathlib import Path

from keystore import changelog, db, forks, tokens
from keystore.edge.cache import Answer, Granted, TokenCache, digest_of
from keystore.edge.commits import HEADER_BYTES, Commits
from keystore.edge.decision import (
    ClientCredentials,
    Decision,
    Entry,
    Freshness,
    QuotaLeft,
    Reason,
    decide,
)
from keystore.edge.guard import ClockGuard
from keystore.edge.leases import Grant, Leases, Supply
from keystore.edge.rates import LocalRates, Rates
from keystore.edge.usage import UsageBuffer, Use
from keystore.errors import KeystoreError, in_words
from keystore.quotas import period_of

IMPATIENT_SECONDS = 0.05
"""How long a check may wait for another process's lock."""
MAX_PENDING = 10_000
"""How many checks may wait to be written, unless somebody says otherwise."""
FLUSH_SECONDS = 5.0
"""How long they may, unless somebody says otherwise."""
MAX_COST = 1 << 40
"""Units that one check may count; keeps every sum of a flush within 64 bits."""
LOOK_SECONDS = 0.001
"""How long another file at the same path may go unnoticed, while checks come thick and fast."""
ANSWER_SECONDS = 1.0
"""How old the age in a decision may be (a replica's); times of a store are whole seconds, too."""

_NOBODY: Use = (0, 0, None, None, None, 0)
_NOT_SYNCED = Decision(allowed=False, reason=Reason.NOT_SYNCED)


def is_malformed(sent: str | ClientCredentials, token_prefix: str) -> bool:
    """Whether no store can know a token, or a client's id and secret."""
    parts = (sent,) if isinstance(sent, str) else sent
    if not all(0 < len(part) <= tokens.MAX_TOKEN_LENGTH for part in parts):
        return True
    if isinstance(sent, str):
        return tokens.shape(sent, token_prefix) is tokens.Shape.MISTYPED
    # (a lone surrogate cannot even be asked for)
    return any("\ud800" <= char <= "\udfff" for char in sent.client_id)


class SlowWay(db.Closing):
    """One store, opened for checks, and what is known of it."""

    _NEVER = b"never looked at"
    """No header is so short."""

    def __init__(
        self,
        path: Path | str,
        *,
        max_pending: int = MAX_PENDING,
        max_seconds: float = FLUSH_SECONDS,
        rates: Rates | None = None,
    ) -> None:
        # Before the file is opened: should it be replaced in between, the first check notices.
        self._path = os.fspath(path)
        self._identity = db.identity(self._path)
        # Checks give up soon on a locked file: readers answer "not now", flushes try again later.
        self._file = db.open_store(path, busy_timeout=IMPATIENT_SECONDS)
        self._writer = db.open_store(path, busy_timeout=IMPATIENT_SECONDS)
        self._guard = ClockGuard()
        self._usage = UsageBuffer(
            self._writer, self._guard, max_pending=max_pending, max_seconds=max_seconds
        )
        self._lock = threading.Lock()
        self._cache = TokenCache()
        self._leases = Leases()
        self._rates = LocalRates() if rates is None else rates
        self._commits = Commits(self._file)
        self._info = self._file.info()
        self._last_change = 0
        # What the fast way compares: the header that was looked at, and between which times, by the
        # wall clock, the slow way is not due whatever a check is for.
        self._header, self._seen = self._commits.header, self._NEVER
        self._fast_from = self._slow_at = -inf
        self._answers = self._cache.answers
        self._uses, self._room = self._usage.uses, 0
        self._freshness: Freshness | None = None
        self._behind = 0.0
        self.slow_checks = 0
        """How many checks took the slow way."""
        self.trouble = ""
        """Why a check was ``unavailable``, the last time; whoever has told of it may reset it."""
        forks.tell(self)

    def close(self) -> None:
        """Flush usage and close the file."""
        with self._lock:
            self._header, self._seen = b"", self._NEVER
            try:
                self._flush_patiently()
                with suppress(KeystoreError):  # they count as spent, then
                    self._leases.give_back(self._writer)
            except KeystoreError as error:
                lost = self._usage.pending
                error.add_note(f"The usage of {lost} check{'s'[: lost != 1]} is lost.")
                raise
            finally:
                self._file.close()
                self._writer.close()

    def _check(
        self,
        sent: str | ClientCredentials,
        digest: bytes | None,
        service: str | None,
        cost: int,
        ip: str | None,
    ) -> Decision:
        if not 0 <= cost <= MAX_COST:
            msg = f"cost is {cost}; it must be 0 to {MAX_COST}"
            raise ValueError(msg)
        with self._lock:
            forks.refuse_inherited(self._file)
            self.slow_checks += 1
            try:
                decision, use = self._decide(sent, digest, service, cost, ip)
                if decision.allowed and cost:
                    self._count((*use[:5], cost))
            except Exception as error:  # noqa: BLE001 - a damaged file's, too: "I do not know"
                # In words: the error would keep its frames, and with them an open transaction.
                self._seen, self.trouble = self._NEVER, in_words(error)
                return Decision(allowed=False, reason=Reason.UNAVAILABLE)
        return decision

    def _decide(
        self,
        sent: str | ClientCredentials,
        digest: bytes | None,
        service: str | None,
        cost: int,
        ip: str | None,
    ) -> tuple[Decision, Use]:
        """Return the answer, and whose usage it is."""
        at = time.time()
        if self._header[:HEADER_BYTES] != self._seen or not self._fast_from <= at < self._slow_at:
            self._look_for_commits()
            at = self._fast_from
        now = at + self._behind
        if digest is None:
            digest = digest_of(sent)
        known = self._cache.get(digest)
        entry = self._recognize(sent, digest) if known is None else known
        freshness = self._freshness
        if isinstance(entry, Decision) or freshness is None:
            return entry if isinstance(entry, Decision) else _NOT_SYNCED, _NOBODY
        if entry.status == "exhausted" and not entry.is_active:
            entry = self._renewed(entry, now)
        grant = None
        if service is not None and entry.client_id is None:  # quotas are keys'
            grant = self._cache.services(self._file.conn, entry.principal).get(service)
        has_service = service is None or grant is not None
        decision = decide(entry, now, freshness, ip, has_service=has_service)
        granted = None
        if decision.allowed and service is not None and grant is not None:
            granted, decision = self._take(service, grant, decision, cost, now)
        if not decision.allowed:
            return decision, _NOBODY
        # (Not the first time: a token that comes once is not worth it.)
        if known is not None and self._usage.is_buffered:
            self._remember(digest, entry, decision, granted, ip, now)
            if granted is not None and cost == 1:
                granted.lease.offer_singles()
        if entry.rate is not None:
            ask = self._rates.take if cost else self._rates.look
            decision = decision.with_rate(ask(entry.principal, entry.rate))
            if granted is not None and not decision.allowed:
                granted.lease.add(cost)
        use = (entry.principal, entry.account_id, None, None, None, 1)
        return decision, granted.use if granted is not None else use

    def _recognize(self, sent: str | ClientCredentials, digest: bytes) -> Entry | Decision:
        """Return what stands for somebody and is not remembered, or why it stands for nobody."""
        if is_malformed(sent, self._info.token_prefix):
            return Decision(allowed=False, reason=Reason.MALFORMED)
        freshness = self._freshness
        if freshness is None:
            return _NOT_SYNCED
        client = None if isinstance(sent, str) else sent
        entry = self._cache.read(self._file.conn, digest, client)
        if entry is not None:
            return entry
        # past the end it may be a key that is younger than the data
        is_over = freshness.limit is not None and freshness.limit.is_over
        reason = Reason.OFFLINE if is_over else Reason.UNKNOWN
        return Decision(allowed=False, reason=reason, freshness=freshness)

    def _take(
        self, service: str, grant: Grant, decision: Decision, cost: int, now: float
    ) -> tuple[Granted | None, Decision]:
        """Take units of a key's quota, or refuse."""
        lease = self._leases.find(grant)
        seen = None if self._seen is self._NEVER else self._seen
        supply = Supply(self._writer, self._info.store_id, now, seen)
        is_left = self._leases.take(lease, grant, cost, supply, is_buffered=self._usage.is_buffered)
        left = lease.left
        if left is None:  # removed a moment ago
            return None, decision._replace(allowed=False, reason=Reason.SERVICE)
        decision = decision._replace(quota=QuotaLeft(lease, service, left.initial, left.renews_at))
        if not is_left:
            return None, decision._replace(allowed=False, reason=Reason.QUOTA_EXCEEDED)
        principal = (decision.api_key_id or 0, decision.account_id or 0)
        use = (*principal, grant.service_id, grant.quota_id, left.period, 1)
        return Granted(lease, decision, use), decision

    def _renewed(self, entry: Entry, now: float) -> Entry:
        """Let an exhausted key pass again whose origin has not said yet that a quota is renewed."""
        grants = self._cache.services(self._file.conn, entry.principal).values()
        is_renewed = any(
            period_of(grant.renewal, now, grant.renewed_at) > grant.renewed_at
            for grant in grants
            if grant.initial_quota
        )
        return entry._replace(is_active=True) if is_renewed else entry

    def _remember(
        self,
        digest: bytes,
        entry: Entry,
        decision: Decision,
        granted: Granted | None,
        ip: str | None,
        now: float,
    ) -> None:
        """Let the fast way give this answer while nothing but a commit could change it."""
        # The fast way asks the wall clock alone, which may be behind this store's time.
        behind, answer = self._behind, self._answers.get(digest)
        if answer is None or now - behind >= answer.until:
            until = entry.expires_at or inf
            if decision.freshness and not self._info.is_origin:
                holds_until = self._guard.holds_until(entry, now, decision.freshness)
                until = min(until, holds_until, now + ANSWER_SECONDS)
            plain = decision._replace(quota=None)
            answer = self._answers[digest] = Answer(until - behind, plain, entry)
        answer.admit(ip, granted, behind)

    def _look_for_commits(self) -> None:
        # The path is followed, not the file that it once named: a replica may be made anew there.
        identity = db.identity(self._path)
        if identity != self._identity:
            self._reopen()
            self._identity = identity
        header = self._commits.look()  # before the rows are read: they are no older
        if header is None or header != self._seen:
            with self._file.read() as conn:
                db.check_version(self._file.path, *db.versions(conn))
                info = self._file.info()
                self._cache.look(conn, info, is_first=self._seen is self._NEVER)
                last_change = changelog.head(conn) if info.is_origin else 0
            if (info.as_of_change, info.as_of_at, info.valid_until, last_change) != (
                self._info.as_of_change,
                self._info.as_of_at,
                self._info.valid_until,
                self._last_change,
            ):
                self._answers.clear()  # what they say of freshness is not so any more
            self._info, self._last_change = info, last_change
            self._guard.look(info)
            # Kept only now: if anything above fails, the next check starts over.
            self._seen = self._NEVER if header is None else header
        if self._guard.should_mark(self._guard.now()[0]):
            self._mark_clock()
        self._flush_if_due()

    def _plan_slow_way(self) -> None:
        """Say when the fast way is to be left: to look at the path, to flush, to note the clock."""
        now, behind = self._guard.now()
        if behind > self._behind + 0.001:  # (less is the clocks' grain)
            self._answers.clear()  # they hold until times that the wall clock now shows too late
        if self._info.is_origin:
            self._freshness = Freshness(self._last_change, None, 0.0)
        else:
            self._freshness = self._guard.freshness(now, behind)
        waits = min(LOOK_SECONDS, self._usage.due_at - time.monotonic(), self._guard.mark_due - now)
        self._room, self._behind = self._usage.room, behind
        self._fast_from = now - behind
        self._slow_at = self._fast_from + waits

    def _reopen(self) -> None:
        old_file, old_writer = self._file, self._writer
        with ExitStack() as on_failure:
            file, writer = (
                on_failure.enter_context(
                    db.open_store(old_file.path, busy_timeout=IMPATIENT_SECONDS)
                )
                for _ in range(2)
            )
            if (origin_id := file.info().origin_id) != self._info.origin_id:
                self._usage.flush()  # another origin's ids: what was counted is the old file's
                self._rates.clear(origin_id)
            on_failure.pop_all()
        self._leases.clear()  # they were the old file's
        self._commits = Commits(file)
        self._header, self._seen = self._commits.header, self._NEVER
        self._file, self._writer = file, writer
        self._usage.move_to(writer)
        old_file.close()
        old_writer.close()

    def _mark_clock(self) -> None:
        # A file that cannot be written changes no answer: the clock is guarded in memory as well.
        with suppress(KeystoreError), self._writer.write() as conn:
            self._guard.mark(conn)

    def _flushed(self, decision: Decision) -> Decision:
        """Flush before a check that has filled the buffer is answered."""
        with self._lock:
            self._flush_if_due()
        return decision

    def _flush_if_due(self) -> None:
        if self._usage.is_due or self._is_let_in():
            # A store that is locked by a long writer or full must not stop the checks; the usage
            # stays counted, and a later check tries again.
            with suppress(KeystoreError):
                self._usage.flush()
        self._plan_slow_way()

    def _is_let_in(self) -> bool:
        """Whether the lock is free again that usage waits for."""
        if not self._usage.waits_for_lock:
            return False
        db.set_busy_timeout(self._writer.conn, 0)
        try:
            with self._writer.write():
                return True
        except KeystoreError:
            return False
        finally:
            db.set_busy_timeout(self._writer.conn, IMPATIENT_SECONDS)

    def _count(self, use: Use) -> None:
        try:
            self._usage.add(use)
        except KeystoreError:  # nothing was written, and the answer is no yes: nothing was spent
            self._leases.put_back(use[3], use[5])
            raise
        if len(self._uses) >= self._room or len(self._uses) == 1:
            self._flush_if_due()

    def _flush_patiently(self) -> int:
        if not self._usage.pending:
            return 0
        db.set_busy_timeout(self._writer.conn, db.BUSY_TIMEOUT_SECONDS)
        try:
            return self._usage.flush()
        finally:
            db.set_busy_timeout(self._writer.conn, IMPATIENT_SECONDS)

    def stop_after_fork(self) -> None:
        """Answer nothing in a forked process: SQLite's locks stay with the process that made them.

        What was counted is the other process's to write.
        """
        self._lock = threading.Lock()  # a thread that is not here may have held it
        self._header, self._seen = b"", self._NEVER
        self._usage.forget()
