"""`catty server` takes every setting that docs/server.md names, and hands it on as it was given."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from catty.cli.main import cli
from catty.server.settings import documented
from catty.setup.foreground import arguments, options


def test_every_setting_is_an_option() -> None:
    shown = CliRunner().invoke(cli, ["server", "--help"]).output
    assert set(options()) == set(documented()) - {"embedded"}
    for name in options():
        assert f"--{name.replace('_', '-')}" in shown


def test_what_is_given_is_handed_on() -> None:
    given = {"tls_cert": "c.pem", "insecure": True, "listen": "", "data": None, "hosts": None}
    assert arguments(given, Path("/home/server"), {}) == [
        *("--tls-cert", "c.pem", "--insecure", "--listen", ""),
        *("--data", "/home/server"),
    ]
    assert "--data" not in arguments(given, Path("/home/server"), {"CATTY_SERVER_DATA": "/srv"})
    assert arguments({"data": "/d"}, Path("/home/server"), {"CATTY_SERVER_DATA": "/srv"}) == ["--data", "/d"]
