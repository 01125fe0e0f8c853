"""PID 1 of a machine: supervises `terminal` and `workspace`, and holds what must outlive them.

Standard library only, and little of it: whatever the agent breaks, this process goes on. It keeps the listening sockets, the PTY, the
claim with its secrets, and the files of the terminal's logs (docs/design.md, "Exactly once"), starts the agent and what `exec` asks
for, and reaps. A supervised process that ends, by kill -9 too, is started again and gets everything back.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from typing import Any, Final

from catty import constants
from catty.runtime import initproto, processes
from catty.runtime.agent import Agent, end_sessions
from catty.runtime.events import Events
from catty.runtime.initproto import Message
from catty.runtime.settings import Settings
from catty.runtime.spawn import User, agent_user, root_user, spawn
from catty.runtime.supervise import Child, oom_scores

__all__ = ["main"]

_KILL_AFTER_S: Final = 1.0  # between HUP and KILL for a program whose connection has ended
_END_GRACE_S: Final = constants.STOP_GRACE_S / 2  # for the agent on SIGTERM; the engine's own grace must not run out
_PAGE_BYTES: Final = 64 << 10
_INHERITED_MAX: Final = 1 << 16
_REPORTED_SIGNALS: Final = frozenset(range(1, 65))


class Refused(Exception):
    """A request cannot be granted; `code` goes into the reply."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Init:
    """See the module's text."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._events = Events()
        self._epoch = os.urandom(16).hex()
        self._claim: dict[str, Any] | None = None
        self._claim_text = ""
        self._session_env: dict[str, str] = {}  # the user's secrets and settings
        self.machine_env: dict[str, str] = {}  # found out at boot: CA certificates
        self._oom_score = oom_scores()
        self._user = agent_user(settings.agent_uid, settings.home)
        self._agent = Agent(self._events, self._to_terminal)
        self._started = False  # the workspace is in place
        self._secrets_pending = False
        self._stopping = False
        self._exit = False
        self._programs: set[int] = set()  # running, spawned for `exec`
        self._ended_cpu = 0.0  # of programs reaped so far
        self._files = _terminal_files()
        self._terminal = Child("terminal", settings.endpoint, self._events, self._boot_terminal, self._on_message)
        self._workspace = Child("workspace", settings.endpoint, self._events, self._boot_workspace)
        self._terminal.on_end = self._on_terminal_end

    # ------------------------------------------------------------------------------------ life

    def start(self) -> None:
        """Install the signals and start the processes."""
        end = self._on_end_wanted
        self._events.on_signals({signal.SIGCHLD: self._reap, signal.SIGTERM: end, signal.SIGINT: end})
        if not self._settings.salvage:
            self._terminal.start()
        self._workspace.start()

    def run(self) -> int:
        """Serve until the end of the machine is wanted; then 0."""
        while not self._exit:
            self._events.run_once()
        for child in (self._terminal, self._workspace):
            child.stop()
        for process in processes.descendants(os.getpid()):
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return 0

    def _on_end_wanted(self) -> None:
        self._end(_END_GRACE_S, self._leave)

    def _leave(self) -> None:
        self._exit = True

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            exit_code = os.waitstatus_to_exitcode(status)
            code, number = (exit_code, None) if exit_code >= 0 else (None, -exit_code)
            if any(child.reaped(pid) for child in (self._terminal, self._workspace)):
                continue
            self._ended_cpu += usage.ru_utime + usage.ru_stime
            if pid == self._agent.pid:
                self._agent.ended(code, number)
            elif pid in self._programs:
                self._programs.discard(pid)
                self._to_terminal({"event": "exit", "pid": pid, "code": code, "signal": number}, ())

    # ------------------------------------------------------------------------------------ terminal, workspace

    def _boot_terminal(self) -> tuple[Message, tuple[int, ...]]:
        master = self._agent.master
        fds = (*self._files, *((master,) if master is not None else ()))
        boot = {
            "event": "boot",
            "epoch": self._epoch,
            "machine": self._settings.machine,
            "claim": initproto.public_claim(self._claim) if self._claim is not None else None,
            "agent": self._agent.describe(),
        }
        return boot, fds

    def _boot_workspace(self) -> tuple[Message, tuple[int, ...]] | None:
        return (initproto.public_claim(self._claim), ()) if self._claim is not None else None

    def _to_terminal(self, message: Message, fds: tuple[int, ...]) -> None:
        self._terminal.post(message, fds)

    def _on_terminal_end(self) -> None:
        for pid in tuple(self._programs):  # their connections are gone
            self._hang_up(pid)

    def _on_message(self, child: Child, message: Message, fds: list[int]) -> None:
        reply: Message
        try:
            handler = _OPERATIONS.get(message.get("op", ""))
            if handler is None:
                raise Refused("bad-request", f"no operation {message.get('op')!r}")
            result = handler(self, message, fds)
            if result is None:
                return  # answered later
            reply = {"ok": True, **result}
        except Refused as error:
            reply = {"ok": False, "error": error.code, "message": str(error)}
        except (KeyError, TypeError, ValueError, OSError) as error:
            reply = {"ok": False, "error": "failed", "message": f"{type(error).__name__}: {error}"}
        finally:
            for fd in fds:
                os.close(fd)
        child.post({"id": message.get("id"), **reply})

    # ------------------------------------------------------------------------------------ operations

    def _on_claim(self, message: Message, _fds: list[int]) -> Message:
        text = message["text"]
        if self._claim is None:
            claim = json.loads(text)
            public = initproto.public_claim(claim)
            self._claim, self._claim_text = claim, text
            self._session_env = dict(claim.get("env", {}))
            self._secrets_pending = bool(claim.get("secrets_pending"))
            self._terminal.post({"event": "claimed", "claim": public})
            self._workspace.post(public)
            self._agent.wait_for("workspace")
        elif text != self._claim_text:
            raise Refused("claim-refused", "this machine belongs to another session")
        return {"epoch": self._epoch}

    def _on_start(self, message: Message, _fds: list[int]) -> Message:
        claim, agent = self._claimed(), self._agent
        fresh = bool(message.get("fresh"))
        if self._stopping:
            raise Refused("stopping", "the machine is being stopped")
        if fresh and not self._started:
            return {}  # the workspace is not in place yet; the server's own start will come
        self._started = True
        if self._secrets_pending:
            if agent.wants != "secrets":
                agent.wait_for("secrets")
        elif agent.state == "waiting" or (agent.state == "exited" and fresh):
            size = (message.get("cols") or claim.get("cols", 80), message.get("rows") or claim.get("rows", 24))
            env = self._environment(self._user) | claim["agent"].get("env", {}) | self._session_env
            agent.start(
                claim["agent"],
                size,
                user=self._user,
                cwd=self._settings.workspace,
                env=env,
                oom_score=self._oom_score,
            )
        return {}

    def _on_env(self, message: Message, fds: list[int]) -> Message:
        self._claimed()
        self._session_env |= message["env"]
        self._secrets_pending = False
        if self._started and self._agent.state == "waiting" and not self._stopping:
            self._on_start(message, fds)
        return {}

    def _on_spawn(self, message: Message, fds: list[int]) -> Message:
        claim = self._claimed()
        if self._stopping:
            raise Refused("stopping", "the machine is being stopped")
        user = root_user() if message["user"] == "root" and os.getuid() == 0 else self._user
        env = self._environment(user) | claim["agent"].get("env", {}) | self._session_env | message["env"]
        argv = message["argv"]
        cwd = message["cwd"] or self._settings.workspace
        tty = bool(message["tty"])
        pid = spawn(lambda: argv, fds[:3], user=user, cwd=cwd, env=env, tty=tty, oom_score=self._oom_score)
        self._programs.add(pid)
        return {"pid": pid}

    def _on_signal(self, message: Message, _fds: list[int]) -> Message:
        number = message["signal"]
        if number not in _REPORTED_SIGNALS:
            raise Refused("bad-request", f"no signal {number}")
        pid = message.get("pid") or self._agent.pid
        if pid == self._agent.pid or pid in self._programs:
            _kill_group(pid, number)
        return {}

    def _on_kill(self, message: Message, _fds: list[int]) -> Message:
        if message["pid"] in self._programs:
            self._hang_up(message["pid"])
        return {}

    def _on_usage(self, _message: Message, _fds: list[int]) -> Message:
        runtime = [child.pid for child in (self._terminal, self._workspace) if child.pid is not None]
        running = processes.descendants(os.getpid(), without=runtime)
        return {"cpu_seconds": processes.cpu_seconds(running) + self._ended_cpu, "execs": len(self._programs)}

    def _on_shutdown(self, message: Message, _fds: list[int]) -> Message | None:
        self._end(max(0.0, float(message["grace"])), lambda: self._terminal.post({"id": message["id"], "ok": True}))
        return None

    def _end(self, grace: float, done: Callable[[], None]) -> None:
        self._stopping = True
        sessions = set(self._programs)
        if self._agent.pid is not None:
            sessions.add(self._agent.pid)

        def reaped() -> None:
            self._reap()  # so that the agent's exit is announced before `done`
            done()

        end_sessions(self._events, lambda: sessions, grace, reaped)

    # ------------------------------------------------------------------------------------ inside

    def _claimed(self) -> dict[str, Any]:
        if self._claim is None:
            raise Refused("claim-refused", "this machine belongs to no session yet")
        return self._claim

    def _environment(self, user: User) -> dict[str, str]:
        """What the image, the login and the boot give every program; CATTY_* and the runtime's own settings stay out."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("CATTY_", "PYTHON"))}
        return own | user.environment() | self.machine_env

    def _hang_up(self, pid: int) -> None:
        _kill_group(pid, signal.SIGHUP)
        _kill_group(pid, signal.SIGCONT)

        def kill() -> None:
            if pid in self._programs:
                _kill_group(pid, signal.SIGKILL)

        self._events.later(_KILL_AFTER_S, kill)


