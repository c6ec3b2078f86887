"""The URLs of targets: one spelling for each, and what may be shown of them."""

import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from keystore.errors import InvalidInputError

_FILE_SCHEMES = {"file", "http", "https", "s3"}
_PLAIN_PARAMETERS = {
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslcrl",
    "sslnegotiation",
    "channel_binding",
    "connect_timeout",
    "application_name",
    "options",
    "target_session_attrs",
    "service",
    "load_balance_hosts",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "gssencmode",
    "krbsrvname",
    "passfile",
    "require_auth",
}
_CONNINFO = re.compile(r"\b(password|host|dbname|user)\s*=")
_SCHEME = re.compile(r"(postgres(ql)?|https?|s3|file):", re.IGNORECASE)
_HINT = "Use postgresql://…, file:///…, s3://…, https://… or a folder."


def normalized(target: str) -> str:
    """Return the URL of a target; a plain path becomes a ``file://`` URL.

    Raises:
        InvalidInputError: no URL and no path. The message never repeats what was given, because
            a URL that cannot be read may hold a password anywhere.
    """
    target = target.strip()
    if not target:
        raise InvalidInputError("the target is empty.", hint=_HINT)
    if "://" not in target:
        if _CONNINFO.search(target):
            raise InvalidInputError("a connection string is no target.", hint=_HINT)
        if _SCHEME.match(target):
            raise InvalidInputError("the target's URL lacks the // after its scheme.", hint=_HINT)
        return Path(target).absolute().as_uri()
    scheme, _, rest = target.partition("://")
    url = f"{scheme.lower()}://{rest}"
    try:
        parts = urlsplit(url)
        has_secret = bool(parts.password) and parts.scheme in _FILE_SCHEMES
        is_odd = "@" in parts.path + parts.fragment or parts.netloc.count("@") > 1
    except ValueError:
        raise InvalidInputError("the target's URL cannot be read.", hint=_HINT) from None
    if is_odd or (parts.fragment and scheme != "file"):
        raise InvalidInputError(
            "the target's URL is ambiguous.",
            hint="Write @, / and # in a password as %40, %2F, %23.",
        )
    if parts.scheme == "file" and (
        parts.netloc not in {"", "localhost"}
        or parts.query
        or parts.fragment
        or "%00" in parts.path
    ):
        raise InvalidInputError(
            "a file:// URL names a folder of this machine, and nothing else.",
            hint="Write file:///… with three slashes and the whole path, ? and # as %3F and %23; "
            "or the plain path.",
        )
    if has_secret:
        raise InvalidInputError(
            "a repository's URL takes no password.", hint="What it holds is signed, not secret."
        )
    return url.rstrip("/") if parts.scheme in _FILE_SCHEMES else url


def redacted(url: str) -> str:
    """Return a URL of :func:`normalized` without secrets: what may be stored, shown and logged.

    Of the parameters only those are kept that are known to hold none; the rest is kept to the
    letter, because libpq does not read every encoding of the same text alike.
    """
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    query = [pair for pair in parts.query.split("&") if pair.partition("=")[0] in _PLAIN_PARAMETERS]
    netloc = f"{user.partition(':')[0]}{at}{host}"
    return urlunsplit(parts._replace(netloc=netloc, query="&".join(query)))
