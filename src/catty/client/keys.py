"""What the user types, sorted: bytes for the agent, and the few keys that are meant for us. No I/O: bytes in, actions out.

Local escapes count directly after Enter (and at the start): `~.` leaves, `~?` helps, `~s` tells about sync, `~^Z` suspends, `~~` types
one tilde. Ctrl+C twice within a second leaves where the session's agent asks for that. Keys are known in every encoding a program
can negotiate (plain bytes, kitty's `CSI … u`, xterm's modifyOtherKeys); nothing inside a bracketed paste is ever a key.

The outcome does not depend on how the bytes are cut into chunks: an unfinished sequence is held until it is complete or until the
shell calls `flush()`, `HOLD_S` after the last byte.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Final

from catty import constants
from catty.errors import UsageError

__all__ = ["HOLD_S", "Action", "Forward", "Interrupt", "Keys", "Leave", "Local", "Paste", "detach_keys"]

HOLD_S: Final = 0.02  # an Esc by itself is sent after this; terminals send a sequence's bytes at once
_HELD_MAX: Final = 256  # no key's sequence is longer
_PASTE_HELD_MAX: Final = 4096  # longer text is no path

_ENTER: Final = (b"\r", b"\n")
_CTRL_C: Final = b"\x03"
_KEYPAD_ENTER: Final = 57414  # in kitty's private range
_PASTE_BEGIN: Final = b"\x1b[200~"
_PASTE_END: Final = b"\x1b[201~"
_NOT_KEYS: Final = frozenset(b"IOMmcnyt")  # final bytes of focus and mouse reports and of answers to queries

# A complete sequence; `\x1b.` is Alt with a key. An ESC before another ESC stands by itself.
_SEQUENCE: Final = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~]|[^\[O\x1b])", re.DOTALL)
_UNFINISHED: Final = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|O)?\Z")


class Interrupt(Enum):
    """What Ctrl+C does: `TWICE` within a second leaves, `ONCE` leaves (a viewer has nothing to interrupt), `NEVER` is ours."""

    TWICE = "twice"
    ONCE = "once"
    NEVER = "never"


class Local(Enum):
    """A local escape that does not end the attach."""

    HELP = "help"
    SYNC = "sync"
    SUSPEND = "suspend"


@dataclass(frozen=True, slots=True)
class Forward:
    """Bytes for the machine, as they were typed."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Leave:
    """The user disconnects."""


@dataclass(frozen=True, slots=True)
class Paste:
    """A short pasted text that may be the path of a file; `raw` is what to forward if it is none."""

    text: bytes
    raw: bytes


Action = Forward | Leave | Paste | Local


