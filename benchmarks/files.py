"""A replica from a repository of signed files, against unpacking the same bytes."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import samples
from benchmarks.harness import Row, Side, compare, main
from keystore import db
from keystore.sync import repository, targets
from keystore.sync.folder import Folder

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def measure(quick: bool) -> list[Row]:
    """Measure with 20,000 keys (quick) or 200,000, published to a local folder."""
    count = 20_000 if quick else 200_000
    with TemporaryDirectory(prefix="keystore-bench-") as name:
        folder = Path(name)
        published, replica, unpacked = (folder / n for n in ("published", "replica.db", "unpacked"))
        published.mkdir()
        root = repository.create(Folder(published), folder / "keys").read_bytes()
        with samples.origin(folder / "origin.db", samples.random_hashes(count)) as file:
            targets.sync(file, published.as_uri(), keys=folder / "keys")
        (packed,) = (published / "targets").iterdir()

        def replicate() -> None:
            targets.replicate(published.as_uri(), replica, root=root)

        return [
            compare(
                f"replicate of {count:,} keys from signed files",
                "zstd decompression of the same file to a file",
                Side(replicate, lambda: db.remove_files(replica)),
                Side(lambda: unpacked.write_bytes(zstd.decompress(packed.read_bytes()))),
                goal=2.0,
                quick=quick,
            )
        ]


if __name__ == "__main__":
    main(measure)
