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
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from abstraction.causal import PairBank
from abstraction.checks import flag, one_of, whole
from abstraction.interventions import Handle, SiteBank
from abstraction.interventions.patching import Runs, map_handles, patched_outputs, planned_chunk
from abstraction.interventions.sites import check_sites
from abstraction.localization.distances import CostMetric
from abstraction.models import Network
from abstraction.planning import Program
from abstraction.sharding import mesh_of, over

SignatureMode = Literal["prob_delta", "bit_delta", "logit_delta", "margin_delta", "transition_margin", "kl", "tv"]
Families: TypeAlias = Int[np.ndarray, " N"] | None
_CHANGE_ALONE = ("kl", "tv")
"""Modes whose abstract effect is that the label changed, whatever it is."""


def _check_classes(classes: int | tuple[int, ...] | None, mode: SignatureMode) -> None:
    if not isinstance(classes, tuple):
        if classes is not None:
            whole("classes", classes)
        return
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(f"got classes {classes}, expected at least one, and each only once")
    for each in classes:
        whole("class", each, least=0)
    if mode == "bit_delta":
        raise ValueError(f"got classes {classes} for signatures of bits, expected a number of bits, the lowest")


@dataclass(frozen=True, eq=False)
class Signature:
    """How effects are measured and compared.

    Attributes:
      mode: the effect, see the module.
      metric: `sq_l2` |u - v|^2, `l1` |u - v|_1, or `cosine` 1 - cos(u, v).
      unit: divide each signature by its Euclidean norm first.
      blocks: centre and normalise each family's part of a signature, instead.
      families: the family of each pair, 0 to their number less one; None keeps pairs apart.
      classes: outputs that count: the first so many, or those of a tuple, such as `answer_classes`; by default all.
      memory: bytes of signatures to keep; where they are more, costs are measured some sites at a time and the
        signatures are not kept.

    Raises:
      ValueError: an unknown word, families that are not whole numbers from 0 on, blocks without families, fewer than
        one class, a class named twice, bits picked one by one, or no memory.
    """

    mode: SignatureMode = "prob_delta"
    metric: CostMetric = "sq_l2"
    unit: bool = False
    blocks: bool = False
    families: Families = None
    classes: int | tuple[int, ...] | None = None
    memory: int = 2**30

    def __post_init__(self) -> None:
        one_of("signature mode", self.mode, get_args(SignatureMode))
        one_of("cost metric", self.metric, get_args(CostMetric))
        flag("unit", self.unit)
        flag("blocks", self.blocks)
        whole("memory", self.memory)
        _check_classes(self.classes, self.mode)
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


def answer_classes(*banks: PairBank) -> tuple[int, ...]:
    """Return the classes that occur as a label, before or after an interchange, in increasing order.

    Of a language model's vocabulary these are the few outputs that an abstract effect can be in.
    """
    labels = [np.ravel(values) for bank in banks for values in (bank.labels, bank.factual)]
    return tuple(np.unique(np.concatenate(labels)).tolist())


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
    mode, columns = signature.mode, counted_outputs(signature.classes, classes)
    count = classes if columns is None else len(columns)
    _effect(mode, count)
    labels, factual = np.asarray(bank.labels), np.asarray(bank.factual)
    if isinstance(signature.classes, tuple) and mode not in _CHANGE_ALONE and labels.dtype.kind in "iu":
        labels, factual = (_places(values, signature.classes) for values in (labels, factual))
    _check_labels(labels, factual, count, mode)
    return _abstract_signatures(labels, factual, family_means(signature.families, bank.size), count, mode)


def _places(labels: Int[np.ndarray, "*S"], classes: tuple[int, ...]) -> Int[np.ndarray, "*S"]:
    """Return each label's place among the classes."""
    order = np.argsort(classes)
    sorted_classes = np.asarray(classes)[order]
    place = np.minimum(np.searchsorted(sorted_classes, labels), len(classes) - 1)
    if missing := np.setdiff1d(labels, sorted_classes).tolist():
        raise ValueError(f"got labels {missing[:8]}, expected some of the {len(classes)} classes of the signatures")
    return order[place].astype(np.int32)


def _check_labels(
    labels: Int[np.ndarray, "V N"], factual: Int[np.ndarray, " N"], classes: int, mode: SignatureMode
) -> None:
    """Refuse labels that a signature has no place for: their effect would be 0."""
    values = np.concatenate([labels.ravel(), factual.ravel()])
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
    mesh: Mesh | None


