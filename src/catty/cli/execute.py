"""`catty exec`."""

from __future__ import annotations

import asyncio

import click

from catty.cli.context import Cli, complete_labels, pass_cli
from catty.cli.waiting import until_running
from catty.errors import SessionNotRunning

__all__ = ["exec_"]


class _Command(click.Command):
    """Options may stand behind LABEL where `--` says what is the command's own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_interspersed_args = "--" in args
        return super().parse_args(ctx, args)


@click.command(
    "exec",
    cls=_Command,
    epilog="Example: `catty exec brave-tiger-1234 -- git log --oneline`, or `catty exec -t brave -- bash`",
)
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal; leave with ~. after Enter.")
@click.option("--user", type=click.Choice(["agent", "root"]), default="agent", show_default=True, help="Who runs it.")
@click.argument("label", shell_complete=complete_labels)
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND…", type=click.UNPROCESSED)
@pass_cli
def exec_(cli: Cli, /, *, label: str, command: tuple[str, ...], tty: bool, user: str) -> int:
    """Run a command in a session's machine, in /workspace; its output, its exit code.

    Standard input goes to it, signals too.
    """
    from catty.client.execute import execute
    from catty.client.link import connect, session_path
    from catty.client.tty import Terminal
    from catty.wire.attach import Exec

    terminal = Terminal("exec -t", screen=False) if tty else None
    cols, rows = terminal.size() if terminal else (80, 24)
    wanted = Exec(command, tty=tty, user=user, cols=cols, rows=rows)

    async def run() -> int:
        return await execute(await connect(cli.server, session_path(label, "exec")), wanted, terminal)

    cli.revive()
    try:
        return asyncio.run(run())
    except SessionNotRunning:
        until_running(cli, cli.api.session(label))  # raises unless it was only being made
        return asyncio.run(run())
