"""Listens to a hub's news of one origin."""

from selectors import EVENT_READ, DefaultSelector

from psycopg import sql as psycopg_sql

from keystore import sql
from keystore.sync.hub_connection import HubConnection, channel_of, hub_errors
from keystore.sync.protocols import News

_LONGEST_NUMBER = 19  # digits of a BIGINT; anybody who may connect may notify
_Q = sql.named("hub")


class HubWatch:
    """See :class:`keystore.sync.protocols.Watch`; ends with the connection that it listens on."""

    def __init__(self, hub: HubConnection, origin_id: str) -> None:
        self._conn = hub.conn
        self._payloads: list[str] = []
        # for what comes while other statements run
        self._conn.add_notify_handler(lambda notify: self._payloads.append(notify.payload))
        channel = psycopg_sql.Identifier(channel_of(origin_id))
        with hub_errors():
            self._conn.execute(psycopg_sql.SQL(_Q["listen"]).format(channel=channel))

    def wait(self, seconds: float) -> list[News]:
        """Return what has come; see :class:`keystore.sync.protocols.Watch`.

        Not by ``Connection.notifies()``: that takes several times the CPU, ten times a second.
        """
        with hub_errors():
            if not self._payloads:
                with DefaultSelector() as selector:
                    selector.register(self._conn.fileno(), EVENT_READ)
                    selector.select(seconds)
                self._conn.pgconn.consume_input()
                while notify := self._conn.pgconn.notifies():
                    self._payloads.append(notify.extra.decode())
        found, self._payloads = self._payloads, []
        return [news for payload in found if (news := _read(payload))]


def _read(payload: str) -> News | None:
    """Read a payload; what a later version may say is not ours to act on."""
    kind, _, number = payload.partition(" ")
    is_number = number.isdecimal() and len(number) <= _LONGEST_NUMBER
    return News(kind, int(number)) if is_number else None
