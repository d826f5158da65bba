"""Screening: which sites are worth measuring, from two forward and two backward runs for all of them together.

Every pair is asked for one direction c_t of the outputs' logits: along the abstract effect u_i[t] of a variable it is
sensitive for (of several, one is drawn), and a random one where no variable changes the output. To first order site j
moves pair t along it by q_jt = <c_t, J_t (its features' change)>, and its score for variable i is the cosine

    s_ij = sum_{t asked for i} q_jt / sqrt(n_i sum_{t that count for i} q_jt^2)   in [-1, 1],

n_i the number of pairs asked for i: 1 where a swap does all that it does along u_i, by the same amount, and nothing on
other pairs. With two outputs, whose logits have one direction, it is the cosine of the first-order signature.

Gradients are taken at the two Gauss-Legendre points between base and source. At the base alone a saturated look-up has
no gradient, and a unit that is off none either: a planted decoder's pointer is then not found. Logits rather than
probabilities, whose gradient vanishes where the network is sure.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from abstraction.causal import PairBank
from abstraction.checks import number, whole
from abstraction.evaluation import Bits, Recorded
from abstraction.evaluation.recording import check_recorded
from abstraction.interventions import SiteBank
from abstraction.localization.attribution import check_points, first_order_changes, rank_agreement
from abstraction.localization.signatures import SIGNATURE, Signature, abstract_signatures, counted_outputs
from abstraction.models import Network
from abstraction.typing import AnyArray

GAUSS = (0.5 - math.sqrt(3) / 6, 0.5 + math.sqrt(3) / 6)
"""Points of the two-point Gauss-Legendre rule on [0, 1], whose weights are equal."""


class Screened(NamedTuple):
    """Sites that are worth measuring.

    Attributes:
      variables: names of the V variables.
      sites: those that were kept for some variable, in their order.
      columns: which of all S sites they are, `[T]`.
      kept: which sites were kept for which variable, `[V, S]`.
      scores: first-order scores of all sites, `[V, S]`; NaN where a gradient is not finite, which is never kept.
      passes: forward and backward runs of the bank that this took.
    """

    variables: tuple[str, ...]
    sites: SiteBank
    columns: Int[np.ndarray, " T"]
    kept: Bool[np.ndarray, "V S"]
    scores: Float[np.ndarray, "V S"]
    passes: int

    def agreement(self, exact: Float[AnyArray, "V T"]) -> Float[np.ndarray, " V"]:
        """Return how far the scores order sites as an exact score does, by variable: Spearman's correlation.

        Args:
          exact: of the sites that were kept for some variable, or of all, `[V, S]`; what is not finite is left out.

        Raises:
          ValueError: scores of another number of variables or sites.
        """
        columns = slice(None) if np.shape(exact)[-1:] == self.scores.shape[1:] else self.columns
        return rank_agreement(self.scores[:, columns], exact)


class _Direction(NamedTuple):
    """The change of the outputs' logits along a direction per pair; what a program is compiled for."""

    columns: tuple[int, ...] | None

    def __call__(self, outputs: Array, base: Array, given: Float[Array, "N E"]) -> Float[Array, "1 N"]:
        counted = outputs if self.columns is None else outputs[:, np.asarray(self.columns)]
        return (counted * given).sum(axis=-1)[None]


def screen_sites(
    network: Network,
    fit: Recorded,
    sites: SiteBank,
    keep: float = 0.25,
    signature: Signature = SIGNATURE,
    *,
    points: Sequence[float] = GAUSS,
    seed: int = 0,
) -> Screened:
    """Keep the sites whose first-order effect is most like that of some variable.

    Costs a forward and a backward run per point, for any number of sites and variables.

    Args:
      network: the network.
      fit: recorded fit pairs.
      sites: all sites.
      keep: share of the sites to keep for each variable, in (0, 1]; their union is kept.
      signature: which outputs count; pairs are kept apart, and logits are looked at, whatever its mode.
      points: where gradients are taken, 0 the base and 1 the source.
      seed: of the directions that are drawn.

    Raises:
      ValueError: not a fit bank, a share out of range, a variable without sensitive pairs, or no finite score of one.
    """
    check_recorded(fit, network)
    if fit.bank.role != "fit":
        raise ValueError(f"got a {fit.bank.role} bank to screen sites on, expected a fit bank")
    if number("share of sites to keep", keep, 0, 1) == 0:
        raise ValueError(f"got share of sites to keep {keep!r}, expected more than 0")
    points, seed = check_points(points), whole("seed", seed, 0)
    columns = counted_outputs(signature.classes, fit.runs.outputs.shape[1])
    effects = _abstract(fit, signature)
    directions, asked = _asked(np.random.default_rng(seed), effects, fit)
    read = _Direction(None if columns is None else tuple(columns.tolist()))
    (moves,) = first_order_changes(network, fit.runs, sites, read, directions, points)
    scores = _cosines(moves, asked, np.asarray(fit.bank.eligible))
    kept = _top(scores, math.ceil(keep * sites.size), fit.variables)
    index = np.flatnonzero(kept.any(axis=0))
    return Screened(fit.variables, sites.take(index), index, kept, scores, len(points))


