"""Many keys at once: issued from a list of accounts, or imported from an older system.

All rows are one transaction; a bad one is named and nothing is written. Memory stays bounded: rows
are read, checked and inserted a chunk at a time. No message repeats what a row holds, because in a
file with its columns mixed up a token may stand anywhere.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_network
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar
from uuid import UUID

import uuid_utils.compat
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from keystore import clock, db, models, sql, tokens
from keystore.admin.base import Admin
from keystore.admin.plan_quotas import give_plan_quotas
from keystore.errors import AlreadyExistsError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    import sqlite3

CHUNK = 5_000
"""Rows that are held in memory at a time."""

_MAX_ACCOUNTS = 100_000  # remembered ids, about 20 MB
_HINT = "Nothing was written; correct the line and try again."
_Q = sql.named("bulk")
_T = TypeVar("_T")


def strict_json(text: str) -> Any:
    """Read JSON as the standard has it: no NaN, and no name twice in an object.

    Raises:
        ValueError: says what is wrong, without repeating the text.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else _UNUSUAL_JSON
        raise ValueError(f"must be JSON: {why}") from None


_UNUSUAL_JSON = "a name stands twice in an object, or a value is too large, too deep or no number"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(_UNUSUAL_JSON)
    return found


def _refuse_constant(_: str) -> None:
    raise ValueError(_UNUSUAL_JSON)


def _a_time(value: object) -> object:
    # pydantic would take a number for Unix seconds, and a year for a number
    if value is None or isinstance(value, datetime):
        return value
    try:
        return datetime.fromisoformat(value.strip() if isinstance(value, str) else "")
    except ValueError:
        raise ValueError("must be an ISO 8601 time") from None


def _a_uuid(value: object) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value.strip() if isinstance(value, str) else "")
    except ValueError:
        raise ValueError("must be a UUID") from None


def _a_hash(text: str) -> str:
    if re.fullmatch(r"[0-9a-fA-F]{64}", text) is None:
        raise ValueError("must be 64 hexadecimal digits, the SHA-256 of a token")
    return text.lower()


def _a_token(text: str) -> str:
    # a blank that came with the column would make a key that nobody can use
    if text != text.strip() or not text.isprintable():
        raise ValueError("must not have blanks around it or control characters in it")
    return text


def _is_plain(part: object) -> bool:
    return isinstance(part, str) and "%" not in part  # a scope after it could be any text


def _networks(value: object) -> str:
    parts = value.split() if isinstance(value, str) else value
    with suppress(ValueError):
        if isinstance(parts, list) and parts and all(map(_is_plain, parts)):
            return " ".join(str(ip_network(part)) for part in parts)
    raise ValueError("must be networks in CIDR notation, like 192.0.2.0/24, and blanks between")


def _metadata(value: object) -> str | None:
    found = strict_json(value) if isinstance(value, str) else value
    if found is None or found == {}:
        return None
    with suppress(TypeError, ValueError, RecursionError):
        if isinstance(found, dict):
            return json.dumps(found, allow_nan=False)
    raise ValueError("must be a JSON object, and its numbers finite")


