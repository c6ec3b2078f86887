"""Faults of the disk under SQLite: the power goes at any write, any write fails, syncs lie.

What is promised of a disk, and what is asked of it: ``docs/disks.md``. A sample of the moments is
tried here; ``KEYSTORE_STORAGE_FAULTS=all`` tries all of them, a number another sample.
"""

import errno
import hashlib
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from keystore.errors import KeystoreError
from tests.failures import said
from tests.storage import MODES, Disk, lay_out
from tests.storage_file_scenes import FILE_SCENES
from tests.storage_scenes import SCENES, Flush, Hub, Scene, assert_healthy, copied, state, state_of

WHICH = os.environ.get("KEYSTORE_STORAGE_FAULTS", "0")
SAMPLE = 6


class Played:
    """A scene that was played once on a sound disk, with the log of it."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene, self.base = scene, folder / "base"
        self.base.mkdir()
        scene.prepare(self.base)
        self.before = None if scene.is_made else state_of(self.base / scene.path)
        with copied(self.base, folder / "played") as played:
            self.disk = Disk(played)
            hub = scene.hub.twin()
            hub.changed = lambda twin: self.disk.note("hub", twin)
            with self.disk.watching(self._note_commit, checkpoint_at=scene.checkpoint_at):
                scene.run(played, hub)
                self.disk.note("done", True)
            self.after = state_of(played / scene.path)
            scene.check(played, hub)

    def _note_commit(self, conn: Any) -> None:
        (name,) = (row[2] for row in conn.execute("PRAGMA database_list") if row[1] == "main")
        if name == str(self.disk.folder / self.scene.path):
            self.disk.note("commit", state(conn))

    def legal(self, at: int) -> list[object]:
        """What the store may say if the power goes after so many events; ``None``: it is not there.

        What was committed is there, and what was being committed may be.
        """
        if self.scene.is_made:
            return [self.after] if self.disk.noted("done", at) else [None, self.after]
        states = [self.before, *self.disk.noted("commit", len(self.disk.events))]
        count = len(self.disk.noted("commit", at))
        return states[count : count + 2]

    def hub(self, at: int) -> Hub:
        """What the hub holds then."""
        found: list[Hub] = [self.scene.hub, *self.disk.noted("hub", at)]
        return found[-1].twin()


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder in memory, where there is one: these tests bring their own disk."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture
def folder() -> Iterator[Path]:
    with in_memory() as made:
        yield made


@pytest.fixture(scope="module", params=SCENES | FILE_SCENES)
def played(request: pytest.FixtureRequest) -> Iterator[Played]:
    with in_memory() as made:
        yield Played((SCENES | FILE_SCENES)[request.param](), made)


def sample(choices: list[Any], count: int = SAMPLE) -> list[Any]:
    """Return all choices, or the first, the last, and some."""
    if WHICH == "all" or len(choices) <= count:
        return choices
    chance = random.Random(f"{WHICH} {len(choices)}")  # noqa: S311
    some = chance.sample(range(1, len(choices) - 1), count - 2)
    return [choices[0], *(choices[at] for at in sorted(some)), choices[-1]]


def power_losses(
    disk: Disk, *, lies: bool = False, modes: tuple[str, ...] = MODES
) -> Iterator[tuple[int, str, dict[str, bytes], random.Random]]:
    """Yield when and how the power goes, and what is left, each outcome once."""
    seen = set()
    for at in sample(disk.points()):
        for mode in modes:
            files, chance = disk.after_power_loss(at, mode, lies=lies)
            hashed = tuple(hashlib.sha256(data).digest() for data in files.values())
            noted = tuple(len(disk.noted(what, at)) for what in ("commit", "hub", "done"))
            known = (*files, hashed, noted)
            if known not in seen:
                seen.add(known)
                yield at, mode, files, chance


def test_power_that_goes_at_any_write_leaves_the_old_state_or_the_new_one(
    played: Played, folder: Path
) -> None:
    scene, count = played.scene, 0
    for at, mode, files, chance in power_losses(played.disk):
        left, count = folder / f"after {at} {mode}", count + 1
        left.mkdir()
        lay_out(files, left, chance)
        path, hub, legal = left / scene.path, played.hub(at), played.legal(at)
        assert (state_of(path) if path.exists() else None) in legal, (at, mode)
        if path.exists():
            assert_healthy(path)
        scene.go_on(left, hub)
        scene.check(left, hub)
        assert_healthy(path)
        shutil.rmtree(left)
    print(f"{len(played.disk.points())} moments, {count} outcomes tried")


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["broken", "full"])
def test_an_operation_that_fails_is_told_and_the_next_try_succeeds(
    played: Played, folder: Path, error: int
) -> None:
    scene, told = played.scene, 0
    for number in sample(list(range(len(played.disk.operations)))):
        with copied(played.base, folder / f"failing at {number}") as failing:
            disk, hub = Disk(failing, fail_at=number, error=error), scene.hub.twin()
            with disk.watching(checkpoint_at=scene.checkpoint_at):
                try:
                    scene.run(failing, hub)
                except KeystoreError as failed:
                    said(failed)
                    told += 1
                disk.fail_at = None
                path = failing / scene.path
                if not scene.is_made or path.exists():
                    assert_healthy(path)
                scene.go_on(failing, hub)
                scene.check(failing, hub)
                assert_healthy(path)
    assert told or isinstance(scene, Flush)  # which copes by itself
    print(f"{len(played.disk.operations)} operations, {told} errors")
