"""What every benchmark shares: samples and their medians, aims, the machine they were taken on, a table, a JSON file.

A result file names no host, no user and no path of the machine, so it can be kept and compared.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "Measurements", "machine", "pss_mb"]

RESULTS = Path(__file__).parent / "results"
_SHOWN_P95_FROM = 5  # samples; of fewer the maximum is as good


class Measurements:
    """Samples by name, in the order in which the names first came; ratios and aims are made of their medians."""

    def __init__(self) -> None:
        self._samples: dict[str, list[float]] = defaultdict(list)
        self._units: dict[str, str] = {}
        self._ratios: dict[str, float] = {}
        self._aims: dict[str, dict[str, Any]] = {}

    def add(self, name: str, value: float, unit: str = "ms") -> None:
        """One more sample of `name`."""
        self._samples[name].append(value)
        self._units[name] = unit

    def median(self, name: str) -> float:
        """Of the samples of `name`. Raises KeyError if there are none."""
        if name not in self._samples:
            raise KeyError(name)
        return statistics.median(self._samples[name])

    def ratio(self, name: str, above: str, below: str) -> None:
        """Note median(`above`) / median(`below`), where both were measured."""
        if above in self._samples and below in self._samples:
            self._ratios[name] = self.median(above) / self.median(below)

    def aim(self, name: str, limit: float) -> None:
        """Note whether figure or ratio `name` is at most `limit`."""
        value = self._ratios[name] if name in self._ratios else self.median(name)
        unit = self._units.get(name, "×")
        self._aims[name] = {"value": _rounded(value), "limit": limit, "unit": unit, "met": value <= limit}

    def to_json(self) -> dict[str, Any]:
        """`figures`, `ratios`, `aims`."""
        figures = {
            name: {
                "median": _rounded(statistics.median(samples)),
                "p95": _rounded(_p95(samples)),
                "n": len(samples),
                "unit": self._units[name],
            }
            for name, samples in self._samples.items()
        }
        ratios = {name: _rounded(value) for name, value in self._ratios.items()}
        return {"ratios": ratios, "figures": figures, "aims": self._aims}

    def table(self) -> str:
        """The same for people."""
        values = self.to_json()
        width = max(len(name) for part in values.values() for name in part)
        lines = [f"{'':{width}}  {'median':>9}  {'p95':>9}  {'n':>3}"]
        for name, figure in values["figures"].items():
            lines.append(
                f"{name:{width}}  {figure['median']:9g}  {figure['p95']:9g}  {figure['n']:3}  {figure['unit']}"
            )
        lines += ["", *(f"{name:{width}}  {value:9g}  ×" for name, value in values["ratios"].items()), ""]
        for name, aim in values["aims"].items():
            verdict = "met" if aim["met"] else "MISSED"
            lines.append(f"{name:{width}}  {aim['value']:9g}  aim ≤ {aim['limit']:g} {aim['unit']}: {verdict}")
        return "\n".join(lines)

    def write(self, name: str, **more: Any) -> Path:
        """Write results/NAME.json, `more` in it; returns its path."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}.json"
        path.write_text(json.dumps({**self.to_json(), **more}, indent=2, ensure_ascii=False) + "\n")
        return path


def machine(**more: Any) -> dict[str, Any]:
    """What a reader needs to know of this machine to judge figures; `more` is laid over it."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / (1 << 20)) if memory else None,
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        **more,
    }


def pss_mb(pid: int) -> float:
    """A process's proportional share of memory, in MB (10⁶ bytes); pages shared by n processes count one n-th each."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def _p95(samples: list[float]) -> float:
    if len(samples) < _SHOWN_P95_FROM:
        return max(samples)
    return statistics.quantiles(samples, n=20, method="inclusive")[-1]


def _rounded(value: float) -> float:
    return float(f"{value:.3g}") if value < 1000 else round(value)
