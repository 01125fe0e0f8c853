"""Brings a session's workspace to a directory or an archive that was not there before (docs/workspace.md, "Download").

Everything is made beside the destination and renamed into place at the end: a download that is cut leaves nothing of itself there.
Manifest and blobs come from a machine and are hostile: the manifest has been checked for paths that lead elsewhere, symlinks are
made after all files, so that nothing is ever written through one, and modes lose setuid and setgid.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import itertools
import os
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from catty.client.sources import human_size
from catty.client.text import printable
from catty.client.trash import Trash, remove_tree
from catty.client.upload import Progress
from catty.constants import BLOB_BYTES
from catty.errors import (
    CannotWrite,
    CattyError,
    DestinationExists,
    HostileArchive,
    MachineError,
    SaveFailed,
    ServerUnreachable,
    SessionNotRunning,
    StoreFailed,
    UsageError,
)
from catty.workspace import atomic, packs
from catty.workspace.chunks import ZERO_BLOB
from catty.workspace.manifest import Manifest
from catty.workspace.model import WORKSPACE, Entry, Kind

__all__ = ["Downloaded", "Server", "download", "fetch", "newest"]

_FETCH_DIGESTS: Final = 4096  # per request, each at most BLOB_BYTES
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_INSIDE: Final = WORKSPACE + b"/"
_DEATH_S: Final = 3.0  # a machine's death is noticed within
_TEMPORARY: Final = ".catty-tmp"
_NAME_BYTES: Final = 200  # of the destination's name in that of the directory beside it
_TRIES: Final = 3  # of a fetch that brings nothing: a server that restarts is awaited by the connection itself

Report = Callable[[Progress], None]


class Server(Protocol):
    """What is needed of the REST client (client/api.py)."""

    def session(self, label: str, *, wait: int | None = None, timeout: float = 25.0) -> dict[str, Any]: ...
    def save(self, label: str) -> int: ...
    def manifest(self, label: str, snapshot: int | str = "latest") -> bytes: ...
    def fetch_blobs(self, digests: list[bytes]) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Downloaded:
    """`destination` is in place. `notes` are for the user, one line each."""

    destination: Path
    files: int
    size: int
    notes: tuple[str, ...] = ()


def download(
    server: Server,
    label: str,
    destination: Path | None = None,
    *,
    form: Literal["dir", "tar.gz"] = "dir",
    force: bool = False,
    snapshot: int | str = "latest",
    trash: Trash,
    report: Report | None = None,
) -> Downloaded:
    """Bring the workspace of `label` (running: saved first, unless `snapshot` names one) to `destination` (default `./LABEL`).

    With `force` what stands there goes into the trash. Raises DestinationExists, CannotWrite, UsageError and what the server raises.
    """
    place = Path(destination or (label if form == "dir" else f"{label}.tar.gz")).absolute()
    _check_free(place, force=force)
    manifest, notes = newest(server, label) if snapshot == "latest" else (_manifest(server, label, snapshot), [])
    entries = [entry for path, entry in manifest.entries.items() if path == WORKSPACE or path.startswith(_INSIDE)]
    with _writing(place), _beside(place) as temporary:
        tree = temporary / "tree"
        _check_space(temporary, entries)
        tree.mkdir(mode=0o700)
        with _opened(tree) as root:
            _write_tree(server, root, entries, report or (lambda _: None))
            if form == "dir":
                result = _finished(tree, root, entries)
            else:
                result = _archive(temporary / "archive", root, label, entries)
        _move_into_place(result, place, force=force, trash=trash)
    files = [entry for entry in entries if entry.kind is Kind.FILE]
    notes += [f"{printable(entry.path[len(_INSIDE) :])} changed while it was saved" for entry in files if entry.torn]
    return Downloaded(place, len(files), sum(entry.size for entry in files), tuple(notes))


def newest(server: Server, label: str) -> tuple[Manifest, list[str]]:
    """The workspace as it is now (a running session is saved first, the end of one that ends is awaited), and notes for the user."""
    session, unsaved = server.session(label), ""
    if session["state"] == "running":
        try:
            return _manifest(server, label, server.save(label)), []
        except (MachineError, SessionNotRunning) as error:  # it may just be dying: then its volume is saved
            unsaved = error.message
            session = server.session(label, wait=session["version"], timeout=_DEATH_S)
    while session["state"] == "stopping" and session["step"] == "":
        session = server.session(label, wait=session["version"])
    if session["state"] == "stopped":
        kept = session["error"] or {}
        unsaved = kept["message"] if kept.get("code") == SaveFailed.code else ""
    elif session["state"] == "stopping":
        unsaved = session["step"]
    note = f"the machine could not be saved now ({unsaved}); this is its last save"
    return _manifest(server, label, "latest"), [note] if unsaved else []


def _manifest(server: Server, label: str, snapshot: int | str) -> Manifest:
    return Manifest.from_bytes(server.manifest(label, snapshot))


def fetch(server: Server, wanted: dict[bytes, int]) -> Iterator[tuple[bytes, memoryview]]:
    """Each of the `wanted` blobs (digest → length) once, in any order, checked. Raises HostileArchive, StoreFailed."""
    pending = dict(wanted)
    tries = 0
    while pending:
        before = len(pending)
        try:
            for pack in server.fetch_blobs(list(itertools.islice(pending, _FETCH_DIGESTS))):
                for name, data in packs.read(pack):
                    length = pending.pop(name, None)
                    if length is None:
                        continue  # packs may hold more than was asked for, and the same twice
                    if length != len(data):
                        raise HostileArchive(what="a blob of another length than the manifest says")
                    yield name, data
        except ServerUnreachable:  # the answer was cut off; what is still missing is asked for again
            tries = 0 if len(pending) < before else tries + 1
            if tries == _TRIES:
                raise
        else:
            if len(pending) == before:
                raise StoreFailed(reason=f"{before} blobs of this snapshot are not there")


# ------------------------------------------------------------------------------------------------ the tree


def _write_tree(server: Server, root: int, entries: list[Entry], report: Report) -> None:
    """Files and directories, for nobody but us to read yet."""
    for entry in entries[1:]:
        if entry.kind is Kind.DIR:
            os.mkdir(_inside(entry), 0o700, dir_fd=root)
        elif entry.kind is Kind.FILE:
            _make_file(root, entry)
    _write_contents(server, root, entries, report)


def _finished(tree: Path, root: int, entries: list[Entry]) -> Path:
    """`tree`, with its symlinks, modes and times."""
    for entry in entries[1:]:
        if entry.kind is Kind.SYMLINK:
            os.symlink(entry.target, _inside(entry), dir_fd=root)
    mask = _umask()
    for entry in reversed(entries):  # directories after all that is made in them
        if entry.kind is not Kind.SYMLINK:
            os.chmod(_inside(entry), _mode(entry, mask), dir_fd=root)
        os.utime(_inside(entry), ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=root, follow_symlinks=False)
    return tree


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _inside(entry: Entry) -> bytes:
    """The path relative to the tree; `.` for the tree itself."""
    return entry.path[len(_INSIDE) :] or b"."


def _make_file(root: int, entry: Entry) -> None:
    descriptor = os.open(_inside(entry), _CREATE, 0o600, dir_fd=root)
    try:
        os.truncate(descriptor, entry.size)
    finally:
        os.close(descriptor)


def _write_contents(server: Server, root: int, entries: Iterable[Entry], report: Report) -> None:
    places: dict[bytes, list[tuple[Entry, int]]] = {}
    lengths: dict[bytes, int] = {}
    files = 0
    for entry in entries:
        files += entry.kind is Kind.FILE
        for number, name in enumerate(entry.blobs):
            if name != ZERO_BLOB:  # a new file is made of zeros
                places.setdefault(name, []).append((entry, number))
                lengths[name] = _blob_length(entry, number)
    progress = Progress("receiving", 0, files, 0, sum(lengths.values()))
    report(progress)
    for name, data in fetch(server, lengths):
        for entry, number in places.pop(name):
            _write_at(root, entry, number, data)
            last = number == len(entry.blobs) - 1
            progress = progress._replace(done_files=progress.done_files + last)
        progress = progress._replace(done_bytes=progress.done_bytes + len(data))
        report(progress)
    report(progress._replace(done_files=files))


def _blob_length(entry: Entry, number: int) -> int:
    return min(BLOB_BYTES, entry.size - number * BLOB_BYTES)


def _write_at(root: int, entry: Entry, number: int, data: memoryview) -> None:
    if len(data) != _blob_length(entry, number):
        raise HostileArchive(what="a blob of another length than the manifest says")
    descriptor = os.open(_inside(entry), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    try:
        position = number * BLOB_BYTES
        while data:
            written = os.pwrite(descriptor, data, position)
            data, position = data[written:], position + written
    finally:
        os.close(descriptor)


def _mode(entry: Entry, mask: int) -> int:
    """No setuid, setgid, sticky; a directory stays its owner's to enter."""
    return entry.mode & 0o777 & ~mask | (0o700 if entry.kind is Kind.DIR else 0)


