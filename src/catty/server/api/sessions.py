"""`/v1/sessions`: create, list, look, stop, secrets, save, logs."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from catty.constants import DISK_REFUSE_PERCENT
from catty.errors import (
    BadRequest,
    CattyError,
    DiskFull,
    ProtocolTooOld,
    SessionNotFound,
    SessionNotRunning,
    StopDelayed,
)
from catty.server.api.base import API, Api, principal, read_json, session_of
from catty.server.db.sessions import Session
from catty.server.files import disk_percent
from catty.server.sessions.drive import WAITING
from catty.server.sessions.request import check_environment, parse_new_session
from catty.server.sessions.states import State, v1_status
from catty.wire.frames import SUBPROTOCOL

__all__ = ["routes", "to_json"]

routes: Final = web.RouteTableDef()
_POLL_MAX_S: Final = 30.0


@routes.post("/v1/sessions")
async def create(request: web.Request) -> web.Response:
    """A new session; its provisioning goes on by itself."""
    api = request.app[API]
    body = await read_json(request)
    if isinstance(body, dict) and "cmd" in body:
        # Here existing (v1) clients, which send a command line, will get their dialect.
        raise ProtocolTooOld(protocol=SUBPROTOCOL)
    new = parse_new_session(body)
    await asyncio.to_thread(_check_disk, api)
    session, made = await api.context.sessions.create(principal(request).user, new)
    if made:
        api.keeper.take(session, new.env)
    return web.json_response(to_json(session), status=201)


@routes.get("/v1/sessions")
async def list_(request: web.Request) -> web.Response:
    """The owner's sessions, newest first."""
    everything = request.query.get("all", "") not in ("", "0", "false")
    found = await request.app[API].context.sessions.list(principal(request).user, all_=everything)
    return web.json_response([to_json(session) for session in found])


@routes.get("/v1/sessions/{id}")
async def get(request: web.Request) -> web.Response:
    """One session; with `wait`, once its version differs or `timeout` seconds are over."""
    session: Session | None = await session_of(request)
    if "wait" in request.query and session is not None:
        known = int(_number(request, "wait", 0))
        timeout = min(_number(request, "timeout", _POLL_MAX_S), _POLL_MAX_S)
        context = request.app[API].context
        session = await context.sessions.wait(
            session.id,
            lambda now: now.version != known or bool(now.tombstone),
            timeout=timeout,
            poll=context.timing.poll,
        )
    if session is None or session.tombstone:
        raise SessionNotFound(label=request.match_info["id"])
    return web.json_response(to_json(session))


@routes.post("/v1/sessions/{id}/stop")
async def stop(request: web.Request) -> web.Response:
    """Save and end a session, or delete it; the answer comes when that is done. Repeating it is fine."""
    api = request.app[API]
    context = api.context
    delete = request.query.get("delete", "") not in ("", "0", "false")
    if delete and (gone := await _deleted(request)) is not None:
        return web.json_response(to_json(gone))
    session = await session_of(request)
    await context.sessions.request_stop(session.id, delete=delete)
    await api.keeper.retry(session.id)
    api.keeper.look()

    def over(now: Session) -> bool:
        return now.step == WAITING or (bool(now.tombstone) if delete else now.state is State.STOPPED)

    ended = await context.sessions.wait(session.id, over, timeout=context.timing.stop_wait, poll=context.timing.poll)
    if ended is not None and (ended.step == WAITING or not over(ended)):
        raise StopDelayed(label=ended.label, reason=api.keeper.trouble(session.id) or "it takes long")
    return web.json_response(to_json(ended or session))


async def _deleted(request: web.Request) -> Session | None:
    """The session that the path names in full and that was deleted before. Deleting it again must not delete one whose label begins
    like that."""
    sessions, user, name = request.app[API].context.sessions, principal(request).user, request.match_info["id"]
    labels = await sessions.labels(user)
    return None if name in labels or name in labels.values() else await sessions.deleted(user, name)


@routes.post("/v1/sessions/{id}/secrets")
async def secrets(request: web.Request) -> web.Response:
    """Hand secrets on to the machine of a running session; they are kept nowhere else."""
    session = await session_of(request)
    body = await read_json(request)
    env = check_environment(body.get("secrets", {}) if isinstance(body, dict) else None)
    if session.state is not State.RUNNING:
        raise SessionNotRunning(label=session.label, state=session.state)
    context = request.app[API].context
    async with context.machines.brief_control(session.machine_id) as control:
        await control.request("env", timeout=context.timing.request, env=env)
    return web.json_response({})


@routes.post("/v1/sessions/{id}/save")
async def save(request: web.Request) -> web.Response:
    """Save a running session now."""
    session = await session_of(request)
    if session.state is not State.RUNNING:
        raise SessionNotRunning(label=session.label, state=session.state)
    return web.json_response({"number": await request.app[API].keeper.save(session.id)})


@routes.get("/v1/sessions/{id}/logs")
async def logs(request: web.Request) -> web.Response:
    """The last output of the terminal: of the machine while it runs, else what was kept."""
    session = await session_of(request)
    context = request.app[API].context
    output: bytes | None = None
    if session.state is State.RUNNING:
        try:
            output = await context.machines.logs(session.machine_id)
        except CattyError:
            output = None
    if output is None:
        output = await asyncio.to_thread(context.workspaces.read_log, session.id)
    return web.Response(body=output, content_type="application/octet-stream")


def to_json(session: Session) -> dict[str, Any]:
    """A session as clients see it."""
    return {
        "session_id": session.id,
        "id": session.id,
        "label": session.label,
        "state": session.state,
        "reason": session.reason,
        "status": v1_status(session.state, session.reason),
        "error": _shown_error(session.error),
        "agent": session.agent,
        "step": session.step,
        "version": session.version,
        "cpus": session.cpus,
        "memory_mb": session.memory_mb,
        "ttl_sec": session.ttl_sec,
        "created_at": _time(session.created_at),
        "last_activity_at": _time(session.last_activity_at),
        "last_saved_at": _time(session.last_saved_at),
        "stopped_at": _time(session.stopped_at),
        "machine_id": session.machine_id,
    }


def _shown_error(error: dict[str, Any] | None) -> dict[str, Any] | None:
    """Under both names of the code: the one of a session, and the one of an error response."""
    return None if error is None else {"code": error.get("error", "error"), **error}


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _number(request: web.Request, name: str, default: float) -> float:
    try:
        value = float(request.query.get(name, default))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise BadRequest(f"'{name}' must be a number")
    return value


def _check_disk(api: Api) -> None:
    percent = disk_percent(api.data)
    if percent >= DISK_REFUSE_PERCENT:
        raise DiskFull(percent=percent, path=api.data)
