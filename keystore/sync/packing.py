"""Compresses what a repository carries, and unpacks it within bounds."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from keystore.disk import refuse_full
from keystore.errors import DecompressionBombError, IncompleteStateError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_LINE = 64 << 20
"""Bytes of one record; its operator's metadata are the only part without a bound of their own."""

_CHUNK = 1 << 20
_WINDOW_LOG = 27
"""At most 128 MiB of memory to decompress, the format's own advice; our files ask for 8."""
_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}


def pack(source: Path, packed: Path) -> None:
    """Compress a file."""
    with source.open("rb") as data, zstd.open(packed, "wb") as file:
        shutil.copyfileobj(data, file, _CHUNK)


def unpack(packed: IO[bytes], path: Path, length: int) -> None:
    """Decompress to ``path``; never more than ``length`` bytes.

    Raises:
        DecompressionBombError: there would be more.
        IncompleteStateError: there is less, or it is damaged.
        DiskFullError: there is not so much room.
    """
    refuse_full(path.parent, length)
    with path.open("wb") as file, _decompressed(packed) as source:
        written = 0
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > length:
                raise _bomb(length)
            file.write(chunk)
    if written < length:
        raise _cut(length)


def pack_lines(lines: Iterator[bytes], packed: Path) -> int:
    """Compress lines; return their length."""
    length = 0
    with zstd.open(packed, "wb") as file:
        for line in lines:
            length += file.write(line)
    return length


def unpack_lines(packed: IO[bytes], length: int) -> Iterator[bytes]:
    """Yield the lines of a compressed file, of ``length`` bytes altogether.

    Raises:
        DecompressionBombError, IncompleteStateError: as :func:`unpack`.
    """
    read = 0
    with _decompressed(packed) as source:
        while line := source.readline(min(MAX_LINE, length - read + 1)):
            read += len(line)
            if read > length:
                raise _bomb(length)
            yield line
    if read < length:
        raise _cut(length)


@contextmanager
def _decompressed(packed: IO[bytes]) -> Iterator[zstd.ZstdFile]:
    packed.seek(0)
    try:
        with zstd.ZstdFile(packed, "rb", options=_OPTIONS) as source:
            yield source
    except zstd.ZstdError as error:
        if "memory" in str(error):
            raise DecompressionBombError(
                "a file of the repository asks for more memory than any of ours needs.",
                hint="It was refused; publish anew with the origin's keystore.",
            ) from error
        raise _damaged() from error
    except EOFError as error:
        raise _damaged() from error


def _bomb(length: int) -> DecompressionBombError:
    return DecompressionBombError(
        f"a file of the repository unpacks to more than the signed {length:,} bytes.",
        hint="It was refused; publish anew with the origin's keystore.",
    )


def _cut(length: int) -> IncompleteStateError:
    return IncompleteStateError(
        f"a file of the repository unpacks to less than the signed {length:,} bytes.",
        hint="Publish it anew.",
    )


def _damaged() -> IncompleteStateError:
    return IncompleteStateError(
        "a file of the repository cannot be decompressed.", hint="Publish it anew."
    )
