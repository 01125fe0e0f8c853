"""The client's half of an attach that survives any cut: which bytes are news, which keys must be sent again (docs/protocol.md).

One `ResumeLink` lives as long as the attach; connections come and go. It does no I/O: the shell around it opens a connection,
sends `opening()`, feeds every message to `received()`, and sends what `to_send()` gives. Output is delivered exactly once and in
order, and each key reaches the machine exactly once, whatever is cut, repeated or restarted in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from catty import constants
from catty.errors import BadRequest
from catty.wire.attach import Resume, Resumed
from catty.wire.frames import (
    NO_OFFSET,
    Frame,
    FrameType,
    pack,
    pack_json,
    unpack,
    unpack_json,
    unpack_size,
)

__all__ = ["Event", "Exited", "Mark", "Notice", "Output", "Pong", "Reply", "ResumeLink", "Screen", "Sized", "Started"]

_IN_PAYLOAD_MAX: Final = 64 * constants.KIB


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the output of one epoch; what the shell hands back once everything before it stands on the terminal."""

    generation: int
    offset: int


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes for the terminal that follow exactly on those delivered before."""

    data: bytes
    mark: Mark


@dataclass(frozen=True, slots=True)
class Screen:
    """Bytes that repaint the terminal from nothing; output goes on after them."""

    data: bytes
    mark: Mark


@dataclass(frozen=True, slots=True)
class Started:
    """The machine has answered: input flows. `lost_input` counts keys of which nobody can know any more whether they were taken."""

    cols: int
    rows: int
    lost_input: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The agent has ended with `code`, or by `signal`."""

    code: int | None
    signal: int | None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the user should read; not part of the output. `level` is info, warning or error."""

    level: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Sized:
    """The size of the terminal that is in force in the machine (the smallest of the writing clients)."""

    cols: int
    rows: int


@dataclass(frozen=True, slots=True)
class Reply:
    """A message to be sent back at once."""

    message: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to the PING with this token."""

    token: int


Event = Output | Screen | Started | Exited | Notice | Sized | Reply | Pong


