"""Offset frames: the binary WebSocket messages of the subprotocol `catty.v2` (docs/protocol.md, "Frames").

    type u8 | offset u64 big-endian | payload

One message holds one frame. `offset` is a byte position: in the terminal's output stream for what the machine sends, in the
client's own input stream for what the client sends. Both streams start at 0 and only grow, so a frame says by itself whether it
is news, a repetition or comes after a gap.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Any, Final, NamedTuple

from catty.errors import BadRequest

__all__ = [
    "HEADER_BYTES",
    "NO_OFFSET",
    "SUBPROTOCOL",
    "Frame",
    "FrameType",
    "pack",
    "pack_json",
    "pack_size",
    "unpack",
    "unpack_json",
    "unpack_size",
]

SUBPROTOCOL: Final = "catty.v2"
NO_OFFSET: Final = (1 << 64) - 1  # "none": a client that has seen nothing yet

_HEADER: Final = struct.Struct(">BQ")
_SIZE: Final = struct.Struct(">HH")
HEADER_BYTES: Final = _HEADER.size


class FrameType(IntEnum):
    """The types. C: client to machine, M: machine to client. JSON payloads are UTF-8 objects whose unknown keys are ignored."""

    OUT = 0x01  # M: output bytes; offset = position of the first one. `exec`: standard output
    IN = 0x02  # C: input bytes; offset = position of the first one in this client's input
    ACK = 0x03  # C: offset = output seen up to here. M: offset = input taken up to here
    RESUME = 0x04  # C, first message: offset = output seen so far or NO_OFFSET; JSON, see `wire.attach.Resume`
    RESUMED = 0x05  # M, answer: offset = where OUT goes on; JSON, see `wire.attach.Resumed`
    SNAPSHOT = 0x06  # M: payload repaints the screen from nothing; offset = output position it stands for
    RESIZE = 0x07  # C: cols u16, rows u16 of its window. M: the size in force. offset = 0
    EXIT = 0x08  # M: the program ended; offset = end of its output; JSON {"code": int|null, "signal": int|null}
    PING = 0x09  # both: offset = any token
    PONG = 0x0A  # both: the PING's token and payload
    NOTICE = 0x0B  # M: JSON {"level": "info"|"warning"|"error", "code": str, "message": str}; never part of the stream
    ERR = 0x0C  # M, `exec` only: standard error; offset = position in that stream
    EOF = 0x0D  # C, `exec` only: end of standard input; offset = its length
    SIGNAL = 0x0E  # C, `exec` only: JSON {"signal": "INT"|"TERM"|"HUP"|"KILL"}
    START = 0x0F  # C, `exec`, first message: JSON, see `wire.attach.Exec`


class Frame(NamedTuple):
    """One frame; `payload` is a view into the message where the message was one."""

    type: FrameType
    offset: int
    payload: bytes | memoryview


def pack(type_: FrameType, offset: int, payload: bytes | bytearray | memoryview = b"") -> bytes:
    """The message for one frame."""
    return b"".join((_HEADER.pack(type_, offset), payload))


def pack_json(type_: FrameType, offset: int, value: dict[str, Any]) -> bytes:
    """The message for a frame whose payload is a JSON object."""
    return pack(type_, offset, json.dumps(value, separators=(",", ":")).encode())


def pack_size(cols: int, rows: int) -> bytes:
    """The message for a RESIZE; sizes beyond 1..65535 are clamped."""
    return pack(FrameType.RESIZE, 0, _SIZE.pack(_clamp(cols), _clamp(rows)))


def unpack(message: bytes | memoryview) -> Frame:
    """The frame in a message. Raises BadRequest on anything else; the payload's content is not looked at."""
    if len(message) < HEADER_BYTES:
        raise BadRequest("frame shorter than its header")
    number, offset = _HEADER.unpack_from(message)
    try:
        type_ = FrameType(number)
    except ValueError:
        raise BadRequest(f"unknown frame type {number:#04x}") from None
    return Frame(type_, offset, message[HEADER_BYTES:])


def unpack_json(frame: Frame) -> dict[str, Any]:
    """The JSON object in a frame's payload. Raises BadRequest if it is none."""
    try:
        value = json.loads(bytes(frame.payload))
    except (ValueError, RecursionError):
        raise BadRequest(f"{frame.type.name} frame holds no JSON") from None
    if not isinstance(value, dict):
        raise BadRequest(f"{frame.type.name} frame holds no JSON object")
    return value


def unpack_size(frame: Frame) -> tuple[int, int]:
    """(cols, rows) of a RESIZE. Raises BadRequest if its payload is no size."""
    if len(frame.payload) != _SIZE.size:
        raise BadRequest("RESIZE frame holds no size")
    cols, rows = _SIZE.unpack(frame.payload)
    return max(1, cols), max(1, rows)


def _clamp(number: int) -> int:
    return min(max(number, 1), 0xFFFF)
