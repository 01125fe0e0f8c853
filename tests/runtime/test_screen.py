from __future__ import annotations

import os

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catty.runtime import page
from catty.runtime.outputlog import OutputLog
from catty.runtime.page import Page
from catty.runtime.screen import TAIL_BYTES, Modes, Screen


class Terminal:
    """An output log that is written by hand, and its screen."""

    def __init__(self, ring: int = 8 << 20) -> None:
        self.memfd = os.memfd_create("output")
        self.pipe = os.pipe2(os.O_NONBLOCK)
        self.page = os.memfd_create("page")
        self.ring = ring
        os.truncate(self.page, page.SIZE)
        self.restart()

    def restart(self) -> None:
        self.log = OutputLog(self.memfd, *self.pipe, self.ring)
        self.screen = Screen(self.log, Page(self.page))

    def print(self, data: bytes) -> None:
        for at in range(0, len(data), 60_000):
            os.write(self.pipe[1], data[at : at + 60_000])
            self.log._settle()
            self.screen.follow()

    def close(self) -> None:
        for fd in (self.memfd, *self.pipe, self.page):
            os.close(fd)


@pytest.fixture
def terminal():
    made = Terminal()
    yield made
    made.close()


def shown(data: bytes, cols: int = 40, rows: int = 10) -> list[str]:
    screen = pyte.Screen(cols, rows)
    pyte.ByteStream(screen).feed(data)
    return [line.rstrip() for line in screen.display]


def test_a_short_output_is_repeated_whole(terminal: Terminal) -> None:
    printed = b"one\r\n\x1b[31mtwo\x1b[0m\r\n\x1b[5;5Hthree"
    terminal.print(printed)
    assert shown(terminal.screen.repaint()) == shown(printed)


def test_a_long_output_begins_at_a_line(terminal: Terminal) -> None:
    printed = b"".join(b"line %06d \xc3\xa4\xc3\xb6\r\n" % n for n in range(40_000))
    terminal.print(printed)
    repaint = terminal.screen.repaint()
    assert len(repaint) < TAIL_BYTES + 1000
    assert shown(repaint)[:8] == shown(printed)[:8]
    assert b"\x1b[2Jline " in repaint


def test_whoever_had_garbage_before_gets_a_clean_screen(terminal: Terminal) -> None:
    terminal.print(b"hello")
    for before in (
        b"\x1b[?1049hold",
        b"\x1b[1",
        b"\x1b]0;never ended",
        b"\x1b[?6h\x1b[3;5r\x1b(0qqq\x0e",
        b"\x1b[31;7m",
    ):
        assert shown(before + terminal.screen.repaint()) == shown(b"hello")


@pytest.mark.parametrize(
    "question",
    [
        b"\x1b[c",
        b"\x1b[0c",
        b"\x1b[>c",
        b"\x1b[=c",
        b"\x1b[5n",
        b"\x1b[6n",
        b"\x1b[?6n",
        b"\x1b[?996n",
        b"\x1b[>q",
        b"\x1b[>0q",
        b"\x1b[?u",
        b"\x1b[?2026$p",
        b"\x1b[4$p",
        b"\x1b[14t",
        b"\x1b[16t",
        b"\x1b[18t",
        b"\x1b[21t",
        b"\x1bZ",
        b"\x05",
        b"\x07",
        b"\x1b]10;?\x07",
        b"\x1b]11;?\x1b\\",
        b"\x1b]4;1;?\x07",
        b"\x1b]52;c;?\x07",
        b"\x1bP$qm\x1b\\",
        b"\x1bP+q544e\x1b\\",
        b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\",
    ],
)
def test_questions_are_not_asked_again(terminal: Terminal, question: bytes) -> None:
    terminal.print(b"before" + question + b"after")
    repaint = terminal.screen.repaint()
    assert b"beforeafter" in repaint


