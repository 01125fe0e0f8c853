"""Trees of files to save and restore, and the machine's side of `/save`, `/restore` and `/sync` over a real Unix socket."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import picows

from catty.runtime.workspace_serve import serve
from catty.runtime.workspace_trees import Trees
from catty.wire.channel import Channel
from catty.wire.sockets import UnixSocket

__all__ = ["Machine", "fingerprint", "make_tree", "trees_in"]


def trees_in(directory: Path) -> Trees:
    """Two empty trees below `directory`."""
    for name in ("workspace", "home"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    return Trees(str(directory / "workspace"), str(directory / "home"), os.getuid(), os.getgid())


class Machine:
    """The process's own code, in this process. `dial` is what the server's drivers want."""

    def __init__(self, directory: Path, conversation: Iterable[str] = (".claude/projects",)) -> None:
        self.trees = trees_in(directory)
        self.workspace, self.home = Path(self.trees.workspace), Path(self.trees.home)
        self.socket = str(directory / "socket")
        self.conversation = tuple(conversation)
        self.served: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Machine]:
        listener = UnixSocket(socket.AF_UNIX)
        listener.bind(self.socket)
        server = await picows.ws_create_server(
            self._accept, sock=listener, max_frame_size=2 << 20, use_aiofastnet=False
        )
        async with server:
            yield self
        for task in self.served:
            task.cancel()
        await asyncio.gather(*self.served, return_exceptions=True)

    def _accept(self, request: picows.WSUpgradeRequest) -> picows.WSListener:
        channel = Channel()
        path = request.path.decode()
        self.served.append(asyncio.create_task(serve(path, channel, self.trees, self.conversation)))
        return channel

    async def dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.socket)
        return sock


def make_tree(root: Path, seed: int = 0, files: int = 100) -> None:
    """A tree with everything that a snapshot knows, and names that people do not think of."""
    chance = random.Random(seed)
    top = os.fsencode(root)
    names = [
        b"plain.txt",
        b"not utf-8 \xff\xfe",
        b"new\nline",
        b"-rf",
        b" blank ",
        b"'\"$(x)`",
        b"a",
        b"a.b",
        "ü".encode(),
    ]
    directories = [top]
    for number in range(files // 10):
        path = chance.choice(directories) + b"/" + chance.choice(names) + b"%d" % number
        os.mkdir(path, 0o755)
        directories.append(path)
    for number in range(files):
        path = chance.choice(directories) + b"/" + chance.choice(names) + b"-%d" % number
        with open(path, "wb") as file:
            file.write(chance.randbytes(chance.choice([0, 1, 100, 5000])))
        os.chmod(path, chance.choice([0o644, 0o755, 0o600, 0o444, 0o4755]))
        os.utime(path, ns=(0, chance.randrange(10**18, 2 * 10**18)))
    with open(top + b"/big", "wb") as file:
        file.write(chance.randbytes((3 << 20) + 17))
    with open(top + b"/sparse", "wb") as file:
        file.truncate((5 << 20) + 1)
        os.pwrite(file.fileno(), b"island", 2 << 20)
    os.mkdir(top + b"/empty", 0o700)
    os.mkdir(top + b"/read only", 0o755)
    (root / "read only" / "file").write_bytes(b"x")
    os.chmod(top + b"/read only", 0o555)
    os.symlink(b"big", top + b"/link")
    os.symlink(b"/etc/passwd", top + b"/link out")
    os.symlink(b"loop", top + b"/loop")
    os.symlink(b"nowhere \xff\n", top + b"/dangling")
    for directory in reversed(directories):
        os.utime(directory, ns=(0, chance.randrange(10**18, 2 * 10**18)))


def fingerprint(root: Path, *, times: bool = True) -> dict[bytes, object]:
    """Everything about a tree that a snapshot must keep."""
    found: dict[bytes, object] = {}
    for directory, names, files in os.walk(os.fsencode(root)):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            info = os.lstat(path)
            content: object = None
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    content = file.read()
            relative = os.path.relpath(path, os.fsencode(root))
            found[relative] = (info.st_mode, info.st_mtime_ns if times else 0, content)
    return found
