"""Download: the tree arrives whole or not at all, and hostile content leads nowhere."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from catty.client import download as module
from catty.client.download import Downloaded
from catty.client.trash import Trash, remove_tree
from catty.client.upload import prepare, send
from catty.constants import BLOB_BYTES
from catty.errors import (
    BadRequest,
    CannotWrite,
    ConnectionLost,
    DestinationExists,
    HostileArchive,
    MachineUnreachable,
    ServerUnreachable,
    StoreFailed,
    UsageError,
)
from catty.workspace import packs
from catty.workspace.manifest import Manifest
from catty.workspace.model import HOME, WORKSPACE, Entry, Kind, digest
from client.store import MemoryServer

TIME = 1_700_000_000_123_456_789


@pytest.fixture
def server(tmp_path: Path) -> MemoryServer:
    """Holds one snapshot of `tmp_path/project`."""
    project = tmp_path / "project"
    (project / "sub/empty").mkdir(parents=True)
    (project / "sub/run").write_text("#!/bin/sh\n")
    (project / "sub/run").chmod(0o750)
    (project / "link").symlink_to("/etc/passwd")
    (project / "none").write_bytes(b"")
    (project / "sparse").write_bytes(b"")
    os.truncate(project / "sparse", 3 * BLOB_BYTES + 1)
    (project / "big").write_bytes(os.urandom(BLOB_BYTES + 5))
    (project / "twin").write_bytes((project / "big").read_bytes() + b"x")
    with open(os.fsencode(project) + b"/\xff\n", "wb") as file:
        file.write(b"odd")
    (project / "read-only").mkdir()
    (project / "read-only/f").write_text("x")
    (project / "read-only").chmod(0o555)
    os.utime(project / "sub/run", ns=(TIME, TIME))
    os.utime(project / "sub/empty", ns=(TIME, TIME))
    os.utime(project / "link", ns=(TIME, TIME), follow_symlinks=False)
    server = MemoryServer()
    send(server, "s", prepare(project), sessions=tmp_path / "sessions")
    return server


def download(server: MemoryServer, tmp_path: Path, place: Path | None = None, **options: object) -> Downloaded:
    trash = Trash(tmp_path / "trash", "s")
    return module.download(server, "s", place or tmp_path / "here", trash=trash, **options)  # type: ignore[arg-type]


def hold(server: MemoryServer, *entries: Entry, contents: tuple[bytes, ...] = ()) -> None:
    server.manifests.append(Manifest.of([Entry(WORKSPACE, Kind.DIR, 0o755), *entries]).to_bytes())
    server.blobs |= {digest(data): data for data in contents}


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything that a user could tell apart."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        times = () if path.is_dir() and not path.is_symlink() and info.st_mtime_ns == 0 else (info.st_mtime_ns,)
        found[str(path.relative_to(root))] = (stat.S_IMODE(info.st_mode), content, *times)
    return found


def leftovers(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.iterdir() if "catty-tmp" in path.name]


def test_everything_arrives(server: MemoryServer, tmp_path: Path) -> None:
    done = download(server, tmp_path)
    assert done.destination == tmp_path / "here"
    assert done.files == 7
    theirs, mine = tree(tmp_path / "project"), tree(tmp_path / "here")
    theirs["read-only"] = (0o755, *theirs["read-only"][1:])  # a directory stays its owner's to write in
    assert mine == theirs
    assert (tmp_path / "here/sparse").stat().st_blocks * 512 < BLOB_BYTES
    assert leftovers(tmp_path) == []


def test_the_agents_home_is_not_part_of_it(server: MemoryServer, tmp_path: Path) -> None:
    hold(server, Entry(HOME, Kind.DIR, 0o755), Entry(HOME + b"/x", Kind.FILE), Entry(WORKSPACE + b"/y", Kind.FILE))
    download(server, tmp_path)
    assert list(tree(tmp_path / "here")) == ["y"]


def test_archive(server: MemoryServer, tmp_path: Path) -> None:
    download(server, tmp_path, tmp_path / "x.tar.gz", form="tar.gz")
    with tarfile.open(tmp_path / "x.tar.gz") as tar:
        assert {member.name.split("/")[0] for member in tar} == {"s"}
        assert not any(member.mode & 0o6000 for member in tar)
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xzf", tmp_path / "x.tar.gz", "-C", tmp_path / "out"], check=True)
    theirs, mine = tree(tmp_path / "project"), tree(tmp_path / "out/s")
    assert {path: entry[1] for path, entry in mine.items()} == {path: entry[1] for path, entry in theirs.items()}
    assert leftovers(tmp_path) == []


def test_the_default_place_is_named_after_the_session(
    server: MemoryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trash = Trash(tmp_path / "trash", "s")
    assert module.download(server, "s", trash=trash).destination == tmp_path / "s"
    assert module.download(server, "s", form="tar.gz", trash=trash).destination == tmp_path / "s.tar.gz"


def test_an_existing_destination_is_refused_and_force_keeps_it_in_the_trash(
    server: MemoryServer, tmp_path: Path
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    (place / "mine").write_text("precious")
    with pytest.raises(DestinationExists):
        download(server, tmp_path)
    assert list(tree(place)) == ["mine"]
    download(server, tmp_path, force=True)
    assert "mine" not in tree(place)
    assert "sub/run" in tree(place)
    assert [path.read_text() for path in (tmp_path / "trash").rglob("mine")] == ["precious"]
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(DestinationExists):
        download(server, tmp_path, tmp_path / "dangling")


def test_the_ground_one_stands_on_is_not_replaced(
    server: MemoryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here/in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here/in")
    for place in (tmp_path / "here/in", tmp_path / "here", Path("/")):
        with pytest.raises(UsageError):
            download(server, tmp_path, place, force=True)


def test_a_running_session_is_saved_first(server: MemoryServer, tmp_path: Path) -> None:
    server.state = "running"
    download(server, tmp_path)
    assert server.saves == 1
    download(server, tmp_path, tmp_path / "old", snapshot=1)
    assert server.saves == 1, "a snapshot that is named is that snapshot"


def test_a_machine_that_cannot_be_saved_gives_its_last_save_and_says_so(server: MemoryServer, tmp_path: Path) -> None:
    server.state = "running"

    def save(label: str) -> int:
        raise MachineUnreachable(reason="no answer")

    server.save = save  # type: ignore[method-assign]
    assert "could not be saved now" in download(server, tmp_path).notes[0]
    assert (tmp_path / "here/big").exists()


@pytest.mark.parametrize("first", ["running", "stopping"])
def test_the_last_save_of_a_session_that_ends_is_awaited(server: MemoryServer, tmp_path: Path, first: str) -> None:
    server.state, server.next_states = first, ["stopping", "stopping", "stopped"]

    def save(label: str) -> int:
        raise MachineUnreachable(reason="no answer")

    server.save = save  # type: ignore[method-assign]
    assert download(server, tmp_path).notes == ()
    assert server.next_states == []


def test_an_end_that_is_not_saved_is_told(server: MemoryServer, tmp_path: Path) -> None:
    server.error = {"code": "save-failed", "message": "the workspace could not be saved: disk full"}
    assert "could not be saved: disk full" in download(server, tmp_path).notes[0]
    server.state, server.step = "stopping", "waiting for the engine"
    assert "waiting for the engine" in download(server, tmp_path, tmp_path / "again").notes[0]


def test_a_fetch_that_is_cut_off_goes_on(server: MemoryServer, tmp_path: Path) -> None:
    whole, asked = server.fetch_blobs, []

    def cut(digests: list[bytes]) -> Iterator[bytes]:
        asked.append(len(digests))
        yield from whole(digests[:1])
        raise ServerUnreachable(server="x", reason="killed")

    server.fetch_blobs = cut  # type: ignore[method-assign]
    done = download(server, tmp_path)
    assert asked == list(range(asked[0], 0, -1))
    assert (done.destination / "big").read_bytes()
    server.fetch_blobs = lambda _: cut([])  # type: ignore[method-assign]
    with pytest.raises(ServerUnreachable):
        download(server, tmp_path, tmp_path / "again")


def test_what_a_killed_download_left_goes_with_the_next(server: MemoryServer, tmp_path: Path) -> None:
    dead, alive = tmp_path / ".here.0.catty-tmp", tmp_path / ".here.1.catty-tmp"
    for left in (dead, alive):
        (left / "tree").mkdir(parents=True)
    descriptor = os.open(alive, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    download(server, tmp_path)
    os.close(descriptor)
    assert leftovers(tmp_path) == [alive]


def test_a_cut_download_leaves_nothing(server: MemoryServer, tmp_path: Path) -> None:
    whole = server.fetch_blobs

    def cut(digests: list[bytes]) -> Iterator[bytes]:
        yield from whole(digests[:2])
        raise ConnectionLost(server="x", reason="cut")

    server.fetch_blobs = cut  # type: ignore[method-assign]
    with pytest.raises(ConnectionLost):
        download(server, tmp_path)
    assert not (tmp_path / "here").exists()
    assert leftovers(tmp_path) == []


def test_a_destination_that_appears_meanwhile_is_not_touched(server: MemoryServer, tmp_path: Path) -> None:
    whole = server.fetch_blobs

    def slow(digests: list[bytes]) -> Iterator[bytes]:
        (tmp_path / "here").mkdir()
        yield from whole(digests)

    server.fetch_blobs = slow  # type: ignore[method-assign]
    with pytest.raises(DestinationExists):
        download(server, tmp_path)
    assert list((tmp_path / "here").iterdir()) == []
    assert leftovers(tmp_path) == []


def test_disk_full_is_said(server: MemoryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "pwrite", full)
    with pytest.raises(CannotWrite, match="No space left"):
        download(server, tmp_path)
    assert not (tmp_path / "here").exists()
    assert leftovers(tmp_path) == []


def test_no_place_to_write(server: MemoryServer, tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="there is no directory"):
        download(server, tmp_path, tmp_path / "missing/here")


# ------------------------------------------------------------------------------------------------ hostile


def test_a_claimed_size_beyond_the_disk_is_refused_before_writing(server: MemoryServer, tmp_path: Path) -> None:
    size = 1 << 30
    bombs = [
        Entry(WORKSPACE + b"/%d" % number, Kind.FILE, size=size, blobs=(digest(b"x"),) * (size // BLOB_BYTES))
        for number in range(1 + shutil.disk_usage(tmp_path).free // size)
    ]
    hold(server, *bombs)
    with pytest.raises(CannotWrite, match="needed"):
        download(server, tmp_path)


def test_blobs_of_another_length_are_refused(server: MemoryServer, tmp_path: Path) -> None:
    content = b"y" * 10
    for size in (9, 11):
        hold(server, Entry(WORKSPACE + b"/f", Kind.FILE, size=size, blobs=(digest(content),)), contents=(content,))
        with pytest.raises(HostileArchive):
            download(server, tmp_path)
    one = Entry(WORKSPACE + b"/a", Kind.FILE, size=10, blobs=(digest(content),))
    hold(server, one, Entry(WORKSPACE + b"/b", Kind.FILE, size=5, blobs=(digest(content),)))
    with pytest.raises(HostileArchive):
        download(server, tmp_path)
    assert not (tmp_path / "here").exists()


def test_blobs_that_are_not_what_they_are_called_are_refused(server: MemoryServer, tmp_path: Path) -> None:
    def lie(digests: list[bytes]) -> Iterator[bytes]:
        writer = packs.PackWriter()
        writer.add(digests[0], b"lie")
        yield writer.finish()

    server.fetch_blobs = lie  # type: ignore[method-assign]
    with pytest.raises(HostileArchive):
        download(server, tmp_path)
    server.fetch_blobs = lambda digests: iter([b"no pack"])  # type: ignore[method-assign]
    with pytest.raises(BadRequest):
        download(server, tmp_path)


def test_blobs_that_do_not_come_are_missed(server: MemoryServer, tmp_path: Path) -> None:
    server.fetch_blobs = lambda digests: iter(())  # type: ignore[method-assign]
    with pytest.raises(StoreFailed):
        download(server, tmp_path)
    assert not (tmp_path / "here").exists()


def test_nothing_is_written_through_a_symlink(server: MemoryServer, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = Entry(WORKSPACE + b"/d", Kind.SYMLINK, target=os.fsencode(outside))
    with pytest.raises(HostileArchive):  # the manifest itself refuses
        hold(server, link, Entry(WORKSPACE + b"/d/f", Kind.FILE))
    hold(server, link, Entry(WORKSPACE + b"/e", Kind.SYMLINK, target=b"../outside/new"))
    download(server, tmp_path)
    assert os.readlink(tmp_path / "here/d") == str(outside)
    assert list(outside.iterdir()) == []


def test_notes_hold_nothing_that_a_terminal_would_obey(server: MemoryServer, tmp_path: Path) -> None:
    hold(server, Entry(WORKSPACE + b"/\x1b]0;evil\x07", Kind.FILE, torn=True))
    assert download(server, tmp_path).notes == ("?]0;evil? changed while it was saved",)


def test_modes_lose_what_could_raise_rights(server: MemoryServer, tmp_path: Path) -> None:
    hold(server, Entry(WORKSPACE + b"/su", Kind.FILE, 0o6755), Entry(WORKSPACE + b"/d", Kind.DIR, 0o7000))
    mask = os.umask(0o022)
    try:
        download(server, tmp_path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "here/su").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "here/d").stat().st_mode) == 0o700


# ------------------------------------------------------------------------------------------------ trash


@pytest.mark.parametrize("form", ["dir", "tar.gz"])
def test_a_tree_as_deep_as_paths_can_be(server: MemoryServer, tmp_path: Path, form: str) -> None:
    paths = [WORKSPACE + b"/d" * depth for depth in range(1, 2000)]
    leaf = Entry(paths[-1] + b"/leaf", Kind.FILE, size=4, blobs=(digest(b"deep"),))
    hold(server, *(Entry(path, Kind.DIR, 0o555) for path in paths), leaf, contents=(b"deep",))
    place = tmp_path / "here"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        assert download(server, tmp_path, place, form=form).files == 1
        if form == "tar.gz":
            with tarfile.open(place) as archive:
                last = archive.getmembers()[-1]
                assert last.name == "s/" + "d/" * 1999 + "leaf"
                assert archive.extractfile(last).read() == b"deep"  # type: ignore[union-attr]  # it is a file
        else:
            remove_tree(place)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert leftovers(tmp_path) == []
    assert place.exists() == (form == "tar.gz")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_an_archive_of_files_that_not_even_their_owner_may_read(server: MemoryServer) -> None:
    hold(server, Entry(b"workspace/f", Kind.FILE, 0, size=2, blobs=(digest(b"no"),)), contents=(b"no",))
    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, 65534, -1)
        os.seteuid(65534)
        try:
            download(server, Path(directory), form="tar.gz")
        finally:
            os.seteuid(0)
        with tarfile.open(Path(directory) / "here") as archive:
            member = archive.getmember("s/f")
            assert (member.mode, archive.extractfile(member).read()) == (0, b"no")  # type: ignore[union-attr]  # it is a file


def test_a_destination_whose_name_has_no_room_for_more(server: MemoryServer, tmp_path: Path) -> None:
    for name in ("\u732b" * 85, "x" * 255):
        assert download(server, tmp_path, tmp_path / name).destination.is_dir()
    assert leftovers(tmp_path) == []


def test_a_tree_of_ours_is_removed_whatever_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "tree/a/b/c").mkdir(parents=True)
    (tmp_path / "tree/a/b/f").write_text("x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/f").write_text("x")
    (tmp_path / "tree/a/link").symlink_to(tmp_path / "outside")
    (tmp_path / "tree/link").symlink_to(tmp_path / "outside")
    os.mkfifo(tmp_path / "tree/a/fifo")
    (tmp_path / "tree/a/b").chmod(0)
    remove_tree(tmp_path / "tree")
    assert [path.name for path in tmp_path.rglob("*") if path.name in ("tree", "f")] == ["f"]


def test_trash_keeps_names_apart_and_forgets_after_a_week(tmp_path: Path) -> None:
    trash = Trash(tmp_path / "trash", "s")
    parent = os.open(tmp_path, os.O_RDONLY)
    for content in ("1", "2"):
        (tmp_path / "f").write_text(content)
        trash.take(parent, b"f", b"d/f")
    (tmp_path / "g").write_text("3")
    trash.take(parent, b"g", b"d/f/g")
    os.close(parent)
    assert sorted(path.read_text() for path in trash.directory.rglob("*") if path.is_file()) == ["1", "2", "3"]
    trash.sweep()
    assert trash.directory.exists()


def test_trash_on_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", elsewhere)
    trash = Trash(tmp_path / "trash", "s")
    parent = os.open(tmp_path, os.O_RDONLY)
    (tmp_path / "d/inner").mkdir(parents=True)
    (tmp_path / "d/inner/f").write_text("x")
    (tmp_path / "d/link").symlink_to("inner")
    trash.take(parent, b"d", b"d")
    os.close(parent)
    assert not (tmp_path / "d").exists()
    assert (trash.directory / "d/inner/f").read_text() == "x"
    assert os.readlink(trash.directory / "d/link") == "inner"
