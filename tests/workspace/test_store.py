"""The snapshot store: what was committed stays readable, whatever the store does in between."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from catty.errors import BadRequest, BlobsMissing, HeadTaken, HostileArchive, SnapshotNotFound, StoreFailed
from catty.workspace.manifest import Manifest
from catty.workspace.model import Entry, Kind, digest
from catty.workspace.objects import Objects
from catty.workspace.packs import PackWriter, read
from catty.workspace.store import SnapshotStore


def pack_of(*blobs: bytes) -> bytes:
    writer = PackWriter()
    for blob in blobs:
        writer.add(digest(blob), blob)
    return writer.finish()


def tree(**files: bytes) -> Manifest:
    """A workspace with these small files."""
    entries = [Entry(b"workspace", Kind.DIR, 0o755)]
    for name, content in files.items():
        blobs = (digest(content),) if content else ()
        entries.append(Entry(f"workspace/{name}".encode(), Kind.FILE, size=len(content), blobs=blobs))
    return Manifest.of(entries)


async def content(store: SnapshotStore, manifest: Manifest) -> dict[bytes, bytes]:
    """Every blob of the manifest, as the store gives it out."""
    wanted = manifest.blobs()
    return {name: bytes(data) async for pack in store.fetch(wanted) for name, data in read(pack) if name in wanted}


@pytest.fixture(params=["directory", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return Objects.in_directory(tmp_path / "store") if request.param == "directory" else Objects(MemoryStore())


@pytest.fixture
async def store(objects: Objects) -> AsyncIterator[SnapshotStore]:
    store = SnapshotStore(objects, "local")
    yield store
    store.close()


async def test_blobs_come_back(store: SnapshotStore) -> None:
    one, two = digest(b"one"), digest(b"two")
    assert await store.missing([one, two, one]) == [one, two]
    await store.put_pack(pack_of(b"one"))
    await store.put_pack(pack_of(b"one"))
    assert await store.missing([one, two]) == [two]
    with pytest.raises(BlobsMissing):
        await anext(aiter(store.fetch([one, two])))
    await store.put_pack(pack_of(b"two", b"three"))
    assert await content(store, tree(a=b"one", b=b"two")) == {one: b"one", two: b"two"}


async def test_many_small_packs_come_back_as_few(store: SnapshotStore) -> None:
    blobs = [os.urandom(100) for _ in range(50)]
    for blob in blobs:
        await store.put_pack(pack_of(blob))
    packs = [pack async for pack in store.fetch(map(digest, blobs))]
    assert len(packs) == 1
    assert [bytes(data) for _, data in read(packs[0])] == blobs


async def test_large_content_comes_in_bounded_packs(store: SnapshotStore) -> None:
    blobs = [os.urandom(1 << 20) for _ in range(36)]
    for start in range(0, 36, 12):
        await store.put_pack(pack_of(*blobs[start : start + 12]))
    packs = [pack async for pack in store.fetch(map(digest, blobs))]
    assert max(map(len, packs)) <= 20 << 20
    assert sorted(bytes(data) for pack in packs for _, data in read(pack)) == sorted(blobs)


async def test_a_pack_that_lies_is_refused(store: SnapshotStore) -> None:
    pack = bytearray(pack_of(b"content" * 100))
    pack[5] ^= 0xFF
    with pytest.raises((BadRequest, HostileArchive)):
        await store.put_pack(bytes(pack))
    with pytest.raises(BadRequest):
        await store.put_pack(b"")
    assert await store.missing([digest(b"content" * 100)])


async def test_owners_share_nothing(objects: Objects) -> None:
    mine, yours = SnapshotStore(objects, "me"), SnapshotStore(objects, "you")
    await mine.put_pack(pack_of(b"secret"))
    await mine.commit("s", tree(a=b"secret"))
    assert await yours.missing([digest(b"secret")])
    with pytest.raises(BlobsMissing):
        await yours.commit("s", tree(a=b"secret"))
    with pytest.raises(SnapshotNotFound):
        await yours.load("s")
    for name in ("..", "a/b", "", ".hidden"):
        with pytest.raises(BadRequest):
            SnapshotStore(objects, name)
        with pytest.raises(BadRequest):
            await mine.load(name)
    mine.close()
    yours.close()


async def test_snapshots_are_numbered_and_all_stay_readable(store: SnapshotStore) -> None:
    trees = []
    for number in range(1, 13):
        files = {f"file{n}": b"%d" % n for n in range(number * 20)}
        await store.put_pack(pack_of(*set(files.values())))
        trees.append(tree(**files))
        head = await store.commit("s", trees[-1], reason="autosave", generation=3)
        assert (head.number, head.files, head.reason, head.generation) == (number, number * 20, "autosave", 3)
    heads = await store.heads("s")
    assert [head.number for head in heads] == list(range(1, 13))
    assert 1 < len({head.base for head in heads}) < 12  # some carry all, some a delta
    for number, manifest in enumerate(trees, 1):
        head, loaded = await store.load("s", number)
        assert loaded == manifest
        assert head == heads[number - 1]
        assert head.digest == manifest.digest.hex()
    assert (await store.load("s"))[1] == trees[-1]
    assert await store.latest("s") == heads[-1]


async def test_a_small_change_in_a_large_tree_is_a_small_head(objects: Objects, store: SnapshotStore) -> None:
    files = {f"file{n}": os.urandom(8) for n in range(2000)}
    await store.put_pack(pack_of(*files.values()))
    await store.commit("s", tree(**files))
    await store.put_pack(pack_of(b"news"))
    head = await store.commit("s", tree(**files | {"file7": b"news"}))
    sizes = await objects.list("local/sessions/s/heads")
    assert head.base == 1
    assert sizes["local/sessions/s/heads/000002"] < 1000 < sizes["local/sessions/s/heads/000001"]


async def test_of_several_writers_of_one_number_one_wins(store: SnapshotStore) -> None:
    await store.put_pack(pack_of(b"a", b"b"))
    trees = [tree(**{f"f{n}": b"a"}) for n in range(8)]
    results = await asyncio.gather(*(store.commit("s", t, number=1) for t in trees), return_exceptions=True)
    winners = [n for n, result in enumerate(results) if not isinstance(result, BaseException)]
    assert len(winners) == 1
    assert all(isinstance(result, HeadTaken) for n, result in enumerate(results) if n != winners[0])
    assert (await store.load("s"))[1] == trees[winners[0]]


async def test_a_writer_whose_lease_is_over_is_fenced(store: SnapshotStore) -> None:
    await store.put_pack(pack_of(b"a"))
    await store.commit("s", tree(f=b"a"), generation=2)
    with pytest.raises(HeadTaken):
        await store.commit("s", tree(g=b"a"), generation=1)
    with pytest.raises(HeadTaken):
        await store.commit("s", tree(g=b"a"), number=1, generation=2)
    assert (await store.commit("s", tree(g=b"a"), generation=2)).number == 2


async def test_a_file_cannot_lie_about_its_blobs(store: SnapshotStore) -> None:
    await store.put_pack(pack_of(b"seven b"))
    entries = [
        Entry(b"workspace", Kind.DIR, 0o755),
        Entry(b"workspace/f", Kind.FILE, size=1000, blobs=(digest(b"seven b"),)),
    ]
    with pytest.raises(HostileArchive):
        await store.commit("s", Manifest(entries))


async def test_deleting_a_session_leaves_the_others(store: SnapshotStore) -> None:
    await store.put_pack(pack_of(b"a"))
    for session in ("s", "t"):
        await store.commit(session, tree(f=b"a"))
        await store.commit(session, tree(g=b"a"))
    await store.delete_session("s")
    await store.delete_session("s")
    assert await store.heads("s") == []
    assert await store.latest("s") is None
    assert (await store.load("t"))[1] == tree(g=b"a")


# ---------------------------------------------------------------------------------------------- the index


async def test_the_index_is_made_again_from_the_store_alone(tmp_path: Path) -> None:
    objects, index = Objects.in_directory(tmp_path / "store"), tmp_path / "index"
    first = SnapshotStore(objects, "local", index)
    blobs = [os.urandom(10) for _ in range(5000)]  # an index longer than the tail that is read first
    await first.put_pack(pack_of(*blobs))
    first.close()
    for damage in (lambda: None, lambda: index.write_bytes(b"no database" * 1000), index.unlink):
        damage()
        again = SnapshotStore(objects, "local", index)
        assert await again.missing(map(digest, blobs)) == []
        again.close()


async def test_the_index_forgets_packs_that_are_gone_or_damaged(tmp_path: Path) -> None:
    objects, index = Objects.in_directory(tmp_path / "store"), tmp_path / "index"
    first = SnapshotStore(objects, "local", index)
    await first.put_pack(pack_of(b"both", b"one"))
    await first.put_pack(pack_of(b"both", b"two"))
    (one,) = [path for path in (tmp_path / "store/local/packs").iterdir() if b"one" in path.read_bytes()]
    first.close()
    one.unlink()
    (tmp_path / "store/local/packs/half").write_bytes(pack_of(b"half")[:-3])
    again = SnapshotStore(objects, "local", index)
    assert await again.missing(map(digest, (b"both", b"one", b"two", b"half"))) == [digest(b"one"), digest(b"half")]
    again.close()


async def test_a_pack_that_vanishes_under_the_server_is_an_error_not_a_wrong_answer(tmp_path: Path) -> None:
    store = SnapshotStore(Objects.in_directory(tmp_path), "local")
    await store.put_pack(pack_of(b"a"))
    for path in (tmp_path / "local/packs").iterdir():
        path.unlink()
    with pytest.raises(StoreFailed):
        await content(store, tree(f=b"a"))
    store.close()


async def test_a_pack_cut_short_is_asked_for_again(tmp_path: Path) -> None:
    objects, index = Objects.in_directory(tmp_path / "store"), tmp_path / "index"
    store = SnapshotStore(objects, "local", index)
    pack = pack_of(os.urandom(1000), b"a")
    await store.put_pack(pack)
    (path,) = (tmp_path / "store/local/packs").iterdir()

    path.write_bytes(pack[:10])  # under a server that runs: noticed by whoever reads
    assert await store.missing([digest(b"a")]) == []
    with pytest.raises(StoreFailed, match="cut short"):
        await content(store, tree(f=b"a"))
    assert await store.missing([digest(b"a")]) == [digest(b"a")]
    await store.put_pack(pack)
    assert await content(store, tree(f=b"a"))
    store.close()

    path.write_bytes(pack[:10])  # while none runs: noticed at its start
    store = SnapshotStore(objects, "local", index)
    assert await store.missing([digest(b"a")]) == [digest(b"a")]
    await store.put_pack(pack)
    assert await content(store, tree(f=b"a"))
    store.close()


async def test_an_index_damaged_in_its_middle_is_made_again(tmp_path: Path) -> None:
    objects, index = Objects.in_directory(tmp_path / "store"), tmp_path / "index"
    store = SnapshotStore(objects, "local", index)
    blobs = [os.urandom(10) for _ in range(5000)]
    await store.put_pack(pack_of(*blobs))
    store.close()
    size = index.stat().st_size
    with open(index, "r+b") as file:
        file.seek(size // 3)
        file.write(os.urandom(size // 3))
    store = SnapshotStore(objects, "local", index)
    assert await store.missing(map(digest, blobs)) == []
    store.close()


async def test_a_snapshot_whose_base_is_gone_is_passed_over(tmp_path: Path) -> None:
    store = SnapshotStore(Objects.in_directory(tmp_path), "local")
    await store.put_pack(pack_of(b"a"))
    many = {f"f{n}": b"a" for n in range(500)}
    for last in range(3):
        await store.commit("s", tree(**many, **{"g" * (last + 1): b"a"}))
    await store.commit("s", tree(a=b"a"))
    bases = {head.number: head.base for head in await store.heads("s")}
    assert bases == {1: 1, 2: 1, 3: 1, 4: 4}
    heads = tmp_path / "local/sessions/s/heads"
    (heads / "000001").unlink()
    with pytest.raises(StoreFailed, match="snapshot 1, which it builds on, is gone"):
        await store.load("s", 3)
    assert (await store.load("s"))[0].number == 4
    (heads / "000004").unlink()
    with pytest.raises(SnapshotNotFound):
        await store.load("s")
    assert (await store.commit("s", tree(b=b"a"))).number == 4
    assert (await store.load("s"))[1] == tree(b=b"a")
    store.close()


# ---------------------------------------------------------------------------------------------- faults


class Faulty(Objects):
    """Fails at its n-th operation; `after` = after having done it."""

    def __init__(self, inner: Objects, fail_at: int, fault: str) -> None:
        self._inner, self._left, self._fault = inner, fail_at, fault

    async def _maybe(self, operation: Callable[[], Awaitable[Any]], data: bytes = b"", path: str = "") -> Any:
        self._left -= 1
        if self._left == 0:
            if self._fault == "after":
                await operation()
            if self._fault == "truncated" and data:  # what a store without atomic writes would leave
                await self._inner.put(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device") if self._fault == "full" else OSError(5, "injected")
        return await operation()

    async def get(self, path: str) -> bytes:
        return await self._maybe(lambda: self._inner.get(path))

    async def tail(self, path: str, length: int) -> tuple[bytes, int]:
        return await self._maybe(lambda: self._inner.tail(path, length))

    async def ranges(self, path: str, starts: Any, ends: Any) -> list[bytes]:
        return await self._maybe(lambda: self._inner.ranges(path, starts, ends))

    async def list(self, prefix: str) -> dict[str, int]:
        return await self._maybe(lambda: self._inner.list(prefix))

    async def put(self, path: str, data: bytes) -> None:
        await self._maybe(lambda: self._inner.put(path, data), data, path)

    async def create(self, path: str, data: bytes) -> None:
        await self._maybe(lambda: self._inner.create(path, data), data, path)


@pytest.mark.parametrize("fault", ["error", "after", "truncated", "full"])
async def test_a_save_that_fails_anywhere_harms_nothing_and_can_be_repeated(tmp_path: Path, fault: str) -> None:
    """Each operation of a save fails once; the last snapshot stays readable, and the save done again succeeds."""
    before, after = tree(a=b"a"), tree(a=b"a", b=b"b")
    for fail_at in range(1, 20):
        objects = Objects.in_directory(tmp_path / f"{fail_at}")
        calm = SnapshotStore(objects, "local")
        await calm.put_pack(pack_of(b"a"))
        await calm.commit("s", before)

        async def save(store: SnapshotStore) -> None:
            await store.put_pack(pack_of(b"b"))
            await store.commit("s", after)

        faulty = SnapshotStore(Faulty(objects, fail_at, fault), "local")
        try:
            await save(faulty)
        except StoreFailed:
            pass
        else:
            break
        finally:
            faulty.close()

        fresh = SnapshotStore(objects, "local")
        _, manifest = await fresh.load("s")
        assert manifest in (before, after)
        assert await content(fresh, manifest)
        await save(fresh)
        assert (await fresh.load("s"))[1] == after
        assert await content(fresh, after) == {digest(b"a"): b"a", digest(b"b"): b"b"}
        fresh.close()
        calm.close()
    else:
        pytest.fail("a save has fewer than 20 operations")
    assert fail_at > 5


async def test_a_damaged_head_is_passed_over(tmp_path: Path) -> None:
    store = SnapshotStore(Objects.in_directory(tmp_path), "local")
    await store.put_pack(pack_of(b"a"))
    for name in ("x", "y", "z"):
        await store.commit("s", tree(**{name: b"a"}))
    heads = tmp_path / "local/sessions/s/heads"
    (heads / "000003").write_bytes((heads / "000003").read_bytes()[:-1])
    assert (await store.load("s"))[0].number == 2
    (heads / "000002").write_bytes(b"")
    assert (await store.load("s"))[1] == tree(x=b"a")
    with pytest.raises(StoreFailed):
        await store.load("s", 3)
    with pytest.raises(SnapshotNotFound):
        await store.load("s", 9)
    assert (await store.commit("s", tree(w=b"a"))).number == 4
    assert (await store.load("s"))[1] == tree(w=b"a")
    store.close()


WRITER = """
    import asyncio, sys
    from pathlib import Path
    from catty.workspace.store import SnapshotStore
    from catty.workspace.objects import Objects
    sys.path.insert(0, sys.argv[2])
    from workspace.test_store import pack_of, tree

    async def main():
        store = SnapshotStore(Objects.in_directory(Path(sys.argv[1])), "local")
        number = len(await store.numbers("s"))
        while True:
            content = b"%d" % number
            await store.put_pack(pack_of(content * 50_000))
            await store.commit("s", tree(f=content * 50_000))
            number += 1
            print(number, flush=True)

    asyncio.run(main())
"""


async def check_all(path: Path, at_least: int) -> None:
    store = SnapshotStore(Objects.in_directory(path), "local")
    heads = await store.heads("s")
    assert len(heads) >= at_least
    for head in heads:
        _, manifest = await store.load("s", head.number)
        expected = b"%d" % (head.number - 1) * 50_000
        assert await content(store, manifest) == {digest(expected): expected}
    store.close()


def test_kill_nine_leaves_every_acknowledged_snapshot(tmp_path: Path) -> None:
    for _ in range(8):
        command = [sys.executable, "-c", textwrap.dedent(WRITER), tmp_path, Path(__file__).parent.parent]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout
            acknowledged = [int(writer.stdout.readline()) for _ in range(3)]
            writer.send_signal(signal.SIGKILL)
            acknowledged += map(int, writer.stdout.read().split())
        asyncio.run(check_all(tmp_path, acknowledged[-1]))
