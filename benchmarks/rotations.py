"""Value and gradient of the parametrizations of an orthogonal matrix: cayley, expm, qr, one batch at a time.

The value is <R, T> for a fixed T. The baseline is PyTorch's matrix exponential, on which its `orthogonal`
parametrization of a square matrix rests.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch

from abstraction.interventions.bases import random_frames
from abstraction.localization.das import Parametrization, _map
from benchmarks.records import Row, compare, measure, require_agreement
from benchmarks.torch_oracle import measure_torch, rotation, tensor

SHAPES = ((96, 16), (8, 128))
PARAMETRIZATIONS: tuple[Parametrization, ...] = ("cayley", "expm", "qr")
BASELINE = "PyTorch expm"


def run(budget: float) -> list[Row]:
    """Time every parametrization at every size."""
    return [row for batch, width in SHAPES for row in _run(batch, width, budget)]


def _run(batch: int, width: int, budget: float) -> list[Row]:
    generator = np.random.default_rng(0)
    free, target = (generator.standard_normal((batch, width, width)).astype(np.float32) * 0.1 for _ in range(2))
    start = random_frames(jax.random.key(0), (batch,), width)
    timings = {}
    for name in PARAMETRIZATIONS:
        theirs = _torch(name, free, start, target)
        ours = _jax(name, free, start, target)
        gradients = {f"abstraction {name}": ours()[1], f"PyTorch {name}": theirs()[1]}
        # float32 inverses, exponentials and QR factors of matrices of this width
        require_agreement(gradients, atol=1e-3)
        timings[f"PyTorch {name}"] = measure_torch(theirs, budget=budget)
        timings[f"abstraction {name}"] = measure(ours, budget=budget, compiled=True)
    return compare("rotations", f"{batch} matrices of {width}x{width}", timings, baseline=BASELINE)


def _jax(
    name: Parametrization, free: np.ndarray, start: np.ndarray, target: np.ndarray
) -> Callable[[], tuple[jax.Array, jax.Array]]:
    def value(free: jax.Array, start: jax.Array, target: jax.Array) -> jax.Array:
        return (jax.vmap(lambda f, s: s @ _map(f, name)[0])(free, start) * target).sum()

    arguments = [jnp.asarray(array) for array in (free, start, target)]
    function = jax.jit(jax.value_and_grad(value))
    return lambda: function(*arguments)


def _torch(
    name: Parametrization, free: np.ndarray, start: np.ndarray, target: np.ndarray
) -> Callable[[], tuple[float, np.ndarray]]:
    leaf, fixed, weights = tensor(free).requires_grad_(), tensor(start), tensor(target)

    def evaluate() -> tuple[float, np.ndarray]:
        value = (rotation(leaf, fixed, name) * weights).sum()
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient.numpy()

    return evaluate
