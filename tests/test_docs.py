"""Docs and code say the same: links, commands, settings, errors, routes, frames, figures. A change of one fails until the other follows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from catty import constants
from catty.cli.main import cli
from catty.client.config import Home
from catty.errors import all_errors
from catty.runtime.workspace_serve import PATHS as WORKSPACE_PATHS
from catty.server import gateway
from catty.server.api import blobs, meta, sessions, snapshots
from catty.wire.frames import FrameType

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
SOURCES = [*sorted((ROOT / "src").rglob("*.py")), ROOT / "catty"]


@cache
def text_of(path: Path) -> str:
    return path.read_text()


def by_name(path: Path) -> str:
    return path.name


# ---------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text_of(page)):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_files_that_are_named_exist(page: Path) -> None:
    """`docs/design.md`, `src/catty/runtime/`, `runtime/init*.py` (below src/catty), `test_docker.py` (one of tests/)."""
    for name in re.findall(r"(?<![\w/~.-])((?:[\w*-]+/)*[\w*-]+\.(?:md|py|toml))\b", text_of(page)):
        if name not in FOREIGN_FILES:
            anywhere = [name] if "/" in name else [name, f"**/{name}"]
            bases = (ROOT, ROOT / "src" / "catty", DOCS, ROOT / "tests")
            assert any(any(base.glob(pattern)) for base in bases for pattern in anywhere), name


FOREIGN_FILES = {
    # on the user's machine, in examples
    "config.toml",
    *(f"{name}.py" for name in ("src/new", "src/main", "old")),
}


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_nothing_foreign_is_named(page: Path) -> None:
    """No place that a reader does not have: a directory beside the checkout, a path of some machine, a registry's host."""
    text = text_of(page)
    for word in ("shared/", "/work/", "/root/", "docker.io", "ghcr.io", "quay.io", "pypi.org", "registry.npmjs"):
        assert word not in text, word


# ---------------------------------------------------------------------------------------------- commands


def examples(text: str) -> Iterator[str]:
    """Command lines of Catty's in a page, in a help text, in an error's hint."""
    for block in re.findall(r"^```sh\n(.*?)^```|((?:^    .*\n)+)", text, re.DOTALL | re.MULTILINE):
        for line in "".join(block).splitlines():
            yield from re.findall(r"(?:^|[;&|(] ?)(?:\w+=\S* )*(?:\./)?(catty [a-z-][^#|;&>)\"]*)", line.strip())
    for code in re.findall(r"`([^`\n]+)`", text):
        yield from re.findall(r"(?:^|\| |&& |\()(?:\./)?(catty [a-z-][^|;&>)\"]*)", code)


def parse(line: str) -> None:
    """Raises UsageError unless its command and options exist. A value may be a placeholder, and prose may leave arguments out."""
    words = shlex.split(line.replace("…", "").replace("|", " "))[1:]
    command: click.Command = cli
    context = click.Context(cli, info_name="catty", **cli.context_settings)
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context, info_name=command.name)
        rest = command.make_parser(context).parse_args(list(words))[1]
        if not rest or (command.get_command(context, rest[0]) is None and command.invoke_without_command):
            return
        found = command.get_command(context, rest[0])
        if found is None:
            raise click.UsageError(f"no command {rest[0]}")
        command, words = found, rest[1:]
    context = click.Context(command, parent=context, info_name=command.name)
    context.allow_interspersed_args = "--" in words or command.name != "exec"
    command.make_parser(context).parse_args(list(words))


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_example_is_a_command(page: Path) -> None:
    for line in examples(text_of(page)):
        try:
            parse(line)
        except click.UsageError as error:
            pytest.fail(f"{line}: {error.format_message()}")


def test_what_errors_advise_is_a_command() -> None:
    for error in all_errors():
        for line in examples(error.hint):
            parse(line)


def test_examples_are_found_and_wrong_ones_refused() -> None:
    found = list(examples(text_of(ROOT / "README.md")))
    assert "catty new --name brave-tiger" in found
    assert len(found) > 15
    for wrong in ("catty resume brave", "catty list --wrong", "catty secrets forget X", "catty server token --wrong"):
        with pytest.raises(click.UsageError):
            parse(wrong)


def test_readme_says_what_is_missing() -> None:
    """Commands that are planned are named as such until they exist."""
    missing = text_of(ROOT / "README.md").partition("## Not there yet")[2].partition("\n## ")[0]
    context = click.Context(cli, **cli.context_settings)
    for name in re.findall(r"\(`(\w+)`\)", missing):
        assert cli.get_command(context, name) is None, f"{name} exists"


