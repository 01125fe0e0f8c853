"""Processes that die at any instruction: exhaustively, by an exception at each system call, and for real, by SIGKILL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest


class Killed(BaseException):
    """Stands for the end of the process at one place."""


class Fuse:
    """Stands in for the module `os`: raises Killed around the n-th of the calls that change something."""

    CALLS = ("splice", "write", "read", "lseek")

    def __init__(self, number: int, *, after: bool) -> None:
        self._left = number
        self._after = after

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._wrap(real) if name in self.CALLS else real

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise Killed
            result = real(*args, **kwargs)
            if self._left == 0:
                raise Killed
            return result

        return call


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, module: ModuleType, number: int, *, after: bool) -> Iterator[None]:
    """Inside, `module` dies before or after its n-th system call."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "os", Fuse(number, after=after))
        yield


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a process of its own; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid
