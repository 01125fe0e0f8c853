"""Errors as a line, a hint and an exit code; help for everything; nothing imported too early."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from catty.cli import main as main_module
from catty.cli.main import cli, main
from catty.cli.reference import commands, errors
from catty.errors import all_errors

from .conftest import Run

DOCS = Path(__file__).parents[2] / "docs"


def every_command() -> list[tuple[str, ...]]:
    found = []
    for name in main_module._COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, sub) for sub in command.commands]
    return found


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_has_help_with_an_example(run: Run, words: tuple[str, ...]) -> None:
    ran = run(*words, "-h")
    assert ran.code == 0
    assert "Example: `" in ran.out
    summary = main_module._SUMMARIES.get(words[0])
    assert summary is not None or words[0] in main_module._ALIASES


def test_commands_md_is_made_from_the_commands() -> None:
    assert (DOCS / "commands.md").read_text() == commands(), "run: python -m catty.cli.reference commands"


def test_errors_md_is_made_from_the_errors() -> None:
    text = (DOCS / "errors.md").read_text()
    assert text == errors(), "run: python -m catty.cli.reference errors"
    assert all(f"`{error.code}`" in text for error in all_errors())


@pytest.mark.parametrize(
    ("args", "code", "name", "hint"),
    [
        (["lst"], 2, "usage", "catty list"),
        (["list", "--wrong"], 2, "usage", "catty list --help"),
        (["stop"], 2, "usage", "catty list"),
        (["new", "--ttl", "1m"], 2, "invalid-duration", "5m"),
        (["new", "--memory", "much"], 2, "usage", "512m"),
        (["new", "--agent", "emacs"], 2, "unknown-agent", "claude, codex, shell"),
        (["new", "--name", "No_Label"], 2, "invalid-label", "lower-case"),
        (["new", "--env", "NOT_SET_ANYWHERE"], 2, "usage", "NOT_SET_ANYWHERE=VALUE"),
        (["new", "--env", "PATH=/x"], 2, "reserved-name", "LD_*"),
        (["new", "--detach-keys", "ctrl-1"], 2, "usage", "ctrl-p,ctrl-q"),
        (["new", "--no-upload"], 2, "not-a-terminal", "catty new -d"),
        (["connect", "x"], 2, "not-a-terminal", "catty exec"),
        (["exec", "x"], 2, "usage", "--help"),
        (["--api", "http://example.org", "list"], 2, "usage", "https://"),
        (["--api", "https://example.org", "list"], 3, "not-logged-in", "catty login"),
        (["login", "https://127.0.0.1:9"], 2, "usage", "--token"),
        (["logout"], 3, "not-logged-in", "embedded"),
        (["secrets", "remove", "NOPE"], 4, "secret-not-found", "catty secrets list"),
        (["secrets", "set", "LD_X", "-"], 2, "reserved-name", "LD_*"),
        (["secrets", "test", "github"], 4, "secret-not-found", "catty secrets list"),
    ],
)
def test_errors_are_a_line_and_a_hint(run: Run, args: list[str], code: int, name: str, hint: str) -> None:
    ran = run(*args, stdin="value\n")
    assert ran.code == code
    assert ran.out == ""
    first, second = ran.err.strip().splitlines()[-2:]
    assert first.startswith("error: ")
    assert first.endswith(f"[{name}]")
    assert second.startswith("  → ")
    assert hint in second


def test_an_unforeseen_error_is_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catty.cli.version._server", lambda cli: 1 / 0)
    ran = run("version")
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert "ZeroDivisionError: division by zero [internal]" in ran.err
    monkeypatch.setenv("CATTY_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["version"])


def test_ctrl_c_is_clean(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(cli: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("catty.cli.version._server", interrupted)
    ran = run("version")
    assert (ran.code, ran.out, ran.err.strip()) == (130, "", "")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    script = "import sys; from catty.cli.main import main; sys.exit(main(['completion', 'bash']))"
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run([sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("args", "forbidden"),
    [
        (["--help"], {"asyncio", "http.client", "picows", "aiohttp", "cryptography", "zstandard", "catty.client.api"}),
        (["list", "--help"], {"asyncio", "picows", "aiohttp", "cryptography", "keyring", "zstandard"}),
    ],
)
def test_start_up_imports_little(args: list[str], forbidden: set[str]) -> None:
    script = (
        "import sys, json; from catty.cli.main import main; main(sys.argv[1:]); print(json.dumps(list(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
    assert not forbidden & set(json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("words", "label", "command", "user"),
    [
        (["one", "--", "ls", "-la"], "one", ("ls", "-la"), "agent"),
        (["one", "ls", "-la"], "one", ("ls", "-la"), "agent"),
        (["one", "--user", "root", "--", "ls", "--user", "x"], "one", ("ls", "--user", "x"), "root"),
        (["--user", "root", "one", "ls", "-t"], "one", ("ls", "-t"), "root"),
        (["one", "--", "--", "x"], "one", ("--", "x"), "agent"),
    ],
)
def test_which_words_of_exec_are_the_commands_own(
    words: list[str], label: str, command: tuple[str, ...], user: str
) -> None:
    exec_ = cli.get_command(click.Context(cli), "exec")
    assert exec_ is not None
    parsed = exec_.make_context("exec", list(words)).params
    assert (parsed["label"], parsed["command"], parsed["user"], parsed["tty"]) == (label, command, user, False)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Run, shell: str) -> None:
    ran = run("completion", shell)
    assert ran.code == 0
    assert "_CATTY_COMPLETE" in ran.out


def test_a_thread_that_does_not_end_keeps_nobody() -> None:
    script = (
        "import sys, threading; from catty.cli.main import program; sys.argv[1:] = ['completion', 'bash'];"
        "threading.Thread(target=threading.Event().wait).start(); program()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30, check=False)
    assert done.returncode == 0
    assert b"_catty_completion" in done.stdout
