"""examples/desktop_app.py: an app that embeds the library and is seldom connected."""

import subprocess
import sys
from pathlib import Path

import pytest

from examples.desktop_app import DesktopApp
from keystore import Store
from keystore.db import open_store
from keystore.sync import repository, targets, usage_files, usage_keys
from keystore.sync.repository_format import Scope
from keystore.sync.storage import storage_of
from tests.test_migrations import TOKENS, unpack

EXAMPLE = Path(__file__).parent.parent / "examples/desktop_app.py"


class Vendor:
    """Who issues keys, publishes ada's rows, and has one app out there."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.site, self.keys = store, folder / "site", folder / "keys"
        self.app = folder / "app"
        self.app.mkdir()
        ada = store.account("ada@example.org")
        scope = Scope(kind="account", record_id=ada.account_id, name=ada.email)
        self.root = repository.create(storage_of(self.url), self.keys, scope=scope)

    @property
    def url(self) -> str:
        return self.site.as_uri()

    def publish(self) -> None:
        targets.sync(self.store.file, self.url, keys=self.keys)

    def run(self, *tokens: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), str(self.app), self.url, str(self.root)],
            input="\n".join(tokens),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.splitlines()

    def ingest(self) -> int:
        with open_store(self.store.file.path) as file:
            usage_files.ingest(file, sorted((self.app / "outbox").glob("*.usage")))
        return self.store.status().received_usage


@pytest.fixture
def vendor(store: Store, tmp_path: Path) -> Vendor:
    return Vendor(store, tmp_path)


def test_an_app_works_without_a_network_and_every_picture_is_counted_once(vendor: Vendor) -> None:
    store = vendor.store
    store.add_account("bob@example.org", plan="free")
    ada, bob = (store.issue_key(f"{name}@example.org").token for name in ("ada", "bob"))
    vendor.publish()
    assert vendor.run(ada, ada, bob, "guess") == [
        *["a picture for ada@example.org"] * 2,
        *["no: unknown"] * 2,  # (an app holds the rows of its own account only)
        "1 new files for the origin",
    ]
    with open_store(store.file.path) as file:
        usage_keys.enroll(file, (vendor.app / "outbox/enrolment").read_bytes())
    assert vendor.ingest() == 2

    store.revoke_key(ada)
    vendor.publish()
    vendor.site.rename(vendor.site.with_suffix(".gone"))
    away = vendor.run(ada)
    assert away[0] == "a picture for ada@example.org"
    assert away[1].startswith("  (this is the state of ")
    assert vendor.ingest() == vendor.ingest() == 3

    vendor.site.with_suffix(".gone").rename(vendor.site)
    assert vendor.run(ada) == ["no: revoked", "0 new files for the origin"]
    assert vendor.ingest() == 3


def test_what_is_missing_at_the_start_is_one_line(vendor: Vendor) -> None:
    for given in ([], [vendor.app, vendor.url, vendor.app / "none.json"]):
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), *map(str, given)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr


def test_an_app_that_was_away_for_too_long_says_not_now(vendor: Vendor) -> None:
    token = vendor.store.issue_key("ada@example.org").token
    vendor.publish()
    vendor.run(token)
    vendor.site.rename(vendor.site.with_suffix(".gone"))
    with open_store(vendor.app / "keys.db") as file:
        file.conn.execute("UPDATE StoreInfo SET valid_until = datetime('now', '-31 days')")
    said = vendor.run(token)
    assert said[0] == "not now: offline; connect this computer to the network"
    assert said[-1] == "0 new files for the origin"


def test_an_update_of_the_app_takes_its_older_file_along(tmp_path: Path) -> None:
    """Nobody on the user's machine runs `keystore migrate`."""
    unpack("replica-v1.db.xz", tmp_path).rename(tmp_path / "keys.db")
    app = DesktopApp(tmp_path, "https://keys.example.org/ada", tmp_path / "root.json")
    assert app.render(TOKENS[0]).account == "ada@example.org"
