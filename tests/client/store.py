"""A server's store in memory, as client/api.py shows it: real manifests and packs, checked as a server checks them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from catty.errors import BlobsMissing, HostileArchive
from catty.workspace import packs
from catty.workspace.manifest import Manifest


class MemoryServer:
    def __init__(self) -> None:
        self.blobs: dict[bytes, bytes] = {}
        self.manifests: list[bytes] = []
        self.state, self.step = "stopped", ""
        self.next_states: list[str] = []  # each is seen by one who waits
        self.error: dict[str, Any] | None = None
        self.asked = self.packs_taken = self.saves = 0

    def missing_blobs(self, digests: list[bytes]) -> list[bytes]:
        self.asked += len(digests)
        return [name for name in digests if name not in self.blobs]

    def put_pack(self, pack: bytes) -> None:
        self.packs_taken += 1
        self.blobs |= {name: bytes(data) for name, data in packs.read(pack)}

    def put_workspace(self, label: str, manifest: bytes) -> int:
        missing = Manifest.from_bytes(manifest).blobs().keys() - self.blobs.keys()
        if missing:
            raise BlobsMissing(count=len(missing))
        self.manifests.append(manifest)
        return len(self.manifests)

    def session(self, label: str, *, wait: int | None = None, timeout: float = 25.0) -> dict[str, Any]:
        if wait is not None and self.next_states:
            self.state = self.next_states.pop(0)
        return {"label": label, "state": self.state, "version": 1, "step": self.step, "error": self.error}

    def save(self, label: str) -> int:
        self.saves += 1
        return len(self.manifests)

    def manifest(self, label: str, snapshot: int | str = "latest") -> bytes:
        return self.manifests[-1 if snapshot == "latest" else int(snapshot) - 1]

    def fetch_blobs(self, digests: list[bytes]) -> Iterator[bytes]:
        writer = packs.PackWriter()
        for name in digests:
            if name not in self.blobs:
                raise HostileArchive(what="asked for what is not there")
            if writer.full:
                yield writer.finish()
            writer.add(name, self.blobs[name])
        if not writer.empty:
            yield writer.finish()
