"""`catty login` and `catty logout`."""

from __future__ import annotations

import contextlib
import sys

import click

from catty.cli.context import Cli, pass_cli
from catty.cli.output import note
from catty.errors import NotLoggedIn, UsageError

__all__ = ["login", "logout"]


@click.command(epilog="Example: `catty login https://catty.example.org --token`")
@click.argument("url", required=False)
@click.option("--token", is_flag=True, help="Ask for an access token without echo, or read it from standard input.")
@pass_cli
def login(cli: Cli, url: str | None, token: bool) -> None:
    """Use the server at URL from now on, instead of the embedded one.

    The token comes from whoever runs that server (`catty server token` there); one that does not work is not kept. For a certificate
    that your system does not trust, SSL_CERT_FILE names a file with its CA, for this and all later commands.
    """
    from catty.client import config
    from catty.client.api import Api

    if not token:
        raise UsageError("there is only one way to log in yet", hint="`catty login URL --token`.")
    address = config.normal_url(url or cli.home.settings().get("api") or "")
    if not address:
        raise UsageError("login needs the address of a server", hint="`catty login URL --token`.")
    secret = (click.prompt("Token", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()).strip()
    if not secret:
        raise UsageError("no token was given", hint="Paste it, or: `catty login URL --token < FILE`.")
    with contextlib.closing(Api(config.Server(address, secret))) as api:
        try:
            api.sessions()
        except NotLoggedIn:
            raise NotLoggedIn(
                f"{address} does not know this token",
                hint="`catty server token` on the server's host prints the right one.",
            ) from None
    config.store_credentials(cli.home, address, secret)
    print(f"logged in to {address}")


@click.command(epilog="Example: `catty logout`")
@pass_cli
def logout(cli: Cli) -> None:
    """Forget the token; commands use the embedded server again. Sessions elsewhere go on."""
    from catty.client import config

    url = config.forget_credentials(cli.home)
    if not url:
        raise NotLoggedIn("not logged in", hint="Nothing to do: the embedded server needs no login.")
    print(f"logged out of {url}")
    if cli.home.settings().get("api"):
        note(f"{cli.home.config} still names {cli.home.settings()['api']}")
