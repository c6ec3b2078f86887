"""The command ``keystore``.

Exit codes: 0 for success (and "allowed"), 2 for wrong usage, 1 for everything else.
"""

import click

from keystore._version import __version__
from keystore.cli import (
    admin,
    bulk,
    care,
    clients,
    credits,  # noqa: A004
    edge,
    export,
    fleet,
    hub,
    keys,
    legacy,
    models,
    plans,
    repo,
    statuses,
    sync,
    usage,
    verify,
)
from keystore.cli.common import KeystoreGroup

_ROOMS = (
    admin,
    plans,
    keys,
    clients,
    statuses,
    bulk,
    models,
    credits,
    edge,
    sync,
    repo,
    usage,
    hub,
    fleet,
    verify,
    care,
    export,
    legacy,
)


@click.group(cls=KeystoreGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="keystore")
def main() -> None:
    """API keys that keep working when the network does not.

    \b
    Example, from an empty folder to a checked key:
      keystore init
      keystore plan add free
      keystore account add ada@example.org --plan free
      keystore key issue ada@example.org
      keystore check -          # paste the token

    Every command takes --json, for scripts. Commands that work on a store find it by --db, by
    KEYSTORE_DB, or as keystore.db in the current folder.
    """


for _room in _ROOMS:
    for _command in _room.COMMANDS:
        main.add_command(_command)
