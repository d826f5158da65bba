"""Effect signatures and transport costs: against a loop, and the paper's identities (PLOT, Sec. 3.1)."""

from typing import get_args

import jax
import numpy as np
import pytest
from oracles import patched_mlp, prob_delta_signature, softmax

from abstraction.interventions import Handle, patched_outputs, record_pairs, unit_sites
from abstraction.localization.signatures import (
    SignatureMode,
    abstract_signatures,
    cosine_similarity,
    measure_effects,
    site_signatures,
    transport_cost,
)
from abstraction.models import MLP
from abstraction.tasks import equality

MODEL = MLP(16, 6, 2, 2)
SITES = unit_sites(MODEL.taps["hidden"])
N = 60


@pytest.fixture(scope="module", name="setup")
def _setup():
    banks = equality.independent_banks(0, fit=N, calibration=30, test=10, both=0.1)
    vectors = equality.entities(0)
    base, source = (equality.encode(vectors, equality.rows_of(s)) for s in (banks.fit.base, banks.fit.source))
    params = MODEL.init(jax.random.key(0))
    # A unit that nothing reads: an inert site.
    params["head"]["kernel"] = params["head"]["kernel"].at[3].set(0.0)
    return banks, params, base, source, record_pairs(MODEL, params, base, source, taps=("hidden",))


def test_prob_delta_matches_a_loop_over_sites(setup):
    _, params, base, source, recording = setup
    plain = patched_mlp(params, base, source, np.zeros((2, 6)))
    expected = [prob_delta_signature(patched_mlp(params, base, source, row), plain) for row in SITES.rows()]
    # float32 against float64
    np.testing.assert_allclose(site_signatures(MODEL, params, recording, SITES), expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["logit_delta", "margin_delta", "transition_margin", "kl", "tv"])
def test_other_modes_match_their_formula(setup, mode):
    _, params, _, _, recording = setup
    base = np.asarray(recording.outputs, np.float64)
    patched = np.asarray(patched_outputs(MODEL, params, recording, Handle(SITES.rows()[7])), np.float64)
    p, q = softmax(patched), softmax(base)
    margin = (patched[:, 1] - patched[:, 0]) - (base[:, 1] - base[:, 0])
    expected = {
        "logit_delta": (patched - base).T.reshape(-1),
        "margin_delta": margin,
        "transition_margin": np.concatenate([np.maximum(margin, 0), np.maximum(-margin, 0)]),
        "kl": 1 - np.exp(-(p * np.log(p / q)).sum(-1)),
        "tv": 0.5 * np.abs(p - q).sum(-1),
    }[mode]
    # float32 differences of nearly equal logits
    np.testing.assert_allclose(site_signatures(MODEL, params, recording, SITES, mode=mode)[7], expected, atol=2e-6)


@pytest.mark.parametrize("mode", get_args(SignatureMode))
def test_an_inert_site_has_the_zero_signature(setup, mode):
    _, params, _, _, recording = setup
    signatures = np.asarray(site_signatures(MODEL, params, recording, SITES, mode=mode))
    np.testing.assert_allclose(signatures[6 + 3], 0.0, atol=1e-6)  # resumed and plain runs sum in another order
    assert np.abs(signatures[6 + 2]).max() > 2e-5


@pytest.mark.parametrize("mode", ["kl", "tv"])
def test_kl_and_tv_lie_between_zero_and_one(setup, mode):
    _, params, _, _, recording = setup
    signatures = np.asarray(site_signatures(MODEL, params, recording, SITES, mode=mode))
    assert signatures.min() >= -1e-6
    assert signatures.max() <= 1


def test_the_class_halves_of_two_classes_are_opposite(setup):
    _, params, _, _, recording = setup
    first, second = np.split(np.asarray(site_signatures(MODEL, params, recording, SITES)), 2, axis=1)
    np.testing.assert_allclose(first, -second, atol=1e-6)


def test_abstract_signatures_by_hand(setup):
    bank = setup[0].fit
    signatures = np.asarray(abstract_signatures(bank, 2))
    for v in range(2):
        delta = np.eye(2)[bank.labels[v]] - np.eye(2)[bank.factual]
        np.testing.assert_array_equal(signatures[v], delta.T.reshape(-1))
    np.testing.assert_array_equal((signatures**2).sum(-1), 2 * bank.active.sum(-1))
    changed = np.asarray(abstract_signatures(bank, 2, mode="kl"))
    np.testing.assert_array_equal(changed, bank.active)
    margin = np.asarray(abstract_signatures(bank, 2, mode="margin_delta"))
    np.testing.assert_array_equal(margin, 2.0 * (bank.labels - bank.factual))


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("metric", ["sq_l2", "l1", "cosine"])
def test_costs_match_numpy(rng, metric, unit):
    u, v = rng.standard_normal((2, 9)).astype(np.float32), rng.standard_normal((5, 9)).astype(np.float32)
    got = transport_cost(u, v, metric=metric, unit=unit)
    a, b = u.astype(float), v.astype(float)
    cosine = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    if unit:
        a, b = a / np.linalg.norm(a, axis=1)[:, None], b / np.linalg.norm(b, axis=1)[:, None]
    difference = a[:, None] - b[None]
    expected = {"sq_l2": (difference**2).sum(-1), "l1": np.abs(difference).sum(-1), "cosine": 1 - cosine}[metric]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)  # float32 sums


