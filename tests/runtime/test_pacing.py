from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from catty.constants import STALL_S
from catty.runtime.pacing import Limit, Pace, limit

WINDOW = 100


def writer(position: int = 0, now: float = 0.0) -> Pace:
    return Pace(position, viewer=False, now=now, window=WINDOW)


def viewer() -> Pace:
    return Pace(0, viewer=True, now=0.0, window=WINDOW)


def test_nobody_holds_nothing_back() -> None:
    assert limit([], 5000, 0.0) == Limit(None, float("inf"))
    assert limit([viewer()], 5000, 0.0).offset is None


def test_a_writer_allows_a_window_beyond_its_acknowledgement() -> None:
    pace = writer()
    assert limit([pace], 30, 0.0) == Limit(100, float("inf"))
    pace.send(100, 0.0)
    assert limit([pace], 100, 0.5) == Limit(100, STALL_S)
    pace.acknowledge(60, 0.5)
    assert limit([pace], 100, 0.5) == Limit(160, float("inf"))


def test_the_slowest_that_moves_sets_the_pace() -> None:
    slow, quick = writer(), writer()
    slow.acknowledge(10, 0.0)
    quick.acknowledge(90, 0.0)
    assert limit([slow, quick], 50, 0.0).offset == 110


def test_who_acknowledges_nothing_for_a_second_does_not_count() -> None:
    pace = writer()
    pace.send(100, 0.0)
    assert limit([pace], 100, STALL_S - 0.01).offset == 100
    assert limit([pace], 100, STALL_S).offset is None
    assert pace.stalled


def test_an_idle_writer_is_not_late() -> None:
    """The second begins when there is something to acknowledge, not at the last acknowledgement."""
    pace = writer()
    pace.send(100, 50.0)
    assert limit([pace], 100, 50.5).offset == 100


def test_who_has_stalled_skips_once_it_moves_again() -> None:
    pace = writer()
    pace.send(100, 0.0)
    limit([pace], 100, 2.0)
    assert pace.must_skip(0, 500)
    pace.acknowledge(100, 2.5)
    assert pace.must_skip(0, 500)
    pace.repainted(500, 2.5)
    assert not pace.stalled
    assert not pace.must_skip(0, 500)
    assert limit([pace], 520, 2.6).offset == 520  # it counts again


def test_who_has_stalled_and_missed_little_goes_on() -> None:
    pace = writer()
    pace.send(100, 0.0)
    limit([pace], 100, 2.0)
    assert not pace.must_skip(0, 180)
    assert not pace.stalled


def test_a_writer_that_moves_never_skips_but_out_of_the_ring() -> None:
    pace = writer()
    assert not pace.must_skip(0, 10_000)
    assert pace.must_skip(1, 10_000)


def test_a_viewer_skips_when_it_is_slow() -> None:
    pace = viewer()
    assert not pace.must_skip(0, WINDOW)
    assert pace.must_skip(0, WINDOW + 1)


@given(st.lists(st.tuples(st.sampled_from("apt"), st.integers(0, 300)), max_size=60), st.booleans())
def test_never_more_than_a_window_is_under_way(steps: list[tuple[str, int]], is_viewer: bool) -> None:
    """a: acknowledges, p: the program prints, t: time passes; the client sends whatever it may after each."""
    pace = Pace(0, viewer=is_viewer, now=0.0, window=WINDOW)
    end, now = 0, 0.0
    for kind, amount in steps:
        if kind == "a":
            pace.acknowledge(min(pace.sent, pace.acked + amount), now)
        elif kind == "t":
            now += amount / 100
        else:
            bound = limit([pace], end, now).offset
            end = end + amount if bound is None else max(end, min(end + amount, bound))
        while pace.sent < end and pace.room:
            if pace.must_skip(max(0, end - 1000), end):
                pace.repainted(end, now)
                break
            pace.send(min(end, pace.sent + pace.room), now)
            assert pace.sent - pace.acked <= WINDOW
        assert pace.sent <= end
