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

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from abstraction.causal import PairBank
from abstraction.interventions import LocalHandle, Recording, SiteBank, map_handles, patched_outputs, resume_chunk
from abstraction.models import Model
from abstraction.typing import AnyArray, Params

SignatureMode = Literal["prob_delta", "bit_delta", "logit_delta", "margin_delta", "transition_margin", "kl", "tv"]
Families: TypeAlias = Int[np.ndarray, " N"] | None
CostMetric = Literal["sq_l2", "l1", "cosine"]


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


def abstract_signatures(
    bank: PairBank, classes: int, *, mode: SignatureMode = "prob_delta", families: Families = None
) -> Float[Array, "V F"]:
    """Measure what each variable's interchange does to the causal model's output.

    Args:
      bank: fit pairs.
      classes: number of output classes C, or of output bits.
      mode: the effect, see the module.
      families: the family of each pair, 0 to their number less one; None keeps pairs apart.

    Raises:
      ValueError: an unknown mode, or a two-class mode for other than two classes.
    """
    _effect(mode, classes)
    return _abstract_signatures(bank.labels, bank.factual, _family_means(families, bank.size), classes, mode)


@partial(jax.jit, static_argnames=("classes", "mode"))
def _abstract_signatures(
    labels: Int[Array, "V N"], factual: Int[Array, " N"], means: Array | None, classes: int, mode: SignatureMode
) -> Float[Array, "V F"]:
    effect = _effect(mode, classes)
    return jax.vmap(lambda labels: _flat(effect.abstract(labels, factual, classes), means))(labels)


@partial(jax.jit, static_argnames=("model", "mode", "chunk", "classes"))
def _site_signatures(
    model: Model,
    params: Params,
    recording: Recording,
    handles: LocalHandle,
    means: Array | None,
    mode: SignatureMode,
    chunk: int,
    classes: int,
) -> Float[Array, "S F"]:
    effect = _effect(mode, classes)
    base = recording.outputs[:, :classes]

    def signature(handle: LocalHandle) -> Float[Array, " F"]:
        return _flat(effect.neural(patched_outputs(model, params, recording, handle)[:, :classes], base), means)

    return map_handles(signature, handles, chunk=chunk)


def site_signatures(
    model: Model,
    params: Params,
    recording: Recording,
    sites: SiteBank,
    *,
    mode: SignatureMode = "prob_delta",
    families: Families = None,
    classes: int | None = None,
) -> Float[Array, "S F"]:
    """Measure what swapping each site, alone and at full strength, does to the network's output.

    Args:
      model: the network.
      params: its weights.
      recording: base and source runs of the fit pairs.
      sites: the sites to measure, all in one compiled program.
      mode: the effect, see the module.
      families: the family of each pair, see `abstract_signatures`.
      classes: outputs that count, the first so many; by default all.

    Returns:
      One signature per site; a site without causal effect has the zero signature.

    Raises:
      ValueError: an unknown mode, or a two-class mode for other than two classes.
    """
    means, chunk = _family_means(families, recording.outputs.shape[0]), resume_chunk(recording, sites.tap)
    classes = _classes(recording, classes)
    return _site_signatures(model, params, recording, sites.handles(), means, mode, chunk, classes)


def transport_cost(
    abstract: Float[AnyArray, "V F"],
    neural: Float[AnyArray, "S F"],
    *,
    metric: CostMetric = "sq_l2",
    unit: bool = False,
    blocks: int = 1,
) -> Float[Array, "V S"]:
    """Return the distance of every variable's signature to every site's.

    Args:
      abstract: signatures u of the variables.
      neural: signatures v of the sites.
      metric: `sq_l2` |u - v|^2, `l1` |u - v|_1, or `cosine` 1 - cos(u, v).
      unit: divide each signature by its Euclidean norm first (norms below 1e-30 count as 1e-30).
      blocks: centre and divide by their norm this many equal parts of each signature, one per family, instead.

    Raises:
      ValueError: an unknown metric, or signatures that cannot be parted so.
    """
    if metric not in get_args(CostMetric):
        raise ValueError(f"got cost metric {metric!r}, expected one of {get_args(CostMetric)}")
    if blocks < 1 or abstract.shape[1] % blocks:
        raise ValueError(f"got {blocks} blocks of signatures of length {abstract.shape[1]}, expected a divisor")
    if blocks > 1:
        abstract, neural = centred_blocks(abstract, blocks), centred_blocks(neural, blocks)
    return _transport_cost(abstract, neural, metric, unit)


