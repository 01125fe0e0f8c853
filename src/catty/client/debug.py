"""`~/.catty/debug.log`, written with CATTY_DEBUG=1. Never holds bodies, tokens or keys typed: method, path, outcome, time."""

from __future__ import annotations

import os
import time

__all__ = ["debug", "enabled"]


def enabled() -> bool:
    """Whether the user asked for it."""
    return os.environ.get("CATTY_DEBUG", "") not in ("", "0")


def debug(message: str) -> None:
    """Append a line. The `logging` module is not used here: importing it would double the start-up time of `catty list`."""
    if not enabled():
        return
    from catty.client.config import home

    line = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {os.getpid()} {message}\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    with os.fdopen(os.open(home().debug_log, flags, 0o600), "a") as file:
        file.write(line)
