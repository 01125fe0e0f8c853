from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import struct
import time
import tty
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catty.errors import BadRequest
from catty.runtime import inputlog, page
from catty.runtime.inputlog import InputLog
from catty.runtime.page import Page
from runtime.crashes import Killed, dying, fork


class Files:
    """What `init` holds, and the terminal that a program reads from."""

    def __init__(self) -> None:
        self.memfd = os.memfd_create("input")
        self.reader = os.open(f"/proc/self/fd/{self.memfd}", os.O_RDONLY)
        self.pipe = os.pipe2(os.O_NONBLOCK)
        self.page = os.memfd_create("page")
        os.truncate(self.page, page.SIZE)
        self.master, self.slave = os.openpty()
        os.set_blocking(self.master, False)
        os.set_blocking(self.slave, False)
        tty.setraw(self.slave)

    def log(self) -> InputLog:
        return InputLog(self.memfd, self.reader, *self.pipe, Page(self.page))

    def typed(self) -> bytes:
        """What has arrived at the program."""
        data = b""
        while select.select([self.slave], [], [], 0)[0]:
            data += os.read(self.slave, 65536)
        return data

    def close(self) -> None:
        for fd in (self.memfd, self.reader, *self.pipe, self.page, self.master, self.slave):
            os.close(fd)


@pytest.fixture
def files() -> Iterator[Files]:
    made = Files()
    yield made
    made.close()


def test_keys_are_taken_once_and_arrive(files: Files) -> None:
    log = files.log()
    assert log.register("one", set()) == 0
    assert log.take("one", 0, b"abc") == 3
    assert log.take("one", 0, b"abcd") == 4  # sent again with one more
    assert log.take("one", 1, b"bc") == 4
    assert log.feed(files.master)
    assert files.typed() == b"abcd"
    assert (log.end, log.fed, log.pending) == (4, 4, 0)


def test_a_gap_is_refused(files: Files) -> None:
    log = files.log()
    log.register("one", set())
    with pytest.raises(BadRequest, match="gap"):
        log.take("one", 1, b"x")


def test_clients_have_offsets_of_their_own(files: Files) -> None:
    log = files.log()
    for name in ("one", "two"):
        log.register(name, set())
    log.take("one", 0, b"11")
    log.take("two", 0, b"222")
    log = files.log()
    assert (log.register("one", set()), log.register("two", set()), log.register("new", set())) == (2, 3, 0)
    log.feed(files.master)
    assert files.typed() == b"11222"


@pytest.mark.parametrize("name", ["", "x" * 65, "ü" * 33])
def test_client_ids_have_bounds(files: Files, name: str) -> None:
    with pytest.raises(BadRequest):
        files.log().register(name, set())


def test_the_client_not_heard_of_for_longest_is_forgotten(files: Files) -> None:
    log = files.log()
    for number in range(page.CLIENTS):
        log.register(f"c{number}", set())
        log.take(f"c{number}", 0, b"x")
    assert log.register("c0", set()) == 1
    assert log.register("new", {"c1"}) == 0
    assert log.register("c1", set()) == 1  # attached: kept
    assert log.register("c2", set()) == 0  # forgotten
    with pytest.raises(BadRequest, match="too many"):
        log.register("another", {f"c{n}" for n in range(page.CLIENTS)} | {"new"})


def test_a_program_that_does_not_read(files: Files) -> None:
    log = files.log()
    log.register("one", set())
    data = random.Random(1).randbytes(300_000)
    log.take("one", 0, data)
    assert not log.feed(files.master)
    assert log.pending > 200_000
    arrived = b""
    while not log.feed(files.master):
        arrived += files.typed()
    while len(arrived) < len(data):
        arrived += files.typed()
    assert arrived == data


def test_what_a_program_did_not_read_is_not_for_the_next_one(files: Files) -> None:
    log = files.log()
    log.register("one", set())
    log.take("one", 0, bytes(200_000))
    log.feed(files.master)
    log.drop_pending()
    assert log.pending == 0
    files.typed()
    log.take("one", 200_000, b"news")
    log.feed(files.master)
    assert files.typed().lstrip(b"\0") == b"news"


def test_pages_of_what_was_fed_are_given_back(files: Files) -> None:
    log = files.log()
    log.register("one", set())
    data = bytes(3000)
    for number in range(400):
        log.take("one", number * 3000, data)
        while not log.feed(files.master):
            files.typed()
        files.typed()
    assert os.fstat(files.memfd).st_blocks * 512 < 200_000


