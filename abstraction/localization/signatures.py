"""Effect signatures: what an intervention does to the output, in one space for both levels.

For fit pairs t = 1..N, the abstract effect of variable i and the neural effect of site j at full strength are

    u_i[t] = d(y(b_t; Z_i <- z_i(s_t)), y(b_t)),      v_j[t] = d(f(b_t; S_j <- s_t), f(b_t))

and the cost of matching them is a distance C_ij between u_i and v_j (PLOT, Sec. 3.1). Only the output space is
shared; the widths of the sites never enter. Signatures of C classes are laid out class by class.

Pairs may come in families (all those whose source differs in the same way, say). Then the effect is averaged within
each family first, and a signature has one entry per family and class, family by family. Costs may compare signatures
as they are, divided by their norm, or with each family's entries centred and divided by their norm (a network's logits
have no scale and no zero; a family without effect then stays zero).

| mode | neural effect per pair | abstract effect per pair |
|---|---|---|
| `prob_delta` | change of the class probabilities | change of the one-hot label |
| `logit_delta` | change of the logits | change of the one-hot label |
| `margin_delta` | change of logit 1 minus logit 0 | change of the label coded -1, 1 |
| `transition_margin` | its positive part, its negative part | label went 0 to 1, label went 1 to 0 |
| `bit_delta` | change of the probability of each bit | change of the bits of the label |
| `kl` | 1 - exp(-KL(patched || base)) | label changed |
| `tv` | half the L1 distance of the probabilities | label changed |
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from abstraction.causal import PairBank
from abstraction.checks import flag, one_of, whole
from abstraction.evaluation import Recorded
from abstraction.evaluation.recording import check_recorded
from abstraction.interventions import Handle, SiteBank
from abstraction.interventions.patching import Runs, map_handles, patched_outputs, resume_chunk
from abstraction.interventions.sites import check_sites
from abstraction.localization.distances import CostMetric, transport_cost
from abstraction.models import Network

SignatureMode = Literal["prob_delta", "bit_delta", "logit_delta", "margin_delta", "transition_margin", "kl", "tv"]
Families: TypeAlias = Int[np.ndarray, " N"] | None
_NO_EFFECT, _SMALL = 1e-8, 1e-4
_CHANGE_ALONE = ("kl", "tv")
"""Modes whose abstract effect is that the label changed, whatever it is."""


class Effects(NamedTuple):
    """Step 1: what variables and sites do to the output.

    Attributes:
      abstract: signatures of the variables, `[V, F]`.
      neural: signatures of the sites, `[S, F]`.
      cost: transport cost, `[V, S]`.
      sites: what the columns are.
    """

    abstract: Float[Array, "V F"]
    neural: Float[Array, "S F"]
    cost: Float[Array, "V S"]
    sites: SiteBank


@dataclass(frozen=True, eq=False)
class Signature:
    """How effects are measured and compared.

    Attributes:
      mode: the effect, see the module.
      metric: `sq_l2` |u - v|^2, `l1` |u - v|_1, or `cosine` 1 - cos(u, v).
      unit: divide each signature by its Euclidean norm first.
      blocks: centre and normalise each family's part of a signature, instead.
      families: the family of each pair, 0 to their number less one; None keeps pairs apart.
      classes: outputs that count, the first so many; by default all.

    Raises:
      ValueError: an unknown word, families that are not whole numbers from 0 on, blocks without families, or fewer than
        one class.
    """

    mode: SignatureMode = "prob_delta"
    metric: CostMetric = "sq_l2"
    unit: bool = False
    blocks: bool = False
    families: Families = None
    classes: int | None = None

    def __post_init__(self) -> None:
        one_of("signature mode", self.mode, get_args(SignatureMode))
        one_of("cost metric", self.metric, get_args(CostMetric))
        flag("unit", self.unit)
        flag("blocks", self.blocks)
        if self.classes is not None:
            whole("classes", self.classes)
        if self.blocks and self.families is None:
            raise ValueError("got blocks without families, expected the family of each pair, whose parts they are")
        if self.families is not None:
            values = np.asarray(self.families)
            if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer) or not values.size or values.min() < 0:
                raise ValueError(
                    f"got families of shape {values.shape} and type {values.dtype}, expected a whole number from 0 on "
                    "for each pair"
                )


SIGNATURE = Signature()


class _Effect(NamedTuple):
    """How one mode measures: neural from (patched, base) logits `[N, C]`, abstract from labels `[N]`."""

    neural: Callable[[Array, Array], Array]
    abstract: Callable[[Array, Array, int], Array]
    binary_only: bool = False


def _one_hot_delta(label: Array, factual: Array, classes: int) -> Array:
    return jax.nn.one_hot(label, classes) - jax.nn.one_hot(factual, classes)


def _bits(label: Array, count: int) -> Array:
    return (label[:, None] >> jnp.arange(count) & 1).astype(jnp.float32)


def _changed(label: Array, factual: Array, classes: int) -> Array:
    return (label != factual)[:, None].astype(jnp.float32)


def _margin_delta(patched: Array, base: Array) -> Array:
    return ((patched - base) @ jnp.array([-1.0, 1.0]))[:, None]


def _parts(delta: Array) -> Array:
    return jnp.concatenate([jax.nn.relu(delta), jax.nn.relu(-delta)], axis=-1)


def _kl(patched: Array, base: Array) -> Array:
    patched, base = jax.nn.log_softmax(patched), jax.nn.log_softmax(base)
    return -jnp.expm1(-(jnp.exp(patched) * (patched - base)).sum(axis=-1, keepdims=True))


def _prob_delta(patched: Array, base: Array) -> Array:
    return jax.nn.softmax(patched) - jax.nn.softmax(base)


_EFFECTS: dict[str, _Effect] = {
    "prob_delta": _Effect(_prob_delta, _one_hot_delta),
    "bit_delta": _Effect(
        lambda patched, base: jax.nn.sigmoid(patched) - jax.nn.sigmoid(base),
        lambda label, factual, count: _bits(label, count) - _bits(factual, count),
    ),
    "logit_delta": _Effect(lambda patched, base: patched - base, _one_hot_delta),
    "margin_delta": _Effect(
        _margin_delta, lambda label, factual, _: 2.0 * (label - factual)[:, None].astype(jnp.float32), binary_only=True
    ),
    "transition_margin": _Effect(
        lambda patched, base: _parts(_margin_delta(patched, base)),
        lambda label, factual, _: _parts((label - factual)[:, None].astype(jnp.float32)),
        binary_only=True,
    ),
    "kl": _Effect(_kl, _changed),
    "tv": _Effect(lambda patched, base: 0.5 * jnp.abs(_prob_delta(patched, base)).sum(-1, keepdims=True), _changed),
}


def abstract_signatures(bank: PairBank, classes: int, signature: Signature = SIGNATURE) -> Float[Array, "V F"]:
    """Measure what each variable's interchange does to the causal model's output.

    Args:
      bank: fit pairs, of labels from 0 on.
      classes: number of output classes C, or of output bits.
      signature: how effects are measured.

    Raises:
      ValueError: a two-class mode for other than two classes, a label that is none of the classes, or families of
        another number of pairs.
    """
    mode = signature.mode
    _effect(mode, classes)
    _check_labels(bank, classes, mode)
    return _abstract_signatures(bank.labels, bank.factual, _family_means(signature.families, bank.size), classes, mode)


def _check_labels(bank: PairBank, classes: int, mode: SignatureMode) -> None:
    """Refuse labels that a signature has no place for: their effect would be 0."""
    values = np.concatenate([np.asarray(bank.labels).ravel(), np.asarray(bank.factual).ravel()])
    most = 2**classes if mode == "bit_delta" else classes
    counts = values.dtype.kind in "iu" and values.size and values.min() >= 0
    if not counts or (mode not in _CHANGE_ALONE and values.max() >= most):
        found = f"{values.min()} to {values.max()}" if values.size else "none"
        raise ValueError(
            f"got labels {found} of type {values.dtype}, expected integers of 0 to {most - 1} for signatures "
            f"{mode!r} of {classes} classes"
        )


@partial(jax.jit, static_argnames=("classes", "mode"))
def _abstract_signatures(
    labels: Int[Array, "V N"], factual: Int[Array, " N"], means: Array | None, classes: int, mode: SignatureMode
) -> Float[Array, "V F"]:
    effect = _effect(mode, classes)
    return jax.vmap(lambda labels: _flat(effect.abstract(labels, factual, classes), means))(labels)


class _Measuring(NamedTuple):
    """What a program that measures is compiled for."""

    mode: SignatureMode
    chunk: int
    classes: int


@partial(jax.jit, static_argnames=("measuring",))
def _site_signatures(
    network: Network, runs: Runs, sites: SiteBank, means: Array | None, measuring: _Measuring
) -> Float[Array, "S F"]:
    classes, effect = measuring.classes, _effect(measuring.mode, measuring.classes)
    base = runs.outputs[:, :classes]

    def signature(site: tuple[Array, Array, Array]) -> Float[Array, " F"]:
        depth, index, value = site
        # Spread over all features here, for the sites of one chunk at a time.
        weight = jnp.zeros(sites.features, value.dtype).at[index].add(value)
        basis = jax.tree.map(lambda leaf: jnp.asarray(leaf)[depth], sites.basis)
        handle = Handle(sites.tap, weight, basis, depth)
        return _flat(effect.neural(patched_outputs(network, runs, handle)[:, :classes], base), means)

    return map_handles(signature, (sites.depth, sites.index, sites.value), chunk=measuring.chunk)


def site_signatures(
    network: Network, runs: Runs, sites: SiteBank, signature: Signature = SIGNATURE
) -> Float[Array, "S F"]:
    """Measure what swapping each site, alone and at full strength, does to the network's output.

    Args:
      network: the network.
      runs: base and source runs of the fit pairs.
      sites: the sites to measure, all in one compiled program.
      signature: how effects are measured.

    Returns:
      One signature per site; a site without causal effect has the zero signature.

    Raises:
      ValueError: sites that do not fit their tap, a two-class mode for other than two classes, or families of another
        number of pairs.
    """
    if sites.tap not in runs.source:
        raise ValueError(f"got sites of tap {sites.tap!r}, expected a recorded tap: {sorted(runs.source)}")
    check_sites(sites, network.taps[sites.tap])
    means = _family_means(signature.families, runs.outputs.shape[0])
    measuring = _Measuring(signature.mode, resume_chunk(runs, sites.tap), _classes(runs, signature.classes))
    return _site_signatures(network, runs, sites, means, measuring)


def measure_effects(network: Network, fit: Recorded, sites: SiteBank, signature: Signature = SIGNATURE) -> Effects:
    """Measure signatures on fit pairs and the cost between them.

    Args:
      network: the network.
      fit: recorded fit pairs.
      sites: the sites to measure.
      signature: how effects are measured and compared.

    Raises:
      ValueError: the bank is not a fit bank, a signature is not finite, or what `site_signatures` refuses.
    """
    check_recorded(fit)
    if fit.bank.role != "fit":
        raise ValueError(f"got a {fit.bank.role} bank to measure effects on, expected a fit bank")
    abstract = abstract_signatures(fit.bank, _classes(fit.runs, signature.classes), signature)
    neural = site_signatures(network, fit.runs, sites, signature)
    broken = np.flatnonzero(~np.isfinite(np.asarray(neural)).all(axis=1))
    if len(broken):
        raise ValueError(
            f"got effects of sites {broken[:8].tolist()} ({len(broken)} of {sites.size}) that are not finite, expected "
            "finite outputs of every patched run"
        )
    families = signature.families
    parts = len(np.unique(families)) if families is not None and signature.blocks else 1
    cost = transport_cost(abstract, neural, metric=signature.metric, unit=signature.unit, blocks=parts)
    return Effects(abstract, neural, cost, sites)


def check_heard(network: Network, fit: Recorded, effects: Effects, signature: Signature = SIGNATURE) -> None:
    """Refuse a network whose outputs no site changes: it ignores every edit, or says the same whatever happens.

    Raises:
      ValueError: as said.
    """
    outputs, neural, sites = np.asarray(fit.runs.outputs), np.asarray(effects.neural), effects.sites
    if np.abs(neural).max(initial=0.0) > _SMALL * max(1.0, float(np.abs(outputs).max())):
        return
    # A patched run sums in another order than a plain one, so that no edit at all has an effect of its own, if a small
    # one: sites that have that effect, to the last bits, have none.
    idle = dataclasses.replace(sites, value=np.zeros_like(sites.value))
    moved = np.abs(neural - np.asarray(site_signatures(network, fit.runs, idle, signature))).max(initial=0.0)
    if moved <= _NO_EFFECT:
        raise ValueError(
            f"got effects of at most {_NO_EFFECT} at all {sites.size} sites of tap {sites.tap!r}, expected a network "
            "whose outputs an edit changes"
        )


def _classes(runs: Runs, classes: int | None) -> int:
    outputs = runs.outputs.shape[-1]
    if classes is not None and not 1 <= classes <= outputs:
        raise ValueError(f"got {classes} classes, expected 1 to {outputs}, the outputs there are")
    return outputs if classes is None else classes


def _effect(mode: str, classes: int) -> _Effect:
    if mode not in _EFFECTS:
        raise ValueError(f"got signature mode {mode!r}, expected one of {sorted(_EFFECTS)}")
    if _EFFECTS[mode].binary_only and classes != 2:
        raise ValueError(f"got signature mode {mode!r} with {classes} classes, expected 2 classes")
    return _EFFECTS[mode]


def _flat(effect: Float[Array, "N C"], means: Float[Array, "G N"] | None = None) -> Float[Array, " F"]:
    return effect.T.reshape(-1) if means is None else (means @ effect).reshape(-1)


def _family_means(families: Families, pairs: int) -> Float[np.ndarray, "G N"] | None:
    """Return the matrix that averages within families."""
    if families is None:
        return None
    counts = np.bincount(np.asarray(families))
    if len(families) != pairs or not counts.all():
        raise ValueError(
            f"got families of {len(families)} pairs with sizes {counts.tolist()}, expected one for each of {pairs} "
            "pairs and no family without pairs"
        )
    return ((np.arange(len(counts))[:, None] == families) / counts[:, None]).astype(np.float32)
