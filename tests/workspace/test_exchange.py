"""Messages and large objects over one connection: order, bounds, and sides that break the rules."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from catty.constants import PACK_MAX_BYTES, TRANSFER_WINDOW_BYTES
from catty.errors import BadRequest, SaveFailed
from catty.workspace.exchange import Exchange, Kind, Object, join_digests, split_digests
from workspace.channels import pair


async def test_messages_and_objects_arrive_in_order() -> None:
    one, two = pair()
    data = os.urandom(3 << 20)
    async with Exchange(one) as here, Exchange(two) as there:
        await here.send("save", base=None)
        await here.send_object(Kind.PACK, data)
        await here.send_object(Kind.DIGESTS, b"")
        await here.send("done", n=1)
        assert await there.expect("save") == {"type": "save", "base": None}
        assert await there.expect_object(Kind.PACK) == Object(Kind.PACK, data)
        assert await there.receive() == Object(Kind.DIGESTS, b"")
        assert (await there.receive())["n"] == 1  # type: ignore[call-overload]


async def test_objects_of_several_tasks_do_not_mix() -> None:
    one, two = pair()
    packs = [bytes([number]) * (2 << 20) for number in range(4)]
    async with Exchange(one) as here, Exchange(two) as there:
        sending = [asyncio.create_task(here.send_object(Kind.PACK, pack)) for pack in packs]
        assert sorted([(await there.expect_object(Kind.PACK)).data for _ in packs]) == packs
        await asyncio.gather(*sending)


async def test_no_more_is_under_way_than_the_window_allows() -> None:
    """The receiver takes nothing: the sender stops at the window. It takes one object: the sender goes on."""
    one, two = pair()
    size = 6 << 20
    async with Exchange(one) as here, Exchange(two) as there:
        sending = [asyncio.create_task(here.send_object(Kind.PACK, bytes(size))) for _ in range(3)]
        await asyncio.wait(sending, timeout=0.2)
        assert [task.done() for task in sending] == [True, False, False]
        assert sum(map(len, one.sent)) <= TRANSFER_WINDOW_BYTES + len(one.sent)
        for _ in sending:
            assert len((await there.expect_object(Kind.PACK)).data) == size
        await asyncio.gather(*sending)


async def test_both_sides_may_send_much_at_once() -> None:
    one, two = pair()
    data = bytes(16 << 20)
    async with Exchange(one) as here, Exchange(two) as there, asyncio.timeout(20):

        async def talk(side: Exchange) -> None:
            sending = asyncio.create_task(side.send_object(Kind.PACK, data))
            assert (await side.expect_object(Kind.PACK)).data == data
            await sending

        await asyncio.gather(talk(here), talk(there))


@pytest.mark.parametrize(
    "message",
    [
        "no json",
        "[]",
        "{}",
        '{"type": 1}',
        "[" * 100_000,
        '{"type": "x", "y": "' + "y" * (1 << 20) + '"}',
        '{"type": "ack", "received": 5}',
        '{"type": "ack", "received": "x"}',
        b"",
        b"\x7fwho knows",
        b"\x03" + bytes((1 << 20) + 1),
    ],
)
async def test_messages_that_break_the_rules_end_the_exchange(message: str | bytes) -> None:
    one, two = pair()
    async with Exchange(one) as here:
        await two.send(message)
        with pytest.raises(BadRequest):
            await here.receive()
        with pytest.raises(BadRequest):
            await here.receive()


async def test_what_came_before_the_end_is_still_given_out() -> None:
    one, two = pair()
    async with Exchange(one) as here:
        await two.send('{"type": "last"}')
        two.close()
        await asyncio.sleep(0)
        assert await here.receive() == {"type": "last"}
        with pytest.raises(ConnectionError):
            await here.receive()
        with pytest.raises(ConnectionError):
            await here.send_object(Kind.PACK, bytes(20 << 20))


async def test_a_side_that_ignores_the_window_is_refused() -> None:
    one, two = pair()
    async with Exchange(one) as here:
        for _ in range((TRANSFER_WINDOW_BYTES >> 20) + 1):
            await two.send(b"\x03" + bytes(1 << 20))
        with pytest.raises(BadRequest):
            await hear_all(here)


async def hear_all(exchange: Exchange) -> None:
    while True:
        await exchange._hear()


async def test_an_object_without_end_is_refused() -> None:
    one, two = pair()

    async def flood() -> None:
        sent = acknowledged = 0
        while not two.closed:
            if sent - acknowledged < TRANSFER_WINDOW_BYTES:
                await two.send(b"\x03" + bytes(1 << 20))
                sent += 1 << 20
            else:
                acknowledged = json.loads(await two.receive())["received"]

    async with Exchange(one) as here, asyncio.timeout(20):
        flooding = asyncio.create_task(flood())
        with pytest.raises(BadRequest):
            await here.receive()
        assert here._taken <= PACK_MAX_BYTES
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)


async def test_silence_is_noticed_and_work_is_not_silence() -> None:
    one, _ = pair()
    async with Exchange(one, idle=0.05) as here:
        with pytest.raises(TimeoutError):
            await here.receive()
        with pytest.raises(TimeoutError):
            await here.send_object(Kind.PACK, bytes(20 << 20))
    one, two = pair()
    async with Exchange(one, idle=0.1) as here, Exchange(two, idle=0.1) as there:
        waiting = asyncio.create_task(here.receive())
        await asyncio.sleep(0.4)
        assert not waiting.done()
        await there.send("at last")
        assert await waiting == {"type": "at last"}


async def test_the_other_side_learns_what_went_wrong() -> None:
    one, two = pair()
    async with Exchange(two) as there:
        with pytest.raises(SaveFailed):
            async with Exchange(one):
                raise SaveFailed(reason="out of ideas")
        with pytest.raises(SaveFailed, match="out of ideas"):
            await there.expect("done")


def test_digests() -> None:
    digests = [bytes([number]) * 32 for number in range(5)]
    assert split_digests(join_digests(digests)) == digests
    with pytest.raises(BadRequest):
        split_digests(b"x" * 33)
