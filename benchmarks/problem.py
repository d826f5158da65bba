"""The network and the pairs that the benchmarks share: hierarchical equality, 16-16-16-16-2 with ReLU."""

from functools import cache
from typing import NamedTuple

import jax
import numpy as np
import optax

from abstraction.causal import PairBank
from abstraction.interventions import Recording, record_pairs
from abstraction.models import MLP
from abstraction.tasks import equality
from abstraction.training import fit
from abstraction.typing import Params, Setting
from experiments.heq import EqualityLoss

TAP = "hidden"
ROWS, EPOCHS = 262_144, 16


class Pairs(NamedTuple):
    """A bank and the network's inputs for it, `[N, 16]` each."""

    bank: PairBank
    base: np.ndarray
    source: np.ndarray


class Problem(NamedTuple):
    """A trained network, and pairs to measure and to choose with."""

    model: MLP
    params: Params
    fit: Pairs
    calibration: Pairs

    def record(self, pairs: Pairs) -> Recording:
        """Run base and source inputs once."""
        return record_pairs(self.model, self.params, pairs.base, pairs.source, taps=(TAP,))


@cache
def equality_problem(pairs: int = 1000, *, seed: int = 1) -> Problem:
    """Train the network for some seconds and draw `pairs` independent pairs for fitting and as many for calibration."""
    vectors = equality.entities(seed)
    model = MLP(equality.ENTITY_WIDTH * 4, 16, 3, equality.CLASSES)
    init_key, order_key = jax.random.split(jax.random.key(seed))
    trained = fit(
        order_key,
        EqualityLoss(model),
        model.init(init_key),
        optax.adam(1e-3),
        equality.factual_data(seed + 1, ROWS),
        context=vectors,
        batch_size=1024,
        epochs=EPOCHS,
    )
    banks = equality.independent_banks(seed, fit=pairs, calibration=pairs, test=1)

    def encoded(bank: PairBank) -> Pairs:
        encode = lambda setting: _encode(vectors, setting)
        return Pairs(bank, encode(bank.base), encode(bank.source))

    return Problem(model, trained.params, encoded(banks.fit), encoded(banks.calibration))


def _encode(vectors: np.ndarray, setting: Setting) -> np.ndarray:
    return np.asarray(equality.encode(vectors, equality.rows_of(setting)))
