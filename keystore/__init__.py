"""API keys that keep working when the network does not.

``Store`` administers a store, ``Validator`` checks keys against it. Both are imported when they
are first asked for, so that a program which only validates does not load the admin side.
"""

from typing import TYPE_CHECKING, Any

from keystore._version import __version__
from keystore.errors import KeystoreError

if TYPE_CHECKING:
    from keystore.edge import Decision, Reason, Validator
    from keystore.store import Store

__all__ = ["Decision", "KeystoreError", "Reason", "Store", "Validator", "__version__"]

_HOMES = {
    "Decision": "keystore.edge",
    "Reason": "keystore.edge",
    "Store": "keystore.store",
    "Validator": "keystore.edge",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
