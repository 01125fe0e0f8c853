"""What the first run does, what the second does not, and how work in the server's environment reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from catty.client.config import Home, home
from catty.errors import EngineNotFound, InternalError
from catty.image.identity import current_image
from catty.setup import firstrun, tasks
from catty.setup.podman import InstallPlan


class Shown:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def step(self, text: str, done: int, total: int) -> None:
        self.lines.append(f"{text} {done}/{total}")

    done = say


class Server:
    """Counts what is asked of the embedded server."""

    ensured = 0

    def ensure(self) -> None:
        self.ensured += 1


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("CATTY_HOME", str(tmp_path / "home"))
    return home()


def never(question: str) -> bool:
    raise AssertionError(question)


def test_a_second_run_does_no_work(at: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(tasks, "run", lambda task, data, progress: done.append(task))
    monkeypatch.setattr("catty.setup.podman.plan_install", lambda: done.append("plan"))
    server: Any = Server()
    for _ in range(3):
        firstrun.ensure(at, server, Shown(), never)
    assert done == ["plan", "image"]
    assert server.ensured == 3
    firstrun.ensure(at, server, Shown(), never, again=True)
    assert done == ["plan", "image"] * 2


def test_a_failed_build_is_tried_again(at: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(task: str, data: Path, progress: Any) -> None:
        raise EngineNotFound

    monkeypatch.setattr(tasks, "run", fails)
    monkeypatch.setattr("catty.setup.podman.plan_install", lambda: None)
    server: Any = Server()
    for _ in range(2):
        with pytest.raises(EngineNotFound):
            firstrun.ensure(at, server, Shown(), never)
    assert server.ensured == 0


@pytest.mark.parametrize(("root", "ci", "answer", "installs"), [(False, "", True, True), (False, "", False, False), (True, "", None, True), (False, "1", None, True)])  # fmt: skip
def test_an_installation_is_told_and_asked_for(
    at: Home, monkeypatch: pytest.MonkeyPatch, root: bool, ci: str, answer: bool | None, installs: bool
) -> None:
    plan = InstallPlan(("this installs:", "  apt-get install podman"), (("false",),))
    installed: list[InstallPlan] = []
    monkeypatch.setattr("os.geteuid", lambda: 0 if root else 1000)
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr("catty.setup.podman.plan_install", lambda: plan)
    monkeypatch.setattr("catty.setup.podman.install", lambda plan, say: installed.append(plan))
    monkeypatch.setattr(tasks, "run", lambda task, data, progress: None)
    shown, server = Shown(), Server()

    def confirm(question: str) -> bool:
        assert answer is not None, "nobody is to be asked"
        return answer

    if installs:
        firstrun.ensure(at, server, shown, confirm)  # type: ignore[arg-type]
    else:
        with pytest.raises(EngineNotFound):
            firstrun.ensure(at, server, shown, confirm)  # type: ignore[arg-type]
    assert shown.lines[:2] == list(plan.lines)
    assert bool(installed) is installs


def test_the_link_is_offered_once(at: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_home = tmp_path / "user"
    monkeypatch.setenv("HOME", str(user_home))
    monkeypatch.setenv("PATH", str(user_home / ".local" / "bin"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    program = tmp_path / "catty"
    program.touch()
    firstrun.offer_link(at, program, Shown(), lambda question: True)
    assert (user_home / ".local" / "bin" / "catty").readlink() == program
    firstrun.offer_link(at, program, Shown(), never)


def test_the_helper_passes_on_progress_results_and_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tasks.run("rotate-token", tmp_path / "data", lambda *_: None)
    assert (tmp_path / "data" / "token").read_text().strip() == token
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(EngineNotFound):
        tasks.run("image", tmp_path / "data", lambda *_: None)
    with pytest.raises(InternalError):
        tasks.run("nonsense", tmp_path / "data", lambda *_: None)


@pytest.mark.engine
def test_the_session_image_is_there(tmp_path: Path, session_image: str) -> None:
    told: list[tuple[str, int, int]] = []
    assert tasks.run("image", tmp_path / "data", lambda *step: told.append(step)) == session_image == current_image()