class Keys:
    """See the module's text. `detach` is what `detach_keys()` returns; `pastes`: give `Paste` actions."""

    def __init__(
        self, interrupt: Interrupt = Interrupt.NEVER, *, detach: tuple[bytes, ...] = (), pastes: bool = False
    ) -> None:
        self._interrupt = interrupt
        self._detach = detach
        self._pastes = pastes
        special = re.escape(b"".join({b"\x1b\x03\r\n~", *detach}))
        self._plain = re.compile(rb"[^" + special + rb"]+")
        self._held = b""  # an unfinished sequence
        self._line_start = True
        self._tilde = b""  # a tilde that may begin an escape, as it was typed
        self._partial: deque[tuple[bytes, bytes]] = deque()  # (key, raw) of detach keys typed so far
        self._interrupted: float | None = None
        self._pasting = False
        self._paste: bytearray | None = None  # a paste that may still be a path
        self._actions: list[Action] = []

    @property
    def holding(self) -> bool:
        """Whether `flush()` would do something."""
        return (bool(self._held) and not self._pasting) or self._paste is not None

    def feed(self, data: bytes, now: float) -> list[Action]:
        """What `data`, typed at `now` (seconds, monotonic), means. After Leave nothing follows."""
        data, self._held = self._held + data, b""
        at = 0
        while at < len(data) and not self._left:
            at = self._in_paste(data, at) if self._pasting else self._next(data, at, now)
        return self._take()

    def flush(self) -> list[Action]:
        """Nothing came for HOLD_S: what is held was not the beginning of anything."""
        if self._paste is not None:
            self._release_paste()
        if self._held and not self._pasting:
            held, self._held = self._held, b""
            self._key(held, None, 0.0)
        return self._take()

    @property
    def _left(self) -> bool:
        return bool(self._actions) and isinstance(self._actions[-1], Leave)

    def _take(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def _emit(self, action: Action) -> None:
        last = self._actions[-1] if self._actions else None
        if isinstance(action, Forward) and isinstance(last, Forward):
            self._actions[-1] = Forward(last.data + action.data)
        else:
            self._actions.append(action)

    # ------------------------------------------------------------------------------------------ tokens

    def _next(self, data: bytes, at: int, now: float) -> int:
        """Handle the token at `at`; returns where the next one begins."""
        undecided = self._line_start or self._tilde or self._partial
        if not undecided and (plain := self._plain.match(data, at)):
            self._emit(Forward(plain[0]))
            return plain.end()
        if data[at] != 0x1B:
            self._key(data[at : at + 1], data[at : at + 1], now)
            return at + 1
        sequence = _SEQUENCE.match(data, at)
        if sequence is None:
            if _UNFINISHED.match(data, at) and len(data) - at <= _HELD_MAX:
                self._held = data[at:]
                return len(data)
            self._key(data[at : at + 1], None, now)
            return at + 1
        raw = sequence[0]
        if raw == _PASTE_BEGIN:
            self._begin_paste()
        elif raw.startswith(b"\x1b[") and (raw[-1] in _NOT_KEYS or not _is_press(raw)):
            self._emit(Forward(raw))
        else:
            self._key(raw, _decode(raw), now)
        return sequence.end()

    def _key(self, raw: bytes, key: bytes | None, now: float) -> None:
        """A key was pressed; `key` is what it types in the oldest encoding, None if nothing that matters here."""
        if self._tilde:
            tilde, self._tilde = self._tilde, b""
            if self._escape(key):
                return
            self._line_start = False
            self._emit(Forward(tilde))
            if key == b"~":
                return
        if self._line_start and key == b"~":
            self._tilde = raw
            return
        if not self._detaches(raw, key):
            self._type(raw, key, now)

    def _escape(self, key: bytes | None) -> bool:
        """Carry out the local escape whose second key is `key`, if it is one."""
        if key == b".":
            self._emit(Leave())
        elif key in _LOCALS:
            self._emit(_LOCALS[key])
            self._line_start = True
        else:
            return False
        return True

    def _detaches(self, raw: bytes, key: bytes | None) -> bool:
        """Whether the key is held back as (part of) the detach keys; those held before and now known not to be go on."""
        if not self._detach:
            return False
        self._partial.append((key or b"", raw))
        while self._partial:
            typed = tuple(held for held, _ in self._partial)
            if typed == self._detach:
                self._partial.clear()
                self._emit(Leave())
                return True
            if typed == self._detach[: len(typed)]:
                return True
            if len(self._partial) == 1:
                self._partial.clear()
                return False
            self._emit(Forward(self._partial.popleft()[1]))
        return False

    def _type(self, raw: bytes, key: bytes | None, now: float) -> None:
        self._line_start = key in _ENTER
        if key == _CTRL_C and self._interrupt is not Interrupt.NEVER:
            earlier, self._interrupted = self._interrupted, now
            again = earlier is not None and now - earlier <= constants.DOUBLE_CTRL_C_S
            if again or self._interrupt is Interrupt.ONCE:
                self._emit(Leave())
                return
        self._emit(Forward(raw))

    # ------------------------------------------------------------------------------------------ paste

    def _begin_paste(self) -> None:
        held = b"".join([self._tilde, *(raw for _, raw in self._partial)])
        if held:
            self._emit(Forward(held))
        self._tilde = b""
        self._partial.clear()
        self._pasting = True
        self._line_start = False
        if self._pastes:
            self._paste = bytearray()
        else:
            self._emit(Forward(_PASTE_BEGIN))

    def _in_paste(self, data: bytes, at: int) -> int:
        end = data.find(_PASTE_END, at)
        if end < 0:
            kept = next((n for n in range(len(_PASTE_END) - 1, 0, -1) if data.endswith(_PASTE_END[:n], at)), 0)
            self._held = data[len(data) - kept :]
            self._pasted(data[at : len(data) - kept])
            return len(data)
        self._pasted(data[at:end])
        if self._paste is not None:
            text, self._paste = bytes(self._paste), None
            self._emit(Paste(text, _PASTE_BEGIN + text + _PASTE_END))
        else:
            self._emit(Forward(_PASTE_END))
        self._pasting = False
        return end + len(_PASTE_END)

    def _pasted(self, text: bytes) -> None:
        if self._paste is None:
            if text:
                self._emit(Forward(text))
            return
        self._paste += text
        if len(self._paste) > _PASTE_HELD_MAX:
            self._release_paste()

    def _release_paste(self) -> None:
        paste, self._paste = self._paste, None
        self._emit(Forward(_PASTE_BEGIN + bytes(paste or b"")))


_LOCALS: Final = {b"?": Local.HELP, b"s": Local.SYNC, b"\x1a": Local.SUSPEND}

# No number of a key has more digits; longer ones are text that looks like a key.
_CSI_U: Final = re.compile(
    rb"\x1b\[(\d{1,9})(?::(\d{0,9}))?(?::(\d{0,9}))?"  # code, with shift, on the base layout
    rb"(?:;(\d{0,9})(?::(\d{0,9}))?(?:;(\d{0,9}(?::\d{0,9})*))?)?u"  # modifiers, event, text
)
_MODIFY_OTHER: Final = re.compile(rb"\x1b\[27;(\d{1,9});(\d{1,9})~")
_EVENT: Final = re.compile(rb"\x1b\[[\d:]*;\d*:(\d)")
_LOCKS: Final = 64 | 128  # Caps Lock, Num Lock
_SHIFT: Final = 1
_CTRL: Final = 4
_PRESSED: Final = b"1"


def _is_press(raw: bytes) -> bool:
    """Whether a sequence stands for a key going down (kitty reports repetition and release as well)."""
    event = _EVENT.match(raw)
    return event is None or event[1] == _PRESSED


def _decode(raw: bytes) -> bytes | None:
    """What a key's sequence would be in the oldest encoding; None if it has no such form."""
    if match := _CSI_U.fullmatch(raw):
        code, shifted, base, modifiers, _, text = (_numbers(group) for group in match.groups())
        if text:
            return _encode(text[0])
        return _with_modifiers(code[0], shifted, base, _modifiers(modifiers[0] if modifiers else 1))
    if match := _MODIFY_OTHER.fullmatch(raw):
        modifier_bits = _modifiers(int(match[1])) & ~_SHIFT  # the code already has the shift in it
        return _with_modifiers(int(match[2]), [], [], modifier_bits)
    return None


def _with_modifiers(code: int, shifted: list[int], base: list[int], modifiers: int) -> bytes | None:
    if code == _KEYPAD_ENTER:
        code = _ENTER[0][0]
    if modifiers == 0:
        return _encode(code)
    if modifiers == _SHIFT:
        return _encode(shifted[0]) if shifted else None
    if modifiers == _CTRL:
        latin = code if code < 0x80 else base[0] if base else 0  # Ctrl with a letter of another script: where it lies
        if latin < 0x80 and (chr(latin).isalpha() or chr(latin) in "@[\\]^_"):
            return bytes([latin & 0x1F])
    return None


def _modifiers(number: int) -> int:
    return max(number - 1, 0) & ~_LOCKS


def _numbers(text: bytes | None) -> list[int]:
    return [int(part) for part in (text or b"").split(b":") if part]


def _encode(code: int) -> bytes | None:
    try:
        return chr(code).encode()
    except (ValueError, OverflowError):
        return None


def detach_keys(text: str) -> tuple[bytes, ...]:
    """The keys that `--detach-keys` names, as docker writes them: `ctrl-p,ctrl-q`, `a,b`, `ctrl-@`. "" means none.

    Raises UsageError.
    """
    keys = []
    for name in text.split(",") if text else ():
        letter = name.removeprefix("ctrl-")
        if len(letter) != 1 or not letter.isascii() or not letter.isprintable():
            raise _bad_detach_keys(text)
        if letter == name:
            keys.append(letter.encode())
        elif letter.isalpha() or letter in "@[\\]^_":
            keys.append(bytes([ord(letter) & 0x1F]))
        else:
            raise _bad_detach_keys(text)
    return tuple(keys)


def _bad_detach_keys(text: str) -> UsageError:
    return UsageError(
        f"'{text}' are no detach keys", hint="Write them as docker does, e.g. --detach-keys ctrl-p,ctrl-q."
    )