def test_a_terminal_that_cannot_splice(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.splice

    def splice(source: int, target: int, *rest: int, **more: int) -> int:
        if target == files.master:
            raise OSError(22, "no splice here")
        return real(source, target, *rest, **more)

    monkeypatch.setattr(inputlog.os, "splice", splice)
    log = files.log()
    log.register("one", set())
    data = random.Random(2).randbytes(200_000)
    log.take("one", 0, data)
    arrived = b""
    while not log.feed(files.master):
        arrived += files.typed()
    while len(arrived) < len(data):
        arrived += files.typed()
    assert arrived == data


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_each_system_call(files: Files, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
    """The client sends again from what the next process says it has, as a client does."""
    expected, typed, sent = b"", b"", 0
    for number in range(1, 14):
        news = b"%03d " % number
        expected += news
        with dying(monkeypatch, inputlog, number, after=after):
            try:
                log = files.log()
                taken = log.register("one", set())
                log.take("one", taken, expected[taken:])
                log.feed(files.master)
            except Killed:
                sent += 1
        typed += files.typed()
    log = files.log()
    taken = log.register("one", set())
    log.take("one", taken, expected[taken:])
    log.feed(files.master)
    assert typed + files.typed() == expected
    assert sent > 5


class FusedPage(Page):
    """Dies instead of the n-th write that counts."""

    left = 0

    def burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed

    def set_taken(self, slot: int, offset: int) -> None:
        self.burn()
        super().set_taken(slot, offset)

    def touch(self, *, output: bool, now: int) -> None:
        self.burn()
        super().touch(output=output, now=now)

    def set_used_at(self, slot: int, now: int) -> None:
        self.burn()
        super().set_used_at(slot, now)


def test_killed_between_any_two_writes_to_the_page(files: Files) -> None:
    expected = b""
    for number in range(1, 40):
        expected += b"%03d " % number
        fused = FusedPage(files.page)
        log = InputLog(files.memfd, files.reader, *files.pipe, fused)
        taken = log.register("one", set())
        fused.left = number % 6 + 1
        with contextlib.suppress(Killed):
            log.take("one", taken, expected[taken:])
    log = files.log()
    taken = log.register("one", set())
    log.take("one", taken, expected[taken:])
    log.feed(files.master)
    assert files.typed() == expected


def test_kill_9_at_any_moment(files: Files) -> None:
    """A client types to a process that is killed all the time; the program gets each key once."""
    expected = random.Random(3).randbytes(300_000)
    typed = bytearray()
    chance = random.Random(11)
    deadline = time.monotonic() + 30
    kills = 0
    while len(typed) < len(expected):
        assert time.monotonic() < deadline, f"only {len(typed)} of {len(expected)} keys came"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            pid = fork(partial(take_all, files, theirs))
            until = time.monotonic() + chance.random() * 0.02
            (taken,) = struct.unpack(">Q", ours.recv(100))
            ours.setblocking(False)
            messages = iter(range(taken, len(expected), 50))
            while (left := until - time.monotonic()) > 0:
                readable, writable, _ = select.select([files.slave], [ours], [], left)
                typed += files.typed() if readable else b""
                if writable and (at := next(messages, None)) is not None:
                    ours.send(struct.pack(">Q", at) + expected[at : at + 50])
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            typed += files.typed()
        kills += 1
    assert bytes(typed) == expected
    assert kills > 5


def take_all(files: Files, client: socket.socket) -> None:
    """The work of a terminal process: say what is taken, then take and feed."""
    log = files.log()
    client.send(struct.pack(">Q", log.register("client", set())))
    while True:
        message = client.recv(1 << 16)
        (offset,) = struct.unpack_from(">Q", message)
        log.take("client", offset, message[8:])
        while not log.feed(files.master):
            select.select([], [files.master], [])


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["one", "two"]), st.integers(0, 30), st.binary(min_size=1, max_size=40)),
            st.just("feed"),
            st.just("die"),
        ),
        max_size=25,
    )
)
def test_any_order_of_typing_repeating_feeding_and_dying(steps: list[tuple[str, int, bytes] | str]) -> None:
    """A tuple types news after repeating so many of the last bytes."""
    files = Files()
    try:
        log = files.log()
        sent = {"one": b"", "two": b""}
        order = b""
        for name in sent:
            log.register(name, set())
        for step in steps:
            if step == "feed":
                log.feed(files.master)
            elif isinstance(step, str):
                log = files.log()
                assert {name: log.register(name, set()) for name in sent} == {n: len(s) for n, s in sent.items()}
            else:
                name, back, news = step
                at = max(0, len(sent[name]) - back)
                sent[name] += news
                order += news
                assert log.take(name, at, sent[name][at:]) == len(sent[name])
        log.feed(files.master)
        assert files.typed() == order
    finally:
        files.close()
