"""HTTP to a container engine over its Unix socket: calls with deadlines, errors of ours, streams of JSON lines."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from catty.errors import DiskFull, EngineDown, EngineFailed, EngineSlow, ImageMissing

__all__ = ["CALL_S", "Api", "Reply", "disk_full"]

CALL_S: Final = 60.0  # an engine under load may take seconds for what takes 30 ms at rest
_LINE_MAX_BYTES: Final = 1 << 20  # one event with all labels of a machine; far above any honest one

# How engines and the OCI runtimes below them say it.
_FULL = ("no space left on device", "disk quota exceeded")
_NO_IMAGE = ("no such image", "image not known", "unable to find a name and tag match", "image does not exist")


@dataclass(frozen=True, slots=True)
class Reply:
    """An engine's answer: HTTP status and the decoded JSON body (None if there is none)."""

    status: int
    body: Any

    @property
    def message(self) -> str:
        """What the engine says went wrong, on one line."""
        text = self.body.get("message") or self.body.get("cause") if isinstance(self.body, dict) else self.body
        return " ".join(str(text or f"HTTP status {self.status}").split())


class Api:
    """A client of the engine that listens on `socket`; `prefix` starts each path. `storage` is named in DiskFull."""

    def __init__(self, socket: Path, prefix: str, *, call_s: float = CALL_S, storage: Path = Path("/")) -> None:
        self.socket = socket
        self.storage = storage
        self._prefix = prefix
        self._call_s = call_s
        self._session: aiohttp.ClientSession | None = None

    async def call(
        self,
        method: str,
        path: str,
        *,
        action: str,
        expect: Collection[int] = (200, 201, 204),
        params: Mapping[str, str] | None = None,
        body: Any = None,
        data: bytes | None = None,
        image: str = "",
        extra_s: float = 0,
    ) -> Reply:
        """One call; `action` says in an error what it was for, `image` which image it needs. A status outside `expect` is raised
        as an error of ours.

        Raises EngineDown (no answer), EngineSlow (none within the deadline plus `extra_s`), DiskFull, ImageMissing, EngineFailed.
        """
        seconds = self._call_s + extra_s
        try:
            async with (
                asyncio.timeout(seconds),
                self._open().request(method, self._prefix + path, params=params, json=body, data=data) as response,
            ):
                reply = Reply(response.status, _decode(await response.read()))
        except TimeoutError:
            raise EngineSlow(seconds=seconds, action=action) from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineDown(reason=str(error) or type(error).__name__) from None
        if reply.status not in expect:
            raise self._error(reply, action, image)
        return reply

    async def lines(self, path: str, *, action: str, params: Mapping[str, str]) -> AsyncIterator[Any]:
        """The JSON objects of an endless answer, one a line, until the engine ends it. Raises EngineDown."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._call_s)
        try:
            async with self._open().get(self._prefix + path, params=params, timeout=timeout) as response:
                if response.status != 200:
                    raise self._error(Reply(response.status, _decode(await response.read())), action, "")
                async for line in response.content:
                    if line.strip():
                        yield json.loads(line)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise EngineDown(reason=str(error) or type(error).__name__) from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                "http://engine",
                connector=aiohttp.UnixConnector(str(self.socket)),
                timeout=aiohttp.ClientTimeout(total=None),
                read_bufsize=_LINE_MAX_BYTES,
            )
        return self._session

    def _error(self, reply: Reply, action: str, image: str) -> Exception:
        text = reply.message.lower()
        if any(sign in text for sign in _FULL):
            return disk_full(self.storage)
        if image and any(sign in text for sign in _NO_IMAGE):
            return ImageMissing(image=image)
        return EngineFailed(action=action, reason=reply.message)


def disk_full(path: Path) -> DiskFull:
    """The error that says how full the file system of `path` is."""
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return DiskFull(percent=0, path=path)
    return DiskFull(percent=100 * usage.used / max(usage.used + usage.free, 1), path=path)


def _decode(text: bytes) -> Any:
    try:
        return json.loads(text) if text.strip() else None
    except ValueError:
        return text.decode(errors="replace")
