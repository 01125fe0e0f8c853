"""What `new` and `connect` share: the options of an attach, and the attach itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from catty.cli.context import Cli
from catty.errors import ServerUnreachable

if TYPE_CHECKING:
    from catty.client.link import WebSocket
    from catty.client.tty import Terminal

__all__ = ["AttachFlags", "attach", "attach_options", "open_terminal"]

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
    from catty.client.attach import Attach, AttachOptions
    from catty.client.keys import Interrupt, detach_keys
    from catty.client.link import connect, session_path

    path = session_path(session["id"], "connect") + ("?view=1" if view else "")

    async def open_link() -> WebSocket:
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
    outcome = asyncio.run(Attach(open_link, terminal, options).run())
    if outcome.message:
        print(f"catty: {outcome.message}", file=sys.stderr)
    return outcome.code
