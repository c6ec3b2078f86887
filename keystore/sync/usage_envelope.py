"""What a usage file is made of: lines of JSON, packed, and signed with its replica's own key.

The file is a DSSE envelope (the signing envelope of in-toto and sigstore). Its payload is one zstd
frame of JSON Lines: a header that says whose rows these are and which number the file has, then a
row each. The enrolment of a key is an envelope, too, signed with the key that it enrols.

Whoever reads checks the signature first. Nothing is decompressed, and nothing inside is parsed,
that no enrolled key has signed; and then no more than :data:`MAX_LINES_BYTES` of it.
"""

import base64
import binascii
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from keystore import clock
from keystore.errors import DamagedUsageFileError, ForgedUsageFileError, LargeUsageFileError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

USAGE_TYPE = "application/vnd.keystore.usage.v1+zstd"
ENROLMENT_TYPE = "application/vnd.keystore.usage-key.v1+json"
MAX_LINES_BYTES = 32 << 20
MAX_FILE_BYTES = 48 << 20
"""Enough for that many bytes which cannot be packed, in Base64."""
MAX_ROWS = 10_000

_INT64 = Field(ge=-(2**63), lt=2**63)


def _time(text: str) -> str:
    if clock.utc_text(clock.seconds(text)) != text or text[0] not in "12":
        msg = "must be a time in the years 1000 to 2999"
        raise ValueError(msg)
    return text


def _without_nul(text: str) -> str:
    if "\0" in text:
        msg = "must not contain NUL"
        raise ValueError(msg)
    return text


_Uuid = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
_Positive = Annotated[int, Field(gt=0, lt=2**63)]


class _Signed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Header(_Signed):
    """The first line of a usage file: whose rows follow, and which file of that store this is."""

    store_id: _Uuid
    incarnation: _Uuid
    origin_id: _Uuid
    number: _Positive
    first_usage_id: _Positive
    last_usage_id: _Positive
    count: Annotated[int, Field(gt=0, le=MAX_ROWS)]

    @property
    def file_name(self) -> str:
        """The name that a file with this header has."""
        return file_name(self.store_id, self.incarnation, self.number)


class Row(_Signed):
    """A line of a usage file: a row of the replica's UsageLog."""

    usage_id: _Positive
    principal_type: Literal["api_key", "oauth_client", "session"]
    principal_id: Annotated[int, _INT64]
    account_id: Annotated[int, _INT64] | None
    amount: Annotated[int, Field(ge=0, lt=2**63)]
    request_id: Annotated[str, AfterValidator(_without_nul)] | None
    occurred_at: Annotated[str, AfterValidator(_time)]
    nonce: Annotated[int, _INT64]
    # left out where there is none, as in the files of earlier versions
    service_id: Annotated[int, _INT64] | None = None


class Enrolment(_Signed):
    """What a replica asks its origin for: to take what this key signs as usage of that store."""

    store_id: _Uuid
    origin_id: _Uuid
    public_key: str


_ROW = TypeAdapter(Row)
"""(Twice as fast as the model's own method.)"""


class _Signature(BaseModel):
    keyid: str
    sig: str


class _Envelope(BaseModel):
    # What else an envelope holds is nobody's business, as DSSE has it.
    model_config = ConfigDict(strict=True)

    payload: str
    payload_type: str = Field(alias="payloadType")
    signatures: Annotated[list[_Signature], Field(min_length=1, max_length=1)]


@dataclass(frozen=True, slots=True)
class Envelope:
    """A parsed envelope; nothing of it is to be trusted before :func:`verify`."""

    payload_type: str
    payload: bytes
    fingerprint: str
    signature: bytes


# -- keys --------------------------------------------------------------------------------------


