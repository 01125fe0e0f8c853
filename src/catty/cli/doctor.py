"""`catty doctor`."""

from __future__ import annotations

import click

from catty.cli.context import Cli, pass_cli
from catty.cli.output import Steps, print_json

__all__ = ["doctor"]

_SIGNS = {"ok": "✓", "warn": "!", "fail": "✗"}


@click.command(epilog="Example: `catty doctor`")
@click.option("--json", "as_json", is_flag=True, help="Print an array for scripts.")
@pass_cli
def doctor(cli: Cli, as_json: bool) -> int:
    """Examine this machine: what sessions need, what was found, and how to mend what is missing."""
    from catty.setup import tasks

    steps = Steps()
    steps.say("examining")
    checks = tasks.run("examine", cli.home.server, steps.step)
    steps.clear()
    if as_json:
        print_json(checks)
    else:
        for check in checks:
            print(f"{_SIGNS.get(check['status'], '?')} {check['name']}: {check['found']}")
            if check.get("mend") and check["status"] != "ok":
                print(f"    → {check['mend']}")
    return 6 if any(check["status"] == "fail" for check in checks) else 0
