"""Fixtures: real stores, a real PostgreSQL, and the doctor at the end of every test."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from keystore import Store
from keystore.db import open_store
from keystore.doctor import examine
from keystore.sync import targets
from keystore.testing import postgres
from tests import buckets
from tests.centre import Centre

NewStore = Callable[..., Store]


@pytest.fixture
def healthy(tmp_path: Path) -> Iterator[list[Path]]:
    """Store files that the doctor must find healthy when the test is over."""
    paths: list[Path] = []
    yield paths
    for path in paths:
        with open_store(path) as file:
            assert [item for item in examine(file) if item.severity == "error"] == [], path


@pytest.fixture
def new_store(tmp_path: Path, healthy: list[Path]) -> Iterator[NewStore]:
    """Makes origin stores in the test's folder; the doctor looks at each afterwards."""
    opened: list[Store] = []

    def make(name: str = "origin.db") -> Store:
        path = tmp_path / name
        store = Store.create(path)
        opened.append(store)
        healthy.append(path)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(new_store: NewStore) -> Store:
    """An origin with a plan and an account, and no key yet."""
    made = new_store()
    made.add_plan("free")
    made.add_account("ada@example.org", plan="free")
    return made


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a PostgreSQL server: the embedded one, or that of the environment."""
    given = os.environ.get(postgres.ENVIRONMENT_VARIABLE)
    if given:
        yield given
    else:
        with postgres.running() as server:
            yield server.url


@contextmanager
def new_database(server: str, options: str = "") -> Iterator[str]:
    """URL of an empty database, for the length of a ``with`` block."""
    name = f"keystore_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} {options}")  # type: ignore[call-overload,unused-ignore]
    yield server.rpartition("/")[0] + f"/{name}"
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[call-overload,unused-ignore]


@contextmanager
def new_hub(server: str, options: str = "") -> Iterator[str]:
    """URL of an empty hub, for the length of a ``with`` block."""
    with new_database(server, options) as url:
        with targets.hub_admin(url) as admin:
            admin.init()
        yield url


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """URL of an empty database of this test's own."""
    with new_database(postgres_url) as url:
        yield url


@pytest.fixture
def hub_url(database_url: str) -> str:
    """URL of an empty hub."""
    with targets.hub_admin(database_url) as admin:
        admin.init()
    return database_url


@pytest.fixture(params=["memory", "postgres"])
def centre(request: pytest.FixtureRequest) -> Iterator[Centre]:
    """A hub of either kind."""
    is_memory = request.param == "memory"
    made = Centre(None if is_memory else request.getfixturevalue("hub_url"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def moto_server() -> Iterator[buckets.S3Server]:
    """moto, as a server."""
    with buckets.moto() as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs_server() -> Iterator[buckets.S3Server]:
    """SeaweedFS, as a server."""
    with buckets.seaweedfs() as server:
        yield server


@pytest.fixture(params=["moto", "seaweedfs"])
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> buckets.S3Server:
    """An S3 server of either kind, and an environment with which everything may be done there."""
    server: buckets.S3Server = request.getfixturevalue(f"{request.param}_server")
    server.admit(monkeypatch)
    return server
