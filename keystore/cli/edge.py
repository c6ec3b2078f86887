"""Commands of the edge: check, serve."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click

from keystore.cli import offline
from keystore.cli.common import argument_or_stdin, show, show_line, store_options, wants_json
from keystore.edge import Decision, Reason, Validator
from keystore.edge.validator import MAX_COST

_WORDS = {
    Reason.MALFORMED: "that is no token, or one with a typing error (its checksum is wrong)",
    Reason.UNKNOWN: "no key of this store has that token",
    Reason.REVOKED: "the key is revoked",
    Reason.SUSPENDED: "the key's status allows no access",
    Reason.EXPIRED: "the key has expired",
    Reason.NETWORK: "the key may not be used from that address (--ip)",
    Reason.ACCOUNT_INACTIVE: "the key's account is not active",
    Reason.SERVICE: "the key has no quota for that service, or it is not active (--service)",
    Reason.RATE_LIMITED: "the key has used up the rate of its plan for now",
    Reason.STALE: (
        "this replica's data are older than the key's plan allows; run `keystore sync` at the "
        "origin, then here"
    ),
    Reason.OFFLINE: (
        "this replica was without contact for longer than its origin allows; run `keystore sync`"
    ),
    Reason.NOT_SYNCED: "this replica has never synced; run `keystore sync`",
    Reason.UNAVAILABLE: "the store cannot be read; run `keystore doctor`",
}


def _host(text: str) -> str:
    """Refuse an empty address, which would mean every address of the machine."""
    if not text.strip():
        raise click.BadParameter("name an address")
    return text


@click.command(short_help="Say whether a token may pass.")
@click.argument("token")
@click.option(
    "--cost",
    type=click.IntRange(0, MAX_COST),
    default=0,
    show_default=True,
    help="Units of usage to count if it passes; 0 only asks.",
)
@click.option("--service", metavar="NAME", help="The service that it is to be used for.")
@click.option("--ip", metavar="ADDRESS", help="The client's address, for keys bound to networks.")
@store_options
def check(db_path: Path, token: str, cost: int, service: str | None, ip: str | None) -> None:
    """Say whether TOKEN may pass; exits with 0 for yes, 1 for "no" and "not now".

    "-" reads the token from standard input, which keeps it out of the shell's history and the
    process list.

    \b
    Example:
      keystore check --db edge.db - < token.txt
    """
    with Validator(db_path) as validator:
        decision = validator.check(argument_or_stdin(token), service=service, cost=cost, ip=ip)
        now = validator.now()
    limit = decision.freshness.limit if decision.freshness else None
    if limit is not None and limit.is_in_grace:
        offline.tell(db_path, limit, now, as_json=wants_json())
    show(decision.as_dict(), _sentence(decision))
    if not decision.allowed:
        click.get_current_context().exit(1)


@click.command(short_help="Answer checks over HTTP.")
@click.option(
    "--host",
    type=_host,
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="The port; 0 takes a free one.",
)
@click.option(
    "--sync",
    "sync_with",
    metavar="TARGET",
    help="Follow this target meanwhile, as `keystore sync --follow` does.",
)
@click.option(
    "--usage-to", metavar="TARGET", help="Hand usage to this hub meanwhile, and nothing else."
)
@store_options
def serve(db_path: Path, host: str, port: int, sync_with: str | None, usage_to: str | None) -> None:
    """Answer checks over HTTP: 200 yes, 401 or 403 no, 503 not now.

    The token comes as "Authorization: Bearer" or "X-API-Key"; any method on /check or below. A
    replica of signed files whose signatures expire says so on standard error, a day before, when
    they have, and when it begins to deny.

    \b
    Example:
      keystore serve --db edge.db --port 8080 --sync postgresql://hub.example.org/keystore
      curl -i -H "X-API-Key: $TOKEN" http://127.0.0.1:8080/check
    """
    from keystore.http.server import run

    ready = show
    with ExitStack() as ends:
        if sync_with or usage_to:
            from keystore.cli.follow import following

            ready = partial(show_line, as_json=wants_json())  # one line each, as what follows
            ends.enter_context(following(db_path, sync_with, usage_to))
        # Closed first, which flushes its usage; then that is handed up.
        validator = ends.enter_context(Validator(db_path))
        ends.enter_context(offline.watching(validator, db_path))
        run(
            validator,
            host,
            port,
            on_ready=lambda url: ready({"url": url}, f"Serving {db_path} at {url}/check"),
        )


def _sentence(decision: Decision) -> str:
    fresh = decision.freshness
    as_of = f" (as of change {fresh.as_of_change}, {int(fresh.age_seconds)} s old)" if fresh else ""
    if decision.allowed:
        return f"allowed: {decision.account} on plan {decision.plan}{as_of}"
    answer = "not now" if decision.reason.is_not_now else "denied"
    who = f", key {decision.api_key} of {decision.account}" if decision.api_key else ""
    return f"{answer}: {_WORDS[decision.reason]}{who}{as_of}"


COMMANDS: tuple[click.Command, ...] = (check, serve)
