"""Signs and publishes a TUF repository; the reading side is python-tuf's own client.

Order makes a publication atomic for readers: first the content-addressed files, then the metadata
that name them, version by version, and last ``timestamp.json``, the only file that is replaced. It
also keeps publishers apart: who finds another timestamp than the one it began with has lost.

Versions follow the clock, in milliseconds. So who lost the state of the repository, or finds it put
back to an older one, can publish what replicas accept: a higher version than any they have seen.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from keystore.errors import (
    AlreadyExistsError,
    FencedPublisherError,
    ForeignRootError,
    InvalidInputError,
    TargetNotReadyError,
    UntrustedRepositoryError,
)
from keystore.failpoint import reached
from keystore.sync import repository_keys, retention
from keystore.sync.repository_format import FIELD, Scope, Stamp, Terms, stamp_of, terms_of
from keystore.sync.retention import Swept
from keystore.sync.storage import Storage

ROOT_LIFETIME = timedelta(days=2 * 365)
"""`keystore repo renew` makes a new one; `keystore sync` warns long before."""
LIFETIME = timedelta(days=7)
"""Default: publish more often than this; past it, replicas refuse to pull, and live on grace."""
MAX_OFFLINE = timedelta(days=30)
"""Default: how long a replica goes on after that."""
LONGEST = timedelta(days=10 * 365)
"""Of both, so that no sum of them leaves the calendar."""
ROOT_WARNING = timedelta(days=60)

ONLINE_ROLES = (Targets.type, Snapshot.type, Timestamp.type)
_SLOW = 4
"""Targets and snapshot metadata live so many lifetimes, so that an idle publication is one file."""


@dataclass(slots=True)
class Published:
    """A repository's current signed state."""

    targets_version: int = 0
    snapshot_version: int = 0
    timestamp_version: int = 0
    tag: str | None = None
    stamp: Stamp | None = None
    timestamp_expires: datetime | None = None
    targets_expires: datetime | None = None
    targets: dict[str, TargetFile] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """The files that this state consists of, the timestamp and the roots apart."""
        metadata = {
            f"metadata/{self.targets_version}.targets.json",
            f"metadata/{self.snapshot_version}.snapshot.json",
        }
        if not self.targets_version:
            return set()
        return metadata | {file_name(target) for target in self.targets.values()}


def file_name(target: TargetFile) -> str:
    """Return under which name a target is stored."""
    return f"targets/{target.hashes['sha256']}.{target.path}"


def create(
    storage: Storage,
    keys: Path,
    *,
    root_key: Path | None = None,
    lifetime: timedelta = LIFETIME,
    max_offline: timedelta = MAX_OFFLINE,
    scope: Scope | None = None,
) -> Path:
    """Make an empty repository and its two private keys; return where the root file is.

    One that was interrupted is done again.

    Raises:
        AlreadyExistsError: there is a repository or something else, or a key.
        InvalidInputError: the keys cannot be written there; a time is out of range.
        UnsupportedTargetError: two publishers would overwrite each other there.
    """
    if not (timedelta(0) < lifetime <= LONGEST and timedelta(0) <= max_offline <= LONGEST):
        raise InvalidInputError(
            "the lifetime of a publication is above 0, the time offline is not below, and "
            f"neither is longer than {LONGEST.days} days.",
            hint="Choose other times (--expires, --max-offline).",
        )
    terms = Terms(
        repository_id=uuid.uuid4(),
        lifetime_seconds=int(lifetime.total_seconds()),
        max_offline_seconds=int(max_offline.total_seconds()),
        scope=scope,
    )
    root_key = root_key or repository_keys.root_key_path(keys)
    # First, because a bucket may say 403 of what is missing: then it has shown that we may read.
    storage.prepare()
    found = storage.read("metadata/1.root.json")
    begun = repository_keys.begun_root(keys)
    # What was interrupted after its last step but one only needs that one.
    if found is None or found[0] != begun or not _is_alike(terms_of(begun), terms):
        if found is not None:
            raise _taken(storage)
        # (a creation that was killed may have left a probe of the storage)
        if any(not name.startswith("metadata/probe-") for name in storage.names()):
            raise AlreadyExistsError(
                f"{storage.url} is not empty.",
                hint="Choose another place: what is no longer needed there is removed.",
            )
        _begin(storage, keys, root_key, terms)
    reached("create.root")
    return repository_keys.finish(keys, root_key)


