"""Signed files: a first start and a publication, against zstd and Litestream.

Litestream is what an operator would pick to carry a SQLite file to static storage. It knows neither
signatures nor expiry nor part of a store; it is the yardstick for bytes and time.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import samples
from benchmarks.harness import Side, compare, main
from benchmarks.results import Figure, Found, Missing, Row
from keystore import db
from keystore.db import StoreFile
from keystore.sync import repository, targets
from keystore.sync.folder import Folder

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHANGES = 100
_CHUNK = 1 << 20
_LITESTREAM = Path(sys.executable).with_name("litestream")
HAS_LITESTREAM = _LITESTREAM.exists()


class Site:
    """One store, published by both."""

    def __init__(self, folder: Path, file: StoreFile) -> None:
        self.file, self.published, self.streamed = file, folder / "published", folder / "streamed"
        self.keys, self.replica, self.restored = (
            folder / name for name in ("keys", "replica.db", "restored.db")
        )
        self.root = repository.create(Folder(self.published), self.keys).read_bytes()
        self._round = 0
        self.publish()
        if HAS_LITESTREAM:
            self.stream()

    def publish(self) -> None:
        """Publish what has changed as signed files."""
        targets.sync(self.file, self.published.as_uri(), keys=self.keys)

    def stream(self) -> None:
        """Let Litestream copy what has changed."""
        litestream("replicate", "-once", str(self.file.path), self.streamed.as_uri())

    def replicate(self) -> None:
        """Make a replica from the signed files."""
        targets.replicate(self.published.as_uri(), self.replica, root=self.root)

    def restore(self) -> None:
        """Make a copy from Litestream's files."""
        litestream("restore", "-o", str(self.restored), self.streamed.as_uri())

    def change(self) -> None:
        """Change some keys, spread over the table."""
        self._round += 1
        with self.file.write() as conn:
            (last,) = conn.execute("SELECT max(api_key_id) FROM APIKeys").fetchone()
            step = last // CHANGES
            conn.executemany(
                "UPDATE APIKeys SET label = ? WHERE api_key_id = ?",
                [(f"round {self._round}", 1 + number * step) for number in range(CHANGES)],
            )


def measure(quick: bool) -> list[Found]:
    """Measure with 20,000 keys (quick) or a million."""
    count = 20_000 if quick else 1_000_000
    with site(count) as made:
        unpacked = made.replica.with_name("unpacked")
        (packed,) = (made.published / "targets").iterdir()

        def unpack() -> None:
            with zstd.open(packed, "rb") as source, unpacked.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK)

        first_start = f"replicate of {count:,} keys from signed files"
        replicate = Side(made.replicate, lambda: db.remove_files(made.replica))
        restore = Side(made.restore, lambda: db.remove_files(made.restored))
        floor = "zstd decompression of the same file to a file"
        found: list[Found] = [
            compare(first_start, floor, replicate, Side(unpack), goal=2.0, quick=quick)
        ]
        if not HAS_LITESTREAM:
            return [*found, Missing("Litestream", "it is not installed")]
        found.append(
            compare(first_start, "litestream restore", replicate, restore, goal=1.0, quick=quick)
        )
        made.change()
        ours = new_bytes(made.published, made.publish)
        theirs = new_bytes(made.streamed, made.stream)
        what = f"{CHANGES} changed keys of {count:,}"
        ratio = round(ours / theirs, 4)
        against = "litestream replicate -once"
        whats = f"bytes published for {what}"
        found.append(Row(whats, against, ratio, ratio, ratio, 1.0, ratio <= 1))
        found += [Figure(whats, ours, "bytes"), Figure(against, theirs, "bytes")]
        # Each side after a change of its own: both then carry just that.
        publish, stream = Side(made.publish, made.change), Side(made.stream, made.change)
        found.append(compare(f"publish {what}", against, publish, stream, goal=1.0, quick=quick))
        return found


@contextmanager
def site(count: int) -> Iterator[Site]:
    """Make a store with so many keys, and publish it."""
    with TemporaryDirectory(prefix="keystore-bench-") as name:
        folder = Path(name)
        with samples.origin(folder / "origin.db", samples.random_hashes(count)) as file:
            yield Site(folder, file)


def new_bytes(folder: Path, act: Callable[[], object]) -> int:
    """Return how many bytes of new or changed files an action leaves in a folder."""

    def sizes() -> dict[Path, tuple[int, int]]:
        found = [path for path in folder.rglob("*") if path.is_file()]
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}

    before = sizes()
    act()
    after = sizes()
    return sum(after[path][0] for path in after if after[path] != before.get(path))


def litestream(*arguments: str) -> None:
    """Run Litestream, quietly."""
    command = [str(_LITESTREAM), *arguments]
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main(measure)
