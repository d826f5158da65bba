"""Counting hits: against a loop over pairs, and laws of pooling and blocking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import iia as iia_oracle
from oracles import patched_mlp
from scipy import stats

from abstraction.causal import causal_model, label_pairs
from abstraction.causal.pairs import restrict
from abstraction.evaluation import CLASSES, accuracy, iia, record, tally_handles
from abstraction.evaluation.iia import unique_handles
from abstraction.evaluation.metrics import balanced_accuracy
from abstraction.interventions import Handle, rotation_basis, unit_sites
from abstraction.models import MLP, Network

XOR = causal_model(("a", "b"), "y", p=lambda a: a, q=lambda b: b, y=lambda p, q: p ^ q)
MODEL = MLP(2, 4, 2, 2)
N = 40


@pytest.fixture(scope="module", name="setup")
def _setup():
    generator = np.random.default_rng(0)
    a, b, c, d = generator.integers(0, 2, (4, N))
    bank = label_pairs(XOR, {"a": a, "b": b}, {"a": c, "b": d}, variables=("p", "q"), role="calibration")
    network = Network(MODEL, MODEL.init(jax.random.key(3)))
    recorded = record(network, _encode, bank, tap="hidden")
    return network, recorded, generator.uniform(0, 1.5, (12, 2, 4)).astype(np.float32)


def _encode(setting):
    return (np.stack([setting["a"], setting["b"]], -1) * 2 - 1).astype(np.float32)


def _inputs(recorded):
    return _encode(recorded.bank.base), _encode(recorded.bank.source)


def test_hits_match_a_loop_over_pairs(setup):
    network, recorded, weight = setup
    bank, variable = recorded.bank, np.arange(12) % 2
    tally = tally_handles(network, recorded, Handle("hidden", weight), variable)
    for h, v in enumerate(variable):
        known = bank.labels[v], bank.active[v], bank.eligible[v]
        hits, pairs = iia_oracle(network.params, *_inputs(recorded), weight[h], *known)
        assert tally.hits[h].tolist() == hits
        assert tally.pairs[h].tolist() == pairs


def test_only_eligible_pairs_count(setup):
    network, recorded, weight = setup
    part = record(network, _encode, restrict(recorded.bank, 0), tap="hidden")
    tally = tally_handles(network, part, Handle("hidden", weight), np.arange(12) % 2)
    assert (tally.pairs[1::2] == 0).all()
    assert np.isnan(tally.iia[1::2]).all()
    for undefined in (tally.combined, tally.mean_loss, *tally.interval()):
        assert np.isnan(undefined[1::2]).all(), "no pairs, no score: not 0"
        assert np.isfinite(undefined[::2]).all()
    assert tally.pairs[::2].sum(axis=1).tolist() == [N] * 6


def test_the_loss_is_the_mean_over_halves_of_the_cross_entropy(setup):
    network, recorded, weight = setup
    bank = recorded.bank
    tally = tally_handles(network, recorded, Handle("hidden", weight[:1]), np.array([0]))
    logits = patched_mlp(network.params, *_inputs(recorded), weight[0])
    log_z = np.log(np.exp(logits).sum(-1))
    loss = log_z - logits[np.arange(N), bank.labels[0]]
    expected = np.mean([loss[bank.active[0]].mean(), loss[~bank.active[0]].mean()])
    np.testing.assert_allclose(tally.mean_loss[0], expected, rtol=1e-5)  # float32 sums


def test_the_number_of_handles_neither_changes_counts_nor_compiles_again(setup, monkeypatch):
    network, recorded, weight = setup
    whole = tally_handles(network, recorded, Handle("hidden", weight), np.zeros(12, int))
    before = iia._tally_block._cache_size()
    for count in (1, 5, 12):
        part = tally_handles(network, recorded, Handle("hidden", weight[:count]), np.zeros(count, int))
        np.testing.assert_array_equal(part.hits, whole.hits[:count])
    assert iia._tally_block._cache_size() == before
    monkeypatch.setattr(iia, "_BLOCK", 8)
    blocked = tally_handles(network, recorded, Handle("hidden", weight), np.zeros(12, int))
    np.testing.assert_array_equal(blocked.hits, whole.hits)


def test_tallies_pool_by_addition(setup):
    network, recorded, weight = setup
    tally = tally_handles(network, recorded, Handle("hidden", weight), np.zeros(12, int))
    doubled = tally + tally
    np.testing.assert_array_equal(doubled.iia, tally.iia)
    np.testing.assert_array_equal(doubled.pairs, 2 * tally.pairs)


def test_handles_that_each_act_at_one_depth_resume_there_whether_they_say_so_or_not(setup):
    network, recorded, _ = setup
    sites = unit_sites(MODEL.taps["hidden"])
    local = tally_handles(network, recorded, sites.handles(), np.zeros(8, int))
    before = iia._tally_block._cache_size()
    whole = tally_handles(network, recorded, Handle("hidden", sites.rows()), np.zeros(8, int))
    assert iia._tally_block._cache_size() == before, "one program serves both"
    np.testing.assert_array_equal(local.hits, whole.hits)
    np.testing.assert_array_equal(local.loss, whole.loss)


def test_an_output_that_is_not_finite_is_a_miss_of_infinite_loss(setup):
    """A handle of NaN answers nothing; one that is right beside it is counted as ever."""
    network, recorded, weight = setup
    for bad in (np.nan, np.inf):
        broken = weight[:3].copy()
        broken[1, 0, 0] = bad
        tally = tally_handles(network, recorded, Handle("hidden", broken), np.zeros(3, int))
        assert tally.hits[1].tolist() == [0, 0]
        assert np.isposinf(tally.mean_loss[1])
        assert tally.combined[1] == 0
        whole = tally_handles(network, recorded, Handle("hidden", weight[:3]), np.zeros(3, int))
        np.testing.assert_array_equal(tally.hits[[0, 2]], whole.hits[[0, 2]])
        np.testing.assert_allclose(tally.loss[[0, 2]], whole.loss[[0, 2]], rtol=1e-6)


def test_the_interval_is_the_mean_of_the_halves_own_exact_ones():
    tally = iia.Tally(np.array([[3, 9], [0, 4]]), np.array([[10, 10], [0, 8]]), np.zeros((2, 2)))
    low, high = tally.interval(0.9)
    for bound, side in ((low, "low"), (high, "high")):
        first, second, third = (
            getattr(stats.binomtest(k, n).proportion_ci(0.9, "exact"), side) for k, n in ((3, 10), (9, 10), (4, 8))
        )
        np.testing.assert_allclose(bound, [(first + second) / 2, third], rtol=1e-9)


def test_equal_handles_are_found_and_mapped_back(rng):
    weight = rng.uniform(size=(5, 2, 4)).astype(np.float32)
    repeated = np.concatenate([weight, weight[[3, 1]], weight[[3]] * (1 + 1e-8)])
    variable = np.array([0] * 7 + [1])
    distinct, owner, inverse = unique_handles(Handle("hidden", repeated), variable)
    assert len(distinct.weight) == 6  # the last has another variable
    np.testing.assert_allclose(np.asarray(distinct.weight)[inverse], repeated, atol=2**-20)
    np.testing.assert_array_equal(owner[inverse], variable)
    assert inverse[5] == inverse[3]
    assert inverse[6] == inverse[1]


def test_handles_in_a_basis_are_not_told_apart_by_weight():
    frames = np.tile(np.eye(4, dtype=np.float32), (1, 2, 1, 1))
    handle = Handle("hidden", np.zeros((1, 2, 4), np.float32), rotation_basis(frames))
    with pytest.raises(ValueError, match="expected native handles"):
        unique_handles(handle, np.zeros(1, int))


def test_cross_entropy_is_minus_log_softmax(rng):
    logits = rng.standard_normal((5, 3)).astype(np.float32)
    expected = [np.log(np.exp(row).sum()) - row[1] for row in logits.astype(float)]
    np.testing.assert_allclose(CLASSES.loss(jnp.asarray(logits), jnp.ones(5, int)), expected, rtol=1e-5)


def test_balanced_accuracy_of_a_constant_is_chance():
    labels = np.array([1] * 98 + [0] * 2)
    assert accuracy(np.ones(100, int), labels) == 0.98
    assert balanced_accuracy(np.ones(100, int), labels) == 0.5
