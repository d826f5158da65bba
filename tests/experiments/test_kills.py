"""`kill -9` at twenty points of three experiments: `--resume` ends with the numbers of the run that nothing stopped.

    python -m pytest -m slow tests/experiments/test_kills.py        # some 15 minutes on two cores

A chain of kills hits one folder: each leg continues what the one before left, and is killed when a file appears that
tells how far it is, or a moment later. What the last leg ends with must be, times aside, the numbers of a straight run.
"""

import csv
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 3600
"""Seconds until a leg must have reached its point, or its end, on a machine that does other things too."""


class Point(NamedTuple):
    """Where a leg is killed.

    Attributes:
      name: of the point.
      reached: `(folder, when the leg began)`: tells that it is there.
      moment: the leg goes on for a random part of so many seconds.
    """

    name: str
    reached: Callable[[Path, float], bool]
    moment: float = 0.05


def _there(pattern: str) -> Callable[[Path, float], bool]:
    return lambda out, began: any(out.glob(pattern))


def _epoch(least: int) -> Callable[[Path, float], bool]:
    return lambda out, began: any(
        int(path.name) >= least for path in out.glob("checkpoints/*/*") if path.name.isdigit() and path.is_dir()
    )


def _running(out: Path, began: float) -> bool:
    """Tell that this leg has written itself into the manifest: all that was slow to import is there."""
    manifest = out / "manifest.json"
    return manifest.exists() and manifest.stat().st_mtime > began


STARTED = Point("started", lambda out, began: True, moment=2.0)
LOCKED = Point("before its options", _there(".lock"), moment=0.0)
OPTIONS = Point("options", _there("config.json"), moment=0.0)
MANIFEST = Point("manifest", _there("manifest.json"), moment=0.3)
ARRAYS = Point("arrays of the unit", _there("units/seed-*.safetensors"), moment=0.0)
UNIT = Point("unit", _there("units/seed-*.json"), moment=0.0)
METRICS = Point("metrics", _there("metrics.csv"), moment=0.1)
FIGURE = Point("figure", _there("figures/*.png"), moment=0.1)
CHAINS = {
    "heq": (
        *(LOCKED, OPTIONS),
        Point("half an epoch", _there("checkpoints/*"), moment=0.3),
        *(Point(f"epoch {epoch}", _epoch(epoch)) for epoch in (1, 4)),
        Point("methods", _running, moment=20.0),
        *(ARRAYS, FIGURE),
    ),
    "addition": (
        *(STARTED, MANIFEST),
        *(Point(f"epoch {epoch}", _epoch(epoch)) for epoch in (2, 7)),
        Point("methods", _running, moment=20.0),
        *(UNIT, METRICS),
    ),
    "mcqa": (LOCKED, MANIFEST, Point("methods", _running, moment=20.0), ARRAYS, METRICS),
}


def _start(experiment: str, out: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments", experiment, "--quick", "--out", str(out), *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen) -> None:
    try:
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, err


def _kill_at(process: subprocess.Popen, point: Point, out: Path, moment: float) -> None:
    began, end = time.time(), time.monotonic() + PATIENCE
    try:
        while not point.reached(out, began):
            assert process.poll() is None, f"ended before {point.name}: {process.communicate()}"
            assert time.monotonic() < end, f"never reached {point.name}"
            time.sleep(0.001)
        time.sleep(moment)
    finally:
        process.kill()
    process.communicate()


def _numbers(out: Path) -> list[list[str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return [row for row in csv.reader(file) if not row[4].startswith("seconds")]


def _leftovers(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.name.startswith(".") or "tmp" in path.name]


def test_there_are_twenty_points():
    assert sum(map(len, CHAINS.values())) == 20


@pytest.mark.slow
@pytest.mark.parametrize("experiment", CHAINS)
def test_a_run_that_was_killed_again_and_again_ends_with_the_numbers_of_a_straight_one(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
    straight, out = tmp_path / "straight", tmp_path / "killed"
    _finish(_start(experiment, straight))
    expected, moments = _numbers(straight), random.Random(0)
    for point in CHAINS[experiment]:
        begun = (out / "config.json").exists()
        leg = _start(experiment, out, *(["--resume"] if begun else []))
        _kill_at(leg, point, out, moments.uniform(0, point.moment))
        left = sorted(str(path.relative_to(out)) for path in _leftovers(out)) if out.exists() else None
        print(f"{experiment}: killed at {point.name}; left over: {left}")
        if (out / "metrics.csv").exists():
            assert _numbers(out) == expected
    _finish(_start(experiment, out, "--resume"))
    assert len(expected) > 20
    assert _numbers(out) == expected
    assert _leftovers(out) == []
