"""First-order attribution: the effect of every site from one forward run and a few backward ones.

Of a number m that is read off the outputs of a pair, and a site of weights w on features z = encode(h),

    m(h + decode(w (z(s) - z(h)))) - m(h)  ~  sum_k w_k (z_k(s) - z_k(h)) <g, decoder_k>,        g = dm / dh,

exact for a network that is linear after the tap. One backward run gives g at every depth and coordinate at once, so
all sites together cost a forward run and as many backward ones as there are numbers m, where measuring costs a run for
each site (attribution patching: Nanda 2023; Kramar et al., arXiv 2403.00745).

A gradient at the base alone says nothing of a unit that the base leaves off, or of a look-up that is saturated there.
So g may be a mean over points between base and source (integrated gradients, Sundararajan et al. 2017): at point t
the tap holds h + t (s - h) at every depth at once, on the base's inputs, and the gradient passes through as it would in
the network that computes that state. t = 0 is the base run.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from abstraction.checks import number
from abstraction.interventions import SiteBank
from abstraction.interventions.patching import Runs, take_pairs
from abstraction.interventions.sites import check_sites
from abstraction.localization.signatures import (
    SIGNATURE,
    Signature,
    SignatureMode,
    counted_outputs,
    family_means,
    neural_effect,
)
from abstraction.models import Network
from abstraction.pytrees import pytree
from abstraction.sharding import on_host
from abstraction.typing import AnyArray

_BYTES = 2**28
"""Activations, with what their gradient keeps, that are held at once."""
_KEPT = 16
"""Numbers that a forward run keeps for its gradient, per number of the tap."""
BASE = (0.0,)

Numbers = Callable[[Float[Array, "N C"], Float[Array, "N C"], Any], Float[Array, "K N"]]
"""Reads K numbers per pair off outputs, the base's outputs, and what is given for these pairs; hashable."""


@pytree
class _Steered:
    """Hold the tap at a target, and pass gradients through as if it had been computed: h + (target - h) + offset."""

    target: AnyArray
    offset: AnyArray

    def __call__(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        return activation + jax.lax.stop_gradient(self.target - activation) + self.offset


def first_order_changes(
    network: Network,
    runs: Runs,
    sites: SiteBank,
    numbers: Numbers,
    given: Any = (),
    points: Sequence[float] = BASE,
) -> Float[np.ndarray, "K N S"]:
    """Estimate how a full swap of each site alone changes K numbers of each pair, to first order.

    Costs a forward run and K backward ones per point, whatever the number of sites; pairs go through in blocks.

    Args:
      network: the network.
      runs: base and source runs.
      sites: the sites.
      numbers: what is read off the outputs, `(outputs [N, C], base outputs [N, C], given) -> [K, N]`.
      given: what it needs to know of the pairs, arrays that lead with N.
      points: where gradients are taken, 0 the base and 1 the source; their mean counts.

    Returns:
      The changes, `[K, N, S]`, float32; not finite where a gradient is not.

    Raises:
      ValueError: sites that do not fit their tap, or points outside of 0 to 1.
    """
    if sites.tap not in runs.source:
        raise ValueError(f"got sites of tap {sites.tap!r}, expected a recorded tap: {sorted(runs.source)}")
    check_sites(sites, network.taps[sites.tap])
    places = np.array(check_points(points), np.float32)
    count = runs.outputs.shape[0]
    block = _pairs_together(runs, sites.tap)
    parts = []
    for start in range(0, count, block):
        # The last block is as long as the others, one program for all: it repeats its last pair.
        rows = np.minimum(np.arange(start, start + block), count - 1)
        some = jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], given)
        parts.append(on_host(_changes(network, take_pairs(runs, rows), sites, some, places, numbers)))
    return np.concatenate(parts, axis=1)[:, :count]


def check_points(points: Sequence[float]) -> tuple[float, ...]:
    """Return the points at which gradients are taken.

    Raises:
      ValueError: there is none, or one is not a number from 0 to 1.
    """
    if not isinstance(points, Sequence) or not len(points):
        raise ValueError(f"got points {points!r}, expected at least one number from 0, the base, to 1, the source")
    return tuple(number("point", point, 0, 1) for point in points)


