"""Answers "may this token pass?" from a local store.

Never a stale allow: before each answer the validator looks whether *any* process has committed to
the file since (:mod:`keystore.edge.commits`), and forgets what that has changed. The connection
that looks never writes; usage goes through a second one.

Most checks are answered in the first lines of :meth:`Validator.check`, without SQL and without a
lock: a slice of the WAL-index, one SHA-256, one look into a dict, the clock. Whatever is not plain
there takes the slow way (:mod:`keystore.edge.slow`), which knows all the rules.
"""

import time
from functools import partial
from hashlib import sha256

from keystore.edge.cache import CLIENT_BYTES, Answer, Granted, digest_of
from keystore.edge.commits import HEADER_BYTES
from keystore.edge.decision import ClientCredentials, Decision, Freshness
from keystore.edge.slow import MAX_COST, SlowWay


class Validator(SlowWay):
    """Validates tokens against one store, from any thread.

    Args:
        path: the store's file.
        rates: where the rates of the keys are counted; default: in this validator alone.
        max_pending: how many metered checks may wait for a flush, and be lost by a crash.
            1 writes each before it is answered.
        max_seconds: for how long they may wait, at most; looked at on each metered check and by
            :meth:`flush_if_due`.

    Raises:
        StoreNotFoundError, NotAKeystoreError, SchemaVersionError, ForkedError: see ``open_store``.
    """

    def check(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        """Decide whether ``token`` may pass; if so, count ``cost`` units of usage for its key.

        ``service`` is the name of what the key is to be used for; ``cost`` is spent of its quota
        there, and it does not pass without one. With ``cost=0`` it passes if one unit is left.
        ``ip`` is the client's address; a key that is bound to networks does not pass without one.

        Never raises for what a client sends or for the state of the file: what cannot be answered
        is :attr:`Reason.UNAVAILABLE`. With ``cost=0`` nothing is counted, of the rate neither.

        Raises:
            ValueError: ``cost`` is negative, which would give usage back, or above 2**40.
            ForkedError: the process was forked since the file was opened.
        """
        digest = None
        try:
            digest = sha256(token.encode()).digest()
            if (
                self._header[:HEADER_BYTES] == self._seen
                and (answer := self._answers.get(digest)) is not None
            ):
                now = time.time()
                if self._fast_from <= now < self._slow_at and now < answer.until:
                    if answer.is_plain and cost == 1:
                        found: Answer | Granted | None = answer
                        if service is not None:
                            found = answer.services.get(service)
                            if found is None or next(found.lease.singles, None) is None:
                                found = None
                        if found is not None:
                            # Appended first, so that no thread answers past the bound.
                            self._uses.append(found.use)
                            if len(self._uses) < self._room:
                                return found.decision
                            return self._flushed(found.decision)
                    if (decision := self._limited(answer, service, cost, ip)) is not None:
                        return decision
        except (ValueError, TypeError, AttributeError):
            # It is no token; the slow way says so. Nothing wider is caught: what a signal handler
            # raises here would be counted a second time.
            pass
        return self._check(token, digest, service, cost, ip)

    def check_client(
        self,
        client_id: str,
        secret: str,
        *,
        service: str | None = None,
        cost: int = 1,
        ip: str | None = None,
    ) -> Decision:
        """Decide whether an OAuth client may pass, as :meth:`check` does of a key.

        Its account, its plan and its rate are looked at as a key's are. A client has no quotas, so
        it may be used for no ``service``: that is :attr:`Reason.SERVICE`. Who does not exist and
        who has another secret are both :attr:`Reason.UNKNOWN`.

        Raises:
            ValueError, ForkedError: as :meth:`check`.
        """
        digest = None
        try:
            digest = sha256(CLIENT_BYTES % (client_id.encode(), secret.encode())).digest()
            if (
                self._header[:HEADER_BYTES] == self._seen
                and (answer := self._answers.get(digest)) is not None
            ):
                now = time.time()
                if (
                    self._fast_from <= now < self._slow_at
                    and now < answer.until
                    and (decision := self._limited(answer, service, cost, ip)) is not None
                ):
                    return decision
        except (ValueError, TypeError, AttributeError):
            pass  # as in check()
        return self._check(ClientCredentials(client_id, secret), digest, service, cost, ip)

    async def check_async(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        """Decide like :meth:`check`, without holding up the event loop.

        What is known is answered at once; what may wait for the disk is done by a thread.
        """
        import asyncio  # 40 ms that most never need

        if self._may_wait(token, service, cost):
            return await asyncio.to_thread(self.check, token, service=service, cost=cost, ip=ip)
        return self.check(token, service=service, cost=cost, ip=ip)

    async def check_client_async(
        self,
        client_id: str,
        secret: str,
        *,
        service: str | None = None,
        cost: int = 1,
        ip: str | None = None,
    ) -> Decision:
        """Decide like :meth:`check_client`, without holding up the event loop."""
        import asyncio

        check = partial(self.check_client, client_id, secret, service=service, cost=cost, ip=ip)
        if self._may_wait(ClientCredentials(client_id, secret), service, cost):
            return await asyncio.to_thread(check)
        return check()

    def _may_wait(
        self, sent: str | ClientCredentials, service: str | None = None, cost: int = 1
    ) -> bool:
        """Whether a check has to read or to write the file, or to wait for another thread."""
        digest = digest_of(sent)
        return (
            self._header[:HEADER_BYTES] != self._seen
            or self._cache.get(digest) is None
            or (service is not None and not self._has_units(digest, service, cost))
            or len(self._uses) + 1 >= self._room
            or time.monotonic() >= self._usage.due_at
            or self._lock.locked()
        )

    def _has_units(self, digest: bytes, service: str, cost: int) -> bool:
        """Whether units of a quota are at hand: more are taken from the file, by a commit."""
        answer = self._answers.get(digest)
        granted = None if answer is None else answer.services.get(service)
        return granted is not None and granted.lease.held >= max(1, cost)

    def flush(self) -> int:
        """Write all counted usage now; return how many checks that were.

        Raises:
            KeystoreError: the store could not be written; the usage stays counted.
        """
        with self._lock:
            return self._flush_patiently()

    def flush_if_due(self) -> int:
        """Flush if a bound is reached; for callers with a timer of their own.

        Raises:
            KeystoreError: the store could not be written at once; the usage stays counted.
        """
        with self._lock:
            flushed = self._usage.flush() if self._usage.is_due else 0
            if self._guard.should_mark(self._guard.now()[0]):
                self._mark_clock()
            return flushed

    @property
    def pending(self) -> int:
        """How many metered checks are counted and not yet flushed."""
        return self._usage.pending

    @property
    def cached(self) -> int:
        """How many tokens are remembered."""
        return len(self._cache)

    def freshness(self) -> Freshness | None:
        """How current the data are; ``None`` for a replica that has never synced.

        Raises:
            KeystoreError: the store cannot be read.
        """
        with self._lock, self._file.errors():
            self._look_for_commits()
            return self._freshness

    def now(self) -> float:
        """Return the time that this store's keys are judged by, in Unix seconds.

        At a replica that is never less than its clock has shown before, nor than what its data are
        as of; as far as the last check or :meth:`freshness` knew.
        """
        with self._lock:
            return self._guard.now()[0]

    def _limited(
        self, answer: Answer, service: str | None, cost: int, ip: str | None
    ) -> Decision | None:
        """Answer what is not plain, without SQL; ``None`` if that takes the slow way."""
        if not 0 <= cost <= MAX_COST or (
            answer.addresses is not None and ip not in answer.addresses
        ):
            return None
        use, decision, granted = answer.use, answer.decision, None
        if service is not None:
            granted = answer.services.get(service)
            if granted is None or not cost:
                return None
            with self._lock:
                if not granted.lease.take(cost):
                    return None
            use, decision = granted.use, granted.decision
        if answer.rate is not None:
            ask = self._rates.take if cost else self._rates.look
            decision = decision.with_rate(ask(use[0], answer.rate))
            if granted is not None and not decision.allowed:
                with self._lock:
                    granted.lease.add(cost)
        if decision.allowed and cost:
            self._uses.append((*use[:5], cost))
            if len(self._uses) >= self._room:
                return self._flushed(decision)
        return decision
