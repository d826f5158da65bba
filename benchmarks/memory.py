"""Memory of one call: how far it rises above what the process held before.

Linux alone tells: it keeps the highest resident size of a process and lets it be reset.
"""

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_HIGHEST = "5"
"""What resets the highest resident size, see proc(5)."""


def peak_memory(function: Callable[[], Any]) -> float:
    """Call a function and return the bytes its call held at most, its result among them; NaN where nothing tells.

    What the process had freed before is given back to the system first, as far as it can be.
    """
    if sys.platform != "linux":
        jax.block_until_ready(function())
        return float("nan")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _RESET.write_text(_HIGHEST, encoding="ascii")
    before = _resident("VmRSS")
    result = jax.block_until_ready(function())
    highest = _resident("VmHWM")
    del result
    return float(max(highest - before, 0))


def _resident(name: str) -> int:
    """Return a size of this process in bytes."""
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
