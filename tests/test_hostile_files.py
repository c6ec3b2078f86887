"""Signed files among everything else that is done with a store, and servers that mean no harm."""

from pathlib import Path

import pytest

from keystore import Store
from keystore.db import open_store
from keystore.errors import InvalidInputError, UntrustedRepositoryError
from keystore.sync import targets, urls
from keystore.sync.repository_format import Scope
from tests.failures import said
from tests.repositories import Shelf, digest_of


def test_a_server_that_answers_with_a_page_for_what_is_missing_is_refused_with_the_cause(
    store: Store, tmp_path: Path
) -> None:
    shelf = Shelf(store, tmp_path)
    shelf.publish()
    replica = shelf.replicate()
    store.issue_key("ada@example.org")
    shelf.publish()
    page = shelf.folder / "metadata" / "2.root.json"
    page.write_text("<!doctype html><title>Our app</title>")
    before = digest_of(replica)
    with pytest.raises(UntrustedRepositoryError) as caught:
        shelf.pull(replica)
    assert "404" in said(caught.value)
    assert digest_of(replica) == before
    page.unlink()
    shelf.pull(replica)
    assert digest_of(replica) == digest_of(store.file.path)


@pytest.fixture
def shelves(store: Store, tmp_path: Path) -> tuple[Shelf, Shelf]:
    """The published files of two accounts of one store."""
    store.add_account("bob@example.org", plan="free")
    ada, bob = (
        Shelf(store, tmp_path / name, scope=Scope(kind="account", record_id=number, name=name))
        for number, name in enumerate(("ada", "bob"), start=1)
    )
    ada.publish()
    bob.publish()
    return ada, bob


def test_a_replica_that_reads_the_files_of_two_accounts_in_turn_misses_no_change(
    store: Store, shelves: tuple[Shelf, Shelf]
) -> None:
    ada, bob = shelves
    replica = ada.replicate()
    with open_store(replica) as file:
        targets.sync(file, str(bob.folder), root=bob.root)
        store.file.conn.execute("UPDATE Accounts SET is_active = 0 WHERE account_id = 1")
        ada.publish()
        bob.publish()
        targets.sync(file, str(bob.folder))
        for _ in range(2):
            targets.sync(file, str(ada.folder))
            assert digest_of(replica) == digest_of(ada.replicate())


def test_a_replica_of_one_account_that_moves_to_another_holds_that_ones_rows_alone(
    shelves: tuple[Shelf, Shelf],
) -> None:
    ada, bob = shelves
    replica = ada.replicate()
    with open_store(replica) as file:
        targets.sync(file, str(bob.folder), root=bob.root)
    assert digest_of(replica) == digest_of(bob.replicate())


@pytest.mark.parametrize(
    "url", ["file://site", "file://site/sub", "file:///site?x=1", "file:///site#x", "file:///a%00b"]
)
def test_a_file_url_that_would_lead_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        urls.normalized(url)
    assert "three slashes" in said(caught.value)
