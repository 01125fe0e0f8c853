"""What of a directory is sent: the tree less what is excluded, with its git directories made whole (docs/workspace.md, "Upload")."""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from catty.client.config import own_places
from catty.client.gitrules import gather
from catty.constants import UPLOAD_LARGEST_SHOWN
from catty.errors import UploadTooLarge, UsageError
from catty.workspace.apply import TEMP_PREFIX
from catty.workspace.gitdir import Graft, borrowed_objects, is_transient, pointed_to, self_contained
from catty.workspace.model import WORKSPACE, Kind
from catty.workspace.walk import walk

__all__ = ["Sources", "Tree", "find", "human_size"]

_GIT: Final = b".git"
_ALTERNATES: Final = b"objects/info/alternates"


@dataclass(frozen=True, slots=True)
class Tree:
    """The directory `root` (absolute) goes to `place` (`workspace` or below), less what `exclude(path, is_dir)` says."""

    root: bytes
    place: bytes
    exclude: Callable[[bytes, bool], bool]


@dataclass(slots=True)
class Sources:
    """All that goes. Later trees win over earlier ones; `texts` (path → content) over all. `files` and `size` are what was found."""

    trees: list[Tree]
    texts: dict[bytes, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    size: int = 0


def find(directory: bytes, *, git: bool, limit: int) -> Sources:
    """What of `directory` goes; `git` False leaves out every `.git`. Reads no contents.

    Raises UploadTooLarge if that is more than `limit` bytes, GitNotSelfContained, UsageError if there is no such directory.
    """
    directory = os.path.realpath(directory)
    if not os.path.isdir(directory):
        raise UsageError(f"'{os.fsdecode(directory)}' is no directory", hint="Name a directory that is there.")
    own = own_places(directory)
    if b"." in own:
        raise UsageError(f"'{os.fsdecode(directory)}' is where Catty keeps your secrets", hint="Start elsewhere.")
    found = gather(directory)
    rules = found.rules()

    def exclude(path: bytes, is_dir: bool) -> bool:
        names = path.split(b"/")
        if names[-1].startswith(TEMP_PREFIX) or path in own:
            return True
        if _GIT in names:
            inner = b"/".join(names[names.index(_GIT) + 1 :])
            return not git or is_transient(inner) or path in replaced
        return rules.match(path, is_dir)

    replaced: set[bytes] = set()  # files that tie a git directory to its surroundings
    sources = Sources([Tree(directory, WORKSPACE, exclude)])
    if found.prefix:
        above = os.fsdecode(os.path.normpath(os.path.join(directory, b"../" * found.prefix.count(b"/"))))
        sources.notes.append(f"only this directory goes, not the repository around it ({above})")
    survey = _Survey(limit)
    links, alternates = survey.look(sources.trees[0])
    for path in links:
        _make_whole(directory, path, sources, replaced)
    for path in alternates:
        objects = os.path.dirname(os.path.dirname(os.path.join(directory, path)))
        lenders = list(borrowed_objects(objects, WORKSPACE + b"/" + os.path.dirname(os.path.dirname(path))))
        replaced.add(path)
        sources.trees += map(_grafted, lenders)
    for tree in sources.trees[1:]:
        survey.look(tree)
    survey.check()
    sources.files, sources.size = survey.files, survey.size
    return sources


def _make_whole(directory: bytes, path: bytes, sources: Sources, replaced: set[bytes]) -> None:
    """`path` is a `.git` that points to a git directory: send that in its place, unless it goes along as it is."""
    link = os.path.join(directory, path)
    target = pointed_to(link)
    if target is None:
        sources.notes.append(f"{os.fsdecode(path)} points to no git directory")
        return
    if _goes_along(directory, link, target):
        return
    place = WORKSPACE + b"/" + path
    whole = self_contained(target, place)
    grafts = list(whole.grafts)
    for graft in whole.grafts:
        grafts += borrowed_objects(graft.source + b"/objects", place + b"/objects")
    replaced.add(path)
    sources.trees += map(_grafted, grafts)
    sources.texts |= whole.texts


def _goes_along(directory: bytes, link: bytes, target: bytes) -> bool:
    """Whether a link stays true in the copy: relative, into the `.git` of the tree itself (a submodule of it)."""
    own = os.path.join(directory, _GIT)
    inside = target.startswith(own + b"/modules/") and os.path.isdir(own) and not os.path.islink(own)
    if not inside or os.path.islink(link):
        return False
    with open(link, "rb") as file:
        return not file.read(1 << 16).removeprefix(b"gitdir: ").startswith(b"/")


def _grafted(graft: Graft) -> Tree:
    def exclude(path: bytes, is_dir: bool) -> bool:  # noqa: ARG001  # the shape of a walk's exclude
        return path == _ALTERNATES or not graft.wanted(path)

    return Tree(graft.source, graft.place, exclude)


class _Survey:
    """Counts what goes, before anything is read."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._largest: list[tuple[int, bytes]] = []
        self.files = self.size = 0

    def look(self, tree: Tree) -> tuple[list[bytes], list[bytes]]:
        """(paths of `.git`s that are no directories, paths of alternates files in git directories), relative to the tree."""
        links, alternates = [], []
        root = os.open(tree.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for found in walk(root, exclude=tree.exclude, skipped=lambda path, why: None):  # noqa: ARG005  # the scan reports
                if found.kind is not Kind.DIR and found.name == _GIT:
                    links.append(found.path)
                elif found.path.endswith(b"/" + _ALTERNATES) and _GIT in found.path.split(b"/"):
                    alternates.append(found.path)
                elif stat.S_ISREG(found.signature.mode):
                    self.files += 1
                    self.size += found.signature.size
                    self._remember(found.signature.size, tree.place + b"/" + found.path)
        finally:
            os.close(root)
        return links, alternates

    def check(self) -> None:
        """Raises UploadTooLarge."""
        if self.size > self._limit:
            largest = ", ".join(
                f"{os.fsdecode(path.removeprefix(WORKSPACE + b'/'))} ({human_size(size)})"
                for size, path in sorted(self._largest, reverse=True)
            )
            raise UploadTooLarge(size=human_size(self.size), limit=human_size(self._limit), largest=largest)

    def _remember(self, size: int, path: bytes) -> None:
        heapq.heappush(self._largest, (size, path))
        if len(self._largest) > UPLOAD_LARGEST_SHOWN:
            heapq.heappop(self._largest)


def human_size(size: float) -> str:
    """`size` bytes for people: 17 B, 4.2 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
