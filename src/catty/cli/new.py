"""`catty new`."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from catty import constants
from catty.cli.attaching import ATTACH_FLAGS, attach, attach_options, open_terminal
from catty.cli.context import Cli, pass_cli
from catty.cli.hosting import prepare_host
from catty.cli.output import Steps, note, print_json, size
from catty.cli.types import DURATION, MEMORY, SIZE, environment
from catty.cli.waiting import until_running
from catty.errors import CattyError, ImageMissing, InvalidLabel, UnknownAgent, UsageError
from catty.labels import is_label

if TYPE_CHECKING:
    from catty.client.upload import Prepared, Progress

__all__ = ["new"]

_AGENTS = ("claude", "codex", "shell")


@click.command(epilog="Example: `cd project && catty new`, or `catty new -d --json --ttl 8h`")
@click.option("-d", "--detach", is_flag=True, help="Do not attach; print the label.")
@click.option("--json", "as_json", is_flag=True, help="With -d: print the session as an object.")
@click.option("--name", metavar="LABEL", help="Its label, instead of a random one.")
@click.option("--agent", default="claude", show_default=True, metavar="|".join(_AGENTS), help="What runs in it.")
@click.option(
    "--ttl", type=DURATION, default=constants.TTL_DEFAULT_S, help="Inactivity until it ends: 5m to 7d.  [default: 2h]"
)
@click.option(
    "--cpus", type=click.FloatRange(0.1, 256), default=constants.CPUS_DEFAULT, show_default=True, help="CPU cores."
)
@click.option(
    "--memory", type=MEMORY, default=constants.MEMORY_DEFAULT_MB * constants.MIB, help="Memory.  [default: 4g]"
)
@click.option("--env", multiple=True, metavar="NAME[=VALUE]", help="An environment variable; NAME alone takes yours.")
@click.option("--no-upload", is_flag=True, help="Start with an empty workspace.")
@click.option("--no-git", is_flag=True, help="Leave .git behind.")
@click.option(
    "--max-upload", type=SIZE, default=constants.UPLOAD_LIMIT_BYTES, help="Refuse to upload more.  [default: 1g]"
)
@click.option("--no-secrets", is_flag=True, help="Do not send the stored secrets.")
@click.option("--enable-prompts", is_flag=True, help="Let the agent ask before it acts.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before setting things up.")
@attach_options
@pass_cli
def new(cli: Cli, /, **options: Any) -> int:
    """Start a session on the files of this directory, and attach to it.

    The directory is copied to the session's machine (what .gitignore excludes stays here), the agent starts in it, and its changes
    come back as it works. The session lives until `catty stop` or until nothing happened for --ttl.
    """
    flags = {name: options[name] for name in ATTACH_FLAGS}
    spec = _spec(cli, options)
    terminal = None if options["detach"] else open_terminal()
    if options["as_json"] and terminal is not None:
        raise UsageError("--json goes with -d", hint="`catty new -d --json`.")
    spec["cols"], spec["rows"] = terminal.size() if terminal else (80, 24)
    steps = Steps()

    @functools.cache
    def look() -> Prepared | None:
        if options["no_upload"]:
            return None
        from catty.client import upload

        steps.say("looking at the files")
        return upload.prepare(Path.cwd(), git=not options["no_git"], limit=options["max_upload"])

    if cli.server.embedded:
        prepare_host(cli, steps, yes=options["yes"], before=look)
    remember = functools.partial(_remember, cli, flags, git=not options["no_git"], upload=not options["no_upload"])
    try:
        session = _start(cli, spec, look, steps, remember)
    except ImageMissing:  # somebody removed it behind our back
        if not cli.server.embedded:
            raise
        prepare_host(cli, steps, yes=options["yes"], again=True)
        session = _start(cli, spec | {"request_id": _request_id()}, look, steps, remember)
    if terminal is not None:
        leave = "`~.` after Enter" if session["agent"] == "shell" else "Ctrl+C twice"
        note(
            f"{session['label']} starts {session['agent']}; {leave} disconnects, `catty connect {session['label']}` comes back"
        )
        return attach(cli, session, terminal, flags)
    if options["as_json"]:
        print_json(session)
    else:
        print(session["label"])
        if sys.stdout.isatty():
            note(f"`catty connect {session['label']}` attaches")
    return 0


def _spec(cli: Cli, options: dict[str, Any]) -> dict[str, Any]:
    """The request, as far as the command line says it. Raises UsageErrors before anything is done."""
    from catty.client.secrets import Secrets

    name, agent = options["name"], options["agent"]
    if name is not None and not is_label(name):
        raise InvalidLabel(label=name)
    if agent not in _AGENTS:
        raise UnknownAgent(agent=agent)
    spec = {
        "agent": agent,
        "ttl_sec": options["ttl"],
        "cpus": options["cpus"],
        "memory_mb": max(1, options["memory"] // constants.MIB),
        "env": environment(options["env"]),
        "secrets": {} if options["no_secrets"] else Secrets(cli.home).all(),
        "workspace": "empty" if options["no_upload"] else "upload",
        "prompts": options["enable_prompts"],
        "request_id": _request_id(),
    }
    return spec | ({"name": name} if name else {})


def _request_id() -> str:
    return os.urandom(16).hex()


def _start(
    cli: Cli,
    spec: dict[str, Any],
    look: Callable[[], Prepared | None],
    steps: Steps,
    remember: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Make the session, look at the files and send them while its machine starts, wait until it runs. What cannot be finished, or
    is interrupted, is removed again."""
    steps.say("starting the session")
    session = None
    try:
        session = cli.api.create_session(spec)
        remember(session)  # from here on a `connect` can take over, whatever becomes of this process
        if (prepared := look()) is not None:
            _send(cli, session, prepared, steps)
        return until_running(cli, session, steps)
    except BaseException as error:
        # Interrupted while it asked, it cannot know whether there is a session: asking again finds that out.
        if session is not None or not isinstance(error, Exception):
            _remove(cli, session, spec, steps)
        raise