@partial(jax.jit, static_argnames=("measuring",))
def _site_signatures(
    network: Network,
    runs: Runs,
    sites: SiteBank,
    means: Array | None,
    columns: Int[Array, " C"] | None,
    measuring: _Measuring,
) -> Float[Array, "S F"]:
    effect = _effect(measuring.mode, measuring.classes)
    tap, features = sites.tap, sites.features

    def signature(given: tuple[Any, ...], site: tuple[Array, Array, Array]) -> Float[Array, " F"]:
        (network, runs, basis, means, columns), (depth, index, value) = given, site
        # Spread over all features here, for the sites of one chunk at a time.
        weight = jnp.zeros(features, value.dtype).at[index].add(value)
        basis = jax.tree.map(lambda leaf: jnp.asarray(leaf)[depth], basis)
        counted = lambda outputs: outputs if columns is None else outputs[:, columns]
        patched = counted(patched_outputs(network, runs, Handle(tap, weight, basis, depth)))
        return _flat(effect.neural(patched, counted(runs.outputs)), means)

    every, given = (sites.depth, sites.index, sites.value), (network, runs, sites.basis, means, columns)
    return map_handles(signature, every, chunk=measuring.chunk, given=(given,), mesh=measuring.mesh)


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
    at = partial(signature_program, network, runs, sites, signature)
    return at(planned_chunk(at, network, runs, sites.tap, sites.depth))()


def signature_program(network: Network, runs: Runs, sites: SiteBank, signature: Signature, chunk: int) -> Program:
    """Make the program of `site_signatures`, so many sites at a time."""
    means = family_means(signature.families, runs.outputs.shape[0])
    outputs = runs.outputs.shape[-1]
    columns = counted_outputs(signature.classes, outputs)
    mesh = mesh_of(network.params)
    measuring = _Measuring(signature.mode, chunk, outputs if columns is None else len(columns), mesh)
    given = network, runs, *over(mesh, None, (sites, means, columns))
    return Program(_site_signatures, given, {"measuring": measuring})


def signature_length(runs: Runs, signature: Signature) -> int:
    """Return F, the numbers of one signature of these runs."""
    pairs, outputs = runs.outputs.shape
    columns = counted_outputs(signature.classes, outputs)
    entries = pairs if signature.families is None else len(np.unique(signature.families))
    width = {"margin_delta": 1, "transition_margin": 2, "kl": 1, "tv": 1}
    return entries * width.get(signature.mode, outputs if columns is None else len(columns))


def counted_outputs(classes: int | tuple[int, ...] | None, outputs: int) -> Int[np.ndarray, " C"] | None:
    """Return which outputs count, None where all do."""
    most = max(classes) + 1 if isinstance(classes, tuple) else classes
    if most is not None and not 1 <= most <= outputs:
        raise ValueError(f"got {classes} classes, expected 1 to {outputs}, the outputs there are")
    if classes is None or classes == outputs:
        return None
    return np.asarray(classes) if isinstance(classes, tuple) else np.arange(classes)


def _effect(mode: str, classes: int) -> _Effect:
    if mode not in _EFFECTS:
        raise ValueError(f"got signature mode {mode!r}, expected one of {sorted(_EFFECTS)}")
    if _EFFECTS[mode].binary_only and classes != 2:
        raise ValueError(f"got signature mode {mode!r} with {classes} classes, expected 2 classes")
    return _EFFECTS[mode]


def neural_effect(mode: str, patched: Float[Array, "N C"], base: Float[Array, "N C"]) -> Float[Array, "N E"]:
    """Return the effect per pair of one mode, of outputs that count."""
    return _effect(mode, patched.shape[-1]).neural(patched, base)


def _flat(effect: Float[Array, "N C"], means: Float[Array, "G N"] | None = None) -> Float[Array, " F"]:
    return effect.T.reshape(-1) if means is None else (means @ effect).reshape(-1)


def family_means(families: Families, pairs: int) -> Float[np.ndarray, "G N"] | None:
    """Return the matrix that averages within families, None where pairs are kept apart."""
    if families is None:
        return None
    counts = np.bincount(np.asarray(families))
    if len(families) != pairs or not counts.all():
        raise ValueError(
            f"got families of {len(families)} pairs with sizes {counts.tolist()}, expected one for each of {pairs} "
            "pairs and no family without pairs"
        )
    return ((np.arange(len(counts))[:, None] == families) / counts[:, None]).astype(np.float32)
