"""Signs and publishes a TUF repository; the reading side is python-tuf's own client.

Order makes a publication atomic for readers: first the content-addressed files, then the metadata
that name them, version by version, and last ``timestamp.json``, the only file that is replaced. It
also keeps publishers apart: who finds another timestamp than the one it began with has lost.

What a publication no longer names stays for a day (:data:`RETENTION`), for readers that have begun.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
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
    TargetNotReadyError,
    UntrustedRepositoryError,
)
from keystore.failpoint import reached
from keystore.sync import repository_keys
from keystore.sync.repository_format import FIELD, Scope, Stamp, Terms, stamp_of, terms_of
from keystore.sync.storage import Storage

ROOT_LIFETIME = timedelta(days=2 * 365)
"""`keystore repo renew` makes a new one; `keystore sync` warns long before."""
LIFETIME = timedelta(days=7)
"""Default: publish more often than this; past it, replicas refuse to pull, and live on grace."""
MAX_OFFLINE = timedelta(days=30)
"""Default: how long a replica goes on after that."""
ROOT_WARNING = timedelta(days=60)
RETENTION = timedelta(days=1)

ONLINE_ROLES = (Targets.type, Snapshot.type, Timestamp.type)
_SLOW = 4
"""Targets and snapshot metadata live so many lifetimes, so that an idle publication is one file."""
_RETIRED = "retired.json"


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

    Raises:
        AlreadyExistsError: there is a repository, or a key.
        UnsupportedTargetError: two publishers would overwrite each other there.
    """
    taken = AlreadyExistsError(
        f"{storage.url} is a repository already.", hint="Choose another place."
    )
    # First, because a bucket may say 403 of what is missing: then it has shown that we may read.
    storage.prepare()
    if storage.has("metadata/1.root.json"):
        raise taken
    online = repository_keys.make(keys / repository_keys.ONLINE_KEY)
    signer = repository_keys.make(root_key or repository_keys.root_key_path(keys))
    terms = Terms(
        repository_id=uuid.uuid4(),
        lifetime_seconds=int(lifetime.total_seconds()),
        max_offline_seconds=int(max_offline.total_seconds()),
        scope=scope,
    )
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
    if not storage.create("metadata/1.root.json", data):
        raise taken
    place = keys / repository_keys.ROOT_FILE
    place.write_bytes(data)
    return place


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

    def read(self) -> Published:
        """Read what was published last, and check that it was signed with a key that counts."""
        found = self.storage.read("metadata/timestamp.json")
        if found is None:
            return Published()
        data, tag = found
        timestamp = self._verified(Timestamp, "timestamp.json", data)
        snapshot_version = timestamp.snapshot_meta.version
        snapshot = self._load(Snapshot, f"{snapshot_version}.snapshot.json")
        targets = self._load(Targets, f"{snapshot.meta['targets.json'].version}.targets.json")
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

    def _load(self, kind: type[Signed], name: str) -> Any:
        found = self.storage.read(f"metadata/{name}")
        if found is None:
            raise UntrustedRepositoryError(
                f"{self.storage.url}: metadata/{name} is missing.",
                hint="Restore the repository, or make a new one.",
            )
        return self._verified(kind, name, found[0])

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
        self._signer = repository_keys.load(
            keys / repository_keys.ONLINE_KEY, self.root.roles[Targets.type].keyids
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What somebody should see to, before readers are stopped by it."""
        left = self.root.expires - datetime.now(UTC)
        if left > ROOT_WARNING:
            return ()
        text = f"{self.storage.url}: its root file expires in {left.days} days, and replicas stop "
        return (text + "then: run `keystore repo renew` with the root key.",)

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
        now = Published(last.targets_version, last.snapshot_version, targets=dict(targets))
        if (
            sign_all
            or now.targets != last.targets
            or last.targets_expires is None
            or last.targets_expires < expiry(lifetime)
        ):
            expires = expiry(_SLOW * lifetime)
            now.targets_version = self._create(
                Targets(last.targets_version + 1, expires=expires, targets=now.targets)
            )
            meta = {"targets.json": MetaFile(now.targets_version)}
            now.snapshot_version = self._create(
                Snapshot(last.snapshot_version + 1, expires=expires, meta=meta)
            )
            reached("publish.metadata")
        timestamp = Timestamp(
            last.timestamp_version + 1,
            expires=expiry(lifetime),
            snapshot_meta=MetaFile(now.snapshot_version),
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
        if last.names - now.names:
            self.retire(last.names - now.names, now.names)

    def retire(self, names: set[str], in_use: set[str]) -> list[str]:
        """Note files that nobody needs any more, and remove those that were noted long enough ago.

        Returns the names of those that were removed.
        """
        found = self.storage.read(_RETIRED)
        noted: dict[str, str] = json.loads(found[0]) if found else {}
        now = datetime.now(UTC)
        for name in names:
            noted.setdefault(name, now.isoformat(timespec="seconds"))
        kept, removed = {}, []
        for name, since in noted.items():
            if name in in_use:
                continue
            if datetime.fromisoformat(since) <= now - RETENTION:
                self.storage.delete(name)
                removed.append(name)
            else:
                kept[name] = since
        data = json.dumps(kept, indent=1).encode()
        self.storage.replace(_RETIRED, data, found[1] if found else None)
        return removed

    def collect(self) -> tuple[list[str], list[str]]:
        """Note files that no state names, as a killed publisher leaves them, and remove old ones.

        Returns the names that were removed, and those that will be.
        """
        in_use = self.read().names
        kept = {"metadata/timestamp.json"} | in_use
        found = {
            name
            for name in self.storage.names()
            if name.startswith(("metadata/", "targets/"))
            and name not in kept
            and not name.endswith(".root.json")
        }
        removed = self.retire(found, in_use)
        return removed, sorted(found - set(removed))

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
        metadata.sign(self._signer)
        return metadata.to_bytes()


def identity(storage: Storage, first: bytes) -> str:
    """Return a repository's own UUID; ``first`` is the root file that is trusted.

    Raises:
        TargetNotReadyError: no repository here.
        ForeignRootError: another repository.
    """
    found = storage.read("metadata/1.root.json")
    if found is None:
        raise TargetNotReadyError(
            f"{storage.url} is not a keystore repository yet.",
            hint="Run `keystore repo create` with the same URL.",
        )
    terms = terms_of(first)  # refuses what is none of ours
    if found[0] != first:
        raise ForeignRootError(
            f"{storage.url} is another repository than this root file is for.",
            hint="Check the URL and what `keystore repo create` wrote (--keys, --root).",
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
        try:
            following = Metadata[Root].from_bytes(found[0])
            newest.verify_delegate(Root.type, following)
            following.verify_delegate(Root.type, following)
        except (RepositoryError, ValueError) as error:
            raise _not_signed(storage, f"{newest.signed.version + 1}.root.json") from error
        if following.signed.version != newest.signed.version + 1:
            raise _not_signed(storage, f"{newest.signed.version + 1}.root.json")
        newest = following
    return newest.signed


def _not_signed(storage: Storage, name: str) -> UntrustedRepositoryError:
    return UntrustedRepositoryError(
        f"{storage.url}: metadata/{name} was not signed with this repository's key.",
        hint="Somebody else wrote here: restore the repository, or make a new one.",
    )


def expiry(delta: timedelta) -> datetime:
    """Return the end of a time that begins now."""
    return datetime.now(UTC).replace(microsecond=0) + delta
