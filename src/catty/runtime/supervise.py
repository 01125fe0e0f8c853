"""One supervised process: its listening socket, its channel, its restarts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from catty.runtime import initproto
from catty.runtime.events import Events
from catty.runtime.initproto import Message

__all__ = ["Child", "become_subreaper", "oom_scores"]

_STEADY_S: Final = 1.0  # who lived this long did not die of its start
_AT_ONCE: Final = 3  # deaths in a row, up to which it is started again at once
_BACKOFF_FIRST_S: Final = 0.05
_BACKOFF_MAX_S: Final = 2.0
_BACKLOG: Final = 128
_AGENT_OOM_SCORE: Final = 500  # of the agent where the runtime cannot be protected: at least it is killed first
_PR_SET_CHILD_SUBREAPER: Final = 36

Boot = Callable[[], tuple[Message, tuple[int, ...]] | None]


class Child:
    """`name` names its module and its socket; it is started with the numbers of its listening socket and of its channel.

    `boot` makes its first message (None: nothing to say yet). With `on_message`, which gets each of its own with descriptors, the
    channel carries packets (`initproto.py`); without, lines of JSON from here to there.
    """

    def __init__(
        self,
        name: str,
        endpoint: str,
        events: Events,
        boot: Boot,
        on_message: Callable[[Child, Message, list[int]], None] | None = None,
    ) -> None:
        self.name = name
        self.pid: int | None = None
        self.on_end: Callable[[], None] = lambda: None
        self._events = events
        self._boot = boot
        self._on_message = on_message
        self._listener = _listen(os.path.join(endpoint, name))
        self._channel: socket.socket | None = None
        self._outbox: deque[tuple[Message, tuple[int, ...]]] = deque()
        self._begun = 0.0
        self._failures = 0
        self._stopped = False

    def start(self) -> None:
        """Start the process, with `boot` as its first message; later, while the machine has no room for another process."""
        if self._stopped:
            return
        kind = socket.SOCK_SEQPACKET if self._on_message is not None else socket.SOCK_STREAM
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        with theirs:
            ours.setblocking(False)
            inherited = (self._listener.fileno(), theirs.fileno())
            environment = {
                name: value
                for name, value in os.environ.items()
                if name.startswith(("CATTY_", "PYTHON", "COVERAGE_")) or name in ("PATH", "LANG")
            }
            argv = [sys.executable, *_interpreter_flags(), "-m", f"catty.runtime.{self.name}", *map(str, inherited)]
            for fd in inherited:
                os.set_inheritable(fd, True)
            try:
                self.pid = os.posix_spawn(
                    sys.executable, argv, environment, setpgroup=0, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ]
                )
            except OSError:  # a fork bomb must not end PID 1 too
                ours.close()
                self._events.later(_BACKOFF_FIRST_S, self.start)
                return
            finally:
                for fd in inherited:
                    os.set_inheritable(fd, False)
        self._begun = time.monotonic()
        self._channel = ours
        first = self._boot()
        if first is not None:
            self.post(*first)
        self._flush()

    def stop(self) -> None:
        """End it for good."""
        self._stopped = True
        if self.pid is not None:
            os.kill(self.pid, signal.SIGTERM)

    def post(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Send a message; lost if the process is not there, as `boot` will say it all."""
        if self._channel is not None:
            self._outbox.append((message, tuple(map(os.dup, fds))))
            self._flush()

    def reaped(self, pid: int) -> bool:
        """A child of init has ended: whether it was this one, which is then started again."""
        if pid != self.pid:
            return False
        self.pid = None
        self._drop_channel()
        self._failures = 0 if time.monotonic() - self._begun > _STEADY_S else self._failures + 1
        doublings = self._failures - _AT_ONCE - 1
        delay = min(_BACKOFF_FIRST_S * 2.0**doublings, _BACKOFF_MAX_S) if doublings >= 0 else 0.0
        self._events.later(delay, self.start)
        self.on_end()
        return True

    def _flush(self) -> None:
        if self._channel is None:
            return
        while self._outbox:
            message, fds = self._outbox[0]
            try:
                self._send(self._channel, message, fds)
            except BlockingIOError:
                self._events.watch(self._channel.fileno(), self._on_readable, self._flush)
                return
            except OSError:
                return  # it has ended; its reaping follows
            self._outbox.popleft()
            self._close(fds)
        self._events.watch(self._channel.fileno(), self._on_readable)

    def _send(self, channel: socket.socket, message: Message, fds: tuple[int, ...]) -> None:
        if self._on_message is not None:
            initproto.send(channel, message, fds)
        else:
            channel.sendall(json.dumps(message).encode() + b"\n")  # once or twice in its life: the buffer holds it

    def _on_readable(self) -> None:
        while self._channel is not None:
            try:
                received = initproto.receive(self._channel) if self._on_message is not None else None
            except BlockingIOError:
                return
            except OSError:
                received = None
            if received is None or self._on_message is None:
                self._drop_channel()
                return
            self._on_message(self, *received)

    def _drop_channel(self) -> None:
        if self._channel is not None:
            self._events.unwatch(self._channel.fileno())
            self._channel.close()
            self._channel = None
        for _, fds in self._outbox:
            self._close(fds)
        self._outbox.clear()

    def _close(self, fds: tuple[int, ...]) -> None:
        for fd in fds:
            os.close(fd)


def oom_scores() -> int:
    """Protect this process, and those that it starts, from the OOM killer as far as permitted.

    Returns the score that the agent and its like are to have.
    """
    for score in (-999, -500, 0):
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write(str(score))
        except OSError:
            continue
        return 0 if score < 0 else _AGENT_OOM_SCORE
    return _AGENT_OOM_SCORE


def become_subreaper() -> None:
    """Be to one's descendants what PID 1 is to all: inherit their orphans."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _listen(path: str) -> socket.socket:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)  # the server is root to this socket's owner, or that owner itself
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(_BACKLOG)
    return listener


def _interpreter_flags() -> list[str]:
    flags = sys.flags
    return ["-I" if flags.isolated else "-P", *(["-S"] if flags.no_site else [])]
