"""What the tests of signed files share: an origin that publishes to a folder, and its readers."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from keystore import Store
from keystore.db import open_store
from keystore.sync import digest, repository, retention, targets
from keystore.sync.digest import Buckets
from keystore.sync.engine import Report
from keystore.sync.files import FileRepository
from keystore.sync.folder import Folder
from keystore.sync.protocols import Source
from keystore.sync.repository import Published, Repository
from keystore.sync.repository_format import Scope, State, read_state
from tests.failures import reaching


class Shelf:
    """A repository in a folder, the store that publishes to it, and its readers."""

    def __init__(self, store: Store, folder: Path, *, scope: Scope | None = None) -> None:
        self.store, self.base = store, folder
        self.folder, self.keys = folder / "repository", folder / "keys"
        root = repository.create(self.storage, self.keys, scope=scope)
        self.root = root.read_bytes()
        self._made = 0

    @property
    def storage(self) -> Folder:
        return Folder(self.folder)

    def publish(self, *, reconcile: bool = False) -> Report:
        (report,) = targets.sync(
            self.store.file, str(self.folder), keys=self.keys, reconcile=reconcile
        )
        return report

    def replicate(self, *, folder: Path | None = None) -> Path:
        self._made += 1
        path = self.base / f"replica-{self._made}.db"
        targets.replicate(str(folder or self.folder), path, root=self.root)
        return path

    def pull(self, path: Path, *, folder: Path | None = None) -> Report:
        with open_store(path) as file:
            (report,) = targets.sync(
                file, str(folder or self.folder), root=self.root if folder else None
            )
        return report

    def source(self) -> Source:
        source = FileRepository(self.folder.as_uri(), root=self.root).source
        assert source is not None
        return source

    def published(self) -> Published:
        return Repository(self.storage, self.root).read()

    def state(self) -> State:
        state = read_state(self.published().targets)
        assert state is not None
        return state

    def files(self) -> set[str]:
        return set(self.storage.names())

    def copied(self) -> Path:
        """Copy the folder, as somebody who reads it slowly has it."""
        self._made += 1
        copy = self.base / f"copy-{self._made}"
        shutil.copytree(self.folder, copy)
        return copy

    @contextmanager
    def seen_at(self, *steps: str) -> Iterator[dict[str, Path]]:
        """Copy the folder each time that one of the steps is reached; the last copy of each."""
        copies: dict[str, Path] = {}

        def on_reach(step: str) -> None:
            if step in steps:
                copies[step] = self.copied()

        with reaching(on_reach):
            yield copies


def digest_of(path: Path) -> Buckets:
    with open_store(path) as file:
        return digest.digest_store(file)


class Clock:
    """The publisher's clock; ``patch`` is a monkeypatch's ``setattr``."""

    def __init__(self, patch: Callable[..., None]) -> None:
        real = retention.now
        self.ahead = timedelta(0)
        patch(retention, "now", lambda: real() + self.ahead)

    def advance(self, **time: float) -> datetime:
        self.ahead += timedelta(**time)
        return retention.now()