def test_unit_squared_distance_is_two_minus_two_cosines(rng):
    u, v = rng.standard_normal((2, 9)).astype(np.float32), rng.standard_normal((5, 9)).astype(np.float32)
    expected = 2 - 2 * np.asarray(cosine_similarity(u, v))
    np.testing.assert_allclose(transport_cost(u, v, unit=True), expected, rtol=1e-5, atol=1e-6)


def test_a_zero_signature_has_cosine_zero_not_nan():
    u, v = np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32)
    assert float(cosine_similarity(u, v)[0, 0]) == 0.0


def test_permuting_sites_permutes_signatures_and_costs(setup, rng):
    banks, params, _, _, recording = setup
    order = rng.permutation(SITES.size)
    permuted = jax.tree.map(lambda leaf: leaf[order], SITES)
    plain, moved = (measure_effects(MODEL, params, recording, banks.fit, sites) for sites in (SITES, permuted))
    np.testing.assert_allclose(moved.neural, np.asarray(plain.neural)[order], atol=1e-6)
    np.testing.assert_allclose(moved.cost, np.asarray(plain.cost)[:, order], rtol=1e-6)


def test_families_are_averaged_before_they_are_compared(setup, rng):
    banks, params, _, _, recording = setup
    families = rng.permutation(np.arange(N) % 5)
    plain = np.asarray(site_signatures(MODEL, params, recording, SITES)).reshape(SITES.size, 2, N)
    expected = np.stack([plain[:, :, families == family].mean(axis=-1) for family in range(5)], axis=1)
    got = site_signatures(MODEL, params, recording, SITES, families=families)
    np.testing.assert_allclose(got, expected.reshape(SITES.size, -1), atol=1e-6)  # float32 sums
    abstract = np.asarray(abstract_signatures(banks.fit, 2)).reshape(2, 2, N)
    expected = np.stack([abstract[:, :, families == family].mean(axis=-1) for family in range(5)], axis=1)
    np.testing.assert_allclose(abstract_signatures(banks.fit, 2, families=families), expected.reshape(2, -1), atol=1e-6)


@pytest.mark.parametrize("families", [np.zeros(7, int), np.full(N, 2)])
def test_families_that_do_not_cover_the_pairs_are_refused(setup, families):
    _, params, _, _, recording = setup
    with pytest.raises(ValueError, match=f"expected one for each of {N} pairs"):
        site_signatures(MODEL, params, recording, SITES, families=families)


def test_effects_are_measured_on_fit_pairs_only(setup):
    banks, params, _, _, recording = setup
    with pytest.raises(ValueError, match="got a test bank to measure effects on"):
        measure_effects(MODEL, params, recording, banks.tests["test"], SITES)


def test_unknown_options_are_refused(setup, unchecked):
    banks, params, _, _, recording = setup
    with pytest.raises(ValueError, match="got signature mode 'nope', expected one of"):
        site_signatures(MODEL, params, recording, SITES, mode="nope")
    with pytest.raises(ValueError, match="got signature mode 'margin_delta' with 3 classes, expected 2"):
        abstract_signatures(banks.fit, 3, mode="margin_delta")
    with pytest.raises(ValueError, match="got cost metric 'l3', expected one of"):
        transport_cost(np.ones((1, 2)), np.ones((1, 2)), metric="l3")


def test_blocks_are_centred_and_normed_each_and_rounding_noise_is_not_blown_up(rng):
    u, v = rng.standard_normal((2, 12)).astype(np.float32), rng.standard_normal((4, 12)).astype(np.float32)
    v[1, :6] = 3.0
    v[2] = 1e-7 * rng.standard_normal(12)

    def normed(rows):
        parts = rows.astype(float).reshape(-1, 2, 6)
        parts = parts - parts.mean(-1, keepdims=True)
        norms = np.linalg.norm(parts, axis=-1, keepdims=True)
        return np.where(norms > 1e-5 * norms.max(), parts / np.maximum(norms, 1e-30), 0.0).reshape(-1, 12)

    expected = ((normed(u)[:, None] - normed(v)[None]) ** 2).sum(-1)
    cost = np.asarray(transport_cost(u, v, blocks=2))
    np.testing.assert_allclose(cost, expected, rtol=1e-5, atol=1e-5)  # float32 sums
    np.testing.assert_allclose(cost[:, 2], 2.0, rtol=1e-5)  # a site without effect is as far as the variable is long
    assert cost.max() <= 8.0
    np.testing.assert_allclose(transport_cost(u + 5, v * 7, blocks=2), cost, atol=1e-4)  # no zero and no scale
    with pytest.raises(ValueError, match="got 5 blocks of signatures of length 12, expected a divisor"):
        transport_cost(u, v, blocks=5)


def test_outputs_beyond_the_classes_are_left_out(setup):
    banks, params, _, _, recording = setup
    families = np.arange(N) % 3
    one = site_signatures(MODEL, params, recording, SITES, mode="logit_delta", families=families, classes=1)
    both = site_signatures(MODEL, params, recording, SITES, mode="logit_delta", families=families)
    expected = np.asarray(both).reshape(SITES.size, 3, 2)[..., 0]
    np.testing.assert_allclose(one, expected, atol=1e-7)  # float32 sums in another order
    found = measure_effects(
        MODEL, params, recording, banks.fit, SITES, mode="logit_delta", families=families, classes=2, blocks=True
    )
    np.testing.assert_allclose(found.cost, transport_cost(found.abstract, found.neural, blocks=3), rtol=1e-6)
    with pytest.raises(ValueError, match="got 3 classes, expected 1 to 2"):
        site_signatures(MODEL, params, recording, SITES, classes=3)
