"""Margin certificates: how often can a reduced model's top class differ, given how far its logits moved?

With the dense margin m = z_(1) - z_(2), the error e = z_red - z_dense and its centred form e~ = e - mean(e):

    plain         Pr(differ) <= Pr(m <= 2 eps)       + E ||e||^2 / eps^2            any eps > 0   (CMR)
    centred       Pr(differ) <= Pr(m <= sqrt(2) eps) + E ||e~||^2 / eps^2
    per sample    Pr(differ) <= E min(1, 2 ||e~||^2 / m^2)

If the top class changes, e_k - e_top >= m for some k, while e_k - e_top <= 2 ||e||_inf and <= sqrt(2) ||e~||; the
rest is Markov's inequality. Hence per sample <= centred (any eps) <= plain (same eps).

A row in which a logit of either model is not finite counts as a disagreement with certainty: it adds 1 to each bound.

These are statements about a population. On a sample they are estimates, and the smallest over a grid of eps is
chosen by the data: `certified_margins` chooses eps on one half and bounds on the other.
"""

import numpy as np
from jaxtyping import Float

from abstraction.evaluation.sequences import upper_bound
from abstraction.pytrees import pytree
from abstraction.typing import AnyArray


@pytree
class MarginBounds:
    """Bounds on the rate of top-1 disagreement as estimated on one sample; none exceeds 1.

    Attributes:
      disagreement: the rate itself.
      epsilons: the grid, `[R]`.
      plain: the plain bound at each eps, `[R]`.
      centred: the centred bound at each eps, `[R]`.
      per_sample: the bound that needs no eps.
    """

    disagreement: float
    epsilons: Float[np.ndarray, " R"]
    plain: Float[np.ndarray, " R"]
    centred: Float[np.ndarray, " R"]
    per_sample: float

    @property
    def best_plain(self) -> float:
        """The smallest plain bound; the data chose its eps."""
        return float(self.plain.min())

    @property
    def best_centred(self) -> float:
        """The smallest centred bound; the data chose its eps."""
        return float(self.centred.min())


@pytree
class CertifiedMargins:
    """Upper bounds on the population's disagreement rate, each by itself wrong with probability at most delta.

    Attributes:
      plain: from the second half of the sample, at `plain_epsilon`.
      centred: from the second half of the sample, at `centred_epsilon`.
      per_sample: from the whole sample.
      plain_epsilon: chosen on the first half.
      centred_epsilon: chosen on the first half.
    """

    plain: float
    centred: float
    per_sample: float
    plain_epsilon: float
    centred_epsilon: float


def margin_bounds(
    dense: Float[AnyArray, "N C"], reduced: Float[AnyArray, "N C"], epsilons: Float[np.ndarray, " R"] | None = None
) -> MarginBounds:
    """Estimate the three bounds from logits of both models on the same interventions.

    Args:
      dense: logits of the dense model.
      reduced: logits of the reduced model.
      epsilons: positive values; by default `epsilon_grid` of the same logits.

    Raises:
      ValueError: no rows, fewer than two classes, logits of two shapes, or an eps that is not positive and finite.
    """
    epsilons = epsilon_grid(dense, reduced) if epsilons is None else _checked(epsilons)
    margin, error, centred = _margins(dense, reduced)
    differ = np.argmax(dense, axis=1) != np.argmax(reduced, axis=1)
    unread = ~np.isfinite(np.asarray(dense)).all(axis=1) | ~np.isfinite(np.asarray(reduced)).all(axis=1)
    return MarginBounds(
        float((differ | unread).mean()),
        epsilons,
        _bounds(margin, error, 2.0, epsilons),
        _bounds(margin, centred, np.sqrt(2), epsilons),
        float(_per_sample(margin, centred).mean()),
    )


