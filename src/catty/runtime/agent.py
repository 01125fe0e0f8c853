"""The agent's life, as `init` keeps it: waiting, running, exited, and started again by a fresh attach."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import termios
import time
from collections.abc import Callable
from typing import Any, Final

from catty.runtime import agentfiles, processes
from catty.runtime.events import Events
from catty.runtime.initproto import Message
from catty.runtime.spawn import User, spawn

__all__ = ["Agent", "end_sessions"]

_POLL_S: Final = 0.05
_IUTF8: Final = 0o40000  # erasing in a cooked line takes whole characters; `termios` has no name for it

Announce = Callable[[Message, tuple[int, ...]], None]


class Agent:
    """`state` is "waiting" (for `wants`: "workspace" or "secrets"), "running" or "exited" (`code` or `signal`).

    `launch` is the claim's, as JSON. Each change is announced as an `agent` event; a new PTY's master goes along.
    """

    def __init__(self, events: Events, announce: Announce) -> None:
        self.state = "waiting"
        self.wants = "workspace"
        self.code: int | None = None
        self.signal: int | None = None
        self.pid: int | None = None
        self.resumed: bool | None = None
        self.master: int | None = None
        self._slave: int | None = None
        self._events = events
        self._announce = announce

    def describe(self) -> Message:
        """For `boot` and the `agent` event."""
        return {
            "state": self.state,
            "wants": self.wants,
            "code": self.code,
            "signal": self.signal,
            "pid": self.pid,
            "resumed": self.resumed,
        }

    def wait_for(self, what: str) -> None:
        """What the agent waits for has changed."""
        self.wants = what
        self._announce({"event": "agent", **self.describe()}, ())

    def start(
        self,
        launch: dict[str, Any],
        size: tuple[int, int],
        *,
        user: User,
        cwd: str,
        env: dict[str, str],
        oom_score: int,
    ) -> None:
        """Start it in a new PTY of `size` (cols, rows). Raises OSError while the machine has no room for another process."""
        master, slave = os.openpty()
        os.set_blocking(master, False)
        attributes = termios.tcgetattr(slave)
        attributes[0] |= _IUTF8
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        if user.uid != os.getuid():
            os.fchown(slave, user.uid, -1)
        report, reporter = os.pipe2(os.O_CLOEXEC)

        def prepare() -> list[str]:
            argv, resumed = agentfiles.make_ready(launch, user.home, env)
            os.write(reporter, b"R" if resumed else b"S")
            return list(argv)

        try:
            self.pid = spawn(prepare, (slave,) * 3, user=user, cwd=cwd, env=env, tty=True, oom_score=oom_score)
        except OSError:
            for fd in (master, slave, report):
                os.close(fd)
            raise
        finally:
            os.close(reporter)
        self._close_terminal()
        self.master, self._slave = master, slave  # the slave stays open: its last close would end the master
        self.state, self.code, self.signal, self.resumed = "running", None, None, None
        self._events.watch(report, lambda: self._on_report(report))
        self._announce({"event": "agent", **self.describe()}, (master,))

    def ended(self, code: int | None, signal_: int | None) -> None:
        """Its process has been reaped."""
        self.state, self.pid, self.code, self.signal = "exited", None, code, signal_
        self._announce({"event": "agent", **self.describe()}, ())

    def _on_report(self, report: int) -> None:
        said = os.read(report, 1)
        self._events.unwatch(report)
        os.close(report)
        if said and self.state == "running":
            self.resumed = said == b"R"
            self._announce({"event": "agent", **self.describe()}, ())

    def _close_terminal(self) -> None:
        for fd in (self.master, self._slave):
            if fd is not None:
                os.close(fd)
        self.master = self._slave = None


def end_sessions(events: Events, sessions: Callable[[], set[int]], grace: float, done: Callable[[], None]) -> None:
    """End all processes of some sessions: HUP at once, TERM after a third of `grace` (seconds), KILL at its end; then call `done`.

    `sessions` is asked time and again; a session whose leader has been reaped stays in it until `done`.
    """
    begun = time.monotonic()
    # HUP twice: a shell that gets it while it starts up forgets about it, and an interactive one ignores TERM.
    stages = [(0.0, signal.SIGHUP), (grace / 10, signal.SIGHUP), (grace / 3, signal.SIGTERM), (grace, signal.SIGKILL)]

    def step() -> None:
        left = processes.members(processes.descendants(os.getpid()), sessions())
        if not left:
            done()
            return
        while stages and time.monotonic() - begun >= stages[0][0]:
            number = stages.pop(0)[1]
            for pid in left:
                _kill(pid, number)
                _kill(pid, signal.SIGCONT)
        if stages or time.monotonic() - begun < grace + 1:
            events.later(_POLL_S, step)
        else:
            done()  # what SIGKILL does not end within a second is stuck in the kernel

    step()


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
