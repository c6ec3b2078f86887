"""A FastAPI dependency: the decision on the request's key, or the denial that the server gives."""

import json
from collections.abc import Awaitable, Callable
from typing import Annotated

from keystore.edge.decision import Decision
from keystore.errors import UnsupportedTargetError
from keystore.http.answers import Response
from keystore.http.asgi import AsyncChecker, ask
from keystore.http.check import Settings

try:
    from fastapi import HTTPException, Request, Security
    from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
    from fastapi.security.http import HTTPBase
except ImportError as error:
    raise UnsupportedTargetError(
        "require_key needs the extra 'fastapi' (FastAPI is not installed).",
        hint="pip install 'keystore[fastapi]'",
    ) from error

# For OpenAPI alone: the token is found as everywhere else.
_BEARER = HTTPBearer(auto_error=False, description="The API key.")
# (HTTPBasic would answer malformed credentials itself)
_BASIC = HTTPBase(
    scheme="basic",
    scheme_name="HTTPBasic",
    auto_error=False,
    description="The OAuth client's id and secret.",
)
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="The API key.")


def require_key(
    validator: AsyncChecker, *, service: str | None = None, settings: Settings | None = None
) -> Callable[..., Awaitable[Decision]]:
    """Make a dependency that returns the :class:`keystore.Decision` on the request's key or client.

    ``service`` is what the key must have a quota for. If the key may not pass, the dependency
    raises ``HTTPException`` with the status and the headers that ``keystore serve`` answers with.
    It is for HTTP; WebSockets are the middleware's (:mod:`keystore.http.asgi`).
    """
    wanted = settings or Settings()

    async def key(
        request: Request,
        _bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
        _basic: Annotated[HTTPAuthorizationCredentials | None, Security(_BASIC)],
        _header: Annotated[str | None, Security(_HEADER)],
    ) -> Decision:
        found = await ask(validator, request.scope, service, wanted)
        if isinstance(found, Response):
            detail = json.loads(found.body)["detail"]
            raise HTTPException(found.status.value, detail, dict(found.headers))
        return found

    return key
