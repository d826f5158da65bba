"""Counting hits: against a loop over pairs, and laws of pooling and blocking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import iia as iia_oracle
from oracles import patched_mlp

from abstraction.causal import causal_model, label_pairs, restrict
from abstraction.evaluation import CLASSES, accuracy, balanced_accuracy, iia, tally_handles, unique_handles
from abstraction.interventions import Handle, record_pairs, rotation_basis, unit_sites
from abstraction.models import MLP

XOR = causal_model(("a", "b"), "y", p=lambda a: a, q=lambda b: b, y=lambda p, q: p ^ q)
MODEL = MLP(2, 4, 2, 2)
N = 40


@pytest.fixture(scope="module", name="setup")
def _setup():
    generator = np.random.default_rng(0)
    a, b, c, d = generator.integers(0, 2, (4, N))
    bank = label_pairs(XOR, {"a": a, "b": b}, {"a": c, "b": d}, variables=("p", "q"), role="calibration")
    params = MODEL.init(jax.random.key(3))
    base, source = (np.stack([s["a"], s["b"]], -1) * 2 - 1 for s in (bank.base, bank.source))
    base, source = base.astype(np.float32), source.astype(np.float32)
    recording = record_pairs(MODEL, params, base, source, taps=("hidden",))
    weight = generator.uniform(0, 1.5, (12, 2, 4)).astype(np.float32)
    return bank, params, base, source, recording, weight


def test_hits_match_a_loop_over_pairs(setup):
    bank, params, base, source, recording, weight = setup
    variable = np.arange(12) % 2
    tally = tally_handles(MODEL, params, recording, bank, Handle(weight), variable)
    for h, v in enumerate(variable):
        hits, pairs = iia_oracle(params, base, source, weight[h], bank.labels[v], bank.active[v], bank.eligible[v])
        assert tally.hits[h].tolist() == hits
        assert tally.pairs[h].tolist() == pairs


def test_only_eligible_pairs_count(setup):
    bank, params, *_, recording, weight = setup
    tally = tally_handles(MODEL, params, recording, restrict(bank, 0), Handle(weight), np.arange(12) % 2)
    assert (tally.pairs[1::2] == 0).all()
    assert np.isnan(tally.iia[1::2]).all()
    assert tally.pairs[::2].sum(axis=1).tolist() == [N] * 6


def test_the_loss_is_the_mean_over_halves_of_the_cross_entropy(setup):
    bank, params, base, source, recording, weight = setup
    tally = tally_handles(MODEL, params, recording, bank, Handle(weight[:1]), np.array([0]))
    logits = patched_mlp(params, base, source, weight[0])
    log_z = np.log(np.exp(logits).sum(-1))
    loss = log_z - logits[np.arange(N), bank.labels[0]]
    expected = np.mean([loss[bank.active[0]].mean(), loss[~bank.active[0]].mean()])
    np.testing.assert_allclose(tally.mean_loss[0], expected, rtol=1e-5)  # float32 sums


def test_the_number_of_handles_neither_changes_counts_nor_compiles_again(setup, monkeypatch):
    bank, params, *_, recording, weight = setup
    whole = tally_handles(MODEL, params, recording, bank, Handle(weight), np.zeros(12, int))
    before = iia._tally_block._cache_size()
    for count in (1, 5, 12):
        part = tally_handles(MODEL, params, recording, bank, Handle(weight[:count]), np.zeros(count, int))
        np.testing.assert_array_equal(part.hits, whole.hits[:count])
    assert iia._tally_block._cache_size() == before
    monkeypatch.setattr(iia, "_BLOCK", 8)
    blocked = tally_handles(MODEL, params, recording, bank, Handle(weight), np.zeros(12, int))
    np.testing.assert_array_equal(blocked.hits, whole.hits)


def test_tallies_pool_by_addition(setup):
    bank, params, *_, recording, weight = setup
    tally = tally_handles(MODEL, params, recording, bank, Handle(weight), np.zeros(12, int))
    doubled = tally + tally
    np.testing.assert_array_equal(doubled.iia, tally.iia)
    np.testing.assert_array_equal(doubled.pairs, 2 * tally.pairs)


def test_local_and_whole_handles_count_alike(setup):
    bank, params, *_, recording, _ = setup
    sites = unit_sites(MODEL.taps["hidden"])
    local = tally_handles(MODEL, params, recording, bank, sites.handles(), np.zeros(8, int))
    whole = tally_handles(MODEL, params, recording, bank, Handle(sites.rows()), np.zeros(8, int))
    np.testing.assert_array_equal(local.hits, whole.hits)


def test_equal_handles_are_found_and_mapped_back(rng):
    weight = rng.uniform(size=(5, 2, 4)).astype(np.float32)
    repeated = np.concatenate([weight, weight[[3, 1]], weight[[3]] * (1 + 1e-8)])
    variable = np.array([0] * 7 + [1])
    distinct, owner, inverse = unique_handles(Handle(repeated), variable)
    assert len(distinct.weight) == 6  # the last has another variable
    np.testing.assert_allclose(np.asarray(distinct.weight)[inverse], repeated, atol=2**-20)
    np.testing.assert_array_equal(owner[inverse], variable)
    assert inverse[5] == inverse[3]
    assert inverse[6] == inverse[1]


def test_handles_in_a_basis_are_not_told_apart_by_weight():
    handle = Handle(np.zeros((1, 2, 4), np.float32), rotation_basis(np.zeros((1, 2, 4, 4), np.float32)))
    with pytest.raises(ValueError, match="expected native handles"):
        unique_handles(handle, np.zeros(1, int))


def test_recording_and_bank_must_belong_together(setup):
    bank, params, base, source, _, weight = setup
    short = record_pairs(MODEL, params, base[:7], source[:7], taps=("hidden",))
    with pytest.raises(ValueError, match="got a recording of 7 pairs, expected the bank's 40"):
        tally_handles(MODEL, params, short, bank, Handle(weight), np.zeros(12, int))


def test_a_variable_that_does_not_exist_is_refused(setup):
    bank, params, *_, recording, weight = setup
    with pytest.raises(ValueError, match="expected 0 to 1"):
        tally_handles(MODEL, params, recording, bank, Handle(weight), np.full(12, 2))


def test_cross_entropy_is_minus_log_softmax(rng):
    logits = rng.standard_normal((5, 3)).astype(np.float32)
    expected = [np.log(np.exp(row).sum()) - row[1] for row in logits.astype(float)]
    np.testing.assert_allclose(CLASSES.loss(jnp.asarray(logits), jnp.ones(5, int)), expected, rtol=1e-5)


def test_balanced_accuracy_of_a_constant_is_chance():
    labels = np.array([1] * 98 + [0] * 2)
    assert accuracy(np.ones(100, int), labels) == 0.98
    assert balanced_accuracy(np.ones(100, int), labels) == 0.5
