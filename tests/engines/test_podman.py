"""The conformance suite on Podman: rootful as root, rootless as anybody else (test_rootless.py runs it that way)."""

from __future__ import annotations

import shutil

import pytest

from engines.conformance import EngineConformance
from engines.site import Site

pytestmark = [pytest.mark.engine, pytest.mark.skipif(not shutil.which("podman"), reason="no podman here")]


class TestPodman(EngineConformance):
    @pytest.fixture
    def site(self, podman_site: Site) -> Site:
        return podman_site
