"""A server as a process of its own, whose machines are processes too: `serve_processes.py DATA MACHINES`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from catty.server import log
from catty.server.main import serve
from catty.server.settings import Settings
from server.process_engine import ProcessEngine
from server.support import QUICK


async def main() -> None:
    data, machines = map(Path, sys.argv[1:])
    log.set_up(None)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = Settings(data, listen="", no_spare=True)
    async with serve(settings, open_engine=lambda *_: ProcessEngine(machines), timing=QUICK):
        (data / "ready").write_text(str(os.getpid()))
        await stop.wait()


asyncio.run(main())