@pytest.mark.parametrize(
    "kept", [b"\x1b]0;title\x07", b"\x1b]8;;http://x\x1b\\", b"\x1b]11;#000\x07", b"\x1b[2 q", b"\x1b[22;0t"]
)
def test_what_is_no_question_is_kept(terminal: Terminal, kept: bytes) -> None:
    terminal.print(b"before" + kept + b"after")
    assert b"before" + kept + b"after" in terminal.screen.repaint()


def test_modes_outlive_the_ring_and_the_process() -> None:
    terminal = Terminal(ring=1 << 20)
    try:
        terminal.print(
            b"\x1b[?1049h\x1b[?2004h\x1b[?1000;1006h\x1b[?25l\x1b[>5u\x1b[>4;2m\x1b]0;a title\x07\x1b[5 q\x1b="
        )
        terminal.print(b"x" * (3 << 20))
        terminal.restart()
        terminal.print(b"\x1b[?1000l\x1b[H\x1b[2Jhere")
        repaint = terminal.screen.repaint()
        assert terminal.screen.alternate()
        for mode in (1049, 2004, 1006):
            assert b"\x1b[?%dh" % mode in repaint
        assert b"\x1b[?1000h" not in repaint
        assert repaint.rindex(b"\x1b[?25l") > repaint.index(b"\x1b[?7;25h")
        for set_ in (b"\x1b[>5u", b"\x1b[>4;2m", b"\x1b]0;a title\x1b\\", b"\x1b[5 q", b"\x1b="):
            assert set_ in repaint
        assert b"xxxx" not in repaint
        assert shown(repaint)[0] == "here"
    finally:
        terminal.close()


def test_after_a_full_screen_program_the_other_screen_is_forgotten(terminal: Terminal) -> None:
    terminal.print(b"shell\r\n\x1b[?1049h\x1b[2Jeditor\x1b[?1049lafter")
    repaint = terminal.screen.repaint()
    assert b"editor" not in repaint
    assert not terminal.screen.alternate()
    assert "after" in shown(repaint)[0]


@given(
    st.lists(
        st.sampled_from(
            [b"\x1b[?2004h", b"\x1b[?2004l", b"\x1b[?1049h", b"\x1b[>1u", b"\x1b[<u", b"\x1b]0;t\x07", b"abc", b"\x1bc"]
        ),
        max_size=30,
    ),
    st.data(),
)
def test_modes_are_the_same_however_output_is_cut(parts: list[bytes], data: st.DataObject) -> None:
    printed = b"".join(parts)
    whole = Modes()
    whole.follow(printed)
    terminal = Terminal()
    try:
        at = 0
        while at < len(printed):
            step = data.draw(st.integers(1, 20))
            terminal.print(printed[at : at + step])
            terminal.screen.follow(enough=1)
            at += step
            if data.draw(st.booleans()):
                terminal.restart()
        assert vars(terminal.screen._current()) == vars(whole)
    finally:
        terminal.close()


@given(st.binary(max_size=2000))
def test_any_output_can_be_repainted(printed: bytes) -> None:
    terminal = Terminal()
    try:
        terminal.print(printed)
        terminal.screen.repaint()
        terminal.restart()
        terminal.screen.repaint()
    finally:
        terminal.close()


def test_huge_numbers_are_no_trouble(terminal: Terminal) -> None:
    terminal.print(b"\x1b[?" + b"9" * 5000 + b"h\x1b[<" + b"9" * 5000 + b"u\x1b[?;;;h\x1b[?2004h" + b"fine")
    assert b"\x1b[?2004h" in terminal.screen.repaint()


def test_numbers_where_one_is_expected_are_no_trouble(terminal: Terminal) -> None:
    terminal.print(b"\x1b[>1u\x1b[>3u\x1b[<1;2u\x1b[<;u\x1b[=;u\x1b[>;u\x1b[?2004h" + b"fine")
    assert b"\x1b[?2004h" in terminal.screen.repaint()
