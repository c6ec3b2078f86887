"""The private keys of a repository, in PEM files of mode 0600.

The *online* key signs every publication and lies where the origin syncs. The *root* key says which
keys count; it is needed again only to change that, and belongs on a medium that is not connected.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from keystore.errors import AlreadyExistsError, InvalidInputError, TargetNotReadyError

ONLINE_KEY = "online.pem"
ROOT_KEY = "root.pem"
ROOT_FILE = "root.json"
"""The first root file, which replicas are given to trust, and publishers trust themselves: what
lies in a bucket may have been put there by somebody else."""
ROOT_FOLDER = "offline"
"""Where the root key is written, in the folder of the keys: apart, so that it can be taken away."""


def trusted_root(keys: Path) -> bytes:
    """Read the root file beside the keys.

    Raises:
        TargetNotReadyError: there is none.
    """
    try:
        return (keys / ROOT_FILE).read_bytes()
    except OSError as error:
        raise _no_keys(keys / ROOT_FILE, error) from error


def root_key_path(keys: Path) -> Path:
    """Where the root key is, unless somebody says otherwise."""
    return keys / ROOT_FOLDER / ROOT_KEY


@contextmanager
def alone(keys: Path) -> Iterator[None]:
    """Wait until no other process on this machine works with the keys in a folder.

    A bucket has no lock. So this keeps two processes that publish one store from each other, before
    the second replaces what the first has noted of its own publication.

    Raises:
        TargetNotReadyError: there is no such folder.
    """
    import fcntl

    try:
        descriptor = os.open(keys, os.O_RDONLY)
    except OSError as error:
        raise _no_keys(keys, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _no_keys(path: Path, error: OSError) -> TargetNotReadyError:
    return TargetNotReadyError(
        f"{path}: {error.strerror}.",
        hint="Make a repository with `keystore repo create`, or pass the folder that it wrote "
        "(--keys).",
    )


def make(path: Path) -> CryptoSigner:
    """Make a key, in a folder of mode 0700.

    Raises:
        AlreadyExistsError: there is one.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    signer = CryptoSigner.generate_ed25519()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise AlreadyExistsError(
            f"{path}: a key is there already.", hint="Choose another folder with --keys."
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(signer.private_bytes)
        file.flush()
        os.fsync(file.fileno())
    return signer


def make_next(path: Path) -> CryptoSigner:
    """Make the key that is to follow the one at ``path``; a forgotten attempt is replaced."""
    _next(path).unlink(missing_ok=True)
    return make(_next(path))


def take_next(path: Path) -> None:
    """Put the key of :func:`make_next` into its place."""
    _next(path).replace(path)


def load(path: Path, trusted: list[str]) -> CryptoSigner:
    """Load the key at ``path`` that is one of those trusted (key ids).

    A change that was interrupted may have left its successor beside it, and trusted already.

    Raises:
        InvalidInputError: there is none, or it is another repository's.
    """
    if _next(path).exists():
        following = _load(_next(path))
        if following.public_key.keyid in trusted:
            take_next(path)
            return following
    signer = _load(path)
    if signer.public_key.keyid not in trusted:
        raise InvalidInputError(
            f"{path} is not a key of this repository.",
            hint="Pass the one that `keystore repo create` wrote (--keys, --root-key).",
        )
    return signer


def _next(path: Path) -> Path:
    return path.with_name(f"{path.stem}.next{path.suffix}")


def _load(path: Path) -> CryptoSigner:
    try:
        private_key: Any = load_pem_private_key(path.read_bytes(), password=None)
        return CryptoSigner(private_key)
    except OSError as error:
        raise InvalidInputError(
            f"{path}: {error.strerror}.",
            hint="Pass the one that `keystore repo create` wrote (--keys, --root-key).",
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInputError(
            f"{path}: not an unencrypted private key in PEM form.",
            hint="Pass the one that `keystore repo create` wrote (--keys, --root-key).",
        ) from error
