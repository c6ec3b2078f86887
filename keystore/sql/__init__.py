"""SQL lives in ``.sql`` files; this module reads them.

A file of named statements looks like::

    -- name: plan_by_name
    SELECT ... WHERE name = :name;

and ``named("store")["plan_by_name"]`` returns the statement. Statements that serve every tracked
table carry ``{placeholders}`` that :func:`str.format` fills with names from :mod:`keystore.tables`,
never with values.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from sqlite3 import Cursor, complete_statement
from types import MappingProxyType
from typing import Any

_HERE = Path(__file__).parent
_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def read(name: str) -> str:
    """Return the text of ``name``.sql, from the package or, in a checkout, from its top level."""
    packaged = _HERE / f"{name}.sql"
    checkout = _HERE.parent.parent / f"{name}.sql"
    return (packaged if packaged.exists() else checkout).read_text(encoding="utf-8")


def statements(script: str) -> Iterator[str]:
    """Split a script into its statements, triggers whole.

    The drivers' own ``executescript`` commits what is open, so a script that is to run inside a
    transaction has to be run statement by statement.
    """
    text = ""
    for line in script.splitlines(keepends=True):
        text += line
        if complete_statement(text):
            yield text
            text = ""


@cache
def named(name: str) -> MappingProxyType[str, str]:
    """Return the named statements of ``name``.sql, without their final semicolons."""
    parts = _NAME.split(read(name))
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return MappingProxyType({key: text.strip().removesuffix(";") for key, text in pairs})


def dicts(cursor: Cursor) -> list[dict[str, Any]]:
    """Return all rows of a cursor, each by the names of its columns."""
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]
