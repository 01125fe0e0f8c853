"""`python -m catty` is `catty`."""

from __future__ import annotations

from catty.cli.main import program

program()
