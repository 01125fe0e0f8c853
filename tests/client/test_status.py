"""Our line at the bottom: judged on a real screen model."""

from __future__ import annotations

import pyte

from catty.client.status import StatusLine, offline


def screen(text: str) -> tuple[pyte.Screen, pyte.ByteStream]:
    model = pyte.Screen(60, 5)
    stream = pyte.ByteStream(model)
    stream.feed(text.encode())
    return model, stream


def lines(model: pyte.Screen) -> list[str]:
    return [line.rstrip() for line in model.display]


def test_no_line_of_a_full_scrolling_screen_is_covered() -> None:
    model, stream = screen("1\r\n2\r\n3\r\n4\r\n$ ls")
    line = StatusLine()
    stream.feed(line.show(offline(12, 34), 60, 5, scrolls=True))
    assert lines(model) == ["2", "3", "4", "$ ls", " catty: reconnecting, 12 s, 34 keys kept; ~. to leave"]
    assert (model.cursor.y, model.cursor.x) == (3, 4)
    stream.feed(line.show(offline(13, 1), 60, 5, scrolls=True))
    assert lines(model)[3:] == ["$ ls", " catty: reconnecting, 13 s, 1 key kept; ~. to leave"]
    stream.feed(line.remove())
    assert lines(model) == ["2", "3", "4", "$ ls", ""]
    assert (model.cursor.y, model.cursor.x) == (3, 4)
    assert line.remove() == b""


def test_on_an_alternate_screen_nothing_moves() -> None:
    model, stream = screen("a\r\nb\x1b[2;1H\x1b[31m")
    line = StatusLine()
    stream.feed(line.show("hello", 60, 5, scrolls=False))
    assert lines(model) == ["a", "b", "", "", " catty: hello"]
    stream.feed(b"X")
    assert model.buffer[1][0].fg == "red"


def test_a_hostile_or_long_text_stays_one_line() -> None:
    model, stream = screen("")
    stream.feed(StatusLine().show("\x1b]0;x\x07\r\n" + "y" * 200, 60, 5, scrolls=False))
    assert lines(model)[:4] == ["", "", "", ""]
    assert lines(model)[4].startswith(" catty: ·]0;x···yyy")
    assert len(lines(model)[4]) == 59
