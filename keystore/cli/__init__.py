"""The command ``keystore``.

Exit codes: 0 for success (and "allowed"), 2 for wrong usage, 1 for everything else.
"""

from importlib import import_module

import click

from keystore._version import __version__
from keystore.cli.common import KeystoreGroup

_HOMES: dict[str, tuple[str, ...]] = {
    "account": ("admin",),
    "backup": ("care",),
    "changes": ("admin",),
    "check": ("edge",),
    "client": ("clients",),
    "compact": ("verify",),
    "credits": ("credits",),
    "doctor": ("care",),
    "export": ("export",),
    "fleet": ("fleet",),
    "forget": ("fleet",),
    "hub": ("hub", "fleet"),
    "import-legacy": ("legacy",),
    "init": ("admin",),
    "key": ("keys", "statuses", "bulk"),
    "migrate": ("care",),
    "model": ("models",),
    "plan": ("plans",),
    "provider": ("models",),
    "replicate": ("sync",),
    "repo": ("repo",),
    "restore": ("care",),
    "revocations": ("fleet",),
    "revoke": ("fleet",),
    "serve": ("edge",),
    "service": ("admin",),
    "status": ("admin",),
    "sync": ("sync",),
    "usage": ("usage",),
    "verify": ("verify",),
}
"""Where each command is, and what adds commands below it."""


class _Main(KeystoreGroup):
    """Imports a command when it is asked for: `check` and `serve` need no administration."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        return sorted(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for home in _HOMES.get(cmd_name, ()):
            for command in import_module(f"keystore.cli.{home}").COMMANDS:
                self.add_command(command)
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
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
