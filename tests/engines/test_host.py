"""What is found out about the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from catty.engines.container import host


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [((), True), (("overlay-images",), True), (("vfs-images",), False), (("vfs-images", "overlay-images"), True)],
)
def test_overlay_is_asked_for_before_podman_has_chosen(
    kinds: tuple[str, ...], wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(host, "is_root", lambda: False)
    for kind in kinds:
        (tmp_path / "containers/storage" / kind).mkdir(parents=True)
    assert host.wants_overlay() is wanted


def test_root_has_overlay_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "is_root", lambda: True)
    assert not host.wants_overlay()
