"""What a program's output has done to the local terminal, so that it can be undone. No I/O: bytes in, bytes out.

Only the modes are tracked (mouse, paste, keyboard, alternate screen, cursor …), not what the screen shows. Undoing every mode blindly
instead would harm: leaving an alternate screen that was never entered moves the cursor, popping a keyboard mode that was never pushed
takes the shell's own.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["Modes"]

# Private modes and whether they are set in a fresh terminal. Others are not touched by us.
_FRESH: Final = {
    1: False,  # cursor keys send application codes
    5: False,  # reverse screen
    6: False,  # origin
    7: True,  # wrap
    9: False,  # mouse, and below
    12: False,  # cursor blinks
    25: True,  # cursor is visible
    45: False,  # reverse wrap
    66: False,  # keypad
    1000: False,
    1001: False,
    1002: False,
    1003: False,
    1004: False,  # focus reports
    1005: False,
    1006: False,
    1007: False,
    1015: False,
    1016: False,
    2004: False,  # bracketed paste
    2026: False,  # synchronised output
    2027: False,  # grapheme clusters
    2031: False,  # reports of the colour scheme
    2048: False,  # reports of the size
}
_ALTERNATE: Final = (1049, 1047, 47)
_KITTY_STACK_MAX: Final = 16

# What changes a mode: h l (modes), u (kitty keys), m with > (xterm's keys), r (region), q (cursor's shape), c (full reset), = > (keypad).
_CHANGES: Final = re.compile(
    rb"\x1b(?:\[(?:\?([\d;]+)([hl])|([<>=]?)([\d;]*)(u)|(4)([hl])|>4(?:;(\d*))?m|(\d*)(?:;(\d*))?r|(\d*) q|!(p))|([c=>]))"
)
_UNFINISHED: Final = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*)?\Z")
_STRING_ENDS: Final = re.compile(rb"[\x07\x18\x1a]")
_CARRY_MAX: Final = 64
_DIGITS_MAX: Final = 9


class Modes:
    """Feed it all that is written to the terminal."""

    def __init__(self) -> None:
        self._carry = b""  # an unfinished sequence
        self._text_end = b""  # the last bytes, for an unfinished character
        self._in_string = False  # an OSC, DCS … has begun and not ended
        self._clear()

    def _clear(self) -> None:
        self._set: dict[int, bool] = {}
        self._alternate = 0  # the mode that entered the alternate screen
        # Flags per screen; the first is what was set without being pushed, the others were pushed.
        self._kitty: dict[bool, list[int]] = {False: [0], True: [0]}
        self._insert = self._keypad = self._region = self._other_keys = self._shape = False

    @property
    def alternate(self) -> bool:
        """Whether the alternate screen is shown."""
        return self._alternate != 0

    @property
    def ground(self) -> bool:
        """Whether something may be drawn now without tearing a sequence or a character apart."""
        return not self._carry and not self._in_string and _complete_utf8(self._text_end)

    def feed(self, data: bytes) -> None:
        """Take note of what `data` does."""
        self._text_end = (self._text_end + data)[-4:]
        data = self._carry + data
        for match in _CHANGES.finditer(data):
            self._change(match)
        unfinished = _UNFINISHED.search(data)
        self._carry = unfinished[0] if unfinished and len(unfinished[0]) <= _CARRY_MAX else b""
        end = len(data) - len(self._carry)
        last = data.rfind(b"\x1b", 0, end)
        if last < 0:
            self._in_string = self._in_string and _STRING_ENDS.search(data, 0, end) is None
        else:
            is_string = data[last + 1 : last + 2] in (b"]", b"P", b"_", b"^", b"X")
            self._in_string = is_string and _STRING_ENDS.search(data, last, end) is None

    def _change(self, match: re.Match[bytes]) -> None:
        modes, switch, how, flags, is_kitty, insert, insert_switch, keys, top, bottom, shape, soft, other = (
            match.groups()
        )
        if modes:
            for mode in modes.split(b";"):
                if mode:
                    self._mode(_number(mode), on=switch == b"h")
        elif is_kitty:
            self._keyboard(how, [_number(number) for number in flags.split(b";") if number])
        elif insert:
            self._insert = insert_switch == b"h"
        elif match[0].startswith(b"\x1b[>4"):
            self._other_keys = keys not in (None, b"", b"0")
        elif match[0].endswith(b"r"):
            self._region = bool(top or bottom)
        elif match[0].endswith(b" q"):
            self._shape = shape not in (b"", b"0")
        elif soft or other == b"c":
            self._clear()
        else:
            self._keypad = other == b"="

    def _mode(self, mode: int, *, on: bool) -> None:
        if mode in _ALTERNATE:
            self._alternate = mode if on else 0
        elif mode in _FRESH:
            self._set[mode] = on

    def _keyboard(self, how: bytes, numbers: list[int]) -> None:
        stack = self._kitty[self.alternate]
        first = numbers[0] if numbers else 0
        if how == b">":
            stack.append(first)
            del stack[1:-_KITTY_STACK_MAX]
        elif how == b"<":
            del stack[max(1, len(stack) - max(first, 1)) :]
        elif how == b"=":
            how_set = numbers[1] if len(numbers) > 1 else 1
            stack[-1] = {1: first, 2: stack[-1] | first, 3: stack[-1] & ~first}.get(how_set, stack[-1])

    # ------------------------------------------------------------------------------------------ undo, redo

    def _changed(self) -> list[int]:
        return sorted(mode for mode, on in self._set.items() if on != _FRESH[mode])

    def undo(self) -> bytes:
        """What makes the terminal fresh again; the cursor stays where it is unless an alternate screen is left."""
        out = [b"\x1b\\"] if self._in_string else [b"\x18"] if self._carry else []
        changed = self._changed()
        out += [b"\x1b[?%d%s" % (mode, b"h" if _FRESH[mode] else b"l") for mode in changed if mode != 6]
        if self._region or 6 in changed:
            out.append(b"\x1b7\x1b[r\x1b[?6l\x1b8\x1b[?6l")  # both home the cursor; 8 brings origin mode back with it
        out.append(_popped(self._kitty[self.alternate]))
        if self._alternate:
            out.append(b"\x1b[?%dl" % self._alternate)
            out.append(_popped(self._kitty[False]))
        out += [b"\x1b[4l"] * self._insert + [b"\x1b>"] * self._keypad
        out += [b"\x1b[>4m"] * self._other_keys + [b"\x1b[0 q"] * self._shape
        out.append(b"\x1b[0m\x1b(B\x0f")
        return b"".join(out)

    def redo(self) -> bytes:
        """What sets the modes again after `undo()`; the screen's content and the scroll region must be painted anew."""
        out = [_pushed(self._kitty[False])]
        if self._alternate:
            out.append(b"\x1b[?%dh" % self._alternate)
            out.append(_pushed(self._kitty[True]))
        out += [b"\x1b[?%d%s" % (mode, b"l" if _FRESH[mode] else b"h") for mode in self._changed()]
        out += [b"\x1b[4h"] * self._insert + [b"\x1b="] * self._keypad + [b"\x1b[>4;2m"] * self._other_keys
        return b"".join(out)


def _number(digits: bytes) -> int:
    """Their value, as far as any terminal would follow: a program may print millions of digits."""
    return int(digits[:_DIGITS_MAX])


def _popped(stack: list[int]) -> bytes:
    popped = b"\x1b[<%du" % (len(stack) - 1) if len(stack) > 1 else b""
    return popped + (b"\x1b[=0u" if stack[0] else b"")


def _pushed(stack: list[int]) -> bytes:
    base = b"\x1b[=%du" % stack[0] if stack[0] else b""
    return base + b"".join(b"\x1b[>%du" % flags for flags in stack[1:])


def _complete_utf8(end: bytes) -> bool:
    """Whether the last character of `end` (up to 4 bytes) has all its bytes."""
    for back, byte in enumerate(reversed(end), 1):
        if byte & 0xC0 != 0x80:
            needed = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back >= needed
    return True
