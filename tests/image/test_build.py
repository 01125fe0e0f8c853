"""Building an image with the engine's own command line: progress, failures, cancellation, several builders, old images.

The recipe is a small one on the session image's base, in a repository of the test's own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from catty.engines.container.images import build_image
from catty.errors import ImageBuildFailed, ImageMissing
from catty.image import identity

pytestmark = [pytest.mark.engine, pytest.mark.image]

REPOSITORY = f"localhost/catty-test-{os.getpid()}"
RECIPE = """
ARG BASE
FROM ${BASE}
COPY catty /catty
RUN echo 'catty: one thing' && test ! -e /run/secrets
RUN --mount=type=secret,id=ca,target=/run/ca \\
    echo "catty: another's thing" \\
    && test "$(cat /run/ca)" = certificates && %s
"""


class Builder:
    def __init__(self, cli: list[str], package: Path, log: Path, ca: Path) -> None:
        self.cli, self.package, self.log, self.ca = cli, package, log, ca
        self.steps: list[tuple[str, int, int]] = []
        self.reached = asyncio.Event()

    def recipe(self, last: str) -> str:
        """Make the image's last command `last`; the image's name then."""
        (self.package / "image/Containerfile").write_text(RECIPE % last)
        return identity.current_image()

    def progress(self, *step: object) -> None:
        self.steps.append(step)  # type: ignore[arg-type]
        if step[0] == "another's thing":
            self.reached.set()

    async def build(self, image: str) -> None:
        await build_image(self.cli, image, self.progress, self.log, self.ca)

    def engine(self, *arguments: str) -> list[str]:
        return subprocess.run([*self.cli, *arguments], capture_output=True, text=True, check=True).stdout.split("\n")[
            :-1
        ]

    def images(self) -> set[str]:
        return set(self.engine("images", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY))


@pytest.fixture
def builder(session_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Builder]:
    if not (program := shutil.which("podman")):
        pytest.skip("Docker keeps no trace of what these tests look at")
    package = tmp_path / "catty"
    shutil.copytree(identity._PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(identity, "_PACKAGE", package)
    monkeypatch.setattr(identity, "_IMAGE", package / "image")
    monkeypatch.setattr(identity, "REPOSITORY", REPOSITORY)
    ca = tmp_path / "ca"
    ca.write_text("certificates")
    made = Builder([program], package, tmp_path / "engine" / "image.log", ca)
    yield made
    for image in made.images():
        made.engine("rmi", "--force", image)


async def test_progress_by_step_and_nothing_the_second_time(builder: Builder) -> None:
    image = builder.recipe("true")
    await builder.build(image)
    assert builder.steps == [("preparing Debian", 0, 3), ("one thing", 1, 3), ("another's thing", 2, 3)]
    assert builder.images() == {image}
    builder.log.write_text("untouched")
    await builder.build(image)
    assert len(builder.steps) == 3
    assert builder.log.read_text() == "untouched"


async def test_a_change_of_the_runtime_rebuilds(builder: Builder) -> None:
    await builder.build(builder.recipe("true"))
    (builder.package / "runtime/__init__.py").write_text("changed = True\n")
    image = identity.current_image()
    await builder.build(image)
    assert image in builder.images()


async def test_a_failure_names_step_reason_and_log(builder: Builder) -> None:
    image = builder.recipe("echo the mirror is on fire >&2 && false")
    with pytest.raises(ImageBuildFailed, match="failed at: another's thing \\(the mirror is on fire\\)") as failure:
        await builder.build(image)
    assert str(builder.log) in failure.value.hint
    assert "the mirror is on fire" in builder.log.read_text()
    assert builder.images() == set()
    assert list(builder.log.parent.iterdir()) == [builder.log]  # no build context left


async def test_an_image_of_other_sources_is_not_built(builder: Builder) -> None:
    with pytest.raises(ImageMissing):
        await builder.build(f"{REPOSITORY}:0123456789ab")


async def test_a_cancelled_build_leaves_nothing(builder: Builder) -> None:
    image = builder.recipe("sleep 987")
    task = asyncio.create_task(builder.build(image))
    await builder.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert builder.images() == set()
    ours = f"ancestor={identity.base_image()}"
    assert not [
        line
        for line in builder.engine("ps", "-a", "--external", "--filter", ours, "--format", "{{.Status}}")
        if line == "Storage"
    ]
    assert list(builder.log.parent.iterdir()) == [builder.log]
    await builder.build(builder.recipe("true"))


async def test_two_builders_build_once(builder: Builder) -> None:
    image = builder.recipe("true")
    await asyncio.gather(builder.build(image), builder.build(image))
    assert [step for step, _, _ in builder.steps].count("one thing") == 1
    assert any(step == "waiting for another build of the image" for step, _, _ in builder.steps)


async def test_replaced_images_go_but_used_ones_stay(builder: Builder) -> None:
    images = []
    for number in range(4):
        images.append(builder.recipe(f"echo {number} >/number"))
        await builder.build(images[-1])
        if number == 0:
            (used,) = builder.engine("create", images[0], "true")
    try:
        assert builder.images() == set(images)
        images.append(builder.recipe("echo 5 >/number"))
        await builder.build(images[-1])
        assert builder.images() == {images[0], *images[2:]}
    finally:
        builder.engine("rm", used)


@pytest.mark.parametrize("ended", [False, True])
def test_make_base_cleans_up(ended: bool, tmp_path: Path) -> None:
    """Whether it is let run or ended in the middle, nothing stays in the directory for temporary files."""
    if not Path("/usr/lib/apt/apt-helper").exists():
        pytest.skip("this host has no apt")
    temporary, tools, marker = tmp_path / "tmp", tmp_path / "tools", tmp_path / "started"
    temporary.mkdir()
    tools.mkdir()
    os.mkfifo(marker)
    # A stand-in that tells when it runs: how a Debian is made is mmdebstrap's business.
    (tools / "mmdebstrap").write_text(f"#!/bin/sh\necho started >{marker}\n{'sleep 60' if ended else 'echo archive'}\n")
    (tools / "mmdebstrap").chmod(0o755)
    env = {**os.environ, "TMPDIR": str(temporary), "PATH": f"{tools}:{os.environ['PATH']}"}
    script = Path(identity.__file__).with_name("make-base")
    with subprocess.Popen(["sh", str(script)], env=env, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert marker.read_text() == "started\n"
        assert len(list(temporary.iterdir())) == 1
        if ended:
            os.killpg(process.pid, signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == ((143, b"") if ended else (0, b"archive\n"))
    assert list(temporary.iterdir()) == []
