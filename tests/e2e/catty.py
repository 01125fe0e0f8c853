"""The command line as a user has it: one home, one project; and how two trees are compared."""

from __future__ import annotations

import json
import stat
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from e2e.terminal import Terminal, terminal
from homes import home_environment


class Catty:
    """The command line, in one home; started in `project` unless told otherwise."""

    def __init__(self, command: str, home: Path, project: Path, **env: str) -> None:
        self.command, self.home, self.project = command, home, project
        self.env = {**home_environment(home), **env}

    def given(self, **env: str) -> Catty:
        """The same with more in its environment."""
        return Catty(self.command, self.home, self.project, **{**self.env, **env})

    def call(
        self, *args: str, stdin: bytes = b"", cwd: Path | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command whatever its exit code."""
        return subprocess.run(
            [self.command, *args],
            input=stdin,
            cwd=cwd or self.project,
            env=self.env,
            capture_output=True,
            check=False,
            timeout=timeout,
        )

    def run(self, *args: str, stdin: bytes = b"", cwd: Path | None = None, timeout: float = 120) -> bytes:
        """What a command that must succeed prints."""
        done = self.call(*args, stdin=stdin, cwd=cwd, timeout=timeout)
        assert done.returncode == 0, f"catty {args} exited {done.returncode}: {done.stderr.decode()}"
        return done.stdout

    def start(self, *args: str, **options: Any) -> subprocess.Popen[bytes]:
        """A command under way, its output in pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [self.command, *args], cwd=self.project, env=self.env, stdin=pipe, stdout=pipe, stderr=pipe, **options
        )

    def new(self, *args: str) -> str:
        """The label of a new session, running and detached."""
        session = json.loads(self.run("new", "-d", "--json", "--yes", *args, timeout=1800))
        assert session["state"] == "running"
        return str(session["label"])

    def session(self, label: str) -> dict[str, Any]:
        """What `list` says of a session."""
        sessions: list[dict[str, Any]] = json.loads(self.run("list", "--json", "--all"))
        return next(session for session in sessions if session["label"] == label)

    def terminal(self, *args: str, cwd: Path | None = None) -> AbstractContextManager[Terminal]:
        """A command in a real terminal."""
        return terminal([self.command, *args], cwd=cwd or self.project, env=self.env)

    def exec(self, label: str, script: str, stdin: bytes = b"") -> bytes:
        """What a shell script prints inside a session's machine."""
        return self.run("exec", label, "--", "bash", "-c", script, stdin=stdin)


def tree(root: Path) -> dict[str, Any]:
    """Everything about a tree that a user would miss: kinds, contents, exec bits, link targets, empty directories."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_dir():
            found[name] = ("dir",)
        else:
            found[name] = ("file", path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR))
    return found


def machine_tree(catty: Catty, label: str, to: Path) -> dict[str, Any]:
    """The machine's /workspace as it is now, fetched without any of the code under test."""
    to.mkdir()
    archive = catty.exec(label, "tar -C /workspace -cf - --exclude=./node_modules .")
    subprocess.run(["tar", "-xf", "-", "-C", str(to)], input=archive, check=True)
    return tree(to)
