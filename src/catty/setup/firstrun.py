"""What has to be in place before the first session: container engine, session image, server. A second run costs one `stat`.

Everything is said before it is done, and asked for where somebody can answer; root, `--yes` and CI need no question.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from catty.client.config import Home
from catty.errors import EngineNotFound
from catty.image.identity import current_image
from catty.setup.embedded import Embedded

__all__ = ["Display", "ensure", "offer_link"]

_LINK_OFFERED: Final = "link-offered"


class Display(Protocol):
    """How the user sees and steers it."""

    def say(self, text: str) -> None:
        """What happens now."""

    def step(self, text: str, done: int, total: int) -> None:
        """What happens now, and how far it is."""

    def done(self, text: str) -> None:
        """A result that stays."""


def ensure(
    home: Home,
    embedded: Embedded,
    display: Display,
    confirm: Callable[[str], bool],
    *,
    again: bool = False,
    before: Callable[[], object] = lambda: None,
) -> bool:
    """Have all in place; returns whether there was something to do. `again`: look even if all seems to be there. `before` is
    called before work that takes minutes, to find out what would make it useless.

    Raises what `before` raises, EngineNotFound, EngineFailed, ImageBuildFailed, ServerStartFailed.
    """
    image = current_image()
    stamp = home.server / "images" / image.rpartition(":")[2]
    missing = again or not stamp.exists()
    if missing:
        from catty.setup import tasks

        before()
        _ensure_engine(display, confirm)
        tasks.run("image", home.server, display.step)
        display.done(f"session image {image} is ready")
        stamp.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        stamp.touch()
    embedded.ensure()
    return missing


def unattended() -> bool:
    """Whether questions are not needed: root may do it anyway, and CI has nobody to answer."""
    return os.geteuid() == 0 or os.environ.get("CI", "") not in ("", "0", "false")


def _ensure_engine(display: Display, confirm: Callable[[str], bool]) -> None:
    """Find a container engine, or install Podman after having said how. Raises EngineNotFound where the user says no."""
    from catty.setup import podman

    plan = podman.plan_install()
    if plan is None:
        return
    for line in plan.lines:
        display.done(line)
    if not unattended() and not confirm("Go on?"):
        raise EngineNotFound(hint="Install Podman or Docker yourself, then run this again.")
    podman.install(plan, display.say)


def offer_link(home: Home, program: Path, display: Display, confirm: Callable[[str], bool]) -> None:
    """Once per home: offer to link `program` (the checkout's `catty`) into a directory on the PATH."""
    marker = home.root / _LINK_OFFERED
    place = _place_for_link()
    if place is None or marker.exists() or not sys.stdin.isatty():
        return
    marker.touch()
    link = place / "catty"
    if not link.exists() and confirm(f"Link {link} to {program}, so that `catty` works everywhere?"):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(program)
        display.done(f"linked {link}")


def _place_for_link() -> Path | None:
    """A directory on the PATH that this user may write."""
    path = os.environ.get("PATH", "").split(os.pathsep)
    for place in (Path.home() / ".local" / "bin", Path("/usr/local/bin")):
        if str(place) in path and (os.access(place, os.W_OK) or not place.exists()):
            return place
    return None