class ResumeLink:
    """See the module's text. `client` names this client over its reconnects; `limit` bounds the input kept, in bytes."""

    def __init__(self, client: str, limit: int = constants.INPUT_LIMIT_BYTES) -> None:
        self._client = client
        self._limit = limit
        self._epoch = ""
        self._generation = 0
        self._position = NO_OFFSET  # output received; the next byte has this offset
        self._kept = bytearray()  # input that the machine has not acknowledged
        self._taken = 0  # offset of the first kept byte
        self._sent_ever = 0  # end of what any connection was given
        self._sent_here = 0  # end of what this connection was given
        self._acknowledged = 0  # output acknowledged on this connection
        self._answered = False  # this connection has brought RESUMED
        self._screen_due = False  # and promised a SNAPSHOT, before which no OUT counts

    @property
    def pending(self) -> int:
        """Bytes of input that the machine has not acknowledged."""
        return len(self._kept)

    @property
    def unanswered(self) -> bool:
        """Whether this connection was given input that it has not acknowledged."""
        return self._answered and self._sent_here > self._taken

    @property
    def room(self) -> int:
        """Bytes of input that can still be kept."""
        return self._limit - len(self._kept)

    def opening(self, cols: int, rows: int, *, fresh: bool) -> bytes:
        """The first message of a new connection; whatever was under way on the one before is over."""
        self._answered = False
        self._screen_due = False
        resume = Resume(self._client, cols, rows, self._epoch, self._position, self._sent_ever, fresh)
        return pack_json(FrameType.RESUME, self._position, resume.to_json())

    def typed(self, data: bytes) -> bool:
        """Keep input for the machine. False, and nothing kept, if it does not fit any more."""
        if len(data) > self.room:
            return False
        self._kept += data
        return True

    def to_send(self) -> Iterator[bytes]:
        """Messages for input that this connection has not been given yet; none before it has answered."""
        end = self._taken + len(self._kept)
        while self._answered and self._sent_here < end:
            start = self._sent_here - self._taken
            payload = self._kept[start : start + _IN_PAYLOAD_MAX]
            message = pack(FrameType.IN, self._sent_here, payload)
            self._sent_here += len(payload)
            self._sent_ever = max(self._sent_ever, self._sent_here)
            yield message

    def acknowledge(self, written: Mark, *, idle: bool = False) -> bytes | None:
        """The ACK for output that stands on the terminal up to `written`, if one is due: at once when `idle`."""
        if not self._answered or written.generation != self._generation:
            return None
        news = written.offset - self._acknowledged
        if news < (1 if idle else constants.ACK_EVERY_BYTES):
            return None
        self._acknowledged = written.offset
        return pack(FrameType.ACK, written.offset)

    def received(self, message: bytes | memoryview) -> Event | None:
        """What a message means for the shell; None if there is nothing to do.

        Raises BadRequest if it does not fit the protocol: the connection is of no use any more, a new one heals it.
        """
        frame = unpack(message)
        if not self._answered and frame.type not in (FrameType.RESUMED, FrameType.NOTICE, FrameType.PING):
            raise BadRequest(f"{frame.type.name} frame before RESUMED")
        handler = _HANDLERS.get(frame.type)
        if handler is None:
            raise BadRequest(f"{frame.type.name} frame on an attach connection")
        return handler(self, frame)

    def _on_resumed(self, frame: Frame) -> Event:
        resumed = Resumed.from_json(unpack_json(frame), frame.offset)
        same_epoch = resumed.epoch == self._epoch
        if not same_epoch:
            self._epoch = resumed.epoch
            self._generation += 1
            self._position = NO_OFFSET
        if not resumed.exact:  # also if this connection ends before the SNAPSHOT: the next one needs it as well
            self._position = NO_OFFSET
        elif self._position == NO_OFFSET:
            self._position = resumed.output
        elif resumed.output > self._position:
            raise BadRequest("the machine leaves out some output")
        lost = self._reconcile_input(resumed.input, same_epoch=same_epoch)
        self._acknowledged = resumed.output
        self._answered = True
        self._screen_due = not resumed.exact
        return Started(resumed.cols, resumed.rows, lost)

    def _reconcile_input(self, taken: int, *, same_epoch: bool) -> int:
        """Forget what the machine has. Returns the number of keys whose fate nobody knows: they are not sent again."""
        lost = 0
        if same_epoch and self._taken <= taken <= self._sent_ever:
            del self._kept[: taken - self._taken]
        else:  # a machine that does not know this client: go on with the keys that none was ever given
            lost = max(0, self._sent_ever - self._taken)
            del self._kept[:lost]
            self._sent_ever = taken
        self._taken = self._sent_here = taken
        return lost

    def _on_snapshot(self, frame: Frame) -> Event:
        self._position = frame.offset
        self._acknowledged = min(self._acknowledged, frame.offset)
        self._screen_due = False
        return Screen(bytes(frame.payload), Mark(self._generation, frame.offset))

    def _on_out(self, frame: Frame) -> Event | None:
        if self._screen_due:
            return None
        if frame.offset > self._position:
            raise BadRequest("the machine leaves out some output")
        news = frame.payload[self._position - frame.offset :]
        if not news:
            return None
        self._position += len(news)
        return Output(bytes(news), Mark(self._generation, self._position))

    def _on_ack(self, frame: Frame) -> None:
        if not self._taken <= frame.offset <= self._sent_here:
            if frame.offset > self._sent_here:
                raise BadRequest("the machine acknowledges what was never sent")
            return
        del self._kept[: frame.offset - self._taken]
        self._taken = frame.offset

    def _on_exit(self, frame: Frame) -> Event:
        value = unpack_json(frame)
        return Exited(_int_or_none(value.get("code")), _int_or_none(value.get("signal")))

    def _on_notice(self, frame: Frame) -> Event:
        value = unpack_json(frame)
        return Notice(*(str(value.get(key, "")) for key in ("level", "code", "message")))

    def _on_resize(self, frame: Frame) -> Event:
        return Sized(*unpack_size(frame))

    def _on_ping(self, frame: Frame) -> Event:
        return Reply(pack(FrameType.PONG, frame.offset, frame.payload))

    def _on_pong(self, frame: Frame) -> Event:
        return Pong(frame.offset)


_HANDLERS: Final = {
    FrameType.RESUMED: ResumeLink._on_resumed,
    FrameType.SNAPSHOT: ResumeLink._on_snapshot,
    FrameType.OUT: ResumeLink._on_out,
    FrameType.ACK: ResumeLink._on_ack,
    FrameType.EXIT: ResumeLink._on_exit,
    FrameType.NOTICE: ResumeLink._on_notice,
    FrameType.RESIZE: ResumeLink._on_resize,
    FrameType.PING: ResumeLink._on_ping,
    FrameType.PONG: ResumeLink._on_pong,
}


def _int_or_none(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
