"""`catty stop`."""

from __future__ import annotations

import click

from catty.cli.context import Cli, complete_labels, pass_cli
from catty.cli.output import Steps, confirm, print_error
from catty.errors import CattyError, SaveFailed, UsageError, from_json

__all__ = ["stop"]


@click.command(epilog="Example: `catty stop brave-tiger-1234`, or `catty stop --all --yes`")
@click.argument("labels", shell_complete=complete_labels, nargs=-1, metavar="LABEL…")
@click.option("--all", "all_", is_flag=True, help="Every session that is not stopped (with --delete: every session).")
@click.option("--delete", is_flag=True, help="Delete the saved files too. There is no way back.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@pass_cli
def stop(cli: Cli, labels: tuple[str, ...], all_: bool, delete: bool, yes: bool) -> int:
    """Save sessions and end their machines.

    The files stay on the server until --delete; `catty download` gets them.
    """
    if bool(labels) == all_:
        raise UsageError("name sessions, or use --all", hint="`catty list` shows all.")
    if all_:
        sessions = cli.api.sessions(all=delete)
        labels = tuple(s["label"] for s in sessions if delete or s["state"] != "stopped")
        if labels and not yes and not confirm(f"{'Delete' if delete else 'Stop'} {', '.join(labels)}?"):
            raise UsageError("nothing was done: it needs a yes", hint="Use --yes where nobody can answer.")
    worst = 0
    steps = Steps()
    for label in labels:
        steps.say(f"{'deleting' if delete else 'stopping'} {label}")
        try:
            session = cli.api.stop(label, delete=delete)
        except CattyError as error:  # the others are stopped all the same
            steps.clear()
            print_error(error)
            worst = max(worst, error.exit_code)
            continue
        steps.clear()
        if not delete and (session["error"] or {}).get("code") == SaveFailed.code:
            unsaved = from_json(session["error"])
            print_error(unsaved)
            worst = max(worst, unsaved.exit_code)
        if delete:
            from catty.client import state

            state.forget(cli.home, session["id"])
        print(f"{session['label']} {'deleted' if delete else 'stopped'}")
    return worst
