"""What a tree of files is made of, on every side: laptop, server and machine speak in these terms (docs/snapshots.md).

A snapshot is a sorted list of entries. Its paths are relative, `/`-separated bytes whose first component is the tree: `workspace`
(what the user sees) or `home` (the agent's conversation). File contents are cut into blobs of `constants.BLOB_BYTES`, named by their
BLAKE3-256 digest; equal content has equal digests everywhere, so a digest list is the content's identity.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from enum import Enum
from typing import Final

from blake3 import blake3

from catty.errors import HostileArchive

__all__ = [
    "DIGEST_BYTES",
    "FILE_BLOBS_MAX",
    "HOME",
    "PATH_MAX_BYTES",
    "WORKSPACE",
    "Entry",
    "Kind",
    "check_path",
    "digest",
]

DIGEST_BYTES: Final = 32
FILE_BLOBS_MAX: Final = 1 << 20  # 1 TiB in one file
PATH_MAX_BYTES: Final = 4095  # Linux's PATH_MAX less its final NUL
NAME_MAX_BYTES: Final = 255
WORKSPACE: Final = b"workspace"
HOME: Final = b"home"


class Kind(Enum):
    """Other kinds (sockets, fifos, devices) are never part of a snapshot."""

    FILE = "f"
    DIR = "d"
    SYMLINK = "l"


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a snapshot.

    `mode` holds the permission bits (0o7777; setuid and setgid are kept in snapshots, never applied outside a machine). `size` and
    `blobs` belong to files (blobs in order; none for an empty file), `target` to symlinks. `torn` marks a file that changed while it
    was read, time after time.
    """

    path: bytes
    kind: Kind
    mode: int = 0o644
    mtime_ns: int = 0
    size: int = 0
    blobs: tuple[bytes, ...] = ()
    target: bytes = b""
    torn: bool = False

    def same_content(self, other: Entry) -> bool:
        """Whether both would look the same to a user: content, kind, target and exec bits; not times."""
        return (self.kind, self.size, self.blobs, self.target, self.mode & stat.S_IXUSR) == (
            other.kind,
            other.size,
            other.blobs,
            other.target,
            other.mode & stat.S_IXUSR,
        )


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3-256 of `data`: a blob's name."""
    return blake3(data).digest()


def check_path(path: bytes) -> bytes:
    """`path` itself if it may stand in a snapshot, else HostileArchive: empty, absolute, `.`, `..`, NUL, empty or overlong components."""
    if not path or len(path) > PATH_MAX_BYTES or b"\0" in path:
        raise HostileArchive(what=f"path {path[:80]!r}")
    for name in path.split(b"/"):
        if name in (b"", b".", b"..") or len(name) > NAME_MAX_BYTES:
            raise HostileArchive(what=f"path {path[:80]!r}")
    return path