def _remove(cli: Cli, session: dict[str, Any] | None, spec: dict[str, Any], steps: Steps) -> None:
    """Remove what was begun, and say so; a terminal that is gone takes no words."""
    from catty.client import state

    label = session["label"] if session else spec.get("name", "the session")
    said = f"{label} may be left behind; `catty list` shows it, `catty stop --delete` removes it"
    with contextlib.suppress(OSError):
        steps.say(f"removing {label}")
    try:
        session = session or cli.api.create_session(spec)
        cli.api.stop(session["id"], delete=True)
        state.forget(cli.home, session["id"])
        said = f"{session['label']} was removed"
    except CattyError as error:
        said = f"{label} is left behind: {error.message}"
    finally:
        with contextlib.suppress(OSError):
            steps.clear()
            note(said)


def _send(cli: Cli, session: dict[str, Any], prepared: Prepared, steps: Steps) -> None:
    from catty.client import upload

    def report(progress: Progress) -> None:
        detail = f"{size(progress.done_bytes)}, {progress.done_files} files"
        steps.bar(progress.step, progress.done_bytes, progress.all_bytes, detail=detail)

    for line in prepared.notes:
        steps.clear()
        note(line)
    try:
        uploaded = upload.send(cli.api, session["id"], prepared, report, sessions=cli.home.sessions)
    except CattyError:
        now = cli.api.session(session["id"])
        if now["state"] != "provisioning":
            until_running(cli, now)  # raises what it failed of: that came first
        raise
    files = len(uploaded.manifest.entries)
    steps.done(f"uploaded {files} files and directories; {size(uploaded.sent)} were new to the server")
    for path, why in uploaded.skipped:
        note(f"{path} stayed behind: {why}")


def _remember(cli: Cli, flags: dict[str, Any], session: dict[str, Any], *, git: bool, upload: bool) -> None:
    from catty.client import state

    directory = flags["sync_dir"] or (str(Path.cwd()) if upload else "")
    state.store(
        cli.home,
        state.SessionState(
            id=session["id"],
            label=session["label"],
            server=cli.server.url,
            directory="" if flags["no_sync_back"] else directory,
            git=git,
        ),
    )
