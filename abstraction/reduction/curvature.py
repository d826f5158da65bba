"""Gradient and curvature of a discrepancy at any tap of any model, through an additive edit.

With F(e) the outputs when e is added at the tap, D the discrepancy to the dense outputs t, and everything at e = 0:

    g = grad_e D(F(e), t)        H = hess_e D(F(e), t)        GGN = J^T L L^T J,   J = dF/de,  L L^T = hess_z D

Hessian-vector products are `jax.jvp` of `jax.grad` (forward over reverse). For D = kl the output gradient is 0 at the
dense outputs, so H = GGN for every network; a suffix of pieces that are linear (ReLU) has H = GGN almost everywhere.

Examples do not interact, so one product with a vector per example gives H v of every example. A tap that recurs (depth)
or is spread out (space, tokens) has *positions*: its activation is laid out here as `[N, P, D]`, and a unit that is
replaced is replaced at all positions with the same constant. Its perturbation is -eps a + kappa with eps, kappa shared
over positions, and the curvature of one unit is a 2 x 2 block, not a number per position.

Source: CMR, arXiv 2602.24266, second-order interventional risk.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from abstraction.interventions import Add, InOrder, Scale
from abstraction.models import Network
from abstraction.reduction.calibration import Calibration
from abstraction.reduction.discrepancies import Bend, Discrepancy
from abstraction.typing import AnyArray, Outputs

_AT_ONCE = {True: 2**22, False: 2**28}
"""Numbers of the tap that are differentiated at once: on a CPU, and elsewhere."""


class Suffix(NamedTuple):
    """The network seen from one tap.

    Attributes:
      run: outputs when `[N, P, D]` is added to the tap.
      activation: the tap's value, `[N, P, D]`.
      outputs: the outputs as they are, `[N, C]`.
    """

    run: Callable[[Array], Outputs]
    activation: Float[Array, "N P D"]
    outputs: Outputs


def suffix_at(network: Network, inputs: Any, tap: str) -> Suffix:
    """Run the network once and return how its outputs depend on the tap.

    Raises:
      ValueError: the tap is unknown, or has depth and positions both.
    """
    outputs, recorded = network(inputs, record=(tap,))
    if outputs.ndim != 2:
        raise ValueError(f"got outputs of shape {outputs.shape}, expected [N, C]: one choice among C per example")
    activation = recorded[tap]
    shape = activation.shape
    if shape[0] > 1 and activation.ndim != 3:
        raise ValueError(
            f"got tap {tap!r} of shape {shape}, with depth and positions, expected one that occurs once; "
            "a decoder has them in the form of `unrolled_decoder`, a wrapped model where its blocks are not scanned"
        )

    def run(offset: Array) -> Outputs:
        offset = jnp.moveaxis(offset, 1, 0) if shape[0] > 1 else offset
        return network(inputs, {tap: Add(offset.reshape(shape))})[0]

    return Suffix(run, by_position(activation), outputs)


def by_position(activation: Float[Array, "L N *P D"]) -> Float[Array, "N P D"]:
    """Lay an activation out as examples, positions, units; a tap that recurs has its depths as positions."""
    if activation.shape[0] > 1:
        return jnp.moveaxis(activation, 0, 1)
    return activation.reshape(activation.shape[1], -1, activation.shape[-1])


@partial(jax.jit, static_argnames=("tap", "discrepancy"))
def tap_gradient(
    network: Network,
    calibration: Calibration,
    tap: str,
    discrepancy: Discrepancy,
) -> Float[Array, "N P D"]:
    """Return g per example; zero everywhere for `kl` and `logit` against the network's own outputs."""
    suffix = suffix_at(network, calibration.inputs, tap)
    return pull(suffix, gradient_at(suffix, calibration, discrepancy)[None])[0]


@partial(jax.jit, static_argnames=("tap", "discrepancy"))
def hessian_vector_product(
    network: Network,
    calibration: Calibration,
    tap: str,
    discrepancy: Discrepancy,
    vector: Float[Array, "N P D"],
) -> Float[Array, "N P D"]:
    """Return H v of every example, the full Hessian: jvp of grad."""
    suffix = suffix_at(network, calibration.inputs, tap)
    return _product(suffix, calibration, discrepancy, vector)


