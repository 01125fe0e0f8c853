"""A Unix socket that picows can use.

picows sets TCP options on every socket it is given, and Linux answers that with an error where the socket is a Unix one. Hand it
sockets of this class instead: `UnixSocket(socket.AF_UNIX)`, or `UnixSocket.adopt(sock)` for one that is already connected.
"""

from __future__ import annotations

import socket
from typing import Any

__all__ = ["UnixSocket"]


class UnixSocket(socket.socket):
    """A socket on which TCP options are quietly without effect; what it accepts is of its class too."""

    @classmethod
    def adopt(cls, sock: socket.socket) -> UnixSocket:
        """The same socket, non-blocking; `sock` itself is used up."""
        adopted = cls(sock.family, sock.type, sock.proto, fileno=sock.detach())
        adopted.setblocking(False)
        return adopted

    def setsockopt(self, level: int, *rest: Any) -> None:
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, *rest)

    def getsockopt(self, level: int, *rest: Any) -> Any:
        return 0 if level == socket.IPPROTO_TCP else super().getsockopt(level, *rest)

    def accept(self) -> tuple[socket.socket, Any]:
        sock, address = super().accept()
        return UnixSocket.adopt(sock), address
