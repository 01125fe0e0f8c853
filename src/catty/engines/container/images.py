"""Builds the session image with `podman build` or `docker build`, once, with progress by step.

The engine's command line does it rather than its API: both print the same lines, take secrets and contexts the same way, and end
cleanly when they are told to. Podman builds with `--isolation chroot`, which needs no OCI runtime to work; what runs is our own
Containerfile with pinned inputs.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import platform
import re
import shutil
import signal
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO, Final

from catty.engines.base import Progress
from catty.errors import ImageBuildFailed, ImageMissing
from catty.image import identity

__all__ = ["build_image"]

STOCK_BASE: Final = "debian:trixie-slim"  # where this host cannot make a Debian of its own
NO_MIRROR: Final = 3  # make-base's exit code: this host's apt names no Debian mirror
KEPT_IMAGES: Final = 3  # the current one, and two that another checkout or a running session may be using
LOCK_EVERY_S: Final = 0.5
END_GRACE_S: Final = 10.0
FORWARDED: Final = ("PIP_INDEX_URL", "NPM_CONFIG_REGISTRY")  # mirrors that this host's user has chosen
STEP: Final = re.compile(r"(?:#\d+ [\d.]+ )?catty: (.+)")
# The engines' own last words repeat the whole command; what went wrong stands in front of them.
NOISE: Final = re.compile(
    r"Error: building at STEP|subprocess exited with|exit status|ERROR: |https://|#\d+ (ERROR|CACHED|DONE)|[->]+$"
)
STEP_IN_FILE: Final = re.compile(r"""echo (['"])catty: (.+)\1""")


async def build_image(cli: list[str], image: str, progress: Progress, log: Path, ca_bundle: Path | None = None) -> None:
    """Make `image` unless it exists; returns when it does. Old images that nothing uses go.

    `cli` is the engine's command with its global options, e.g. `["podman"]`; the build's output goes to `log`, overwritten. `ca_bundle`
    is what the build's downloads trust. Another process that builds already is waited for. Raises ImageMissing for an image that
    these sources do not make, ImageBuildFailed for everything that goes wrong on the way. Cancelling it ends the build's processes.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    build = _Build(cli, progress, log)
    async with _lock(_lock_directory(log.parent) / "catty-image.lock", progress):
        if await build.exists(image):
            return
        if image != identity.current_image():
            raise ImageMissing(image=image)
        try:
            with tempfile.TemporaryDirectory(dir=log.parent, prefix="build-") as work:
                await build.run(image, Path(work), ca_bundle)
            await build.prune()
        finally:
            await build.sweep()


class _Build:
    """One build: the engine's command line, where progress goes, and the log."""

    def __init__(self, cli: list[str], progress: Progress, log: Path) -> None:
        self.cli = cli
        self.docker = Path(cli[0]).name == "docker"
        self.progress = progress
        self.log = log
        self.step = "preparing Debian"
        self.steps: list[str] = []

    async def exists(self, image: str) -> bool:
        return await self._quiet("image", "inspect", image) is not None

    async def run(self, image: str, work: Path, ca_bundle: Path | None) -> None:
        context = self._prepare(image, work)
        self._enter(self.step)
        arguments = ["build", "--network=host", "--tag", image, "--build-arg", f"BASE={await self._base(work)}"]
        arguments += ["--progress=plain"] if self.docker else ["--isolation=chroot"]
        if ca_bundle:
            arguments += ["--secret", f"id=ca,src={ca_bundle}"]
        for name in FORWARDED:
            if value := os.environ.get(name):
                arguments += ["--build-arg", f"{name}={value}"]
        await self._logged([*self.cli, *arguments, "--file", str(context / "Containerfile"), str(context)], self._line)

    def _prepare(self, image: str, work: Path) -> Path:
        """An empty log, and the build context in a directory of its own."""
        self.log.write_bytes(b"")
        context = work / "context"
        context.mkdir()
        if identity.write_context(context) != image:
            raise ImageBuildFailed(
                "Catty's sources changed while their image was about to be built",
                hint="Try again.",
                step="",
                log=self.log,
            )
        text = (context / "Containerfile").read_text()
        self.steps = [self.step, *(match[1] for match in STEP_IN_FILE.findall(text))]
        return context

    async def prune(self) -> None:
        """Remove replaced images, newest kept; those in use stay, as the engine refuses to remove them."""
        for repository, keep in ((identity.REPOSITORY, KEPT_IMAGES), (identity.BASE_REPOSITORY, 1)):
            listed = await self._quiet("images", "--format", "{{.Repository}}:{{.Tag}}", repository) or ""
            for image in listed.split()[keep:]:
                await self._quiet("rmi", image)
        # A replaced stage holds gigabytes of layers that no image names any more.
        await self._quiet("image", "prune", "--force", "--filter", "label=catty.stage=python", "--filter", "until=168h")

    async def sweep(self) -> None:
        """Remove what a build that was ended left in Podman's storage: working containers on our own base, which nobody else uses."""
        if self.docker:
            return
        filters = ("--external", "--filter", f"ancestor={identity.base_image()}")
        listed = await self._quiet("ps", "--all", *filters, "--format", "{{.ID}} {{.Status}} {{.Command}}") or ""
        for line in listed.splitlines():
            if line.endswith(" Storage buildah"):
                await self._quiet("rm", "--force", line.split()[0])

    async def _base(self, work: Path) -> str:
        """The base image: a Debian made from this host's own mirror where that is possible, else a stock one."""
        base = identity.base_image()
        if await self.exists(base):
            return base
        if shutil.which("mmdebstrap") and _is_debian():
            archive = work / "base.tar"
            script = Path(identity.__file__).with_name("make-base")
            if await self._logged(["sh", str(script)], archive=archive, allowed=(0, NO_MIRROR)) == 0:
                await self._logged([*self.cli, "import", str(archive), base])
                return base
        await self._logged([*self.cli, "pull", STOCK_BASE])
        return STOCK_BASE

    def _line(self, line: str) -> None:
        if match := STEP.fullmatch(line):
            self._enter(match[1])

    def _enter(self, step: str) -> None:
        self.step = step
        if step in self.steps:
            self.progress(step, self.steps.index(step), len(self.steps))

    async def _logged(
        self,
        command: list[str],
        each_line: Callable[[str], None] | None = None,
        *,
        archive: Path | None = None,
        allowed: tuple[int, ...] = (0,),
    ) -> int:
        """Run `command`: standard output to `archive` if given, the rest to the log and, by line, to `each_line`.

        Returns the exit code, one of `allowed`.
        """
        recent: deque[str] = deque(maxlen=20)
        with contextlib.ExitStack() as files:
            log = files.enter_context(self.log.open("ab"))
            if archive:
                process = _process(command, stdout=files.enter_context(archive.open("wb")), stderr=PIPE)
            else:
                process = _process(command, stdout=PIPE, stderr=STDOUT)
            async with process as running:
                async for line in _lines(running.stderr if archive else running.stdout):
                    log.write(line.encode() + b"\n")
                    recent.append(line)
                    if each_line:
                        each_line(line)
                code = await running.wait()
        if code not in allowed:
            why = next((line for line in reversed(recent) if line and not NOISE.match(line)), f"exit {code}")
            raise ImageBuildFailed(
                step=f"{self.step} ({why[:200]})", log=self.log, hint=f"The whole log is {self.log}."
            )
        return code

    async def _quiet(self, *arguments: str) -> str | None:
        """The output of an engine command, or None if it failed."""
        async with _process([*self.cli, *arguments], stdout=PIPE, stderr=DEVNULL) as process:
            out, _ = await process.communicate()
        return out.decode(errors="replace") if process.returncode == 0 else None


@contextlib.asynccontextmanager
async def _process(command: list[str], *, stdout: int | IO[bytes], stderr: int) -> AsyncIterator[Process]:
    """A process and its children in a group of their own, ended and reaped when the context is left."""
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}  # Docker before 23 must be asked for what knows secrets
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), END_GRACE_S)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


async def _lines(stream: asyncio.StreamReader | None) -> AsyncIterator[str]:
    """Lines of any length; a carriage return ends one too, as progress bars use it."""
    rest = b""
    while stream and (chunk := await stream.read(1 << 16)):
        *lines, rest = re.split(rb"[\r\n]+", rest + chunk)
        for line in lines:
            yield line.decode(errors="replace").strip()
    if rest:
        yield rest.decode(errors="replace").strip()


def _lock_directory(default: Path) -> Path:
    """Where only this user writes, and every server of the user's looks: engines of one user share their images."""
    return Path("/run") if os.geteuid() == 0 else Path(os.environ.get("XDG_RUNTIME_DIR") or default)


@contextlib.asynccontextmanager
async def _lock(path: Path, progress: Progress) -> AsyncIterator[None]:
    """One build at a time, over processes. Waits by trying: a thread that blocks in flock could not be cancelled."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress("waiting for another build of the image", 0, 1)
                await asyncio.sleep(LOCK_EVERY_S)
        yield
    finally:
        os.close(descriptor)


def _is_debian() -> bool:
    try:
        return platform.freedesktop_os_release().get("ID") == "debian"
    except OSError:
        return False