def _archive(archive: Path, root: int, label: str, entries: list[Entry]) -> Path:
    """`archive`, gzipped, with one top directory named after the session."""
    kinds = {Kind.FILE: tarfile.REGTYPE, Kind.DIR: tarfile.DIRTYPE, Kind.SYMLINK: tarfile.SYMTYPE}
    mask = _umask()
    with tarfile.open(archive, "x:gz", compresslevel=6) as tar:
        for entry in entries:
            inner = os.fsdecode(entry.path[len(_INSIDE) :])
            info = tarfile.TarInfo(f"{label}/{inner}" if inner else label)
            info.type, info.mode, info.mtime = kinds[entry.kind], _mode(entry, mask), entry.mtime_ns / 10**9
            info.size, info.linkname = entry.size, os.fsdecode(entry.target)
            if entry.kind is Kind.FILE:
                with open(os.open(_inside(entry), _READ, dir_fd=root), "rb") as content:
                    tar.addfile(info, content)
            else:
                tar.addfile(info)
    return archive


# ------------------------------------------------------------------------------------------------ the place


def _check_free(place: Path, *, force: bool) -> None:
    if not place.parent.is_dir():
        raise CannotWrite(path=place, reason=f"there is no directory {place.parent}")
    if not os.path.lexists(place):
        return
    if not force:
        raise DestinationExists(path=place)
    kept = place.resolve()
    if kept == Path.home() or Path.cwd().is_relative_to(kept) or os.path.ismount(kept):
        raise UsageError(f"'{place}' cannot be replaced from within", hint="Name a directory of its own.")


