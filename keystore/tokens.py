"""Tokens: the secret strings that clients send.

A token is ``<prefix><key UUID><secret><checksum>``, the last three in base62 of fixed width:

============  ======  ===========================================================
part          width   what
============  ======  ===========================================================
prefix        any     ``sk-miro-api-`` unless the store was made with another one
key UUID      22      the 128-bit external identity of the key, big-endian
secret        27      160 random bits
checksum      6       CRC-32 (zlib) of everything before it, ASCII
============  ======  ===========================================================

The checksum lets a validator refuse typing errors and random probes without a look at the
database, and gives secret scanners one regular expression, as GitHub's tokens do. It is no
protection against forgery: that is the secret, of which a store keeps only the SHA-256. A slow
password hash would add nothing here, because 160 random bits cannot be guessed offline.

A token of any other shape (imported from an older system) is found by its hash alone.

The secret of an OAuth client is ``<prefix>client-<secret><checksum>``, with a secret and a checksum
as above: shorter than a token, so never taken for one.
"""

import re
import secrets
from enum import Enum
from hashlib import sha256
from uuid import UUID
from zlib import crc32

DEFAULT_PREFIX = "sk-miro-api-"
SECRET_BITS = 160
MAX_TOKEN_LENGTH = 512
"""Longer strings are no token, and no store is asked for them."""

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_VALUE = {char: value for value, char in enumerate(_ALPHABET)}
_UUID_WIDTH = 22
_SECRET_WIDTH = 27
_CHECKSUM_WIDTH = 6
_BODY_WIDTH = _UUID_WIDTH + _SECRET_WIDTH
_PREFIX_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}[_.-]")


class Shape(Enum):
    """What a string looks like, before anything is looked up."""

    OURS = "ours"
    """Our prefix and width, and the checksum is right."""
    MISTYPED = "mistyped"
    """Our prefix and width, but the checksum is wrong: no store can know it."""
    OTHER = "other"
    """Any other shape: maybe an imported token; only its hash can tell."""


def encode62(number: int, width: int) -> str:
    """Write ``number`` in base62, padded with zeros to ``width`` characters."""
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    if number:
        msg = f"number needs more than {width} base62 digits"
        raise ValueError(msg)
    return "".join(reversed(digits))


def decode62(text: str) -> int:
    """Read a base62 number; raises ``KeyError`` on a character outside the alphabet."""
    number = 0
    for char in text:
        number = number * 62 + _VALUE[char]
    return number


def is_valid_prefix(prefix: str) -> bool:
    """Whether ``prefix`` can start tokens: 2 to 32 of ``A-Za-z0-9_.-``, ending in one of ``_.-``.

    The final punctuation keeps the prefix apart from the base62 that follows it.
    """
    return _PREFIX_PATTERN.fullmatch(prefix) is not None


def new_token(key: UUID, prefix: str = DEFAULT_PREFIX) -> str:
    """Make a fresh token for the key with external identity ``key``."""
    return build(key, secrets.randbits(SECRET_BITS), prefix)


def new_client_secret(prefix: str = DEFAULT_PREFIX) -> str:
    """Make a fresh secret for an OAuth client."""
    body = f"{prefix}client-{encode62(secrets.randbits(SECRET_BITS), _SECRET_WIDTH)}"
    return body + _checksum(body)


def build(key: UUID, secret: int, prefix: str = DEFAULT_PREFIX) -> str:
    """Assemble a token from its parts; ``secret`` is a number below 2**160."""
    body = prefix + encode62(key.int, _UUID_WIDTH) + encode62(secret, _SECRET_WIDTH)
    return body + _checksum(body)


def shape(token: str, prefix: str = DEFAULT_PREFIX) -> Shape:
    """Tell what ``token`` looks like to a store whose tokens start with ``prefix``."""
    if len(token) != len(prefix) + _BODY_WIDTH + _CHECKSUM_WIDTH or not token.startswith(prefix):
        return Shape.OTHER
    if not token.isascii() or not token.endswith(_checksum(token[:-_CHECKSUM_WIDTH])):
        return Shape.MISTYPED
    return Shape.OURS


def key_uuid(token: str, prefix: str = DEFAULT_PREFIX) -> UUID | None:
    """Return the key's UUID that a token of our shape carries, else ``None``."""
    if shape(token, prefix) is not Shape.OURS:
        return None
    start = len(prefix)
    try:
        return UUID(int=decode62(token[start : start + _UUID_WIDTH]))
    except (KeyError, ValueError):
        return None  # a right checksum over characters or a number that no UUID has


def key_names(key: str) -> dict[str, str | None]:
    """Return what finds the key that people name by its UUID or by its token.

    Both are asked for: tokens of other systems may read as UUIDs, 32 hex digits above all.
    """
    try:
        api_key: str | None = str(UUID(key))
    except ValueError:
        api_key = None
    return {"api_key": api_key, "api_key_hash": hash_token(key)}


def hash_token(token: str) -> str:
    """Return the SHA-256 of the token as 64 hex digits: all that a store keeps of it."""
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _checksum(body: str) -> str:
    # (encode62, two digits at a time: every token that an edge does not know yet comes by here)
    high, low = divmod(crc32(body.encode("ascii")), 62 * 62)
    high, middle = divmod(high, 62 * 62)
    return _PAIRS[high] + _PAIRS[middle] + _PAIRS[low]
