"""What sync-back does, decided without I/O (docs/workspace.md, "Sync-back").

Three versions of each path are compared: `base`, the one that both sides had last; `local`; and `remote`. Paths are relative to the
directory. The rule of rules: a local version that is not the base is never touched.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from catty.constants import MASS_DELETE_COUNT, MASS_DELETE_SHARE, SYNC_CONFIG_PATTERNS, UPLOADS_DIR
from catty.errors import HostileArchive
from catty.workspace.apply import check_target, plain_name, same
from catty.workspace.ignore import Rules, Source
from catty.workspace.manifest import tree_key
from catty.workspace.model import NAME_MAX_BYTES, Entry, Kind

__all__ = [
    "GIT_MARKS",
    "Brake",
    "Do",
    "Plan",
    "Scope",
    "Step",
    "conflict_name",
    "decide",
    "git_directories",
    "plan",
    "stays_inside",
]

Entries = Mapping[bytes, Entry]

_BRAKE_WINDOW_S: Final = 60.0
GIT_MARKS: Final = (b"head", b"objects", b"refs", b"commondir")


class Do(Enum):
    """What to do about a path. The values are the words that users read."""

    NOTHING = "nothing"
    RECORD = "record"  # both sides agree, or the remote side has nothing more to say: it is the base now
    MKDIR = "create directory"
    WRITE = "write"
    DELETE = "delete"
    CONFLICT = "conflict"  # the remote version goes beside the local one
    BLOCKED = "blocked"  # a local file stands where a directory should be


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do. `local` is what must still stand there. `replaced`: a deletion that makes room for another kind of thing."""

    do: Do
    path: bytes
    local: Entry | None
    remote: Entry | None
    replaced: bool = False

    @property
    def word(self) -> str:
        """create, update, delete, conflict or blocked, for people."""
        if self.do in (Do.WRITE, Do.MKDIR):
            return "create" if self.local is None else "update"
        return str(self.do.value)


@dataclass(slots=True)
class Plan:
    """Steps in the order in which they can be done; `left` are paths that differ and are left as they are, with the reason."""

    steps: list[Step] = field(default_factory=list)
    left: list[tuple[bytes, str]] = field(default_factory=list)

    def of(self, *kinds: Do) -> list[Step]:
        """The steps of these kinds."""
        return [step for step in self.steps if step.do in kinds]

    @property
    def deletions(self) -> list[Step]:
        """Files and symlinks that are gone on the remote side, and here no more than a copy of what was there."""
        return [
            s for s in self.steps if s.do is Do.DELETE and not s.replaced and s.local and s.local.kind is not Kind.DIR
        ]


def decide(base: Entry | None, local: Entry | None, remote: Entry | None) -> Do:
    """What to do about a path that has these three versions (None: it is not there)."""
    if same(local, remote):
        return Do.NOTHING if same(base, remote) else Do.RECORD
    if same(base, remote):
        return Do.NOTHING  # only the local side changed
    if same(local, base):
        if remote is None:
            return Do.DELETE
        return Do.MKDIR if remote.kind is Kind.DIR else Do.WRITE
    if remote is None:
        return Do.RECORD  # deleted there, changed here: ours stays
    return Do.BLOCKED if remote.kind is Kind.DIR else Do.CONFLICT


def plan(paths: Iterable[bytes], base: Entries, local: Entries, remote: Entries, scope: Scope) -> Plan:
    """What to do about `paths`."""
    deletions: list[Step] = []
    others: list[Step] = []
    result = Plan()
    blocked = b"/"  # what lies below the last path that is blocked starts with this
    for path in sorted(set(paths), key=tree_key):
        was, here, there = base.get(path), local.get(path), remote.get(path)
        do = decide(was, here, there)
        if do is Do.NOTHING or path.startswith(blocked):
            continue
        known = there or here or was
        reason = scope.reason(path, known is not None and known.kind is Kind.DIR, there)
        if reason is not None:
            if reason:
                result.left.append((path, reason))
            continue
        if do is Do.BLOCKED:
            blocked = path + b"/"
        if do is Do.DELETE:
            deletions.append(Step(do, path, here, there, replaced=_below_a_file(path, remote)))
        elif do in (Do.MKDIR, Do.WRITE) and here and there and Kind.DIR in (here.kind, there.kind):
            deletions.append(Step(Do.DELETE, path, here, there, replaced=True))
            others.append(Step(do, path, None, there))
        else:
            others.append(Step(do, path, here, there))
    occupied = {step.path for step in deletions if step.remote and _holds_more(step.path, local, deletions)}
    deletions = [step for step in deletions if step.path not in occupied]
    others = [replace(step, do=Do.CONFLICT) if step.path in occupied else step for step in others]
    result.steps = [*reversed(deletions), *others]
    return result


def _holds_more(path: bytes, local: Entries, deletions: list[Step]) -> bool:
    """Whether something of the user's lies below the directory `path`, so that nothing else can take its place."""
    below = path + b"/"
    gone = {step.path for step in deletions}
    return any(other.startswith(below) and other not in gone for other in local)


def _below_a_file(path: bytes, remote: Entries) -> bool:
    while path := path.rpartition(b"/")[0]:
        above = remote.get(path)
        if above is not None:
            return above.kind is not Kind.DIR
    return False


def conflict_name(path: bytes, label: str, time: str, number: int = 1) -> bytes:
    """Where the remote version of `path` goes in a conflict: beside it; the name is cut where it would be too long."""
    directory, slash, name = path.rpartition(b"/")
    suffix = f".catty-conflict-{label}-{time}".encode() + (b"-%d" % number if number > 1 else b"")
    return directory + slash + name[: NAME_MAX_BYTES - len(suffix)] + suffix


