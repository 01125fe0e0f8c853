"""The local side of sync-back: looks at the directory, plans, and does single steps. Blocking; one thread at a time.

A step that meets something else than was planned for is decided anew; whatever the local file system refuses is reported and left for
another time. See syncplan.py for the rules and workspace/apply.py for how a directory is written to.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from catty.client.config import own_places
from catty.client.gitrules import DirectoryRules, gather
from catty.client.syncplan import GIT_MARKS, Do, Plan, Scope, Step, conflict_name, decide, git_directories, plan
from catty.client.syncstate import Intent, SyncState
from catty.client.trash import Trash
from catty.constants import BLOB_BYTES
from catty.errors import HostileArchive
from catty.workspace import atomic
from catty.workspace.apply import TEMP_PREFIX, Applier, Staged, is_git_name, same
from catty.workspace.chunks import ZERO_BLOB, ZEROS, open_file
from catty.workspace.model import WORKSPACE, Entry, Kind, digest
from catty.workspace.scan import Scanner

__all__ = ["GITIGNORE", "Mirror", "Reports"]

GITIGNORE: Final = b".gitignore"
_INSIDE: Final = WORKSPACE + b"/"
_LOCAL_MARKS: Final = (b"HEAD", b"objects", b"refs")
_COPIES_MAX: Final = 1000
IN_THE_WAY: Final = "a file or symlink of yours stands where a directory should be"


class Reports(Protocol):
    """Who hears of what the user must know; called from the mirror's thread."""

    def trouble(self, path: bytes, why: str) -> None:
        """Something was not done."""

    def conflict(self, path: bytes, place: bytes) -> None:
        """`path` was changed on both sides; the remote version is `place` now."""