class _Row(BaseModel):
    """A line of a file; ``read`` makes one that knows which."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    account: models.Email
    label: models.Text | None = None
    expires_at: Annotated[models.Moment | None, BeforeValidator(_a_time)] = None
    _line: int = PrivateAttr(default=0)

    @classmethod
    def read(cls, line: int, values: Mapping[str, object]) -> Self:
        """Check one line's values.

        Raises:
            InvalidInputError: names the line and the field, never the value.
        """
        try:
            row = cls.model_validate(values)
        except ValidationError as error:
            raise InvalidInputError(f"line {line}: {cls._why(error)}.", hint=_HINT) from None
        row._line = line  # noqa: SLF001 - private to keep a field of this name out of the files
        return row

    @classmethod
    def _why(cls, error: ValidationError) -> str:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            return f"a field is not known; there are {', '.join(cls.model_fields)}"
        why = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        return f"{name}: {why}" if name else why

    def where(self, number: int) -> str:
        """Name this row, which is the ``number``-th, in a message."""
        return f"line {self._line}" if self._line else f"row {number}"

    @property
    def line(self) -> int:
        """The line of the file that it was read from, or 0."""
        return self._line


class BulkIssue(_Row):
    """A key to issue; ``expires_at`` without a zone is UTC."""


class BulkImport(_Row):
    """A key of another system, named by its token or by the token's SHA-256."""

    token: (
        Annotated[
            str,
            StringConstraints(min_length=1, max_length=tokens.MAX_TOKEN_LENGTH),
            AfterValidator(_a_token),
        ]
        | None
    ) = Field(default=None, repr=False)
    api_key_hash: Annotated[str, AfterValidator(_a_hash)] | None = None
    api_key: Annotated[UUID, BeforeValidator(_a_uuid)] | None = None
    status: models.Text | None = None
    allowed_networks: Annotated[str, BeforeValidator(_networks)] | None = None
    metadata: Annotated[str | None, BeforeValidator(_metadata)] = None

    @model_validator(mode="after")
    def _has_one_secret(self) -> Self:
        if (self.token is None) is (self.api_key_hash is None):
            raise ValueError("exactly one of token and api_key_hash must be given")
        return self


@dataclass(frozen=True, slots=True)
class IssuedRow:
    """A fresh key and its token, which exists here and nowhere else."""

    account: str
    label: str | None
    api_key: str
    token: str = field(repr=False)


