"""A client for tests: `execute_main.py SOCKET [-t] COMMAND…` runs COMMAND behind a Unix socket with its own standard streams.

The environment's EXEC_TOKEN and EXEC_PATH are for a socket that is a machine's own.
"""

from __future__ import annotations

import asyncio
import os
import sys

from catty.client.config import Server
from catty.client.execute import execute
from catty.client.link import connect, session_path
from catty.client.tty import Terminal
from catty.errors import CattyError
from catty.wire.attach import Exec


def main(path: str, words: list[str]) -> int:
    tty = words[0] == "-t"
    terminal = Terminal("exec -t", screen=False) if tty else None
    cols, rows = terminal.size() if terminal else (80, 24)
    command = Exec(tuple(words[1:] if tty else words), tty=tty, cols=cols, rows=rows)

    server = Server(f"unix:{path}", os.environ.get("EXEC_TOKEN", "token"))
    resource = os.environ.get("EXEC_PATH", session_path("x", "exec"))

    async def run() -> int:
        return await execute(await connect(server, resource), command, terminal)

    try:
        return asyncio.run(run())
    except CattyError as error:
        sys.stderr.write(f"error: {error.message} [{error.code}]\n")
        return error.exit_code
    except BrokenPipeError:
        return 141


sys.exit(main(sys.argv[1], sys.argv[2:]))