def private_pem(key: Ed25519PrivateKey) -> bytes:
    """Write a private key as it is kept."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_private(data: bytes) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        ValueError: these bytes are none, or one of another kind.
    """
    try:
        key = load_pem_private_key(data, password=None)
    except (TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("not an Ed25519 key")  # noqa: TRY004 - what was read, not what was passed
    return key


def public_pem(key: Ed25519PublicKey) -> str:
    """Write a public key as it travels."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def load_public(text: str) -> Ed25519PublicKey:
    """Read a public key.

    Raises:
        DamagedUsageFileError: it is none, or one of another kind.
    """
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _damaged("the public key cannot be read") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _damaged("the public key is not an Ed25519 key")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return what a key is known by: ``openssl pkey -pubin -outform DER | sha256sum``."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


# -- envelopes ---------------------------------------------------------------------------------


def seal(key: Ed25519PrivateKey, payload_type: str, payload: bytes) -> bytes:
    """Sign a payload; the same payload and key give the same bytes."""
    signature = key.sign(_signed_bytes(payload_type, payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [
            {
                "keyid": fingerprint(key.public_key()),
                "sig": base64.b64encode(signature).decode(),
            }
        ],
    }
    return _json(envelope)


def parse(data: bytes, payload_type: str) -> Envelope:
    """Read an envelope, without trusting it.

    Raises:
        DamagedUsageFileError: it is none, or carries something else.
    """
    try:
        said = _Envelope.model_validate_json(data)
        payload = base64.b64decode(said.payload, validate=True)
        signature = base64.b64decode(said.signatures[0].sig, validate=True)
    except (ValidationError, binascii.Error, ValueError) as error:
        raise _damaged("cut short, altered, or not made by keystore") from error
    if said.payload_type != payload_type:
        raise _damaged("of another kind, or made by another version of keystore")
    return Envelope(payload_type, payload, said.signatures[0].keyid, signature)


def verify(envelope: Envelope, key: Ed25519PublicKey) -> None:
    """Check that a key has signed an envelope.

    Raises:
        ForgedUsageFileError: it has not.
    """
    try:
        key.verify(envelope.signature, _signed_bytes(envelope.payload_type, envelope.payload))
    except InvalidSignature as error:
        raise ForgedUsageFileError(
            "not signed by the key that it names.",
            hint="Nothing of it was taken; ask the replica's operator where it comes from.",
        ) from error


def _signed_bytes(payload_type: str, payload: bytes) -> bytes:
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


# -- what is inside ----------------------------------------------------------------------------


def file_name(store_id: str, incarnation: str, number: int) -> str:
    """Return the name of a store's file."""
    return f"{store_id}-{incarnation[:8]}-{number:06}.usage"


def line(row: Mapping[str, object]) -> bytes:
    """Write a line; of one row always the same."""
    return _json(row) + b"\n"


def pack(lines: bytes) -> bytes:
    """Compress the lines of a file."""
    return zstd.compress(lines)


def unpack(payload: bytes) -> bytes:
    """Decompress the lines of a file whose signature was checked, within bounds.

    Raises:
        LargeUsageFileError: there are more than :data:`MAX_LINES_BYTES`.
        DamagedUsageFileError: that is no zstd frame, or not one whole frame.
    """
    unpacker = zstd.ZstdDecompressor()
    lines, left = b"", payload
    try:
        while not unpacker.eof and len(lines) <= MAX_LINES_BYTES:
            found = unpacker.decompress(left, max_length=MAX_LINES_BYTES + 1 - len(lines))
            if not found and unpacker.needs_input:
                break
            lines, left = lines + found, b""
    except (zstd.ZstdError, EOFError) as error:
        raise _damaged("signed, but it cannot be unpacked") from error
    if len(lines) > MAX_LINES_BYTES:
        raise LargeUsageFileError(
            f"unpacked it has more than {MAX_LINES_BYTES >> 20} MiB.",
            hint="No replica writes such files: ask its operator, and revoke its key.",
        )
    if not unpacker.eof or unpacker.unused_data:
        raise _damaged("signed, but it is not one whole frame")
    return lines


def parse_lines(lines: bytes) -> tuple[Header, Sequence[Row]]:
    """Read what a replica has signed, and check that header and rows fit.

    Raises:
        DamagedUsageFileError: they do not.
    """
    first, *others = lines.removesuffix(b"\n").split(b"\n", MAX_ROWS + 1)
    try:
        header = Header.model_validate_json(first)
        rows = [_ROW.validate_json(text) for text in others]
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, wrong["loc"])) or "a line"
        raise _damaged(f"signed, but {where} cannot be right") from error
    ids = [row.usage_id for row in rows]
    if (
        len(ids) != header.count
        or (ids[0], ids[-1]) != (header.first_usage_id, header.last_usage_id)
        or any(after <= before for before, after in pairwise(ids))
    ):
        raise _damaged("signed, but its rows are not what its header says")
    return header, rows


def parse_enrolment(data: bytes) -> tuple[Enrolment, Ed25519PublicKey]:
    """Read an enrolment, and check that who made it has the private key.

    Raises:
        DamagedUsageFileError: it is none.
        ForgedUsageFileError: it was not signed with the key that it enrols.
    """
    envelope = parse(data, ENROLMENT_TYPE)
    try:
        said = Enrolment.model_validate_json(envelope.payload)
    except ValidationError as error:
        raise _damaged("not the enrolment of a key") from error
    key = load_public(said.public_key)
    verify(envelope, key)
    return said, key


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _damaged(what: str) -> DamagedUsageFileError:
    return DamagedUsageFileError(
        f"{what}.",
        hint="Have the replica write it again (`keystore usage export --again NUMBER`, or "
        "`keystore usage key`).",
    )
