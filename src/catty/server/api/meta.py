"""`/v1/version`, `/healthz`, `/readyz`."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from catty import __version__
from catty.server.api.base import API
from catty.server.db.access import LOCAL_USER
from catty.wire.frames import SUBPROTOCOL

__all__ = ["routes"]

routes: Final = web.RouteTableDef()


@routes.get("/v1/version")
async def version(_: web.Request) -> web.Response:
    """Version of the server, and the newest terminal protocol that it speaks."""
    return web.json_response({"version": __version__, "protocol": SUBPROTOCOL})


@routes.get("/healthz")
async def healthz(_: web.Request) -> web.Response:
    """The process answers."""
    return web.json_response({"status": "ok"})


@routes.get("/readyz")
async def readyz(request: web.Request) -> web.Response:
    """The database answers too."""
    await request.app[API].access.user(LOCAL_USER)
    return web.json_response({"status": "ok"})
