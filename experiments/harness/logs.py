"""A line for every stage of a run, in its folder: what a cluster shows of a run that nobody looks at.

    {"time": "2026-11-27T21:55:36+00:00", "seconds": 12.3, "seed": 0, "stage": "pairs", "memory": 1.6, "device": 3.2}

`memory` is the most that the process held so far, `device` the most of the first accelerator, both in GB; what cannot
be told is null. Lines of a run that is continued follow those of the run before.
"""

import ctypes
import json
import resource
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jax

FILE = "log.jsonl"
_ARENA_MAX = -8
"""Number of an option of glibc's `mallopt`."""
_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which a system counts the memory of a process."""


def peak_memory() -> float:
    """Return the most memory that this process held so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT / 1e9


def device_peak() -> float | None:
    """Return the most memory of the first device that was in use so far, in GB; None where it does not tell."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else peak / 1e9


def hold_less() -> None:
    """Let glibc keep two pools of memory instead of eight for each core: what threads free is used by others.

    Without it a run that compiles many programs keeps gigabytes of pieces. Elsewhere than with glibc nothing is done.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_ARENA_MAX, 2)


def give_back() -> None:
    """Return to the system what is free in the pools of glibc, which keeps it otherwise."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None


def logger(folder: Path) -> Callable[[int, str], None]:
    """Return what adds a line, of a seed and its stage, to the log of a run."""
    began = time.perf_counter()

    def log(seed: int, stage: str) -> None:
        device = device_peak()
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - began, 2),
            "seed": seed,
            "stage": stage,
            "memory": round(peak_memory(), 3),
            "device": None if device is None else round(device, 3),
        }
        with (folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    return log
