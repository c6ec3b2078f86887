"""Commands from the centre: revoke, its receipts, the fleet, and forgetting who has gone."""

import json
import signal
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keystore.cli.common import (
    argument_or_stdin,
    json_option,
    plural,
    printable,
    seconds,
    show,
    show_table,
    store_options,
    wants_json,
)
from keystore.cli.hub import hub
from keystore.cli.simulate import simulate
from keystore.db import open_store
from keystore.errors import TargetUnavailableError
from keystore.sync import targets, urls

if TYPE_CHECKING:
    from keystore.sync.hub_fleet import Member, Receipt

WATCH_SECONDS = 2
_UNITS = ((100, 1, "s"), (6_000, 60, "m"), (172_800, 3_600, "h"), (8_640_000, 86_400, "d"))


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the fleet's table; all that fits 80 columns beside a whole UUID."""

    store: str
    role: str
    version: str
    as_of: str | None
    lag: int | None
    seen: str
    stale: bool


@dataclass(frozen=True, slots=True)
class _Receiver:
    """A line below a revocation."""

    store: str
    role: str
    has_it: bool
    last_heard: str


@click.command(short_help="Revoke a key from the centre.")
@click.argument("key_name", metavar="KEY")
@click.option("--at", "target", required=True, metavar="TARGET", help="The hub.")
@click.option("--reason", metavar="TEXT", help="Why; goes into the key's timeline at its origin.")
@json_option
def revoke(key_name: str, target: str, reason: str | None) -> None:
    """Stop KEY for good, at the hub TARGET, without waiting for its origin.

    Replicas and the origin take it over with their next sync. KEY is a key's UUID or its token;
    "-" reads it from standard input.

    \b
    Example:
      keystore revoke --at postgresql://hub.example.org/keystore - --reason leaked
    """
    with targets.hub_admin(target) as admin:
        from keystore.sync import hub_fleet

        done = admin.revoke(argument_or_stdin(key_name), reason=reason)
        receipts = {
            receipt.origin_id: receipt
            for item in done
            for receipt in hub_fleet.receipts(admin, item.api_key)
        }
    where = urls.redacted(urls.normalized(target))
    lines = []
    for item in done:
        receipt = receipts[item.origin_id]
        replicas = sum(holder.role == "replica" for holder in receipt.have + receipt.lack)
        follow = f"{plural(replicas, 'replica')} and the origin follow"
        if item.is_new:
            lines.append(f"Revoked key {item.api_key}; {follow} with the next sync.")
        else:
            lines.append(f"Nothing to do. {_sentence(receipt)}")
    lines.append(f"Who has it: `keystore revocations {where}`.")
    show(done, "\n".join(lines))


@click.command(short_help="Show who has which revocation.")
@click.argument("target")
@click.option("--key", "key_name", metavar="KEY", help='Only this key: UUID, token, or "-".')
@json_option
def revocations(target: str, key_name: str | None) -> None:
    """Show the keys revoked at the hub TARGET, newest first: who has it, who has not.

    A store is known to have a revocation when it has said so; one that has not called since is
    listed with "no", and when it was last heard.

    \b
    Example:
      keystore revocations postgresql://hub.example.org/keystore
    """
    with targets.hub_admin(target) as admin:
        from keystore.sync import hub_fleet

        key = None if key_name is None else argument_or_stdin(key_name)
        found = hub_fleet.receipts(admin, key)
    if wants_json() or not found:
        show(found, "No key was revoked here.")
        return
    for number, receipt in enumerate(found):
        click.echo(("\n" if number else "") + _sentence(receipt))
        rows = [
            _Receiver(holder.store_id, holder.role, has_it, human_age(holder.silent_seconds))
            for has_it, holders in ((False, receipt.lack), (True, receipt.have))
            for holder in holders
        ]
        show_table(rows, ("store", "role", "has_it", "last_heard"), empty="Nobody has called yet.")


