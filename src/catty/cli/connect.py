"""`catty connect`."""

from __future__ import annotations

import sys
from typing import Any

import click

from catty.cli.attaching import attach, attach_options, open_terminal
from catty.cli.context import Cli, complete_labels, pass_cli
from catty.cli.output import age
from catty.cli.waiting import until_running
from catty.errors import SessionNotFound, UsageError

__all__ = ["connect"]


@click.command(epilog="Example: `catty connect`, or `catty connect brave --view`")
@click.argument("label", shell_complete=complete_labels, required=False)
@click.option("--view", is_flag=True, help="Look only: nothing that you type is sent; Ctrl+C leaves.")
@attach_options
@pass_cli
def connect(cli: Cli, /, label: str | None, **flags: Any) -> int:
    """Attach to a session. Without LABEL: to the one that runs, or to one chosen from a list.

    Leave with Ctrl+C twice (claude, codex) or with ~. after Enter; the session goes on.
    """
    terminal = open_terminal()
    session = cli.api.session(label) if label else _choose(cli)
    session = until_running(cli, session)
    return attach(cli, session, terminal, flags)


def _choose(cli: Cli) -> dict[str, Any]:
    running = [session for session in cli.api.sessions() if session["state"] in ("running", "provisioning")]
    if not running:
        raise SessionNotFound(
            "no session is running", hint="`catty new` starts one; `catty list --all` shows old ones."
        )
    if len(running) == 1:
        return running[0]
    for number, session in enumerate(running, 1):
        active = age(session.get("last_activity_at"))
        print(f"{number:3}  {session['label']:<28} {session.get('agent') or '-':<8} active {active}", file=sys.stderr)
    print(f"Which one? [1-{len(running)}, Enter for 1] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip() or "1"
    if not answer.isdecimal() or not 1 <= int(answer) <= len(running):
        raise UsageError(f"'{answer}' is none of them", hint="`catty connect LABEL` goes straight to one.")
    return running[int(answer) - 1]
