"""Loops of programs read what is on the device: no weights, runs or states are sent there again and again."""

import contextlib

import jax
import numpy as np
import pytest

from abstraction.causal import causal_model, label_pairs
from abstraction.evaluation import record, tally_handles
from abstraction.interventions import Handle, unit_sites
from abstraction.localization import (
    Rotation,
    SearchConfig,
    Signature,
    Sweeping,
    candidate_grid,
    full_supports,
    sweep,
    sweeping,
)
from abstraction.localization.effects import measure_effects
from abstraction.localization.searching import train_candidates
from abstraction.models import MLP, Network
from abstraction.planning import Program
from abstraction.reduction.discrepancies import DISCREPANCIES
from abstraction.reduction.moments import collect_statistics

PAIRS, WIDTH = 64, 40
MODEL = MLP(2, WIDTH, 2, 4)
TWO_BITS = causal_model(("a", "b"), "y", p=lambda a: a, q=lambda b: b, y=lambda p, q: p + 2 * q)


def _encode(setting):
    return np.stack([setting["a"], setting["b"]], axis=-1).astype(np.float32)


@pytest.fixture(scope="module")
def known():
    """A network whose weights are the host's, and pairs recorded in it."""
    params = jax.tree.map(np.array, MODEL.init(jax.random.key(0)))
    network, rng = Network(MODEL, params), np.random.default_rng(0)
    base, source = ({name: rng.integers(2, size=PAIRS) for name in "ab"} for _ in range(2))
    bank = label_pairs(TWO_BITS, base, source, variables=("p", "q"), role="fit")
    return network, record(network, _encode, bank, tap="hidden")


class _Watched:
    """Counts programs that run, and the bytes of the host that each is given; forbids what is sent unasked."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.host: list[int] = []
        run, watched = Program.__call__, self

        def call(program: Program):
            leaves = jax.tree.leaves((program.arguments, dict(program.options)))
            watched.host.append(sum(leaf.nbytes for leaf in leaves if isinstance(leaf, np.ndarray)))
            with jax.transfer_guard("disallow"):
                return run(program)

        patch.setattr(Program, "__call__", call)


@pytest.fixture
def watched(monkeypatch):
    return _Watched(monkeypatch)


def _assert_little(watched: _Watched, calls: int, network: Network) -> None:
    assert len(watched.host) >= calls, "otherwise this is no loop"
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(network.params))
    # labels of the bank, and what is tried: sites, or handles of the block
    assert max(watched.host[1:]) < weights, (watched.host, weights)


def test_a_sweep_sends_its_sites_alone(known, watched, monkeypatch):
    network, fit = known
    monkeypatch.setattr(sweeping, "planned_chunk", lambda *given, **options: 5)
    sweep(network, fit, 1, Sweeping(controls=None))
    _assert_little(watched, 4, network)


def test_effects_that_do_not_fit_send_their_sites_alone(known, watched):
    network, fit = known
    signature = Signature("logit_delta", memory=4 * 4 * PAIRS * 30)
    measure_effects(network, fit, unit_sites(network.taps["hidden"]), signature)
    _assert_little(watched, 2, network)


def test_a_tally_sends_its_handles_alone(known, watched):
    network, fit = known
    handles = Handle("hidden", np.ones((2500, 1), np.float32), None, np.zeros(2500, np.int32))
    narrow = Handle("hidden", np.broadcast_to(handles.weight, (2500, WIDTH)), None, handles.depth)
    tally_handles(network, fit, narrow, np.zeros(2500, int))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(network.params))
    block = narrow.weight.nbytes // 2
    assert len(watched.host) > 1
    assert max(watched.host) < block + weights
    assert not any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(fit.runs))


def test_a_search_sends_and_fetches_a_few_numbers_every_twenty_epochs(known):
    network, fit = known
    supports = full_supports(network.taps["hidden"], range(2))
    candidates = candidate_grid(jax.random.key(1), network.taps["hidden"], supports, ranks=[1, 2])
    config, told = SearchConfig(batch_size=32, max_epochs=45, patience=100), []
    with contextlib.ExitStack() as stack:

        def progress(epoch: int, running: int) -> None:
            if not told:
                stack.enter_context(jax.transfer_guard("disallow"))
            told.append(epoch)
            if len(told) == 2:
                stack.close()

        train_candidates(jax.random.key(0), network, fit, candidates, Rotation(), config, progress)
    assert told == [20, 40, 45]


def test_statistics_send_a_batch_alone(known, watched):
    network, _ = known
    inputs = np.random.default_rng(1).normal(size=(600, 2)).astype(np.float32)
    on_device = Network(MODEL, jax.device_put(network.params))
    collect_statistics(on_device, inputs, "hidden", discrepancy=DISCREPANCIES["kl"], batch_size=200)
    assert len(watched.host) >= 3
    assert max(watched.host) < inputs.nbytes
