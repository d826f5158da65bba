"""Wall-clock time with compilation counted apart."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax

_COMPILATION = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


@dataclass
class Time:
    """Seconds of one stage; `compile` is the part spent tracing, lowering and compiling."""

    total: float = 0.0
    compile: float = 0.0

    @property
    def run(self) -> float:
        """Seconds outside compilation."""
        return max(self.total - self.compile, 0.0)

    def __add__(self, other: "Time") -> "Time":
        return Time(self.total + other.total, self.compile + other.compile)


@contextmanager
def stopwatch() -> Iterator[Time]:
    """Time a block. Results of JAX calls inside must be blocked on, or read, before the block ends."""
    elapsed = Time()

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event in _COMPILATION:
            elapsed.compile += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    start = time.perf_counter()
    try:
        yield elapsed
    finally:
        elapsed.total = time.perf_counter() - start
        jax.monitoring.unregister_event_duration_listener(listen)
