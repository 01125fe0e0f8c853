"""`catty logs`."""

from __future__ import annotations

import sys

import click

from catty.cli.context import Cli, complete_labels, pass_cli

__all__ = ["logs"]


@click.command(epilog="Example: `catty logs brave-tiger-1234 | tail -c 2000`")
@click.argument("label", shell_complete=complete_labels)
@pass_cli
def logs(cli: Cli, label: str) -> None:
    """Print the last 8 MiB that a session's terminal showed; also after its end.

    Every byte as it was printed; on a terminal, text and colours, without what would command the terminal.
    """
    from catty.client.text import readable

    output = cli.api.logs(label)
    sys.stdout.buffer.write(readable(output) if sys.stdout.isatty() else output)
    sys.stdout.buffer.flush()
