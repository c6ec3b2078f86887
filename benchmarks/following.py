"""The least that follows a hub: what the benchmark needs until `sync --follow` is here."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from keystore import db
from keystore.sync import exchange
from keystore.sync.engine import Report
from keystore.sync.hub_push import channel_of
from keystore.sync.postgres import PostgresHub


@contextmanager
def following(url: str, replica: Path) -> Iterator[None]:
    """Take over a replica's revocations as the hub tells of them, in a thread, during the block."""
    ready, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=_follow, args=(url, replica, ready, over), daemon=True)
    thread.start()
    if not ready.wait(30):
        msg = "the follower did not start"
        raise RuntimeError(msg)
    try:
        yield
    finally:
        over.set()
        thread.join()


def _follow(url: str, replica: Path, ready: threading.Event, over: threading.Event) -> None:
    hub = PostgresHub(url)
    try:
        with (
            psycopg.connect(url, autocommit=True) as listener,
            db.open_store(replica) as file,
        ):
            listener.execute(f'LISTEN "{channel_of(file.info().origin_id)}"')
            ready.set()
            while not over.is_set():
                for _ in listener.notifies(timeout=0.2, stop_after=1):
                    exchange.receive_revocations(file, hub, "hub:", Report("hub:"))
    finally:
        hub.close()
