"""Timing and rows: how every benchmark measures, compares and reports."""

import csv
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.memory import peak_memory

OURS = "abstraction"
"""How the names of this library's rows begin."""
PACKAGES = (
    "abstraction-jax", "jax", "jaxlib", "ott-jax", "numpy", "torch", "transformers", "pyvene", "transformer-lens",
    "nnsight", "POT",
)  # fmt: skip


class Row(NamedTuple):
    """One line of the results.

    Attributes:
      benchmark: its name.
      size: what was computed.
      implementation: who computed it and how; the baseline of a comparison says so.
      seconds: the fastest of the warm calls; other work on the machine only adds.
      seconds_compile: what the first call took longer, tracing and compiling from nothing.
      repeats: warm calls.
      speedup: seconds of the baseline, what users call, over these seconds.
      speedup_best: seconds of the fastest rival of the comparison over these; NaN where none was timed.
      memory: megabytes that a warm call holds at most above what there was before it; NaN where nothing tells.
      device: what it ran on.
      cpus: processors the process may use.
      versions: of Python and the packages involved.
    """

    benchmark: str
    size: str
    implementation: str
    seconds: float
    seconds_compile: float
    repeats: int
    speedup: float
    speedup_best: float
    memory: float
    device: str
    cpus: int
    versions: str


class Timing(NamedTuple):
    """What one implementation took: seconds, and bytes of memory."""

    seconds: float
    seconds_compile: float
    repeats: int
    device: str
    memory: float = float("nan")

    def scaled(self, factor: float) -> "Timing":
        """Scale the run time linearly: to a part of what was timed, or from a part to the whole."""
        return self._replace(seconds=self.seconds * factor)


def measure(function: Callable[[], Any], *, budget: float, compiled: bool = False, least: int = 3) -> Timing:
    """Time a function that takes no arguments and returns arrays.

    Args:
      function: what to time; results of JAX are waited for.
      budget: seconds to spend on warm calls, once there are `least` of them.
      compiled: whether it is a JAX function. Then all compiled programs are dropped first and the excess of the first
        call is the compile time; otherwise the first call only warms up.
      least: warm calls at least.
    """
    if compiled:
        jax.clear_caches()
    first = _seconds(function)
    samples: list[float] = []
    while len(samples) < least or (sum(samples) < budget and len(samples) < 100):
        samples.append(_seconds(function))
    fastest = min(samples)
    compile_seconds = max(first - fastest, 0.0) if compiled else 0.0
    device = _jax_device() if compiled else _processor()
    return Timing(fastest, compile_seconds, len(samples), device, peak_memory(function))


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def compare(benchmark: str, size: str, timings: Mapping[str, Timing], *, baseline: str) -> list[Row]:
    """Make rows of implementations that computed the same thing; `baseline` is the name of one of them.

    A rival is one whose name does not begin with ours. One that could not be timed is NaN, and so are its ratios.
    """
    reference = timings[baseline].seconds
    rivals = [timing.seconds for name, timing in timings.items() if not name.startswith(OURS)]
    rivals = [seconds for seconds in rivals if not math.isnan(seconds)]
    return [
        Row(
            benchmark,
            size,
            f"{name} (baseline)" if name == baseline else name,
            timing.seconds,
            timing.seconds_compile,
            timing.repeats,
            reference / timing.seconds,
            min(rivals, default=float("nan")) / timing.seconds,
            timing.memory / 1e6,
            timing.device,
            _cpus(),
            _versions(),
        )
        for name, timing in timings.items()
    ]


def require_agreement(results: Mapping[str, Any], *, atol: float, rtol: float = 0.0) -> None:
    """Refuse to time implementations that disagree with the first one.

    Raises:
      RuntimeError: with the largest difference.
    """
    (first, expected), *others = ((name, np.asarray(values)) for name, values in results.items())
    for name, values in others:
        if values.shape != expected.shape or not np.allclose(values, expected, rtol=rtol, atol=atol):
            same = values.shape == expected.shape
            difference = np.abs(values - expected).max() if same else f"shapes {values.shape} and {expected.shape}"
            raise RuntimeError(f"{name!r} differs from {first!r} by {difference}, expected agreement to {atol}")


def merge_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with a header in place of those of the same benchmarks; those of others stay."""
    new = {row.benchmark for row in rows}
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            header, *kept = csv.reader(file)
        if tuple(header) == Row._fields:
            cells = [row for row in kept if row[0] not in new] + cells
    write_csv(path, Row._fields, cells)


def write_csv(path: Path, header: Sequence[str], cells: Iterable[Sequence[str]]) -> None:
    """Write a table, replacing the file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *cells])
    part.replace(path)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _jax_device() -> str:
    device = jax.devices()[0]
    return _processor() if device.platform == "cpu" else device.device_kind


def _processor() -> str:
    """Name the CPU, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor()
    return f"cpu: {name or 'unknown'} ({platform.machine()})"


def _versions() -> str:
    versions = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return "; ".join(versions)
