"""Signs and publishes a TUF repository; the reading side is python-tuf's own client.

Two keys: the *root* key says which keys count and is needed again only to change them, so it
belongs offline; the *online* key signs targets, snapshot and timestamp at every publish.

Order makes a publish atomic for readers: first the content-addressed object, then the metadata
that names it, version by version, and last ``timestamp.json``, the only file that is replaced.
"""

import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from keystore.errors import (
    AlreadyExistsError,
    InvalidInputError,
    TargetNotReadyError,
    UntrustedRepositoryError,
)
from keystore.sync.folder import Folder

ROOT_EXPIRY = timedelta(days=5 * 365)
"""Long, as long as there is no command that renews a root file."""
METADATA_EXPIRY = timedelta(days=7)
"""Publish more often than this: past it, replicas refuse to pull and say why."""

_IDENTITY_FIELD = "x-keystore-repository-id"


@dataclass(slots=True)
class Published:
    """The repository's current signed state, ``target`` being what it offers."""

    targets: int = 0
    snapshot: int = 0
    timestamp: int = 0
    target: TargetFile | None = None


def create(folder: Folder, keys: Path) -> Path:
    """Make an empty repository and its two private keys (mode 0600); return the root file.

    Raises:
        AlreadyExistsError: there is a repository, or a key.
    """
    if folder.read("metadata/1.root.json") is not None:
        raise AlreadyExistsError(
            f"{folder.path} is a repository already.", hint="Choose an empty folder."
        )
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    signers = {name: CryptoSigner.generate_ed25519() for name in ("root", "online")}
    for name, signer in signers.items():
        _write_key(keys / f"{name}.pem", signer.private_bytes)
    root = Root(
        expires=_in(ROOT_EXPIRY),
        consistent_snapshot=True,
        unrecognized_fields={_IDENTITY_FIELD: str(uuid.uuid4())},
    )
    root.add_key(signers["root"].public_key, Root.type)
    for role in (Targets.type, Snapshot.type, Timestamp.type):
        root.add_key(signers["online"].public_key, role)
    metadata = Metadata(root)
    metadata.sign(signers["root"])
    folder.write("metadata/1.root.json", metadata.to_bytes())
    return folder.path / "metadata" / "1.root.json"


def identity(root: bytes) -> str:
    """Return the repository's own UUID from a root file.

    Raises:
        InvalidInputError: these bytes are no root file of a keystore repository.
    """
    try:
        signed = Metadata[Root].from_bytes(root).signed
        return str(uuid.UUID(signed.unrecognized_fields[_IDENTITY_FIELD]))
    except (RepositoryError, AttributeError, KeyError, ValueError) as error:
        raise InvalidInputError(
            "that is not the root file of a keystore repository.",
            hint="Pass the 1.root.json that `keystore repo create` named (--root).",
        ) from error


class Publisher:
    """Signs and writes new versions; the caller holds the folder's lock.

    Raises:
        TargetNotReadyError: no repository here.
        InvalidInputError: the online key is missing, unreadable, or not this repository's.
    """

    def __init__(self, folder: Folder, keys: Path) -> None:
        self._folder = folder
        self._root, self.root_bytes = self._newest_root()
        self._signer = _load_key(keys / "online.pem")
        if self._signer.public_key.keyid not in self._root.roles[Targets.type].keyids:
            raise InvalidInputError(
                f"{keys / 'online.pem'} is not the key of this repository.",
                hint="Pass the folder that `keystore repo create` wrote (--keys).",
            )

    def read(self) -> Published:
        """Read what was published last, and check that it was signed with our key."""
        timestamp = self._load(Timestamp, "timestamp.json")
        if timestamp is None:
            return Published()
        snapshot_version = timestamp.snapshot_meta.version
        snapshot = self._load(Snapshot, f"{snapshot_version}.snapshot.json")
        targets_version = snapshot.meta["targets.json"].version if snapshot else 0
        targets = self._load(Targets, f"{targets_version}.targets.json")
        if snapshot is None or targets is None:
            raise UntrustedRepositoryError(
                f"{self._folder.path}: files of version {snapshot_version} are missing.",
                hint="Restore the folder, or make a new repository.",
            )
        target = next(iter(targets.targets.values()), None)
        return Published(targets.version, snapshot.version, timestamp.version, target)

    def publish(self, last: Published, target: TargetFile, data: bytes | None) -> None:
        """Make ``target`` what the repository offers; ``data`` unless it is there already."""
        if data is not None:
            digest = target.hashes["sha256"]
            self._folder.write(f"targets/{digest}.{target.path}", data)
        expires = _in(METADATA_EXPIRY)
        targets = Targets(last.targets + 1, expires=expires, targets={target.path: target})
        snapshot = Snapshot(
            last.snapshot + 1,
            expires=expires,
            meta={"targets.json": MetaFile(targets.version)},
        )
        timestamp = Timestamp(
            last.timestamp + 1, expires=expires, snapshot_meta=MetaFile(snapshot.version)
        )
        self._write(f"{targets.version}.targets.json", targets)
        self._write(f"{snapshot.version}.snapshot.json", snapshot)
        self._write("timestamp.json", timestamp)

    def _newest_root(self) -> tuple[Root, bytes]:
        first = self._folder.read("metadata/1.root.json")
        if first is None:
            raise TargetNotReadyError(
                f"{self._folder.path} is not a keystore repository yet.",
                hint="Run `keystore repo create` with the same URL.",
            )
        newest, version = first, 1
        while (following := self._folder.read(f"metadata/{version + 1}.root.json")) is not None:
            newest, version = following, version + 1
        return Metadata[Root].from_bytes(newest).signed, first

    def _load(self, kind: type[Any], name: str) -> Any:
        data = self._folder.read(f"metadata/{name}")
        if data is None:
            return None
        try:
            metadata = Metadata[Any].from_bytes(data)
            self._root.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
        except RepositoryError as error:
            raise UntrustedRepositoryError(
                f"{self._folder.path}: metadata/{name} was not signed with this repository's key.",
                hint="Somebody else wrote here: restore the folder, or make a new repository.",
            ) from error
        return metadata.signed

    def _write(self, name: str, signed: Targets | Snapshot | Timestamp) -> None:
        metadata: Metadata[Any] = Metadata(signed)
        metadata.sign(self._signer)
        self._folder.write(f"metadata/{name}", metadata.to_bytes())


def _in(delta: timedelta) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + delta


def _write_key(path: Path, data: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise AlreadyExistsError(
            f"{path}: a key is there already.", hint="Choose another folder with --keys."
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _load_key(path: Path) -> CryptoSigner:
    try:
        private_key: Any = load_pem_private_key(path.read_bytes(), password=None)
        return CryptoSigner(private_key)
    except OSError as error:
        raise InvalidInputError(
            f"{path}: {error.strerror}.",
            hint="Pass the folder that `keystore repo create` wrote (--keys).",
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInputError(
            f"{path}: not an unencrypted private key in PEM form.",
            hint="Pass the folder that `keystore repo create` wrote (--keys).",
        ) from error
