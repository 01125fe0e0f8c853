"""What a program sets is undone, nothing else; pyte is the judge of modes it knows."""

from __future__ import annotations

import itertools

import pyte
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from catty.client.modes import Modes

CLAUDE = (
    b"\x1b[>5u\x1b[?1049h\x1b[>5u\x1b[?2004h\x1b[?1004h\x1b[?2031h\x1b[?1000h\x1b[?1002h\x1b[?1003h\x1b[?1006h\x1b[?25l"
)


def fed(*chunks: bytes) -> Modes:
    modes = Modes()
    for chunk in chunks:
        modes.feed(chunk)
    return modes


def test_all_that_claude_sets_is_undone() -> None:
    modes = fed(CLAUDE)
    undo = modes.undo()
    for sequence in (b"?2004l", b"?1004l", b"?2031l", b"?1000l", b"?1002l", b"?1003l", b"?1006l", b"?25h", b"?1049l"):
        assert b"\x1b[" + sequence in undo
    before, after = undo.split(b"\x1b[?1049l")
    assert b"\x1b[<1u" in before
    assert b"\x1b[<1u" in after
    modes.feed(undo)
    assert modes.undo() == fed().undo()


def test_nothing_is_undone_that_was_not_done() -> None:
    assert fed(b"hello \x1b[31mred\x1b[0m\r\n").undo() == b"\x1b[0m\x1b(B\x0f"
    assert b"1049" not in fed(b"\x1b[?1049h\x1b[?1049l").undo()
    assert b"<" not in fed(b"\x1b[>1u\x1b[<u").undo()


@pytest.mark.parametrize(
    ("output", "undone"),
    [
        (b"\x1b[>4;2m", b"\x1b[>4m"),
        (b"\x1b=", b"\x1b>"),
        (b"\x1b[4h", b"\x1b[4l"),
        (b"\x1b[5 q", b"\x1b[0 q"),
        (b"\x1b[?1;7l\x1b[?1h", b"\x1b[?1l\x1b[?7h"),
        (b"\x1b[2;10r", b"\x1b[r"),
        (b"\x1b[?47h", b"\x1b[?47l"),
        (b"\x1b]0;unfinished", b"\x1b\\"),
        (b"\x1b[=5u", b"\x1b[=0u"),
        (b"\x1b[>1u\x1b[=5;2u", b"\x1b[<1u"),
    ],
)
def test_undo(output: bytes, undone: bytes) -> None:
    assert undone in fed(output).undo()


@pytest.mark.parametrize(
    ("output", "ground"),
    [
        (b"", True),
        (b"text", True),
        (b"\x1b", False),
        (b"\x1b[38;5", False),
        (b"\x1b[38;5;1m", True),
        (b"\x1b]0;title", False),
        (b"\x1b]0;title\x07", True),
        (b"\x1b]0;title\x1b\\", True),
        (b"\x1bPq#0" + b"x" * 10000, False),
        ("é".encode(), True),
        ("é".encode()[:1], False),
        ("😺".encode()[:3], False),
        ("😺".encode(), True),
        (b"\xff", False),
        (b"a\x80\x80\x80\x80", True),
    ],
)
def test_ground(output: bytes, ground: bool) -> None:
    assert fed(output).ground is ground


def test_after_undo_and_redo_the_modes_are_the_same() -> None:
    modes = fed(b"\x1b[=2u", CLAUDE, b"\x1b=\x1b[4h\x1b[=8;2u")
    again = fed(modes.redo())
    assert again.undo() == modes.undo()
    assert again.alternate


def test_a_full_reset_leaves_nothing_to_undo() -> None:
    assert fed(CLAUDE, b"\x1bc").undo() == fed().undo()


PIECES = st.sampled_from(
    [
        b"text",
        b"\x1b[?1049h",
        b"\x1b[?1049l",
        b"\x1b[?2004h",
        b"\x1b[?25l",
        b"\x1b[?25h",
        b"\x1b[?1;1000;1006h",
        b"\x1b[>5u",
        b"\x1b[<u",
        b"\x1b[<2u",
        b"\x1b[=1u",
        b"\x1b[4h",
        b"\x1b[1;31m",
        b"\x1b]0;t\x07",
        b"\x1b]8;;x\x1b\\",
        b"\x1b[3;9r",
        b"\x1b[r",
        b"\x1b",
        b"\x1b[",
        "é".encode(),
        "😺".encode(),
        b"\x07",
    ]
)


@given(st.lists(PIECES, max_size=25), st.lists(st.integers(0, 200), max_size=10))
@example([b"text", b"\x1b]0;t\x07", b"\x1b"], [6])
def test_chunking_changes_nothing(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    whole = fed(data)
    parts = fed(*(data[start:end] for start, end in itertools.pairwise(edges)))
    assert parts.undo() == whole.undo()
    assert parts.ground == whole.ground


@given(st.lists(PIECES, max_size=25))
def test_undo_leaves_a_fresh_terminal_by_another_judge(pieces: list[bytes]) -> None:
    screen = pyte.Screen(20, 10)
    stream = pyte.ByteStream(screen)
    fresh = set(screen.mode)
    # pyte knows neither kitty's keys nor what ends a sequence early
    shown = b"".join(piece for piece in pieces if piece not in (b"\x1b", b"\x1b[") and not piece.endswith(b"u"))
    stream.feed(shown)
    stream.feed(fed(shown).undo())
    assert set(screen.mode) - {47 << 5, 1047 << 5, 1049 << 5} == fresh
    assert screen.margins is None or screen.margins == (0, 9)
    assert not screen.cursor.hidden


def test_numbers_of_any_length() -> None:
    modes = Modes()
    long = b"9" * 5000
    modes.feed(
        b"\x1b[?" + long + b"h\x1b[?2004;" + long + b"h\x1b[>" + long + b"u\x1b[<" + long + b"u\x1b[=" + long + b";1u"
    )
    assert b"\x1b[?2004l" in modes.undo()
