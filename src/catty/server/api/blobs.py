"""`/v1/blobs` and `/v1/packs`: the owner's blobs, moved only where the other side lacks them."""

from __future__ import annotations

import struct
from typing import Final

from aiohttp import web

from catty.constants import MIB, PACK_MAX_BYTES
from catty.errors import BadRequest
from catty.server.api.base import API, principal, read_body
from catty.workspace.model import DIGEST_BYTES
from catty.workspace.store import SnapshotStore

__all__ = ["routes"]

routes: Final = web.RouteTableDef()
_DIGESTS_MAX_BYTES: Final = 32 * MIB  # a million blobs: 1 TiB
_LENGTH: Final = struct.Struct(">I")


@routes.post("/v1/blobs/missing")
async def missing(request: web.Request) -> web.Response:
    """Those of the given digests that the owner's store lacks."""
    store = _store(request)
    lacking = await store.missing(await _digests(request))
    return web.Response(body=b"".join(lacking), content_type="application/octet-stream")


@routes.post("/v1/packs")
async def put_pack(request: web.Request) -> web.Response:
    """Take in a pack; each of its blobs is hashed again."""
    store = _store(request)
    await store.put_pack(await read_body(request, PACK_MAX_BYTES))
    return web.json_response({}, status=201)


@routes.post("/v1/blobs/fetch")
async def fetch(request: web.Request) -> web.StreamResponse:
    """Packs that hold the given blobs, each after its length."""
    packs = aiter(_store(request).fetch(await _digests(request)))
    first = await anext(packs, None)  # before the response's head, so that an error can still be told
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    await response.prepare(request)
    if first is not None:
        await response.write(_LENGTH.pack(len(first)) + first)
        async for pack in packs:
            await response.write(_LENGTH.pack(len(pack)) + pack)
    await response.write_eof()
    return response


def _store(request: web.Request) -> SnapshotStore:
    context, owner = request.app[API].context, principal(request).user
    context.upload_seen(owner)
    return context.workspaces.store(owner)


async def _digests(request: web.Request) -> list[bytes]:
    body = await read_body(request, _DIGESTS_MAX_BYTES)
    if len(body) % DIGEST_BYTES:
        raise BadRequest(f"digests have {DIGEST_BYTES} bytes each")
    return [body[at : at + DIGEST_BYTES] for at in range(0, len(body), DIGEST_BYTES)]
