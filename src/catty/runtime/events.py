"""The event loop of `init`: descriptors, timers, signals. asyncio would cost PID 1 8 MB."""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable

__all__ = ["Events"]

Callback = Callable[[], None]


class Events:
    """Calls back, one at a time, in the thread that calls `run_once`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callback]] = []
        self._order = itertools.count()
        self._signals: dict[int, Callback] = {}

    def watch(self, fd: int, on_readable: Callback, on_writable: Callback | None = None) -> None:
        """Call back while `fd` is readable, and writable if asked for. Watching it again changes the callbacks."""
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if on_writable is not None else 0)
        if fd in self._selector.get_map():
            self._selector.modify(fd, wanted, (on_readable, on_writable))
        else:
            self._selector.register(fd, wanted, (on_readable, on_writable))

    def unwatch(self, fd: int) -> None:
        """Before the descriptor is closed."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def later(self, seconds: float, callback: Callback) -> None:
        """Call back once, `seconds` from now."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), callback))

    def on_signals(self, callbacks: dict[int, Callback]) -> None:
        """Call back from the loop, not from the handler, when one of these signals has arrived."""
        self._signals = callbacks
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in callbacks:
            signal.signal(number, _wake)
        self.watch(reader, lambda: self._on_signal(reader))

    def run_once(self) -> None:
        """Wait for the next event and handle all that are due."""
        timeout = None if not self._timers else max(0.0, self._timers[0][0] - time.monotonic())
        ready = self._selector.select(timeout)
        for key, events in ready:
            readable, writable = key.data
            if events & selectors.EVENT_WRITE and writable is not None:
                writable()
            if events & selectors.EVENT_READ and self._selector.get_map().get(key.fd) is key:
                readable()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def _on_signal(self, reader: int) -> None:
        self._handle(set(os.read(reader, 4096)))

    def _handle(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if number in self._signals:
                self._signals[number]()


def _wake(_number: int, _frame: object) -> None:
    """A handler must be there for the signal to reach the wake-up descriptor."""
