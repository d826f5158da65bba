"""What replacing one unit by a constant costs, in closed form, and the criteria others prune by.

Replacing unit j by the constant c at every position changes the risk to second order by (docs/method.md)

    Q_j(c) = G_e + c G_k + (H_ee + 2 c H_ek + c^2 H_kk) / 2
    c* = -(G_k + H_ek) / H_kk              for one position  E[h a - g] / E[h]
    score = Q_j(c*)                        for D = kl        E[h (a - c*)^2] / 2 >= 0,  c* within the range of a

Rescaling a ReLU unit, or a product's factor, leaves every such score unchanged. A unit without curvature is *flat*: its
constant is its mean. With label cross-entropy scores may be negative and constants far outside of what the unit ever
does; applied all at once such steps add up and the network collapses.
"""

from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from abstraction.checks import finite, indices, number, one_of, whole
from abstraction.models import Network
from abstraction.randomness import host_generator
from abstraction.reduction.calibration import Calibration, batches, check_calibration
from abstraction.reduction.curvature import suffix_at, tap_gradient
from abstraction.reduction.discrepancies import CE
from abstraction.reduction.moments import Statistics, check_statistics
from abstraction.sharding import mesh_of, on_host
from abstraction.typing import AnyArray

Criterion = Literal["curvature", "variance", "magnitude", "taylor", "obd", "wanda", "flap", "random"]
"""`curvature` is the score above, under the discrepancy the statistics were collected with."""


class ConstantRisk(NamedTuple):
    """The best constant of each unit and what it costs.

    Attributes:
      score: Q_j(c*), `[D]`; in nats for kl and ce.
      constant: c*, `[D]`.
      flat: no curvature, so the constant is the mean, `[D]`.
      outside: c* lies outside of the calibration range of the unit, `[D]`.
    """

    score: Float[np.ndarray, " D"]
    constant: Float[np.ndarray, " D"]
    flat: Bool[np.ndarray, " D"]
    outside: Bool[np.ndarray, " D"]

    @property
    def warning(self) -> str | None:
        """Say that these constants must not be applied together, where that is so."""
        negative, outside = (self.score < 0).mean(), self.outside.mean()
        if negative <= 0.05 and outside <= 0.05:
            return None
        return (
            f"unstable: {negative:.0%} of the units promise a lower loss when replaced and {outside:.0%} of the "
            "constants lie outside of what their unit ever does; each is right alone, together they add up and the "
            "network collapses"
        )


def constant_risk(statistics: Statistics, *, flat: float = 1e-10, relative: bool = True) -> ConstantRisk:
    """Solve every unit's best constant alone.

    Args:
      statistics: of the tap, under the discrepancy of interest.
      flat: below this curvature a unit is flat.
      relative: compare H_kk Var(a) with the median over units; otherwise the sum over examples of H_kk, as the
        authors' code does.

    Raises:
      ValueError: statistics that are not finite, or a threshold below 0.
    """
    check_statistics(statistics)
    number("threshold of flat units", flat)
    names = ("mean", "gradient_eps", "gradient_kappa", "eps_eps", "eps_kappa", "kappa_kappa")
    mean, g_e, g_k, ee, ek, kk = (np.asarray(getattr(statistics, name), np.float64) for name in names)
    if relative:
        scale = kk * statistics.variance
        is_flat = (scale <= flat * np.median(scale)) | (kk <= 0)
    else:
        is_flat = kk * float(statistics.count) <= flat
    constant = np.where(is_flat, mean, -(g_k + ek) / np.where(is_flat, 1.0, kk))
    score = g_e + constant * g_k + (ee + 2 * constant * ek + constant**2 * kk) / 2
    # What is left of sums that cancel is no promise of a lower loss.
    score = np.where(np.abs(score) <= 1e-12 * (np.abs(ee) + np.abs(g_e)), 0.0, score)
    slack = 1e-6 * (np.abs(statistics.low) + np.abs(statistics.high))
    outside = (constant < statistics.low - slack) | (constant > statistics.high + slack)
    return ConstantRisk(score, constant, is_flat, outside)


