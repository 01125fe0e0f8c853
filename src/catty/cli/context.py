"""What every command starts from: the home directory, the server, a REST client."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from catty.client.api import Api
    from catty.client.config import Home, Server
    from catty.setup.embedded import Embedded

__all__ = ["Cli", "complete_labels", "pass_cli"]


class Cli:
    """Made once per command line; `address` is --api or CATTY_API_ADDR."""

    def __init__(self, address: str | None) -> None:
        self._address = address

    @cached_property
    def home(self) -> Home:
        from catty.client.config import home

        return home()

    @cached_property
    def server(self) -> Server:
        from catty.client.config import server

        return server(self.home, self._address)

    @cached_property
    def embedded(self) -> Embedded:
        from catty.setup.embedded import Embedded

        return Embedded(self.home)

    @cached_property
    def api(self) -> Api:
        """The server's REST interface; the embedded server is started when it turns out not to run."""
        from catty.client.api import Api

        api = Api(self.server, self.revive if self.server.embedded else None)
        click.get_current_context().call_on_close(api.close)
        return api

    def revive(self) -> None:
        """Start the embedded server if that is the one to talk to and it does not run."""
        if self.server.embedded:
            self.embedded.start()


pass_cli = click.make_pass_decorator(Cli)


def complete_labels(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001  # click's signature
    """The labels that a shell offers for what is typed; none, and no word, if no server answers."""
    import contextlib

    from catty.client.api import Api
    from catty.errors import CattyError

    cli = Cli(ctx.find_root().params.get("api"))
    with contextlib.suppress(CattyError), contextlib.closing(Api(cli.server)) as api:
        if not cli.server.embedded or cli.embedded.pid() is not None:
            return [session["label"] for session in api.sessions() if session["label"].startswith(incomplete)]
    return []