def _pairs_together(runs: Runs, tap: str) -> int:
    """Return how many pairs to run at once, in blocks of nearly one size."""
    leaves = [runs.source[tap], *jax.tree.leaves(runs.inputs)]
    count = runs.outputs.shape[0]
    one = _KEPT * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) // count
    together = min(max(1, _BYTES // max(one, 1)), count)
    return -(-count // -(-count // together))


@partial(jax.jit, static_argnames=("numbers",))
def _changes(
    network: Network, runs: Runs, sites: SiteBank, given: Any, points: Float[Array, " P"], numbers: Numbers
) -> Float[Array, "K N S"]:
    states = runs.base[sites.tap]
    moved = runs.source[sites.tap] - states

    def read(offset: Array, point: Array) -> Array:
        edit = _Steered(states + point.astype(states.dtype) * moved, offset)
        return numbers(network(runs.inputs, {sites.tap: edit})[0], runs.outputs, given)

    pulls = [jax.vjp(partial(read, point=points[p]), jnp.zeros_like(states)) for p in range(points.shape[0])]
    rows, pairs = pulls[0][0].shape
    along = moved if sites.basis is None else jnp.einsum("ln...d,ldk->ln...k", moved, sites.basis.encoder)

    def one(row: Array) -> Float[Array, "N S"]:
        # Each number is its own pair's alone: one backward run has the gradients of all pairs.
        chosen = jnp.broadcast_to(row[:, None], (rows, pairs)).astype(pulls[0][0].dtype)
        gradient = sum(pull(chosen)[0] for _, pull in pulls) / len(pulls)
        if sites.basis is not None:
            gradient = jnp.einsum("ln...d,lkd->ln...k", gradient, sites.basis.decoder)
        product = (along * gradient).astype(jnp.float32)
        return _summed(sites, product.sum(axis=tuple(range(2, product.ndim - 1))))

    return jax.lax.map(one, jnp.eye(rows))


def _summed(sites: SiteBank, product: Float[Array, "L N K"]) -> Float[Array, "N S"]:
    """Add up the features of each site, by their weights."""
    flat = jnp.swapaxes(product, 1, 2).reshape(-1, product.shape[1])
    place = jnp.asarray(sites.depth)[:, None] * sites.features + jnp.asarray(sites.index)
    return jnp.einsum("swn,sw->ns", flat[place], jnp.asarray(sites.value))


class _Effect(NamedTuple):
    """The effect of a signature's mode, class by class; what a program is compiled for."""

    mode: SignatureMode
    columns: tuple[int, ...] | None

    def __call__(self, outputs: Array, base: Array, given: Any) -> Float[Array, "C N"]:
        counted = lambda values: values if self.columns is None else values[:, np.asarray(self.columns)]
        return neural_effect(self.mode, counted(outputs), counted(base)).T


def first_order_signatures(
    network: Network,
    runs: Runs,
    sites: SiteBank,
    signature: Signature = SIGNATURE,
    points: Sequence[float] = BASE,
) -> Float[np.ndarray, "S F"]:
    """Estimate the signature of every site to first order, by a backward run per class; see `site_signatures`.

    Raises:
      ValueError: what `site_signatures` and `first_order_changes` refuse.
    """
    pairs, outputs = runs.outputs.shape
    columns, means = counted_outputs(signature.classes, outputs), family_means(signature.families, pairs)
    numbers = _Effect(signature.mode, None if columns is None else tuple(columns.tolist()))
    changes = first_order_changes(network, runs, sites, numbers, (), points)
    if means is None:
        return np.moveaxis(changes, -1, 0).reshape(sites.size, -1)
    return np.einsum("gn,cns->sgc", means, changes).reshape(sites.size, -1)


def rank_agreement(first: Float[AnyArray, "V ..."], exact: Float[AnyArray, "V ..."]) -> Float[np.ndarray, " V"]:
    """Return Spearman's correlation of two scores of the same sites, for each variable.

    Pearson's correlation of the ranks, ties at their mean rank, over the sites where both are finite; NaN where fewer
    than two are left, or one of the scores is the same everywhere.

    Raises:
      ValueError: scores of different shapes, or without a row for each variable.
    """
    rows = [np.asarray(values, np.float64) for values in (first, exact)]
    if rows[0].shape != rows[1].shape or rows[0].ndim < 2:
        raise ValueError(f"got scores of shapes {rows[0].shape} and {rows[1].shape}, expected [V, ...], one shape")
    flat = [values.reshape(len(values), -1) for values in rows]
    return np.array([_spearman(one[both], other[both]) for one, other, both in zip(*flat, _both(*flat), strict=True)])


def _both(first: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.isfinite(first) & np.isfinite(exact)


def _spearman(first: np.ndarray, exact: np.ndarray) -> float:
    ranks = [_ranks(first), _ranks(exact)]
    deviations = [rank - rank.mean() for rank in ranks] if len(first) > 1 else [np.zeros(1)] * 2
    norm = math.sqrt(float((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum()))
    return float(deviations[0] @ deviations[1]) / norm if norm > 0 else math.nan


def _ranks(values: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
    """Rank values from 1 on, equal ones at the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place.reshape(-1)]
