"""The check of the sidecar in FastAPI, for uvicorn: the same answers, by another server."""

import os

from fastapi import FastAPI, Request, Response

from keystore.edge import Validator
from keystore.http import check


def create() -> FastAPI:
    """Make the application, for the store that the environment names."""
    app, validator = FastAPI(), Validator(os.environ["KEYSTORE_DB"])

    @app.get("/check")
    async def answer(request: Request) -> Response:
        peer = request.client.host if request.client else None
        found = check.respond(validator, check.Request("GET", "/check", request.headers, peer))
        return Response(found.body, found.status, dict(found.headers))

    return app
