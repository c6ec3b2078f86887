"""Pulls from a repository of signed files.

A replica trusts the root file that it was given, whatever that root says later, and nothing else:
neither the transport nor the server.
"""

import json
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tuf.api.metadata import TargetFile

from keystore.changelog import Page
from keystore.clock import seconds, utc_text
from keystore.errors import ForeignOriginError, TargetNotReadyError
from keystore.sync import segments, snapshot
from keystore.sync.downloads import SCRATCH, disk_errors, downloaded, workplace
from keystore.sync.protocols import Origin, Pull
from keystore.sync.repository_format import Segment, Stamp, State, stamp_of, terms_of
from keystore.sync.storage import Storage
from keystore.sync.trust import Trusted

_PINNED = "pinned.json"
_OVERTAKEN = "overtaken"
"""Another target has brought rows since; see sync.sql."""


class FileSource:
    """Reads a repository.

    ``state`` is what an earlier pull left, ``root`` starts the trust anew.
    """

    def __init__(
        self, storage: Storage, root: bytes | None, state: str | None, beside: Path | None
    ) -> None:
        self._storage, self._beside = storage, beside
        self._files: dict[str, str] = json.loads(state) if state else {}
        if root is not None:
            # A root that is given again starts the trust anew: the operator's word counts. But the
            # same root changes nothing, and what was seen stays seen.
            text = root.decode("utf-8", "replace")
            if text != self._files.get(_PINNED):
                self._files = {_PINNED: text}
        self._root = self._files.pop(_PINNED).encode()
        is_overtaken = self._files.pop(_OVERTAKEN, None) is not None
        self._brought_rows = bool(self._files) and not is_overtaken
        self.target_id = str(terms_of(self._root).repository_id)

    @contextmanager
    def pull(self, origin_id: str | None, after: int | None) -> Iterator[Pull]:
        """Open a cut; see :class:`keystore.sync.protocols.Source`."""
        with disk_errors(SCRATCH), tempfile.TemporaryDirectory(prefix="keystore-") as name:
            trusted = Trusted(self._storage, self._root, self._files, Path(name) / "metadata")
        state = trusted.state()
        if state is None:
            raise TargetNotReadyError(
                "this repository offers no snapshot.", hint="Publish from the origin first."
            )
        info, stamp = state.info, stamp_of(trusted.timestamp, state)
        if origin_id is not None and info.origin_id != origin_id:
            raise ForeignOriginError(
                f"the repository carries origin {info.origin_id}, not {origin_id}.",
                hint="Check the URL, or make a new replica with `keystore replicate`.",
            )
        if trusted.terms.scope is not None and not self._brought_rows:
            after = None  # what is held may be another part of the origin's rows
        changes = None if after is None else state.changes_after(min(after, state.up_to))
        signed = [state.snapshot, *(one.target for one in state.changes)]
        with workplace(self._beside, signed) as folder:
            fetch = _Fetch(self._storage, state, folder, signed)
            is_everything = changes is None
            pages = fetch.everything() if changes is None else fetch.pages(changes)
            yield Pull(
                origin=Origin(
                    info.origin_id, info.incarnation, info.token_prefix, info.schema_version
                ),
                as_of_change=stamp.up_to,
                as_of_at=stamp.as_of_at,
                counts=stamp.counts,
                is_everything=is_everything,
                pages=pages,
                source_state=json.dumps({_PINNED: self._root.decode()} | trusted.files),
                valid_until=utc_text(_valid_until(trusted, stamp)),
                max_offline_seconds=trusted.terms.max_offline_seconds,
                place=fetch.place if is_everything else None,
                scope=str(trusted.terms.scope) if trusted.terms.scope else None,
            )


def _valid_until(trusted: Trusted, stamp: Stamp) -> float:
    """When the signatures expire, in Unix seconds; no later than the root key allows.

    Whoever has stolen the online key could let them live for ever.
    """
    expires = trusted.timestamp.expires.timestamp()
    return min(expires, seconds(stamp.as_of_at) + trusted.terms.lifetime_seconds)


class _Fetch:
    """Fetches and verifies what a cut needs, when it is needed."""

    def __init__(
        self, storage: Storage, state: State, folder: Path, signed: Sequence[TargetFile]
    ) -> None:
        self._storage, self._state, self._folder, self._signed = storage, state, folder, signed

    def pages(self, changes: Sequence[Segment]) -> Iterator[Page]:
        """Yield the records of some segments."""
        for one in changes:
            with downloaded(self._storage, one.target, self._folder, self._signed) as file:
                yield from segments.read(file, one.info.length)

    def everything(self) -> Iterator[Page]:
        """Yield all records as they are now."""
        path = self._folder / f"{uuid.uuid4().hex}.sqlite"
        self.place(path)
        yield from snapshot.pages_of(path)

    def place(self, path: Path) -> None:
        """Put the whole state at ``path``, as a store's file."""
        unpacked = self._folder / f"{uuid.uuid4().hex}.sqlite"
        target = self._state.snapshot
        with downloaded(self._storage, target, self._folder, self._signed) as file:
            snapshot.unpacked(file, unpacked, self._state.info)
        if changes := self._state.since_snapshot:
            snapshot.apply(unpacked, self.pages(changes))
        unpacked.chmod(0o600)
        unpacked.rename(path)