def certified_margins(
    dense: Float[AnyArray, "N C"],
    reduced: Float[AnyArray, "N C"],
    delta: float,
    epsilons: Float[np.ndarray, " R"] | None = None,
) -> CertifiedMargins:
    """Bound the disagreement rate of the population the rows were drawn from.

    eps is chosen on the first half of the rows. On the second half, Pr(m <= c eps) and E min(1, ||e||^2 / eps^2) each
    get the upper end of a betting sequence at delta/2; the minimum with 1 changes nothing in the proof. The
    per-sample bound chooses nothing and uses all rows at delta.

    Args:
      dense: logits of the dense model, in the order the interventions were drawn.
      reduced: logits of the reduced model.
      delta: probability that one of the bounds is too small.
      epsilons: positive values; by default `epsilon_grid` of the first half.

    Raises:
      ValueError: fewer than two rows or two classes, logits of two shapes, or an argument out of range.
    """
    half = len(dense) // 2
    if half == 0:
        raise ValueError(f"got {len(dense)} rows, expected at least 2")
    margin, error, centred = _margins(dense, reduced)
    first = margin_bounds(dense[:half], reduced[:half], epsilons)
    plain_epsilon = float(first.epsilons[first.plain.argmin()])
    centred_epsilon = float(first.epsilons[first.centred.argmin()])
    return CertifiedMargins(
        _certified(margin[half:], error[half:], 2.0, plain_epsilon, delta),
        _certified(margin[half:], centred[half:], np.sqrt(2), centred_epsilon, delta),
        float(upper_bound(_per_sample(margin, centred), delta)),
        plain_epsilon,
        centred_epsilon,
    )


def epsilon_grid(
    dense: Float[AnyArray, "N C"], reduced: Float[AnyArray, "N C"], count: int = 64
) -> Float[np.ndarray, " R"]:
    """Return geometric eps from a quarter of the typical error to the largest margin, or errors if they are larger.

    Raises:
      ValueError: no rows, fewer than two classes, logits of two shapes, or a count below 1.
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"got a grid of {count} epsilons, expected an integer of at least 1")
    margin, error, _ = _margins(dense, reduced)
    typical = np.sqrt((error**2).mean())
    largest = max(margin.max(), 2 * typical) or 1.0
    return np.geomspace(max(typical / 4, largest * 1e-6), largest, count)


def _margins(
    dense: Float[AnyArray, "N C"], reduced: Float[AnyArray, "N C"]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Return m, ||e|| and ||e~|| per row, in float64."""
    logits, moved = np.asarray(dense, np.float64), np.asarray(reduced, np.float64)
    if logits.ndim != 2 or logits.shape != moved.shape or not len(logits):
        raise ValueError(
            f"got logits of shapes {logits.shape} and {moved.shape}, expected at least one row, and the same rows and "
            "classes of both models"
        )
    if logits.shape[1] < 2:
        raise ValueError(f"got {logits.shape[1]} classes, expected at least 2: a margin is between two")
    with np.errstate(invalid="ignore", over="ignore"):
        error = moved - logits
        top = np.partition(logits, -2, axis=1)
        margin = top[:, -1] - top[:, -2]
        centred = error - error.mean(axis=1, keepdims=True)
        distance, spread = np.linalg.norm(error, axis=1), np.linalg.norm(centred, axis=1)
    # Without a margin and without an error, a row counts in Pr(m <= 2 eps) and per sample: 1 in each bound.
    read = np.isfinite(distance)
    return np.where(read, margin, 0.0), np.where(read, distance, 0.0), np.where(read, spread, 0.0)


def _bounds(
    margin: Float[np.ndarray, " N"], distance: Float[np.ndarray, " N"], factor: float, epsilons: Float[np.ndarray, " R"]
) -> Float[np.ndarray, " R"]:
    within = np.searchsorted(np.sort(margin), factor * epsilons, side="right") / len(margin)
    return np.minimum(within + (distance**2).mean() / epsilons**2, 1.0)


def _certified(
    margin: Float[np.ndarray, " N"], distance: Float[np.ndarray, " N"], factor: float, epsilon: float, delta: float
) -> float:
    """Bound both terms at delta/2 for an eps chosen elsewhere."""
    within = upper_bound((margin <= factor * epsilon).astype(float), delta / 2)
    beyond = upper_bound(np.minimum(1.0, (distance / epsilon) ** 2), delta / 2)
    return min(float(within + beyond), 1.0)


def _per_sample(margin: Float[np.ndarray, " N"], distance: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Return min(1, 2 ||e~||^2 / m^2); 1 where the dense model itself is tied."""
    tied = margin == 0
    return np.where(tied, 1.0, np.minimum(1.0, 2 * (distance / np.where(tied, 1.0, margin)) ** 2))


def _checked(epsilons: Float[np.ndarray, " R"]) -> Float[np.ndarray, " R"]:
    epsilons = np.asarray(epsilons, np.float64)
    if not (epsilons.ndim == 1 and epsilons.size and epsilons.min() > 0 and epsilons.max() < np.inf):
        raise ValueError(f"got epsilons {epsilons}, expected positive numbers, finite and in one axis")
    return epsilons
