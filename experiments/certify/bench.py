"""The networks of the certification experiment, and interchange trials on them.

A dense network and a reduced one are seen from the same kept units. A trial is a loss in [0, 1]; adaptive trials are
losses times weights over the largest weight, so their mean times that weight is the risk.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Callable
from math import ceil
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from abstraction.evaluation.interchange import (
    Trials,
    View,
    bernoulli_trials,
    bounded_losses,
    interchanged_outputs,
    view,
)
from abstraction.evaluation.losses import weighted_losses
from abstraction.evaluation.proposals import (
    BLOCK,
    Sampling,
    adaptive_stream,
    largest_weight,
    mixture_masks,
    mixture_weights,
    proposal,
)
from abstraction.models import Network
from abstraction.reduction import METHODS, Calibration
from abstraction.reduction.pipeline import replace_units
from abstraction.reduction.ranking import Ranking, rank_units, reader_weights
from experiments.certify.options import Certify
from experiments.harness.methods import Tell
from experiments.harness.records import Row
from experiments.reduction.options import kept_units

NAME = "certify"
TAP = "hidden2"
_CHUNK = 50_000
_BATCH = 2500


class Pair(NamedTuple):
    """A dense network and a reduced one, seen from the same units.

    Attributes:
      dense: the network.
      reduced: what it was reduced to.
      norms: how strongly each kept unit is read, `[K]`.
    """

    dense: View
    reduced: View
    norms: np.ndarray


class Networks:
    """The dense network and its reductions, each made when it is first asked for."""

    def __init__(self, dense: Network, calibration: Calibration, key: Array):
        self.dense = dense
        self.width = dense.taps[TAP].width
        self.warnings: dict[str, str] = {}
        self._calibration, self._key = calibration, key
        self._norms = np.linalg.norm(reader_weights(self.dense, TAP), axis=0)
        self._rankings: dict[str, Ranking] = {}
        self._pairs: dict[tuple[str, int], Pair] = {}

    def pair(self, method: str, keep: int) -> Pair:
        """See the dense network and its reduction from the kept units."""
        if (method, keep) not in self._pairs:
            key = jax.random.fold_in(jax.random.fold_in(self._key, list(METHODS).index(method)), keep)
            ranking = self._ranking(method)
            with warnings.catch_warnings():
                # What the library warns of here is written into the records, and printed with the tables.
                warnings.filterwarnings("ignore", message=f"{TAP}: ")
                reduction = replace_units(ranking, keep, key=key)
            kept = np.asarray(reduction.plan.folds[0].kept)
            dense = view(self.dense, TAP, kept)
            self._pairs[method, keep] = Pair(dense, reduction.view(TAP), self._norms[kept])
        return self._pairs[method, keep]

    def _ranking(self, method: str) -> Ranking:
        if method not in self._rankings:
            key = jax.random.fold_in(jax.random.fold_in(self._key, list(METHODS).index(method)), 0)
            ranking = rank_units(self.dense, self._calibration, TAP, METHODS[method], key=key)
            if ranking.warning is not None:
                self.warnings[method] = ranking.warning
            self._rankings[method] = ranking
        return self._rankings[method]


@dataclasses.dataclass(frozen=True)
class Bench:
    """What every study works on.

    Attributes:
      config: the options.
      networks: dense and reduced.
      inputs: evaluation inputs.
      seed: the run's.
      tell: told what is being done.
    """

    config: Certify
    networks: Networks
    inputs: np.ndarray
    seed: int
    tell: Tell

    def units(self, keep: float) -> int:
        """Count the units that an option keeps."""
        return kept_units(keep, self.networks.width)

    def rows(self, study: str, method: str, split: str, **values: float) -> list[Row]:
        """Make one row per value."""
        return [Row(NAME, method, study, split, name, self.seed, float(value)) for name, value in values.items()]

    def trials(self, generator: np.random.Generator, keep: int, probability: float, count: int) -> Trials:
        """Draw independent trials."""
        examples = len(self.inputs)
        return bernoulli_trials(generator, examples=examples, units=keep, probability=probability, trials=count)

    def outputs(self, pair: Pair, trials: Trials) -> tuple[np.ndarray, np.ndarray]:
        """Run both networks, in batches of one size where the number of trials allows."""
        count = len(trials.base)
        size = ceil(count / ceil(count / _BATCH))
        dense, reduced = (
            np.asarray(interchanged_outputs(one, self.inputs, trials, batch_size=size))
            for one in (pair.dense, pair.reduced)
        )
        return dense, reduced

    def losses(self, pair: Pair, trials: Trials) -> dict[str, np.ndarray]:
        """Measure how far both networks are apart on each trial."""
        return bounded_losses(*self.outputs(pair, trials))

    def zero_one(self, pair: Pair, *trials: Trials) -> list[np.ndarray]:
        """Tell which trials end in different classes; inputs run once for all of them, which is most of the work."""
        together = jax.tree.map(lambda *parts: np.concatenate(parts), *trials)
        ends = np.cumsum([len(each.base) for each in trials])[:-1]
        return np.split(self.losses(pair, together)["zero_one"], ends)

    def by_norms(
        self, generator: np.random.Generator, pair: Pair, probability: float, count: int
    ) -> tuple[Trials, np.ndarray]:
        """Draw masks by the norms of what units write; return the trials and their weights."""
        alpha, swaps = self.config.alpha, proposal(pair.norms, probability)
        trials = self.trials(generator, 1, 0.0, count)
        masks = mixture_masks(generator, swaps, probability, count, alpha)
        return dataclasses.replace(trials, masks=masks), mixture_weights(masks, swaps, probability, alpha)

    def scaled(self, losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weigh losses, over the largest weight."""
        return weighted_losses(losses, weights, largest_weight(self.config.alpha))

    def independent(self, generator: np.random.Generator, pair: Pair, probability: float, count: int) -> np.ndarray:
        """Draw losses of independent trials."""
        keep = len(pair.norms)
        draw = lambda size: self.zero_one(pair, self.trials(generator, keep, probability, size))[0]
        return _in_chunks(draw, count)

    def static(self, generator: np.random.Generator, pair: Pair, probability: float, count: int) -> np.ndarray:
        """Draw scaled losses of masks by norms."""

        def draw(size: int) -> np.ndarray:
            trials, weights = self.by_norms(generator, pair, probability, size)
            return self.scaled(self.zero_one(pair, trials)[0], weights)

        return _in_chunks(draw, count)

    def history(self, generator: np.random.Generator, pair: Pair, probability: float, count: int) -> np.ndarray:
        """Draw scaled losses of masks by the failures of earlier ones."""
        trials = self.trials(generator, 1, 0.0, count)
        starts = itertools.count(0, BLOCK)

        def evaluate(masks: np.ndarray) -> np.ndarray:
            start = next(starts)
            rows = slice(start, start + len(masks))
            # A block has few images, so these are run and not all of them.
            images = self.inputs[np.concatenate([trials.base[rows], trials.source[rows]])]
            base = np.arange(len(masks), dtype=np.int32)
            few = dataclasses.replace(self, inputs=images)
            return few.zero_one(pair, Trials(base, base + np.int32(len(masks)), masks))[0]

        sampling = Sampling(len(pair.norms), probability, alpha=self.config.alpha)
        return adaptive_stream(generator, evaluate, sampling, count).scaled


def _in_chunks(draw: Callable[[int], np.ndarray], count: int) -> np.ndarray:
    """Draw so many trials, not all of whose masks would fit into memory."""
    return np.concatenate([draw(min(_CHUNK, count - start)) for start in range(0, count, _CHUNK)])


def split_name(keep: int, probability: float, *rest: object) -> str:
    """Name what a number was measured on: `keep256-p0.1-iid-betting-F0.95`."""
    return "-".join([f"keep{keep}", f"p{probability:g}", *map(str, rest)])
