"""What a store and a hub tell each other beside the rows: revocations, usage, and who has what.

Revocations come first, because they only take access away and are small. Usage goes up row by row,
each known by ``(store_id, usage_id, nonce)``: the hub takes a set, so a page that is sent again, or
by two copies of one file, counts once. So does the ledger of an origin. Last, a replica checks in:
the operator sees by it which replica has which revocation, and what may be forgotten because
everybody has it.
"""

import time
from uuid import UUID

import uuid_utils.compat

from keystore import changelog, db, quotas, sql
from keystore._version import __version__
from keystore.db import StoreFile
from keystore.errors import ForkedStoreError
from keystore.failpoint import reached
from keystore.sync.engine import Report, bookkeeping, remember
from keystore.sync.protocols import CheckIn, Entry, Hub, Usage

USAGE_PAGE_SIZE = 10_000
LEDGER_PAGE_SIZE = 10_000

_Q = sql.named("sync")


def receive_revocations(file: StoreFile, hub: Hub, url: str, report: Report) -> None:
    """Take over the revocations of this origin's keys that the hub has and this store has not.

    At the origin the keys get the status ``revoked`` as well, so that the next push tells everybody
    who does not ask this hub.
    """
    info = file.info()
    book = remember(file, hub.target_id, url, usage_only=True)
    found = hub.revocations(info.origin_id, book.acknowledged_revocation, book.last_revocation)
    report.revocations = len(found)
    if not found:
        return
    reached("revocations.received")
    with file.write() as conn:
        if info.is_origin:
            conn.execute(_Q["add_status_revoked"])
        for item in found:
            row = {"api_key": item.api_key, "reason": item.reason, "revoked_at": item.revoked_at}
            conn.execute(_Q["add_revocation"], row)
            if info.is_origin:
                conn.execute(_Q["revoke_key"], row)
        conn.execute(
            _Q["acknowledge_revocations"],
            {
                "revocation_id": found[-1].revocation_id,
                "api_key": found[-1].api_key,
                "target_id": hub.target_id,
            },
        )
    reached("revocations.done")


def settle_usage(file: StoreFile, hub: Hub | None) -> None:
    """At an origin: deduct from the quotas what was used here, and what the hub knows of others.

    Each store is settled in one transaction with the row up to which it is, so a kill or a lost
    answer deducts nothing twice. Where nothing was used nothing is written.
    """
    info = file.info()
    with file.read() as conn:
        is_due = quotas.is_own_due(conn, info.store_id, time.time())
        settled = quotas.settled(conn)
    if is_due:
        with file.write() as conn:
            quotas.settle_own(conn, info.store_id, time.time())
        reached("settle.own")
    if hub is None:
        return
    for used in hub.consumption(info.origin_id, settled):
        reached("settle.received")
        with file.write() as conn:
            after = settled.get(used.store_id, 0)
            quotas.settle(conn, used.store_id, after, used.up_to, used.rows, time.time())
        reached("settle.store")


def hand_up_usage(
    file: StoreFile, hub: Hub, url: str, report: Report, *, usage_only: bool = False
) -> None:
    """Hand up every usage row that the hub has not acknowledged.

    A page that was taken and not acknowledged is sent again; the hub counts it once. If the hub no
    longer has the last row that it acknowledged, it was put back to an earlier state, and gets
    everything again.
    """
    info = file.info()
    after = remember(file, hub.target_id, url, usage_only=usage_only).acknowledged_usage
    with file.read() as conn:
        last = conn.execute(_Q["usage_nonce"], (after,)).fetchone()
    if last is None or not hub.holds_usage(info.store_id, after, last[0]):
        after = 0
    report.usage = 0
    while True:
        # (nobody can correct a row that is append-only, and it must not keep the later ones back)
        with file.read() as conn, db.any_text(conn):
            window = {"after": after, "limit": USAGE_PAGE_SIZE}
            rows = [Usage(*row) for row in conn.execute(_Q["usage_after"], window)]
        if not rows:
            return
        reached("usage.page")
        hub.push_usage(info.store_id, info.origin_id, rows)
        reached("usage.sent")
        after = rows[-1].usage_id
        with file.write() as conn:
            conn.execute(
                _Q["acknowledge_usage"],
                {"acknowledged_usage": after, "target_id": hub.target_id},
            )
        reached("usage.acknowledged")
        report.usage += len(rows)