def _begin(storage: Storage, keys: Path, root_key: Path, terms: Terms) -> None:
    online, signer = repository_keys.make_first(keys, root_key)
    root = Root(
        expires=expiry(ROOT_LIFETIME),
        consistent_snapshot=True,
        unrecognized_fields={FIELD: terms.model_dump(mode="json")},
    )
    root.add_key(signer.public_key, Root.type)
    for role in ONLINE_ROLES:
        root.add_key(online.public_key, role)
    metadata = Metadata(root)
    metadata.sign(signer)
    data = metadata.to_bytes()
    repository_keys.begin(keys, data)
    reached("create.keys")
    if not storage.create("metadata/1.root.json", data):
        raise _taken(storage)


def _is_alike(one: Terms, other: Terms) -> bool:
    return one == other.model_copy(update={"repository_id": one.repository_id})


def _taken(storage: Storage) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"{storage.url} is a repository already.", hint="Choose another place."
    )


class Repository:
    """Reads what is published, expired or not; ``first_root`` is the root file that is trusted.

    Raises:
        TargetNotReadyError: no repository here.
        UntrustedRepositoryError: see :func:`newest_root`.
    """

    def __init__(self, storage: Storage, first_root: bytes) -> None:
        self.storage = storage
        self.root = newest_root(storage, first_root)
        self.terms = Terms.model_validate(self.root.unrecognized_fields[FIELD])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What somebody should see to, before readers are stopped by it."""
        found = []
        left = self.root.expires - retention.now()
        if left <= ROOT_WARNING:
            when = f"expires in {left.days} days" if left > timedelta(0) else "has expired"
            found.append(f"its root file {when}; replicas stop then: run `keystore repo renew`")
        if len(self.root.roles[Targets.type].keyids) > 1:
            found.append("the old online key still counts: run `keystore repo renew`")
        return tuple(f"{self.storage.url}: {text} with the root key." for text in found)

    def read(self) -> Published:
        """Read what was published last, and check that it was signed with a key that counts."""
        found = self.storage.read("metadata/timestamp.json")
        if found is None:
            return Published()
        data, tag = found
        timestamp = self._verified(Timestamp, "timestamp.json", data)
        snapshot_version = timestamp.snapshot_meta.version
        snapshot = self._load(Snapshot, snapshot_version)
        targets = self._load(Targets, snapshot.meta["targets.json"].version)
        return Published(
            targets.version,
            snapshot_version,
            timestamp.version,
            tag,
            stamp_of(timestamp),
            timestamp.expires,
            targets.expires,
            targets.targets,
        )

    def _load(self, kind: type[Signed], version: int) -> Any:
        name = f"{version}.{kind.type}.json"
        found = self.storage.read(f"metadata/{name}")
        if found is None:
            raise _spoiled(self.storage, name, "is missing")
        signed = self._verified(kind, name, found[0])
        if signed.version != version:
            raise _spoiled(self.storage, name, f"is version {signed.version}")
        return signed

    def _verified(self, kind: type[Signed], name: str, data: bytes) -> Any:
        try:
            metadata = Metadata[Any].from_bytes(data)
            self.root.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
        except RepositoryError as error:
            raise _not_signed(self.storage, name) from error
        return metadata.signed


class Publisher(Repository):
    """Signs and writes new versions; the caller holds the storage's lock.

    Raises:
        TargetNotReadyError, UntrustedRepositoryError: as :class:`Repository`.
        InvalidInputError: the online key is missing, unreadable, or not this repository's.
    """

    def __init__(self, storage: Storage, keys: Path) -> None:
        super().__init__(storage, repository_keys.trusted_root(keys))
        self.signer = repository_keys.load(
            keys / repository_keys.ONLINE_KEY, self.root.roles[Targets.type].keyids
        )

    def is_sweep_due(self, last: Published) -> bool:
        """Whether the ``last`` publication was made in another hour than this."""
        lifetime = timedelta(seconds=self.terms.lifetime_seconds)
        return last.timestamp_expires is not None and retention.is_due(
            last.timestamp_expires - lifetime
        )

    def publish(
        self,
        last: Published,
        stamp: Stamp,
        targets: Mapping[str, TargetFile],
        files: Mapping[str, Path],
        *,
        sign_all: bool = False,
    ) -> None:
        """Make ``targets`` what the repository offers; ``files`` are the new ones among them.

        Raises:
            FencedPublisherError: somebody else has published since ``last`` was read.
        """
        for name, path in files.items():
            self.storage.put(file_name(targets[name]), path)
        reached("publish.files")
        lifetime = timedelta(seconds=self.terms.lifetime_seconds)
        fresh = Published(last.targets_version, last.snapshot_version, targets=dict(targets))
        if (
            sign_all
            or fresh.targets != last.targets
            or last.targets_expires is None
            or last.targets_expires < expiry(lifetime)
        ):
            expires = expiry(_SLOW * lifetime)
            fresh.targets_version = self._create(
                Targets(_after(last.targets_version), expires=expires, targets=fresh.targets)
            )
            meta = {"targets.json": MetaFile(fresh.targets_version)}
            fresh.snapshot_version = self._create(
                Snapshot(_after(last.snapshot_version), expires=expires, meta=meta)
            )
            reached("publish.metadata")
        timestamp = Timestamp(
            _after(last.timestamp_version),
            expires=expiry(lifetime),
            snapshot_meta=MetaFile(fresh.snapshot_version),
            unrecognized_fields={FIELD: stamp.model_dump(mode="json")},
        )
        data = self._signed(timestamp)
        if not self.storage.replace("metadata/timestamp.json", data, last.tag):
            raise FencedPublisherError(
                f"{self.storage.url}: somebody else published meanwhile.",
                hint="Nothing of this publication is visible. One process should publish a store: "
                "find the other, then run the same command again.",
            )
        reached("publish.timestamp")

    def sweep(self, last: Published) -> Swept:
        """Remove what the ``last`` publication does not name; see :mod:`.retention`."""
        return retention.sweep(self.storage, last.names)

    def sign_anew(self) -> None:
        """Publish what is there under new signatures, if anything is."""
        last = self.read()
        if last.stamp is not None:
            self.publish(last, last.stamp, last.targets, {}, sign_all=True)

    def _create(self, signed: Targets | Snapshot) -> int:
        """Write a new version; one that a killed publisher has left is skipped."""
        while not self.storage.create(
            f"metadata/{signed.version}.{signed.type}.json", self._signed(signed)
        ):
            signed.version += 1
        return signed.version

    def _signed(self, signed: Signed) -> bytes:
        metadata: Metadata[Any] = Metadata(signed)
        metadata.sign(self.signer)
        return metadata.to_bytes()


def identity(storage: Storage, first: bytes) -> str:
    """Return a repository's own UUID; ``first`` is the root file that is trusted.

    Raises:
        TargetNotReadyError: no repository here.
        ForeignRootError: another repository.
    """
    terms = terms_of(first)  # refuses what is none of ours
    version = Metadata[Root].from_bytes(first).signed.version
    found = storage.read(f"metadata/{version}.root.json")
    if found is None and not storage.has("metadata/1.root.json"):
        raise TargetNotReadyError(
            f"{storage.url} is not a keystore repository yet.",
            hint="Run `keystore repo create` with the same URL.",
        )
    if found is None or found[0] != first:
        raise ForeignRootError(
            f"{storage.url} is another repository than this root file is for.",
            hint="Check the URL; pass the keys or the root file of that one (--keys, --root).",
        )
    return str(terms.repository_id)


def newest_root(storage: Storage, first: bytes) -> Root:
    """Follow the chain of roots from the one that is trusted.

    Raises:
        TargetNotReadyError: no repository here.
        ForeignRootError: another repository.
        UntrustedRepositoryError: a link of the chain is not signed by the one before.
    """
    identity(storage, first)
    newest = Metadata[Root].from_bytes(first)
    while (found := storage.read(f"metadata/{newest.signed.version + 1}.root.json")) is not None:
        name = f"{newest.signed.version + 1}.root.json"
        try:
            following = Metadata[Root].from_bytes(found[0])
            newest.verify_delegate(Root.type, following)
            following.verify_delegate(Root.type, following)
        except (RepositoryError, ValueError) as error:
            raise _not_signed(storage, name) from error
        if following.signed.version != newest.signed.version + 1:
            raise _not_signed(storage, name)
        newest = following
    return newest.signed


def _not_signed(storage: Storage, name: str) -> UntrustedRepositoryError:
    return _spoiled(storage, name, "was not signed with this repository's key")


def _spoiled(storage: Storage, name: str, what: str) -> UntrustedRepositoryError:
    if name.endswith(".root.json"):
        cure = "remove that file, then sync again"
    else:
        cure = "remove metadata/timestamp.json, then sync again with --reconcile"
    return UntrustedRepositoryError(
        f"{storage.url}: metadata/{name} {what}.",
        hint=f"Nothing was published. Somebody else wrote there: find out who, {cure}.",
    )


def expiry(delta: timedelta) -> datetime:
    """Return the end of a time that begins now."""
    return retention.now().replace(microsecond=0) + delta


def _after(version: int) -> int:
    return max(version + 1, int(retention.now().timestamp() * 1000))
