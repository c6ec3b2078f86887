"""Refreshes a repository's metadata with python-tuf's client, and says what is wrong with them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import Updater

from keystore.errors import (
    ExpiredRepositoryError,
    ForeignRootError,
    KeystoreError,
    MixedRepositoryError,
    OversizedFileError,
    RevokedKeyError,
    RolledBackRepositoryError,
    TargetUnavailableError,
    UntrustedRepositoryError,
)
from keystore.sync.repository_format import State, Terms, read_state, terms_of
from keystore.sync.storage import BASE_URL, Storage, StorageFetcher

_STAYS = "this replica stays as it was"
_MAX_TIMESTAMP = 16_384
"""python-tuf's own bound."""


class Trusted:
    """A repository's metadata, refreshed and verified, starting from a pinned root.

    If the timestamp is the one that an earlier refresh has left, nothing is new and nothing else is
    asked for: a poll is one request. A change of keys shows with the next timestamp.

    Args:
        files: what an earlier refresh left (:attr:`files`): nothing older is accepted.
        folder: an empty folder for the client.
    """

    def __init__(
        self, storage: Storage, root: bytes, files: Mapping[str, str], folder: Path
    ) -> None:
        (folder / "root_history").mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_bytes(text.encode())
        with tuf_errors(storage, root, folder):
            fetcher = StorageFetcher(storage)
            if not _is_current(fetcher, folder):
                updater = Updater(
                    str(folder), f"{BASE_URL}metadata/", fetcher=fetcher, bootstrap=root
                )
                updater.refresh()
        self.terms: Terms = terms_of(_newest_root(folder).read_bytes())
        self.timestamp: Timestamp = _read(folder / "timestamp.json")
        # (read here, because the client would follow delegations, which keystore never makes)
        self._targets: Targets = _read(folder / "targets.json")
        # (in an order of our own, not the file system's: what is kept of them is compared)
        found = sorted(path for path in folder.rglob("*.json") if not path.is_symlink())
        self.files = {
            path.relative_to(folder).as_posix(): path.read_bytes().decode() for path in found
        }

    def state(self) -> State | None:
        """Return what the repository offers; ``None`` if nothing was published yet."""
        return read_state(self._targets.targets)


@contextmanager
def tuf_errors(
    storage: Storage | None = None, root: bytes | None = None, folder: Path | None = None
) -> Iterator[None]:
    """Turn python-tuf's failures into keystore errors."""
    try:
        yield
    except exceptions.ExpiredMetadataError as error:
        is_root = "root" in str(error)
        command = "keystore repo renew" if is_root else "keystore sync"
        raise ExpiredRepositoryError(
            f"the repository's {'root file has' if is_root else 'signatures have'} expired "
            f"({_brief(error)}).",
            hint=f"Run `{command}` at the origin, then try again; {_STAYS}.",
        ) from error
    except exceptions.DownloadLengthMismatchError as error:
        raise OversizedFileError(
            "metadata of the repository are longer than any can be; the rest was not read.",
            hint=f"Publish anew, or restore the repository; {_STAYS}.",
        ) from error
    except exceptions.BadVersionNumberError as error:
        # (python-tuf has one class for both)
        if "must be >=" in str(error):
            raise RolledBackRepositoryError(
                "the repository offers an older state than this replica has seen "
                f"({_brief(error)}).",
                hint=f"Somebody put it back: publish anew from the origin; {_STAYS}.",
            ) from error
        raise MixedRepositoryError(
            f"the repository mixes metadata of different states ({_brief(error)}).",
            hint=f"Publish anew, or restore the repository whole; {_STAYS}.",
        ) from error
    except exceptions.UnsignedMetadataError as error:
        if storage is not None and root is not None and folder is not None:
            raise _distrusted(storage, root, folder, error) from error
        raise _unsigned(error) from error
    except DeserializationError as error:
        raise UntrustedRepositoryError(
            f"what comes from the repository's place is no metadata ({_brief(error)}).",
            hint="Check the URL. A web server must answer 404 to what is missing, such as the next "
            f"root file, and not with a page of its own; {_STAYS}.",
        ) from error
    except exceptions.RepositoryError as error:
        raise _unsigned(error) from error
    except exceptions.DownloadError as error:
        if isinstance(cause := error.__cause__, KeystoreError):
            raise cause from cause.__cause__  # the storage has said it best
        raise TargetUnavailableError(
            f"the repository cannot be reached ({_brief(error.__cause__ or error)}).",
            hint="Nothing is lost; try again later.",
        ) from error


def _unsigned(error: Exception) -> UntrustedRepositoryError:
    return UntrustedRepositoryError(
        f"the repository is not signed by who this replica trusts ({_brief(error)}).",
        hint=f"Check the URL and the root file (--root); {_STAYS}.",
    )


def _distrusted(
    storage: Storage, root: bytes, folder: Path, error: Exception
) -> UntrustedRepositoryError:
    """Find out why signatures do not count: another repository, or a key that was replaced?"""
    first = storage.read("metadata/1.root.json")
    if first is not None and _repository_id(first[0]) != terms_of(root).repository_id:
        return ForeignRootError(
            "this is another repository than the root file is for that this replica trusts.",
            hint=f"Check the URL; for a new repository pass its root file (--root); {_STAYS}.",
        )
    found = storage.read("metadata/timestamp.json")
    signers = _key_ids(found[0]) if found is not None else set()
    roots = sorted(folder.glob("root_history/*.root.json"), key=_version)
    keys = [set(Metadata[Root].from_file(str(path)).signed.keys) for path in roots]
    for earlier in keys[:-1]:
        if signers & earlier - keys[-1]:
            return RevokedKeyError(
                "the repository is signed with a key that was replaced.",
                hint="Somebody has the old key: publish anew with the new one, and look who "
                f"writes there; {_STAYS}.",
            )
    return _unsigned(error)


def _repository_id(data: bytes) -> Any:
    try:
        return terms_of(data).repository_id
    except Exception:  # noqa: BLE001 - whatever it is, it is not the repository that is trusted
        return None


def _key_ids(data: bytes) -> set[str]:
    try:
        return {str(signature["keyid"]) for signature in json.loads(data)["signatures"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return set()


def _is_current(fetcher: StorageFetcher, folder: Path) -> bool:
    """Whether the repository still shows the timestamp that is held, and it may still be used."""
    held = folder / "timestamp.json"
    if not held.exists() or not (folder / "targets.json").exists():
        return False
    url = f"{BASE_URL}metadata/timestamp.json"
    data = fetcher.download_bytes(url, _MAX_TIMESTAMP)
    fetcher.fetched[url] = data  # so that the refresh need not ask again
    timestamp, root = _read(held), _read(_newest_root(folder))
    return data == held.read_bytes() and not timestamp.is_expired() and not root.is_expired()


def _newest_root(folder: Path) -> Path:
    return max(folder.glob("root_history/*.root.json"), key=_version)


def _read(path: Path) -> Any:
    """Read metadata that were verified when they were put there."""
    return Metadata[Any].from_file(str(path)).signed


def _brief(error: BaseException) -> str:
    """(part of it may be what somebody else wrote)"""
    return " ".join(str(error).split())[:200]


def _version(path: Path) -> int:
    return int(path.name.split(".")[0])
