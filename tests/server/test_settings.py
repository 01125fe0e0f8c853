"""Options, environment, and what does not fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from catty.errors import UsageError
from catty.server.settings import Settings, documented, from_arguments

DOCS = Path(__file__).parents[2] / "docs" / "server.md"


def test_the_option_wins_over_the_environment() -> None:
    environment = {"CATTY_SERVER_DATA": "/a", "CATTY_SERVER_IMAGE": "b", "CATTY_SERVER_EMBEDDED": "1"}
    settings = from_arguments(["--data", "/c"], environment)
    assert (settings.data, settings.image, settings.embedded) == (Path("/c"), "b", True)


def test_defaults() -> None:
    settings = from_arguments(["--data", "/d"], {})
    assert settings.address == ("127.0.0.1", 4815)
    assert settings.socket_path == Path("/d/api.sock")
    assert not settings.embedded


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--data", "/d", "--listen", "0.0.0.0:4815"],
        ["--data", "/d", "--listen", ":4815"],
        ["--data", "/d", "--listen", "192.0.2.7:4815"],
        ["--data", "/d", "--listen", "127.example.org:4815"],
        ["--data", "/d", "--listen", "4815"],
        ["--data", "/d", "--listen", "localhost:x"],
        ["--data", "/d", "--listen", "localhost:70000"],
        ["--data", "/d", "--tls-cert", "c"],
    ],
)
def test_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        from_arguments(arguments, {})


def test_elsewhere_with_tls_or_a_proxy() -> None:
    assert from_arguments(["--data", "/d", "--listen", "[::]:1", "--tls-cert", "c", "--tls-key", "k"], {}).address == (
        "::",
        1,
    )
    assert Settings(Path("/d"), listen="0.0.0.0:1", insecure=True).address == ("0.0.0.0", 1)
    assert Settings(Path("/d"), listen="").address is None


def test_every_setting_is_documented() -> None:
    text = DOCS.read_text()
    for name, help_ in documented().items():
        assert f"`--{name.replace('_', '-')}`" in text
        assert help_ in text
