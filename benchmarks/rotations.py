"""Value and gradient of the parametrizations of k orthonormal columns: cayley, expm, qr, one batch at a time.

The value is <W, T> for a fixed T. The baseline is what users call, `torch.nn.utils.parametrizations.orthogonal` of a
D x k matrix, once with the map it chooses for those (Householder reflections) and once with the exponential it chooses
for square ones. Beside it are the same thin formulas as ours, batched, in PyTorch.
"""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from abstraction.interventions.bases import random_frames
from abstraction.localization.das import Parametrization, frame
from benchmarks.records import Row, compare, measure, require_agreement
from benchmarks.torch_oracle import measure_torch, tensor

SHAPES = ((96, 16, 4), (24, 576, 8), (8, 2304, 4))
OURS: tuple[Parametrization, ...] = ("cayley", "expm", "qr")
BASELINE = "PyTorch `orthogonal`, Householder"
MOST = 600
"""Width up to which maps that make a D x D matrix are timed."""


def run(budget: float) -> list[Row]:
    """Time every parametrization at every size."""
    return [row for shape in SHAPES for row in _run(*shape, budget)]


def _run(batch: int, width: int, rank: int, budget: float) -> list[Row]:
    generator = np.random.default_rng(0)
    free, target = (generator.standard_normal((batch, width, rank)).astype(np.float32) * 0.1 for _ in range(2))
    start = random_frames(jax.random.key(0), (batch,), width, rank)
    timings = {BASELINE: measure_torch(_called("householder", start, target), budget=budget)}
    if width <= MOST:
        called = measure_torch(_called("matrix_exp", start, target), budget=budget)
        timings["PyTorch `orthogonal`, matrix exponential"] = called
    for name in OURS:
        ours = _jax(name, free, start, target)
        if name != "expm":
            theirs = _torch(name, free, start, target)
            gradients = {f"abstraction {name}": ours()[1], f"PyTorch thin {name}": theirs()[1]}
            # float32 inverses and Cholesky factors
            require_agreement(gradients, atol=1e-3)
            timings[f"PyTorch, batched thin {name}"] = measure_torch(theirs, budget=budget)
        timings[f"abstraction {name}"] = measure(ours, budget=budget, compiled=True)
    return compare("rotations", f"{batch} frames of {width}x{rank}", timings, baseline=BASELINE)


def _jax(
    name: Parametrization, free: np.ndarray, start: np.ndarray, target: np.ndarray
) -> Callable[[], tuple[jax.Array, jax.Array]]:
    used = jnp.ones(start.shape[-1])

    def value(free: jax.Array, start: jax.Array, target: jax.Array) -> jax.Array:
        return (jax.vmap(lambda s, f: frame(s, f, used, name))(start, free) * target).sum()

    arguments = [jnp.asarray(array) for array in (free, start, target)]
    function = jax.jit(jax.value_and_grad(value))
    return lambda: function(*arguments)


def _torch(
    name: str, free: np.ndarray, start: np.ndarray, target: np.ndarray
) -> Callable[[], tuple[float, np.ndarray]]:
    leaf, fixed, weights = tensor(free).requires_grad_(), tensor(start), tensor(target)

    def evaluate() -> tuple[float, np.ndarray]:
        value = (torch_frames(fixed, leaf, name) * weights).sum()
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient.numpy()

    return evaluate


def torch_frames(start: Tensor, free: Tensor, name: str) -> Tensor:
    """Move a batch of orthonormal columns by free matrices, by the thin formulas of the search."""
    identity = torch.eye(start.shape[-1], dtype=start.dtype)
    if name == "qr":
        moved = start + free
        lower = torch.linalg.cholesky(moved.mT @ moved)
        return torch.linalg.solve_triangular(lower, moved.mT, upper=False).mT
    free = free - start @ (start.mT @ free)
    return 2 * (start + free) @ torch.linalg.inv(identity + free.mT @ free) - start


def _called(map_name: str, start: np.ndarray, target: np.ndarray) -> Callable[[], tuple[float, np.ndarray]]:
    module, weights = nn.Module(), tensor(target)
    module.weight = nn.Parameter(tensor(start))
    parametrizations.orthogonal(module, "weight", orthogonal_map=map_name)
    (leaf,) = module.parameters()

    def evaluate() -> tuple[float, np.ndarray]:
        value = (cast(Tensor, module.weight) * weights).sum()
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient.numpy()

    return evaluate
