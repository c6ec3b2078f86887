"""What a target needs beyond keystore's own requirements."""

from collections.abc import Iterator
from contextlib import contextmanager

from keystore.errors import UnsupportedTargetError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Say which extra to install, around an import that needs it.

    Raises:
        UnsupportedTargetError: something of it is missing.
    """
    try:
        yield
    except ImportError as error:
        raise UnsupportedTargetError(
            f"this needs the extra {name!r} ({error.name} is not installed).",
            hint=f"pip install 'keystore[{name}]'",
        ) from error
