"""Networks whose alignment is known because it was put there.

The causal model has two bits p and q and the output p + 2 q. The network has one hidden layer of width 6 that holds
p and q along two known directions, native or rotated, and reads them off linearly.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from abstraction.causal import PairBank, causal_model, label_pairs
from abstraction.interventions import Recording, random_frames
from abstraction.localization import record_bank
from abstraction.models import MLP

TWO_BITS = causal_model(("a", "b"), "y", p=lambda a: a, q=lambda b: b, y=lambda p, q: p + 2 * q)
WIDTH = 6
UNITS = (1, 4)


class Plant(NamedTuple):
    model: MLP
    params: dict
    directions: np.ndarray  # [2, D], where p and q live
    fit: tuple[Recording, PairBank]
    calibration: tuple[Recording, PairBank]
    test: tuple[Recording, PairBank]


def planted(*, rotate: bool, copies: bool = False, gains: tuple[float, float] = (6.0, 6.0)) -> Plant:
    """Plant p and q at units 1 and 4, or along two rotated directions; `copies` stores p at units 1 and 2."""
    frame = random_frames(jax.random.key(7), (), WIDTH) if rotate else np.eye(WIDTH, dtype=np.float32)
    directions = frame[list(UNITS)]
    nuisance = frame[[0, 5]]  # directions that vary and are not read
    stem = np.concatenate([directions, 0.7 * nuisance])  # inputs: a, b, two nuisances
    head = np.zeros((WIDTH, 4), np.float32)
    signs = np.array([[1 if y & 1 else -1, 1 if y & 2 else -1] for y in range(4)]).T
    reading = directions.copy()
    if copies:
        stem[0] = frame[1] + frame[2]
        # either copy alone keeps the reading on its side
        reading[0] = 0.5 * (frame[1] + frame[2])
    head += reading[0][:, None] * gains[0] * signs[0] + reading[1][:, None] * gains[1] * signs[1]
    params = {
        "stem": {"kernel": jnp.asarray(stem, jnp.float32), "bias": jnp.zeros(WIDTH)},
        "blocks": None,
        "head": {"kernel": jnp.asarray(head), "bias": jnp.zeros(4)},
    }
    model = MLP(4, WIDTH, 1, 4, "identity")
    template = model.init(jax.random.key(0))
    params = {name: params[name] for name in template}
    recorded = [_bank(model, params, seed, role) for seed, role in enumerate(("fit", "calibration", "test"))]
    return Plant(model, params, directions, *recorded)


def _bank(model, params, seed, role, count=256):
    generator = np.random.default_rng(seed)
    a, b, c, d = generator.integers(0, 2, (4, count))
    bank = label_pairs(TWO_BITS, {"a": a, "b": b}, {"a": c, "b": d}, variables=("p", "q"), role=role)
    noise = iter(generator.standard_normal((2, count, 2)))

    def encode(setting):
        bits = 2.0 * np.stack([setting["a"], setting["b"]], axis=-1) - 1.0
        return np.concatenate([bits, next(noise)], axis=-1).astype(np.float32)

    return record_bank(model, params, encode, bank, tap="hidden"), bank