class BulkAdmin(Admin):
    """Issues and imports many keys in one transaction.

    The store's write lock is held from the first chunk to the last: checks go on, other writers
    wait. Hand over rows that are at hand, not those of a slow connection.
    """

    def issue_keys(
        self,
        rows: Iterable[BulkIssue],
        *,
        write_token: Callable[[IssuedRow], None],
        before_commit: Callable[[], None] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> int:
        """Issue a key per row and return how many.

        ``write_token`` gets each key with its token; what it was told means nothing until this
        method returns. ``before_commit`` is called once, when it has got them all: the time to
        bring them to disk. ``on_progress`` is told after each chunk how many rows are done. What
        any of them raises undoes everything.

        Raises:
            InvalidInputError: a row's key would have expired already.
            NotFoundError (a row's account), WrongRoleError
        """
        writing, chunks = self._write(), _chunks_with_first(rows)
        accounts: dict[str, int] = {}
        done = 0
        with writing as conn:
            now, newest = clock.utc_text(), int(db.scalar(conn, _Q["newest_key_id"]))
            for chunk in chunks:
                records = []
                for number, row in enumerate(chunk, done + 1):
                    expiry = _expiry(row)
                    if expiry and expiry <= now:
                        raise InvalidInputError(
                            f"{row.where(number)}: the key would have expired already.",
                            hint="Nothing was written; name a time to come.",
                        )
                    account_id = self._account_of(row, number, accounts)
                    # Version 7: in the order of time, so that the UNIQUE index grows at its end.
                    api_key = uuid_utils.compat.uuid7()
                    token = tokens.new_token(api_key, self.info.token_prefix)
                    identity = (str(api_key), account_id, tokens.hash_token(token))
                    records.append((*identity, True, "assigned", row.label, expiry, None, None))
                    write_token(IssuedRow(row.account, row.label, str(api_key), token))
                conn.executemany(_Q["insert_key"], records)
                done += len(records)
                if on_progress:
                    on_progress(done)
            give_plan_quotas(conn, newest + 1)
            if before_commit:
                before_commit()
        return done

    def import_keys(
        self, rows: Iterable[BulkImport], on_progress: Callable[[int], None] | None = None
    ) -> int:
        """Import a key per row and return how many.

        Without an ``api_key`` of its own a key gets the one that its token carries, or a new one.
        A time in the past is taken as it is: the key has expired.

        Raises:
            InvalidInputError: a token has this store's form and a wrong checksum, so that no
                validator would look it up.
            AlreadyExistsError: a token or UUID is in the store, or twice among the rows.
            NotFoundError (a row's account or status), WrongRoleError
        """
        writing, chunks = self._write(), _chunks_with_first(rows)
        accounts: dict[str, int] = {}
        lines = array("Q")  # of all rows: 8 MB for a million
        done = 0
        with writing as conn:
            statuses = {name: bool(passes) for name, passes in conn.execute(_Q["statuses"])}
            newest = int(db.scalar(conn, _Q["newest_key_id"]))
            for chunk in chunks:
                records = []
                for number, row in enumerate(chunk, done + 1):
                    status = row.status or "assigned"
                    if status not in statuses:
                        raise NotFoundError(
                            f"{row.where(number)}: there is no such status.",
                            hint="Nothing was written; `keystore key statuses` shows them.",
                        )
                    api_key, token_hash = self._identity(row, number)
                    records.append(
                        (
                            str(api_key),
                            self._account_of(row, number, accounts),
                            token_hash,
                            statuses[status],
                            status,
                            row.label,
                            _expiry(row),
                            row.allowed_networks,
                            row.metadata,
                        )
                    )
                    lines.append(row.line or number)
                try:
                    conn.executemany(_Q["insert_key"], records)
                except conn.IntegrityError:
                    _refuse_taken(conn, records, newest, done, lines)
                    raise
                done += len(records)
                if on_progress:
                    on_progress(done)
            give_plan_quotas(conn, newest + 1)
        return done

    def _account_of(self, row: _Row, number: int, known: dict[str, int]) -> int:
        account_id = known.get(row.account)
        if account_id is None:
            try:
                account_id = self._find("account", row.account)
            except NotFoundError as error:
                raise NotFoundError(
                    f"{row.where(number)}: there is no such account.",
                    hint=f"Nothing was written; {error.hint}",
                ) from None
            if len(known) >= _MAX_ACCOUNTS:
                known.clear()
            known[row.account] = account_id
        return account_id

    def _identity(self, row: BulkImport, number: int) -> tuple[UUID, str]:
        if row.token is None:
            return row.api_key or uuid_utils.compat.uuid7(), row.api_key_hash or ""
        prefix = self.info.token_prefix
        if tokens.shape(row.token, prefix) is tokens.Shape.MISTYPED:
            raise InvalidInputError(
                f"{row.where(number)}: the token starts as this store's do, but its checksum is"
                " wrong.",
                hint="Nothing was written; no check would ever look it up: is it complete?",
            )
        api_key = row.api_key or tokens.key_uuid(row.token, prefix) or uuid_utils.compat.uuid7()
        return api_key, tokens.hash_token(row.token)


def _chunks_with_first(rows: Iterable[_T]) -> Iterator[list[_T]]:
    """Cut rows into chunks. The first is read at once: before the lock is taken."""
    iterator = iter(rows)
    first = list(islice(iterator, CHUNK))

    def rest() -> Iterator[list[_T]]:
        while chunk := list(islice(iterator, CHUNK)):
            yield chunk

    return chain([first], rest())


def _expiry(row: _Row) -> str | None:
    return clock.utc_text(row.expires_at.timestamp()) if row.expires_at else None


def _refuse_taken(
    conn: "sqlite3.Connection",
    records: list[tuple[Any, ...]],
    newest: int,
    done: int,
    lines: "array[int]",
) -> None:
    """Say which row of a failed chunk has a UUID or hash that is taken, and by whom.

    What came before it is in, in order, with ids above ``newest``: counting them gives its place,
    and the place of the row that it repeats.
    """
    place = int(db.scalar(conn, _Q["keys_between"], newest, 2**63 - 1))
    record = records[place - done]
    wanted = {"api_key": record[0], "api_key_hash": record[2]}
    found = conn.execute(_Q["taken_by"], wanted).fetchone()
    if found is None:
        return
    api_key_id, is_hash = found
    what = "token" if is_hash else "api_key"
    where = f"line {lines[place]}"
    if api_key_id <= newest:
        raise AlreadyExistsError(
            f"{where}: the store has a key with this {what} already.",
            hint="Nothing was written; take the line out.",
        ) from None
    first = lines[int(db.scalar(conn, _Q["keys_between"], newest, api_key_id)) - 1]
    raise AlreadyExistsError(
        f"{where}: line {first} has the same {what}.",
        hint="Nothing was written; take one of the two out.",
    ) from None
