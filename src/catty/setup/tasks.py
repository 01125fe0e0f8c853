"""Work that needs what only the server's environment has (the engine's client, the database), done in a process of that environment.

`run(task, data)` starts `python -m catty.setup.tasks TASK DATA` and gives back what it returns; progress and errors travel as JSON
lines on its standard output. So the light command line imports none of it, whether it is installed beside it or not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import catty
from catty.errors import CattyError, InternalError, from_json
from catty.setup.environment import ensure_server_environment

__all__ = ["Progress", "run"]

Progress = Callable[[str, int, int], None]
"""Called with (what happens now, steps done, steps in all)."""

_SETUP: Final = "setup"  # the engine's owner name for what is done here: no machines, so nothing is adopted under it


def run(task: str, data: Path, progress: Progress) -> Any:
    """Do `task` (see TASKS) for the server whose data directory is `data`; returns its result, JSON. Raises what the task raises."""
    python = ensure_server_environment(progress)
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(Path(catty.__file__).parent.parent)}
    process = subprocess.Popen(
        [str(python), "-P", "-m", "catty.setup.tasks", task, str(data)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd="/",
        env=environment,
    )
    with process:
        try:
            return _listen(process, task, progress)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            raise


def _listen(process: subprocess.Popen[bytes], task: str, progress: Progress) -> Any:
    assert process.stdout is not None  # noqa: S101  # for the type checker
    for line in process.stdout:
        message = json.loads(line)
        if "progress" in message:
            progress(*message["progress"])
        elif "error" in message:
            raise from_json(message["error"])
        else:
            return message["result"]
    raise InternalError(what=f"the helper for '{task}' ended without a word")


# ---------------------------------------------------------------------------------------------- in the other process


async def _image(data: Path, progress: Progress) -> Any:
    """Have the session image; its name."""
    from catty.engines.container import open_engine
    from catty.image.identity import current_image

    image = current_image()
    engine = open_engine(data, _SETUP)
    try:
        await engine.ensure_image(image, progress)
    finally:
        await engine.close()
    return image


async def _examine(data: Path, progress: Progress) -> Any:  # noqa: ARG001  # the shape of a task
    """What `catty doctor` prints."""
    from catty.setup.doctor import examine

    return [dataclasses.asdict(check) for check in await examine(data)]


async def _rotate_token(data: Path, progress: Progress) -> Any:  # noqa: ARG001
    """A new token for the local owner; the old ones let nobody in any more."""
    from catty.server.main import rotate_token
    from catty.server.settings import Settings

    return await rotate_token(Settings(data=data, embedded=True))


TASKS: Final[dict[str, Callable[[Path, Progress], Awaitable[Any]]]] = {
    "image": _image,
    "examine": _examine,
    "rotate-token": _rotate_token,
}


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def _do(task: str, data: Path) -> Any:
    import asyncio
    import signal

    this = asyncio.current_task()
    assert this is not None  # noqa: S101  # we run in one
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    return await TASKS[task](data, lambda text, done, total: _say({"progress": [text, done, total]}))


def main(task: str, data: str) -> int:
    """Do `task`; the exit code."""
    import asyncio

    try:
        result = asyncio.run(_do(task, Path(data)))
    except CattyError as error:
        _say({"error": error.to_json()})
        return error.exit_code
    except asyncio.CancelledError:
        return 130
    _say({"result": result})
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
