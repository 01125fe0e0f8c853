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
    """Print the last 8 MiB that a session's terminal showed, as it was printed; also after its end."""
    sys.stdout.buffer.write(cli.api.logs(label))
    sys.stdout.buffer.flush()
