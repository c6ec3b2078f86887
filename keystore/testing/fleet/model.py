"""What must hold, kept beside the fleet: which states origins were in, and what was recorded.

The numbers are those of the guarantees in the docs: lost changes, stale allows, usage, signatures,
failing closed, all or nothing, secrets.
"""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from keystore import changelog, clock, sql
from keystore.edge.decision import Decision, Reason
from keystore.sync import digest
from keystore.sync.memory import MemoryHub
from keystore.testing.fleet.nodes import Node, Origin

_Q = sql.named("simulator")
_NOT_NOW = frozenset({Reason.STALE, Reason.OFFLINE})


class BrokenError(Exception):
    """A guarantee that does not hold; ``guarantee`` is its number, 0 for what has no number."""

    def __init__(self, guarantee: int, message: str) -> None:
        super().__init__(f"guarantee {guarantee}: {message}" if guarantee else message)
        self.guarantee = guarantee


class KeyState(NamedTuple):
    """A key as the rows of a state have it."""

    passes: bool
    expires_at: float | None
    status: str


States = Mapping[str, KeyState]


class Model:
    """What the checks after a step compare the nodes with."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, int, int], int] = {}
        self.states: dict[str, States] = {}
        self._digests: dict[tuple[str, int], set[str]] = {}
        self._current: dict[str, States] = {}
        self._revoked: dict[str, set[str]] = {}
        self._heads: dict[str, tuple[int, int]] = {}
        self._at_hub: set[tuple[str, str, int, int]] = set()

    def forget(self, node: Node) -> None:
        """Be told that a node's file is another now."""
        self._heads.pop(node.name, None)

    def forget_hub(self) -> None:
        """Be told that the hub was put back to an earlier state."""
        self._at_hub.clear()

    def look(self, node: Node) -> str:
        """Check a store after it has acted; return the digest of its rows."""
        info = node.file.info()
        found = fingerprint(digest.digest_store(node.file))
        if isinstance(node, Origin):
            head = changelog.head(node.file.conn)
            self._digests.setdefault((info.incarnation, head), set()).add(found)
            self.states[found] = _states(node)
        else:
            cut = (info.origin_incarnation or "", info.as_of_change or 0)
            if found not in self._digests.get(cut, ()):
                kind = 1 if cut in self._digests else 6
                raise BrokenError(kind, f"{node.name} is as its origin never was, at {cut[1]}")
        self._current[node.name] = self.states[found]
        self._revoked[node.name] = {key for (key,) in node.file.conn.execute(_Q["revoked"])}
        self._note_rows(node, info.store_id)
        self._check_counts(node)
        return found

    def refuse_overspent(self, node: Node) -> None:
        """Check that no quota was overspent in one store that was never put back."""
        for key, given, used in node.file.conn.execute(_Q["overspent"]):
            raise BrokenError(3, f"{node.name} has let key {key} use {used} units of {given}")

    def look_at_hub(self, hub: MemoryHub) -> None:
        """Check what the hub holds."""
        for store_id, held in hub._stores.items():  # noqa: SLF001 - its state is what is checked
            cut = (held.origin.incarnation, held.acknowledged_change)
            if fingerprint(held.digests()) not in self._digests.get(cut, ()):
                raise BrokenError(1, f"the hub has {store_id} as it never was, at {cut[1]}")
        found = _hub_rows(hub)
        for row, amount in found.items():
            if self.rows.get(row) != amount:
                raise BrokenError(3, f"nobody has recorded {row} of {amount}, which the hub has")
        if not self._at_hub <= found.keys():
            raise BrokenError(3, f"the hub has lost {sorted(self._at_hub - found.keys())[:3]}")
        self._at_hub = set(found)

    def check(self, node: Node, api_key: str, decision: Decision, *, may_fail: bool) -> None:
        """Check a decision, made without a service, against the state that the node is in."""
        now = node.validator.now()
        state = self._current[node.name].get(api_key)
        if decision.reason is Reason.UNAVAILABLE:
            if not may_fail:
                raise BrokenError(5, f"{node.name} cannot answer: {node.validator.trouble}")
            return
        is_known = state is not None and api_key not in self._revoked[node.name]
        if state is not None and state.status == "exhausted":
            return  # it is renewed by the calendar
        passes = is_known and state is not None and state.passes
        if state is not None and state.expires_at is not None:
            if abs(state.expires_at - now) < 1:
                return
            passes = passes and now < state.expires_at
        limit = decision.freshness.limit if decision.freshness else None
        is_over = limit is not None and now > clock.seconds(limit.usable_until)
        if decision.allowed and is_over:
            raise BrokenError(5, f"{node.name} lets pass what it has not heard of for too long")
        if decision.allowed and not passes:
            raise BrokenError(2, f"{node.name} lets {api_key} pass, which is {state}")
        if passes and not decision.allowed and decision.reason not in _NOT_NOW:
            raise BrokenError(5, f"{node.name} denies {api_key}: {decision.reason.value}")

    def missing(
        self, node: Node, held: Iterable[tuple[str, str, int, int]]
    ) -> list[tuple[str, str, int, int]]:
        """Return what a node has recorded, and is not held."""
        store_id = node.file.info().store_id
        found = _rows_of(node, store_id, (0, 0))
        return sorted(found.keys() - set(held))

    def _note_rows(self, node: Node, store_id: str) -> None:
        before = self._heads.get(node.name, (0, 0))
        for row, amount in _rows_of(node, store_id, before).items():
            if self.rows.setdefault(row, amount) != amount:
                raise BrokenError(3, f"{node.name} has two rows {row}")
            kind, _, number, _ = row
            usage, ledger = self._heads.get(node.name, (0, 0))
            self._heads[node.name] = (
                (max(usage, number), ledger) if kind == "usage" else (usage, max(ledger, number))
            )

    def _check_counts(self, node: Node) -> None:
        if not node.is_checking:
            return
        written = node.metered() - node.written
        if written > node.counted or (not node.validator.pending and written != node.counted):
            raise BrokenError(
                3, f"{node.name} has let {node.counted} units pass, and written {written}"
            )


