"""Dialling a machine's endpoint. Whoever is root in the machine writes that directory: nothing in it is what it claims to be.

Root inside can put a symlink, another file or a socket of somebody else where its runtime listened. So nothing is followed: the socket
is opened without connecting, its type and owner are looked at, and exactly that open file is connected to.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from typing import Final

from catty.engines.base import Endpoint, UnixEndpoint
from catty.errors import EndpointRefused, MachineUnreachable

__all__ = ["LISTENERS", "connect", "dial"]

LISTENERS: Final = ("terminal", "workspace")

_FIRST_PAUSE_S: Final = 0.002  # a runtime takes some 100 ms to listen; somebody waits for it
_LONGEST_PAUSE_S: Final = 0.05
# Nobody listens yet, or no more, or too many ask at once.
_PASSING: Final = (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN, errno.ESRCH)


def connect(endpoint: Endpoint, listener: str) -> socket.socket:
    """A connected, non-blocking stream socket to `listener` ("terminal" or "workspace") of a machine. Does not block.

    Raises MachineUnreachable while nobody listens there; EndpointRefused if what lies there is not the runtime's.
    """
    if listener not in LISTENERS:
        raise ValueError(f"no listener {listener!r}")
    if not isinstance(endpoint, UnixEndpoint):
        raise EndpointRefused(reason="this server dials Unix sockets only")
    with contextlib.ExitStack() as opened:
        directory = _open(os.fspath(endpoint.directory), None)
        opened.callback(os.close, directory)
        _check(directory, stat.S_IFDIR, endpoint.owner, "directory")
        path = _open(listener, directory)
        opened.callback(os.close, path)
        _check(path, stat.S_IFSOCK, endpoint.owner, listener)
        return _connect(path, listener)


async def dial(endpoint: Endpoint, listener: str, *, seconds: float) -> socket.socket:
    """`connect`, again and again until somebody listens, for at most `seconds`. Raises MachineUnreachable, EndpointRefused."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    pause = _FIRST_PAUSE_S
    while True:
        try:
            return connect(endpoint, listener)
        except MachineUnreachable:
            if loop.time() + pause > deadline:
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_S)


def _open(path: str, directory: int | None) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        raise _sorted(error, path) from None


def _check(descriptor: int, kind: int, owner: int, what: str) -> None:
    status = os.fstat(descriptor)
    if stat.S_IFMT(status.st_mode) != kind:
        raise EndpointRefused(reason=f"'{what}' is another kind of file")
    if status.st_uid != owner:
        raise EndpointRefused(reason=f"'{what}' belongs to user {status.st_uid}, not {owner}")


def _connect(descriptor: int, what: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(f"/proc/self/fd/{descriptor}")
    except OSError as error:
        sock.close()
        raise _sorted(error, what) from None
    return sock


def _sorted(error: OSError, what: str) -> MachineUnreachable | EndpointRefused:
    reason = f"'{what}': {error.strerror}"
    return MachineUnreachable(reason=reason) if error.errno in _PASSING else EndpointRefused(reason=reason)
