"""The main job: the real Claude Code, in a real machine, through the real command line in a real terminal.

The model is a scripted stub of the Messages API that runs inside the machine (messages_stub.py). Assertions are on files, commits and
the stub's log of requests, never on what the agent says of itself: `test_a_lying_model_fails` runs the same job with a stub that
only claims to be done, and expects every check to notice.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.catty import Catty, machine_tree, tree
from e2e.terminal import Terminal

HERE = Path(__file__).parent
PORT = 18080
API_KEY = "sk-ant-api03-canary-7c1f0e52c9-main-job"
LAST_WORDS = "Everything is in place."

TEXT = {"type": "text", "text": LAST_WORDS}
HONEST: list[list[dict[str, Any]]] = [
    [
        {
            "type": "tool_use",
            "name": "Write",
            "input": {"file_path": "/workspace/hello.py", "content": "print('hello')\n"},
        }
    ],
    [
        {
            "type": "tool_use",
            "name": "Edit",
            "input": {"file_path": "/workspace/hello.py", "old_string": "hello", "new_string": "hello from catty"},
        }
    ],
    [
        {
            "type": "tool_use",
            "name": "Bash",
            "input": {
                "command": "python3 hello.py > out.txt && git add -A && git commit -qm 'made by claude'",
                "description": "run it",
            },
        }
    ],
    [TEXT],
]
LYING = [[TEXT]]

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.image]


@pytest.fixture
def catty(catty_command: str, catty_home: Path, project: Path) -> Catty:
    return Catty(catty_command, catty_home, project, ANTHROPIC_API_KEY=API_KEY)


@pytest.fixture
def label(catty: Catty, request: pytest.FixtureRequest) -> Iterator[str]:
    """A running session with the stub's script in its machine; removed afterwards."""
    label = catty.new("--env", "ANTHROPIC_API_KEY", "--env", f"ANTHROPIC_BASE_URL=http://127.0.0.1:{PORT}")
    script: list[list[dict[str, Any]]] = request.param
    catty.exec(label, "cat > /tmp/stub.py", (HERE / "messages_stub.py").read_bytes())
    catty.exec(label, "cat > /tmp/script.json", json.dumps(script).encode())
    catty.exec(
        label, f"setsid python3 /tmp/stub.py {PORT} /tmp/stub.log /tmp/script.json >/tmp/stub.out 2>&1 </dev/null &"
    )
    catty.exec(
        label,
        f"for i in $(seq 100); do curl -s -o /dev/null http://127.0.0.1:{PORT}/ && exit 0; sleep 0.1; done; cat /tmp/stub.out; exit 1",
    )
    yield label
    catty.run("stop", label, "--delete")


def ask(term: Terminal, text: str) -> None:
    """Type a task at Claude's prompt and wait for its last words."""
    term.wait_for("bypass permissions on", timeout=60)
    term.send(text)
    term.wait_for(text)
    term.send("\r")
    term.wait_for(LAST_WORDS, timeout=60)


def check_work(catty: Catty, label: str, download: Path) -> None:
    """What was asked for was done: in the requests, in the files, in the history."""
    log = [json.loads(line) for line in catty.exec(label, "cat /tmp/stub.log").splitlines()]
    assert [entry["turn"] for entry in log] == [0, 1, 2, 3]
    assert all(API_KEY in entry["key"] for entry in log)
    assert (download / "out.txt").read_text() == "hello from catty\n"
    assert (download / "hello.py").read_text() == "print('hello from catty')\n"
    history = subprocess.run(
        ["git", "-C", str(download), "log", "--format=%s"], capture_output=True, text=True, check=True
    )
    assert history.stdout.split("\n")[:2] == ["made by claude", "first"]


@pytest.mark.parametrize("label", [HONEST], indirect=True, ids=["honest"])
def test_the_main_job(catty: Catty, label: str, project: Path, tmp_path: Path) -> None:
    with catty.terminal("connect", label) as term:
        ask(term, "make it so")
        term.send(b"\x03")
        term.send(b"\x03")
        assert term.wait_exit() == 130
    # Sync-back: the local directory has what Claude made, and its git directory is untouched.
    assert (project / "out.txt").read_text() == "hello from catty\n"
    local = subprocess.run(
        ["git", "-C", str(project), "log", "--format=%s"], capture_output=True, text=True, check=True
    )
    assert local.stdout == "first\n"

    with catty.terminal("connect", label) as term:
        term.wait_for(LAST_WORDS)
        term.wait_for("make it so")
        term.send(b"\r~.")
        assert term.wait_exit() == 130

    running = catty.run("download", label, str(tmp_path / "running"))
    assert running is not None
    expected = machine_tree(catty, label, tmp_path / "machine")
    check_work(catty, label, tmp_path / "running")
    catty.run("stop", label)
    assert catty.session(label)["state"] == "stopped"
    catty.run("download", label, str(tmp_path / "stopped"))
    assert tree(tmp_path / "stopped") == expected
    assert {"README.md", "run.sh", "link", "empty", ".git", ".gitignore"} <= set(os.listdir(tmp_path / "stopped"))
    assert not (tmp_path / "stopped" / "ignored").exists()
    subprocess.run(["git", "-C", str(tmp_path / "stopped"), "fsck", "--strict"], check=True, capture_output=True)


@pytest.mark.parametrize("label", [LYING], indirect=True, ids=["lying"])
def test_a_lying_model_fails(catty: Catty, label: str, project: Path, tmp_path: Path) -> None:
    with catty.terminal("connect", label) as term:
        ask(term, "make it so")
        term.send(b"\x03")
        term.send(b"\x03")
        assert term.wait_exit() == 130
    catty.run("download", label, str(tmp_path / "out"))
    with pytest.raises(AssertionError):
        check_work(catty, label, tmp_path / "out")
    assert not (project / "out.txt").exists()
