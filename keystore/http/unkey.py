"""Answers ``POST /v2/keys.verifyKey`` as Unkey's API does, so that its clients work unchanged.

A permission is a service that the key may be used for. Always 200 for a decision; 400 for a body
that cannot be answered, and 503 for "not now", which the clients try again. What would restrict a
key there and cannot here (rates and key spaces of the request's own) is refused, not overlooked.
"""

import json
import re
import secrets
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from keystore.edge.decision import Decision, RateLimit, Reason
from keystore.edge.slow import MAX_COST
from keystore.http.answers import RETRY_AFTER_SECONDS, Response
from keystore.http.check import Checker

_CODES = {
    Reason.OK: "VALID",
    Reason.MALFORMED: "NOT_FOUND",
    Reason.UNKNOWN: "NOT_FOUND",
    Reason.REVOKED: "DISABLED",
    Reason.SUSPENDED: "DISABLED",
    Reason.EXPIRED: "EXPIRED",
    Reason.ACCOUNT_INACTIVE: "FORBIDDEN",
    Reason.NETWORK: "FORBIDDEN",
    Reason.SERVICE: "INSUFFICIENT_PERMISSIONS",
    Reason.QUOTA_EXCEEDED: "USAGE_EXCEEDED",
    Reason.RATE_LIMITED: "RATE_LIMITED",
}
_ERRORS = "https://unkey.com/docs/errors/unkey/application/"
_FIXES = {
    "body.ratelimits": "Leave it out; the plan has a rate.",
    "body.keyspaces": "Leave it out; a store is one key space.",
}
_RANKS = {"OR": 1, "AND": 2}
_WORD = re.compile(r"[()]|[^\s()]+")


