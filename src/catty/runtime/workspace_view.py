"""`/workspace` as a client sees it: without git's directories and what the client's rules leave out, kept up to date."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from catty.constants import BLOB_BYTES, UPLOADS_DIR
from catty.runtime.workspace_watch import Watcher
from catty.workspace.atomic import open_directory, parent_of
from catty.workspace.chunks import open_file
from catty.workspace.ignore import Rules, Source
from catty.workspace.manifest import Manifest, dump_delta
from catty.workspace.model import WORKSPACE, Entry, Kind, digest
from catty.workspace.packs import PackWriter
from catty.workspace.scan import Cache, Scanner

__all__ = ["GITIGNORE", "ClientRules", "View"]

GITIGNORE: Final = b".gitignore"
_RULES_MAX_BYTES: Final = 1 << 20
_PREFIX: Final = WORKSPACE + b"/"


class ClientRules(NamedTuple):
    """What a client leaves out, as `ignore.Rules` wants it; the workspace's own `.gitignore` files come on top."""

    sources: tuple[Source, ...] = ()
    tracked: tuple[bytes, ...] = ()
    prefix: bytes = b""
    ignore_case: bool = False


class View:
    """`entries` is what the client has been told, by path with `workspace/` in front. All methods but `close` are slow: use a thread,
    one at a time."""

    def __init__(self, root: int, cache: Cache, client: ClientRules) -> None:
        """`root`: a descriptor of /workspace, the view's from now on."""
        self._root, self._cache, self._client = root, cache, client
        self._make_rules()
        self.watcher = Watcher(root, self._exclude)
        self.entries: dict[bytes, Entry] = {}
        self._where: dict[bytes, tuple[bytes, int]] = {}  # blob → (path, number): where it was seen last
        self.skipped = 0

    def close(self) -> None:
        """Release descriptors."""
        self.watcher.close()
        os.close(self._root)

    def listing(self) -> Manifest:
        """Look at everything; from here on `update` tells of changes."""
        self.watcher.add_tree(b"")
        scanner = self._scanner()
        manifest = Manifest(scanner.scan())
        self.skipped = len(scanner.skipped)
        self.entries = {}
        for entry in manifest.entries.values():
            self._set(entry)
        return manifest

    def update(self, paths: Iterable[bytes]) -> bytes | None:
        """Look at `paths` (relative) again, and at all below those that are new directories. The delta to tell, None for no news."""
        told: dict[bytes, Entry | None] = {}  # what the client knows of each path that was touched
        scanner = self._scanner()
        for path in sorted(set(paths)):
            found, whole = self._look(scanner, path)
            gone = self._known_at(path) - {entry.path for entry in found} if whole else set()
            for old in gone:
                told.setdefault(old, self.entries.pop(old))
            for entry in found:
                told.setdefault(entry.path, self.entries.get(entry.path))
                self._set(entry)
        now = {path: self.entries.get(path) for path in told}
        removed = [path for path, old in told.items() if old and not now[path]]
        changed = [entry for path, entry in now.items() if entry and not _alike(told[path], entry)]
        return dump_delta(removed, changed) if removed or changed else None

    def compare(self) -> bytes | None:
        """Look at everything again, the rules too. The delta to tell, None for no news."""
        self._make_rules()
        before = self.entries
        now = self.listing().entries
        changed = [entry for path, entry in now.items() if not _alike(before.get(path), entry)]
        removed = [path for path in before if path not in now]
        return dump_delta(removed, changed) if removed or changed else None

    def blobs(self, digests: Iterable[bytes]) -> Iterator[bytes | list[bytes]]:
        """Packs with the content of those `digests` that are still there, at last a list of the ones that are not."""
        writer = PackWriter()
        missing = []
        for name in digests:
            data = self._blob(name)
            if data is None:
                missing.append(name)
                continue
            writer.add(name, data)
            if writer.full:
                yield writer.finish()
        if not writer.empty:
            yield writer.finish()
        yield missing

    def _blob(self, name: bytes) -> bytes | None:
        path, number = self._where.get(name, (b"", 0))
        if not path:
            return None
        try:
            with parent_of(self._root, path.removeprefix(_PREFIX)) as (directory, last):
                descriptor = open_file(directory, last)
            try:
                data = os.pread(descriptor, BLOB_BYTES, number * BLOB_BYTES)
            finally:
                os.close(descriptor)
        except OSError:
            return None
        return data if digest(data) == name else None

    def _set(self, entry: Entry) -> None:
        self.entries[entry.path] = entry
        for number, name in enumerate(entry.blobs):
            self._where[name] = (entry.path, number)

    def _look(self, scanner: Scanner, path: bytes) -> tuple[list[Entry], bool]:
        """What is at `path` now, and whether that is all there is: of a directory known before only itself is looked at."""
        parent = (_PREFIX + path).rpartition(b"/")[0]
        if parent not in self.entries:
            return [], True  # its directory is gone or left out
        try:
            with parent_of(self._root, path) as (directory, name):
                entry = scanner.one(directory, name, path)
        except OSError:
            return [], True
        if entry is None:
            return [], True
        if entry.kind is not Kind.DIR:
            return [entry], True
        if self.watcher.watches(path):
            return [entry], False
        self.watcher.add_tree(path)
        found = [entry]
        with suppress(OSError):  # gone again: its end is told by an event of its own
            found += scanner.scan_below(path)
        return found, True

    def _known_at(self, path: bytes) -> set[bytes]:
        """Paths that the client was told of, at `path` and below it."""
        full = _PREFIX + path
        old = self.entries.get(full)
        if old is None or old.kind is not Kind.DIR:
            return {full} if old else set()
        below = full + b"/"
        return {full, *(known for known in self.entries if known.startswith(below))}

    def _scanner(self) -> Scanner:
        return Scanner(self._root, WORKSPACE, self._cache, exclude=self._exclude)

    def _exclude(self, path: bytes, is_dir: bool) -> bool:
        name = path.rpartition(b"/")[2]
        return name.lower() == b".git" or path == os.fsencode(UPLOADS_DIR) or self._rules.match(path, is_dir)

    def _make_rules(self) -> None:
        client = self._client
        self._rules = Rules(
            client.sources,
            load=self._gitignore,
            tracked=client.tracked,
            prefix=client.prefix,
            ignore_case=client.ignore_case,
        )

    def _gitignore(self, directory: bytes) -> bytes | None:
        top = self._client.prefix.rstrip(b"/")
        if directory != top and not directory.startswith(self._client.prefix):
            return None  # above the workspace: the client has sent these
        try:
            where = open_directory(self._root, directory.removeprefix(top).lstrip(b"/"))
        except OSError:
            return None
        try:
            descriptor = open_file(where, GITIGNORE)
        except OSError:
            return None
        finally:
            os.close(where)
        try:
            return os.pread(descriptor, _RULES_MAX_BYTES, 0)
        finally:
            os.close(descriptor)


def _alike(old: Entry | None, new: Entry) -> bool:
    """A directory's time is no news."""
    if old is not None and old.kind is new.kind is Kind.DIR:
        return old.mode == new.mode
    return old == new
