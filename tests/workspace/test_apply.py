"""Safe writes: hostile paths, changed files, symlinks that appear in between, crashes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from catty.errors import HostileArchive
from catty.workspace import apply, atomic
from catty.workspace.apply import TEMP_PREFIX, Applier, check_target
from catty.workspace.model import Entry, Kind, digest


class Box:
    """A user's directory with an applier; `kept` is what went into the trash."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kept: dict[bytes, bytes] = {}
        self.applier = Applier(os.open(root, os.O_RDONLY | os.O_DIRECTORY), self.keep)

    def keep(self, parent: int, name: bytes, path: bytes) -> None:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=parent)
        self.kept[path] = os.read(descriptor, 1 << 20)
        os.close(descriptor)
        os.unlink(name, dir_fd=parent)

    def write(self, path: bytes, content: bytes, expected: Entry | None = None, mode: int = 0o644) -> bool:
        with self.applier.stage(path, mode) as staged:
            staged.write(content)
            return staged.place(path, expected)

    def known(self, path: bytes) -> Entry:
        entry = self.applier.look(path)
        assert entry is not None
        return entry

    def temps(self) -> list[Path]:
        return [p for p in self.root.rglob("*") if p.name.startswith(TEMP_PREFIX.decode())]


@pytest.fixture(params=["native", "portable"])
def box(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    """Both with the system calls of this kernel and without them."""
    if request.param == "portable":

        def unsupported(*_: object) -> None:
            raise atomic.Unsupported

        monkeypatch.setattr(atomic, "_openat2", unsupported)
        monkeypatch.setattr(atomic, "_rename", unsupported)
    root = tmp_path / "project"
    root.mkdir()
    box = Box(root)
    yield box
    assert box.temps() == []
    os.close(box.applier.root)


def test_creates_replaces_and_removes(box: Box) -> None:
    (box.root / "sub").mkdir()
    assert box.write(b"sub/a", b"one")
    first = box.known(b"sub/a")
    assert box.write(b"sub/a", b"two", first)
    assert (box.root / "sub/a").read_bytes() == b"two"
    assert box.applier.remove(b"sub/a", box.known(b"sub/a"))
    assert not (box.root / "sub/a").exists()
    assert box.kept == {b"sub/a": b"two"}
    assert box.applier.remove(b"sub", Entry(b"sub", Kind.DIR))
    assert not (box.root / "sub").exists()


def test_a_changed_file_is_not_overwritten_and_the_version_can_go_beside_it(box: Box) -> None:
    (box.root / "a").write_bytes(b"synced")
    expected = box.known(b"a")
    (box.root / "a").write_bytes(b"edited")
    inode = (box.root / "a").stat().st_ino
    with box.applier.stage(b"a", 0o644) as staged:
        staged.write(b"remote")
        assert not staged.place(b"a", expected)
        assert staged.place(b"a.copy", None)
    assert (box.root / "a").read_bytes() == b"edited"
    assert (box.root / "a").stat().st_ino == inode
    assert (box.root / "a.copy").read_bytes() == b"remote"


def test_equal_size_and_mtime_do_not_deceive(box: Box) -> None:
    (box.root / "a").write_bytes(b"one")
    expected, times = box.known(b"a"), (box.root / "a").stat()
    (box.root / "a").write_bytes(b"two")
    os.utime(box.root / "a", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not box.write(b"a", b"remote", expected)
    assert not box.applier.remove(b"a", expected)
    assert (box.root / "a").read_bytes() == b"two"


def test_a_new_file_never_replaces_one(box: Box) -> None:
    (box.root / "a").write_bytes(b"mine")
    assert not box.write(b"a", b"remote")
    (box.root / "link").symlink_to("nowhere")
    assert not box.write(b"link", b"remote")
    assert (box.root / "a").read_bytes() == b"mine"
    assert not (box.root / "nowhere").exists()


def test_a_file_that_is_gone_or_another_kind_is_not_replaced(box: Box) -> None:
    (box.root / "a").write_bytes(b"x")
    expected = box.known(b"a")
    (box.root / "a").unlink()
    assert not box.write(b"a", b"remote", expected)
    assert box.applier.remove(b"a", expected), "gone already is as asked"
    (box.root / "a").mkdir()
    (box.root / "a/inside").write_bytes(b"mine")
    assert not box.write(b"a", b"remote", expected)
    assert not box.applier.remove(b"a", expected)
    assert not box.applier.remove(b"a", Entry(b"a", Kind.DIR)), "not empty"
    assert (box.root / "a/inside").read_bytes() == b"mine"


def test_symlinks_are_replaced_not_followed(box: Box) -> None:
    victim = box.root.parent / "victim"
    victim.write_bytes(b"precious")
    (box.root / "a").symlink_to(victim)
    assert box.write(b"a", b"remote", box.known(b"a"))
    assert victim.read_bytes() == b"precious"
    assert not (box.root / "a").is_symlink()
    with box.applier.stage_symlink(b"a", b"b") as staged:
        assert staged.place(b"a", box.known(b"a"))
    assert os.readlink(box.root / "a") == "b"


def test_a_parent_that_is_a_symlink_is_refused(box: Box) -> None:
    outside = box.root.parent / "outside"
    outside.mkdir()
    (outside / "a").write_bytes(b"precious")
    (box.root / "link").symlink_to(outside)
    (box.root / "up").symlink_to("..")
    for path in (b"link/a", b"up/outside/a"):
        with pytest.raises(OSError, match=r".") as caught:
            box.write(path, b"remote")
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
        assert box.applier.look(path) is None
        with contextlib.suppress(OSError):
            box.applier.remove(path, Entry(path, Kind.FILE))
    assert (outside / "a").read_bytes() == b"precious"
    assert sorted(p.name for p in outside.iterdir()) == ["a"]


HOSTILE = [
    *(b"", b"/etc/passwd", b"../x", b"a/../x", b"a/./b", b"a//b", b"a\0b", b"a/", b"x" * 256, b"d/" * 2100 + b"x"),
    *(
        b".git",
        b".git/config",
        b"sub/.GIT/hooks/x",
        b".git.",
        b".git ",
        b".Git. .",
        b"a/.g\xe2\x80\x8cit/x",
        b"git~1",
        b"GIT~1/x",
    ),
    *(b".git::$INDEX_ALLOCATION/x", b"\xef\xbb\xbf.git", TEMP_PREFIX + b"x", b"a/" + TEMP_PREFIX),
]


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_paths_are_refused(tmp_path: Path, path: bytes) -> None:
    box = Box(tmp_path)
    for attempt in (
        lambda: box.write(path, b"x"),
        lambda: box.applier.make_dir(path),
        lambda: box.applier.remove(path, Entry(b"x", Kind.FILE)),
        lambda: box.applier.stage_symlink(path, b"x"),
    ):
        with pytest.raises(HostileArchive):
            attempt()
    assert list(tmp_path.iterdir()) == []
    os.close(box.applier.root)


@pytest.mark.parametrize(
    "path", [b".gitignore", b".github/x", b"a.git", b"git", b"a\nb", b"\xff\xfe", b"...", b"x" * 255, b".gitx"]
)
def test_odd_but_honest_paths_are_fine(tmp_path: Path, path: bytes) -> None:
    assert check_target(path) == path
    box = Box(tmp_path)
    if b"/" in path:
        assert box.applier.make_dir(path.partition(b"/")[0])
    assert box.write(path, b"x")
    assert (tmp_path / os.fsdecode(path)).read_bytes() == b"x"
    os.close(box.applier.root)


def test_modes(box: Box) -> None:
    box.write(b"run", b"x", mode=0o6755)
    box.write(b"secret", b"x", mode=0o600)
    box.write(b"none", b"x", mode=0)
    assert stat.S_IMODE((box.root / "run").stat().st_mode) == 0o755
    assert stat.S_IMODE((box.root / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((box.root / "none").stat().st_mode) == 0o600


def test_special_files_equal_nothing(box: Box) -> None:
    os.mkfifo(box.root / "pipe")
    entry = box.known(b"pipe")
    assert not apply.same(entry, entry)
    assert not box.write(b"pipe", b"x", Entry(b"pipe", Kind.FILE))
    assert stat.S_ISFIFO((box.root / "pipe").stat().st_mode)


@pytest.mark.skipif(not hasattr(__import__("fcntl"), "F_SETLEASE"), reason="leases are Linux's")
def test_what_a_program_still_writes_is_kept(box: Box) -> None:
    (box.root / "out").write_bytes(b"old")
    expected = box.known(b"out")
    with (box.root / "out").open("ab"):
        assert box.write(b"out", b"new", expected)
    assert box.kept == {b"out": b"old"}


def test_errors_leave_everything_as_it_was(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    (box.root / "a").write_bytes(b"old")
    expected = box.known(b"a")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(apply.os, "write", full)
        with pytest.raises(OSError, match="No space"):
            box.write(b"a", b"new", expected)
    with monkeypatch.context() as patch:
        patch.setattr(box.applier, "keep", full)
        with pytest.raises(OSError, match="No space"):
            box.applier.remove(b"a", expected)
    assert (box.root / "a").read_bytes() == b"old"


def test_a_directory_moved_away_while_writing(box: Box) -> None:
    (box.root / "d").mkdir()
    with box.applier.stage(b"d/a", 0o644) as staged:
        staged.write(b"remote")
        (box.root / "d").rename(box.root.parent / "elsewhere")
        (box.root / "d").mkdir()
        with pytest.raises(OSError, match=r".") as caught:
            staged.place(b"d/a", None)
        assert caught.value.errno == errno.ESTALE
    assert list((box.root / "d").iterdir()) == []
    assert list((box.root.parent / "elsewhere").iterdir()) == []


def test_an_attacker_who_swaps_a_directory_for_a_symlink_wins_nothing(box: Box) -> None:
    """Thousands of swaps against hundreds of writes and removals; none may leave the tree."""
    outside = box.root.parent / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"precious")
    (box.root / "d").mkdir()
    (box.root / "link").symlink_to(outside)
    precious = Entry(b"d/f", Kind.FILE, size=8, blobs=(digest(b"precious"),))
    done = threading.Event()
    swaps = 0

    def attack() -> None:
        nonlocal swaps
        directory = os.open(box.root, os.O_RDONLY)
        call = atomic._libc().renameat2
        while not done.is_set():
            call(directory, b"d", directory, b"link", 2)
            swaps += 1
        os.close(directory)

    attacker = threading.Thread(target=attack)
    attacker.start()
    tries = refused = 0
    until = time.monotonic() + 3
    try:
        while swaps <= 1000 or (time.monotonic() < until and tries < 4000):
            tries += 1
            try:
                box.write(b"d/%d" % tries, b"evil")
                box.applier.remove(b"d/f", precious)
            except OSError:
                refused += 1
    finally:
        done.set()
        attacker.join()
    assert refused > 10, "the attack met the writes"
    assert refused < tries, "some writes went through"
    assert (outside / "f").read_bytes() == b"precious"
    assert [p.name for p in outside.iterdir()] == ["f"]
    for leftover in box.temps():  # where the parent was swapped away in the middle, a temporary file may stay
        leftover.unlink()


def test_a_user_who_saves_at_the_same_time_loses_nothing(box: Box) -> None:
    """An editor replaces the file by rename again and again; each of its versions is in place, replaced by itself, or kept."""
    target = box.root / "a"
    target.write_bytes(b"0")
    done = threading.Event()
    saved = 0

    def edit() -> None:
        nonlocal saved
        while not done.is_set():
            saved += 1
            (box.root.parent / "new").write_bytes(b"user %d" % saved)
            (box.root.parent / "new").rename(target)

    editor = threading.Thread(target=edit)
    editor.start()
    until = time.monotonic() + 2
    tries = 0
    replaced: Entry | None = None
    try:
        while time.monotonic() < until:
            tries += 1
            with contextlib.suppress(BlockingIOError):
                entry = box.applier.look(b"a")
                if box.write(b"a", b"remote", entry):
                    replaced = entry
    finally:
        done.set()
        editor.join()
    assert tries > 50
    last = b"user %d" % saved
    if target.read_bytes() != last:
        assert target.read_bytes() == b"remote"
        assert replaced is not None
        assert replaced.blobs == (digest(last),), "only a version that had been looked at is replaced"


def test_a_directory_is_made_once(box: Box) -> None:
    assert box.applier.make_dir(b"d")
    assert box.applier.make_dir(b"d")
    (box.root / "f").write_bytes(b"")
    assert not box.applier.make_dir(b"f")
