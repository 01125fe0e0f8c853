"""Starts programs: a fork of `init` that becomes the wanted user, with its terminal or pipes, and executes.

What goes wrong on the way the program's own standard error says, with a shell's exit codes: 127 not found, 126 not executable.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import termios
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

__all__ = ["User", "agent_user", "root_user", "spawn"]

_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127


class User(NamedTuple):
    """Whom a program runs as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str

    def environment(self) -> dict[str, str]:
        """What a login would set."""
        return {
            "HOME": self.home,
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": self.shell,
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            "PATH": os.environ.get("PATH", _DEFAULT_PATH),
        }


def agent_user(uid: int, home: str) -> User:
    """The agent's user; `home` is the machine's choice."""
    import pwd

    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return User("agent", uid, uid, (uid,), home, "/bin/sh")
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return User(entry.pw_name, uid, entry.pw_gid, groups, home, entry.pw_shell or "/bin/sh")


def root_user() -> User:
    return User("root", 0, 0, (0,), "/root", "/bin/bash")


def spawn(
    prepare: Callable[[], Sequence[str]],
    fds: Sequence[int],
    *,
    user: User,
    cwd: str,
    env: Mapping[str, str],
    tty: bool,
    oom_score: int,
) -> int:
    """Start a program in a session of its own and return its pid.

    `prepare` runs in the new process, as the user and in `cwd`, and returns the command line. `fds` become its standard input,
    output and error; with `tty` the first one is the session's terminal. `oom_score` is what its oom_score_adj is raised to.
    """
    pid = os.fork()
    if pid:
        return pid
    code = _NOT_EXECUTABLE
    try:
        argv: Sequence[str] = ("program",)
        try:
            _become(fds, user, tty=tty, oom_score=oom_score)
            os.chdir(cwd)
            argv = prepare()
            os.execvpe(argv[0], list(argv), dict(env))  # noqa: S606  # what the caller asks for is run
        except FileNotFoundError as error:
            code = _NOT_FOUND
            _complain(error.filename if error.filename == cwd else argv[0], error)
        except Exception as error:
            _complain(argv[0], error)
    finally:
        os._exit(code)


def _become(fds: Sequence[int], user: User, *, tty: bool, oom_score: int) -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in fds]  # out of the way of one another's targets
    for target, fd in enumerate(moved):
        os.dup2(fd, target)
    if tty:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.umask(0o022)
    _limit(oom_score)
    if user.uid != os.getuid() or user.gid != os.getgid():
        os.setgroups(user.groups)
        os.setgid(user.gid)
        os.setuid(user.uid)


def _limit(oom_score: int) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # a core file would put secrets into the workspace
    # where that is not permitted it is killed no sooner than the runtime
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(oom_score))


def _complain(what: str, error: Exception) -> None:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(2, f"catty: {what}: {reason}\n".encode())
