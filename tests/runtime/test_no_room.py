"""A machine whose processes have used up all that it has: PID 1 goes on, and loses nothing of its own."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from catty.runtime.agent import Agent
from catty.runtime.events import Events
from catty.runtime.spawn import agent_user
from catty.runtime.supervise import Child


@pytest.fixture
def endpoint() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="catty") as directory:
        yield directory


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def full(*_: Any, **__: Any) -> int:
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_a_process_that_cannot_be_started_is_started_later(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    events = Events()
    child = Child("terminal", endpoint, events, lambda: None)
    monkeypatch.setattr(os, "posix_spawn", full)
    before = open_descriptors()
    child.start()
    events.run_once()
    assert (child.pid, open_descriptors()) == (None, before)
    monkeypatch.setattr(os, "posix_spawn", lambda *_, **__: 4242)
    events.run_once()
    assert child.pid == 4242
    child.pid = None
    child._drop_channel()
    child._listener.close()


def test_an_agent_that_cannot_be_started_leaves_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    agent = Agent(Events(), lambda message, fds: said.append((message, fds)))
    launch = {"start": ["true"]}
    how: dict[str, Any] = {"user": agent_user(os.getuid(), str(tmp_path)), "cwd": "/", "env": {}, "oom_score": 0}
    agent.start(launch, (80, 24), **how)
    first, before = agent.master, open_descriptors()
    assert first is not None
    assert agent.pid is not None
    os.waitpid(agent.pid, 0)
    agent.ended(0, None)
    said.clear()
    monkeypatch.setattr(os, "fork", full)
    with pytest.raises(OSError, match="temporarily unavailable"):
        agent.start(launch, (80, 24), **how)
    assert (agent.state, agent.master, said, open_descriptors()) == ("exited", first, [], before)
