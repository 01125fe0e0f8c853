"""The five minutes of README.md, command by command as they stand there, by a newcomer at a real terminal."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from e2e.catty import Catty
from e2e.terminal import Terminal

README = Path(__file__).parents[2] / "README.md"
LABEL = "brave-tiger"
KEY = "sk-ant-none-of-yours"
PROMPT = "bypass permissions on"

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.image]


def tour() -> list[str]:
    """The lines of README's blocks of commands."""
    text = README.read_text().partition("## Five minutes")[2].partition("\n## ")[0]
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def newcomer(catty_command: str, catty_home: Path, project: Path) -> Catty:
    return Catty(catty_command, catty_home, project, ANTHROPIC_BASE_URL="http://127.0.0.1:9")


class Tour:
    """What a newcomer does with each line; `done` are the lines that were run."""

    def __init__(self, catty: Catty) -> None:
        self.catty = catty
        self.done: list[str] = []

    def take(self, line: str) -> None:
        words = shlex.split(line)[1:]
        step = getattr(self, f"_{words[0]}", self._run)
        step(words)
        self.done.append(line)

    def _run(self, words: list[str]) -> None:
        self.catty.run(*words)

    def _secrets(self, words: list[str]) -> None:
        with self.catty.terminal(*words) as term:
            term.wait_for(":")
            term.send(f"{KEY}\r")
            assert term.wait_exit() == 0
            assert KEY not in term.screen_text

    def _new(self, words: list[str]) -> None:
        with self.catty.terminal(*words, "--env", "ANTHROPIC_BASE_URL") as term:
            # The first run offers a link on the PATH, where none is.
            if term.wait_for(PROMPT, "[Y/n]", timeout=600) != PROMPT:
                term.send("n\r")
                term.wait_for(PROMPT)
            self._leave(term)
        assert self.catty.exec(LABEL, "echo $ANTHROPIC_API_KEY").decode().strip() == KEY

    def _connect(self, words: list[str]) -> None:
        with self.catty.terminal(*words) as term:
            term.wait_for(PROMPT)
            self._leave(term)
        # What the agent might do while nobody looks.
        self.catty.exec(LABEL, "echo new > made.txt; echo changed > README.md")

    def _exec(self, words: list[str]) -> None:
        assert self.catty.run(*words).decode().splitlines() == [" M README.md", "?? made.txt"]

    def _list(self, words: list[str]) -> None:
        assert LABEL in self.catty.run(*words).decode()

    def _sync(self, words: list[str]) -> None:
        printed = self.catty.run(*words).decode()
        made = self.catty.project / "made.txt"
        if "--dry-run" in words:
            assert re.search(r"create +made.txt", printed)
            assert not made.exists()
        else:
            assert made.read_text() == "new\n"
            assert (self.catty.project / "README.md").read_text() == "changed\n"

    def _download(self, words: list[str]) -> None:
        self.catty.run(*words)
        assert (self.catty.project / "result" / "made.txt").read_text() == "new\n"

    def _stop(self, words: list[str]) -> None:
        self.catty.run(*words)
        if "--delete" in words:
            assert self.catty.run("list", "--all", "--json") == b"[]\n"
        else:
            assert self.catty.session(LABEL)["state"] == "stopped"

    def _server(self, words: list[str]) -> None:
        """One elsewhere: test_elsewhere.py runs it. Here the token, which needs none."""
        if words[1] == "token":
            assert len(self.catty.run(*words).strip()) > 20

    def _login(self, words: list[str]) -> None:
        """Nobody is at the example's address: it says so, and nothing is kept."""
        assert self.catty.call(*words, stdin=b"token\n").returncode == 7
        assert self.catty.call("logout").returncode == 3

    def _leave(self, term: Terminal) -> None:
        term.send("\x03\x03")
        assert term.wait_exit() == 130


def test_the_tour(newcomer: Catty) -> None:
    lines = tour()
    walk = Tour(newcomer)
    for line in lines:
        if line != "cd project":  # where the command line is started anyway
            walk.take(line)
    commands = {line.split()[1] for line in walk.done}
    assert commands >= {
        "new",
        "connect",
        "list",
        "exec",
        "logs",
        "sync",
        "stop",
        "download",
        "secrets",
        "server",
        "login",
    }
