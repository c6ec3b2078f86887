"""The most memory that a push and a pull of a whole store take, in processes of their own."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import samples
from benchmarks.harness import main
from benchmarks.hubs import FreshHub
from benchmarks.results import Figure, Found, Missing, Row
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


def measure(quick: bool) -> list[Found]:
    """Measure with 20,000 keys (quick) or 1,000,000. On Linux only: elsewhere nobody tells."""
    if not sys.platform.startswith("linux"):
        return [Missing("peak memory", "this system does not tell what a process has used")]
    keys = 20_000 if quick else 1_000_000
    with TemporaryDirectory(prefix="keystore-bench-") as folder, running() as server:
        origin, replica = (Path(folder) / name for name in ("origin.db", "replica.db"))
        samples.origin(origin, samples.random_hashes(keys)).close()
        with FreshHub(server.url, "ours") as hub:
            peaks = {
                f"push of {keys:,} keys": _peak("sync", hub.url, "--db", str(origin)),
                f"pull of {keys:,} keys": _peak("replicate", hub.url, str(replica)),
                **_files(keys, Path(folder), origin),
            }
    return [
        *(_row(what, peak) for what, peak in peaks.items()),
        *(Figure(what, round(peak, 1), "MB at its peak") for what, peak in peaks.items()),
    ]


def _files(keys: int, folder: Path, origin: Path) -> dict[str, float]:
    """Signed files: the whole store, and then a tenth of its keys."""
    published, replica = folder / "published", folder / "from-files.db"
    root = repository.create(Folder(published), folder / "keys")
    publish = ("sync", str(published), "--db", str(origin), "--keys", str(folder / "keys"))
    start = ("replicate", str(published), str(replica), "--root", str(root))
    first = {
        f"publication of {keys:,} keys as signed files": _peak(*publish),
        f"first start from signed files of {keys:,} keys": _peak(*start),
    }
    with db.open_store(origin) as file, file.write() as conn:
        conn.execute("UPDATE APIKeys SET label = 'changed' WHERE api_key_id % 10 = 0")
    return first | {
        "publication of a tenth as signed files": _peak(*publish),
        "pull of a tenth from signed files": _peak("sync", str(published), "--db", str(replica)),
    }


def _peak(*command: str) -> float:
    """Run a command of ours, return its peak in MB.

    Not by getrusage: its peak counts what the parent had before exec.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *command], capture_output=True, text=True, check=True
    )
    return int(done.stdout.splitlines()[-1]) / 1024


def _row(what: str, peak: float) -> Row:
    ratio = round(peak / LIMIT_MB, 4)
    return Row(f"peak memory, {what}", f"{LIMIT_MB} MB", ratio, ratio, ratio, 1.0, ratio <= 1)


if __name__ == "__main__":
    main(measure)
