from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import time
import tty
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catty.runtime import outputlog
from catty.runtime.outputlog import OutputLog
from runtime.crashes import Killed, dying, fork

RING = 1 << 30


class Files:
    """What `init` holds: the log's memfd and pipe, and a PTY that a program prints to."""

    def __init__(self) -> None:
        self.memfd = os.memfd_create("output")
        self.pipe = os.pipe2(os.O_NONBLOCK)
        self.master, self.slave = os.openpty()
        os.set_blocking(self.master, False)
        tty.setraw(self.slave)

    def log(self, ring: int = RING) -> OutputLog:
        return OutputLog(self.memfd, *self.pipe, ring)

    def close(self) -> None:
        for fd in (self.memfd, *self.pipe, self.master, self.slave):
            os.close(fd)


@pytest.fixture
def files() -> Iterator[Files]:
    made = Files()
    yield made
    made.close()


def stream(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def test_output_comes_whole_and_in_order(files: Files) -> None:
    log = files.log()
    assert (log.start, log.end) == (0, 0)
    os.write(files.slave, b"hello ")
    assert log.pull(files.master, RING)
    os.write(files.slave, b"world")
    assert log.pull(files.master, RING)
    assert log.read(0, 100) == b"hello world"
    assert log.read(6, 3) == b"wor"
    assert log.end == 11


def test_it_stops_at_the_limit_and_leaves_the_rest_in_the_terminal(files: Files) -> None:
    log = files.log()
    os.write(files.slave, stream(1000))
    assert not log.pull(files.master, 300)
    assert log.end == 300
    assert log.pull(files.master, RING)
    assert log.read(0, 2000) == stream(1000)


def test_the_end_of_a_terminal(files: Files) -> None:
    log = files.log()
    os.write(files.slave, b"last words")
    os.close(files.slave)
    with pytest.raises(EOFError):
        log.pull(files.master, RING)
    assert log.read(0, 100) == b"last words"
    files.slave = os.open(os.devnull, os.O_RDONLY)


def test_the_next_one_goes_on_where_the_last_one_was(files: Files) -> None:
    os.write(files.slave, b"one ")
    files.log().pull(files.master, RING)
    os.write(files.pipe[1], b"two ")  # killed between the two moves
    log = files.log()
    assert log.end == 8
    os.write(files.slave, b"three")
    log.pull(files.master, RING)
    assert log.read(0, 100) == b"one two three"


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_each_system_call(files: Files, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
    expected = b""
    for number in range(1, 12):
        news = stream(3000, number)
        os.write(files.slave, news)
        expected += news
        with dying(monkeypatch, outputlog, number, after=after), contextlib.suppress(Killed):
            files.log().pull(files.master, RING)
    log = files.log()
    log.pull(files.master, RING)
    assert log.read(0, len(expected) + 1) == expected


def test_kill_9_at_any_moment(files: Files) -> None:
    expected = stream(4 << 20)

    def print_all() -> None:
        at = 0
        while at < len(expected):
            at += os.write(files.slave, expected[at : at + 5000])

    def take() -> None:
        log = files.log()
        while True:
            select.select([files.master], [], [])
            log.pull(files.master, log.end + 100_000)

    chance = random.Random(7)
    kills = 0
    deadline = time.monotonic() + 30
    printer = fork(print_all)
    try:
        while files.log().end < len(expected):
            assert time.monotonic() < deadline, "output is missing"
            taker = fork(take)
            time.sleep(chance.random() * 0.01)  # the moment of death, not a wait for anything
            os.kill(taker, signal.SIGKILL)
            os.waitpid(taker, 0)
            kills += 1
    finally:
        os.kill(printer, signal.SIGKILL)
        os.waitpid(printer, 0)
    log = files.log()
    assert log.end == len(expected)
    assert log.read(0, log.end) == expected
    assert kills > 5


def test_old_pages_are_given_back(files: Files) -> None:
    ring = 1 << 20
    log = files.log(ring)
    data = stream(60_000)
    for _ in range(120):
        os.write(files.pipe[1], data)  # a source that is quicker than a terminal
        log = files.log(ring)
        log._punch()
    assert log.end == 120 * 60_000
    assert log.start == log.end - ring
    held = os.fstat(files.memfd).st_blocks * 512
    assert ring <= held <= ring + (3 << 20)
    assert log.read(log.start, ring)[-60_000:] == data


def test_a_terminal_that_cannot_splice(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    log = files.log()

    def refuse(*_: object) -> int:
        raise OSError(22, "no splice here")

    monkeypatch.setattr(log, "_splice", refuse)
    os.write(files.slave, b"by hand")
    assert log.pull(files.master, RING)
    assert log.read(0, 100) == b"by hand"
    os.write(files.slave, b"!")
    assert log.pull(files.master, RING)
    assert files.log().read(0, 100) == b"by hand!"


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=3000), st.integers(1, 4000), st.none()), max_size=20))
def test_any_order_of_printing_taking_and_dying(steps: list[bytes | int | None]) -> None:
    """bytes: printed; a number: taken up to so many more; None: a new process."""
    files = Files()
    try:
        log, expected, printed = files.log(), b"", 0
        for step in steps:
            if isinstance(step, bytes):
                if len(expected) - log.end + len(step) < 4000:  # what a terminal takes without a reader
                    expected += step
                    printed += os.write(files.slave, step)
            elif step is None:
                log = files.log()
            else:
                log.pull(files.master, log.end + step)
        log.pull(files.master, RING)
        assert log.read(0, RING) == expected
        assert log.end == printed
    finally:
        files.close()
