"""Walking and reading trees that change meanwhile, hold odd things, or want to lead the walker astray."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catty.constants import BLOB_BYTES
from catty.workspace import chunks
from catty.workspace.chunks import ZERO_BLOB, read_file
from catty.workspace.manifest import Manifest, tree_key
from catty.workspace.model import Entry, Kind, digest
from catty.workspace.scan import Cache, Scanner
from catty.workspace.walk import walk


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root").mkdir()
    descriptor = os.open(tmp_path / "root", os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def files(tmp_path: Path, root: int) -> Path:
    return tmp_path / "root"


def paths(root: int) -> tuple[list[bytes], list[tuple[bytes, str]]]:
    skipped: list[tuple[bytes, str]] = []
    found = [found.path for found in walk(root, skipped=lambda path, why: skipped.append((path, why)))]
    return found, skipped


def test_the_walk_is_in_tree_order_and_follows_no_symlink(root: int, files: Path) -> None:
    (files / "a/b").mkdir(parents=True)
    for name in ("a/b/c", "a.txt", "a-b", "z"):
        (files / name).write_text("x")
    (files / "up").symlink_to("..")
    (files / "loop").symlink_to("loop")
    assert paths(root) == ([b"a", b"a/b", b"a/b/c", b"a-b", b"a.txt", b"loop", b"up", b"z"], [])
    assert Manifest(Scanner(root, b"workspace", Cache.empty()).scan()).files == 4


def test_what_cannot_be_saved_is_named(root: int, files: Path) -> None:
    os.mkfifo(files / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.open(".", os.O_RDONLY)
        os.fchdir(root)
        try:
            sock.bind("socket")
        finally:
            os.fchdir(here)
            os.close(here)
        found, skipped = paths(root)
    assert found == []
    assert [path for path, _ in skipped] == [b"fifo", b"socket"]


def test_very_deep_trees_end_the_walk_not_the_walker(root: int, files: Path) -> None:
    here = os.open(files, os.O_RDONLY)
    for _ in range(30):
        os.mkdir(b"x" * 200, dir_fd=here)
        deeper = os.open(b"x" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    found, skipped = paths(root)
    assert len(found) == 20
    assert [why for _, why in skipped] == ["path too long"]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["mkdir", "rmtree", "file", "link", "rename"]), max_size=30), st.randoms())
def test_what_a_scan_finds_is_always_a_tree(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], chance: object
) -> None:
    """Changes in the middle of a scan may be seen or not, but never break it."""
    files = tmp_path_factory.mktemp("tree")
    names = ["a", "a/b", "a/b/c", "a/d", "e", "e/f", "e/f/g", "h"]
    pending = list(steps)

    def change() -> None:
        if not pending:
            return
        step, name = pending.pop(), files / chance.choice(names)  # type: ignore[attr-defined]
        try:
            match step:
                case "mkdir":
                    name.mkdir(parents=True)
                case "rmtree":
                    os.system(f"rm -rf {name}")
                case "file":
                    name.write_text(step * 10)
                case "link":
                    name.symlink_to("/")
                case "rename":
                    name.rename(files / chance.choice(names))  # type: ignore[attr-defined]
        except OSError:
            pass

    for _ in range(len(steps) // 2):
        change()
    root = os.open(files, os.O_RDONLY)
    try:
        entries = []
        for entry in Scanner(root, b"workspace", Cache.empty()).scan():
            entries.append(entry)
            change()
        manifest = Manifest(entries)
        assert all(entry.target == b"/" for entry in manifest.entries.values() if entry.kind is Kind.SYMLINK)
        assert len(manifest) < 20  # never the content of /
    finally:
        os.close(root)


def test_a_directory_that_becomes_a_symlink_before_it_is_entered(root: int, files: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    (files / "d").mkdir()
    (files / "d/public").write_text("public")
    skipped: list[bytes] = []
    steps = walk(root, skipped=lambda path, _why: skipped.append(path))
    assert next(steps).path == b"d"
    (files / "d").rename(files / "z")
    (files / "d").symlink_to(tmp_path / "outside")
    assert list(steps) == []
    assert skipped == [b"d"]


def test_an_attacker_who_swaps_directories_for_symlinks_gets_nothing_out(
    root: int, files: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("secret")
    (files / "d").mkdir()
    (files / "d/file").write_text("public")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(files / "d", files / "moved")
            os.symlink(outside, files / "d")
            os.unlink(files / "d")
            os.rename(files / "moved", files / "d")

    attacker = threading.Thread(target=swap)
    attacker.start()
    seen: list[Entry] = []
    try:
        for scans in range(50_000):
            seen += (entry for entry in Scanner(root, b"workspace", Cache.empty()).scan() if entry.kind is not Kind.DIR)
            if scans > 300 and any(entry.kind is Kind.SYMLINK for entry in seen):
                break  # the attack did hit
        else:
            pytest.fail("the attacker was never fast enough to be tested")
    finally:
        stop.set()
        attacker.join()
    assert {entry.blobs for entry in seen if entry.kind is Kind.FILE} <= {(digest(b"public"),)}


def test_files_are_read_again_only_when_they_may_have_changed(
    root: int, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catty.workspace.scan.RACY_NS", -1)
    (files / "a").write_text("a")
    (files / "b").write_text("b")
    read: list[bytes] = []
    cache = Cache.empty()

    def scan(*needed: bytes) -> list[Entry]:
        read.clear()
        scanner = Scanner(
            root, b"w", cache, needed=lambda name: name in needed, take=lambda _name, data: read.append(data)
        )
        return list(scanner.scan())

    first = scan()
    assert read == [b"a", b"b"]
    assert scan() == first
    assert read == []
    scan(digest(b"b"))
    assert read == [b"b"]
    (files / "a").write_text("c")
    scan()
    assert read == [b"c"]
    os.chmod(files / "b", 0o755)
    scan()
    assert read == [b"b"]


def test_a_file_just_written_is_not_trusted_to_stay(root: int, files: Path) -> None:
    cache = Cache.empty()
    (files / "young").write_text("x")
    list(Scanner(root, b"w", cache).scan())
    assert cache.known == {}


def test_large_and_sparse_files_are_cut(root: int, files: Path) -> None:
    content = os.urandom(2 * BLOB_BYTES + 5)
    (files / "large").write_bytes(content)
    with open(files / "sparse", "wb") as file:
        file.truncate(3 * BLOB_BYTES + 7)
        os.pwrite(file.fileno(), b"x", BLOB_BYTES + 1)
    taken: dict[bytes, bytes] = {}
    large = read_file(root, b"large", taken.__setitem__)
    assert b"".join(taken[name] for name in large.blobs) == content
    sparse = read_file(root, b"sparse", taken.__setitem__)
    assert b"".join(taken[name] for name in sparse.blobs) == (files / "sparse").read_bytes()
    assert sparse.blobs.count(ZERO_BLOB) == 2


@pytest.mark.parametrize("change", ["grow", "shrink", "rewrite"])
def test_a_file_that_changes_once_while_read_is_read_again(
    root: int, files: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files / "f"
    path.write_bytes(b"before" * 1000)
    tries = 0
    real = chunks._read

    def read(descriptor: int, position: int, length: int) -> bytes:
        nonlocal tries
        tries += 1
        data = real(descriptor, position, length)
        if tries == 1:
            path.write_bytes({"grow": b"longer" * 2000, "shrink": b"", "rewrite": b"behind" * 1000}[change])
        return data

    monkeypatch.setattr(chunks, "_read", read)
    content = read_file(root, b"f", lambda _name, _data: None)
    assert not content.torn
    assert content.size == path.stat().st_size
    assert content.blobs == ((digest(path.read_bytes()),) if content.size else ())


def test_only_regular_files_are_opened(root: int, files: Path) -> None:
    os.mkfifo(files / "fifo")
    (files / "link").symlink_to("/etc/passwd")
    (files / "d").mkdir()
    for name in (b"fifo", b"link", b"d"):
        with pytest.raises(OSError, match=r".+"):
            read_file(root, name, lambda _name, _data: None)


def test_a_tree_deeper_than_a_process_has_descriptors(root: int, files: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    here = os.dup(root)
    for depth in range(500):
        os.close(os.open(b"before", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        os.close(os.open(b"x%d" % depth, os.O_CREAT | os.O_WRONLY, dir_fd=here))
        os.mkdir(b"d", dir_fd=here)
        deeper = os.open(b"d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 100, hard))
    try:
        found, skipped = paths(root)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert skipped == []
    assert len(found) == 1500
    assert found == sorted(found, key=tree_key)


def test_a_directory_far_above_that_is_moved_away_ends_what_is_left_of_it(root: int, files: Path) -> None:
    deep = files / "a" / "/".join("d" * 100)
    deep.mkdir(parents=True)
    for name in ("a/z", "z"):
        (files / name).write_text("x")
    found = []
    for item in walk(root, skipped=lambda _path, _why: None):
        found.append(item.path)
        if item.path.count(b"/") == 100:
            (files / "a").rename(files / "b")
            (files / "a").symlink_to("/etc")
    assert found[-2:] == [b"a/" + b"/".join([b"d"] * 100), b"z"]


@pytest.mark.parametrize("year", [1950, 2400])
def test_a_time_that_no_format_can_hold_is_no_obstacle(root: int, files: Path, year: int) -> None:
    seconds = int(datetime(year, 1, 1, tzinfo=UTC).timestamp())
    (files / "f").write_text("x")
    for path in (files / "f", files):
        os.utime(path, (seconds, seconds))
    manifest = Manifest(Scanner(root, b"workspace", Cache.empty()).scan())
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    if year < 2262:
        assert manifest.entries[b"workspace/f"].mtime_ns == seconds * 10**9


def test_a_file_too_large_for_a_snapshot_is_named_and_the_rest_is_saved(root: int, files: Path) -> None:
    for name, size in (("a", 5), ("b", (1 << 40) + 1), ("c", 5)):
        with open(files / name, "wb") as file:
            file.truncate(size)
    scanner = Scanner(root, b"workspace", Cache.empty())
    assert [entry.path for entry in Manifest(scanner.scan()).entries.values()] == [
        b"workspace",
        b"workspace/a",
        b"workspace/c",
    ]
    assert scanner.skipped == [(b"workspace/b", "File too large")]
