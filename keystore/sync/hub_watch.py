"""Listens to a hub's news of one origin."""

from psycopg import sql as psycopg_sql

from keystore import sql
from keystore.sync.hub_connection import HubConnection, hub_errors
from keystore.sync.hub_push import channel_of
from keystore.sync.protocols import News

_Q = sql.named("hub")


class HubWatch:
    """See :class:`keystore.sync.protocols.Watch`; ends with the connection that it listens on."""

    def __init__(self, hub: HubConnection, origin_id: str) -> None:
        self._conn = hub.conn
        channel = psycopg_sql.Identifier(channel_of(origin_id))
        with hub_errors():
            self._conn.execute(psycopg_sql.SQL(_Q["listen"]).format(channel=channel))

    def wait(self, seconds: float) -> list[News]:
        """Return what has come; see :class:`keystore.sync.protocols.Watch`."""
        with hub_errors():
            # What came while other statements ran is kept by psycopg (3.2.4) and yielded first.
            found = list(self._conn.notifies(timeout=seconds, stop_after=1))
        return [news for item in found if (news := _read(item.payload))]


def _read(payload: str) -> News | None:
    """Read a payload; what a later version may say is not ours to act on."""
    kind, _, number = payload.partition(" ")
    return News(kind, int(number)) if number.isdecimal() else None
