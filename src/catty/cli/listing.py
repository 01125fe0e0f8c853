"""`catty list`, also `ls`."""

from __future__ import annotations

from typing import Any

import click

from catty.cli.context import Cli, pass_cli
from catty.cli.output import age, print_json, table

__all__ = ["list_", "state_of"]


@click.command("list", epilog="Example: `catty list --json | jq -r '.[].label'`")
@click.option("--all", "all_", is_flag=True, help="Also sessions that stopped more than a day ago.")
@click.option("--json", "as_json", is_flag=True, help="Print an array for scripts.")
@pass_cli
def list_(cli: Cli, all_: bool, as_json: bool) -> None:
    """Show the sessions, newest first, with the age of each one's last save."""
    sessions = cli.api.sessions(all=all_)
    if as_json:
        print_json(sessions)
    elif not sessions:
        print("no sessions; `catty new` starts one")
    else:
        print(table(["LABEL", "STATE", "AGENT", "AGE", "ACTIVE", "SAVED"], [_row(session) for session in sessions]))


def state_of(session: dict[str, Any]) -> str:
    """State, with the reason where there is one."""
    reason = session.get("reason")
    return f"{session['state']} ({reason})" if reason else str(session["state"])


def _row(session: dict[str, Any]) -> list[str]:
    ages = [age(session.get(name)) for name in ("created_at", "last_activity_at", "last_saved_at")]
    return [session["label"], state_of(session), session.get("agent") or "-", *ages]
