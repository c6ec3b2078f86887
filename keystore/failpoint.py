"""Named steps of what must be all or nothing, where a test can stop the world.

In production a step costs one comparison. Tests set :data:`on_reach` to what is to happen there:
kill this process, kill the server, restore a backup.
"""

from collections.abc import Callable

STEPS = (
    "settle.own",
    "settle.received",
    "settle.store",
    "push.begin",
    "push.locked",
    "push.page",
    "push.sent",
    "push.pending",
    "push.staged",
    "push.committed",
    "push.acknowledged",
    "pull.opened",
    "pull.page",
    "pull.staged",
    "pull.applied",
    "pull.done",
    "replicate.filled",
    "revocations.received",
    "revocations.done",
    "usage.page",
    "usage.sent",
    "usage.acknowledged",
    "ledger.page",
    "ledger.sent",
    "ledger.acknowledged",
    "check_in.pending",
    "check_in.sent",
    "check_in.done",
    "compact.done",
    "export.noted",
    "export.drafted",
    "export.placed",
    "export.written",
    "ingest.verified",
    "ingest.inserted",
    "ingest.taken",
)
"""Every step with a hub, in the store alone, and of usage files; each group in its order."""

FILE_STEPS = (
    "publish.files",
    "publish.metadata",
    "publish.timestamp",
    "download.chunk",
    "download.done",
    "create.keys",
    "create.root",
    "rotate.root",
    "rotate.signed",
)
"""The steps that signed files add."""

on_reach: Callable[[str], None] | None = None


def reached(step: str) -> None:
    """Say that a step was reached."""
    if on_reach is not None:
        on_reach(step)
