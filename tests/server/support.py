"""Shared by the server's tests: a server in this process or one of its own, and a client that speaks REST."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from catty.engines.base import Engine
from catty.server.main import Server, serve
from catty.server.sessions.timing import Timing
from catty.server.settings import Settings

# Nothing in a test waits longer than it must.
QUICK = Timing(
    first_save=0.2,
    save_every=0.3,
    status_every=0.1,
    activity_write=0.1,
    log_copy=0.1,
    scan=0.1,
    renew=1.0,
    sweep=0.2,
    boot=10.0,
    redial=0.02,
    redial_max=0.2,
    request=5.0,
    upload_wait=5.0,
    last_save=30.0,
    grace=2.0,
    retry=0.2,
    retry_max=1.0,
    stop_wait=30.0,
    poll=0.2,
)


def everything_in(directory: Path) -> bytes:
    """The content of all files below `directory`."""
    return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


async def eventually(look: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
    """The first true value that `look` gives."""
    async with asyncio.timeout(seconds):
        while True:
            if value := await look():
                return value
            await asyncio.sleep(0.02)


@dataclass
class Rest:
    """A REST client over a server's Unix socket, as one user."""

    http: aiohttp.ClientSession
    token: str

    async def __call__(self, method: str, path: str, body: Any = None, expect: int = 200, **headers: str) -> Any:
        """The JSON (or bytes) of the answer, whose status must be `expect`."""
        data = io.BytesIO(body) if isinstance(body, bytes) else None if body is None else json.dumps(body)
        headers = {"Authorization": f"Bearer {self.token}"} | headers
        async with self.http.request(method, f"http://catty{path}", data=data, headers=headers) as answer:
            content = await answer.read()
            assert answer.status == expect, (method, path, answer.status, content)
            return json.loads(content) if answer.content_type == "application/json" else content

    async def until(self, session: str, condition: Callable[[dict[str, Any]], bool], seconds: float = 30) -> Any:
        """The session once `condition` holds, by long polls."""
        async with asyncio.timeout(seconds):
            found = await self("GET", f"/v1/sessions/{session}")
            while not condition(found):
                found = await self("GET", f"/v1/sessions/{session}?wait={found['version']}&timeout=2")
            return found

    async def running(self, **request: Any) -> Any:
        """A new session that runs."""
        made = await self("POST", "/v1/sessions", {"agent": "shell", **request}, expect=201)
        session = await self.until(made["id"], lambda now: now["state"] != "provisioning")
        assert session["state"] == "running", session
        return session


@contextlib.asynccontextmanager
async def rest(socket: Path, token: str) -> AsyncIterator[Rest]:
    """A client of the server that listens on `socket`."""
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as http:
        yield Rest(http, token)
    await asyncio.sleep(0.01)  # aiohttp closes its connections, but does not wait for that


@contextlib.asynccontextmanager
async def a_server(
    data: Path, engine: Callable[[Path, str], Engine], *, timing: Timing = QUICK, **settings: Any
) -> AsyncIterator[tuple[Server, Rest]]:
    """A server in this process, and its owner's client."""
    made = Settings(data, **({"listen": "127.0.0.1:0", "no_spare": True} | settings))
    async with serve(made, open_engine=engine, timing=timing) as server, rest(made.socket_path, server.token) as client:
        yield server, client
