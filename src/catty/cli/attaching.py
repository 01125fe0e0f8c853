"""What `new` and `connect` share: the options of an attach, and the attach itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from catty.cli.context import Cli
from catty.errors import ServerUnreachable

if TYPE_CHECKING:
    from catty.client.link import WebSocket
    from catty.client.syncback import Target
    from catty.client.tty import Terminal

__all__ = ["AttachFlags", "attach", "attach_options", "open_terminal"]

_SYNC_END_S: Final = 5.0  # for a file that is being written when the attach ends
_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class AttachFlags:
    """How the user wants to be attached."""

    no_sync_back: bool = False
    no_auto_reconnect: bool = False
    sync_dir: str | None = None
    sync_config: bool = False
    detach_keys: str = ""


def attach_options(command: _Command) -> _Command:
    """The flags of AttachFlags."""
    for option in (
        click.option("--detach-keys", metavar="KEYS", default="", help="Keys that disconnect, as docker writes them."),
        click.option(
            "--sync-config", is_flag=True, help="Sync files back that run code when a tool opens the directory."
        ),
        click.option(
            "--sync-dir",
            metavar="DIR",
            type=click.Path(exists=True, file_okay=False, resolve_path=True),
            help="Sync back into DIR instead of where the session was created.",
        ),
        click.option("--no-auto-reconnect", is_flag=True, help="End when the connection is lost."),
        click.option("--no-sync-back", is_flag=True, help="Leave the local files alone."),
    ):
        command = option(command)
    return command


def open_terminal() -> Terminal:
    """The user's terminal. Raises NotATerminal, DumbTerminal: before anything is made that would then be of no use."""
    from catty.client.tty import Terminal

    return Terminal("an attach")


def attach(cli: Cli, session: dict[str, Any], terminal: Terminal, flags: AttachFlags, *, view: bool = False) -> int:
    """Attach to a running session until the user leaves or it ends. Returns the exit code."""
    from catty.client.attach import Attach, AttachOptions, Outcome
    from catty.client.keys import Interrupt, detach_keys
    from catty.client.link import connect, session_path
    from catty.client.synclink import put_file

    async def open_link(what: str) -> WebSocket:
        path = session_path(session["id"], what)
        try:
            return await connect(cli.server, path)
        except ServerUnreachable:
            if not cli.server.embedded:
                raise
            await asyncio.to_thread(cli.revive)
            return await connect(cli.server, path)

    options = AttachOptions(
        label=session["label"],
        agent=session.get("agent") or "the agent",
        interrupt=Interrupt.NEVER if session.get("agent") == "shell" else Interrupt.TWICE,
        detach=detach_keys(flags.detach_keys),
        view=view,
        reconnect=not flags.no_auto_reconnect,
    )

    async def run() -> Outcome:
        loop = asyncio.get_running_loop()
        back = None
        target = None if view else _sync_target(cli, session, flags)
        if target is not None:
            from catty.client.syncback import SyncBack

            def notice(text: str, bell: bool) -> None:
                loop.call_soon_threadsafe(lambda: client.notice(text, bell=bell))

            back = SyncBack(lambda: open_link("sync"), target, notice)
        client = Attach(
            lambda: open_link("connect?view=1" if view else "connect"),
            terminal,
            options,
            put=lambda file: put_file(lambda: open_link("sync"), file),
            sync_text=back.text if back else lambda: "sync-back is off",
        )
        if back is not None:
            back.start()
        try:
            return await client.run()
        finally:
            if back is not None:
                back.stop(_SYNC_END_S)

    outcome = asyncio.run(run())
    if outcome.message:
        print(f"catty: {outcome.message}", file=sys.stderr)
    return outcome.code


def _sync_target(cli: Cli, session: dict[str, Any], flags: AttachFlags) -> Target | None:
    """Where sync-back writes: what was asked for, else where the session was created from; None: nowhere."""
    from catty.client import state
    from catty.client.syncback import Target

    if flags.no_sync_back:
        return None
    known = state.load(cli.home, session["id"])
    directory = flags.sync_dir or (known.directory if known else "")
    if not directory or not Path(directory).is_dir():
        return None
    return Target(cli.home.root, session["id"], session["label"], Path(directory), config=flags.sync_config)
