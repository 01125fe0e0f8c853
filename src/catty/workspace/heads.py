"""A head: the object that makes a snapshot of a session (docs/snapshots.md, "Heads"). No I/O.

Heads are numbered and create-only. Each carries its whole manifest, or the delta from a base: an earlier head that carries a whole
one. So any snapshot is read with at most two objects, whatever came between.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from catty.errors import BadRequest
from catty.workspace.model import DIGEST_BYTES, digest

__all__ = ["PREFIX_BYTES", "Head", "dump", "parse", "parse_meta"]

_META_MAX: Final = 4096
PREFIX_BYTES: Final = _META_MAX + 64  # of a head, enough for `parse_meta`
_MAGIC: Final = b"CATH\x01"
_LENGTH: Final = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a snapshot without its manifest.

    `created_at`: RFC 3339, UTC. `digest`: of its manifest, hex. `base`: the head that carries a whole manifest; its own number if it
    does itself. `complete`: nothing was unreadable or changed under the reader. `reason`: why it was made (`upload`, `autosave`,
    `stop`, …). `generation`: of the lease that its writer held. `files`, `bytes`: of the whole snapshot.
    """

    number: int
    created_at: str
    digest: str
    base: int
    files: int
    bytes: int
    complete: bool = True
    reason: str = ""
    generation: int = 0


def dump(head: Head, content: bytes) -> bytes:
    """The object; `content` is the manifest's bytes, or those of the delta from `head.base`."""
    meta = json.dumps(asdict(head), separators=(",", ":")).encode()
    if len(meta) > _META_MAX:
        raise ValueError("head's reason too long")
    body = b"".join((_MAGIC, _LENGTH.pack(len(meta)), meta, digest(meta), content))
    return body + digest(body)


def parse_meta(data: bytes) -> Head:
    """From the first PREFIX_BYTES, or more, of a head. Raises BadRequest on damage."""
    head, _ = _meta(data)
    return head


def parse(data: bytes) -> tuple[Head, bytes]:
    """(head, content). Raises BadRequest on damage."""
    head, start = _meta(data)
    if digest(memoryview(data)[:-DIGEST_BYTES]) != data[-DIGEST_BYTES:]:
        raise BadRequest("head damaged")
    return head, data[start:-DIGEST_BYTES]


def _meta(data: bytes) -> tuple[Head, int]:
    prefix = len(_MAGIC) + _LENGTH.size
    if len(data) < prefix or not data.startswith(_MAGIC):
        raise BadRequest("not a head of this version")
    (length,) = _LENGTH.unpack_from(data, len(_MAGIC))
    meta, checksum = data[prefix : prefix + length], data[prefix + length : prefix + length + DIGEST_BYTES]
    if digest(meta) != checksum:
        raise BadRequest("head damaged")
    value: dict[str, Any] = json.loads(meta)
    known = {field.name for field in fields(Head)}
    return Head(**{key: item for key, item in value.items() if key in known}), prefix + length + DIGEST_BYTES
