"""A TUF client that knows nothing of keystore verifies and reads a repository."""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keystore import Store
from keystore.sync import repository, rotation, targets
from keystore.sync.storage import storage_of
from keystore.tables import TRACKED

EXAMPLE = Path(__file__).parent.parent / "examples/plain_tuf.py"
_RUN = """
import json, runpy, sys
from pathlib import Path

example = runpy.run_path(sys.argv[1])
found = example["records"](sys.argv[2], Path(sys.argv[3]).read_bytes(), Path(sys.argv[4]))
assert not [name for name in sys.modules if name.partition(".")[0] == "keystore"]
print(json.dumps(found))
"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """URL of the test's folder ``site``."""
    handler = functools.partial(_Quiet, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def client(*arguments: object) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd="/",
        env=outside | {"NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def read(site: str, root: Path, folder: Path) -> dict[str, dict[str, list[Any]]]:
    folder.mkdir()
    done = client("-c", _RUN, EXAMPLE, site, root, folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, list[Any]]] = json.loads(done.stdout)
    return found


def held(store: Store) -> dict[str, dict[str, list[Any]]]:
    found = {}
    for table in TRACKED:
        rows = store.file.conn.execute(f"SELECT {table.column_list} FROM {table.name}")
        found[table.name] = {str(row[0]): list(row) for row in rows}
    return found


def test_a_plain_tuf_client_reads_snapshot_and_changes(
    store: Store, site: str, tmp_path: Path
) -> None:
    url, keys = (tmp_path / "site").as_uri(), tmp_path / "keys"
    root = repository.create(storage_of(url), keys)
    for index in range(40):
        store.issue_key("ada@example.org", label=f"naïve ☂ {index}")
    doomed = store.issue_key("ada@example.org")
    targets.sync(store.file, url, keys=keys)
    store.delete_key(doomed.key.api_key)
    store.add_plan("a change of its own")
    targets.sync(store.file, url, keys=keys)
    found = read(site, root, tmp_path / "plain")
    assert {name: found[name] for name in held(store)} == held(store)
    # (the chain of roots, from the first)
    rotation.rotate(storage_of(url), keys, root_key=None, online=True, root=True)
    assert read(site, root, tmp_path / "later") == found


def test_the_example_tells_what_is_there(store: Store, site: str, tmp_path: Path) -> None:
    url, keys = (tmp_path / "site").as_uri(), tmp_path / "keys"
    root = repository.create(storage_of(url), keys)
    early = client(EXAMPLE, site, root)
    assert early.returncode != 0
    targets.sync(store.file, url, keys=keys)
    done = client(EXAMPLE, site, root)
    assert "Accounts: 1\n" in done.stdout, done.stderr


def test_a_plain_tuf_client_refuses_what_was_altered(
    store: Store, site: str, tmp_path: Path
) -> None:
    url, keys = (tmp_path / "site").as_uri(), tmp_path / "keys"
    root = repository.create(storage_of(url), keys)
    targets.sync(store.file, url, keys=keys)
    (path,) = (tmp_path / "site/targets").iterdir()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    done = client(EXAMPLE, site, root)
    assert done.returncode != 0
    assert "LengthOrHashMismatchError" in done.stderr
