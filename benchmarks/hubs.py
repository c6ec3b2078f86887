"""Hubs to measure on: each in a database of its own, on a server that is thrown away."""

from typing import Any
from urllib.parse import urlsplit

import psycopg

from keystore.db import Closing
from keystore.sync import targets
from keystore.sync.postgres import PostgresHub


class FreshHub(Closing):
    """An empty hub, with a bare connection to the same database."""

    def __init__(self, server: str, name: str) -> None:
        self._server, self._name = server, name
        self.url = urlsplit(server)._replace(path=f"/{name}").geturl()
        self._open()

    def _open(self) -> None:
        with psycopg.connect(self._server, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {self._name}")
            admin.execute(f"CREATE DATABASE {self._name}")
        self.hub = PostgresHub(self.url)
        with targets.hub_admin(self.url) as admin:
            admin.init()
        self.conn: psycopg.Connection[Any] = psycopg.connect(self.url, autocommit=True)

    def renew(self) -> None:
        """Throw the hub away, and make another."""
        self.close()
        self._open()

    def close(self) -> None:
        """Close the connections; the database goes with the server."""
        self.hub.close()
        self.conn.close()

    def count_keys(self) -> int:
        """Count the keys, whosever they are."""
        return len(self.conn.execute("SELECT FROM keystore.api_keys").fetchall())