def _whole(value: object) -> object:
    """Return 2 for 2.0: JSON has one kind of numbers, and some clients write all with a point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Credits(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    cost: Annotated[int, BeforeValidator(_whole), Field(ge=0, le=MAX_COST)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    key: str = Field(min_length=1)
    permissions: str | None = Field(None, min_length=1, max_length=1000)
    credits: _Credits | None = None
    tags: list[str] | None = None  # for Unkey's analytics
    migrationId: str | None = None  # noqa: N815 - for keys that Unkey does not have yet
    ratelimits: Annotated[list[object], Field(max_length=0)] | None = None
    keyspaces: Annotated[list[object], Field(max_length=0)] | None = None


class _SyntaxError(ValueError):
    """A permission query that is none."""


def verify(checker: Checker, body: bytes, ip: str | None) -> Response:
    """Answer a request with that body."""
    try:
        asked = _Body.model_validate_json(body)
        needed = None if asked.permissions is None else _parsed(asked.permissions)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        return _bad([(".".join(map(str, ("body", *one["loc"]))), one["msg"]) for one in found])
    except _SyntaxError as error:
        return _bad([("body.permissions", str(error))])
    cost = 1 if asked.credits is None else asked.credits.cost
    decision, held = _decided(checker, asked.key, needed, cost, ip)
    if decision.reason.is_not_now:
        return _error(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "service_unavailable",
            {"detail": f"The key cannot be verified now: {decision.reason.value}."},
            ("Retry-After", str(RETRY_AFTER_SECONDS)),
        )
    return _json(HTTPStatus.OK, {"data": _data(decision, None if needed is None else held)})


def _decided(
    checker: Checker, key: str, needed: list[str] | None, cost: int, ip: str | None
) -> tuple[Decision, list[str]]:
    """Decide, and say which of the services that are named in ``needed`` the key has."""
    if needed is None or len(needed) == 1:
        name = needed[0] if needed else None
        decision = checker.check(key, service=name, cost=cost, ip=ip)
        return decision, [name] if name is not None and decision.allowed else []
    held: list[str] = []
    for name in dict.fromkeys(word for word in needed if word not in _RANKS):
        decision = checker.check(key, service=name, cost=0, ip=ip)
        if decision.allowed or decision.reason is Reason.RATE_LIMITED:
            held.append(name)
        elif decision.reason is Reason.SERVICE or decision.quota is not None:
            denied = decision
        else:
            return decision, held  # whatever it is for
    if not _is_met(needed, held):
        return denied, held
    return checker.check(key, service=held[0], cost=cost, ip=ip), held


def _parsed(query: str) -> list[str]:
    """Bring names, AND, OR and parentheses into postfix order (Dijkstra's shunting yard)."""
    output: list[str] = []
    waiting: list[str] = []
    wants_name = True
    for word in _WORD.findall(query):
        is_operand = word == "(" or (word != ")" and word.upper() not in _RANKS)
        if is_operand != wants_name:
            msg = f"{word!r} is not expected there; write names, AND, OR and parentheses"
            raise _SyntaxError(msg)
        if word == "(":
            waiting.append(word)
        elif word == ")":
            while waiting and waiting[-1] != "(":
                output.append(waiting.pop())
            if not waiting:
                msg = "a parenthesis is closed that is not open"
                raise _SyntaxError(msg)
            waiting.pop()
        elif is_operand:
            output.append(word)
            wants_name = False
        else:
            rank = _RANKS[word.upper()]
            while waiting and _RANKS.get(waiting[-1], 0) >= rank:
                output.append(waiting.pop())
            waiting.append(word.upper())
            wants_name = True
    if wants_name or "(" in waiting:
        msg = "it ends too early"
        raise _SyntaxError(msg)
    return output + waiting[::-1]


def _is_met(needed: list[str], held: list[str]) -> bool:
    values: list[bool] = []
    for word in needed:
        if word in _RANKS:
            right, left = values.pop(), values.pop()
            values.append(left and right if word == "AND" else left or right)
        else:
            values.append(word in held)
    return values.pop()


def _data(decision: Decision, permissions: list[str] | None) -> dict[str, Any]:
    code = _CODES[decision.reason]
    data: dict[str, Any] = {"valid": decision.allowed, "code": code}
    if decision.api_key is None:
        return data
    data |= {
        "keyId": decision.api_key,
        "name": decision.label,
        "meta": _metadata(decision.metadata),
        "expires": decision.expires_at and int(decision.expires_at * 1000),
        "enabled": code != "DISABLED",
        "permissions": permissions,
        "credits": None if decision.quota is None else decision.quota.remaining,
        "ratelimits": decision.rate and [_rate(decision.rate)],
    }
    if decision.account is not None:
        data["identity"] = {
            "id": str(decision.account_id),
            "externalId": decision.account,
            "meta": {"plan": decision.plan},
        }
    return {name: value for name, value in data.items() if value is not None}


def _metadata(text: str | None) -> dict[str, Any] | None:
    """Return the key's metadata if they are an object: the clients take nothing else.

    No JSON has NaN or Infinity, which any client of SQLite may have stored: the answer to a key
    that may pass could not be read.
    """
    try:
        found = json.loads(text) if text else None
        json.dumps(found, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _rate(left: RateLimit) -> dict[str, Any]:
    limit, window, burst = left.rate
    return {
        "id": "burst",
        "name": "burst",
        "limit": burst,
        "duration": 1000 * window * burst // limit,
        "reset": int(1000 * (time.time() + left.reset_seconds)),
        "remaining": left.remaining,
        "exceeded": left.retry_after > 0,
        "autoApply": True,
    }


def _bad(errors: list[tuple[str, str]]) -> Response:
    found = [{"location": location, "message": message} for location, message in errors]
    for one in found:
        if one["location"] in _FIXES:
            one["fix"] = _FIXES[one["location"]]
    more = {"detail": "The body is not a request to verify a key.", "errors": found}
    return _error(HTTPStatus.BAD_REQUEST, "invalid_input", more)


def _error(
    status: HTTPStatus, kind: str, more: Mapping[str, Any], *headers: tuple[str, str]
) -> Response:
    error = {"title": status.phrase, "status": status.value, "type": _ERRORS + kind, **more}
    return _json(status, {"error": error}, *headers)


def _json(status: HTTPStatus, body: Mapping[str, Any], *headers: tuple[str, str]) -> Response:
    body = {"meta": {"requestId": f"req_{secrets.token_hex(12)}"}, **body}
    fixed = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))
    return Response(status, (*fixed, *headers), json.dumps(body).encode() + b"\n")