_OPERATIONS: Final = {
    "claim": Init._on_claim,
    "start": Init._on_start,
    "env": Init._on_env,
    "spawn": Init._on_spawn,
    "signal": Init._on_signal,
    "kill": Init._on_kill,
    "usage": Init._on_usage,
    "shutdown": Init._on_shutdown,
}


def _kill_group(pid: int | None, number: int) -> None:
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _terminal_files() -> tuple[int, ...]:
    """The descriptors of `initproto.TERMINAL_FILES`."""
    output, keys, page = (os.memfd_create(name) for name in ("output", "input", "page"))
    os.truncate(page, _PAGE_BYTES)
    reader = os.open(f"/proc/self/fd/{keys}", os.O_RDONLY | os.O_CLOEXEC)
    pipes = [os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(2)]
    return (output, *pipes[0], keys, reader, *pipes[1], page)


def main() -> int:
    """Run a machine until SIGTERM. Returns its exit code."""
    os.closerange(3, _INHERITED_MAX)  # nothing of whoever started this process gets to the agent
    settings = Settings.from_environment(os.environ)
    init = Init(settings)
    if os.getpid() == 1:
        from catty.runtime import boot

        boot.close_network(settings.closed)
        boot.drop_network_rights()
        init.start()
        init.machine_env = boot.trust(settings.ca)
        boot.own(settings.workspace, settings.home, settings.agent_uid)
    else:
        from catty.runtime.supervise import become_subreaper

        become_subreaper()
        init.start()
    return init.run()


if __name__ == "__main__":
    raise SystemExit(main())
