"""The private keys of a repository, in PEM files of mode 0600.

The *online* key signs every publication and lies where the origin syncs. The *root* key says which
keys count; it is needed again only to change that, and belongs on a medium that is not connected.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from keystore import disk
from keystore.disk import sync_folder
from keystore.errors import AlreadyExistsError, InvalidInputError, TargetNotReadyError
from keystore.sync.repository_format import terms_of

ONLINE_KEY = "online.pem"
ROOT_KEY = "root.pem"
ROOT_FILE = "root.json"
"""The newest root file, which replicas are given to trust, and publishers trust themselves: what
lies in a bucket may have been put there by somebody else, with a root key that was replaced."""
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
        hint="Pass the folder that `keystore repo create` wrote (--keys), with its root.json.",
    )


def folder_of(keys: Path, repository_id: str) -> Path:
    """Return ``keys``, or the folder in it, whose keys are those of a repository.

    If there is none, return ``keys``: what is wrong shows there.
    """
    for folder in (keys, *sorted(keys.glob("*/"))):
        with suppress(InvalidInputError, TargetNotReadyError):  # it holds something else
            if str(terms_of(trusted_root(folder)).repository_id) == repository_id:
                return folder
    return keys


def make_first(keys: Path, root_key: Path) -> tuple[CryptoSigner, CryptoSigner]:
    """Make an online key and a root key; :func:`finish` puts them into place.

    Raises:
        AlreadyExistsError: there are some.
        InvalidInputError: they cannot be written.
    """
    for path in (keys / ROOT_FILE, keys / ONLINE_KEY, root_key):
        if path.exists():
            raise AlreadyExistsError(
                f"{path} is there already, of another repository.",
                hint="Choose a folder of its own with --keys: if it lies in the default folder, "
                "a plain `keystore sync` finds it.",
            )
    return make_next(keys / ONLINE_KEY), make_next(root_key)


def begun_root(keys: Path) -> bytes:
    """Read the root file of :func:`begin`, empty if there is none."""
    path = _next(keys / ROOT_FILE)
    return path.read_bytes() if path.exists() else b""


def begin(keys: Path, root: bytes) -> None:
    """Write the root file that belongs to keys that were just made."""
    _write(_next(keys / ROOT_FILE), root, 0o644)


def finish(keys: Path, root_key: Path) -> Path:
    """Put the keys that were just made, and last their root file, into place; return its path."""
    for path in (keys / ONLINE_KEY, root_key, keys / ROOT_FILE):
        take_next(path)
    return keys / ROOT_FILE


def trust(keys: Path, root: bytes) -> None:
    """Make a root file the one to trust from now on."""
    begin(keys, root)
    take_next(keys / ROOT_FILE)


def make_next(path: Path) -> CryptoSigner:
    """Make the key that is to follow the one at ``path``; a forgotten attempt is replaced.

    Raises:
        InvalidInputError: it cannot be written.
    """
    signer = CryptoSigner.generate_ed25519()
    _write(_next(path), signer.private_bytes, 0o600)
    return signer


def take_next(path: Path) -> None:
    """Put what was made to follow the file at ``path`` into its place."""
    with disk.errors(path.parent), suppress(FileNotFoundError):
        # (or it is there already: done before, or by another process)
        _next(path).replace(path)
        sync_folder(path.parent)


def _write(path: Path, data: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(
            path.parent
        )  # before the repository counts on it: a root key has no second copy
    except OSError as error:
        raise InvalidInputError(
            f"{path}: {error.strerror}.", hint="Choose another place (--keys, --root-key)."
        ) from error


def load(path: Path, trusted: list[str]) -> CryptoSigner:
    """Load the key at ``path`` that is one of those trusted (key ids).

    A change that was interrupted may have left its successor beside it, and trusted already.

    Raises:
        InvalidInputError: there is none, or it is another repository's.
    """
    with suppress(InvalidInputError):  # there is none, or its maker was killed
        if _load(_next(path)).public_key.keyid in trusted:
            take_next(path)
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
            hint="Bring it back; or make another: `keystore repo rotate TARGET --online`."
            if path.name == ONLINE_KEY
            else "Name the file with the root key, where it is now (--root-key).",
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInputError(
            f"{path}: not an unencrypted private key in PEM form.",
            hint="Pass the one that `keystore repo create` wrote (--keys, --root-key).",
        ) from error
