"""What counts as activity (docs/behaviour.md, "Session"), and when a session's time is over."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catty import constants
from catty.server.sessions.activity import Activity, Verdict, warning_lead
from catty.wire.control import Status

QUIET = Status("running", None, None, 0, 0, 0, None, None, 0, 0.0)


def observed(*reports: tuple[float, Status]) -> Activity:
    activity = Activity(reports[0][0])
    for now, status in reports:
        activity.observe(now, status)
    return activity


def test_silence_is_inactivity_though_a_client_is_attached() -> None:
    attached = replace(QUIET, clients=3, output=10, input=10)
    assert observed((0, attached), (50, attached), (100, attached)).idle(100) == 100


@pytest.mark.parametrize("change", [{"input": 1}, {"output": 1}, {"execs": 1}])
def test_a_byte_or_an_exec_is_activity(change: dict[str, int]) -> None:
    activity = observed((0, QUIET), (100, replace(QUIET, **change)))
    assert activity.idle(101) == 1


def test_an_exec_that_goes_on_is_activity_all_the_time() -> None:
    running = replace(QUIET, execs=1)
    assert observed((0, running), (100, running), (200, running)).idle(200) == 0


def test_what_reports_do_not_show_counts_when_told() -> None:
    activity = observed((0, QUIET), (100, QUIET))
    activity.active(90)
    activity.observe(105, QUIET)
    assert activity.idle(105) == 15


@pytest.mark.parametrize(("share", "active"), [(0.06, True), (0.04, False)])
def test_a_busy_machine_is_active_though_it_prints_nothing(share: float, active: bool) -> None:
    reports = [(now, replace(QUIET, cpu_seconds=share * now)) for now in range(0, 3601, 5)]
    assert (observed(*reports).idle(3600) < 60) == active


def test_a_short_burst_is_not_activity() -> None:
    reports = [(now, replace(QUIET, cpu_seconds=2.0 if now > 300 else 0.0)) for now in range(0, 601, 5)]
    assert observed(*reports).idle(600) == 600


def test_counters_that_start_again_are_no_activity_by_themselves() -> None:
    reports = [(now, replace(QUIET, cpu_seconds=100.0 if now < 300 else 0.0)) for now in range(0, 601, 5)]
    assert observed(*reports).idle(600) == 600


def test_the_first_report_of_an_adopted_machine_says_how_long_it_was_idle() -> None:
    activity = Activity(1000, idle=500)
    activity.observe(1000, replace(QUIET, output=7, output_age=40.0, input_age=300.0))
    assert activity.idle(1000) == 40
    assert Activity(1000, idle=500).idle(1000) == 500


def test_warning_comes_once_per_stretch() -> None:
    activity, ttl = Activity(0), 7200.0
    assert activity.judge(6899, ttl) is Verdict.GO_ON
    assert activity.judge(6901, ttl) is Verdict.WARN
    assert activity.judge(6950, ttl) is Verdict.GO_ON
    assert activity.judge(7200, ttl) is Verdict.END
    activity.observe(7200, QUIET)
    activity.observe(7201, replace(QUIET, output=1))
    assert activity.judge(7202, ttl) is Verdict.GO_ON
    assert activity.judge(7201 + 6901, ttl) is Verdict.WARN


def test_a_warning_that_nobody_can_hear_comes_later() -> None:
    activity, ttl = Activity(0), 7200.0
    assert activity.judge(6950, ttl, can_warn=False) is Verdict.GO_ON
    assert activity.judge(6960, ttl) is Verdict.WARN


def test_a_server_that_was_away_looks_and_warns_before_it_ends_anything() -> None:
    silent, busy, ttl = Activity(0, idle=86400), Activity(0, idle=86400), 7200.0
    assert silent.judge(0, ttl, can_warn=False) is Verdict.GO_ON  # its machine does not answer yet
    assert silent.judge(1, ttl) is Verdict.WARN
    assert silent.judge(299, ttl) is Verdict.GO_ON
    assert silent.judge(300, ttl) is Verdict.END
    for now in range(0, 301, 5):  # computed all the time, and printed nothing
        busy.observe(now, replace(QUIET, cpu_seconds=5000.0 + now))
    assert busy.judge(300, ttl) is Verdict.GO_ON


def test_a_short_time_to_live_is_not_all_warning() -> None:
    assert warning_lead(constants.TTL_MIN_S) == constants.TTL_MIN_S / 2
    assert warning_lead(constants.TTL_DEFAULT_S) == constants.TTL_WARNING_S


@given(
    st.lists(
        st.builds(
            Status,
            agent=st.text(),
            exit_code=st.none(),
            exit_signal=st.none(),
            clients=st.integers(),
            output=st.integers(),
            input=st.integers(),
            output_age=st.none() | st.floats(),
            input_age=st.none() | st.floats(),
            execs=st.integers(),
            cpu_seconds=st.floats(),
        ),
        max_size=20,
    )
)
def test_no_report_breaks_the_clock(reports: list[Status]) -> None:
    activity = Activity(0.0)
    for number, report in enumerate(reports):
        activity.observe(float(number), report)
        assert 0 <= activity.idle(float(number)) <= number
        assert math.isfinite(activity.idle(float(number)))
        assert activity.judge(float(number), 300) is not Verdict.END
