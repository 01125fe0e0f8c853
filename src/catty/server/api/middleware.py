"""Around every request: who may pass, errors as JSON, a line in the log without query strings."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web
from sqlalchemy.exc import DBAPIError

from catty.errors import BadRequest, CattyError, DiskFull, NotFound, NotLoggedIn, StoreFailed
from catty.server.access import bearer
from catty.server.api.base import API, admit
from catty.server.files import disk_percent

__all__ = ["guard"]

_LOG: Final = logging.getLogger(__name__)
_OPEN: Final = frozenset(("/healthz", "/readyz"))
_FULL: Final = ("disk is full", "disk full", "no space left")  # as SQLite, PostgreSQL and the kernel say it
_NO_STORE: Final = "no-store"


@web.middleware
async def guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Host and Origin, then the token, then the handler; whatever goes wrong becomes a JSON error."""
    started = time.monotonic()
    try:
        await _admit(request)
        response = await handler(request)
        response.headers.setdefault(hdrs.CACHE_CONTROL, _NO_STORE)
    except CattyError as error:
        response = _error(request, error)
    except web.HTTPException as error:
        known = (
            NotFound(f"no {request.method} {request.path[:80]}")
            if error.status in (404, 405)
            else BadRequest(error.reason)
        )
        response = _error(request, known, error.status)
    except DBAPIError as error:
        _LOG.exception("database failed", extra={"method": request.method, "path": request.path})
        response = _error(request, _of_database(error, request.app[API].data))
    except Exception as error:  # the user gets a code, the log the trace
        _LOG.exception("request failed", extra={"method": request.method, "path": request.path})
        response = _error(request, CattyError(f"the server failed: {type(error).__name__}"))
    facts = {"method": request.method, "path": request.path, "status": response.status}
    _LOG.info("request", extra=facts | {"ms": round((time.monotonic() - started) * 1000, 1)})
    return response


async def _admit(request: web.Request) -> None:
    api = request.app[API]
    name = request.transport.get_extra_info("sockname") if request.transport is not None else ("",)
    door = api.tcp if isinstance(name, tuple) else api.unix
    for header in (hdrs.HOST, hdrs.ORIGIN, hdrs.AUTHORIZATION):
        if len(request.headers.getall(header, ())) > 1:
            raise BadRequest(f"header '{header}' twice")
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise BadRequest("bodies are taken as they are, without Content-Encoding")
    door.check(request.headers.get(hdrs.HOST), request.headers.get(hdrs.ORIGIN))
    if request.path in _OPEN:
        return
    principal = await api.access.authenticate(bearer(request.headers.get(hdrs.AUTHORIZATION)))
    if principal is None:
        raise NotLoggedIn(server="this server")
    admit(request, principal)


def _of_database(error: DBAPIError, data: Path) -> CattyError:
    """What its user can do something about."""
    if any(sign in str(error.orig).lower() for sign in _FULL):
        return DiskFull(percent=disk_percent(data), path=data)
    return StoreFailed(reason=f"database: {error.orig}", hint="Try again; `catty server logs` has details.")


def _error(request: web.Request, error: CattyError, status: int | None = None) -> web.Response:
    response = web.json_response(error.to_json(), status=status or error.http_status)
    response.headers[hdrs.CACHE_CONTROL] = _NO_STORE
    if request.can_read_body and not request.content.is_eof():
        response.force_close()  # rather than read a body that nobody wants
    return response
