"""Switch shape checking on for the whole package, and keep compiled programs between runs."""

import gc
import os
from pathlib import Path

# XLA's newer way to write loops for a CPU takes a third longer to compile; read when the first program is.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters".strip()
)
# Chunks of tests are those that pay, on whatever machine; what fits is tested where it is chosen.
os.environ["ABSTRACTION_DEVICE_MEMORY"] = str(2**40)

import jax
import numpy as np
import pytest
from jaxtyping import config, install_import_hook

# Tracing makes many small objects that live: looking through them again and again costs a tenth of all the time.
gc.set_threshold(100_000, 50, 100)
# Where in the source an operation stands is for messages of compilers: a fifth of the time.
jax.config.update("jax_traceback_in_locations_limit", 0)
CACHE = Path(__file__).parent.parent / ".cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)

_LONG = ("couplings", "das", "decoders.", "interventions", "mcqa_models", "mlp", "mnist")
OPTIMIZED = (
    *(f"experiments/test_{name}" for name in ("addition", "certify", "cif", "digits", "heq", "reduction")),
    *(f"parity/test_{name}" for name in _LONG),
    "evaluation/test_sequences.py",
)
"""Tests that run longer than they compile."""

_hook = install_import_hook("abstraction", "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def _compiled_quickly(request: pytest.FixtureRequest):
    """Most tests run a program once, on a few numbers: what costs time is XLA's work on it."""
    path = request.path.relative_to(Path(__file__).parent).as_posix()
    jax.config.update("jax_disable_most_optimizations", not path.startswith(OPTIMIZED))
    yield
    # A program is a memory map or more, of which Linux allows a process 65,530, and slows the collection of garbage.
    jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator of its own for every test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def shapes_for_arrays():
    """Switch shape checking off in a module that lets shapes take the place of arrays."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def unchecked():
    """Switch shape checking off: what a user's wrong argument meets is the library's own error."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
