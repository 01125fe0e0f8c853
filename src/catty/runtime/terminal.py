"""The process `terminal` of a machine: `/control`, `/attach`, `/exec`, `/logs`. Started, and started again, by `init`.

python -m catty.runtime.terminal LISTENER CHANNEL      numbers of the two descriptors that init left open
"""

from __future__ import annotations

from catty.runtime import lean  # isort: skip  # before asyncio and picows

import asyncio
import os
import signal
import sys

from catty.constants import KIB
from catty.runtime.attach import attach
from catty.runtime.console import Console, Size
from catty.runtime.control import Control
from catty.runtime.execs import Execs
from catty.runtime.initlink import InitLink
from catty.runtime.initproto import Message
from catty.runtime.listen import Connection, Route, serve
from catty.runtime.settings import Settings
from catty.wire import frames
from catty.wire.control import MESSAGE_MAX_BYTES
from catty.wire.frames import FrameType

__all__ = ["main"]

_CHUNK = 64 * KIB


class Terminal:
    """What the routes do, on top of the console."""

    def __init__(self, link: InitLink, settings: Settings) -> None:
        self._link = link
        self._console = Console(link.boot_fds, link.boot["agent"])
        self._execs = Execs(link)
        self._control = Control(link, self._console, settings.public_key)
        self.routes = {
            "/control": Route(self._control.serve, open=True, max_message=MESSAGE_MAX_BYTES),
            "/attach": Route(self._attach),
            "/exec": Route(self._execs.serve),
            "/logs": Route(self._logs),
        }
        link.listen(self._on_event)

    async def _attach(self, connection: Connection) -> None:
        await attach(connection, self._console, self._link.boot["epoch"], self._restart)

    async def _restart(self, size: Size) -> None:
        await self._link.request("start", fresh=True, cols=size[0], rows=size[1])

    async def _logs(self, connection: Connection) -> None:
        log = self._console.output
        at, end = log.start, log.end
        while at < end:
            at = max(at, log.start)
            data = log.read(at, min(_CHUNK, end - at))
            await connection.send(frames.pack(FrameType.OUT, at, data))
            at += len(data)

    def _on_event(self, event: Message, fds: list[int]) -> None:
        if event["event"] == "agent":
            self._console.agent_changed(event, fds[0] if fds else None)
            self._control.agent_changed(event)
        elif event["event"] == "exit":
            self._execs.ended(event)


async def _run(listener: int, channel: int) -> None:
    link = await InitLink.open(listener, channel)
    terminal = Terminal(link, Settings.from_environment(os.environ))
    server = await serve(link.listener, terminal.routes, token=lambda: link.token)
    lean.settle()
    await server.serve_forever()


def main() -> None:
    """Serve until `init` ends this process or itself."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    asyncio.run(_run(int(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
