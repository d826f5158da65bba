"""Binary addition on adders that nobody here trained: full swaps and full-state costs known in advance."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.evaluation import Bits, record, tally_handles
from abstraction.interventions import state_sites
from abstraction.localization import Signature, measure_effects
from abstraction.localization.couplings import reference_couplings
from abstraction.models import GRU, Network
from abstraction.tasks import addition

SHARED = Path(__file__).parents[3] / "shared"
MODEL = GRU(2, 16, 4)
SITES = state_sites(MODEL.taps["hidden"])
# Combined accuracy of swapping the state h_{i-1} for C_i on the authors' test pairs.
FULL_SWAP = {0: (0.7693, 0.7745, 0.7287), 1: (0.7347, 0.7737, 0.7398), 2: (0.7726, 0.7988, 0.7580)}


@pytest.fixture(scope="module", params=FULL_SWAP, name="adder")
def _adder(request):
    path = SHARED / "data" / f"binary_addition_gru_h16_seed{request.param}.npz"
    if not path.exists():
        pytest.skip("the trained adders are not beside this checkout")
    network = Network(MODEL, MODEL.params_from_torch(np.load(path)))
    banks = addition.structured_banks(request.param)
    recorded = lambda bank: record(network, addition.encode, bank, tap="hidden", readout=Bits())
    known = json.loads((SHARED / "reference" / "plot_known_answers.json").read_text())["seeds"][str(request.param)]
    return request.param, network, banks, recorded, known


def _full_swaps(network, recorded):
    return np.array([tally_handles(network, recorded, SITES.handles(), np.full(4, v)).iia for v in range(3)])


def _hybrid(bank, step):
    """What an exact adder must output after a full swap at a step: source bits up to it, base bits after."""
    sums = addition.adder(4)
    early = (1 << (step + 1)) - 1
    mixed = {name: (bank.source[name] & early) | (bank.base[name] & ~early) for name in "ab"}
    total = sums.run(mixed)["total"]
    before = (1 << step) - 1
    return (sums.run(bank.base)["total"] & before) | (total & ~before)


def test_full_swaps_score_what_the_hybrid_addition_says(adder):
    _, network, banks, recorded, known = adder
    scores = _full_swaps(network, recorded(banks.test))
    for v in range(3):
        for step in range(4):
            right = _hybrid(banks.test, step) == banks.test.labels[v]
            active = banks.test.active[v]
            np.testing.assert_allclose(scores[v, step], [right[active].mean(), right[~active].mean()], rtol=1e-12)
    np.testing.assert_allclose(scores, known["single_site_test_scores"], rtol=1e-12)


def test_the_carrys_timestep_scores_the_known_combined_accuracy(adder):
    seed, network, banks, recorded, _ = adder
    scores = _full_swaps(network, recorded(banks.test)).mean(axis=-1)
    np.testing.assert_allclose(np.diag(scores[:, :3]), FULL_SWAP[seed], atol=5e-5)  # four digits are known


def test_signatures_and_costs_are_the_reference(adder):
    _, network, banks, recorded, known = adder
    families = np.arange(banks.fit.size) % len(banks.families)
    signature = Signature("bit_delta", unit=True, families=families)
    effects = measure_effects(network, recorded(banks.fit), SITES, signature)
    assert effects.abstract.shape == (3, 130)
    unit = np.asarray(effects.abstract) / np.linalg.norm(effects.abstract, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, known["abstract_signature_unit"], atol=1e-6)
    # the reference is a float32 replica in NumPy
    np.testing.assert_allclose(np.linalg.norm(effects.neural, axis=1), known["full_state_raw_norm"], atol=1e-4)
    np.testing.assert_allclose(effects.cost, known["full_state_cost"], atol=1e-4)


def test_clamped_couplings_are_the_reference(adder):
    *_, known = adder
    cost = np.asarray(known["full_state_cost"], np.float32)
    for epsilon, plan in known["sinkhorn_clamped_f32_80it"].items():
        got = np.asarray(reference_couplings(cost, [float(epsilon)], iterations=80).plan)[0, 0]
        np.testing.assert_allclose(got, plan, atol=1e-5)  # float32 powers of numbers down to 1e-30


def test_bits_and_their_loss_by_hand():
    logits = np.array([[2.0, -1.0, 0.5], [-3.0, -3.0, 4.0]], np.float32)
    assert Bits().decode(jnp.asarray(logits)).tolist() == [5, 4]
    bits = np.array([[1, 0, 1], [0, 1, 1]])
    expected = (np.log1p(np.exp(logits)) - bits * logits).sum(axis=1)
    np.testing.assert_allclose(Bits().loss(jnp.asarray(logits), jnp.array([5, 6])), expected, rtol=1e-6)
