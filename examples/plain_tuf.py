"""Reads a repository of signed files with python-tuf alone; nothing of keystore is needed.

    python plain_tuf.py https://keys.example.org root.json

Prints how many records of each table there are. docs/repository.md tells the format.
"""

import json
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from tuf.ngclient import Updater

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SNAPSHOT = "snapshot.sqlite.zst"


def records(url: str, root: bytes, folder: Path) -> dict[str, dict[int, list[Any]]]:
    """Download what a repository offers, and return its records by table and id."""
    updater = Updater(
        metadata_dir=str(folder),
        metadata_base_url=f"{url}/metadata/",
        target_dir=str(folder),
        target_base_url=f"{url}/targets/",
        bootstrap=root,
    )
    updater.refresh()

    def download(name: str) -> tuple[Path, dict[str, Any]]:
        target = updater.get_targetinfo(name)
        if target is None:
            raise SystemExit(f"{url}: nothing is published yet.")
        custom: dict[str, Any] = target.custom or {}
        return Path(updater.download_target(target)), custom

    packed, snapshot = download(SNAPSHOT)
    database = folder / "snapshot.sqlite"
    with zstd.open(packed, "rb") as source:
        database.write_bytes(source.read(snapshot["length"]))
    changes = [download(name) for name in snapshot["changes"]]

    found: dict[str, dict[int, list[Any]]] = {}
    with closing(sqlite3.connect(f"file:{database}?immutable=1", uri=True)) as conn:
        tables = conn.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        )
        for (table,) in tables.fetchall():
            rows = conn.execute(f"SELECT * FROM {table}")  # noqa: S608 - a name of the schema
            found[table] = {row[0]: list(row) for row in rows}
    for path, about in changes:
        if about["up_to"] <= snapshot["up_to"]:
            continue  # for those who have an older state: it is in the snapshot
        with zstd.open(path, "rt", encoding="utf-8") as lines:
            next(lines)  # a header: the format, and the columns of each table
            for line in lines:
                table, value = json.loads(line)
                if isinstance(value, int):
                    found[table].pop(value, None)
                else:
                    found[table][value[0]] = value
    return found


def main() -> None:
    """Print what is there."""
    url, root = sys.argv[1].rstrip("/"), Path(sys.argv[2]).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        for table, rows in records(url, root, Path(folder)).items():
            if rows:
                print(f"{table}: {len(rows)}")


if __name__ == "__main__":
    main()
