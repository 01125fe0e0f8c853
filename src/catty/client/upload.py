"""Sends a directory to a new session: only what the store has not seen from this owner (docs/workspace.md, "Upload").

Two steps, so that what is too large is refused before a session is made: `prepare`, then `send`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from catty.client.config import home
from catty.client.sources import Sources, find
from catty.client.syncstate import record_upload
from catty.constants import BLOB_BYTES, UPLOAD_LIMIT_BYTES
from catty.errors import BlobsMissing, HomeDirectory
from catty.workspace.manifest import Manifest
from catty.workspace.model import DIGEST_BYTES, WORKSPACE, Entry, Kind, digest
from catty.workspace.packs import PackWriter
from catty.workspace.scan import Cache, Scanner

__all__ = ["Prepared", "Progress", "Server", "Uploaded", "prepare", "send"]

_ASK_DIGESTS: Final = (1 << 20) // DIGEST_BYTES  # per request
_ATTEMPTS: Final = 3


class Server(Protocol):
    """What is needed of the REST client (client/api.py)."""

    def missing_blobs(self, digests: list[bytes]) -> list[bytes]: ...
    def put_pack(self, pack: bytes) -> None: ...
    def put_workspace(self, label: str, manifest: bytes) -> int: ...


class Progress(NamedTuple):
    """How far it is. `step` is "reading" or "sending"; the last report has `done_bytes` = `all_bytes`."""

    step: str
    done_files: int
    all_files: int
    done_bytes: int
    all_bytes: int


Report = Callable[[Progress], None]


@dataclass(slots=True)
class Prepared:
    """What of `directory` will go. `notes` are for the user, one line each."""

    directory: Path
    sources: Sources

    @property
    def notes(self) -> list[str]:
        return self.sources.notes


@dataclass(frozen=True, slots=True)
class Uploaded:
    """`number` of the snapshot; `sent` bytes of content were new to the server; `skipped`: (path, why) of what stayed behind."""

    number: int
    manifest: Manifest
    sent: int
    skipped: tuple[tuple[str, str], ...]


def prepare(directory: Path, *, git: bool = True, limit: int = UPLOAD_LIMIT_BYTES) -> Prepared:
    """Look at what would go. Raises HomeDirectory, UploadTooLarge (naming the largest paths), GitNotSelfContained, UsageError."""
    here = directory.resolve()
    if Path.home().resolve().is_relative_to(here):
        raise HomeDirectory(path=here)
    return Prepared(directory, find(os.fsencode(directory), git=git, limit=limit))


def send(
    server: Server, session: str, prepared: Prepared, report: Report | None = None, *, sessions: Path | None = None
) -> Uploaded:
    """Send what was prepared, as it is now, and commit it as the workspace of `session` (an id).

    Files may change meanwhile: what is committed is what was sent. It is remembered for sync-back as what both sides have, in
    `sessions` (default: `~/.catty/sessions`). Raises what the server raises.
    """
    upload = _Upload(server, prepared.sources, report or (lambda _: None))
    for attempt in range(1, _ATTEMPTS + 1):
        manifest = upload.run()
        try:
            number = server.put_workspace(session, manifest.to_bytes())
        except BlobsMissing:  # collected between question and commit
            if attempt == _ATTEMPTS:
                raise
            upload.forget_what_the_server_has()
            continue
        record_upload(sessions or home().sessions, session, prepared.directory, manifest)
        skipped = tuple((os.fsdecode(path.removeprefix(WORKSPACE + b"/")), why) for path, why in upload.skipped)
        return Uploaded(number, manifest, upload.sent, skipped)
    raise AssertionError("unreachable")


class _Upload:
    def __init__(self, server: Server, sources: Sources, report: Report) -> None:
        self._server, self._sources, self._report = server, sources, report
        self._caches = [Cache.empty() for _ in sources.trees]
        self._present: set[bytes] = set()  # the server has these
        self._writer = PackWriter()
        self.sent = 0
        self.skipped: list[tuple[bytes, str]] = []

    def forget_what_the_server_has(self) -> None:
        self._present.clear()

    def run(self) -> Manifest:
        """Send what the server lacks; the manifest of what it has then."""
        entries = self._read("reading", self._sources.size)
        wanted = Manifest.of(entries.values()).blobs() | {
            digest(text): len(text) for text in self._sources.texts.values()
        }
        missing = self._ask(list(wanted))
        self._present.update(wanted.keys() - missing)
        entries = self._read("sending", sum(wanted[name] for name in missing), send=True)
        for place, text in self._sources.texts.items():
            pieces = [text[start : start + BLOB_BYTES] for start in range(0, len(text), BLOB_BYTES)]
            for piece in pieces:
                self._take(digest(piece), piece)
            entries[place] = Entry(place, Kind.FILE, size=len(text), blobs=tuple(map(digest, pieces)))
        if not self._writer.empty:
            self._server.put_pack(self._writer.finish())
        return Manifest.of(entries.values())

    def _ask(self, digests: list[bytes]) -> set[bytes]:
        missing: set[bytes] = set()
        for start in range(0, len(digests), _ASK_DIGESTS):
            missing.update(self._server.missing_blobs(digests[start : start + _ASK_DIGESTS]))
        return missing

    def _read(self, step: str, total: int, *, send: bool = False) -> dict[bytes, Entry]:
        """All entries, in all trees. With `send`, every blob that the server lacks goes into a pack on the way."""
        meter = _Meter(self._report, step, self._sources.files, total)
        entries: dict[bytes, Entry] = {}
        self.skipped = []

        def take(name: bytes, data: bytes) -> None:
            if not send:
                meter.add(len(data))
            elif name not in self._present:
                self._take(name, data)
                meter.add(len(data))

        def needed(name: bytes) -> bool:
            return send and name not in self._present

        for tree, cache in zip(self._sources.trees, self._caches, strict=True):
            with _opened(tree.root) as root:
                scanner = Scanner(root, tree.place, cache, exclude=tree.exclude, needed=needed, take=take)
                for entry in scanner.scan():
                    entries[entry.path] = entry
                    meter.count(entry)
                self.skipped += scanner.skipped
        meter.finish()
        return entries

    def _take(self, name: bytes, data: bytes) -> None:
        if name in self._present:
            return
        if self._writer.full:
            self._server.put_pack(self._writer.finish())
        self._writer.add(name, data)
        self._present.add(name)
        self.sent += len(data)


class _Meter:
    """Reports at most once per file or blob."""

    def __init__(self, report: Report, step: str, files: int, size: int) -> None:
        self._report = report
        self._now = Progress(step, 0, files, 0, size)
        report(self._now)

    def add(self, size: int) -> None:
        now = self._now
        self._now = now._replace(done_bytes=now.done_bytes + size, all_bytes=max(now.all_bytes, now.done_bytes + size))
        self._report(self._now)

    def count(self, entry: Entry) -> None:
        if entry.kind is Kind.FILE:
            now = self._now
            self._now = now._replace(done_files=now.done_files + 1, all_files=max(now.all_files, now.done_files + 1))
            self._report(self._now)

    def finish(self) -> None:
        now = self._now
        self._report(now._replace(all_files=now.done_files, all_bytes=now.done_bytes))


@contextmanager
def _opened(directory: bytes) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