def unit_scores(
    criterion: Criterion,
    statistics: Statistics,
    *,
    weights: Float[AnyArray, "M D"] | None = None,
    taylor: Float[AnyArray, " D"] | None = None,
    key: Array | None = None,
) -> Float[np.ndarray, " D"]:
    """Score units by a criterion; low scores go first.

        variance Var(a)    magnitude |W_j|_2    obd E[h a^2] / 2    wanda |W_j|_1 rms(a)    taylor E|g (a - mean)|
        flap Var(a) |W_j|_2^2

    Variance is VBP's criterion (arXiv 2507.12988). Wanda (arXiv 2306.11695) scores single weights by |W_ij| |a_j|_2;
    here those of a unit are added up. FLAP (arXiv 2312.11983) scores a unit by how much its input fluctuates, times
    the squared norm of the weights that read it. The others are standard.

    Args:
      criterion: its name.
      statistics: of the tap.
      weights: of everything that reads the tap, for `magnitude`, `wanda` and `flap`, `[M, D]`.
      taylor: what `taylor_scores` returns, for `taylor`.
      key: randomness of `random`.

    Raises:
      ValueError: unknown criterion, what it needs is missing or of other units, or numbers that are not finite.
    """
    needs = {"magnitude": weights, "wanda": weights, "flap": weights, "taylor": taylor, "random": key}
    one_of("criterion", criterion, get_args(Criterion))
    check_statistics(statistics)
    if criterion in needs and needs[criterion] is None:
        what = {"taylor": "taylor scores", "random": "a key"}.get(criterion, "consumer weights")
        raise ValueError(f"got criterion {criterion!r} without {what}, expected them")
    for name, given in (("consumer weights", weights), ("taylor scores", taylor)):
        if given is not None and finite(name, given).shape[-1:] != (statistics.width,):
            raise ValueError(f"got {name} of shape {np.shape(given)}, expected one per unit, {statistics.width}")
    variance = np.asarray(statistics.variance, np.float64)
    if criterion == "curvature":
        return constant_risk(statistics).score
    if criterion == "variance":
        return variance
    if criterion == "obd":
        return np.asarray(statistics.eps_eps, np.float64) / 2
    if criterion == "magnitude":
        return np.linalg.norm(np.asarray(weights, np.float64), axis=0)
    if criterion == "wanda":
        return np.abs(np.asarray(weights, np.float64)).sum(0) * np.sqrt(variance + np.asarray(statistics.mean) ** 2)
    if criterion == "flap":
        return variance * (np.asarray(weights, np.float64) ** 2).sum(0)
    if criterion == "taylor":
        return np.asarray(taylor, np.float64)
    assert key is not None
    return host_generator(key).permutation(statistics.width).astype(np.float64)


def taylor_scores(
    network: Network, calibration: Calibration, tap: str, mean: Float[AnyArray, " D"], *, batch_size: int = 512
) -> Float[np.ndarray, " D"]:
    """Return E |sum over positions of g (a - mean)|, g the gradient of label cross-entropy: first-order pruning.

    Args:
      network: the network.
      calibration: inputs `[N, ...]` and labels, classes `[N]`.
      tap: where.
      mean: of the activations, `[D]`.
      batch_size: examples per run.

    Raises:
      ValueError: labels are missing, what `check_calibration` refuses, an unknown tap, or a mean of other units.
    """
    if calibration.labels is None:
        raise ValueError("got no labels, expected labels for the criterion 'taylor'")
    one_of("tap", tap, sorted(network.taps))
    check_calibration(network, calibration, CE)
    whole("batch size", batch_size)
    if finite("means", mean).shape != (network.taps[tap].width,):
        raise ValueError(f"got means of shape {np.shape(mean)}, expected one per unit, {network.taps[tap].width}")
    total = np.zeros(len(mean))
    for batch in batches(calibration._replace(target=None), batch_size, mesh_of(network.params)):
        total += on_host(_taylor(network, batch, tap, np.asarray(mean)))
    return total / calibration.rows


