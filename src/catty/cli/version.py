"""`catty version`."""

from __future__ import annotations

import platform

import click

from catty import __version__
from catty.cli.context import Cli, pass_cli
from catty.cli.output import print_json
from catty.errors import CattyError
from catty.wire.frames import SUBPROTOCOL

__all__ = ["version"]


@click.command(epilog="Example: `catty version --json`")
@click.option("--json", "as_json", is_flag=True, help="Print an object for scripts.")
@pass_cli
def version(cli: Cli, as_json: bool) -> None:
    """Print the versions of this command line and of the server, if it runs."""
    client = {"version": __version__, "protocol": SUBPROTOCOL, "python": platform.python_version()}
    server = _server(cli)
    if as_json:
        print_json({"client": client, "server": server})
        return
    print(f"catty {__version__} (protocol {SUBPROTOCOL}, Python {client['python']})")
    if server is None:
        print(f"server: {cli.server.name} does not run")
    else:
        print(f"server: {server.get('version')} (protocol {server.get('protocol')}), {cli.server.name}")


def _server(cli: Cli) -> dict[str, object] | None:
    """What the server says of itself; None if it does not run (it is not started for that)."""
    if cli.server.embedded and cli.embedded.pid() is None:
        return None
    try:
        return cli.api.version()
    except CattyError as error:
        return {"version": None, "protocol": None, "error": error.message}
