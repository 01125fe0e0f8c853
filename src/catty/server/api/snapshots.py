"""`/v1/sessions/{id}/snapshots` and `/v1/sessions/{id}/workspace`."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from catty.errors import BadRequest, HeadTaken, SnapshotNotFound, WorkspaceExists
from catty.server.api.base import API, principal, read_body, session_of
from catty.server.sessions.states import State
from catty.workspace.manifest import Manifest

__all__ = ["routes"]

routes: Final = web.RouteTableDef()
_UPLOAD: Final = 1  # the number of the snapshot that an upload is
_MANIFEST_MAX_BYTES: Final = 128 << 20  # about a million files


@routes.get("/v1/sessions/{id}/snapshots")
async def list_(request: web.Request) -> web.Response:
    """The session's snapshots, oldest first."""
    session = await session_of(request)
    heads = await request.app[API].context.workspaces.store(session.owner).heads(session.id)
    return web.json_response(
        [
            {
                "number": head.number,
                "created_at": head.created_at,
                "files": head.files,
                "bytes": head.bytes,
                "complete": head.complete,
                "reason": head.reason,
            }
            for head in heads
        ]
    )


@routes.get("/v1/sessions/{id}/snapshots/{number}")
async def get(request: web.Request) -> web.Response:
    """The manifest of a snapshot, by number or `latest`."""
    session = await session_of(request)
    name = request.match_info["number"]
    if name != "latest" and not (name.isdecimal() and name.isascii() and len(name) < 10):
        raise BadRequest("a snapshot is a number or 'latest'")
    store = request.app[API].context.workspaces.store(session.owner)
    try:
        _, manifest = await store.load(session.id, None if name == "latest" else int(name))
    except SnapshotNotFound as error:
        raise SnapshotNotFound(label=session.label, what=error.fields["what"]) from None
    return web.Response(body=await asyncio.to_thread(manifest.to_bytes), content_type="application/octet-stream")


@routes.post("/v1/sessions/{id}/workspace")
async def upload(request: web.Request) -> web.Response:
    """The workspace of a session made with `workspace: upload`, as a manifest whose blobs were sent before. Once; the same again is fine."""
    session = await session_of(request)
    context = request.app[API].context
    if not session.upload or not (session.uploaded or session.state is State.PROVISIONING):
        raise WorkspaceExists(label=session.label)
    body = await read_body(request, _MANIFEST_MAX_BYTES)
    context.upload_seen(principal(request).user)
    manifest = await asyncio.to_thread(Manifest.from_bytes, body)
    store = context.workspaces.store(session.owner)
    try:
        await store.commit(session.id, manifest, number=_UPLOAD, reason="upload")
    except HeadTaken:
        head, _ = await store.load(session.id, _UPLOAD)
        if head.digest != manifest.digest.hex():
            raise WorkspaceExists(label=session.label) from None
    await context.sessions.mark_uploaded(session.id)
    return web.json_response({"number": _UPLOAD}, status=201)
