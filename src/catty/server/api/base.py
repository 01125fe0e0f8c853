"""What handlers share: the server's parts, whose request it is, which session is meant, and bodies of bounded size and time."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import ClientPayloadError, web

from catty.constants import KIB
from catty.errors import BadRequest, RequestTooLarge, RequestTooSlow, SessionNotFound
from catty.server.access import Door
from catty.server.db.access import AccessStore, Principal
from catty.server.db.sessions import Session
from catty.server.keeper import Keeper
from catty.server.sessions.context import Context
from catty.server.sessions.find import resolve

__all__ = ["API", "Api", "admit", "principal", "read_body", "read_json", "session_of"]

_JSON_MAX_BYTES: Final = 2 << 20  # an environment of the largest allowed size, escaped
_SILENCE_S: Final = 30.0  # without a byte of an expected body
_SLOWEST_BYTES_S: Final = 4 * KIB


@dataclass(frozen=True, slots=True)
class Api:
    """The server's parts, for handlers. `unix` and `tcp` are the doors of its two kinds of listener."""

    data: Path
    context: Context
    keeper: Keeper
    access: AccessStore
    unix: Door
    tcp: Door


API: Final = web.AppKey("api", Api)
_PRINCIPAL: Final = web.RequestKey("principal", Principal)


def admit(request: web.Request, who: Principal) -> None:
    """Note on `request` that it is from `who`."""
    request[_PRINCIPAL] = who


def principal(request: web.Request) -> Principal:
    """Who an admitted request is from."""
    return request[_PRINCIPAL]


async def session_of(request: web.Request) -> Session:
    """The session that the path means, of the one who asks. Raises SessionNotFound, AmbiguousLabel."""
    sessions = request.app[API].context.sessions
    reference = request.match_info["id"]
    session = await sessions.get(resolve(reference, await sessions.labels(principal(request).user)))
    if session is None:
        raise SessionNotFound(label=reference)
    return session


async def read_body(request: web.Request, limit: int) -> bytes:
    """The body, at most `limit` bytes. Raises RequestTooLarge, RequestTooSlow, BadRequest."""
    body = bytearray()
    try:
        async with asyncio.timeout(_SILENCE_S + limit / _SLOWEST_BYTES_S):
            while True:
                async with asyncio.timeout(_SILENCE_S):
                    part = await request.content.readany()
                if not part:
                    return bytes(body)
                body += part
                if len(body) > limit:
                    raise RequestTooLarge(limit=f"{limit} bytes")
    except TimeoutError:
        raise RequestTooSlow from None
    except ClientPayloadError as error:
        raise BadRequest(f"broken body: {error}") from None


async def read_json(request: web.Request) -> Any:
    """The JSON in the body (an empty body: an empty object). Raises as `read_body` does."""
    body = await read_body(request, _JSON_MAX_BYTES)
    try:
        return json.loads(body) if body else {}
    except (ValueError, RecursionError):
        raise BadRequest("the body is no JSON") from None
