"""A desktop app that embeds keystore: its own keys, its own replica, a month without a network.

    echo "$TOKEN" | python desktop_app.py FOLDER https://keys.example.org/ada root.json

Each line of the standard input is a token that somebody wants to render a picture with. The app
fetches what is new where it can, decides from its own file where it cannot, and leaves signed files
with what was used in FOLDER/outbox, for whatever carries them to the origin.
"""

import sys
from pathlib import Path

from keystore import Decision, Validator, migrate
from keystore.db import open_store
from keystore.errors import KeystoreError, TargetError
from keystore.sync import targets, usage_files, usage_keys

WHILE_AWAY = "  (this is the state of {}; I could not ask since: {})"


class DesktopApp:
    """What an app does with keystore, from its first start on."""

    def __init__(self, folder: Path, url: str, root: Path) -> None:
        self.replica, self.outbox = folder / "keys.db", folder / "outbox"
        self.usage_key = folder / "usage-key.pem"
        if not self.replica.exists():  # the one time that the network must be there
            targets.replicate(url, self.replica, root=root.read_bytes())
        migrate.upgrade(self.replica)  # an update of the app may bring a newer schema
        self.outbox.mkdir(exist_ok=True)
        with open_store(self.replica) as file:
            enrolment, _, is_new = usage_keys.make_key(file, self.usage_key)
        if is_new:
            (self.outbox / "enrolment").write_bytes(enrolment)
        self.away: TargetError | None = None
        """Why the last refresh brought nothing."""

    def refresh(self) -> None:
        """Fetch what is new. No network is no error: the replica says itself how old it may be."""
        self.away = None
        with open_store(self.replica) as file:
            try:
                targets.sync(file)
            except TargetError as error:
                self.away = error

    def render(self, token: str) -> Decision:
        """Do what needs a key; each picture is one unit of its usage."""
        # Nothing is lost in a crash: what was used is on the disk before the picture is.
        with Validator(self.replica, max_pending=1) as validator:
            return validator.check(token)

    def hand_in_usage(self) -> list[Path]:
        """Write what was used since the last time into signed, numbered files."""
        with open_store(self.replica) as file:
            written = usage_files.export(file, self.outbox, self.usage_key)
        return [Path(item.path) for item in written]


def main() -> None:
    """Render a picture for each token on the standard input."""
    try:
        folder, url, root = sys.argv[1:]
    except ValueError:
        sys.exit(f"usage: {sys.argv[0]} FOLDER URL ROOT.json; tokens come on standard input")
    app = DesktopApp(Path(folder), url, Path(root))
    app.refresh()
    for line in sys.stdin:
        decision = app.render(line.strip())
        if decision.allowed:
            print(f"a picture for {decision.account}")
        elif decision.reason.is_not_now:
            print(f"not now: {decision.reason}; connect this computer to the network")
        else:
            print(f"no: {decision.reason}")
        if app.away is not None and decision.freshness is not None:
            print(WHILE_AWAY.format(decision.freshness.as_of_at, app.away.message))
    print(f"{len(app.hand_in_usage())} new files for the origin")


if __name__ == "__main__":
    try:
        main()
    except (KeystoreError, OSError) as error:
        sys.exit(str(error))
