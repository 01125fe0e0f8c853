"""`/save`: what changed since the last snapshot goes to the server (docs/snapshots.md, "Save")."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Container, Sequence
from typing import Any, Final, NamedTuple

from catty.errors import BadRequest, MachineError
from catty.runtime.workspace_trees import Stopped, Trees, below, in_thread, save_rules
from catty.workspace.exchange import Exchange, Kind
from catty.workspace.manifest import EMPTY, Manifest
from catty.workspace.model import HOME, WORKSPACE, Entry
from catty.workspace.model import Kind as EntryKind
from catty.workspace.packs import PackWriter
from catty.workspace.scan import Scanner

__all__ = ["PackSender", "serve_save"]

_REPORTED_MAX: Final = 100  # paths that could not be saved, named to the server


class _Scan(NamedTuple):
    manifest: Manifest
    skipped: list[tuple[bytes, str]]
    torn: list[bytes]


class PackSender:
    """Packs blobs and sends them, called from a thread; each blob goes once. The thread waits while the connection is full."""

    def __init__(self, exchange: Exchange, known: Container[bytes], stop: threading.Event) -> None:
        """`known`: digests that the other side has."""
        self._exchange, self._known, self._stop = exchange, known, stop
        self._writer = PackWriter()
        self._taken: set[bytes] = set()

    def needed(self, digest: bytes) -> bool:
        """Whether this blob is still to be sent."""
        return digest not in self._taken and digest not in self._known

    def take(self, digest: bytes, data: bytes) -> None:
        """Send this blob if it is needed. Raises Stopped once nobody waits for the work; errors of the connection."""
        if self._stop.is_set():
            raise Stopped
        if self.needed(digest):
            self._taken.add(digest)
            self._writer.add(digest, data)
            if self._writer.full:
                self.flush()

    def flush(self) -> None:
        """Send what is gathered."""
        if not self._writer.empty:
            sending = self._exchange.send_object(Kind.PACK, self._writer.finish())
            asyncio.run_coroutine_threadsafe(sending, self._exchange.loop).result()


async def serve_save(
    trees: Trees, conversation: Sequence[str] | None, exchange: Exchange, request: dict[str, Any]
) -> None:
    """Serve one connection whose first message was `request`.

    `conversation`: paths below the home that belong to a snapshot, unless the request says which; None: of the home, what the base has.
    """
    paths = request.get("conversation", conversation)
    if paths is not None and not all(isinstance(path, str) for path in paths):
        raise BadRequest("conversation is a list of paths")
    async with trees.busy:
        base = await _base(trees, exchange, request.get("base"))
        known: Container[bytes] = await in_thread(base.blobs)
        for _ in range(2):  # a second time if the server turns out to have lost what it is known to have
            stop = threading.Event()
            sender = PackSender(exchange, known, stop)
            scan = await in_thread(_scan, trees, paths, base, sender, stop=stop)
            if scan.manifest == base:
                trees.baseline = base
                await exchange.send("unchanged")
                return
            await exchange.send_object(Kind.DELTA, await in_thread(base.delta, scan.manifest))
            await exchange.send("done", **_report(scan))
            if (await exchange.expect("committed", "resend"))["type"] == "committed":
                trees.baseline = scan.manifest
                return
            known = ()
        raise MachineError("the server lacks blobs that it was sent")


async def _base(trees: Trees, exchange: Exchange, digest: Any) -> Manifest:
    """The manifest that the server compares with; asks for it where this process does not have it."""
    if digest is None:
        return EMPTY
    if trees.baseline is not None and trees.baseline.digest.hex() == digest:
        return trees.baseline
    await exchange.send("want-base")
    data = (await exchange.expect_object(Kind.MANIFEST)).data
    base = await in_thread(Manifest.from_bytes, data)
    if base.digest.hex() != digest:
        raise BadRequest("the manifest that was sent is another one")
    return base


def _scan(trees: Trees, conversation: Sequence[str] | None, base: Manifest, sender: PackSender) -> _Scan:
    rules, entries, skipped, torn = save_rules(), [], [], []
    excludes = {WORKSPACE: rules}
    if conversation is None:
        entries += [entry for path, entry in base.entries.items() if path.partition(b"/")[0] == HOME]
    else:
        others = below(conversation)
        excludes[HOME] = lambda path, is_dir: others(path, is_dir) or rules(path, is_dir)
    for tree, exclude in excludes.items():
        root = trees.open(tree)
        try:
            scanner = Scanner(root, tree, trees.cache, exclude=exclude, needed=sender.needed, take=sender.take)
            entries += (_settled(entry, base) for entry in scanner.scan())
        finally:
            os.close(root)
        skipped += scanner.skipped
        torn += scanner.torn
    sender.flush()
    return _Scan(Manifest.of(entries), skipped, torn)


def _settled(entry: Entry, base: Manifest) -> Entry:
    """A directory's time changes with each temporary file in it; by itself that is no news."""
    if entry.kind is EntryKind.DIR and (old := base.entries.get(entry.path)) and old.mode == entry.mode:
        return old if old.kind is EntryKind.DIR else entry
    return entry


def _report(scan: _Scan) -> dict[str, Any]:
    named = [(path, why) for path, why in scan.skipped if why != "neither file, directory nor symlink"]
    named += [(path, "kept changing while it was read") for path in scan.torn]
    skipped = [[path.decode(errors="backslashreplace"), why] for path, why in named[:_REPORTED_MAX]]
    return {"complete": not named, "skipped": skipped, "skipped_count": len(named)}
