"""Timing and rows: how every benchmark measures, compares and reports."""

import csv
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

PACKAGES = ("abstraction-jax", "jax", "jaxlib", "ott-jax", "numpy", "torch", "pyvene", "transformers", "POT")


class Row(NamedTuple):
    """One line of the results.

    Attributes:
      benchmark: its name.
      size: what was computed.
      implementation: who computed it and how; the baseline of a comparison says so.
      seconds: the fastest of the warm calls; other work on the machine only adds.
      seconds_compile: what the first call took longer, tracing and compiling from nothing.
      repeats: warm calls.
      speedup: seconds of the baseline over these seconds.
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
    device: str
    cpus: int
    versions: str


class Timing(NamedTuple):
    """How long one implementation took, in seconds."""

    seconds: float
    seconds_compile: float
    repeats: int
    device: str

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
    return Timing(fastest, compile_seconds, len(samples), _jax_device() if compiled else _processor())


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def compare(benchmark: str, size: str, timings: Mapping[str, Timing], *, baseline: str) -> list[Row]:
    """Make rows of implementations that computed the same thing; `baseline` is the name of one of them."""
    reference = timings[baseline].seconds
    return [
        Row(
            benchmark,
            size,
            f"{name} (baseline)" if name == baseline else name,
            timing.seconds,
            timing.seconds_compile,
            timing.repeats,
            reference / timing.seconds,
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


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with a header, replacing the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows([f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row] for row in rows)


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