# ---------------------------------------------------------------------------------------------- settings and files


def variables(text: str) -> set[str]:
    return set(re.findall(r"_?CATTY_[A-Z]+(?:_[A-Z]+)*\b", text))


def test_every_variable_is_documented_and_used() -> None:
    settings = text_of(DOCS / "settings.md")
    used = {name for path in SOURCES for name in variables(text_of(path))}
    used -= {"CATTY_SERVER"}  # a prefix; tests/server/test_settings.py compares what follows it with server.md
    assert used - variables(settings) == set()
    assert variables(settings) - used - {"CATTY_SERVER", "CATTY_SERVER_LISTEN"} == set()


def test_every_foreign_variable_is_documented() -> None:
    settings = text_of(DOCS / "settings.md")
    used = {
        name
        for path in SOURCES
        for name in re.findall(r"environ(?:\.get\(|\[)[\"']([A-Z_]+)", text_of(path))
        if "runtime" not in path.parts
    }
    assert {name for name in used if f"`{name}`" not in settings} == {"TERM"}  # what it always is


def test_every_key_of_the_configuration_is_documented() -> None:
    settings = text_of(DOCS / "settings.md")
    keys = {key for path in SOURCES for key in re.findall(r"settings\(\)(?:\.get\(|\[)[\"'](\w+)", text_of(path))}
    assert keys == {"api"}
    assert all(f"| `{key}` |" in settings for key in keys)


def test_every_file_of_the_home_is_documented() -> None:
    files = text_of(DOCS / "settings.md").partition("## Files")[2]
    home = Home(Path("/home-of-catty"))
    places = [getattr(home, name) for name, value in vars(Home).items() if isinstance(value, property)]
    named = {place.relative_to(home.root).parts[0] for place in places}
    named |= {
        name for path in SOURCES for name in re.findall(r"home(?:\(\))?(?:\.root)? / \"(\w[\w.-]+)\"", text_of(path))
    }
    assert len(named) > 6
    assert {name for name in named if f"`{name}`" not in files and f"`{name}/`" not in files} == set()


# ---------------------------------------------------------------------------------------------- interfaces


def test_every_route_is_documented() -> None:
    design = text_of(DOCS / "design.md")
    routes = [route for module in (meta, sessions, snapshots, blobs) for route in module.routes]
    assert len(routes) > 12
    for route in routes:
        path = route.path.replace("{number}", "{n or latest}")
        row = rf"^\| {route.method} `{re.escape(path)}[?`]"
        assert (
            re.search(row, design, re.MULTILINE)
            or f"`{path}`" in design.partition("\n|")[0]
            or (path in ("/healthz", "/readyz") and f"`{path}`" in design)
        ), f"{route.method} {path}"


def test_no_route_is_invented() -> None:
    known = {
        (route.method, route.path.replace("{number}", "{n or latest}"))
        for module in (meta, sessions, snapshots, blobs)
        for route in module.routes
    }
    rows = re.findall(r"^\| (GET|POST|PUT|DELETE|PATCH) `([^?`]+)", text_of(DOCS / "design.md"), re.MULTILINE)
    assert set(rows) <= known


def test_every_websocket_is_documented() -> None:
    design = text_of(DOCS / "design.md")
    through_the_gateway = re.search(r"\(([a-z|]+)\)$", gateway._PATH.pattern)
    assert through_the_gateway
    for name in through_the_gateway[1].split("|"):
        assert f"| WS `/v1/sessions/{{id}}/{name}`" in design
    terminal = re.findall(r'"(/\w+)": Route\(', text_of(ROOT / "src/catty/runtime/terminal.py"))
    assert len(terminal) == 4
    for path in terminal:
        assert f"| terminal | `{path}` |" in design
    for path in WORKSPACE_PATHS:
        assert f"| workspace | `{path}` |" in design


def test_every_frame_is_documented() -> None:
    protocol = text_of(DOCS / "protocol.md")
    rows = dict(re.findall(r"^\| (0x[0-9A-F]{2}) \| (\w+) \|", protocol, re.MULTILINE))
    assert rows == {f"0x{frame.value:02X}": frame.name for frame in FrameType}


