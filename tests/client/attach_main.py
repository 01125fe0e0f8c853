"""A client for tests: attaches the terminal it runs in to the session behind a Unix socket. `attach_main.py SOCKET [OPTION=VALUE…]`"""

from __future__ import annotations

import asyncio
import sys

from catty.client.attach import Attach, AttachOptions
from catty.client.config import Server
from catty.client.keys import Interrupt, detach_keys
from catty.client.link import connect, session_path
from catty.client.tty import Terminal
from catty.errors import CattyError


def main(path: str, options: dict[str, str]) -> int:
    server = Server(f"unix:{path}", options.get("token", "token"))
    resource = options.get("path", session_path("x", "connect"))
    chosen = AttachOptions(
        label="brave-tiger-1234",
        agent="claude",
        interrupt=Interrupt[options.get("interrupt", "TWICE")],
        detach=detach_keys(options.get("detach", "")),
        view="view" in options,
        reconnect="once" not in options,
        give_up_s=float(options.get("give_up", "3")),
    )
    try:
        terminal = Terminal("an attach")
        attach = Attach(lambda: connect(server, resource), terminal, chosen)
        outcome = asyncio.run(attach.run())
    except CattyError as error:
        sys.stdout.write(f"error: {error.message} [{error.code}]\n")
        return error.exit_code
    sys.stdout.write(f"outcome: {outcome.message}\n")
    return outcome.code


sys.exit(main(sys.argv[1], dict(option.partition("=")[::2] for option in sys.argv[2:])))
