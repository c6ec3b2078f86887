"""How a long sync says how far it is."""

from collections.abc import Callable

OnProgress = Callable[[int, int | None], None]
"""Called with the number of records moved so far, and how many there will be, if that is known."""


def nobody(_: int, __: int | None) -> None:
    """Tell nobody."""
