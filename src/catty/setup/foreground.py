"""What `catty server` takes: the settings of the server, under its own help texts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from catty.server.settings import ENVIRONMENT_PREFIX, FLAGS, documented

__all__ = ["arguments", "options"]

_NOT_FOR_USERS: Final = "embedded"


def options() -> dict[str, tuple[str, bool]]:
    """Names of the settings, with help text and whether each is a flag."""
    return {name: (help_, name in FLAGS) for name, help_ in documented().items() if name != _NOT_FOR_USERS}


def arguments(
    given: Mapping[str, str | bool | None], data: Path, environment: Mapping[str, str] = os.environ
) -> list[str]:
    """The server's command line for the settings that were `given` (None: not); `data` is used where nothing names its directory."""
    if given.get("data") is None and not environment.get(f"{ENVIRONMENT_PREFIX}DATA"):
        given = {**given, "data": str(data)}
    words = []
    for name, value in given.items():
        if value is not None and value is not False:
            option = "--" + name.replace("_", "-")
            words += [option] if value is True else [option, str(value)]
    return words
