"""Manifests: round trips, deltas, and bytes that lie."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from catty.constants import BLOB_BYTES
from catty.errors import BadRequest, CattyError, HostileArchive
from catty.workspace.manifest import EMPTY, Manifest, _record, dump_delta, tree_key
from catty.workspace.model import Entry, Kind

DIGEST = bytes(range(32))
NAMES = st.binary(min_size=1, max_size=6).filter(lambda name: name not in (b".", b"..") and not {0, 47} & set(name))
TIMES = st.integers(-(1 << 63), (1 << 63) - 1)
MODES = st.integers(0, 0o7777)


def directory(path: bytes, mode: int = 0o755) -> Entry:
    return Entry(path, Kind.DIR, mode)


def file(path: bytes, *blobs: bytes, size: int | None = None) -> Entry:
    return Entry(path, Kind.FILE, size=len(blobs) * BLOB_BYTES if size is None else size, blobs=blobs)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Trees of any shape: paths are drawn, and whatever lies above one is a directory."""
    entries = {tree: directory(tree) for tree in (b"workspace", b"home")}
    for _ in range(draw(st.integers(0, 12))):
        parent = draw(st.sampled_from(sorted(path for path, entry in entries.items() if entry.kind is Kind.DIR)))
        path = parent + b"/" + draw(NAMES)
        kind, mode, mtime_ns = draw(st.sampled_from(Kind)), draw(MODES), draw(TIMES)
        if path in entries:
            continue
        if kind is Kind.FILE:
            size = draw(st.integers(0, 3 * BLOB_BYTES))
            blobs = tuple(draw(st.binary(min_size=32, max_size=32)) for _ in range(-(-size // BLOB_BYTES)))
            entries[path] = Entry(path, kind, mode, mtime_ns, size, blobs, torn=draw(st.booleans()))
        elif kind is Kind.SYMLINK:
            target = draw(st.binary(min_size=1, max_size=20).filter(lambda target: 0 not in target))
            entries[path] = Entry(path, kind, mode, mtime_ns, target=target)
        else:
            entries[path] = Entry(path, kind, mode, mtime_ns)
    return Manifest.of(entries.values())


@given(manifests())
def test_bytes_and_back(manifest: Manifest) -> None:
    data = manifest.to_bytes()
    again = Manifest.from_bytes(data)
    assert again == manifest
    assert list(again.entries) == sorted(manifest.entries, key=tree_key)
    assert again.digest == manifest.digest == data[-32:]


@given(manifests(), manifests())
def test_a_delta_leads_from_one_to_the_other(old: Manifest, new: Manifest) -> None:
    assert old.apply(old.delta(new)) == new
    assert EMPTY.apply(EMPTY.delta(new)) == new
    assert len(list(new.apply(new.delta(new)).entries)) == len(new)


@given(manifests(), st.data())
def test_damaged_bytes_are_refused_or_harmless(manifest: Manifest, data: st.DataObject) -> None:
    whole = manifest.to_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    damaged = whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]
    with suppress(BadRequest, HostileArchive):
        assert Manifest.from_bytes(damaged) == manifest  # some bits of zstd's mean nothing
    with pytest.raises((BadRequest, HostileArchive)):
        Manifest.from_bytes(whole[:place])


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    for data in (noise, b"CATM\x01F" + noise, b"CATM\x01D" + noise):
        with pytest.raises((BadRequest, HostileArchive)):
            Manifest.from_bytes(data)


WORKSPACE = directory(b"workspace")


@pytest.mark.parametrize(
    "entries",
    [
        [directory(b"elsewhere")],
        [file(b"workspace")],
        [directory(b"workspace/a")],
        [WORKSPACE, directory(b"workspace/../x")],
        [WORKSPACE, directory(b"workspace/.")],
        [WORKSPACE, directory(b"workspace/a//b")],
        [WORKSPACE, directory(b"workspace/a\0b")],
        [WORKSPACE, directory(b"workspace/" + b"x" * 256)],
        [WORKSPACE, directory(b"/workspace/a")],
        [WORKSPACE, file(b"workspace/a"), file(b"workspace/a/b")],
        [WORKSPACE, Entry(b"workspace/l", Kind.SYMLINK, target=b"/etc"), file(b"workspace/l/passwd")],
        [WORKSPACE, file(b"workspace/b"), file(b"workspace/a")],
        [WORKSPACE, file(b"workspace/a"), file(b"workspace/a")],
        [WORKSPACE, WORKSPACE],
        [WORKSPACE, directory(b"workspace/a"), file(b"workspace/b"), file(b"workspace/a/late")],
        [WORKSPACE, file(b"workspace/a", size=1)],
        [WORKSPACE, file(b"workspace/a", DIGEST, size=0)],
        [WORKSPACE, file(b"workspace/a", DIGEST, size=BLOB_BYTES + 1)],
        [WORKSPACE, Entry(b"workspace/a", Kind.FILE, target=b"x")],
        [WORKSPACE, Entry(b"workspace/a", Kind.DIR, size=1)],
        [WORKSPACE, Entry(b"workspace/a", Kind.SYMLINK)],
        [WORKSPACE, Entry(b"workspace/a", Kind.SYMLINK, target=b"x\0")],
        [WORKSPACE, directory(b"workspace/a", mode=0o10000)],
    ],
)
def test_entries_that_make_no_tree_are_refused(entries: list[Entry]) -> None:
    with pytest.raises(HostileArchive):
        Manifest(entries)
    with pytest.raises((BadRequest, HostileArchive)):
        Manifest.from_bytes(sealed(b"".join(map(_record, entries))))


def test_siblings_of_a_directory_do_not_part_it_from_its_content() -> None:
    paths = [b"workspace/a", b"workspace/a/b", b"workspace/a.b", b"workspace/a b", b"workspace/a-"]
    entries = [WORKSPACE, *(directory(path) if path == b"workspace/a" else file(path) for path in paths)]
    assert [entry.path for entry in Manifest.of(entries).entries.values()][1:3] == [b"workspace/a", b"workspace/a/b"]


def test_a_delta_cannot_remove_what_is_not_there_nor_leave_orphans() -> None:
    tree = Manifest([WORKSPACE, directory(b"workspace/d"), file(b"workspace/d/f")])
    with pytest.raises(HostileArchive):
        tree.apply(dump_delta([b"workspace/nope"], ()))
    with pytest.raises(HostileArchive):
        tree.apply(dump_delta([b"workspace/d"], ()))
    assert len(tree.apply(dump_delta([b"workspace/d", b"workspace/d/f"], ()))) == 1


def test_a_blob_has_one_length() -> None:
    honest = Manifest([WORKSPACE, file(b"workspace/a", DIGEST, size=5), file(b"workspace/b", DIGEST, size=5)])
    assert honest.blobs() == {DIGEST: 5}
    lying = Manifest([WORKSPACE, file(b"workspace/a", DIGEST, size=5), file(b"workspace/b", DIGEST, size=6)])
    with pytest.raises(HostileArchive):
        lying.blobs()


def sealed(raw: bytes, frame: bytes | None = None) -> bytes:
    """Manifest bytes around records of our own, or around a frame of our own."""
    frame = zstandard.ZstdCompressor().compress(raw) if frame is None else frame
    return b"CATM\x01F" + struct.pack(">I", len(frame)) + frame + struct.pack(">I", 0) + blake3(raw).digest()


def test_bombs_are_refused_before_memory_is_spent() -> None:
    with pytest.raises(HostileArchive, match="when unpacked"):
        Manifest.from_bytes(sealed(bytes(64 << 20)))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
    with pytest.raises(CattyError):
        Manifest.from_bytes(sealed(b"", unsized))
    greedy = struct.pack(">HBBHqQI", 1, ord("f"), 0, 0, 0, 1 << 60, (1 << 32) - 1) + b"x"
    with pytest.raises(HostileArchive):
        Manifest.from_bytes(sealed(greedy))


def test_a_large_manifest_is_small_and_fast_enough_to_send() -> None:
    names = (b"workspace/%06d.py" % number for number in range(20_000))
    manifest = Manifest([WORKSPACE, *(file(name) for name in names)])
    data = manifest.to_bytes()
    assert len(data) < 200_000
    assert Manifest.from_bytes(data) == manifest
