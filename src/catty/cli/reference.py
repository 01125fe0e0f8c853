"""The pages docs/commands.md and docs/errors.md, made from the code: `python -m catty.cli.reference commands > docs/commands.md`."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

import click

from catty.cli.main import cli
from catty.errors import all_errors

__all__ = ["commands", "errors"]

_EXITS = """\
| code | |
|---|---|
| 0 | done |
| 1 | error |
| 2 | usage |
| 3 | not logged in |
| 4 | not found |
| 5 | conflict, or refused to overwrite |
| 6 | engine or machine failure |
| 7 | connection lost for good |
| 130 | disconnected by the user, or interrupted |
| other | the agent's own code when it exits while attached; the command's with `exec` |
"""

_VARIABLES = """\
| variable | |
|---|---|
| `CATTY_API_ADDR` | the server, like `--api` |
| `CATTY_TOKEN` | the access token, instead of the one that `catty login` keeps |
| `CATTY_HOME` | directory instead of `~/.catty` |
| `CATTY_DEBUG` | `1`: write `~/.catty/debug.log`, show tracebacks |
| `CI` | set: nothing is asked |

`~/.catty/config.toml` may hold `api = "https://…"`, the server to use without `--api`.
"""


def commands() -> str:
    """docs/commands.md."""
    parts = ["# Commands\n", "<!-- made by `python -m catty.cli.reference commands`; a test compares -->\n"]
    root = click.Context(cli, info_name="catty", terminal_width=100, **cli.context_settings)
    for name, context in _walk(root):
        parts.append(f"{'#' * min(3, 2 + name.count(' ', 6))} {name}\n")
        help_ = context.command.get_help(context)
        parts.append(f"```\n{_plain(help_)}\n```\n")
    parts += ["## Exit codes\n", _EXITS, "## Environment\n", _VARIABLES.rstrip()]
    return "\n".join(parts) + "\n"


def errors() -> str:
    """docs/errors.md."""
    rows = [
        "# Errors\n",
        "<!-- made by `python -m catty.cli.reference errors`; a test compares -->\n",
        "An error is one line, `error: message [code]`, and a line that says what to do. Codes are stable: scripts may match them.\n",
        "| code | exit | message | what to do |",
        "|---|---|---|---|",
    ]
    for error in all_errors():
        message = inspect.cleandoc(error.__doc__ or "").split("\n")[0]
        message, hint = (_cell(re.sub(r"\{(\w+):[^}]*\}", r"{\1}", text)) for text in (message, error.hint))
        rows.append(f"| `{error.code}` | {error.exit_code} | {message} | {hint} |")
    return "\n".join(rows) + "\n"


def _walk(context: click.Context) -> Iterator[tuple[str, click.Context]]:
    yield context.command_path, context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            if command is not None:
                yield from _walk(click.Context(command, info_name=name, parent=context))


def _plain(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("{message}", "…") or "…"


if __name__ == "__main__":
    sys.stdout.write({"commands": commands, "errors": errors}[sys.argv[1]]())