def _abstract(fit: Recorded, signature: Signature) -> Float[np.ndarray, "V N E"]:
    """Return each pair's abstract effect on the logits, of classes or of bits."""
    bits = isinstance(fit.readout, Bits) or signature.mode == "bit_delta"
    apart = Signature("bit_delta" if bits else "logit_delta", classes=signature.classes)
    flat = np.asarray(abstract_signatures(fit.bank, fit.runs.outputs.shape[1], apart))
    return np.swapaxes(flat.reshape(len(flat), -1, fit.bank.size), 1, 2)


def _asked(
    generator: np.random.Generator, effects: Float[np.ndarray, "V N E"], fit: Recorded
) -> tuple[Float[np.ndarray, "N E"], Bool[np.ndarray, "V N"]]:
    """Return the unit direction of each pair, and for which variables it is asked.

    Raises:
      ValueError: a variable is asked for nowhere.
    """
    bank: PairBank = fit.bank
    sensitive = (effects != 0).any(axis=-1) & np.asarray(bank.eligible)
    order = np.where(sensitive, generator.random(sensitive.shape), -1.0)
    rows, drawn = np.arange(bank.size), order.argmax(axis=0)
    own = effects[drawn, rows]
    signs = _signs(generator, own.shape, centred=not isinstance(fit.readout, Bits))
    directions = np.where(sensitive.any(axis=0)[:, None], own, signs)
    asked = sensitive & (effects == own).all(axis=-1)
    if lost := [name for name, row in zip(bank.variables, asked, strict=True) if not row.any()]:
        raise ValueError(f"got no sensitive pair of {lost} to ask for, expected at least one of every variable")
    norm = np.linalg.norm(directions, axis=-1, keepdims=True)
    return (directions / np.maximum(norm, 1e-30)).astype(np.float32), asked


def _signs(generator: np.random.Generator, shape: tuple[int, int], *, centred: bool) -> Float[np.ndarray, "N E"]:
    """Draw signs; centred, as many of either, since logits of classes have no common level."""
    if not centred:
        return generator.choice((-1.0, 1.0), shape)
    half = shape[1] // 2
    row = np.repeat((1.0, -1.0, 0.0), (half, half, shape[1] - 2 * half))
    return generator.permuted(np.broadcast_to(row, shape), axis=1)


def _cosines(
    moves: Float[np.ndarray, "N S"], asked: Bool[np.ndarray, "V N"], eligible: Bool[np.ndarray, "V N"]
) -> Float[np.ndarray, "V S"]:
    """Return the scores; 0 of a site that moves nothing, NaN of one that moves a pair by what is not finite."""
    largest = np.abs(moves).max(axis=0)
    with np.errstate(invalid="ignore"):
        unit = (moves / np.where(largest > 0, largest, 1.0)).astype(np.float64)  # no square is too small or too large
        along, energy = asked.astype(float) @ unit, eligible.astype(float) @ unit**2
        scores = along / np.sqrt(np.maximum(asked.sum(axis=1)[:, None] * energy, 1e-30))
    return np.where(np.isfinite(largest), scores, np.nan)


def _top(scores: Float[np.ndarray, "V S"], count: int, variables: Sequence[str]) -> Bool[np.ndarray, "V S"]:
    """Mark the highest finite scores of each variable, the first of equals."""
    finite = np.isfinite(scores)
    if not finite.any(axis=1).all():
        lost = [name for name, row in zip(variables, finite, strict=True) if not row.any()]
        raise ValueError(f"got no finite gradient at any site for {lost}, expected at least one")
    order = np.argsort(-np.where(finite, scores, -np.inf), axis=1, kind="stable")[:, :count]
    kept = np.zeros(scores.shape, bool)
    np.put_along_axis(kept, order, True, axis=1)
    return kept & finite
