"""`catty secrets`."""

from __future__ import annotations

import sys

import click

from catty.cli.context import Cli, pass_cli
from catty.cli.output import note, print_json
from catty.errors import SecretNotFound, UsageError

__all__ = ["secrets"]

_GITHUB = "github"


@click.group(epilog="Example: `catty secrets add ANTHROPIC_API_KEY`")
def secrets() -> None:
    """Keep API keys and tokens for sessions.

    They stay on this machine, in the system's keyring or an encrypted file, and go to each new session as environment variables.
    """


@secrets.command(epilog="Example: `catty secrets add github`")
@click.argument("name")
@pass_cli
def add(cli: Cli, name: str) -> None:
    """Ask for a secret without echo, and keep it. `github` verifies the token and keeps it as GITHUB_TOKEN and GH_TOKEN."""
    from catty.client.secrets import GITHUB_NAMES, Secrets, check_github, check_name

    if name != _GITHUB:
        check_name(name)
    value = _hidden("Token" if name == _GITHUB else name)
    if name == _GITHUB:
        login = check_github(value)
        Secrets(cli.home).set(dict.fromkeys(GITHUB_NAMES, value))
        print(f"kept GITHUB_TOKEN and GH_TOKEN of {login}")
    else:
        Secrets(cli.home).set({name: value})
        print(f"kept {name}")


@secrets.command("set", epilog="Example: `pass show anthropic | catty secrets set ANTHROPIC_API_KEY -`")
@click.argument("name")
@click.argument("value")
@pass_cli
def set_(cli: Cli, name: str, value: str) -> None:
    """Keep VALUE as NAME; `-` reads it from standard input."""
    from catty.client.secrets import Secrets

    if value == "-":
        value = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    else:
        note("a value on the command line can be seen by other programs and stays in the shell's history; `-` reads it")
    if not value:
        raise UsageError(f"no value for {name}")
    Secrets(cli.home).set({name: value})
    print(f"kept {name}")


@secrets.command("list", epilog="Example: `catty secrets list`")
@click.option("--json", "as_json", is_flag=True, help="Print an array for scripts.")
@pass_cli
def list_(cli: Cli, as_json: bool) -> None:
    """Show the names. Values are never shown."""
    from catty.client.secrets import Secrets

    names = sorted(Secrets(cli.home).all())
    if as_json:
        print_json([{"name": name} for name in names])
    else:
        print("\n".join(names) if names else "no secrets; `catty secrets add NAME` keeps one")


@secrets.command(epilog="Example: `catty secrets remove ANTHROPIC_API_KEY`")
@click.argument("name")
@pass_cli
def remove(cli: Cli, name: str) -> None:
    """Forget a secret. Sessions that run keep it."""
    from catty.client.secrets import Secrets

    Secrets(cli.home).remove(name)
    print(f"removed {name}")


@secrets.command(epilog="Example: `catty secrets test github`")
@click.argument("name", type=click.Choice([_GITHUB]))
@pass_cli
def test(cli: Cli, name: str) -> None:
    """Ask GitHub whether it still accepts the token."""
    from catty.client.secrets import GITHUB_NAMES, Secrets, check_github

    token = Secrets(cli.home).all().get(GITHUB_NAMES[0])
    if token is None:
        raise SecretNotFound(name=name)
    print(f"GitHub accepts the token of {check_github(token)}")


def _hidden(prompt: str) -> str:
    value: str = click.prompt(prompt, hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    value = value.strip()
    if not value:
        raise UsageError("no value was given")
    return value
