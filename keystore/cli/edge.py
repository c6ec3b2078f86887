"""Commands of the edge: check, serve."""

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from ipaddress import IPv4Network, IPv6Network, ip_network
from math import inf, nan
from pathlib import Path

import click

from keystore import clock
from keystore.cli import offline
from keystore.cli.common import argument_or_stdin, plural, show, store_options, wants_json
from keystore.edge import Decision, Reason, Validator
from keystore.edge.decision import QuotaLeft
from keystore.edge.slow import FLUSH_SECONDS, MAX_COST, MAX_PENDING

MAX_WORKERS = 256
SHORTEST_FLUSH_SECONDS = 0.01
_CLIENT_WORDS = {
    Reason.MALFORMED: "the id or the secret is empty or too long",
    Reason.UNKNOWN: "no client of this store has that id and secret",
    Reason.SUSPENDED: "the client is not active",
    Reason.ACCOUNT_INACTIVE: "the client's account is not active",
    Reason.SERVICE: "an OAuth client has no quotas, so it may be used for no service",
    Reason.RATE_LIMITED: "the client has used up the rate of its plan for now",
}

_WORDS = {
    Reason.MALFORMED: "that is no token, or one with a typing error (its checksum is wrong)",
    Reason.UNKNOWN: "no key of this store has that token",
    Reason.REVOKED: "the key is revoked",
    Reason.SUSPENDED: "the key's status allows no access",
    Reason.EXPIRED: "the key has expired",
    Reason.NETWORK: "the key may not be used from that address (--ip)",
    Reason.ACCOUNT_INACTIVE: "the key's account is not active",
    Reason.SERVICE: "the key has no quota for that service, or it is not active (--service)",
    Reason.QUOTA_EXCEEDED: "the key has used up all of its quotas",
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


def _socket(text: str) -> Path:
    """Refuse an empty path, such as of a variable that is not set."""
    if not text:
        raise click.BadParameter("name a path")
    return Path(text)


def _parameter(text: str) -> str:
    """Refuse a name that no query parameter has as it is written."""
    if not re.fullmatch(r"[A-Za-z0-9._~-]+", text):
        raise click.BadParameter(f"{text!r} is not like api_key")
    return text


def _flush_seconds(text: str) -> float:
    """Read a number of seconds. (click's range lets "nan" through, which would never be over.)"""
    try:
        seconds = float(text)
    except ValueError:
        seconds = nan
    if not SHORTEST_FLUSH_SECONDS <= seconds < inf:
        raise click.BadParameter(f"{text!r} is no number of seconds from 0.01 on")
    return seconds


def _mode(text: str) -> int:
    """Read permissions, such as 660."""
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise click.BadParameter(f"{text!r} is not like 660")
    return mode


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        meant = f"; {ip_network(text, strict=False)} is"
    except ValueError:
        meant = ""
    raise click.BadParameter(f"{text!r} is no network like 10.0.0.0/8{meant}")


@click.command(short_help="Say whether a token may pass.")
@click.argument("token")
@click.option(
    "--cost",
    type=click.IntRange(0, MAX_COST),
    default=0,
    show_default=True,
    help="Units of usage to count if it passes; 0 only asks.",
)
@click.option(
    "--client",
    "client_id",
    metavar="CLIENT_ID",
    help="Ask for this OAuth client; TOKEN is its secret.",
)
@click.option("--service", metavar="NAME", help="The service that it is to be used for.")
@click.option("--ip", metavar="ADDRESS", help="The client's address, for keys bound to networks.")
@store_options
def check(
    db_path: Path,
    token: str,
    cost: int,
    client_id: str | None,
    service: str | None,
    ip: str | None,
) -> None:
    """Say whether TOKEN may pass; exits with 0 for yes, 1 for "no" and "not now".

    "-" reads the token from standard input, which keeps it out of the shell's history and the
    process list.

    \b
    Example:
      keystore check --db edge.db - < token.txt
      keystore check --db edge.db --client billing - < secret.txt
    """
    with Validator(db_path) as validator:
        sent = argument_or_stdin(token)
        if client_id is None:
            decision = validator.check(sent, service=service, cost=cost, ip=ip)
        else:
            decision = validator.check_client(client_id, sent, service=service, cost=cost, ip=ip)
        now = validator.now()
    limit = decision.freshness.limit if decision.freshness else None
    if limit is not None and limit.is_in_grace:
        offline.tell(db_path, limit, now, as_json=wants_json())
    words = _WORDS if client_id is None else _WORDS | _CLIENT_WORDS
    show(decision.as_dict(), _sentence(decision, words))
    if not decision.allowed:
        click.get_current_context().exit(1)


@click.command(short_help="Answer checks over HTTP.")
@click.option(
    "--host",
    type=_host,
    metavar="ADDRESS",
    help="The address to listen on.  [default: 127.0.0.1]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="The port; 0 takes a free one.  [default: 8080]",
)
@click.option(
    "--public", is_flag=True, help="Listen on an address that other machines can reach, too."
)
@click.option(
    "--unix",
    "unix_path",
    type=_socket,
    metavar="PATH",
    help="Listen on a Unix socket instead.",
)
@click.option(
    "--unix-mode",
    type=_mode,
    metavar="OCTAL",
    help="The socket's permissions.  [default: 660]",
)
@click.option(
    "--trust-proxy",
    "trusted",
    type=_network,
    metavar="CIDR",
    multiple=True,
    help="Believe X-Forwarded-For from these peers, too. Repeatable.",
)
@click.option(
    "--query-token",
    type=_parameter,
    metavar="NAME",
    help="A query parameter that may hold the token.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, MAX_WORKERS),
    default=1,
    show_default=True,
    help="Processes that answer on the one port.",
)
@click.option(
    "--max-pending",
    type=click.IntRange(1),
    default=MAX_PENDING,
    show_default=True,
    help="Uses that one worker's crash may lose; 1 writes each before it is answered.",
)
@click.option(
    "--flush-seconds",
    type=_flush_seconds,
    metavar="SECONDS",
    default=f"{FLUSH_SECONDS:g}",
    show_default=True,
    help="How long a use may wait for the disk.",
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
def serve(
    db_path: Path,
    host: str | None,
    port: int | None,
    public: bool,
    unix_path: Path | None,
    unix_mode: int | None,
    trusted: tuple[IPv4Network | IPv6Network, ...],
    query_token: str | None,
    workers: int,
    max_pending: int,
    flush_seconds: float,
    sync_with: str | None,
    usage_to: str | None,
) -> None:
    """Answer checks over HTTP: 200 yes, 401, 403 or 429 no, 503 not now.

    The token comes as "Authorization: Bearer" or "X-API-Key"; any method on /check or below. Also
    /healthz, /readyz and /metrics. A replica of signed files whose signatures expire says so on
    standard error, a day before, when they have, and when it begins to deny.

    \b
    Example:
      keystore serve --db edge.db --port 8080 --sync postgresql://hub.example.org/keystore
      keystore serve --db edge.db --unix /run/keystore.sock --workers 4
      curl -i -H "X-API-Key: $TOKEN" http://127.0.0.1:8080/check
    """
    from keystore.http import voice
    from keystore.http.check import LOOPBACK, Settings
    from keystore.http.server import run
    from keystore.http.sockets import UNIX_MODE, Place

    if unix_path is not None and (host is not None or port is not None or public):
        raise click.UsageError("--unix takes the place of --host, --port and --public.")
    if unix_mode is not None and unix_path is None:
        raise click.UsageError("--unix-mode is of a socket: it needs --unix.")
    place = Place(
        host or "127.0.0.1",
        8080 if port is None else port,
        unix_path,
        UNIX_MODE if unix_mode is None else unix_mode,
        public,
    )
    settings = Settings(trusted=LOOPBACK + trusted, query_token=query_token)
    as_json, is_followed = wants_json(), bool(sync_with or usage_to)

    def ready(url: str) -> None:
        said = f"Serving {db_path} at {url}{'' if unix_path else '/check'}"
        # One line each, as what follows says.
        line = json.dumps({"url": url}, indent=None if is_followed else 2) if as_json else said
        voice.tell(line, voice.OUT)

    with ExitStack() as ends:
        if is_followed:
            from keystore.cli.follow import following

            ends.enter_context(following(db_path, sync_with, usage_to))
        # Closed first, which flushes its usage; then that is handed up.
        validator = ends.enter_context(
            Validator(db_path, max_pending=max_pending, max_seconds=flush_seconds)
        )
        ends.enter_context(offline.watching(validator, db_path))
        if workers == 1:
            run(
                validator,
                db_path,
                place,
                on_ready=ready,
                settings=settings,
                flush_seconds=flush_seconds,
            )
        else:
            from keystore.http.workers import run_workers

            run_workers(
                db_path,
                place,
                workers,
                on_ready=ready,
                settings=settings,
                max_pending=max_pending,
                flush_seconds=flush_seconds,
            )


def _sentence(decision: Decision, words: Mapping[Reason, str]) -> str:
    fresh = decision.freshness
    as_of = f" (as of change {fresh.as_of_change}, {int(fresh.age_seconds)} s old)" if fresh else ""
    if decision.allowed:
        return f"allowed: {decision.account} on plan {decision.plan}{as_of}"
    answer = "not now" if decision.reason.is_not_now else "denied"
    who = f", key {decision.api_key} of {decision.account}" if decision.api_key else ""
    if decision.client_id:
        who = f", client {decision.client_id} of {decision.account}"
    why = words[decision.reason]
    if decision.reason is Reason.QUOTA_EXCEEDED and decision.quota:
        why = _left(decision.quota)
    return f"{answer}: {why}{who}{as_of}"


def _left(quota: QuotaLeft) -> str:
    renews_at = None if quota.renews_at is None else clock.utc_text(quota.renews_at)
    then = f"; it is renewed at {renews_at} UTC" if renews_at else ""
    return f"the key's quota of {quota.service} has {plural(quota.remaining, 'unit')} left{then}"


COMMANDS: tuple[click.Command, ...] = (check, serve)
