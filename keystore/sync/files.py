"""A repository of signed files as a target: an origin publishes to it, replicas verify and pull."""

from pathlib import Path
from urllib.parse import urlsplit

from keystore.sync.files_sink import FileSink
from keystore.sync.files_source import FileSource
from keystore.sync.repository_keys import ROOT_FILE, trusted_root
from keystore.sync.storage import storage_of


class FileRepository:
    """A repository in a folder, in a bucket, or behind HTTP; it does what it is given means for.

    ``keys`` (a folder) makes it a sink, ``root`` (the pinned root file) or ``state`` (what an
    earlier pull left) makes it a source. What a source fetches lies ``beside`` a file.
    """

    hub = None

    def __init__(
        self,
        url: str,
        *,
        keys: Path | None = None,
        root: bytes | None = None,
        state: str | None = None,
        beside: Path | None = None,
    ) -> None:
        storage = storage_of(url)
        if keys and not (root or state) and (keys / ROOT_FILE).exists():
            root = trusted_root(keys)  # who signs trusts itself, to compare
        is_writable = urlsplit(url).scheme in {"file", "s3"}
        self.sink = FileSink(storage, keys) if keys and is_writable else None
        self.source = FileSource(storage, root, state, beside) if root or state else None

    def close(self) -> None:
        """Nothing is kept open."""