@partial(jax.jit, static_argnames=("tap", "discrepancy"))
def gauss_newton_product(
    network: Network,
    calibration: Calibration,
    tap: str,
    discrepancy: Discrepancy,
    vector: Float[Array, "N P D"],
) -> Float[Array, "N P D"]:
    """Return J^T L L^T J v of every example: one jvp and one vjp."""
    suffix = suffix_at(network, calibration.inputs, tap)
    _, pushed = jax.jvp(suffix.run, (jnp.zeros_like(suffix.activation),), (vector,))
    return pull(suffix, bend_at(suffix, calibration, discrepancy).product(pushed)[None])[0]


@partial(jax.jit, static_argnames=("tap", "discrepancy"))
def gauss_newton_rows(
    network: Network,
    calibration: Calibration,
    tap: str,
    discrepancy: Discrepancy,
) -> Float[Array, "R N P D"]:
    """Return the rows of L^T J; their squares summed over R are the diagonal of the GGN. R vjps, one a class.

    All of them, at once: for sums of them see `streaming`.
    """
    suffix = suffix_at(network, calibration.inputs, tap)
    return pull(suffix, bend_at(suffix, calibration, discrepancy).columns(jnp.arange(suffix.outputs.shape[-1])))


@partial(jax.jit, static_argnames=("tap", "discrepancy", "chunk"))
def hessian_diagonal(
    network: Network,
    calibration: Calibration,
    tap: str,
    discrepancy: Discrepancy,
    *,
    chunk: int = 64,
) -> Float[Array, "N P D"]:
    """Return diag H per example, exactly: one Hessian-vector product per coordinate, `chunk` of them at a time."""
    suffix = suffix_at(network, calibration.inputs, tap)
    _, positions, width = suffix.activation.shape
    product = partial(_product, suffix, calibration, discrepancy)

    def entry(index: Int[Array, ""]) -> Float[Array, " N"]:
        basis = jax.nn.one_hot(index, positions * width, dtype=suffix.activation.dtype).reshape(positions, width)
        vector = jnp.broadcast_to(basis, suffix.activation.shape)
        return (vector * product(vector)).sum((1, 2))

    entries = jax.lax.map(entry, jnp.arange(positions * width), batch_size=min(chunk, positions * width))
    return entries.T.reshape(suffix.activation.shape)


@partial(jax.jit, static_argnames=("tap", "discrepancy", "draws", "chunk"))
def hutchinson_diagonal(
    key: Array,
    network: Network,
    calibration: Calibration,
    tap: str,
    discrepancy: Discrepancy,
    *,
    draws: int,
    chunk: int = 64,
) -> Float[Array, "N P D"]:
    """Estimate diag H by the mean over random signs v of v * H v; unbiased, variance (||H_j||^2 - H_jj^2) / draws."""
    suffix = suffix_at(network, calibration.inputs, tap)

    def draw(key: Array) -> Float[Array, "N P D"]:
        vector = jax.random.rademacher(key, suffix.activation.shape, suffix.activation.dtype)
        return vector * _product(suffix, calibration, discrepancy, vector)

    keys = jax.random.split(key, draws)
    return jax.lax.map(draw, keys, batch_size=min(chunk, draws)).mean(0)


@partial(jax.jit, static_argnames=("tap", "draws", "chunk"))
def fisher_diagonal(
    key: Array, network: Network, inputs: Any, tap: str, *, draws: int, chunk: int = 64
) -> Float[Array, "N P D"]:
    """Estimate the diagonal of the softmax GGN by (J^T (p - e_y))^2 with y drawn from p: the true Fisher, unbiased."""
    suffix = suffix_at(network, inputs, tap)
    p = jax.nn.softmax(suffix.outputs)

    def draw(key: Array) -> Float[Array, "N P D"]:
        drawn = jax.nn.one_hot(jax.random.categorical(key, suffix.outputs), p.shape[-1], dtype=p.dtype)
        return pull(suffix, (p - drawn)[None])[0] ** 2

    return jax.lax.map(draw, jax.random.split(key, draws), batch_size=min(chunk, draws)).mean(0)


