"""Replaces the keys of a repository, or signs its root file for longer."""

from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Root, Targets

from keystore.errors import FencedPublisherError
from keystore.failpoint import reached
from keystore.sync import repository, repository_keys
from keystore.sync.storage import Storage


def rotate(storage: Storage, keys: Path, *, root_key: Path | None, online: bool, root: bool) -> int:
    """Replace keys, and sign what is published with the new ones; return the root's version.

    Readers see a consistent state at any moment: while the metadata are signed anew, the old online
    key and the new one both count. With neither, the same keys sign a root that lives longer. A
    rotation that was interrupted is brought to its end by the next, whatever that is for.

    Raises:
        InvalidInputError: a key is missing, or not this repository's.
        FencedPublisherError: somebody else published or rotated meanwhile.
    """
    path = root_key or repository_keys.root_key_path(keys)
    online_key = keys / repository_keys.ONLINE_KEY
    with repository_keys.alone(keys), storage.lock():
        current = repository.newest_root(storage, repository_keys.trusted_root(keys))
        signers = [repository_keys.load(path, current.roles[Root.type].keyids)]
        if root:
            signers.append(repository_keys.make_next(path))
            for keyid in list(current.roles[Root.type].keyids):
                current.revoke_key(keyid, Root.type)
            current.add_key(signers[-1].public_key, Root.type)
        if online:
            fresh = repository_keys.make_next(online_key)
            for role in repository.ONLINE_ROLES:
                current.add_key(fresh.public_key, role)
        _publish_root(storage, keys, current, signers)
        reached("rotate.root")
        repository_keys.load(path, current.roles[Root.type].keyids)  # takes the next one
        if len(current.roles[Targets.type].keyids) > 1:
            publisher = repository.Publisher(storage, keys)
            publisher.sign_anew()
            reached("rotate.signed")
            for role in repository.ONLINE_ROLES:
                for keyid in list(current.roles[role].keyids):
                    if keyid != publisher.signer.public_key.keyid:
                        current.revoke_key(keyid, role)
            _publish_root(storage, keys, current, signers[-1:])
        return current.version


def _publish_root(storage: Storage, keys: Path, root: Root, signers: list[Any]) -> None:
    root.version += 1
    root.expires = repository.expiry(repository.ROOT_LIFETIME)
    metadata = Metadata(root)
    for signer in signers:
        metadata.sign(signer, append=True)
    data = metadata.to_bytes()
    if not storage.create(f"metadata/{root.version}.root.json", data):
        raise FencedPublisherError(
            f"{storage.url}: somebody else has changed its keys meanwhile.",
            hint="Look at `keystore repo info`, then decide anew.",
        )
    repository_keys.trust(keys, data)
