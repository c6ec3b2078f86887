"""Replaces the keys of a repository, or signs its root file for longer."""

from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Root

from keystore.errors import FencedPublisherError
from keystore.failpoint import reached
from keystore.sync import repository, repository_keys
from keystore.sync.storage import Storage


def rotate(storage: Storage, keys: Path, *, root_key: Path | None, online: bool, root: bool) -> int:
    """Replace keys, and sign what is published with the new ones; return the root's version.

    Readers see a consistent state at any moment: while the metadata are signed anew, the old online
    key and the new one both count. With neither, the same keys sign a root that lives longer. A
    rotation that was interrupted is done again.
    """
    path = root_key or repository_keys.root_key_path(keys)
    with repository_keys.alone(keys), storage.lock():
        current = repository.newest_root(storage, repository_keys.trusted_root(keys))
        signers = [repository_keys.load(path, current.roles[Root.type].keyids)]
        online_key = keys / repository_keys.ONLINE_KEY
        if root:
            signers.append(repository_keys.make_next(path))
            for keyid in list(current.roles[Root.type].keyids):
                current.revoke_key(keyid, Root.type)
            current.add_key(signers[-1].public_key, Root.type)
        if online:
            fresh = repository_keys.make_next(online_key)
            for role in repository.ONLINE_ROLES:
                current.add_key(fresh.public_key, role)
        _publish_root(storage, current, signers)
        reached("rotate.root")
        if root:
            repository_keys.take_next(path)
            signers = signers[1:]
        if online:
            repository_keys.take_next(online_key)
            repository.Publisher(storage, keys).sign_anew()
            reached("rotate.signed")
            for role in repository.ONLINE_ROLES:
                for keyid in list(current.roles[role].keyids):
                    if keyid != fresh.public_key.keyid:
                        current.revoke_key(keyid, role)
            _publish_root(storage, current, signers)
        return current.version


def _publish_root(storage: Storage, root: Root, signers: list[Any]) -> None:
    root.version += 1
    root.expires = repository.expiry(repository.ROOT_LIFETIME)
    metadata = Metadata(root)
    for signer in signers:
        metadata.sign(signer, append=True)
    if not storage.create(f"metadata/{root.version}.root.json", metadata.to_bytes()):
        raise FencedPublisherError(
            f"{storage.url}: somebody else has changed its keys meanwhile.",
            hint="Look at `keystore repo info`, then decide anew.",
        )
