"""What `new` and `connect` share: the options of an attach, and the attach itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from catty.cli.context import Cli
from catty.cli.types import DETACH_KEYS

if TYPE_CHECKING:
    from catty.client.tty import Terminal

__all__ = ["ATTACH_FLAGS", "attach", "attach_options", "open_terminal"]

ATTACH_FLAGS: Final = ("no_sync_back", "no_auto_reconnect", "sync_dir", "sync_config", "detach_keys")
_Command = TypeVar("_Command", bound=Callable[..., Any])


def attach_options(command: _Command) -> _Command:
    """The options of ATTACH_FLAGS."""
    for option in (
        click.option(
            "--detach-keys", type=DETACH_KEYS, default="", help="Keys that disconnect, as docker writes them."
        ),
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


def attach(cli: Cli, session: dict[str, Any], terminal: Terminal, flags: dict[str, Any]) -> int:
    """Attach to a running session until the user leaves or it ends. `flags` are those of `Wishes`. Returns the exit code."""
    import asyncio

    from catty.client.attached import Attached, Wishes

    attached = Attached(cli.home, cli.server, session, Wishes(**flags), cli.revive)
    outcome = asyncio.run(attached.run(terminal))
    if outcome.message:
        print(f"catty: {outcome.message}", file=sys.stderr)
    return outcome.code
