"""An attach with all that belongs to it: sync-back beside it, pasted files, and an embedded server that is started when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from catty.client import state
from catty.client.attach import Attach, AttachOptions, Outcome
from catty.client.config import Home, Server
from catty.client.keys import Interrupt
from catty.client.link import WebSocket, connect, session_path
from catty.client.tty import Terminal
from catty.errors import ServerUnreachable

if TYPE_CHECKING:
    from catty.client.syncback import SyncBack

__all__ = ["Attached", "Wishes"]

_SYNC_END_S: Final = 5.0  # for a file that is being written when the attach ends


@dataclass(frozen=True, slots=True)
class Wishes:
    """How the user wants to be attached; the flags of the same names."""

    no_sync_back: bool = False
    no_auto_reconnect: bool = False
    sync_dir: str | None = None
    sync_config: bool = False
    detach_keys: tuple[bytes, ...] = ()  # as `client.keys.detach_keys` returns them
    view: bool = False


class Attached:
    """`session` is the server's description of it; `revive` starts the embedded server (called in a thread)."""

    def __init__(
        self, home: Home, server: Server, session: dict[str, Any], wishes: Wishes, revive: Callable[[], None]
    ) -> None:
        self._home = home
        self._server = server
        self._session = session
        self._wishes = wishes
        self._revive = revive
        self._back: SyncBack | None = None
        shell = session.get("agent") == "shell"
        self._options = AttachOptions(
            label=session["label"],
            agent=session.get("agent") or "the agent",
            interrupt=Interrupt.NEVER if shell else Interrupt.TWICE,
            detach=wishes.detach_keys,
            view=wishes.view,
            reconnect=not wishes.no_auto_reconnect,
        )

    async def run(self, terminal: Terminal) -> Outcome:
        """Attach `terminal` until the user leaves or the session ends. Raises what ended it for good."""
        attach = Attach(self._open_attach, terminal, self._options, put=self._put, sync_text=self._sync_text)
        syncing = asyncio.create_task(self._sync_back(attach))
        try:
            return await attach.run()
        finally:
            syncing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await syncing
            if self._back is not None:
                self._back.stop(_SYNC_END_S)

    async def _open(self, what: str) -> WebSocket:
        path = session_path(self._session["id"], what)
        try:
            return await connect(self._server, path)
        except ServerUnreachable:
            if not self._server.embedded:
                raise
            await asyncio.to_thread(self._revive)
            return await connect(self._server, path)

    async def _open_attach(self) -> WebSocket:
        return await self._open("connect?view=1" if self._wishes.view else "connect")

    async def _open_sync(self) -> WebSocket:
        return await self._open("sync")

    async def _put(self, file: Path) -> str:
        from catty.client.synclink import put_file

        return await put_file(self._open_sync, file)

    # ------------------------------------------------------------------------------------------ sync-back

    def _directory(self) -> Path | None:
        """Where sync-back writes: what was asked for, else where the session was created from; None: nowhere."""
        if self._wishes.no_sync_back or self._wishes.view:
            return None
        known = state.load(self._home, self._session["id"])
        directory = self._wishes.sync_dir or (known.directory if known else "")
        return Path(directory) if directory and Path(directory).is_dir() else None

    def _sync_text(self) -> str:
        return "sync-back is off" if self._back is None else self._back.text()

    async def _sync_back(self, attach: Attach) -> None:
        directory = self._directory()
        if directory is None:
            return
        await attach.painted.wait()  # the user first, then the files
        from catty.client.syncback import SyncBack, Target

        loop = asyncio.get_running_loop()

        def notice(text: str, bell: bool) -> None:
            loop.call_soon_threadsafe(lambda: attach.notice(text, bell=bell))

        session, label = self._session["id"], self._session["label"]
        target = Target(self._home.root, session, label, directory, config=self._wishes.sync_config)
        self._back = SyncBack(self._open_sync, target, notice)
        self._back.start()
