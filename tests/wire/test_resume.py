"""Any sequence of cuts, repetitions and restarts gives the same output, and each key exactly once."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from catty.errors import BadRequest
from catty.wire.attach import Resume, Resumed
from catty.wire.frames import NO_OFFSET, FrameType, pack, pack_json, unpack, unpack_json
from catty.wire.resume import Exited, Mark, Notice, Output, Reply, ResumeLink, Screen, Sized, Started


def resumed(epoch: str, output: int, taken: int, *, exact: bool = True) -> bytes:
    return pack_json(FrameType.RESUMED, output, Resumed(epoch, output, taken, 1 << 20, exact, 80, 24).to_json())


class ModelMachine:
    """What docs/protocol.md promises of a machine, in forty lines: output of one epoch, its ring, input marks per client."""

    def __init__(self, epoch: str, ring: int, *, trusts: bool) -> None:
        self.epoch, self.ring = epoch, ring
        self.trusts = trusts  # a client that it does not know begins where it says; else at 0
        self.output = b""
        self.taken: dict[str, int] = {}
        self.keys = b""

    def resume(self, message: bytes) -> list[bytes]:
        frame = unpack(message)
        assert frame.type is FrameType.RESUME
        self.client = (hello := Resume.from_json(unpack_json(frame), frame.offset)).client
        taken = self.taken.setdefault(hello.client, hello.input if self.trusts else 0)
        known = hello.epoch == self.epoch and hello.output != NO_OFFSET
        if known and len(self.output) - self.ring <= hello.output <= len(self.output):
            self.sent = hello.output
            return [resumed(self.epoch, hello.output, taken)]
        self.sent = len(self.output)
        return [
            resumed(self.epoch, self.sent, taken, exact=False),
            pack(FrameType.SNAPSHOT, self.sent, b"<" + self.output + b">"),
        ]

    def out(self, upto: int, overlap: int) -> bytes:
        start = max(0, self.sent - overlap)
        self.sent = max(self.sent, upto)
        return pack(FrameType.OUT, start, self.output[start : self.sent])

    def take(self, message: bytes) -> bytes:
        frame = unpack(message)
        assert frame.type is FrameType.IN
        mark = self.taken[self.client]
        assert frame.offset <= mark, "a gap in the input"
        news = bytes(frame.payload)[mark - frame.offset :]
        self.keys += news
        self.taken[self.client] = mark + len(news)
        return pack(FrameType.ACK, mark + len(news))


class ResumeMachine(RuleBasedStateMachine):
    """The link under test between a user who types numbered keys and machines that print numbered bytes."""

    messages = Bundle("messages")

    @initialize(ring=st.integers(0, 40), trusts=st.booleans())
    def begin(self, ring: int, trusts: bool) -> None:
        self.ring, self.trusts = ring, trusts
        self.epochs = 1
        self.machine = ModelMachine("epoch1", ring, trusts=trusts)
        self.link = ResumeLink("c1", limit=64)
        self.shown = b""
        self.typed = b""
        self.given = b""  # typed while `machine` was the machine, or never sent before
        self.lost = 0
        self.downstream: list[bytes] | None = None  # messages on their way to the client; None: no connection
        self.upstream: list[bytes] = []

    @rule()
    def connect(self) -> None:
        self.upstream = []
        self.downstream = self.machine.resume(self.link.opening(80, 24, fresh=False))

    @rule()
    def cut(self) -> None:
        self.downstream, self.upstream = None, []

    @rule(data=st.binary(min_size=1, max_size=20))
    def prints(self, data: bytes) -> None:
        self.machine.output += data

    @rule(data=st.binary(min_size=1, max_size=9))
    def types(self, data: bytes) -> None:
        if self.link.typed(data):
            self.typed += data
        else:
            assert self.link.pending + len(data) > 64

    @rule(share=st.floats(0, 1), overlap=st.integers(0, 8))
    def sends_output(self, share: float, overlap: int) -> None:
        if self.downstream is not None:
            upto = self.machine.sent + round(share * (len(self.machine.output) - self.machine.sent))
            self.downstream.append(self.machine.out(upto, overlap))

    @rule(count=st.integers(1, 4))
    def delivers_down(self, count: int) -> None:
        for _ in range(min(count, len(self.downstream or ()))):
            assert self.downstream
            event = self.link.received(self.downstream.pop(0))
            if isinstance(event, Output):
                self.shown += event.data
            elif isinstance(event, Screen):
                assert event.data[:1] + event.data[-1:] == b"<>"
                self.shown = event.data[1:-1]
            elif isinstance(event, Started):
                self.lost += event.lost_input

    @rule(count=st.integers(1, 4))
    def delivers_up(self, count: int) -> None:
        if self.downstream is None:
            return
        self.upstream += self.link.to_send()
        for _ in range(min(count, len(self.upstream))):
            self.downstream.append(self.machine.take(self.upstream.pop(0)))

    @rule()
    def is_made_again(self) -> None:
        self.cut()
        self.epochs += 1
        earlier = self.machine
        self.machine = ModelMachine(f"epoch{self.epochs}", self.ring, trusts=self.trusts)
        self.machine.keys = earlier.keys

    # 0 is also what a machine says that has taken nothing yet: a client that is forgotten (after 600 others came) before it heard of
    # its first key would send that again.
    @precondition(lambda self: self.link._taken or not any(self.machine.taken.values()))
    @rule()
    def forgets_its_clients(self) -> None:
        self.cut()
        self.epochs += 1  # as good as another machine, as far as input goes
        self.machine.taken.clear()

    @invariant()
    def keys_in_order_and_once(self) -> None:
        if not hasattr(self, "machine"):
            return
        if self.epochs == 1:
            assert self.typed.startswith(self.machine.keys)
            assert self.lost == 0

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        self.connect()
        for _ in range(200):
            self.delivers_down(4)
            self.delivers_up(4)
            self.sends_output(1.0, 3)
            if self.shown == self.machine.output and not self.link.pending:
                break
        assert self.shown == self.machine.output
        assert not self.link.pending
        if self.epochs == 1:
            assert self.machine.keys == self.typed
        else:  # what an ended machine was given and did not acknowledge may be lost or have been taken, never doubled
            assert len(self.typed) - self.lost <= len(self.machine.keys) <= len(self.typed)


ResumeMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestResume = ResumeMachine.TestCase


def connected(link: ResumeLink, epoch: str = "e", output: int = 0, taken: int = 0) -> None:
    link.opening(80, 24, fresh=True)
    assert isinstance(link.received(resumed(epoch, output, taken)), Started)


def test_nothing_is_sent_before_the_machine_answers() -> None:
    link = ResumeLink("c")
    link.typed(b"abc")
    assert list(link.to_send()) == []
    connected(link)
    assert [bytes(unpack(message).payload) for message in link.to_send()] == [b"abc"]
    assert list(link.to_send()) == []
    assert link.pending == 3
    assert link.unanswered
    link.received(pack(FrameType.ACK, 3))
    assert (link.pending, link.unanswered) == (0, False)


def test_a_cut_between_resumed_and_snapshot_asks_for_the_snapshot_again() -> None:
    link = ResumeLink("c")
    connected(link)
    link.received(pack(FrameType.OUT, 0, b"old"))
    link.opening(80, 24, fresh=False)
    link.received(resumed("e2", 100, 0, exact=False))
    frame = unpack(link.opening(80, 24, fresh=False))
    assert frame.offset == NO_OFFSET


def test_a_gap_in_the_output_ends_the_connection() -> None:
    link = ResumeLink("c")
    connected(link)
    link.received(pack(FrameType.OUT, 0, b"0123"))
    with pytest.raises(BadRequest):
        link.received(pack(FrameType.OUT, 5, b"x"))
    assert unpack(link.opening(80, 24, fresh=False)).offset == 4


@pytest.mark.parametrize("offset", [4, NO_OFFSET])
def test_an_acknowledgement_of_what_was_never_sent_is_refused(offset: int) -> None:
    link = ResumeLink("c")
    connected(link)
    link.typed(b"abc")
    list(link.to_send())
    with pytest.raises(BadRequest):
        link.received(pack(FrameType.ACK, offset))
    assert link.pending == 3


def test_acknowledges_every_128_kib_and_when_idle() -> None:
    link = ResumeLink("c")
    connected(link, output=1000)
    assert link.acknowledge(Mark(1, 1000), idle=True) is None
    assert link.acknowledge(Mark(1, 1000 + 128 * 1024 - 1)) is None
    message = link.acknowledge(Mark(1, 1000 + 128 * 1024))
    assert message is not None
    assert unpack(message)[:2] == (FrameType.ACK, 1000 + 128 * 1024)
    assert link.acknowledge(Mark(1, 1001 + 128 * 1024), idle=True) is not None


def test_output_of_an_earlier_epoch_is_not_acknowledged_in_a_later_one() -> None:
    link = ResumeLink("c")
    connected(link, "e1")
    connected(link, "e2")
    assert link.acknowledge(Mark(1, 1 << 20), idle=True) is None


def test_keys_of_unknown_fate_are_not_sent_to_another_machine_but_new_ones_are() -> None:
    link = ResumeLink("c")
    connected(link, "e1")
    link.typed(b"sent")
    list(link.to_send())
    link.typed(b"never sent")
    frame = unpack(link.opening(80, 24, fresh=False))
    assert unpack_json(frame)["in"] == 4
    started = link.received(resumed("e2", 0, 4, exact=False))
    assert started == Started(80, 24, lost_input=4)
    assert [unpack(message)[1:] for message in link.to_send()] == [(4, b"never sent")]


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (pack_json(FrameType.EXIT, 0, {"code": 3, "signal": None}), Exited(3, None)),
        (pack_json(FrameType.EXIT, 0, {"code": "x", "signal": 9}), Exited(None, 9)),
        (pack_json(FrameType.NOTICE, 0, {"level": "info", "code": "ttl", "message": "m"}), Notice("info", "ttl", "m")),
        (pack(FrameType.RESIZE, 0, b"\0\x50\0\x18"), Sized(80, 24)),
        (pack(FrameType.PING, 7, b"x"), Reply(pack(FrameType.PONG, 7, b"x"))),
    ],
)
def test_other_messages(message: bytes, event: object) -> None:
    link = ResumeLink("c")
    connected(link)
    assert link.received(message) == event


@given(st.binary(max_size=64))
def test_hostile_messages_raise_only_bad_request(message: bytes) -> None:
    link = ResumeLink("c")
    connected(link)
    with contextlib.suppress(BadRequest):
        link.received(message)
