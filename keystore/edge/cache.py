"""What a validator remembers of tokens, and what a commit makes it forget.

A commit is looked at by the ChangeLog's tail: of the keys that it names the entries go, and all
entries if it names anything else, or if the tail does not follow on what was seen. A commit that
only records usage makes nobody forget anything.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keystore import sql
from keystore.db import StoreInfo, scalar
from keystore.edge.decision import Decision, Entry

if TYPE_CHECKING:
    import sqlite3

CACHE_SIZE = 100_000
"""Tokens remembered, about 60 MB."""
_LONGEST_TAIL = 1_000

_Q = sql.named("edge")


@dataclass(slots=True)
class Answer:
    """An answer that holds for every check of a token until a time, in Unix seconds."""

    until: float
    decision: Decision
    principal: tuple[int, int]


class TokenCache:
    """Entries and answers by the SHA-256 of the token. Whoever changes it holds the lock."""

    def __init__(self) -> None:
        self.answers: dict[bytes, Answer] = {}
        self._entries: dict[bytes, Entry] = {}
        self._digests: dict[int, bytes] = {}
        self._identity: tuple[Any, ...] = ()
        self._last_change: tuple[Any, ...] | None = None
        self._last_revocation = 0

    def get(self, digest: bytes) -> Entry | None:
        """Return what is known of a token."""
        return self._entries.get(digest)

    def put(self, digest: bytes, entry: Entry) -> None:
        """Remember a token. (Not those that are unknown: they are endless.)"""
        if len(self._entries) >= CACHE_SIZE:
            self.clear()
        self._entries[digest] = entry
        self._digests[entry.api_key_id] = digest

    def clear(self) -> None:
        """Forget everything."""
        self.answers.clear()
        self._entries.clear()
        self._digests.clear()

    def look(
        self, conn: "sqlite3.Connection", info: StoreInfo, *, is_rewritten: bool = False
    ) -> None:
        """Forget what has changed since the last look; call it in a read transaction.

        If the whole database ``is_rewritten``, the ChangeLog is another one, and tells nothing.
        """
        identity = (
            info.store_id,
            info.incarnation,
            info.origin_id,
            info.origin_incarnation,
            info.token_prefix,
        )
        is_same = identity == self._identity and not is_rewritten
        changed = self._changed(conn) if is_same else None
        if changed is None:
            self.clear()
        else:
            for api_key_id in changed:
                digest = self._digests.pop(api_key_id, None)
                if digest is not None:
                    self.answers.pop(digest, None)
                    del self._entries[digest]
        self._identity = identity
        self._last_change = conn.execute(_Q["last_change"]).fetchone()
        self._last_revocation = scalar(conn, _Q["last_revocation"])

    def _changed(self, conn: "sqlite3.Connection") -> set[int] | None:
        """Return the ids of the keys that have changed; ``None`` if it may be anything."""
        last = self._last_change
        window = {"last": last[0] if last else 0, "limit": _LONGEST_TAIL + 1}
        tail = conn.execute(_Q["tail"], window).fetchall()
        if last is not None:
            # Not only its id: a backup that was copied into the file may have as many changes.
            if not tail or tail[0] != last:
                return None
            del tail[0]
        if len(tail) > _LONGEST_TAIL or any(table != "APIKeys" for _, table, *_ in tail):
            return None
        changed = {record_id for _, _, record_id, _ in tail}
        if scalar(conn, _Q["last_revocation"]) != self._last_revocation:
            revoked = conn.execute(_Q["revoked_since"], (self._last_revocation,)).fetchall()
            changed.update(api_key_id for (api_key_id,) in revoked)
        return changed
