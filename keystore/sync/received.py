"""Usage that an origin has taken from files: what of it is new, and what it takes from quotas."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keystore import quotas, sql
from keystore.sync.usage_envelope import Row

if TYPE_CHECKING:
    import sqlite3

MAX_SUM = 1 << 62
"""Units that are deducted at once at most: twice that is still within 64 bits."""
_Q = sql.named("usage_files")


def add(conn: "sqlite3.Connection", store_id: str, rows: Sequence[Row]) -> int:
    """Add rows, and take what is new from the quotas; return how many were new.

    The replica learns up to which of its rows that is done, so that it does not deduct them again:
    up to the first file that is missing. Part of the transaction that notes their file.
    """
    new = 0
    used: Counter[tuple[int, int, str]] = Counter()
    for row in rows:
        added = conn.execute(_Q["add_received"], {"store_id": store_id, **row.model_dump()})
        if added.rowcount:
            new += 1
            if row.principal_type == "api_key" and row.service_id is not None:
                hour = f"{row.occurred_at[:13]}:00:00"
                used[row.principal_id, row.service_id, hour] += row.amount
    consumed = [quotas.Consumed(*whose, min(sum_, MAX_SUM)) for whose, sum_ in used.items()]
    if consumed:
        quotas.deduct(conn, consumed, time.time())
    (up_to,) = conn.execute(_Q["complete_up_to"], (store_id,)).fetchone()
    quotas.note_settled(conn, store_id, up_to)
    return new