@partial(jax.jit, static_argnames=("tap",))
def _taylor(network: Network, batch: Calibration, tap: str, mean: Array) -> Array:
    suffix = suffix_at(network, batch.inputs, tap)
    gradient = tap_gradient(network, batch, tap, CE)
    return jnp.abs((gradient * (suffix.activation - mean.astype(gradient.dtype))).sum(1)).sum(0)


def joint_constants(
    gradient: Float[AnyArray, " M"], hessian: Float[AnyArray, "M M"], replaced: AnyArray
) -> tuple[Float[np.ndarray, " S"], float]:
    """Solve the constants of a set together: c_S = -H_kk^+ (G_k + H_ke 1), and their risk Q_S.

    Args:
      gradient: in (eps, kappa), from `replacement_hessian`, `[2 D]`.
      hessian: likewise, `[2 D, 2 D]`.
      replaced: the units S.

    Returns:
      The constants `[S]` and Q_S.

    Raises:
      ValueError: units that are not there or repeat, or numbers that are not finite.
    """
    g, h, replaced = _quadratic(gradient, hessian, replaced)
    eps, kappa = np.asarray(replaced), np.asarray(replaced) + len(g) // 2
    ones = np.ones(len(eps))
    linear = g[kappa] + h[np.ix_(kappa, eps)] @ ones
    # Below the rounding of the Hessian a direction has no curvature, and dividing by what is there makes up constants.
    rounding = len(g) * float(jnp.finfo(np.asarray(hessian).dtype).eps)
    constants = -np.linalg.pinv(h[np.ix_(kappa, kappa)], rcond=max(1e-9, rounding), hermitian=True) @ linear
    return constants, set_risk(g, h, replaced, constants)


def set_risk(
    gradient: Float[AnyArray, " M"], hessian: Float[AnyArray, "M M"], replaced: AnyArray, constants: AnyArray
) -> float:
    """Return Q_S of replacing a set by constants: 1 G_e + c G_k + (1 H_ee 1 + 2 * 1 H_ek c + c H_kk c) / 2.

    Raises:
      ValueError: units that are not there or repeat, not one constant each, or numbers that are not finite.
    """
    g, h, replaced = _quadratic(gradient, hessian, replaced)
    constants = finite("constants", constants).astype(np.float64)
    if constants.shape != replaced.shape:
        raise ValueError(f"got constants of shape {constants.shape}, expected one for each of {len(replaced)} units")
    width = len(g) // 2
    step = np.zeros(2 * width)
    step[replaced], step[width + replaced] = 1.0, constants
    return float(g @ step + step @ h @ step / 2)


def _quadratic(gradient: AnyArray, hessian: AnyArray, replaced: AnyArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check the expansion in (eps, kappa) and the units of a set."""
    g, h = finite("a gradient", gradient).astype(np.float64), finite("a Hessian", hessian).astype(np.float64)
    if g.ndim != 1 or len(g) % 2 or h.shape != (len(g), len(g)):
        raise ValueError(f"got gradient and Hessian of shapes {g.shape} and {h.shape}, expected [2 D] and [2 D, 2 D]")
    return g, h, indices("replaced units", replaced, len(g) // 2)


def off_diagonal_share(gradient: AnyArray, hessian: AnyArray, replaced: AnyArray, constants: AnyArray) -> float:
    """Return rho(S) = (Q_S - sum_j Q_j) / |Q_S|: how far risks are from adding up.

    Raises:
      ValueError: what `set_risk` refuses.
    """
    replaced, constants = np.asarray(replaced), np.asarray(constants)
    joint = set_risk(gradient, hessian, replaced, constants)
    alone = sum(set_risk(gradient, hessian, replaced[i : i + 1], constants[i : i + 1]) for i in range(len(replaced)))
    return (joint - alone) / abs(joint) if joint else 0.0
