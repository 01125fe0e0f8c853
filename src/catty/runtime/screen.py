r"""What a client gets that has seen nothing, or too little: bytes that repaint its screen. First version, to be replaced as a whole.

A reset, the modes that the program has set, and the last part of the output from a place where no sequence is cut in two. It is exact
where that part begins with a cleared screen, as it mostly does for a full-screen program, which also repaints when its size changes.
Questions to the terminal are left out, so that none is answered a second time.
"""

from __future__ import annotations

import json
import re
from typing import Final

from catty.constants import KIB
from catty.runtime.outputlog import OutputLog
from catty.runtime.page import Page

__all__ = ["Modes", "Screen"]

TAIL_BYTES: Final = 256 * KIB
_STEP: Final = 256 * KIB  # scanned at once; a millisecond or so
_SEQUENCE_MAX: Final = 512  # bytes of one sequence that matters here
_ALTERNATE: Final = frozenset({47, 1047, 1049})
_ON_AT_FIRST: Final = frozenset({7, 25})
# Application cursor keys, reverse, origin, wrap, cursor, mouse, focus, bracketed paste, colour scheme reports.
_MODES: Final = (
    frozenset({1, 5, 6, 7, 9, 25, 66, 1000, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 2004, 2031}) | _ALTERNATE
)

_CHANGES: Final = re.compile(
    rb"\x1b(?:\[\?(?P<modes>[0-9;]{0,64})(?P<set>[hl])|\[(?P<kitty>[<>=])(?P<flags>[0-9;]{0,8})u|\[>4;?(?P<other>[0-9]?)m"
    rb"|(?P<reset>c|\[!p)|\][02];(?P<title>[^\x07\x1b]{0,256})(?:\x07|\x1b\\)|\[(?P<cursor>[0-9]?) q|(?P<keypad>[=>]))"
)
# Questions (DA, DSR, DECRQM, XTVERSION, kitty, window reports, colours, clipboard, DECRQSS, XTGETTCAP, graphics), the bell,
# ENQ, synchronised output, and keyboard modes, which are set at the end.
_LEFT_OUT: Final = re.compile(
    rb"\x1b\[[?>=]?[0-9;]*c|\x1b\[\??[0-9;]*n|\x1b\[\??[0-9;]*\$p|\x1b\[>[0-9]*q|\x1b\[\?u|\x1b\[[<>=][0-9;]*u|\x1b\[>4;?[0-9]?m"
    rb"|\x1b\[(?:1[1-9]|2[0-1])(?:;[0-9;]*)?t|\x1bZ|\x1b\[\?2026[hl]|\x1b\[x|\x1b\[[01]x"
    rb"|(?P<string>\x1b[\]P_^X][^\x1b\x07]{0,65536}(?:\x07|\x1b\\))|[\x05\x07]"
)
_ASKING: Final = re.compile(rb"\x1b\](?:4;[0-9;]*|1[0-9]|52;[a-z0-9]*);\?|\x1bP[0-9;]*(?:\$|\+)q|\x1b_G|\x1b\][79];")
_SWITCH: Final = re.compile(rb"\x1b\[\?(?:47|1047|1049)([hl])")
_RESET: Final = (
    b"\x18\x1b\\\x1b[?2026l\x1b[?1049l\x1b[!p\x1b[?1;5;6;9;66;1000;1002;1003;1004;1005;1006;1015;1016;2004;2031l\x1b[?7;25h"
    b"\x1b[=0u\x1b[>4;0m\x1b>\x1b(B\x0f\x1b[0 q\x1b[m\x1b[r\x1b[H\x1b[2J"
)