class Mirror:
    """A directory and what is known of it."""

    def __init__(
        self,
        directory: Path,
        state: SyncState,
        label: str,
        trash: Trash,
        reports: Reports,
        *,
        config: bool,
    ) -> None:
        """`config`: --sync-config. Raises OSError if the directory cannot be opened."""
        self._directory = os.fsencode(directory)
        self._state = state
        self._label = label
        self._reports = reports
        self._config = config
        self.root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._applier = Applier(self.root, trash.take)
        self._trash = trash
        self._cache = state.load_seen()
        self._where: dict[bytes, tuple[bytes, int]] = {}  # blob → (path, number): content that need not be fetched
        self.local: dict[bytes, Entry] = {}
        self.gathered: DirectoryRules = gather(self._directory)
        self._rules = self._remote_rules = self.gathered.rules()
        self._git_dirs: set[bytes] = set()
        self._own = own_places(self._directory)
        self._leftovers: list[bytes] = []
        trash.sweep()

    def close(self) -> None:
        """Release the directory; what was read is remembered."""
        with suppress(OSError):
            self._state.store_seen(self._cache)
        os.close(self.root)

    @property
    def replaced(self) -> bool:
        """Whether the path of the directory leads to another one now, or nowhere."""
        try:
            found = os.stat(self._directory)
        except OSError:
            return True
        return not os.path.samestat(found, os.fstat(self.root))

    # ------------------------------------------------------------------------------------------ look

    def look_at_everything(self, *, tidy: bool = True) -> None:
        """Read what has changed since the last time; with `tidy`, finish what a process that was killed had begun."""
        for intent in self._state.intents() if tidy else ():
            self._understand(intent)
        self._leftovers = []
        scanner = Scanner(self.root, WORKSPACE, self._cache, exclude=self._exclude)
        self.local = {entry.path[len(_INSIDE) :]: entry for entry in scanner.scan() if entry.path != WORKSPACE}
        for path in self._leftovers if tidy else ():
            self._clear_away(path)
        self._where = {}
        for path, entry in self.local.items():
            self._remember(path, entry)

    def _exclude(self, path: bytes, is_dir: bool) -> bool:
        name = path.rpartition(b"/")[2]
        if name.startswith(TEMP_PREFIX):
            self._leftovers.append(path)
            return True
        return is_git_name(name) or path in self._own or self._rules.match(path, is_dir)

    def _understand(self, intent: Intent) -> None:
        """Done before the end, or not? Only what was done is recorded; the rest is planned again."""
        found = self._applier.look(intent.place)
        if same(found, intent.entry):
            self._state.record([(intent.path, intent.entry)])
            if intent.entry and intent.place != intent.path:
                self._state.record_copy(intent.path, intent.place, intent.entry)
        self._state.forget_intents([intent.path])

    def _clear_away(self, path: bytes) -> None:
        """A temporary file of a process that was killed: half a new version, or an old one that was just replaced. Kept, for a while."""
        with suppress(OSError), atomic.parent_of(self.root, path) as (parent, name):
            self._trash.take(parent, name, path)

    def _remember(self, path: bytes, entry: Entry | None) -> None:
        if entry is None:
            self.local.pop(path, None)
            return
        self.local[path] = entry
        for number, name in enumerate(entry.blobs):
            self._where[name] = (path, number)

    def _look(self, path: bytes) -> Entry | None:
        entry = self._applier.look(path)
        self._remember(path, entry)
        return entry

    def content(self, name: bytes) -> bytes | None:
        """The blob called `name`, if some local file still has it, or it is a hole."""
        if name == ZERO_BLOB:
            return ZEROS
        path, number = self._where.get(name, (b"", 0))
        if not path:
            return None
        try:
            with atomic.parent_of(self.root, path) as (directory, last):
                descriptor = open_file(directory, last)
            try:
                data = os.pread(descriptor, BLOB_BYTES, number * BLOB_BYTES)
            finally:
                os.close(descriptor)
        except OSError:
            return None
        return data if digest(data) == name else None

    # ------------------------------------------------------------------------------------------ plan

    def learn_rules(self, gitignores: Callable[[bytes], bytes | None]) -> None:
        """Rule files may have changed, here or on the remote side: `gitignores` gives the `.gitignore` of a directory there.

        A local one that is as it was synced last is about to become like that, so the new one is in force here already.
        """

        def text(directory: bytes) -> bytes | None:
            path = os.path.join(directory, GITIGNORE)
            untouched = same(self._applier.look(path), self._state.base.get(path))
            return gitignores(directory) if untouched else self.gathered.gitignore(directory)

        self.gathered = gather(self._directory)
        self._rules = self.gathered.rules(text)
        self._remote_rules = self.gathered.rules(gitignores)

    def plan(self, remote: dict[bytes, Entry], paths: Iterable[bytes] | None = None) -> Plan:
        """What to do about `paths`, which are looked at now; None: about everything, as it was when last looked at."""
        base = self._state.base
        # A comparison of everything may meet an older state of the machine (restored from a save): what that replaces is kept.
        self._applier.keep_replaced = paths is None
        paths = paths if paths is None else set(paths)
        if paths is None or any(path.rpartition(b"/")[2].lower() in GIT_MARKS for path in paths):
            self._git_dirs = git_directories((*base, *remote, *self.local))
        for path in paths or ():
            with suppress(HostileArchive, OSError):
                self._look(path)
        rules = (self._rules.match, self._remote_rules.match)
        scope = Scope(rules, config=self._config, git_dirs=self._git_dirs, own=self._own)
        return plan((*base, *remote) if paths is None else paths, base, self.local, remote, scope)

    # ------------------------------------------------------------------------------------------ do

    def note(self, steps: Iterable[Step]) -> None:
        """Before any of these steps is done."""
        kinds = (Do.WRITE, Do.DELETE)
        self._state.intend(Intent(s.path, s.path, s.remote) for s in steps if s.do in kinds and not _makes_room(s))

    def record(self, steps: Iterable[Step], done: list[Step]) -> None:
        """After these steps were tried, and some done."""
        self._state.record((step.path, step.remote) for step in done if not _makes_room(step))
        self._state.forget_intents(step.path for step in steps if step not in done)

    def do(self, step: Step) -> bool:
        """Do a step that needs no content; True if it is done and can be recorded."""
        try:
            match step.do:
                case Do.RECORD:
                    return True
                case Do.MKDIR:
                    return self._make_dir(step.path)
                case Do.DELETE:
                    return self._delete(step)
                case Do.WRITE | Do.CONFLICT if step.remote is not None and step.remote.kind is Kind.SYMLINK:
                    staged = self.begin(step)
                    return staged is not None and self.finish(step, staged)
            self._reports.trouble(step.path, IN_THE_WAY)
        except (OSError, HostileArchive) as error:
            self._failed(step.path, error)
        return False

    def begin(self, step: Step) -> Staged | None:
        """A new version to be filled with content; None if that cannot be."""
        try:
            if self._in_local_repository(step.path):
                self._reports.trouble(step.path, "it would change a git repository of yours")
                return None
            self._check_space(step)
            try:
                return self._stage(step)
            except FileNotFoundError:
                self._make_parents(step.path)
                return self._stage(step)
        except (OSError, HostileArchive) as error:
            self._failed(step.path, error)
            return None

    def write(self, step: Step, staged: Staged, data: bytes) -> bool:
        """More content; False (and all is as it was) if it cannot be written."""
        try:
            staged.write(data)
        except OSError as error:
            self.give_up(staged)
            self._failed(step.path, error)
            return False
        return True

    def finish(self, step: Step, staged: Staged) -> bool:
        """Put a complete version in its place, or beside it in a conflict; True if it can be recorded."""
        try:
            with staged:
                done = step.do is Do.WRITE and staged.place(step.path, step.local)
                if not done:
                    done = self._beside(step, staged)
        except (OSError, HostileArchive) as error:
            self._failed(step.path, error)
            return False
        self._look(step.path)
        return done

    def give_up(self, staged: Staged) -> None:
        """Remove a version that will not be complete."""
        with suppress(OSError), staged:
            pass

    def _check_space(self, step: Step) -> None:
        """What cannot fit shall not fill the disk first, again with every try. Holes need no room."""
        blobs = step.remote.blobs if step.remote else ()
        needed = (len(blobs) - 1 - blobs.count(ZERO_BLOB)) * BLOB_BYTES
        disk = os.fstatvfs(self.root)
        if needed > disk.f_bavail * disk.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), step.path)

    def _stage(self, step: Step) -> Staged:
        remote = step.remote
        if remote is not None and remote.kind is Kind.SYMLINK:
            return self._applier.stage_symlink(step.path, remote.target)
        return self._applier.stage(step.path, remote.mode if remote else 0)

    def _beside(self, step: Step, staged: Staged) -> bool:
        """The local version is not what it was. Decide again; in a conflict the remote one goes beside it."""
        remote, here = step.remote, self._look(step.path)
        if remote is None or same(here, remote):
            return True
        occupied = here is not None and here.kind is Kind.DIR  # by files of the user's, ignored ones perhaps
        if not occupied and decide(self._state.base.get(step.path), here, remote) is not Do.CONFLICT:
            raise BlockingIOError(errno.EAGAIN, "it is changing at this moment", step.path)
        copy = self._state.copy(step.path)
        place: bytes
        expected: Entry | None
        if copy and same(self._applier.look(copy[0]), copy[1]):
            place, expected = copy  # the user has not touched the last copy: the new one takes its place
        else:
            place, expected = self._free_name(step.path), None
        self._state.intend([Intent(step.path, place, remote)])
        if not staged.place(place, expected):
            raise BlockingIOError(errno.EAGAIN, "it is changing at this moment", place)
        self._state.record_copy(step.path, place, remote)
        self._reports.conflict(step.path, place)
        return True

    def _free_name(self, path: bytes) -> bytes:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        names = (conflict_name(path, self._label, now, number) for number in range(1, _COPIES_MAX))
        return next(name for name in names if self._applier.look(name) is None)

    def _make_dir(self, path: bytes) -> bool:
        if self._in_local_repository(path):
            self._reports.trouble(path, "it would change a git repository of yours")
            return False
        try:
            done = self._applier.make_dir(path)
        except FileNotFoundError:
            self._make_parents(path)
            done = self._applier.make_dir(path)
        if not done:
            self._reports.trouble(path, IN_THE_WAY)
        self._look(path)
        return done

    def _make_parents(self, path: bytes) -> None:
        names = path.split(b"/")[:-1]
        for count in range(1, len(names) + 1):
            if not self._applier.make_dir(b"/".join(names[:count])):
                raise OSError(errno.ENOTDIR, IN_THE_WAY, path)

    def _delete(self, step: Step) -> bool:
        if step.local is None or self._in_local_repository(step.path):
            return True
        self._applier.remove(
            step.path, step.local
        )  # what has changed meanwhile stays, and is the user's own from now on
        self._look(step.path)
        return True

    def _in_local_repository(self, path: bytes) -> bool:
        """Whether `path` lies in a git directory that only the local side has, under whatever name."""
        while path:
            path = path.rpartition(b"/")[0]
            place = os.path.join(self._directory, path)
            if all(os.path.lexists(os.path.join(place, mark)) for mark in _LOCAL_MARKS):
                return True
        return False

    def _failed(self, path: bytes, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ELOOP, errno.ENOTDIR):
            self._reports.trouble(path, IN_THE_WAY)
        else:
            self._reports.trouble(path, error.strerror or str(error) if isinstance(error, OSError) else str(error))


def _makes_room(step: Step) -> bool:
    """Whether another step about the same path follows, which says when it is done."""
    return step.do is Do.DELETE and step.remote is not None
