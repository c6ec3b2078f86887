"""The sockets that a server listens on: loopback unless it is said to be public, or a Unix socket.

A server of several processes gives each a TCP socket of its own on one port (SO_REUSEPORT), so that
the kernel spreads the connections; a Unix socket is bound once, and all of them accept from it.
"""

import errno
import os
import socket
import stat
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from keystore.errors import (
    InvalidInputError,
    KeystoreError,
    ListenError,
    UnsupportedTargetError,
)

BACKLOG = 4096
UNIX_MODE = 0o660


class Place(NamedTuple):
    """Where to listen: at ``path``, or else at a TCP address. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 8080
    path: Path | None = None
    mode: int = UNIX_MODE
    is_public: bool = False

    def url(self, sock: socket.socket) -> str:
        """Return what clients ask, once a socket of :func:`bound` is at its place."""
        if self.path is not None:
            return f"unix:{self.path}"
        host, port = sock.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def bound(place: Place, *, is_shared: bool = False) -> socket.socket:
    """Return a socket at a place that does not listen yet.

    ``is_shared``: other sockets of this user may be bound to the same port.

    Raises:
        InvalidInputError: the address is not loopback, and ``is_public`` is not set.
        ListenError: the place is taken, or cannot be bound.
    """
    if place.path is not None:
        return _bound_unix(place.path, place.mode)
    where = f"{place.host} port {place.port}"
    try:
        found = socket.getaddrinfo(
            place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        if not place.is_public and not ip_address(str(address[0]).partition("%")[0]).is_loopback:
            raise InvalidInputError(
                f"{place.host} can be reached from other machines.",
                hint="If everybody there may ask, say so with --public.",
            )
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise _failed(where, error, "Choose another with --host and --port.") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _failed(where, error, "Choose another with --host and --port.") from error
    return sock


def reserved(place: Place) -> tuple[Place, socket.socket]:
    """Take a port for several processes, and keep it; return it and the socket that keeps it.

    Raises:
        UnsupportedTargetError: this system cannot share a port.
        KeystoreError: see :func:`bound`.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise UnsupportedTargetError(
            "several workers need SO_REUSEPORT, which this system does not have.",
            hint="Serve with one worker.",
        )
    # First as one that shares with nobody: another server's workers must not get these clients.
    with bound(place) as alone:
        alone.listen(1)
        place = place._replace(port=alone.getsockname()[1])
    return place, bound(place, is_shared=True)


def remove(path: Path, identity: tuple[int, int]) -> None:
    """Remove a Unix socket, if it is still the one with this device and inode."""
    with suppress(FileNotFoundError):
        if identity_of(path) == identity:
            path.unlink()


def identity_of(path: Path) -> tuple[int, int]:
    """Return the device and the inode of a Unix socket's file."""
    found = path.lstat()
    return found.st_dev, found.st_ino


def _bound_unix(path: Path, mode: int) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise UnsupportedTargetError(
            "this system has no Unix sockets.", hint="Use --host and --port."
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(os.fspath(path))
        path.chmod(mode)  # nobody can connect yet: it does not listen
    except KeystoreError:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        raise _failed(str(path), error, "Choose another path with --unix.") from error
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more, and nothing else."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ListenError(
            f"{path}: there is something that is no socket.", hint="Choose another path."
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise _failed(
        str(path), OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)), "Stop the other one."
    )


def _failed(where: str, error: Exception, hint: str) -> ListenError:
    said = getattr(error, "strerror", None) or error
    return ListenError(f"cannot listen on {where}: {said}.", hint=hint)
