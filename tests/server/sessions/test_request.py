"""What a request for a session may say."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catty import errors
from catty.server.sessions.request import check_environment, parse_new_session


def test_defaults() -> None:
    new = parse_new_session({})
    assert (new.agent, new.name, new.ttl_sec, new.cpus, new.memory_mb) == ("claude", "", 7200, 2.0, 4096)
    assert (new.upload, new.prompts, new.request_id, new.env) == (False, False, None, {})


def test_settings_and_secrets_are_one_environment_and_never_shown() -> None:
    new = parse_new_session({"env": {"A": "canary-1"}, "secrets": {"B": "canary-2"}})
    assert new.env == {"A": "canary-1", "B": "canary-2"}
    assert "canary" not in repr(new)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ([], errors.BadRequest),
        ({"agent": "emacs"}, errors.UnknownAgent),
        ({"agent": 7}, errors.BadRequest),
        ({"name": "Großer Tiger"}, errors.InvalidLabel),
        ({"name": "0b0c5a4e-3f7e-4b8e-9d0a-5b1f5f3e8a11"}, errors.InvalidLabel),
        ({"ttl_sec": 299}, errors.InvalidDuration),
        ({"ttl_sec": 7 * 86400 + 1}, errors.InvalidDuration),
        ({"ttl_sec": True}, errors.BadRequest),
        ({"cpus": 0}, errors.InvalidLimit),
        ({"cpus": math.nan}, errors.InvalidLimit),
        ({"cpus": "2"}, errors.BadRequest),
        ({"memory_mb": 16}, errors.InvalidLimit),
        ({"workspace": "tape"}, errors.BadRequest),
        ({"cols": 70000}, errors.InvalidLimit),
        ({"env": {"PATH": "/bin"}}, errors.ReservedName),
        ({"secrets": {"LD_PRELOAD": "x"}}, errors.ReservedName),
        ({"secrets": {"CATTY_TOKEN": "x"}}, errors.ReservedName),
        ({"secrets": {"1A": "x"}}, errors.InvalidName),
        ({"secrets": {"A": "x\0y"}}, errors.BadRequest),
        ({"secrets": {"A": "\ud800"}}, errors.BadRequest),
        ({"secrets": {"A": 1}}, errors.BadRequest),
        ({"request_id": "x" * 65}, errors.BadRequest),
    ],
)
def test_what_does_not_fit_is_refused(body: Any, error: type[errors.CattyError]) -> None:
    with pytest.raises(error):
        parse_new_session(body)


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=6)))
def test_no_error_repeats_a_value(env: dict[str, str]) -> None:
    marked = {name: f"canary-{value}" for name, value in env.items() if "canary" not in name}
    told = ""
    try:
        check_environment(marked)
    except errors.CattyError as error:
        told = f"{error.message} {error.hint} {error.fields}"
    assert "canary" not in told


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
)
KEYS = st.sampled_from(
    ["agent", "name", "ttl_sec", "cpus", "memory_mb", "env", "secrets", "workspace", "cols", "request_id"]
)


@given(st.dictionaries(KEYS, JSON) | JSON)
def test_anything_else_is_a_usage_error(body: Any) -> None:
    with contextlib.suppress(errors.UsageError):
        parse_new_session(body)
