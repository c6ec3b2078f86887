"""A hub that can be put back to an earlier state, in memory or in PostgreSQL."""

import copy as copying

import psycopg

from keystore.sync import targets
from keystore.sync.memory import MemoryHub
from keystore.sync.postgres import PostgresHub


class Centre:
    """A hub that can be put back to an earlier state."""

    def __init__(self, url: str | None) -> None:
        self.url = url
        self.memory = MemoryHub()
        self.kept: dict[str, object] = {}
        self.opened: list[PostgresHub] = []

    @property
    def hub(self) -> MemoryHub | PostgresHub:
        if self.url is None:
            return self.memory
        for hub in self.opened:
            hub.close()
        self.opened = [PostgresHub(self.url)]
        return self.opened[0]

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

    def revoke(self, api_key: str) -> None:
        if self.url is None:
            self.memory.revoke(api_key)
        else:
            with targets.hub_admin(self.url) as admin:
                admin.revoke(api_key)

    def usage(self) -> list[tuple[str | None, int]]:
        """Request ids and amounts of all usage rows that the hub has."""
        if self.url is None:
            return [(usage.request_id, usage.amount) for _, usage in self.memory.usage.values()]
        with psycopg.connect(self.url) as conn:
            return conn.execute("SELECT request_id, amount FROM keystore.usage_log").fetchall()

    def close(self) -> None:
        for hub in self.opened:
            hub.close()
        if self.url is not None:
            self._run("DROP DATABASE IF EXISTS {0}_kept")

    def _copy_database(self, source: str, target: str) -> None:
        for hub in self.opened:
            hub.close()
        self._run(f"DROP DATABASE IF EXISTS {{0}}{target} WITH (FORCE)")
        self._run(f"CREATE DATABASE {{0}}{target} TEMPLATE {{0}}{source}")

    def _run(self, statement: str) -> None:
        server, _, name = (self.url or "").rpartition("/")
        with psycopg.connect(f"{server}/postgres", autocommit=True) as conn:
            conn.execute(statement.format(name))  # type: ignore[call-overload,unused-ignore]
