"""What others printed, made fit for the user's terminal."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catty.client.text import printable, readable


def test_what_is_shown_stays() -> None:
    shown = "\x1b[1;31mred\x1b[0m \u732b\r\n\x1b[2K\x1b[3Ax\x1b[10;5Hy\t\b\x1b[38:2::1:2:3mz\x1b[2J".encode()
    assert readable(shown) == shown + b"\x1b[0m"


@pytest.mark.parametrize(
    "command",
    [
        *(
            b"\x1b[c",
            b"\x1b[>0c",
            b"\x1b[=c",
            b"\x1b[6n",
            b"\x1b[?6n",
            b"\x1b[?2026$p",
            b"\x1b[>q",
            b"\x1b[?u",
            b"\x1b[21t",
            b"\x1bZ",
        ),
        *(
            b"\x1b]11;?\x07",
            b"\x1b]52;c;?\x1b\\",
            b"\x1b]0;title\x07",
            b"\x1bP$qm\x1b\\",
            b"\x1bP+q544e\x1b\\",
            b"\x1b_Ga=q;\x1b\\",
        ),
        *(
            b"\x1b[?1000h",
            b"\x1b[?1049h",
            b"\x1b[>1u",
            b"\x1b[?2004h",
            b"\x1b[2;5r",
            b"\x1b(0",
            b"\x1bc",
            b"\x1b[!p",
            b"\x1b[3J",
        ),
        *(b"\x05", b"\x07", b"\x0e", b"\x1b", b"\x1b[", "\x9b6n".encode()[:2], b"\x1b]0;no end", b"\x1b]52;c;?\x18"),
    ],
)
def test_what_commands_the_terminal_goes(command: bytes) -> None:
    assert readable(b"a" + command).startswith(b"a")
    assert b"\x1b" not in readable(b"a" + command)[1:-4]
    assert readable(b"a" + command)[1:-4] in (b"", b"[")


@given(
    st.lists(
        st.sampled_from(
            [
                b"\x1b",
                b"[",
                b"]",
                b"P",
                b"6",
                b"n",
                b"c",
                b"\x07",
                b"\\",
                b"?",
                b";",
                b"m",
                b"\x0b",
                b"$",
                b"q",
                b"\xc2",
                b"\x9b",
            ]
        )
    )
)
def test_however_it_is_put_together_nothing_is_asked(pieces: list[bytes]) -> None:
    left = readable(b"".join(pieces))
    assert not re.search(rb"\x1b(?!\[[0-9;:]*[mABCDEFGHIJKLMPSTXZ@`adef])", left)
    assert not re.search(rb"\xc2[\x80-\x9f]", left)
    assert readable(left)[:-4] == left


def test_names() -> None:
    assert printable(b"ok \xff\x1b[31m") == "ok \N{REPLACEMENT CHARACTER}?[31m"
    assert printable("\u732b\u202e\udcff\n") == "\u732b???"
