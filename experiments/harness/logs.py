"""A line for every stage of a run, in its folder: what a cluster shows of a run that nobody looks at.

    {"time": "2026-11-27T21:55:36+00:00", "seconds": 12.3, "seed": 0, "stage": "pairs", "memory": 1.6, "device": 3.2}

`memory` is the most that the process held so far, `device` the most of the first accelerator, both in GB; what cannot
be told is null. Lines of a run that is continued follow those of the run before.
"""

import ctypes
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jax

FILE = "log.jsonl"
_ARENA_MAX = -8
"""Number of an option of glibc's `mallopt`."""
_STATUS = Path("/proc/self/status")
"""Where Linux says how much memory a process held; what `getrusage` says there begins with that of its parent."""
_EVERY = 5.0
"""Seconds between two returns of memory, which take a moment themselves."""


def peak_memory() -> float | None:
    """Return the most memory that this process held so far, in GB; None elsewhere than on Linux."""
    if not _STATUS.exists():
        return None
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1]) / 1e9


def device_peak() -> float | None:
    """Return the most memory of the first device that was in use so far, in GB; None where it does not tell."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else peak / 1e9


def hold_less() -> None:
    """Let glibc keep two pools of memory instead of eight for each core: what threads free is used by others.

    Without it, and without `given_back`, 1 of 4 GB were pieces that nothing used in a run of indirect objects.
    Elsewhere than with glibc nothing is done.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_ARENA_MAX, 2)


@contextmanager
def given_back(every: float = _EVERY) -> Iterator[None]:
    """Return to the system, now and then, what is free in the pools of glibc, which keeps it otherwise."""
    libc, done = _glibc(), threading.Event()

    def watch() -> None:
        while libc is not None and not done.wait(every):
            libc.malloc_trim(0)

    thread = threading.Thread(target=watch, name="memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None


def logger(folder: Path) -> Callable[[int, str], dict[str, Any]]:
    """Return what adds a line, of a seed and its stage, to the log of a run, and returns it.

    A line that a killed process left half is ended first.
    """
    began = time.perf_counter()
    path = folder / FILE
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")

    def log(seed: int, stage: str) -> dict[str, Any]:
        seconds, memory, device = time.perf_counter() - began, peak_memory(), device_peak()
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 2),
            "seed": seed,
            "stage": stage,
            "memory": None if memory is None else round(memory, 3),
            "device": None if device is None else round(device, 3),
        }
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line

    return log
