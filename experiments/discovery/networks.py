"""The networks of the discovery experiment: dense ones, and what reductions leave of them.

Factual behaviour is measured on inputs that nothing was chosen by; of an adder, on all there are. Fidelity is the share
of interchange trials in which the dense and the reduced network give the same answer: every kept unit takes its value
on another input with probability .1, layer by layer in an MLP, at all steps alike in a GRU.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple, cast

import jax
import numpy as np
from jaxtyping import Array, Int

from abstraction.evaluation import CLASSES, Readout, binomial_interval
from abstraction.evaluation.interchange import View, bernoulli_trials, interchanged_outputs, view
from abstraction.evaluation.readouts import MISS
from abstraction.interventions import factual_outputs
from abstraction.models import GRU, MLP, Decoder, Network, Sequential
from abstraction.models.unrolling import stacked, unrolled
from abstraction.randomness import host_generator
from abstraction.reduction import METHODS, reduce_network
from abstraction.reduction.pipeline import replace_units
from abstraction.reduction.ranking import Ranking, rank_units
from abstraction.tasks import addition, equality
from abstraction.typing import AnyArray, Params
from experiments.addition.network import BITS, exactness, factual_data
from experiments.discovery.options import DENSE, Discovery, Reducer
from experiments.equality.experiment import answers
from experiments.harness.meshes import placed

TAP = "hidden"
PRESETS = {"obs-affine": "obs-affine", "random-affine": "obs-affine", "vbp-zero": "vbp-zero"}
"""How a GRU is reduced, by the method that ranks and replaces its units; random ones are ranked anew."""
MASKED = 0.1
"""Probability with which a unit is interchanged where fidelity is measured."""
Known = dict[tuple[str, str], float]
"""What is known of a network without a search, by part of it (or none) and metric."""
Views = dict[str, tuple[View, View, Int[np.ndarray, " K"]]]
"""By tap: the dense network with all units, the reduced one with its own, and which of the former these are."""


class Studied(NamedTuple):
    """A reduced network, or the dense one.

    Attributes:
      task: `heq`, `addition` or `mcqa`.
      method: how it was reduced.
      model: the smaller network.
      params: its weights.
      kept: which units of the dense network it has, per layer or step, `[L, K]`.
      known: factual accuracy, and fidelity to the dense network.
    """

    task: str
    method: str
    model: MLP | GRU | Decoder
    params: Params
    kept: Int[np.ndarray, "L K"]
    known: Known

    @property
    def network(self) -> Network:
        """The network itself."""
        return Network(self.model, self.params)

    @property
    def place(self) -> str:
        """What the splits of this task and width begin with."""
        return f"{self.task}-keep{self.kept.shape[1]}"

    def keys(self, key: Array) -> Array:
        """Return keys of a search and of its controls: the same for all reductions to one width, and so paired."""
        return jax.random.split(jax.random.fold_in(key, self.kept.shape[1]))


def equality_networks(config: Discovery, seed: int, network: Network, key: Array) -> Iterator[Studied]:
    """Yield the dense MLP, then every reduced one."""
    model, params = cast(MLP, network.model), network.params
    everything = np.tile(np.arange(model.width), (model.depth, 1))
    yield Studied("heq", DENSE, model, params, everything, equality_behaviour(config, seed, model, params, {}))
    for keep in [keep for keep in config.equality.keeps if keep < model.width]:
        for method in config.equality.methods:
            yield reduced_mlp(config, seed, Network(model, params), method, keep, jax.random.fold_in(key, keep))


def reduced_mlp(config: Discovery, seed: int, network: Network, method: Reducer, keep: int, key: Array) -> Studied:
    """Reduce all hidden layers of an MLP to one width, each on the network reduced so far."""
    model, half, vectors = cast(MLP, network.model), config.equality.calibration_rows // 2, equality.entities(seed)
    sample = [equality.factual_data(seed + 2701, half)["rows"], equality.balanced_data(seed + 2702, half)["rows"]]
    inputs = equality.encode(vectors, np.concatenate(sample))
    taps = [f"hidden{depth}" for depth in range(model.depth)]
    dense = placed(Network(*unrolled(model, network.params)), config.mesh)
    found = reduce_network(dense, inputs, dict.fromkeys(taps, keep), METHODS[method], key=key)
    kept = np.stack([np.asarray(fold.kept) for fold in found.plan.folds])
    views = {
        tap: (view(dense, tap, np.arange(model.width)), found.view(tap), units)
        for tap, units in zip(taps, kept, strict=True)
    }
    smaller = placed(Network(*stacked(cast(Sequential, found.network.model), found.network.params)), config.mesh)
    model, params = cast(MLP, smaller.model), smaller.params
    return Studied("heq", method, model, params, kept, equality_behaviour(config, seed, model, params, views))


def equality_behaviour(config: Discovery, seed: int, model: MLP, params: Params, views: Views) -> Known:
    """Run a network on rows that nothing was chosen by, uniform and balanced ones."""
    vectors, count = equality.entities(seed), config.backbone.validation_rows
    uniform, cells = equality.factual_data(seed + 2801, count), equality.balanced_data(seed + 2802, count)
    inputs = equality.encode(vectors, np.concatenate([uniform["rows"], cells["rows"]]))
    predicted, balanced = np.split(np.asarray(factual_outputs(Network(model, params), inputs)).argmax(axis=-1), [count])
    scores = answers(predicted, balanced, uniform, cells)
    known: Known = {("", name): scores[name] for name in ("accuracy", "worst_cell")}
    return known | fidelities(views, inputs[count:], CLASSES, seed + 2803, config.trials)


def fidelities(views: Views, inputs: AnyArray, readout: Readout, seed: int, trials: int) -> Known:
    """Compare a dense with a reduced network under interchanges of the kept units, tap by tap.

    Returns:
      The share of trials in which both give an answer, and the same one, and its interval; nothing without views.
    """
    generator, agreed = np.random.default_rng(seed), {}
    for tap, (dense, reduced, kept) in views.items():
        drawn = bernoulli_trials(generator, examples=len(inputs), units=len(kept), probability=MASKED, trials=trials)
        masks = np.zeros((trials, len(dense.units)), bool)
        masks[:, kept] = drawn.masks
        # With masks over all its units, of which the others never move, the dense network is compiled once.
        runs = (dense, dataclasses.replace(drawn, masks=masks)), (reduced, drawn)
        first, second = (np.asarray(readout.decode(interchanged_outputs(each, inputs, how))) for each, how in runs)
        # Two networks that give no answer do not give the same one.
        agreed[f"-{tap}"] = int(((first == second) & (first != MISS)).sum()), trials
    if agreed:
        agreed[""] = sum(hits for hits, _ in agreed.values()), trials * len(agreed)
    known: Known = {}
    for part, (hits, count) in agreed.items():
        low, high = binomial_interval(hits, count)
        known[part, "fidelity"], known[part, "trials"] = hits / count, float(count)
        known[part, "fidelity_low"], known[part, "fidelity_high"] = float(low), float(high)
    return known


def adder_networks(
    config: Discovery, seed: int, dense: Network, banks: addition.Banks, key: Array
) -> Iterator[Studied]:
    """Yield the dense GRU, then every reduced one; a reduction sees the bases of the fit pairs."""
    model, params = cast(GRU, dense.model), dense.params
    data, everything = factual_data(seed, config.adder.bits), np.tile(np.arange(model.width), (model.depth, 1))
    seen = {name: np.asarray(values)[:: len(banks.families)] for name, values in banks.fit.base.items()}
    inputs = addition.encode(seen, model.depth)
    rankings = {name: rank_units(dense, inputs, TAP, METHODS[preset]) for name, preset in PRESETS.items()}
    yield Studied("addition", DENSE, model, params, everything, {("", "accuracy"): exactness(model, params, data)})
    for keep in [keep for keep in config.carries.keeps if keep < model.width]:
        for method in config.carries.methods:
            ranking = rankings[method]
            if method == "random-affine":
                generator = host_generator(jax.random.fold_in(key, keep))
                ranking = ranking.keeping(generator.choice(model.width, keep, replace=False))
            yield reduced_adder(config, seed, ranking, method, keep)


def reduced_adder(config: Discovery, seed: int, ranking: Ranking, method: str, keep: int) -> Studied:
    """Fold units of a GRU into the others, at all steps alike."""
    reduction = replace_units(ranking, keep)
    smaller, narrow = cast(GRU, reduction.network.model), reduction.network.params
    kept, data = np.asarray(reduction.plan.folds[0].kept), factual_data(seed, config.adder.bits)
    pair = view(ranking.network, TAP, np.arange(ranking.statistics.width)), reduction.view(TAP)
    known = {("", "accuracy"): exactness(smaller, narrow, data)}
    known |= fidelities({TAP: (*pair, kept)}, data["inputs"], BITS, seed + 2803, config.trials)
    return Studied("addition", method, smaller, narrow, np.tile(kept, (smaller.depth, 1)), known)
