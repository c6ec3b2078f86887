"""A repository of signed files as a target: an origin publishes it, replicas verify and pull.

What travels is one TUF target, ``snapshot.sqlite.zst``: the key tables in a compact SQLite file,
compressed. Its signed ``custom`` field says whose rows these are, at which cut, and what they add
up to. The replica trusts the root file that it was given, whatever that root says later, and
nothing else: neither the transport nor the server.
"""

import hashlib
import json
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import TargetFile
from tuf.ngclient import Updater
from urllib3.exceptions import HTTPError

from keystore import db
from keystore.changelog import Page
from keystore.errors import (
    ExpiredRepositoryError,
    ForeignOriginError,
    IncompleteStateError,
    TargetNotReadyError,
    TargetUnavailableError,
    UntrustedRepositoryError,
)
from keystore.sync import repository
from keystore.sync.digest import Bucket
from keystore.sync.folder import Folder, FolderFetcher, path_of
from keystore.sync.protocols import Origin, PageCounts, Pull, TargetState
from keystore.sync.snapshot import (
    SNAPSHOT_NAME,
    Announcement,
    announcement,
    fill,
    pack,
    pages_of,
    unpack,
)
from keystore.tables import TRACKED

if TYPE_CHECKING:
    import sqlite3


class FileRepository:
    """A repository in a folder or behind HTTP; what it can do depends on what it is given.

    ``keys`` (a folder) makes it a sink, ``root`` (the pinned root file) or ``state`` (what an
    earlier pull left) makes it a source.
    """

    hub = None

    def __init__(
        self,
        url: str,
        *,
        keys: Path | None = None,
        root: bytes | None = None,
        state: str | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        is_local = urlsplit(url).scheme == "file"
        self.sink = FileSink(Folder(path_of(url)), keys) if keys and is_local else None
        self.source = FileSource(self._url, root, state) if root or state else None

    def close(self) -> None:
        """Nothing is kept open."""


class FileSink:
    """Publishes to a folder."""

    def __init__(self, folder: Folder, keys: Path) -> None:
        self._folder, self._keys = folder, keys

    @property
    def target_id(self) -> str:
        """The repository's own UUID."""
        with _errors():
            return repository.identity(repository.Publisher(self._folder, self._keys).root_bytes)

    @contextmanager
    def push(self, origin: Origin) -> Iterator["_FilePush"]:
        """Start a push; see :class:`keystore.sync.protocols.Sink`."""
        _ = self.target_id
        with (
            _errors(),
            self._folder.lock(),
            tempfile.TemporaryDirectory(prefix="keystore-") as scratch,
        ):
            session = _FilePush(
                self._folder, repository.Publisher(self._folder, self._keys), origin, Path(scratch)
            )
            with session:
                yield session


class _FilePush:
    """One push: the published snapshot, unpacked on the first page, changed, and packed again."""

    def __init__(
        self, folder: Folder, publisher: repository.Publisher, origin: Origin, scratch: Path
    ) -> None:
        self._folder, self._publisher, self.origin = folder, publisher, origin
        self._last = publisher.read()
        self._said = announcement(self._last.target) if self._last.target else None
        if self._said and self._said.origin_id != origin.store_id:
            raise ForeignOriginError(
                f"{folder.path} carries origin {self._said.origin_id}, not {origin.store_id}.",
                hint="One repository serves one origin: create another.",
            )
        self._path = scratch / "snapshot.sqlite"
        self._conn: sqlite3.Connection | None = None
        self._starts_over = False
        is_other_schema = self._said and self._said.schema_version != origin.schema_version
        self.state = TargetState(
            acknowledged_change=self._said.up_to if self._said else 0,
            token=self._said.push_token if self._said else None,
            wants_everything=self._said is None or bool(is_other_schema),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._conn is not None:
            self._conn.close()

    def digests(self) -> None:
        """Ask for everything: a push publishes the whole state anyway."""

    def start_over(self) -> None:
        self.__exit__()
        self._path.unlink(missing_ok=True)
        self._conn, self._starts_over = None, True

    def bucket_pages(self, _: Collection[Bucket]) -> Iterator[Page]:
        return iter(())

    def highest_ids(self) -> PageCounts:
        conn = self._staged()
        return {t.name: db.scalar(conn, fill("highest_id", t)) or 0 for t in TRACKED}

    def send(self, page: Page) -> None:
        conn = self._staged()
        conn.execute("BEGIN")
        conn.executemany(fill("delete", page.table), [(i,) for i in page.deleted])
        conn.executemany(fill("put", page.table), page.rows)
        conn.execute("COMMIT")

    def commit(self, *, up_to: int, as_of_at: str, token: str, counts: PageCounts) -> None:
        target, data, length = self._last.target, None, 0
        if self._conn is None and target is not None and self._said is not None:
            held, length = self._said.counts, self._said.length
        else:
            data, held, length = self._packed()
            target = TargetFile(
                len(data), {"sha256": hashlib.sha256(data).hexdigest()}, SNAPSHOT_NAME
            )
        if held != counts:
            raise IncompleteStateError(
                f"the repository would hold {held}, the store has {dict(counts)}.",
                hint="Nothing was published; please report this.",
            )
        said = Announcement(
            origin_id=self.origin.store_id,
            incarnation=self.origin.incarnation,
            token_prefix=self.origin.token_prefix,
            schema_version=self.origin.schema_version,
            up_to=up_to,
            as_of_at=as_of_at,
            push_token=token,
            counts=dict(counts),
            length=length,
        )
        target.unrecognized_fields["custom"] = said.model_dump()
        self._publisher.publish(self._last, target, data)

    def _staged(self) -> "sqlite3.Connection":
        if self._conn is None:
            if self._starts_over or self._last.target is None:
                self._path.touch()
                self._conn = db.connect(self._path)
                for table in TRACKED:
                    self._conn.execute(fill("create", table))
            else:
                target = self._last.target
                name = f"targets/{target.hashes['sha256']}.{target.path}"
                packed = self._folder.path / name
                if self._folder.read(name) is None:
                    raise TargetUnavailableError(
                        f"{packed}: the published snapshot is gone.",
                        hint="Restore the folder, or make a new repository.",
                    )
                with packed.open("rb") as file:
                    target.verify_length_and_hashes(file)
                unpack(packed, self._path, self._said.length if self._said else 0)
                self._conn = db.connect(self._path)
            # The file is scratch: it is packed and published, or thrown away.
            self._conn.execute("PRAGMA synchronous = OFF")
        return self._conn

    def _packed(self) -> tuple[bytes, dict[str, int], int]:
        conn = self._staged()
        counts = {table.name: db.scalar(conn, fill("count", table)) for table in TRACKED}
        conn.execute("VACUUM")
        conn.close()
        data = self._path.read_bytes()
        return pack(data), counts, len(data)


class FileSource:
    """Reads a repository with python-tuf's client, starting from the pinned root."""

    def __init__(self, url: str, root: bytes | None, state: str | None) -> None:
        self._url = url
        self._files: dict[str, str] = json.loads(state) if state else {}
        if root is not None:
            # A root that is given again starts the trust anew: the operator's word counts.
            self._files = {"pinned.json": root.decode("utf-8", "replace")}
        self._root = self._files.pop("pinned.json").encode()
        self.target_id = repository.identity(self._root)

    @contextmanager
    def pull(self, origin_id: str | None, after: int | None) -> Iterator[Pull]:
        """Open a cut; see :class:`keystore.sync.protocols.Source`."""
        with tempfile.TemporaryDirectory(prefix="keystore-") as scratch:
            folder = Path(scratch)
            with _errors():
                updater = self._updater(folder / "metadata")
                updater.refresh()
                target = updater.get_targetinfo(SNAPSHOT_NAME)
                if target is None:
                    raise TargetNotReadyError(
                        "this repository offers no snapshot.", hint="Publish from the origin first."
                    )
                said = announcement(target)
                if origin_id is not None and said.origin_id != origin_id:
                    raise ForeignOriginError(
                        f"the repository carries origin {said.origin_id}, not {origin_id}.",
                        hint="Check the URL, or make a new replica with `keystore replicate`.",
                    )
                pages: Iterator[Page] = iter(())
                if said.up_to != after:
                    packed = folder / "packed"
                    updater.download_target(target, str(packed))
                    unpack(packed, folder / "snapshot.sqlite", said.length)
                    pages = pages_of(folder / "snapshot.sqlite")
            yield Pull(
                origin=Origin(
                    said.origin_id, said.incarnation, said.token_prefix, said.schema_version
                ),
                as_of_change=said.up_to,
                as_of_at=said.as_of_at,
                counts=said.counts,
                is_everything=said.up_to != after,
                pages=pages,
                source_state=self._state(folder / "metadata"),
            )

    def _updater(self, folder: Path) -> Updater:
        (folder / "root_history").mkdir(parents=True)
        for name, text in self._files.items():
            (folder / name).write_text(text, encoding="utf-8")
        is_local = urlsplit(self._url).scheme == "file"
        return Updater(
            str(folder),
            f"{self._url}/metadata/",
            target_base_url=f"{self._url}/targets/",
            fetcher=FolderFetcher() if is_local else None,
            bootstrap=self._root,
        )

    def _state(self, folder: Path) -> str:
        """Collect what the client must remember: it never accepts anything older than this."""
        found = [path for path in folder.rglob("*.json") if not path.is_symlink()]
        files = {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in found}
        return json.dumps({"pinned.json": self._root.decode()} | files)


@contextmanager
def _errors() -> Iterator[None]:
    """Turn python-tuf's failures into keystore errors."""
    try:
        yield
    except tuf_errors.ExpiredMetadataError as error:
        raise ExpiredRepositoryError(
            f"the repository's signatures have expired ({error}).",
            hint="Run `keystore sync` at the origin, then try again; this replica stays as it was.",
        ) from error
    except (
        tuf_errors.DownloadLengthMismatchError,
        tuf_errors.LengthOrHashMismatchError,
    ) as error:
        raise UntrustedRepositoryError(
            f"a file of the repository is damaged or was altered ({error}).",
            hint="It was refused; publish anew, or restore the repository.",
        ) from error
    except tuf_errors.RepositoryError as error:
        raise UntrustedRepositoryError(
            f"the repository is not signed by who this replica trusts ({error}).",
            hint="Check the URL and the root file (--root); this replica stays as it was.",
        ) from error
    except tuf_errors.DownloadHTTPError as error:
        if error.status_code in {403, 404}:
            raise TargetNotReadyError(
                f"the repository lacks a file ({error}).",
                hint="Check the URL; publish from the origin first.",
            ) from error
        raise _unreachable(error) from error
    except (tuf_errors.DownloadError, HTTPError) as error:
        raise _unreachable(error) from error


def _unreachable(error: Exception) -> TargetUnavailableError:
    return TargetUnavailableError(
        f"the repository cannot be reached ({str(error) or error.__cause__}).",
        hint="Nothing is lost; try again later.",
    )
