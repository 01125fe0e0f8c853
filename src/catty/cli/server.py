"""`catty server`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from catty.cli.context import Cli, pass_cli
from catty.cli.output import Steps, print_json
from catty.errors import PathNotFound
from catty.setup import foreground

__all__ = ["server"]


_METAVARS: Final = {"data": "DIR", "listen": "HOST:PORT", "database": "URL", "hosts": "NAMES", "image": "NAME"}


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    """All settings of the server as options."""
    for name, (help_, flag) in reversed(foreground.options().items()):
        how: dict[str, Any] = {"is_flag": True} if flag else {"metavar": _METAVARS.get(name, "FILE")}
        text = f"{help_[0].upper()}{help_[1:]}."
        command = click.option("--" + name.replace("_", "-"), help=text, **how)(command)
    return command


@click.group(
    invoke_without_command=True,
    epilog="Example: `catty server --listen 0.0.0.0:4815 --tls-cert chain.pem --tls-key key.pem --data /srv/catty`",
)
@_settings
@click.pass_context
def server(ctx: click.Context, /, **given: Any) -> None:
    """Run a server in the foreground, for clients elsewhere; or look after the embedded one.

    The embedded server is started by the first command that needs it. It may be stopped at any time: sessions go on.
    """
    if ctx.invoked_subcommand is not None:
        return
    from catty.setup.embedded import serve_here

    cli = ctx.find_object(Cli) or Cli(None)
    serve_here(foreground.arguments(given, cli.home.server))


@server.command(epilog="Example: `catty server start`")
@pass_cli
def start(cli: Cli) -> None:
    """Start the embedded server unless it runs."""
    cli.embedded.start()
    print(f"the embedded server runs (process {cli.embedded.pid()})")


@server.command(epilog="Example: `catty server stop`")
@pass_cli
def stop(cli: Cli) -> None:
    """End the embedded server; sessions go on, unsaved until it is back."""
    print("the embedded server is stopped" if cli.embedded.stop() else "the embedded server did not run")


@server.command(epilog="Example: `catty server restart`")
@pass_cli
def restart(cli: Cli) -> None:
    """Replace the embedded server by a new one; sessions go on."""
    cli.embedded.restart()
    print(f"the embedded server runs (process {cli.embedded.pid()})")


@server.command(epilog="Example: `catty server status --json`")
@click.option("--json", "as_json", is_flag=True, help="Print an object for scripts.")
@pass_cli
def status(cli: Cli, as_json: bool) -> int:
    """Say whether the embedded server runs; the exit code is 1 if not."""
    found = cli.embedded.status()
    if as_json:
        print_json(found)
    elif found["running"]:
        print(f"runs: process {found['pid']}, version {found['version']}, data in {found['data']}")
    else:
        print(f"does not run; data in {found['data']}")
    return 0 if found["running"] else 1


@server.command(epilog="Example: `catty server logs -f`")
@click.option("-n", "--lines", type=click.IntRange(0), default=100, show_default=True, help="How many.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@pass_cli
def logs(cli: Cli, lines: int, follow: bool) -> int:
    """Print the end of the embedded server's log (JSON lines)."""
    files = [file for file in (cli.embedded.server_log, cli.embedded.stderr_log) if file.exists()]
    if not files:
        raise PathNotFound("the embedded server has not written a log yet", hint="`catty server start` starts it.")
    if follow:
        return subprocess.run(["tail", "-n", str(lines), "-F", str(files[0])], check=False).returncode
    for file in files:
        with file.open(errors="replace") as log:
            sys.stdout.writelines(log.readlines()[-lines:] if lines else [])
    return 0


@server.command(epilog="Example: `catty server token | ssh elsewhere catty login URL --token`")
@click.option("--rotate", is_flag=True, help="Make a new one; the old one lets nobody in any more.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Of the server with this data.  [default: ~/.catty/server]",
)
@pass_cli
def token(cli: Cli, rotate: bool, data: Path | None) -> None:
    """Print a server's token, for `catty login` elsewhere. Whoever has it has your sessions."""
    if rotate:
        from catty.setup import tasks

        print(tasks.run("rotate-token", (data or cli.home.server).absolute(), Steps().step))
        return
    if data is None:
        cli.embedded.start()
    try:
        print(((data or cli.home.server) / "token").read_text().strip())
    except FileNotFoundError:
        raise PathNotFound(f"no server has its data in {data}", hint="`catty server --data DIR` starts one.") from None
