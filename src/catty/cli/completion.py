"""`catty completion`."""

from __future__ import annotations

import click

__all__ = ["completion"]


@click.command(epilog='Example: `eval "$(catty completion bash)"` in ~/.bashrc')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for a shell."""
    from click.shell_completion import get_completion_class

    from catty.cli.main import COMPLETE_VARIABLE, cli

    made_by = get_completion_class(shell)
    if made_by is not None:
        print(made_by(cli, {}, "catty", COMPLETE_VARIABLE).source())