def fingerprint(buckets: digest.Buckets) -> str:
    """Return one digest of all."""
    return sha256(repr(sorted(buckets.items())).encode()).hexdigest()


def received(origin: Origin) -> dict[tuple[str, str, int, int], int]:
    """Return the usage that an origin has from files."""
    rows = origin.file.conn.execute(_Q["received"])
    return {("usage", store, number, nonce): amount for store, number, nonce, amount in rows}


def secrets_at_rest(folder: Path, tokens: Iterable[str]) -> list[str]:
    """Return the names of files that hold a token, or a part that is not its key's id."""
    wanted = [(token.encode(), token[-32:-6].encode()) for token in tokens]
    return [
        path.name
        for path in sorted(folder.rglob("*"))
        if path.is_file() and _holds(path.read_bytes(), wanted)
    ]


def _holds(data: bytes, wanted: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(whole in data or secret in data for whole, secret in wanted)


def _hub_rows(hub: MemoryHub) -> dict[tuple[str, str, int, int], int]:
    usage = {("usage", *row): used.amount for row, (_, used) in hub.usage.items()}
    return usage | {("ledger", *row): entry.amount_nano for row, entry in hub.ledger.items()}


def _states(origin: Origin) -> States:
    return {
        api_key: KeyState(bool(passes), clock.seconds(until) if until else None, status)
        for api_key, passes, until, status in origin.file.conn.execute(_Q["key_states"])
    }


def _rows_of(
    node: Node, store_id: str, after: tuple[int, int]
) -> dict[tuple[str, str, int, int], int]:
    conn = node.file.conn
    usage = conn.execute(_Q["usage_since"], (after[0],)).fetchall()
    ledger = conn.execute(_Q["ledger_since"], (after[1],)).fetchall()
    rows = {("usage", store_id, number, nonce): amount for number, nonce, amount in usage}
    return rows | {("ledger", store_id, *row[:2]): row[2] for row in ledger}
