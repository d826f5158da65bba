"""The network and the pairs that the benchmarks share: hierarchical equality, 16-16-16-16-2 with ReLU."""

import dataclasses
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
import optax

from abstraction.causal import PairBank
from abstraction.evaluation import CLASSES, Recorded, record
from abstraction.evaluation.readouts import FactualLoss
from abstraction.models import MLP, Network
from abstraction.tasks import equality
from abstraction.training import Schedule, fit
from abstraction.typing import Setting

TAP = "hidden"
ROWS, EPOCHS = 262_144, 16


class Problem(NamedTuple):
    """A trained network, and pairs to measure and to choose with; their settings are its `inputs`, `[N, 16]`."""

    network: Network
    fit: PairBank
    calibration: PairBank

    def record(self, bank: PairBank) -> Recorded:
        """Run base and source inputs once."""
        return record(self.network, lambda setting: setting["inputs"], bank, tap=TAP)


@cache
def equality_problem(pairs: int = 1000, *, seed: int = 1) -> Problem:
    """Train the network for some seconds and draw `pairs` independent pairs for fitting and as many for calibration."""
    vectors = equality.entities(seed)
    model = MLP(equality.ENTITY_WIDTH * 4, 16, 3, equality.CLASSES)
    init_key, order_key = jax.random.split(jax.random.key(seed))
    trained = fit(
        order_key,
        FactualLoss(model, CLASSES, equality.encoded_rows),
        model.init(init_key),
        optax.adam(1e-3),
        equality.factual_data(seed + 1, ROWS),
        Schedule(batch_size=1024, epochs=EPOCHS),
        context=vectors,
    )
    banks = equality.independent_banks(seed, fit=pairs, calibration=pairs, test=1)

    def encoded(bank: PairBank) -> PairBank:
        return dataclasses.replace(bank, base=_encode(vectors, bank.base), source=_encode(vectors, bank.source))

    return Problem(Network(model, trained.params), encoded(banks.fit), encoded(banks.calibration))


def _encode(vectors: np.ndarray, setting: Setting) -> dict[str, np.ndarray]:
    return {"inputs": np.asarray(equality.encode(vectors, equality.rows_of(setting)))}
