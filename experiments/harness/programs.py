"""Compiled programs: kept on disk between runs, and counted.

XLA's work on a program is the same in every run, so it is done once: a program is read back where the same one has been
compiled by the same compiler for the same processor. What remains of compiling is tracing, in Python.
"""

import gc
import os
import platform
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout
from platformdirs import user_cache_path

_MOST = 2**30
"""Bytes of programs kept; those not used for longest go first."""
_COMPILED = "/jax/core/compile/backend_compile_duration"
_PROGRAM, _USED = "-cache", "-atime"
_READ = "/jax/compilation_cache/cache_hits"


@dataclass
class Programs:
    """How many programs a run needed.

    Attributes:
      compiled: programs made, those read back included.
      read: those read back.
      seconds: spent on them by the compiler, or in reading.
    """

    compiled: int = 0
    read: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.compiled} in {self.seconds:.1f} s, {self.read} of them read from disk"


@contextmanager
def counted() -> Iterator[Programs]:
    """Count the programs that are compiled, or read back, in a block."""
    programs = Programs()

    def took(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED:
            programs.compiled += 1
            programs.seconds += duration_secs

    def happened(event: str, **_: str | int) -> None:
        programs.read += event == _READ

    jax.monitoring.register_event_duration_secs_listener(took)
    jax.monitoring.register_event_listener(happened)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(took)
        jax.monitoring.unregister_event_listener(happened)


def forget_programs() -> None:
    """Let go of the programs of a part that is over: a hundred of them hold as much as a small language model."""
    jax.clear_caches()
    gc.collect()


def _processor() -> str:
    """Name the processor by what it can do: a home may be shared by machines that cannot run each other's programs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"


def _mend(place: Path) -> None:
    """Take away what a run that was killed while it wrote has left: a program without its time of use, or that alone.

    JAX writes the program first. One without a time may be torn, is never replaced, and stops all further writing.
    """
    try:
        with FileLock(place / ".lockfile", timeout=1):  # the one JAX writes under
            for whole, part in ((_PROGRAM, _USED), (_USED, _PROGRAM)):
                for path in place.glob(f"*{whole}"):
                    if not path.with_name(path.name.removesuffix(whole) + part).exists():
                        path.unlink(missing_ok=True)
    except (Timeout, OSError):
        pass  # another run is writing, or the place has become read-only: programs are a convenience


def keep_programs() -> Path | None:
    """Keep compiled programs between runs and say where; None where that is switched off or cannot be.

    What JAX was told, by `JAX_COMPILATION_CACHE_DIR` or otherwise, stays as it is.
    """
    known: Any = jax.config  # its options are attributes that its class does not name
    if not known.jax_enable_compilation_cache:
        return None
    if known.jax_compilation_cache_dir is not None:
        return Path(known.jax_compilation_cache_dir)
    place = user_cache_path("abstraction-jax") / f"programs-{_processor()}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        writable = os.access(place, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        print(f"note: compiled programs are not kept: {place} cannot be written", file=sys.stderr)
        return None
    _mend(place)
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_compilation_cache_max_size", _MOST)
    # A run makes dozens of small programs, which take longer than the few large ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return place