class Modes:
    """The modes that a program has set so far: what a screen needs beside its characters. `alternate`: the alternate screen."""

    def __init__(self) -> None:
        self.private = set(_ON_AT_FIRST)
        self.kitty: list[str] = []
        self.other_keys = ""
        self.title = ""
        self.cursor = ""
        self.keypad = False

    @property
    def alternate(self) -> bool:
        return bool(self.private & _ALTERNATE)

    def follow(self, data: bytes) -> None:
        """Take in output that holds whole sequences."""
        for match in _CHANGES.finditer(data):
            kind = match.lastgroup
            if kind == "set":
                self._switch(match["modes"], on=match["set"] == b"h")
            elif kind == "flags":
                self._kitty(match["kitty"], match["flags"].decode())
            elif kind == "reset":
                self._reset(soft=match["reset"] != b"c")
            elif kind == "title":
                self.title = match["title"].decode(errors="replace")
            elif kind == "keypad":
                self.keypad = match["keypad"] == b"="
            elif kind == "other":
                self.other_keys = match["other"].decode()
            elif kind == "cursor":
                self.cursor = match["cursor"].decode()

    def before(self) -> bytes:
        """What sets them, after a reset and before the output that is repeated."""
        on, off = self.private - _ON_AT_FIRST, _ON_AT_FIRST - self.private
        parts = [f"\x1b[?{mode}h" for mode in sorted(on, reverse=True)]
        parts += [f"\x1b[?{mode}l" for mode in sorted(off)]
        return "".join(parts).encode()

    def after(self) -> bytes:
        """What sets the rest, after that output."""
        parts = [f"\x1b[>{flags}u" for flags in self.kitty]
        parts += [f"\x1b[>4;{self.other_keys}m"] * bool(self.other_keys)
        parts += [f"\x1b]0;{self.title}\x1b\\"] * bool(self.title)
        parts += [f"\x1b[{self.cursor} q"] * bool(self.cursor)
        parts += ["\x1b="] * self.keypad
        return "".join(parts).encode()

    def to_json(self) -> str:
        return json.dumps({**vars(self), "private": sorted(self.private)})

    @classmethod
    def from_json(cls, text: str) -> Modes:
        modes = cls()
        for name, value in json.loads(text).items():
            setattr(modes, name, set(value) if name == "private" else value)
        return modes

    def _switch(self, numbers: bytes, *, on: bool) -> None:
        wanted = {int(number) for number in numbers.split(b";") if number} & _MODES
        self.private = self.private | wanted if on else self.private - wanted

    def _reset(self, *, soft: bool) -> None:
        if soft:
            self.private = self.private - {1, 5, 6, 66} | {25}
            self.keypad = False
        else:
            vars(self).update(vars(Modes()))

    def _kitty(self, action: bytes, flags: str) -> None:
        if action == b">":
            self.kitty = [*self.kitty[-15:], flags]
        elif action == b"<":
            count = int(flags.partition(";")[0] or 1)
            self.kitty = self.kitty[: max(0, len(self.kitty) - count)]
        elif self.kitty:
            self.kitty[-1] = flags.partition(";")[0]
        else:
            self.kitty = [flags.partition(";")[0]]


class Screen:
    """Follows an output log, and repaints. What it has seen before the ring is kept in the shared page."""

    def __init__(self, log: OutputLog, page: Page) -> None:
        self._log = log
        self._page = page
        self._modes = Modes()
        self._at = 0
        at, _, text = page.note.partition(b" ")
        if at:
            self._at, self._modes = int(at), Modes.from_json(text.decode())
        self._at = max(self._at, log.start)

    def follow(self, *, enough: int = _STEP) -> None:
        """To be called after each output: looks at it once `enough` bytes have come together."""
        if self._log.end - self._at < enough:
            return
        while True:
            data = self._log.read(self._at, _STEP)
            cut = data.rfind(b"\x1b", -_SEQUENCE_MAX)
            if cut > 0:
                data = data[:cut]  # a sequence may begin there that is not whole yet
            if not data or (cut == 0 and len(data) < _SEQUENCE_MAX):
                break
            self._modes.follow(data)
            self._at += len(data)
        self._page.note = b"%d %s" % (self._at, self._modes.to_json().encode())

    def alternate(self) -> bool:
        """Whether a full-screen program shows its screen now."""
        return self._current().alternate

    def repaint(self) -> bytes:
        """Bytes that bring any terminal to what is shown now."""
        modes = self._current()
        tail = self._tail(modes)
        return _RESET + modes.before() + _LEFT_OUT.sub(_keep_string, tail) + modes.after()

    def _current(self) -> Modes:
        self.follow(enough=1)
        modes = Modes.from_json(self._modes.to_json())
        modes.follow(self._log.read(self._at, _SEQUENCE_MAX))
        return modes

    def _tail(self, modes: Modes) -> bytes:
        start = max(self._log.start, self._log.end - TAIL_BYTES)
        tail = self._log.read(start, TAIL_BYTES)
        whole = start == 0
        for match in reversed(list(_SWITCH.finditer(tail))):
            tail, whole = tail[match.end() :], True  # what was shown on the other screen does not matter
            break
        if modes.alternate:
            clear = tail.rfind(b"\x1b[2J")
            if clear >= 0:
                return tail[clear:]
        return tail if whole else _from_boundary(tail)


def _from_boundary(tail: bytes) -> bytes:
    """`tail` without a line, a sequence or a character that began before it."""
    line = tail.find(b"\n", 0, 8 * KIB)
    if line >= 0:
        return tail[line + 1 :]
    sequence = tail.find(b"\x1b", 0, 8 * KIB)
    if sequence >= 0:
        return tail[sequence:]
    skip = 0
    while skip < min(4, len(tail)) and tail[skip] & 0xC0 == 0x80:
        skip += 1
    return tail[skip:]


def _keep_string(match: re.Match[bytes]) -> bytes:
    string = match["string"]
    return string if string and not _ASKING.match(string) else b""
