"""The memory of the device that programs run on: as it says itself, as the system says, or as it is told."""

import os
import sys
from pathlib import Path

import jax

MEMORY = "ABSTRACTION_DEVICE_MEMORY"
"""Environment variable: bytes of memory to plan for, in place of what the device has."""

_INFO = Path("/proc/meminfo")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much memory a container may have, of either kind; another word than a number is no limit."""


def device_memory() -> int | None:
    """Return the bytes of memory of the first device, None where nothing tells.

    That of an accelerator is what JAX may allocate there. That of a CPU is the system's, or its container's, in equal
    parts for the devices it stands for. It is all there is, not what is free at the moment: a plan made twice is the
    same plan.

    Raises:
      ValueError: the environment variable `MEMORY` is not a whole number of bytes of at least 1.
    """
    if (told := os.environ.get(MEMORY)) is not None:
        if not told.isdecimal() or int(told) < 1:
            raise ValueError(f"got {MEMORY}={told!r}, expected a whole number of bytes of at least 1")
        return int(told)
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        limit = (device.memory_stats() or {}).get("bytes_limit")
        return None if limit is None else int(limit)
    total = _system_memory()
    return None if total is None else total // jax.local_device_count()


def _system_memory() -> int | None:
    if sys.platform != "linux" or not _INFO.exists():
        return None
    line = next(line for line in _INFO.read_text(encoding="ascii").splitlines() if line.startswith("MemTotal"))
    told = [limit.read_text(encoding="ascii").strip() for limit in _LIMITS if limit.exists()]
    return min(1024 * int(line.split()[1]), *(int(each) for each in told if each.isdecimal()), sys.maxsize)
