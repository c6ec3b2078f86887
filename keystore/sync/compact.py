"""Shortens a store's ChangeLog to what a target may still ask for."""

from dataclasses import dataclass, field
from datetime import timedelta

from keystore import changelog, sql
from keystore.db import StoreFile
from keystore.failpoint import reached

DEFAULT_LEASE = timedelta(days=30)
"""For how long a target that is not heard of keeps the ChangeLog from being shortened."""

_Q = sql.named("sync")


@dataclass(slots=True)
class Compaction:
    """What was done: log rows removed and kept, and the change up to which the log is gone.

    ``held_by`` names the target that needs the oldest change, if it is not the newest;
    ``released`` those that were silent for too long and need more than is kept: they get
    everything when they return.
    """

    removed: int = 0
    kept: int = 0
    horizon: int = 0
    held_by: str | None = None
    released: list[str] = field(default_factory=list)


def compact(file: StoreFile, *, lease: timedelta = DEFAULT_LEASE) -> Compaction:
    """Remove the changes that every live target has, and all but the latest of each record.

    A replica pushes to nobody, so nobody holds its log.
    """
    done = Compaction()
    with file.write() as conn:
        floor = changelog.head(conn)
        targets: list[tuple[str, int, int]] = []
        if file.info().is_origin:
            seconds = {"seconds": f"-{int(lease.total_seconds())} seconds"}
            targets = conn.execute(_Q["holds"], seconds).fetchall()
        for url, acknowledged, is_live in targets:
            if is_live and acknowledged < floor:
                floor, done.held_by = acknowledged, url
        done.removed = changelog.compact(conn, floor)
        done.horizon = file.info().log_horizon
        done.released = [
            url
            for url, acknowledged, is_live in targets
            if not is_live and acknowledged < done.horizon
        ]
        done.kept = changelog.count(conn)
    reached("compact.done")
    return done