class _Fleet(click.Group):
    """Shows the fleet when a target is named instead of a subcommand."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_named = bool(args) and (args[0] in self.commands or args[0] in {"-h", "--help"})
        return super().parse_args(ctx, args if is_named else ["show", *args])


@click.group(cls=_Fleet, short_help="Show every store and replica, and who is stale.")
def fleet() -> None:
    """Every store and replica that syncs with a hub; and a fleet in one process, for tests.

    \b
    Example:
      keystore fleet postgresql://hub.example.org/keystore   # the same as: keystore fleet show
      keystore fleet simulate --seed 7
    """


@fleet.command("show", short_help="Show every store and replica, and who is stale.")
@click.argument("target")
@click.option(
    "--stale-after",
    type=seconds,
    default="1d",
    show_default=True,
    metavar="AGE",
    help="Who has been silent for longer is stale: 2h, 30m, or seconds.",
)
@click.option("--watch", is_flag=True, help=f"Again every {WATCH_SECONDS} s, until interrupted.")
@json_option
def show_fleet(target: str, stale_after: int, watch: bool) -> None:
    """Show every store and replica that syncs with the hub TARGET.

    "as of" is the age of its data, "lag" how many pushed changes it has not, "seen" when it last
    called; --json has all there is. Stale is whose data are older than the strictest
    --max-staleness of its origin's plans, or who was silent for longer than --stale-after.
    Exits with 0, stale or not: it is a view.

    \b
    Example:
      keystore fleet show postgresql://hub.example.org/keystore --stale-after 2h
    """
    if not watch:
        _show_members(_members(target, stale_after))
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            _tick(target, stale_after)
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command(short_help="Sync with a target no longer.")
@click.argument("target")
@store_options
def forget(db_path: Path, target: str) -> None:
    """Sync with TARGET no longer, when `keystore sync` names no target.

    Where the two stood stays noted: `keystore sync TARGET` goes on from there.

    \b
    Example:
      keystore forget postgresql://old.example.org/keystore
    """
    with open_store(db_path) as file:
        url = targets.forget(file, target)
    show({"forgotten": url}, f"{db_path} syncs with {url} no longer.")


@hub.command("forget")
@click.argument("url")
@click.argument("replica_id", type=click.UUID)
@json_option
def hub_forget(url: str, replica_id: uuid.UUID) -> None:
    """Take a retired replica off the list of the hub at URL; should it call, it is back.

    \b
    Example:
      keystore hub forget postgresql://hub.example.org/keystore 5f0c18e5-4f0e-4a52-9a0f-2d9f1c0b7e11
    """
    with targets.hub_admin(url) as admin:
        from keystore.sync import hub_fleet

        gone = hub_fleet.forget(admin, str(replica_id))
    copies = f" ({gone} incarnations)" if gone > 1 else ""
    show(
        {"replica_id": str(replica_id), "incarnations": gone},
        f"Forgot replica {replica_id}{copies}.",
    )


def human_age(age: float) -> str:
    """Write seconds as people say them, in four characters or less up to a hundred years."""
    for limit, size, unit in _UNITS:
        if age < limit:
            return f"{int(age // size)} {unit}"
    weeks = int(age // 604_800)
    return f"{weeks} w" if weeks < 100 else f"{weeks // 52} y"


def _members(target: str, stale_after: int) -> "list[Member]":
    with targets.hub_admin(target) as admin:
        from keystore.sync import hub_fleet

        return hub_fleet.fleet(admin, stale_after_seconds=stale_after)


def _tick(target: str, stale_after: int) -> None:
    """Show the fleet once; a hub that is away for a while is said, and waited for."""
    try:
        # A connection for each: so a hub that was restarted or has moved is found again.
        members = _members(target, stale_after)
    except TargetUnavailableError as error:
        said = {"code": error.code, "message": error.message, "hint": error.hint}
        text = json.dumps({"error": said}) if wants_json() else f"{error.message} Trying on."
        click.echo(text if wants_json() else f"keystore: {printable(text)}", err=True)
        return
    if wants_json():
        click.echo(json.dumps([asdict(member) for member in members]))
        return
    if sys.stdout.isatty():
        click.clear()
    _show_members(members)


def _show_members(members: "list[Member]") -> None:
    if wants_json():
        show(members, "")
        return
    lines = [
        _Line(
            member.store_id,
            member.role,
            member.program_version or "-",
            None if member.age_seconds is None else human_age(member.age_seconds),
            member.behind,
            human_age(member.silent_seconds),
            member.is_stale,
        )
        for member in members
    ]
    columns = ("store", "role", "version", "as_of", "lag", "seen", "stale")
    show_table(lines, columns, empty="Nobody has called yet; `keystore sync` at an origin does.")


def _sentence(receipt: "Receipt") -> str:
    everybody = len(receipt.have) + len(receipt.lack)
    reason = f" ({receipt.reason})" if receipt.reason else ""
    return printable(
        f"Key {receipt.api_key} was revoked {human_age(receipt.age_seconds)} ago{reason}; "
        f"{len(receipt.have)} of {everybody} have it."
    )


fleet.add_command(simulate)

COMMANDS: tuple[click.Command, ...] = (revoke, revocations, fleet, forget)