# ------------------------------------------------------------------------------------------------ what is synced at all


class Scope:
    """Which paths are synced. `rules` leave out what any of them leaves out; `git_dirs` are git directories by another name."""

    _CONFIG: Final = Rules(
        [Source(b"", "\n".join(f"**/{p}" if "/" in p[:-1] else p for p in SYNC_CONFIG_PATTERNS).encode())],
        ignore_case=True,
    )

    def __init__(
        self,
        rules: Iterable[Callable[[bytes, bool], bool]] = (),
        *,
        config: bool = False,
        git_dirs: Iterable[bytes] = (),
        own: Iterable[bytes] = (),
    ) -> None:
        """`config`: also what runs code when a tool merely opens the directory (--sync-config). `own`: where `~/.catty` lies in it."""
        self._rules = tuple(rules)
        self._config = config
        self._git_dirs = frozenset(git_dirs)
        self._own = tuple(_plain(path) for path in own)

    def reason(self, path: bytes, is_dir: bool, remote: Entry | None) -> str | None:
        """None: it is synced. "": it is not, as nobody would expect otherwise. Else why not, for the user."""
        try:
            check_target(path)
        except HostileArchive:
            git = any(plain_name(name) == ".git" for name in path.split(b"/"))
            return "" if git else "its name is not safe here"
        plain = _plain(path)
        if _is_below(path, (UPLOADS_DIR.encode(),)) or _is_below(plain, self._own) or self._in_git_dir(path):
            return ""
        if any(rule(path, is_dir) for rule in self._rules):
            return ""
        if not self._config and (self._CONFIG.match(path, is_dir) or self._CONFIG.match(plain, is_dir)):
            return "it may run code when a tool opens it; --sync-config syncs it"
        if remote is not None and remote.kind is Kind.SYMLINK and not stays_inside(path, remote.target):
            return "it is a symlink that leads out of the directory, or into its git directory"
        return None

    def _in_git_dir(self, path: bytes) -> bool:
        if b"" in self._git_dirs:
            return True
        while path and self._git_dirs:
            if path in self._git_dirs:
                return True
            path = path.rpartition(b"/")[0]
        return False


def _plain(path: bytes) -> bytes:
    return b"/".join(plain_name(name).encode("utf-8", "surrogateescape") for name in path.split(b"/"))


def _is_below(path: bytes, directories: Iterable[bytes]) -> bool:
    """Whether `path` is one of them, or lies in one (b"" = the top)."""
    return any(not directory or path == directory or path.startswith(directory + b"/") for directory in directories)


def stays_inside(path: bytes, target: bytes) -> bool:
    """Whether a symlink at `path` with this target surely leads to a place in the directory that is in no git directory.

    `..` only at its beginning: after a name, which may be a symlink itself, nobody can tell where it leads.
    """
    names = [name for name in target.split(b"/") if name not in (b"", b".")]
    if target.startswith(b"/") or not names:
        return False
    up = 0
    while up < len(names) and names[up] == b"..":
        up += 1
    rest = names[up:]
    safe = not any(name == b".." or plain_name(name) in (".git", "git~1") for name in rest)
    return up <= path.count(b"/") and safe


def git_directories(paths: Iterable[bytes]) -> set[bytes]:
    """Directories that git would take for a repository, whatever they are called: HEAD beside objects and refs, or beside a link to
    another repository's. `paths` are all that there are, of both sides. b"" is the tree's own top."""
    found: dict[bytes, set[bytes]] = {}
    for path in paths:
        directory, _, name = path.rpartition(b"/")
        if (mark := name.lower()) in GIT_MARKS:
            found.setdefault(directory, set()).add(mark)
    return {
        d
        for d, marks in found.items()
        if b"head" in marks and ({b"objects", b"refs"} <= marks or b"commondir" in marks)
    }


# ------------------------------------------------------------------------------------------------ the brake


class Brake:
    """Stops sync-back when much is deleted at once, be it in one go or bit by bit within a minute."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque()

    def check(self, deletions: list[Step], base: Entries, remote: Entries, now: float) -> str:
        """Why to stop, "" for go on. `deletions` are about to be done, at `now` (seconds of any clock that runs forward).

        Files that are found again under new paths have been moved, not deleted.
        """
        if not deletions:
            return ""
        while self._recent and self._recent[0][0] < now - _BRAKE_WINDOW_S:
            self._recent.popleft()
        earlier = sum(count for _, count in self._recent)
        gone = earlier + len(deletions) - _moved(deletions, base, remote)
        tree = earlier + sum(entry.kind is not Kind.DIR for entry in base.values())
        if not any(entry.kind is not Kind.DIR for entry in remote.values()):
            return f"the workspace was emptied ({len(deletions)} files)"
        if gone > MASS_DELETE_COUNT and gone > MASS_DELETE_SHARE * tree:
            return f"{gone} of {tree} files were deleted"
        return ""

    def done(self, count: int, now: float) -> None:
        """`count` deletions were done."""
        if count:
            self._recent.append((now, count))


def _moved(deletions: list[Step], base: Entries, remote: Entries) -> int:
    new = Counter(entry.blobs for path, entry in remote.items() if path not in base and entry.blobs)
    moved = 0
    for step in deletions:
        if step.local and new[step.local.blobs] > 0:
            new[step.local.blobs] -= 1
            moved += 1
    return moved
