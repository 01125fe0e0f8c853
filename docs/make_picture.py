"""Makes docs/session.svg: a real session on this machine, in a real terminal, with a scripted model (`make picture`).

Two screens: Claude Code at work, and the shell after it was left. Nothing is drawn that did not stand on the terminal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

import pyte  # noqa: E402
from pyte.screens import Char  # noqa: E402

from catty.client.config import home  # noqa: E402
from catty.setup.environment import ensure_environment  # noqa: E402
from e2e.catty import Catty  # noqa: E402  # found by the line above
from e2e.terminal import COLS, ROWS, Terminal, terminal  # noqa: E402

OUTPUT = ROOT / "docs" / "session.svg"
STUB = ROOT / "tests" / "e2e" / "messages_stub.py"
PORT = 18080
LABEL = "brave-tiger-1234"
TASK = "the greeting has a typo; mend it and commit"
LAST_WORDS = "Mended and committed"

SCRIPT: list[list[dict[str, Any]]] = [
    [
        {"type": "text", "text": "I'll look for the typo first."},
        {"type": "tool_use", "name": "Read", "input": {"file_path": "/workspace/greet.py"}},
    ],
    [
        {
            "type": "tool_use",
            "name": "Edit",
            "input": {"file_path": "/workspace/greet.py", "old_string": "Helo", "new_string": "Hello"},
        }
    ],
    [
        {
            "type": "tool_use",
            "name": "Bash",
            "input": {
                "command": "python3 greet.py && git commit -qam 'Mend the greeting'",
                "description": "Run it and commit",
            },
        }
    ],
    [{"type": "text", "text": f"{LAST_WORDS}: greet.py prints “Hello, world!” again."}],
]

NBSP = "\N{NO-BREAK SPACE}"  # renderers differ in how they keep spaces
CELL_WIDTH, CELL_HEIGHT, FONT_SIZE = 8.4, 18, 14
MARGIN, GAP, BAR = 16, 24, 28
BACKGROUND, FOREGROUND, FRAME = "#1a1b26", "#c8ccd8", "#2a2c3c"
COLOURS = {
    "black": "#414868",
    "red": "#f7768e",
    "green": "#9ece6a",
    "brown": "#e0af68",
    "blue": "#7aa2f7",
    "magenta": "#bb9af7",
    "cyan": "#7dcfff",
    "white": "#c8ccd8",
}

Screen = list[list[Char]]


def colour(name: str, default: str) -> str:
    """SVG's word for a colour of pyte's."""
    if name == "default":
        return default
    plain = name.removeprefix("bright")
    return COLOURS.get(plain, f"#{name}" if len(name) == 6 else default)


def shell_screen(output: bytes) -> pyte.Screen:
    """The screen after `output`; what was printed on the alternate screen, which pyte does not know, is gone as it is for a user."""
    screen = pyte.Screen(COLS, ROWS)
    before, _, rest = output.partition(b"\x1b[?1049h")
    pyte.ByteStream(screen).feed(before + rest.rpartition(b"\x1b[?1049l")[2])
    return screen


def cells(screen: pyte.Screen) -> Screen:
    """What stands on the screen, without empty lines at its end."""
    rows = [[screen.buffer[row][column] for column in range(screen.columns)] for row in range(screen.lines)]
    while rows and all(cell.data in ("", " ") for cell in rows[-1]):
        rows.pop()
    return rows


def drawn(screen: Screen, top: float, title: str, width: float) -> Iterator[str]:
    """SVG elements of one terminal window."""
    height = BAR + len(screen) * CELL_HEIGHT + MARGIN
    yield f'<rect x="0" y="{top}" width="{width}" height="{height}" rx="8" fill="{BACKGROUND}" stroke="{FRAME}"/>'
    for number, dot in enumerate(("#f7768e", "#e0af68", "#9ece6a")):
        yield f'<circle cx="{MARGIN + number * 18}" cy="{top + BAR / 2}" r="5" fill="{dot}"/>'
    yield f'<text x="{width / 2}" y="{top + BAR / 2 + 5}" text-anchor="middle" fill="#787c99">{escape(title)}</text>'
    for number, row in enumerate(screen):
        y = top + BAR + number * CELL_HEIGHT
        column = 0
        for style, run in groupby(row, key=lambda cell: cell._replace(data="")):
            text = "".join(cell.data for cell in run)
            yield from _run(text, style, MARGIN + column * CELL_WIDTH, y)
            column += len(text)


def _run(text: str, style: Char, x: float, y: float) -> Iterator[str]:
    front, back = colour(style.fg, FOREGROUND), colour(style.bg, BACKGROUND)
    if style.reverse:
        front, back = back, front
    width = len(text) * CELL_WIDTH
    if back != BACKGROUND:
        yield f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{CELL_HEIGHT}" fill="{back}"/>'
    if words := text.strip():
        x += (len(text) - len(text.lstrip())) * CELL_WIDTH
        weight = ' font-weight="bold"' if style.bold else ""
        slope = ' font-style="italic"' if style.italics else ""
        base = y + CELL_HEIGHT - 5
        length = f'textLength="{len(words) * CELL_WIDTH:g}"'
        yield f'<text x="{x:g}" y="{base:g}" {length} fill="{front}"{weight}{slope}>{escape(words.replace(" ", NBSP))}</text>'


def svg(screens: list[tuple[str, Screen]]) -> str:
    """One picture of all (title, screen), one below the other."""
    width = 2 * MARGIN + max(len(row) for _, screen in screens for row in screen) * CELL_WIDTH
    parts, top = [], 0.0
    for title, screen in screens:
        parts += drawn(screen, top, title, width)
        top += BAR + len(screen) * CELL_HEIGHT + MARGIN + GAP
    fonts = "ui-monospace,'DejaVu Sans Mono','Cascadia Mono',Menlo,Consolas,monospace"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {top - GAP:g}" width="{width:g}" '
        f'font-family="{fonts}" font-size="{FONT_SIZE}">'
    )
    return "\n".join([head, "<title>A session of Catty's</title>", *parts, "</svg>", ""])


def record(catty: Catty) -> list[tuple[str, Screen]]:
    """Run the session; its two screens."""
    for name, value in (("ANTHROPIC_API_KEY", "sk-ant-none"), ("ANTHROPIC_BASE_URL", f"http://127.0.0.1:{PORT}")):
        catty.run("secrets", "set", name, "-", stdin=value.encode())
    catty.run("setup", "--yes", timeout=1800)
    env = catty.env | {"PATH": f"{ROOT}:{os.environ['PATH']}", "PS1": "$ "}
    with terminal(["bash", "--norc", "--noprofile"], cwd=catty.project, env=env) as term:
        term.wait_for("$")
        term.send(f"catty new --name {LABEL}\r")
        term.wait_for("bypass permissions on", timeout=60)
        start_model(catty)
        term.send(TASK)
        term.wait_for(TASK)
        term.send("\r")
        term.wait_for(LAST_WORDS, timeout=60)
        settle(term)
        at_work = cells(term.screen)
        term.send("\x03\x03")
        for shown, command in (("disconnected", "catty list"), ("SAVED", "git diff --stat")):
            term.wait_for(shown)
            settle(term)
            term.send(f"{command}\r")
        term.wait_for("1 file changed")
        settle(term)
        return [
            (f"catty new --name {LABEL}", at_work),
            ("the same terminal, a moment later", cells(shell_screen(bytes(term.raw)))),
        ]


def start_model(catty: Catty) -> None:
    """Start the scripted model in the machine, where claude looks for one."""
    catty.exec(LABEL, "cat > /tmp/stub.py", STUB.read_bytes())
    catty.exec(LABEL, "cat > /tmp/script.json", json.dumps(SCRIPT).encode())
    catty.exec(LABEL, f"setsid python3 /tmp/stub.py {PORT} /tmp/stub.log /tmp/script.json >/dev/null 2>&1 </dev/null &")
    catty.exec(LABEL, f"until curl -s -o /dev/null http://127.0.0.1:{PORT}/; do sleep 0.1; done")


def settle(term: Terminal) -> None:
    """Until nothing new was printed for a moment."""
    seen = -1
    while len(term.raw) != seen:
        seen = len(term.raw)
        term.pump(1.5)


def main() -> None:
    """See the module's text."""
    ensure_environment("server")
    with tempfile.TemporaryDirectory(prefix="catty-") as work:
        catty_home, project = Path(work) / "home", Path(work) / "greetings"
        catty_home.mkdir()
        (catty_home / "env").symlink_to(home().root / "env")
        project.mkdir()
        (project / "greet.py").write_text('print("Helo, world!")\n')
        git = ["git", "-C", str(project), "-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
            subprocess.run([*git, *words], check=True)
        subprocess.run(["git", "-C", str(project), "config", "user.name", "Ann"], check=True)
        subprocess.run(["git", "-C", str(project), "config", "user.email", "ann@example.org"], check=True)
        catty = Catty(str(ROOT / "catty"), catty_home, project, PYTHON_KEYRING_BACKEND="keyring.backends.fail.Keyring")
        try:
            OUTPUT.write_text(svg(record(catty)))
        finally:
            catty.call("stop", "--all", "--delete", "--yes")
            catty.call("server", "stop")


if __name__ == "__main__":
    main()
