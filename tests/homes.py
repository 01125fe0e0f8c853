"""A `~/.catty` for tests: empty, beside the user's own, and gone afterwards with all that it started."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from catty.client.config import home
from catty.setup.environment import environment_python

__all__ = ["OTHERS_SETTINGS", "a_home", "home_environment"]

OTHERS_SETTINGS: Final = ("CATTY_API_ADDR", "CATTY_TOKEN")  # of whoever runs the tests: they would lead elsewhere


def home_environment(root: Path) -> dict[str, str]:
    """The environment of a command whose home is `root`."""
    kept = {name: value for name, value in os.environ.items() if name not in OTHERS_SETTINGS}
    return kept | {
        "CATTY_HOME": str(root),
        "CATTY_SERVER_NO_SPARE": "1",  # tests count machines
        "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
    }


def _link_environments(place: Path) -> None:
    """The user's own environments; where coverage is measured the tests' own, which has it, stands in for the server's."""
    environments = home().root / "env"
    if "COVERAGE_PROCESS_CONFIG" not in os.environ:
        place.symlink_to(environments)
        return
    place.mkdir()
    for environment in environments.iterdir():
        (place / environment.name).symlink_to(environment)
    stand_in = place / environment_python("server").parents[1].name
    stand_in.unlink(missing_ok=True)
    stand_in.symlink_to(sys.prefix)


@contextlib.contextmanager
def a_home(command: str) -> Iterator[Path]:
    """An empty home that uses the user's own environments; `command` is the program. Sessions and server in it end with the context."""
    root = Path(tempfile.mkdtemp(prefix="catty-"))  # not below tmp_path: the path of a Unix socket is short
    _link_environments(root / "env")
    try:
        yield root
    finally:
        if (root / "server").exists():
            (root / "credentials.json").unlink(missing_ok=True)  # it is the server in here that is meant
            for words in (["stop", "--all", "--delete", "--yes"], ["server", "stop"]):
                subprocess.run(
                    [command, *words], env=home_environment(root), capture_output=True, check=False, timeout=120
                )
        shutil.rmtree(root)
