"""REST: a file per resource (docs/design.md, "REST"). Everything under `/v1` needs a token; health checks do not."""

from __future__ import annotations

from aiohttp import web

from catty.server.api import blobs, meta, sessions, snapshots
from catty.server.api.base import API, Api
from catty.server.api.middleware import guard

__all__ = ["Api", "make_application"]


def make_application(api: Api) -> web.Application:
    """The application, for a runner."""
    application = web.Application(middlewares=[guard])
    application[API] = api
    for routes in (meta.routes, sessions.routes, snapshots.routes, blobs.routes):
        application.add_routes(routes)
    return application
