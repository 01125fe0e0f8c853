"""`catty setup`."""

from __future__ import annotations

import click

from catty.cli.context import Cli, pass_cli
from catty.cli.hosting import prepare_host
from catty.cli.output import Steps
from catty.errors import UsageError

__all__ = ["setup"]


@click.command(epilog="Example: `catty setup --yes`")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before installing.")
@pass_cli
def setup(cli: Cli, yes: bool) -> None:
    """Do now what the first session would do.

    Finds or installs a container engine, builds the session image (about 5 minutes, once) and starts the embedded server.
    """
    if not cli.server.embedded:
        raise UsageError(f"sessions run on {cli.server.name}: nothing to set up here", hint="`catty logout` first.")
    steps = Steps()
    prepare_host(cli, steps, yes=yes, again=True)
    steps.done("ready: `catty new` starts a session")