@partial(jax.jit, static_argnames=("metric", "unit"))
def _transport_cost(abstract: AnyArray, neural: AnyArray, metric: CostMetric, unit: bool) -> Float[Array, "V S"]:
    if metric == "cosine":
        return 1 - cosine_similarity(abstract, neural)
    if unit:
        abstract, neural = _unit(abstract), _unit(neural)
    power = jnp.square if metric == "sq_l2" else jnp.abs
    return jax.vmap(lambda u: jax.lax.map(lambda v: power(u - v).sum(), neural))(abstract)


def measure_effects(
    model: Model,
    params: Params,
    recording: Recording,
    bank: PairBank,
    sites: SiteBank,
    *,
    mode: SignatureMode = "prob_delta",
    metric: CostMetric = "sq_l2",
    unit: bool = False,
    blocks: bool = False,
    families: Families = None,
    classes: int | None = None,
) -> Effects:
    """Measure signatures on fit pairs and the cost between them.

    Args:
      model: the network.
      params: its weights.
      recording: base and source runs of the fit pairs.
      bank: the fit pairs.
      sites: the sites to measure.
      mode: the effect, see the module.
      metric: see `transport_cost`.
      unit: see `transport_cost`.
      blocks: centre and normalise each family's part of a signature, see `transport_cost`.
      families: the family of each pair, see `abstract_signatures`.
      classes: outputs that count, the first so many; by default all.

    Raises:
      ValueError: the bank is a test bank, or an option is unknown.
    """
    if bank.role != "fit":
        raise ValueError(f"got a {bank.role} bank to measure effects on, expected a fit bank")
    abstract = abstract_signatures(bank, _classes(recording, classes), mode=mode, families=families)
    neural = site_signatures(model, params, recording, sites, mode=mode, families=families, classes=classes)
    parts = 1 if families is None or not blocks else len(np.unique(families))
    return Effects(abstract, neural, transport_cost(abstract, neural, metric=metric, unit=unit, blocks=parts), sites)


@jax.jit
def cosine_similarity(abstract: Float[AnyArray, "V F"], neural: Float[AnyArray, "S F"]) -> Float[Array, "V S"]:
    """Return the cosine of the angle between signatures; 0 where one is zero."""
    return _unit(abstract) @ _unit(neural).T


@partial(jax.jit, static_argnames=("blocks",))
def centred_blocks(signatures: Float[AnyArray, "S F"], blocks: int) -> Float[Array, "S F"]:
    """Centre equal parts of each signature and divide them by their norm.

    Parts below 1e-5 of the largest are rounding noise, which must not be blown up: they become zero.
    """
    parts = jnp.asarray(signatures).reshape(*signatures.shape[:-1], blocks, -1)
    parts = parts - parts.mean(axis=-1, keepdims=True)
    norm = jnp.linalg.norm(parts, axis=-1, keepdims=True)
    floor = jnp.maximum(1e-5 * norm.max(), 1e-30)
    return jnp.where(norm > floor, parts / jnp.maximum(norm, floor), 0.0).reshape(signatures.shape)


def _classes(recording: Recording, classes: int | None) -> int:
    outputs = recording.outputs.shape[-1]
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
    counts = np.bincount(families)
    if len(families) != pairs or not counts.all():
        raise ValueError(
            f"got families of {len(families)} pairs with sizes {counts.tolist()}, expected one for each of {pairs} "
            "pairs and no family without pairs"
        )
    return ((np.arange(len(counts))[:, None] == families) / counts[:, None]).astype(np.float32)


def _unit(signatures: Float[AnyArray, "S F"]) -> Float[Array, "S F"]:
    signatures = jnp.asarray(signatures)
    return signatures / jnp.maximum(jnp.linalg.norm(signatures, axis=-1, keepdims=True), 1e-30)
