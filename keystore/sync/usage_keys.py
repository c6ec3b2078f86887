"""The keys of usage files: made at a replica, enrolled and revoked at its origin.

A private key is a file beside the replica's store and never inside it: a backup of the store, or a
copy that somebody takes of it, signs nothing.
"""

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keystore import sql
from keystore.db import StoreFile
from keystore.errors import (
    AlreadyExistsError,
    ForeignUsageFileError,
    InvalidInputError,
    NotFoundError,
    RevokedUsageKeyError,
    WrongRoleError,
)
from keystore.models import UsageKeyInput, validated
from keystore.sync import usage_envelope as envelope
from keystore.sync.usage_place import place

_Q = sql.named("usage_files")


@dataclass(frozen=True, slots=True)
class UsageKey:
    """A key that an origin knows; times are UTC text."""

    fingerprint: str
    store_id: str
    label: str | None
    enrolled_at: str
    revoked_at: str | None
    public_key: str = field(repr=False)


def only_replica(file: StoreFile) -> None:
    """Refuse an origin.

    Raises:
        WrongRoleError: the store is one.
    """
    if file.info().is_origin:
        raise WrongRoleError(
            f"{file.path} is an origin; only a replica writes usage files.",
            hint="What an origin recorded itself is here already.",
        )


def only_origin(file: StoreFile) -> None:
    """Refuse a replica.

    Raises:
        WrongRoleError: the store is one.
    """
    if not file.info().is_origin:
        raise WrongRoleError(
            f"{file.path} is a replica; usage files are taken at its origin.",
            hint="Run it at the origin.",
        )


def make_key(file: StoreFile, path: Path) -> tuple[bytes, str, bool]:
    """Return the enrolment of a replica's key, its fingerprint, and whether it was made now.

    Raises:
        WrongRoleError: the store is an origin.
        InvalidInputError: what is at ``path`` is no such key.
    """
    only_replica(file)
    is_new = not path.exists()
    if is_new:
        place(path, envelope.private_pem(Ed25519PrivateKey.generate()))
    key, info = load_key(path), file.info()
    said = envelope.Enrolment(
        store_id=info.store_id,
        origin_id=info.origin_id,
        public_key=envelope.public_pem(key.public_key()),
    )
    data = envelope.seal(key, envelope.ENROLMENT_TYPE, said.model_dump_json().encode())
    return data + b"\n", envelope.fingerprint(key.public_key()), is_new


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read a replica's private key.

    Raises:
        InvalidInputError: there is none at ``path``.
    """
    hint = "`keystore usage key` makes one; --key names another file."
    try:
        return envelope.load_private(path.read_bytes())
    except OSError as error:
        raise InvalidInputError(f"{path}: {error.strerror}.", hint=hint) from error
    except ValueError as error:
        raise InvalidInputError(f"{path}: not a key for usage files.", hint=hint) from error


def enroll(file: StoreFile, data: bytes, label: str | None = None) -> tuple[UsageKey, bool]:
    """Take a replica's key at its origin; return it, and whether it is new here.

    Raises:
        WrongRoleError: the store is a replica.
        UsageFileError: the enrolment is damaged, forged, of a replica of another origin, or of a
            key that was revoked here.
        AlreadyExistsError: the key is another replica's.
        InvalidInputError: the label has control characters, or is too long.
    """
    only_origin(file)
    wanted = validated(UsageKeyInput, "key", label=label)
    said, public = envelope.parse_enrolment(data)
    info = file.info()
    if said.origin_id != info.store_id or said.store_id == info.store_id:
        raise ForeignUsageFileError(
            f"this is the key of a replica of {said.origin_id}, not of {info.store_id}.",
            hint="Enroll it at that origin.",
        )
    fingerprint = envelope.fingerprint(public)
    with file.write() as conn:
        known = conn.execute(_Q["key"], (fingerprint,)).fetchone()
        if known is None:
            conn.execute(
                _Q["add_key"],
                {
                    "store_id": said.store_id,
                    "fingerprint": fingerprint,
                    "public_key": envelope.public_pem(public),
                    "label": wanted.label,
                },
            )
        key = UsageKey(*(known or conn.execute(_Q["key"], (fingerprint,)).fetchone()))
    if key.store_id != said.store_id:
        raise AlreadyExistsError(
            f"this key is enrolled for replica {key.store_id}.",
            hint=f"Move the key file of {said.store_id} away and make a key of its own.",
        )
    if key.revoked_at is not None:
        raise RevokedUsageKeyError(
            f"this key was revoked at {key.revoked_at}.",
            hint="Move the replica's key file away, then `keystore usage key` makes a new one.",
        )
    return key, known is None


def keys(file: StoreFile) -> list[UsageKey]:
    """Return the keys that an origin knows, in the order in which they were enrolled.

    Raises:
        WrongRoleError: the store is a replica.
    """
    only_origin(file)
    with file.read() as conn:
        return [UsageKey(*row) for row in conn.execute(_Q["keys"])]


def revoke_key(file: StoreFile, fingerprint: str) -> UsageKey:
    """Take nothing more that a key has signed; what was taken stays.

    Raises:
        WrongRoleError: the store is a replica.
        NotFoundError: no such key is enrolled.
    """
    only_origin(file)
    with file.write() as conn:
        conn.execute(_Q["revoke_usage_key"], (fingerprint,))
        found = conn.execute(_Q["key"], (fingerprint,)).fetchone()
    if found is None:
        raise NotFoundError(
            f"no usage key {fingerprint!r} is enrolled.", hint="`keystore usage keys` lists them."
        )
    return UsageKey(*found)
