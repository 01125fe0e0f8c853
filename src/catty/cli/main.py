"""`catty`: finds the command, turns errors into a line, a hint and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final, NoReturn

import click

from catty import __version__
from catty.cli.context import Cli
from catty.cli.output import print_error
from catty.errors import CattyError, FilesFailed, InternalError, UsageError

__all__ = ["COMPLETE_VARIABLE", "cli", "main", "program"]

COMPLETE_VARIABLE: Final = "_CATTY_COMPLETE"  # how the scripts of `catty completion` ask
INTERRUPTED: Final = 130
_BROKEN_PIPE: Final = 141  # what a shell shows for a program that SIGPIPE ended

# Command → "module:object". A module is imported when its command is used: `catty list` shall not wait for what `new` needs.
_COMMANDS: Final = {
    "new": "new:new",
    "connect": "connect:connect",
    "list": "listing:list_",
    "ls": "listing:list_",
    "exec": "execute:exec_",
    "stop": "stop:stop",
    "download": "download:download",
    "sync": "sync:sync",
    "logs": "logs:logs",
    "secrets": "secrets:secrets",
    "login": "login:login",
    "logout": "login:logout",
    "server": "server:server",
    "setup": "setup:setup",
    "doctor": "doctor:doctor",
    "version": "version:version",
    "completion": "completion:completion",
}
_ALIASES: Final = frozenset({"ls"})
# The line that `catty --help` shows for each: importing all commands for it would take a tenth of a second.
_SUMMARIES: Final = {
    "new": "Start a session on the files of this directory.",
    "connect": "Attach to a session.",
    "list": "Show the sessions.",
    "exec": "Run a command in a session's machine.",
    "stop": "Save and end sessions.",
    "download": "Fetch a session's files into a new directory.",
    "sync": "Apply a session's files to this directory.",
    "logs": "Print the last that a session's terminal showed.",
    "secrets": "Keep API keys and tokens for sessions.",
    "login": "Use a server elsewhere.",
    "logout": "Forget the server elsewhere.",
    "server": "Run a server, or look after the embedded one.",
    "setup": "Do now what the first session would do.",
    "doctor": "Examine this machine.",
    "version": "Print versions.",
    "completion": "Print a shell completion script.",
}


class Ended(BaseException):
    """A signal asks this process to end. What is under way is put in order on the way out, as after Ctrl+C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return [name for name in _COMMANDS if name not in _ALIASES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"catty.cli.{module}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, 1)
            hint = f"Did you mean `catty {near[0]}`?" if near else None
            raise UsageError(f"no command '{args[0]}'", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_SUMMARIES.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: `cd project && catty new`; leave with Ctrl+C twice, come back with `catty connect`.",
)
@click.option("--api", metavar="URL", envvar="CATTY_API_ADDR", help="Server to talk to, instead of the usual one.")
@click.version_option(__version__, "-V", "--version", prog_name="catty", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, api: str | None) -> None:
    """Persistent, isolated remote sessions for coding agents."""
    ctx.obj = Cli(api)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Nothing but that and what is printed comes out of it."""
    debug = os.environ.get("CATTY_DEBUG", "") not in ("", "0")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # whoever ignores it (nohup) means it
            signal.signal(number, _end)
    try:
        code = _run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _BROKEN_PIPE
    except CattyError as error:
        print_error(error)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print(file=sys.stderr)
        code = INTERRUPTED
    except Ended as end:
        code = 128 + end.number
    except Exception as error:
        if debug:
            raise
        failed = _failed(error)
        print_error(failed)
        code = failed.exit_code
    return code


def _failed(error: Exception) -> CattyError:
    """What nobody foresaw: a full or closed disk is the user's to mend, all else is ours."""
    if isinstance(error, OSError) and error.strerror:
        return FilesFailed(what=error.filename or "input or output", reason=error.strerror.lower())
    return InternalError(what=f"{type(error).__name__}: {error}".split("\n")[0])


def program() -> NoReturn:
    """`main`, and the end of the process."""
    code = main()
    if "threading" in sys.modules and sys.modules["threading"].active_count() > 1:
        # A sync-back that does not end in time, a read of standard input: the interpreter would end these threads inside native
        # code, which may crash. All that they write stands a sudden end.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    raise SystemExit(code)


def _end(number: int, _frame: FrameType | None) -> None:
    raise Ended(number)


def _run(args: Sequence[str] | None) -> int:
    if instruction := os.environ.get(COMPLETE_VARIABLE):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "catty", COMPLETE_VARIABLE, instruction)
    try:
        # Not `cli.main()`: it ends the process by itself where a pipe broke.
        with cli.make_context("catty", list(sys.argv[1:] if args is None else args)) as context:
            result: Any = cli.invoke(context)
    except click.exceptions.Exit as end:  # --help, --version
        return end.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "catty"
        raise UsageError(error.format_message().rstrip("."), hint=f"`{command} --help` shows what it takes.") from None
    except click.ClickException as error:
        raise CattyError(error.format_message(), hint="") from None
    return result if isinstance(result, int) else 0
