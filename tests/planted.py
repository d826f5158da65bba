"""Networks whose alignment is known because it was put there.

The causal model has two bits p and q and the output p + 2 q. The network has one hidden layer of width 6 that holds
p and q along two known directions, native or rotated, and reads them off linearly.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from abstraction.causal import causal_model, label_pairs
from abstraction.evaluation import Bits, Recorded, record
from abstraction.interventions.bases import random_frames
from abstraction.localization import CutMenu, Signature
from abstraction.models import GRU, MLP, Dense, Network, Sequential
from abstraction.models.layers import Convolution, Flatten
from abstraction.tasks import addition

TWO_BITS = causal_model(("a", "b"), "y", p=lambda a: a, q=lambda b: b, y=lambda p, q: p + 2 * q)
WIDTH = 6
UNITS = (1, 4)
MENU = CutMenu((1, 2, 3), (0.5, 1.0, 1.5))


class Plant(NamedTuple):
    network: Network
    directions: np.ndarray  # [2, D], where p and q live
    fit: Recorded
    calibration: Recorded
    test: Recorded

    @property
    def tap(self):
        return self.network.taps[self.fit.tap]


def planted(*, rotate: bool, copies: int = 1, gains: tuple[float, float] = (6.0, 6.0)) -> Plant:
    """Plant p and q at units 1 and 4, or along two rotated directions.

    `copies` stores p at as many units from 1 on, at most three, and reads their mean: with two, a swap of one copy
    leaves the reading on the fence; with three, it changes nothing, and a swap of two is a swap of all.
    """
    frame = random_frames(jax.random.key(7), (), WIDTH) if rotate else np.eye(WIDTH, dtype=np.float32)
    directions = frame[list(UNITS)]
    stored = np.stack([frame[1 : 1 + copies].sum(axis=0), directions[1]])
    reading = np.stack([stored[0] / copies, directions[1]])
    nuisance = frame[[0, 5]]  # directions that vary and are not read
    return _plant(np.concatenate([stored, 0.7 * nuisance]), reading, directions, gains)


def planted_oblique(*, cosine: float = 0.9) -> Plant:
    """Read p and q along two directions v at an acute angle, and move them along others: u_i.v_j = [i = j].

    A nuisance moves along w, which is not read, and p and q move along w too. A swap of p alone reads along v_p and
    writes along some u with v_p.u = 1 and v_q.u = 0. One line cannot do both: whatever it writes, it reads.
    """
    frame = random_frames(jax.random.key(8), (), WIDTH)
    reads = np.array([[1.0, 0.0], [cosine, np.sqrt(1 - cosine**2)]]) @ frame[:2]
    stored = np.linalg.pinv(reads).T + 0.5 * frame[2]
    return _plant(np.concatenate([stored, 0.7 * frame[[2, 3]]]), reads, reads, (2.0, 2.0))


def _plant(stem, reading, directions, gains):
    """Build the network h = inputs stem that reads p and q along two directions; inputs: a, b, two nuisances."""
    signs = np.array([[1 if y & 1 else -1, 1 if y & 2 else -1] for y in range(4)]).T
    head = sum(reading[v][:, None] * gains[v] * signs[v] for v in range(2))
    params = {
        "stem": {"kernel": jnp.asarray(stem, jnp.float32), "bias": jnp.zeros(WIDTH)},
        "blocks": None,
        "head": {"kernel": jnp.asarray(head, jnp.float32), "bias": jnp.zeros(4)},
    }
    model = MLP(4, WIDTH, 1, 4, "identity")
    template = model.init(jax.random.key(0))
    network = Network(model, {name: params[name] for name in template})
    return Plant(network, np.asarray(directions, np.float32), *recorded_banks(network))


def planted_chain(plant, *, positions=False):
    """Write a plant as a chain of layers without depth, the tap `stem`; or with a convolution that has positions."""
    stem, head = (
        {name: jnp.asarray(array) for name, array in plant.network.params[part].items()} for part in ("stem", "head")
    )
    if not positions:
        chain = Sequential((4,), (Dense("stem", WIDTH), Dense("head", 4)))
        network = Network(chain, {"stem": stem, "head": head})
        return Plant(network, plant.directions, *recorded_banks(network, tap="stem"))
    layers = (Convolution("stem", WIDTH, (1, 1)), Flatten("flat"), Dense("head", 4))
    stem = {**stem, "kernel": stem["kernel"][None, None]}
    head = {**head, "kernel": jnp.tile(head["kernel"] / 4, (4, 1))}
    network = Network(Sequential((2, 2, 4), layers), {"stem": stem, "head": head})
    spread = lambda inputs: np.broadcast_to(inputs[:, None, None], (len(inputs), 2, 2, 4))
    return Plant(network, plant.directions, *recorded_banks(network, tap="stem", spread=spread))


def recorded_banks(network, *, tap="hidden", spread=lambda inputs: inputs):
    """Draw the fit, calibration and test banks, and run them through a network."""
    roles = enumerate(("fit", "calibration", "test"))
    return [_bank(network, seed, role, tap, spread) for seed, role in roles]


def _bank(network, seed, role, tap, spread, count=256):
    generator = np.random.default_rng(seed)
    a, b, c, d = generator.integers(0, 2, (4, count))
    bank = label_pairs(TWO_BITS, {"a": a, "b": b}, {"a": c, "b": d}, variables=("p", "q"), role=role)
    noise = iter(generator.standard_normal((2, count, 2)))

    def encode(setting):
        bits = 2.0 * np.stack([setting["a"], setting["b"]], axis=-1) - 1.0
        return spread(np.concatenate([bits, next(noise)], axis=-1).astype(np.float32))

    return record(network, encode, bank, tap=tap)


class Adder(NamedTuple):
    network: Network
    fit: Recorded
    calibration: Recorded
    test: Recorded
    signature: Signature

    @property
    def tap(self):
        return self.network.taps["hidden"]


ADDER_WIDTH, CARRY, IDLE = 6, 4, (3, 5)


def planted_adder(bits: int = 3, *, trained: bool = True) -> Adder:
    """Build a GRU that adds: its state after step t holds the carry C_{t+1} in one unit, as -1 or 1.

    Gates are open (z = 0, r = 1), so h_t = tanh(g (a + b + c - thresholds)) with a, b, c of -1 or 1, c the carry unit
    of the state before. Of the units, three count how many of a, b, c are 1 (at least one, two, three), and the sum
    bit is read off them: one - two + three. The carry unit is a fourth that later steps read and this one does not.
    No carry comes in: there c = 0, and thresholds of -1.5, .5 and 2.5 make it count as -1. Two units are idle, one of
    which varies. `trained=False` keeps the random weights.
    """
    model = GRU(2, ADDER_WIDTH, bits)
    params = jax.tree.map(np.zeros_like, jax.device_get(model.init(jax.random.key(0))))
    gain, candidate = 20.0, 2 * ADDER_WIDTH
    reset, update = params["cell"]["inputs"]["bias"][:ADDER_WIDTH], params["cell"]["inputs"]["bias"][ADDER_WIDTH:]
    reset[:], update[:ADDER_WIDTH] = 40.0, -40.0
    for unit, threshold in ((0, -1.5), (1, 0.5), (2, 2.5), (CARRY, 0.5)):
        params["cell"]["inputs"]["kernel"][:, candidate + unit] = 2 * gain
        params["cell"]["inputs"]["bias"][candidate + unit] = -gain * (2 + threshold)
        params["cell"]["state"]["kernel"][CARRY, candidate + unit] = gain
    params["cell"]["inputs"]["kernel"][:, candidate + IDLE[0]] = 0.5, -0.3
    params["step"]["kernel"][:3, 0] = 8.0, -8.0, 8.0
    params["final"]["kernel"][CARRY, 0] = 8.0
    if not trained:
        params = model.init(jax.random.key(5))
    banks = addition.structured_banks(0, bits=bits, fit=24, calibration=20, test=20)
    encode = partial(addition.encode, bits=bits)
    network = Network(model, params)
    recorded = [record(network, encode, bank, tap="hidden", readout=Bits()) for bank in banks[:3]]
    families = np.arange(banks.fit.size) % len(banks.families)
    return Adder(network, *recorded, Signature("bit_delta", unit=True, families=families))


def projectors(handles):
    """Return E diag(w) G of every handle `[C, D, D]`: what is swapped, whatever frame spans it."""
    weight, encoder, decoder = (np.asarray(x) for x in (handles.weight, handles.basis.encoder, handles.basis.decoder))
    return (encoder * weight[:, None, :]) @ decoder


def assert_searched_alike(one, other):
    """Compare two searches of the same candidates by different programs, after few small steps of rotations.

    Adam blows the rounding of gradients that should be zero up to whole steps, along directions that leave projectors
    alone; they meet it in second order of the steps. So projectors are compared, by how far they have moved.
    """
    start = np.asarray(one.candidates.start)  # of native coordinates, 0 beyond the rank
    moved = np.abs(projectors(one.handles) - start @ start.mT).max()
    assert 1e-3 < moved < 0.1, "small steps, and some"
    np.testing.assert_allclose(projectors(other.handles), projectors(one.handles), atol=moved / 100)
    np.testing.assert_allclose(other.curve, one.curve, rtol=1e-3)
    same = lambda found: jax.tree.leaves((found.candidates, found.epochs, found.stopped, found.finite))
    for leaf, twin in zip(same(one), same(other), strict=True):
        np.testing.assert_array_equal(leaf, twin)
