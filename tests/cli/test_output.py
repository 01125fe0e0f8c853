"""Tables, ages, sizes, options."""

from __future__ import annotations

import io

import pytest

from catty.cli.output import Steps, age, note, print_error, size, table
from catty.cli.types import DURATION, MEMORY, SIZE, environment
from catty.errors import CattyError, InvalidDuration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (86400 * 3, "3d"), (-5, "0s")],
)
def test_age(seconds: float, text: str) -> None:
    assert age("2026-01-01T00:00:00.500Z", 1767225600.5 + seconds) == text
    assert age(None) == "-"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")])
def test_size(count: int, text: str) -> None:
    assert size(count) == text


def test_table() -> None:
    assert table(["A", "LONG"], [["xyz", "1"], ["", "2"]]) == "A    LONG\nxyz  1\n     2"


@pytest.mark.parametrize(
    ("text", "seconds"), [("300", 300), ("5m", 300), ("2h", 7200), ("7d", 604800), (" 90M ", 5400)]
)
def test_durations(text: str, seconds: int) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "4m", "8d", "5", "-5m", "1.5h", "h", "5 m", "٣h", "99999999999d"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(InvalidDuration):
        DURATION.convert(text, None, None)


@pytest.mark.parametrize(
    ("kind", "text", "count"),
    [
        (MEMORY, "512", 512 << 20),
        (MEMORY, "4g", 4 << 30),
        (SIZE, "512", 512),
        (SIZE, "1.5GiB", 3 << 29),
        (SIZE, "10kb", 10240),
    ],
)
def test_sizes(kind: type[SIZE], text: str, count: int) -> None:
    assert kind.convert(text, None, None) == count


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "value")
    assert environment(("MY_KEY", "OTHER=a=b", "EMPTY=")) == {"MY_KEY": "value", "OTHER": "a=b", "EMPTY": ""}
    for wrong in ("NOT_SET_HERE", "HOME=x", "1X=y", "=x"):
        with pytest.raises(CattyError):
            environment((wrong,))


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_steps_rewrite_a_line_on_a_terminal_and_are_lines_elsewhere() -> None:
    plain, live = io.StringIO(), Screen()
    for stream in (plain, live):
        steps = Steps(stream)
        steps.say("one")
        steps.say("one")
        steps.bar("sending", 5, 10, detail="5 B")
        steps.step("two", 1, 3)
        steps.done("result")
    assert plain.getvalue() == "one\ntwo\nresult\n"
    assert live.getvalue().count("\n") == 1
    assert live.getvalue().endswith("\r\x1b[Kresult\n")
    assert "50%" in live.getvalue()


def test_nothing_that_is_printed_commands_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b]0;t\x07\x9b31m\r\n\u202eb\udcff"
    print_error(CattyError(evil, hint=evil))
    note(evil)
    steps = Steps()
    steps.say(evil)
    steps.done(evil)
    captured = capsys.readouterr()
    printed = captured.out + captured.err + table([evil], [[evil]])
    assert all(letter.isprintable() for line in printed.split("\n") for letter in line)
    assert captured.err.splitlines() == [
        "error: a?]0;t??31m???b? [error]",
        "  → a?]0;t??31m???b?",
        "note: a?]0;t??31m???b?",
        *["a?]0;t??31m???b?"] * 2,
    ]
