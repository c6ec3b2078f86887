"""What an operator wants to know of a repository."""

from dataclasses import dataclass, replace

from tuf.api.metadata import Root, Targets

from keystore.clock import utc_text
from keystore.sync.repository import Repository
from keystore.sync.repository_format import read_state
from keystore.sync.storage import Storage


@dataclass(frozen=True, slots=True)
class RepositoryInfo:
    """What a repository offers, and until when. Times are UTC text; ``None``: nothing published.

    More than one online key means that a rotation was interrupted.
    """

    repository_id: str
    url: str
    scope: str | None
    max_offline_seconds: int
    root_version: int
    root_expires_at: str
    root_keys: int
    online_keys: int
    origin_id: str | None = None
    schema_version: int | None = None
    as_of_change: int | None = None
    as_of_at: str | None = None
    expires_at: str | None = None
    snapshot_change: int = 0
    snapshot_bytes: int = 0
    segments: int = 0
    segment_bytes: int = 0
    warnings: tuple[str, ...] = ()


def look(storage: Storage, first_root: bytes) -> RepositoryInfo:
    """Read a repository's metadata, verified from the root file that is trusted.

    Raises:
        TargetNotReadyError, UntrustedRepositoryError: see :class:`.repository.Repository`.
    """
    found = Repository(storage, first_root)
    last, terms, root = found.read(), found.terms, found.root
    info = RepositoryInfo(
        repository_id=str(terms.repository_id),
        url=storage.url,
        scope=str(terms.scope) if terms.scope else None,
        max_offline_seconds=terms.max_offline_seconds,
        root_version=root.version,
        root_expires_at=utc_text(root.expires.timestamp()),
        root_keys=len(root.roles[Root.type].keyids),
        online_keys=len(root.roles[Targets.type].keyids),
        warnings=found.warnings,
    )
    state = read_state(last.targets)
    if state is None or last.stamp is None or last.timestamp_expires is None:
        return info
    return replace(
        info,
        origin_id=state.info.origin_id,
        schema_version=state.info.schema_version,
        as_of_change=last.stamp.up_to,
        as_of_at=last.stamp.as_of_at,
        expires_at=utc_text(last.timestamp_expires.timestamp()),
        snapshot_change=state.info.up_to,
        snapshot_bytes=state.snapshot.length,
        segments=len(state.changes),
        segment_bytes=sum(segment.target.length for segment in state.changes),
    )
