"""Packs: round trips, and packs that lie."""

from __future__ import annotations

import os
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from catty.constants import BLOB_BYTES, PACK_BYTES, PACK_MAX_BYTES
from catty.errors import BadRequest, HostileArchive
from catty.workspace.model import digest
from catty.workspace.packs import FOOTER_BYTES, Frame, PackWriter, assemble, index_bytes, parse_index, read


def pack_of(blobs: list[bytes]) -> bytes:
    writer = PackWriter()
    for blob in blobs:
        writer.add(digest(blob), blob)
    return writer.finish()


@given(st.lists(st.binary(min_size=1, max_size=2000), max_size=30))
def test_what_goes_in_comes_out_once_and_in_order(blobs: list[bytes]) -> None:
    pack = pack_of(blobs)
    assert [(name, bytes(data)) for name, data in read(pack)] == [(digest(blob), blob) for blob in dict.fromkeys(blobs)]


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5), st.data())
def test_damaged_packs_are_refused(blobs: list[bytes], data: st.DataObject) -> None:
    pack = pack_of(blobs)
    place = data.draw(st.integers(0, len(pack) - 1))
    damaged = pack[:place] + bytes([pack[place] ^ (1 << data.draw(st.integers(0, 7)))]) + pack[place + 1 :]
    try:
        content = [bytes(blob) for _, blob in read(damaged)]
    except (BadRequest, HostileArchive):
        return
    assert content == list(dict.fromkeys(blobs))  # a bit of zstd's that means nothing


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5), st.data())
def test_packs_cut_short_are_refused(blobs: list[bytes], data: st.DataObject) -> None:
    pack = pack_of(blobs)
    with pytest.raises((BadRequest, HostileArchive)):
        list(read(pack[: data.draw(st.integers(0, len(pack) - 1))]))


def test_blobs_that_do_not_compress_fill_a_pack_within_its_limit() -> None:
    writer = PackWriter()
    while not writer.full:
        blob = os.urandom(BLOB_BYTES)
        writer.add(digest(blob), blob)
    pack = writer.finish()
    assert PACK_BYTES - BLOB_BYTES < len(pack) <= PACK_MAX_BYTES
    assert len(list(read(pack))) == PACK_BYTES // BLOB_BYTES
    assert writer.empty


def test_the_end_of_a_pack_tells_what_is_in_it() -> None:
    pack = pack_of([b"one", b"two" * 1000])
    length = index_bytes(pack[-FOOTER_BYTES:], len(pack))
    index = parse_index(pack[-length:], len(pack))
    assert list(index.digests()) == [digest(b"one"), digest(b"two" * 1000)]


def test_frames_of_several_packs_make_a_pack() -> None:
    frames = []
    for blob in (b"one", b"two"):
        pack = pack_of([blob])
        (frame,) = parse_index(pack, len(pack)).frames
        frames.append((frame, pack[frame.offset : frame.offset + frame.length]))
    assert [bytes(data) for _, data in read(assemble(frames))] == [b"one", b"two"]


def lying(raw: bytes, *blobs: tuple[bytes, int]) -> bytes:
    packed = zstandard.ZstdCompressor().compress(raw)
    return assemble([(Frame(0, len(packed), blobs), packed)])


@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(lying(b"content", (digest(b"other"), 7)), id="another name"),
        pytest.param(lying(b"content", (digest(b"content"), 8)), id="longer than it is"),
        pytest.param(lying(b"content", (digest(b"conten"), 6)), id="shorter than it is"),
        pytest.param(lying(b"content", (digest(b"content"), 7), (digest(b""), 0)), id="empty blob"),
        pytest.param(lying(bytes(64 << 20), (digest(bytes(64 << 20)), 64 << 20)), id="bomb that says so"),
        pytest.param(lying(bytes(64 << 20), (digest(b"x"), 1 << 20)), id="bomb that does not"),
    ],
)
def test_packs_that_lie_are_refused(pack: bytes) -> None:
    with pytest.raises((BadRequest, HostileArchive)):
        list(read(pack))


def test_an_index_that_says_it_is_huge_is_refused() -> None:
    pack = pack_of([b"x"])
    packed, _, checksum, magic = struct.unpack(">II32s8s", pack[-FOOTER_BYTES:])
    for footer in (
        struct.pack(">II32s8s", packed, 1 << 30, checksum, magic),
        struct.pack(">II32s8s", 1 << 30, 48, checksum, magic),
    ):
        with pytest.raises((BadRequest, HostileArchive)):
            parse_index(pack[:-FOOTER_BYTES] + footer, len(pack))