def test_every_exit_code_is_documented() -> None:
    tables = {
        page: re.findall(
            r"^\| (\d+|other) \| (.*) \|$", text_of(DOCS / page).partition("## Exit codes")[2], re.MULTILINE
        )
        for page in ("behaviour.md", "commands.md")
    }
    assert tables["behaviour.md"] == tables["commands.md"]
    codes = {int(code) for code, _ in tables["commands.md"] if code != "other"}
    assert codes == {0, 130} | {error.exit_code for error in all_errors()}


# ---------------------------------------------------------------------------------------------- figures

c = constants
FIGURES = {
    "TTL_DEFAULT_S": f"{c.TTL_DEFAULT_S / 3600:g} hours without activity",
    "TTL_MIN_S": f"from {c.TTL_MIN_S / 60:g} minutes",
    "TTL_MAX_S": f"to {c.TTL_MAX_S / 86400:g} days",
    "TTL_WARNING_S": f"{c.TTL_WARNING_S / 60:g} minutes before the time-out",
    "ACTIVITY_CPU_SHARE": f"more than {c.ACTIVITY_CPU_SHARE:.0%} of a core".replace("%", " %"),
    "DOUBLE_CTRL_C_S": f"within {c.DOUBLE_CTRL_C_S:g} second disconnects",
    "PASTE_UPLOAD_LIMIT_BYTES": f"at most {c.PASTE_UPLOAD_LIMIT_BYTES / c.MIB:g} MiB",
    "RECONNECT_MAX_S": f"pauses up to {c.RECONNECT_MAX_S:g} seconds",
    "RING_BYTES": f"the last {c.RING_BYTES / c.MIB:g} MiB of output",
    "INPUT_LIMIT_BYTES": f"(up to {c.INPUT_LIMIT_BYTES / c.MIB:g} MiB) and sent, once",
    "OFFLINE_NOTICE_S": f"After {c.OFFLINE_NOTICE_S:g} second without connection",
    "AGENT_UID": f"uid {c.AGENT_UID}",
    "CPUS_DEFAULT": f"{c.CPUS_DEFAULT:g} CPUs",
    "MEMORY_DEFAULT_MB": f"{c.MEMORY_DEFAULT_MB / 1024:g} GiB of memory",
    "PIDS_LIMIT": f"{c.PIDS_LIMIT} processes",
    "DISK_REFUSE_PERCENT": f"{c.DISK_REFUSE_PERCENT:g} % full",
    "UPLOAD_LIMIT_BYTES": f"up to {c.UPLOAD_LIMIT_BYTES / c.GIB:g} GiB (`--max-upload`)",
    "MASS_DELETE_COUNT": f"More than {c.MASS_DELETE_COUNT} deletions",
    "MASS_DELETE_SHARE": f"{c.MASS_DELETE_SHARE * 100:g} % of the tree",
    "TRASH_KEEP_DAYS": f"kept {c.TRASH_KEEP_DAYS} days",
    "FIRST_SAVE_S": f"first save comes {c.FIRST_SAVE_S:g} seconds",
    "SAVE_EVERY_S": f"at most {c.SAVE_EVERY_S:g} seconds after a change",
    "SAVE_EXCLUDES": f"`{' '.join(c.SAVE_EXCLUDES)}`",
    "UPLOADS_DIR": f"/{c.UPLOADS_DIR}/",
}
# Numbers in behaviour.md that are no constants: versions, a mode, an example.
NO_FIGURES = {"Node.js 22", "Python 3 ", "(0700", "`brave-tiger-1234`"}


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_stands_in_behaviour_md(name: str) -> None:
    assert FIGURES[name] in flat(text_of(DOCS / "behaviour.md"))


def test_every_figure_of_behaviour_md_is_a_constant() -> None:
    text = flat(text_of(DOCS / "behaviour.md").partition("## Exit codes")[0])
    for known in (*FIGURES.values(), *NO_FIGURES, "exit code 130"):
        text = text.replace(known, "")
    assert re.findall(r".{0,30}\d+.{0,10}", text) == []


def test_lists_of_patterns_are_the_codes() -> None:
    workspace, behaviour = flat(text_of(DOCS / "workspace.md")), flat(text_of(DOCS / "behaviour.md"))
    assert f"`{' '.join(c.UPLOAD_EXCLUDES)}`" in workspace
    assert ", ".join(f"`{pattern}`" for pattern in c.SYNC_CONFIG_PATTERNS) in workspace
    assert ", ".join(f"`{pattern}`" for pattern in c.SYNC_CONFIG_PATTERNS) in flat(text_of(DOCS / "security.md"))
    for name in (*c.RESERVED_NAMES, *c.RESERVED_PREFIXES):
        assert f"`{name}`" in behaviour