def hand_up_ledger(
    file: StoreFile, hub: Hub, url: str, report: Report, *, usage_only: bool = False
) -> None:
    """Hand up every row of an origin's ledger that the hub has not acknowledged.

    As :func:`hand_up_usage` does with usage. A replica has no ledger.
    """
    info = file.info()
    if not info.is_origin:
        return
    after = remember(file, hub.target_id, url, usage_only=usage_only).acknowledged_ledger
    with file.read() as conn:
        last = conn.execute(_Q["ledger_nonce"], (after,)).fetchone()
    if last is None or not hub.holds_ledger(info.store_id, after, last[0]):
        after = 0
    report.ledger = 0
    while True:
        with file.read() as conn, db.any_text(conn):
            window = {"after": after, "limit": LEDGER_PAGE_SIZE}
            rows = [Entry(*row) for row in conn.execute(_Q["ledger_after"], window)]
        if not rows:
            return
        reached("ledger.page")
        hub.push_ledger(info.store_id, rows)
        reached("ledger.sent")
        after = rows[-1].ledger_id
        with file.write() as conn:
            conn.execute(
                _Q["acknowledge_ledger"],
                {"acknowledged_ledger": after, "target_id": hub.target_id},
            )
        reached("ledger.acknowledged")
        report.ledger += len(rows)


def check_in(file: StoreFile, hub: Hub) -> None:
    """Tell the hub what this replica has; an origin says so with each push.

    If a copy of this file has called meanwhile, two files pass for one, and a receipt of one would
    be taken for the other's. So this one takes a new incarnation and is a replica of its own.
    Usage needs no such care: rows of both copies are told apart by their nonces.

    Raises:
        ForkedStoreError: even then the hub refuses.
    """
    info = file.info()
    if info.is_origin or info.as_of_change is None or info.as_of_at is None:
        return
    with file.write() as conn:
        fresh = _token_after(conn.execute(_Q["target"], (hub.target_id,)).fetchone()[0])
        # A token whose acknowledgement was lost is used again: the hub may have it.
        taken = {"token": fresh, "target_id": hub.target_id}
        last, token = conn.execute(_Q["take_token"], taken).fetchone()
    reached("check_in.pending")
    if not hub.check_in(_who(file, hub), last=last, token=token):
        with file.write() as conn:
            now = conn.execute(_Q["target"], (hub.target_id,)).fetchone()[:2]
            is_overtaken = now != (last, token)  # by a process that syncs this very file: no copy
            if not is_overtaken:
                db.renew_incarnation(conn)
                changelog.skip_usage_ids(conn)
        if is_overtaken:
            check_in(file, hub)
            return
        if not hub.check_in(_who(file, hub), last=None, token=token):
            raise ForkedStoreError(
                "the hub does not accept this replica under a new name either.",
                hint="Make it anew with `keystore replicate`; its usage is at the hub.",
            )
    reached("check_in.sent")
    with file.write() as conn:
        conn.execute(_Q["acknowledge_check_in"], {"token": token, "target_id": hub.target_id})
    reached("check_in.done")
    if token != fresh:
        # A copy that was made since it was first sent has it as well, and would be taken for us.
        check_in(file, hub)


def _token_after(last: str | None) -> str:
    """Make a token that is newer than the last one, though the clock was put back meanwhile.

    An older one would pass, to a copy of this file, for that of a hub that was put back.
    """
    token = uuid_utils.compat.uuid7()
    if last is not None and str(token) <= last:
        milliseconds = min((UUID(last).int >> 80) + 1, (1 << 48) - 1)
        token = UUID(int=milliseconds << 80 | token.int & ((1 << 80) - 1))
    return str(token)


def _who(file: StoreFile, hub: Hub) -> CheckIn:
    info = file.info()
    return CheckIn(
        store_id=info.store_id,
        incarnation=info.incarnation,
        origin_id=info.origin_id,
        schema_version=db.SCHEMA_VERSION,
        program_version=__version__,
        as_of_change=info.as_of_change or 0,
        as_of_at=info.as_of_at or "",
        seen_revocation=bookkeeping(file, hub.target_id).acknowledged_revocation,
    )