def _check_space(at: Path, entries: Iterable[Entry]) -> None:
    """A manifest may claim any size; so may an honest one that is too large for this disk."""
    needed = sum(_blob_length(e, number) for e in entries for number, name in enumerate(e.blobs) if name != ZERO_BLOB)
    free = shutil.disk_usage(at).free
    if needed > free:
        raise CannotWrite(path=at.parent, reason=f"{human_size(needed)} needed, {human_size(free)} free")


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except CattyError:
        raise
    except OSError as error:
        raise CannotWrite(path=place, reason=error.strerror or str(error)) from None


@contextlib.contextmanager
def _beside(place: Path) -> Iterator[Path]:
    """A directory of ours on the same file system; gone afterwards, with all that is still in it.

    It is locked meanwhile: what a download that was killed left behind is not, and goes when the next one comes to the same place.
    """
    name = f".{os.fsdecode(os.fsencode(place.name)[:_NAME_BYTES])}."
    for left in place.parent.glob(f"{glob.escape(name)}*{_TEMPORARY}"):
        with contextlib.suppress(OSError), _locked(left):
            remove_tree(left)
    directory = place.parent / f"{name}{secrets.token_hex(4)}{_TEMPORARY}"
    directory.mkdir(mode=0o700)
    try:
        with _locked(directory):
            yield directory
    finally:
        with contextlib.suppress(OSError):
            remove_tree(directory)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Raises OSError where another process has it locked, or it is no directory."""
    with _opened(directory) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, _DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _move_into_place(result: Path, place: Path, *, force: bool, trash: Trash) -> None:
    parent = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = os.fsencode(place.name)
        if force and os.path.lexists(place):
            trash.take(parent, name, name)
        atomic.rename_new(parent, os.path.join(os.fsencode(result.parent.name), os.fsencode(result.name)), name)
    except FileExistsError:
        raise DestinationExists(path=place) from None
    finally:
        os.close(parent)
