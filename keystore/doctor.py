"""Looks for what is wrong with a store and says what to do about it. It changes nothing.

It serves operators, the command line, and every test that has a store: at its end the doctor must
find nothing.
"""

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from keystore import changelog, db, migrate, pricing, sql, tokens
from keystore.db import StoreFile, StoreInfo
from keystore.edge.guard import CLOCK_TOLERANCE_SECONDS, ClockGuard
from keystore.errors import KeystoreError
from keystore.tables import LOGS, TRACKED

if TYPE_CHECKING:
    import sqlite3

_Q = sql.named("doctor")
LARGE_WAL_BYTES = 256 << 20
_SEVERITIES = ("error", "warning", "info")
_FIX = "`keystore doctor --fix`"  # of all that keystore.repair mends
MANY_GONE = 10_000
_REMAKE = {
    "trigger": f"Changes made since may be missing from the ChangeLog; run {_FIX}.",
    "index": f"{_FIX} makes it anew.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing: ``severity`` is ``error``, ``warning``, or ``info`` if it is as it should be."""

    id: str
    severity: str
    what: str
    hint: str


def examine(file: StoreFile) -> list[Finding]:
    """Return everything that is wrong with an open store, errors first, and what is worth a word.

    A probe that cannot be made is a finding, too, and does not keep the others from being made.
    """

    def contact(_: "sqlite3.Connection") -> Iterator[Finding]:
        return _contact(file.info())

    probes: list[Callable[[sqlite3.Connection], Iterator[Finding]]] = [
        _integrity,
        _foreign_keys,
        _schema,
        _text,
        _sequences,
        _bookkeeping,
        _credits,
        _usage,
        _quotas,
        contact,
    ]
    found = [*_surroundings(file.path), *_library()]
    for probe in probes:
        try:
            with file.read() as conn:
                found += list(probe(conn))
        except (KeystoreError, TypeError, ValueError) as error:
            what = f"{probe.__name__.strip('_')} cannot be examined: {error}"
            found.append(Finding("unreadable", "error", what, "Restore a backup."))
    return sorted(found, key=lambda finding: (_SEVERITIES.index(finding.severity), finding.id))


def _integrity(conn: "sqlite3.Connection") -> Iterator[Finding]:
    for (message,) in conn.execute(_Q["integrity"]):
        if message != "ok":
            yield Finding("integrity", "error", message, "Restore a backup.")


def _foreign_keys(conn: "sqlite3.Connection") -> Iterator[Finding]:
    orphans: dict[tuple[str, str], list[int]] = {}
    for table, row_id, parent, _ in conn.execute(_Q["foreign_keys"]):
        orphans.setdefault((table, parent), []).append(row_id)
    for (table, parent), row_ids in orphans.items():
        some = ", ".join(map(str, row_ids[:5]))
        yield Finding(
            "orphans",
            "error",
            f"{len(row_ids)} rows of {table} name {parent} that do not exist (ids {some}…).",
            "A client wrote without PRAGMA foreign_keys = ON; add the parents or delete the rows.",
        )


def _schema(conn: "sqlite3.Connection") -> Iterator[Finding]:
    is_replica = db.scalar(conn, _Q["role"]) == "replica"
    have, want = migrate.schema_of(conn), migrate.expected_schema(is_replica=is_replica)
    for (kind, name), text in want.items():
        if (kind, name) not in have:
            yield Finding(
                f"missing_{kind}",
                "error",
                f"the {kind} {name} is missing.",
                _REMAKE.get(kind, "Restore a backup."),
            )
        elif have[kind, name] != text:
            yield Finding(
                f"altered_{kind}",
                "error",
                f"the {kind} {name} is not as keystore made it.",
                "A table rebuild or a hand made change: "
                + ("restore a backup." if kind == "table" else f"{_FIX} makes it anew."),
            )
    for kind, name in have.keys() - want.keys():
        if kind == "trigger":
            yield Finding(
                "foreign_trigger",
                "warning",
                f"the trigger {name} is not keystore's.",
                "It runs inside every write; drop it unless you know what it is for.",
            )


def _text(conn: "sqlite3.Connection") -> Iterator[Finding]:
    for table in TRACKED:
        record_id = changelog.undecodable(conn, table)
        if record_id is not None:
            yield Finding(
                "not_utf8",
                "error",
                f"{table.name} {record_id} holds text that is not UTF-8, so it cannot be pushed.",
                f"{_FIX} corrects it: nobody else may."
                if table.name == "APIKeyStatusEvents"
                else "Correct that row.",
            )


def _sequences(conn: "sqlite3.Connection") -> Iterator[Finding]:
    tracked = ((table.name, table.id) for table in TRACKED)
    for table, column in (*tracked, *LOGS):
        statement = _Q["sequence"].format(table=table, id=column)
        sequence, highest = conn.execute(statement).fetchone()
        if sequence < highest:
            yield Finding(
                "sequence",
                # a statement that OR FAIL stopped half way does this; the next insert mends it
                "warning",
                f"sqlite_sequence of {table} is {sequence}, below the highest id {highest}.",
                f"{_FIX} sets it. Before the newest rows go: their ids would be used again.",
            )


def _bookkeeping(conn: "sqlite3.Connection") -> Iterator[Finding]:
    row = conn.execute(_Q["identity"]).fetchone()
    if row is None or not all(map(_is_uuid, row[:3])) or not tokens.is_valid_prefix(str(row[3])):
        yield Finding(
            "identity",
            "error",
            f"StoreInfo does not say who this store is: {row}.",
            "Somebody changed it by hand: restore a backup.",
        )
    if db.scalar(conn, _Q["replaying"]):
        yield Finding(
            "replaying",
            "error",
            "StoreInfo.replaying is set, so the replica's tables can be written by anybody.",
            f"{_FIX} clears it.",
        )
    if db.scalar(conn, _Q["future_occurrences"]):
        yield Finding(
            "clock",
            "warning",
            "the ChangeLog has times in the future.",
            "Check this machine's clock: expiry and freshness go by it.",
        )
    contradictions = conn.execute(_Q["contradictions"]).fetchall()
    if contradictions:
        yield Finding(
            "contradiction",
            "error",
            f"is_active of {len(contradictions)} keys is not what their status says.",
            f"They are denied. {_FIX} closes those that are active; give the others a status with "
            "`keystore key set-status`.",
        )
    missing = db.scalar(conn, _Q["gaps"])
    if missing:
        yield Finding(
            "log_gap",
            "error",
            f"{missing} rows of the ChangeLog are missing, so targets may lack changes.",
            "Somebody removed them; compare with the targets, and restore a backup if they differ.",
        )
    mode = db.scalar(conn, _Q["journal_mode"])
    if mode != "wal":
        yield Finding(
            "journal_mode",
            "warning",
            f"the journal mode is {mode}, so a reader and a writer wait for each other.",
            f"{_FIX} sets it to WAL.",
        )


def _credits(conn: "sqlite3.Connection") -> Iterator[Finding]:
    for account_id, amount, balance, _ in conn.execute(_Q["unbalanced"]):
        said = (
            f"the ledger of account {account_id} does not add up on the way"
            if amount == balance
            else f"the balance of account {account_id} is {pricing.text(balance)} credits, and its "
            f"ledger sums to {pricing.text(amount)}"
        )
        yield Finding(
            "ledger",
            "error",
            f"{said}.",
            "Somebody took the triggers away and wrote. Nothing here touches money: compare with a "
            "backup, or with the hub (`keystore hub usage`).",
        )
    for account_id, balance in conn.execute(_Q["gone_with_a_balance"]):
        yield Finding(
            "lost_balance",
            "warning",
            f"account {account_id} is deleted, and had {pricing.text(balance)} credits.",
            "Its ledger stays (`keystore export CreditLedger`); settle it elsewhere.",
        )
    for name, is_planned in conn.execute(_Q["without_price"]):
        yield Finding(
            "no_price",
            "warning" if is_planned else "error",
            f"model {name!r} has no price{' in force yet' if is_planned else ''}, so every charge "
            "for it is refused.",
            "Give it one: `keystore model price`.",
        )
    for model_id, begins in conn.execute(_Q["overlapping_prices"]):
        yield Finding(
            "overlapping_prices",
            "error",
            f"model {model_id} has more than one price from {begins} on.",
            "A damaged index, or a rebuilt table: restore a backup.",
        )


def _usage(conn: "sqlite3.Connection") -> Iterator[Finding]:
    """Look for usage of what is gone: the trail outlives it, and that is as it should be."""
    for kind, parents in (("api_key", "APIKeys"), ("oauth_client", "OAuthClients")):
        gone: set[int] = set()
        for log in ("UsageLog", "UsageHours", "ReceivedUsage"):
            statement = _Q["gone_principals"].format(table=log, parents=parents, id=f"{kind}_id")
            gone.update(number for (number,) in conn.execute(statement, (kind,)))
        if gone:
            some = ", ".join(map(str, sorted(gone)[:5]))
            yield Finding(
                "usage_of_the_gone",
                "info",
                f"usage names {len(gone)} by {kind}_id that {parents} no longer has (ids {some}…).",
                "Nothing to do: the trail outlives keys and clients. `keystore usage --by "
                "principal` counts it.",
            )


def _quotas(conn: "sqlite3.Connection") -> Iterator[Finding]:
    above = db.scalar(conn, _Q["quotas_above_initial"])
    if above:
        yield Finding(
            "quota_above_initial",
            "warning",
            f"{above} quotas have more left than a period gives.",
            "Somebody wrote remaining_quota; it stays until it is used, or `keystore key quota`.",
        )
    gone = db.scalar(conn, _Q["quotas_gone"])
    if gone > MANY_GONE:
        yield Finding(
            "quota_use",
            "warning",
            f"{gone} rows of QuotaUse are of quotas that are gone.",
            "DELETE FROM QuotaUse WHERE quota_id NOT IN (SELECT quota_id FROM APIKeyServiceQuotas)",
        )
    exhausted = db.scalar(conn, _Q["exhausted_with_units"])
    if exhausted:
        yield Finding(
            "exhausted",
            "warning",
            f"{exhausted} keys are exhausted and have something left.",
            "The next `keystore sync` of the origin lifts it.",
        )


def _contact(info: StoreInfo) -> Iterator[Finding]:
    """Look whether a replica is judged by another time than its clock shows, and for how long."""
    guard = ClockGuard()
    guard.look(info)
    now, behind = guard.now()
    fresh = guard.freshness(now, behind)
    if behind > CLOCK_TOLERANCE_SECONDS:
        yield Finding(
            "clock_behind",
            "warning",
            f"the clock is {int(behind)} s behind what it, or the origin's, has shown before.",
            "Set it right. If it was ahead before, the next sync that brings something newer mends "
            "that; until then keys expire, and the data age, by the later time.",
        )
    limit = fresh.limit if fresh else None
    if limit and limit.is_over:
        yield Finding(
            "offline",
            "error",
            f"without contact for too long: since {limit.usable_until} UTC it denies every key.",
            "Run `keystore sync`; if it brings nothing newer, run it at the origin first.",
        )
    elif limit and limit.is_in_grace:
        yield Finding(
            "in_grace",
            "warning",
            f"the signatures of its data expired at {limit.valid_until} UTC; it denies every key "
            f"from {limit.usable_until} UTC on.",
            "Run `keystore sync`; if it brings nothing newer, run it at the origin first.",
        )


def _surroundings(path: Path) -> Iterator[Finding]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        yield Finding(
            "file_mode",
            "warning",
            f"{path} has mode {mode:04o}: others on this machine can open it.",
            f"{_FIX} takes the rights of others away.",
        )

    wal = Path(f"{path}-wal")
    if wal.exists() and wal.stat().st_size > LARGE_WAL_BYTES:
        yield Finding(
            "wal_size",
            "warning",
            f"{wal} has {wal.stat().st_size >> 20} MiB: a reader that never ends pins it.",
            "Find the process that keeps a transaction open; a checkpoint then shrinks the file.",
        )


def _library() -> Iterator[Finding]:
    if db.sqlite_version() < db.FIRST_SAFE_SQLITE:
        version = ".".join(map(str, db.sqlite_version()))
        yield Finding(
            "sqlite_version",
            "warning",
            f"SQLite {version} can corrupt a WAL database when a reset races with a writer.",
            "Install the package pysqlite3, or a Python with SQLite 3.51.3 or newer.",
        )


def _is_uuid(value: object) -> bool:
    try:
        return str(UUID(str(value))) == value
    except ValueError:
        return False
