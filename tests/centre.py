"""A hub that can be put back to an earlier state, in memory or in PostgreSQL."""

import copy as copying
from pathlib import Path

import psycopg

from keystore.db import open_store
from keystore.sync import targets
from keystore.sync.engine import Report
from keystore.sync.hub_admin import Revoked
from keystore.sync.memory import MemoryHub
from keystore.sync.postgres import PostgresHub
from keystore.sync.protocols import Revocation


class Centre:
    """A hub that can be put back to an earlier state."""

    def __init__(self, url: str | None) -> None:
        self.url = url
        self.memory = MemoryHub()
        self.kept: dict[str, object] = {}
        self.opened: PostgresHub | None = None

    @property
    def hub(self) -> MemoryHub | PostgresHub:
        if self.url is None:
            return self.memory
        if self.opened is None or self.opened.conn.closed:
            self.opened = PostgresHub(self.url)
        return self.opened

    def keep(self) -> None:
        if self.url is None:
            lives = {"_lock", "_has_news", "_watches"}
            state = {name: item for name, item in vars(self.memory).items() if name not in lives}
            self.kept = copying.deepcopy(state)
        else:
            self._copy_database("", "_kept")

    def put_back(self) -> None:
        if self.url is None:
            vars(self.memory).update(copying.deepcopy(self.kept))
        else:
            self._copy_database("_kept", "")

    def sync(self, path: Path) -> Report:
        report = Report("hub:")
        with open_store(path) as file:
            targets.sync_opened(file, self.hub, report)
        return report

    def revoke(self, api_key: str, reason: str | None = None) -> Revocation | Revoked:
        if self.url is None:
            (done,) = self.memory.revoke(api_key, reason=reason)
            return done
        with targets.hub_admin(self.url) as admin:
            (revoked,) = admin.revoke(api_key, reason=reason)
        return revoked

    def usage(self) -> list[tuple[str | None, int]]:
        """Request ids and amounts of all usage rows that the hub has."""
        if self.url is None:
            return [(usage.request_id, usage.amount) for _, usage in self.memory.usage.values()]
        with psycopg.connect(self.url) as conn:
            return conn.execute("SELECT request_id, amount FROM keystore.usage_log").fetchall()

    def close(self) -> None:
        self._disconnect()
        if self.url is not None:
            self._run("DROP DATABASE IF EXISTS {0}_kept")

    def _disconnect(self) -> None:
        if self.opened is not None:
            self.opened.close()

    def _copy_database(self, source: str, target: str) -> None:
        self._disconnect()
        self._run(f"DROP DATABASE IF EXISTS {{0}}{target} WITH (FORCE)")
        self._run(f"CREATE DATABASE {{0}}{target} TEMPLATE {{0}}{source}")

    def _run(self, statement: str) -> None:
        server, _, name = (self.url or "").rpartition("/")
        with psycopg.connect(f"{server}/postgres", autocommit=True) as conn:
            conn.execute(statement.format(name))  # type: ignore[call-overload,unused-ignore]
