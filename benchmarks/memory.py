"""The most memory that a push and a pull of a whole store take, in processes of their own."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import samples
from benchmarks.harness import Row, main
from benchmarks.hubs import FreshHub
from keystore import db
from keystore.sync import repository
from keystore.sync.folder import Folder
from keystore.testing.postgres import running

LIMIT_MB = 200

_PROGRAM = """
import sys
from keystore.cli import main
try:
    main()
except SystemExit as ended:
    if ended.code:
        raise
    status = open("/proc/self/status").read()
    print(status.partition("VmHWM:")[2].split()[0])
"""


def measure(quick: bool) -> list[Row]:
    """Measure with 20,000 keys (quick) or 1,000,000. On Linux only: elsewhere nobody tells."""
    if not sys.platform.startswith("linux"):
        return []
    keys = 20_000 if quick else 1_000_000
    with TemporaryDirectory(prefix="keystore-bench-") as folder, running() as server:
        origin, replica = (Path(folder) / name for name in ("origin.db", "replica.db"))
        samples.origin(origin, samples.random_hashes(keys)).close()
        with FreshHub(server.url, "ours") as hub:
            return [
                _peak(f"push of {keys:,} keys", "sync", hub.url, "--db", str(origin)),
                _peak(f"pull of {keys:,} keys", "replicate", hub.url, str(replica)),
                *_files(keys, Path(folder), origin),
            ]


def _files(keys: int, folder: Path, origin: Path) -> list[Row]:
    """Signed files: the whole store, and then a tenth of its keys."""
    published, replica = folder / "published", folder / "from-files.db"
    root = repository.create(Folder(published), folder / "keys")
    publish = ("sync", str(published), "--db", str(origin), "--keys", str(folder / "keys"))
    first = [
        _peak(f"publication of {keys:,} keys", *publish),
        _peak("first start", "replicate", str(published), str(replica), "--root", str(root)),
    ]
    with db.open_store(origin) as file, file.write() as conn:
        conn.execute("UPDATE APIKeys SET label = 'changed' WHERE api_key_id % 10 = 0")
    return [
        *first,
        _peak("publication of a tenth", *publish),
        _peak("pull of a tenth", "sync", str(published), "--db", str(replica)),
    ]


def _peak(what: str, *command: str) -> Row:
    """Run a command of ours. Not by getrusage: its peak counts what the parent had before exec."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *command], capture_output=True, text=True, check=True
    )
    ratio = round(int(done.stdout.splitlines()[-1]) / 1024 / LIMIT_MB, 4)
    return Row(f"peak memory, {what}", f"{LIMIT_MB} MB", ratio, ratio, ratio, 1.0, ratio <= 1)


if __name__ == "__main__":
    main(measure)
