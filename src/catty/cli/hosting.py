"""What the first `new` and `setup` share: having engine, image and embedded server in place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import catty
from catty.cli.context import Cli
from catty.cli.output import Steps, confirm

__all__ = ["prepare_host"]


def prepare_host(
    cli: Cli, steps: Steps, *, yes: bool, again: bool = False, before: Callable[[], object] = lambda: None
) -> None:
    """Have all in place that sessions on this machine need; `yes`: without asking. Costs next to nothing if it is, else `before` is
    called first."""
    from catty.setup import firstrun

    def asked(question: str) -> bool:
        steps.clear()
        return confirm(question)

    did_something = firstrun.ensure(
        cli.home, cli.embedded, steps, lambda question: yes or asked(question), again=again, before=before
    )
    program = Path(catty.__file__).parents[2] / "catty"
    if did_something and not yes and os.access(program, os.X_OK) and program.is_file():
        firstrun.offer_link(cli.home, program, steps, asked)
