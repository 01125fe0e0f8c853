"""`catty sync`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from catty.cli.context import Cli, complete_labels, pass_cli
from catty.cli.output import Steps, confirm, note
from catty.errors import Conflict

__all__ = ["sync"]

_SHOWN = 20  # paths in a question


@click.command(epilog="Example: `catty sync brave-tiger-1234 --dry-run`")
@click.argument("label", shell_complete=complete_labels)
@click.option("--dry-run", is_flag=True, help="Only print what would be created, updated, deleted, and what conflicts.")
@click.option("--delete", is_flag=True, help="Also delete here what was deleted there; it goes to the trash.")
@click.option("--sync-config", is_flag=True, help="Also files that run code when a tool opens the directory.")
@pass_cli
def sync(cli: Cli, /, *, label: str, dry_run: bool, delete: bool, sync_config: bool) -> int:
    """Apply a session's files to this directory, once; of running and stopped sessions.

    A file that was changed on both sides stays as it is here, and the other one is written beside it; the exit code is then 5.
    """
    from catty.client.sync import sync_once
    from catty.client.syncback import Target

    session = cli.api.session(label)
    target = Target(cli.home.root, session["id"], session["label"], Path.cwd(), config=sync_config)
    steps = Steps()
    steps.say("comparing")

    def agreed(why: str, paths: list[str]) -> bool:
        steps.clear()
        note(f"sync-back was paused: {why}")
        for path in paths[:_SHOWN]:
            note(f"would delete {path}")
        if len(paths) > _SHOWN:
            note(f"and {len(paths) - _SHOWN} more")
        return confirm("Delete them here too (they go to the trash)? No keeps them for good.")

    asked = agreed if sys.stdin.isatty() else None  # no answer is not a no
    report = sync_once(cli.api, target, delete=delete, dry_run=dry_run, confirm=asked)
    steps.clear()
    for line in report.notes:
        note(line)
    print("\n".join(report.lines()) if not report.nothing else "nothing to do: both sides are the same")
    return Conflict.exit_code if report.conflicts else 0
