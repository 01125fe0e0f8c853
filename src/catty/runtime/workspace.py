"""The process that saves, restores and shows a machine's files: `python -m catty.runtime.workspace LISTENER CLAIM`.

`init` starts it, with two inherited descriptors. LISTENER is the listening socket of the endpoint `workspace`. From CLAIM it reads
one line of JSON once the machine is claimed, at once if it is (`{"token": HEX, "conversation": [PATH…]}`); its end means that init is
gone, and this process with it. Nothing is kept that init or the server cannot give again, so it may be killed at any time.

CATTY_SALVAGE=1: a helper on the volumes of a machine that has ended. It is never claimed; its socket is the server's alone, nothing
else runs in it, and saving is all that it does.
"""

from __future__ import annotations

from catty.runtime import lean  # before asyncio and picows

# isort: split

import asyncio
import hmac
import json
import logging
import os
import pwd
import socket
import sys
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from picows.common import WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener
from picows.picows import WSAutoPingStrategy, WSProtocol  # type: ignore[attr-defined]  # not in its stubs

from catty.constants import AGENT_HOME, AGENT_UID, TRANSFER_MESSAGE_BYTES, WORKSPACE_DIR
from catty.runtime.workspace_serve import PATHS, serve
from catty.runtime.workspace_trees import Trees
from catty.wire.channel import Channel
from catty.wire.sockets import UnixSocket

__all__ = ["main"]

_HANDSHAKE_S: Final = 10.0
_CLAIM_MAX_BYTES: Final = 1 << 20
_LOG: Final = logging.getLogger("catty.workspace")


@dataclass(slots=True)
class _Process:
    trees: Trees
    salvage: bool
    token: str | None = None  # None: not claimed yet
    conversation: tuple[str, ...] | None = None
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    def protocol(self) -> WSProtocol:
        """One connection. What picows.ws_create_server does, whose module this process does without."""
        logger = logging.getLogger("picows")
        ping = WSAutoPingStrategy.PING_WHEN_IDLE
        limits = (TRANSFER_MESSAGE_BYTES + 1, None, 16 << 10)
        return WSProtocol(
            None, None, False, self.accept, logger, True, _HANDSHAKE_S, False, 0.0, 0.0, ping, False, *limits
        )

    def accept(self, request: WSUpgradeRequest) -> Channel | WSUpgradeResponseWithListener:
        """Start to serve a connection, or answer why not."""
        path = request.path.decode("ascii", "replace")
        status = self._refusal(path, request.headers.get("authorization", ""))
        if status is not None:
            return WSUpgradeResponseWithListener(WSUpgradeResponse.create_error_response(status), None)
        channel = Channel()
        task = asyncio.create_task(serve(path, channel, self.trees, self.conversation))
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)
        return channel

    def _refusal(self, path: str, authorization: str) -> HTTPStatus | None:
        if path not in PATHS or (self.salvage and path != "/save"):
            return HTTPStatus.NOT_FOUND
        if self.salvage:
            return None
        given, expected = authorization.encode(), f"Bearer {self.token}".encode()
        if self.token is None or not hmac.compare_digest(given, expected):
            return HTTPStatus.UNAUTHORIZED
        return None

    async def claims(self, descriptor: int) -> None:
        """Take the claim when it comes; returns when init is gone."""
        reader = asyncio.StreamReader(limit=_CLAIM_MAX_BYTES)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb"))
        while line := await reader.readline():
            claim = json.loads(line)
            self.token, self.conversation = str(claim["token"]), tuple(map(str, claim["conversation"]))


async def _run(listener: int, claim: int) -> None:
    uid = int(os.environ.get("CATTY_AGENT_UID", AGENT_UID))
    trees = Trees(
        workspace=os.environ.get("CATTY_WORKSPACE_DIR", WORKSPACE_DIR),
        home=os.environ.get("CATTY_AGENT_HOME", AGENT_HOME),
        uid=uid,
        gid=_group(uid),
    )
    process = _Process(trees, salvage=os.environ.get("CATTY_SALVAGE") == "1")
    sock = UnixSocket.adopt(socket.socket(fileno=listener))
    server = await asyncio.get_running_loop().create_server(process.protocol, sock=sock)
    lean.settle()
    async with server:
        await process.claims(claim)
    _LOG.info("init is gone")


def _group(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def main() -> None:
    """Run until init is gone."""
    logging.basicConfig(level=logging.INFO, format="workspace: %(message)s", stream=sys.stderr)
    logging.getLogger("picows").setLevel(logging.WARNING)
    listener, claim = map(int, sys.argv[1:3])
    asyncio.run(_run(listener, claim))


if __name__ == "__main__":
    main()