def last_layer_curvature(
    kernel: Float[AnyArray, "D C"], outputs: Float[Array, "N C"], labels: Int[AnyArray, " N"]
) -> tuple[Float[Array, "N D"], Float[Array, "N D"]]:
    """Return gradient and Hessian diagonal of cross-entropy where the tap feeds the logits: three products.

        g = (p - y) W^T,      h = p (W^T)^2 - (p W^T)^2          (rows of W^T are classes)

    Args:
      kernel: W of the last layer.
      outputs: logits.
      labels: classes; the Hessian does not depend on them.
    """
    p, weights = jax.nn.softmax(outputs), jnp.asarray(kernel).T
    gradient = (p - jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype)) @ weights
    return gradient, p @ weights**2 - (p @ weights) ** 2


@partial(jax.jit, static_argnames=("tap", "discrepancy", "chunk"))
def replacement_hessian(
    network: Network,
    calibration: Calibration,
    tap: str,
    discrepancy: Discrepancy,
    *,
    chunk: int = 64,
) -> tuple[Float[Array, " M"], Float[Array, "M M"]]:
    """Differentiate the mean discrepancy twice in (eps, kappa): gradient and full Hessian, one product per column.

    Unit j becomes a_j (1 - eps_j) + kappa_j at every position; replacing it by c is eps_j = 1, kappa_j = c.
    Where a tap recurs a_j is the state that earlier replacements have moved, so this is no offset of recorded states.
    No Hessian per example is ever made: memory is that of the result and of `chunk` products.

    Returns:
      Gradient `[M]` and Hessian `[M, M]` with M = 2 D, eps first.
    """
    suffix = suffix_at(network, calibration.inputs, tap)
    target, labels = _compared(suffix, calibration)
    width = network.taps[tap].width
    shape = (network.taps[tap].depth, width)

    def mean_loss(both: Array) -> Array:
        eps, kappa = (jnp.broadcast_to(half, shape) for half in jnp.split(both, 2))
        outputs, _ = network(calibration.inputs, {tap: InOrder((Scale(1 - eps), Add(kappa)))})
        return discrepancy.compare(outputs, target, labels).mean()

    origin = jnp.zeros(2 * width, suffix.activation.dtype)
    column = lambda vector: jax.jvp(jax.grad(mean_loss), (origin,), (vector,))[1]
    basis = jnp.eye(2 * width, dtype=origin.dtype)
    return jax.grad(mean_loss)(origin), jax.lax.map(column, basis, batch_size=min(chunk, 2 * width))


def pull(suffix: Suffix, cotangents: Float[Array, "R N C"]) -> Float[Array, "R N P D"]:
    """Apply J^T to several cotangents, one forward run for all.

    As many go at once as fit the cache of a CPU, or some of the memory of an accelerator: all at once would write R
    copies of every activation.
    """
    _, pullback = jax.vjp(suffix.run, jnp.zeros_like(suffix.activation))
    one = lambda cotangent: pullback(cotangent)[0]
    together = max(1, _AT_ONCE[jax.default_backend() == "cpu"] // suffix.activation.size)
    if together >= len(cotangents):
        return jax.vmap(one)(cotangents)
    return jax.lax.map(one, cotangents, batch_size=together if together > 1 else None)


def bend_at(suffix: Suffix, calibration: Calibration, discrepancy: Discrepancy) -> Bend:
    """Return the Hessian of a discrepancy in the outputs."""
    return discrepancy.bending(suffix.outputs, *_compared(suffix, calibration))


def gradient_at(suffix: Suffix, calibration: Calibration, discrepancy: Discrepancy) -> Float[Array, "N C"]:
    """Return the gradient of a discrepancy in the outputs."""
    return discrepancy.gradient(suffix.outputs, *_compared(suffix, calibration))


def _compared(suffix: Suffix, calibration: Calibration) -> tuple[Outputs, Array | None]:
    """Return what outputs are compared with: the target, or the network's own, and labels."""
    target = suffix.outputs if calibration.target is None else jnp.asarray(calibration.target)
    return target, None if calibration.labels is None else jnp.asarray(calibration.labels)


def _product(
    suffix: Suffix, calibration: Calibration, discrepancy: Discrepancy, vector: Float[Array, "N P D"]
) -> Float[Array, "N P D"]:
    """Forward over reverse; the sum over examples is differentiated, because examples do not interact."""
    target, labels = _compared(suffix, calibration)
    total = lambda offset: discrepancy.compare(suffix.run(offset), target, labels).sum()
    return jax.jvp(jax.grad(total), (jnp.zeros_like(suffix.activation),), (vector,))[1]
