"""Effect signatures and transport costs: against a loop, and the paper's identities (PLOT, Sec. 3.1)."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import patched_mlp, prob_delta_signature, softmax

from abstraction.evaluation import record
from abstraction.interventions import Handle, unit_sites
from abstraction.interventions.patching import patched_outputs
from abstraction.localization.distances import cosine_similarity, transport_cost
from abstraction.localization.effects import check_heard, kept_signatures, measure_effects
from abstraction.localization.signatures import (
    Signature,
    SignatureMode,
    abstract_signatures,
    answer_classes,
    site_signatures,
)
from abstraction.models import MLP, Network
from abstraction.models.taps import NO_EDITS
from abstraction.tasks import equality

MODEL = MLP(16, 6, 2, 2)
SITES = unit_sites(MODEL.taps["hidden"])
N = 60
VECTORS = equality.entities(0)


@pytest.fixture(scope="module", name="setup")
def _setup():
    banks = equality.independent_banks(0, fit=N, calibration=30, test=10, both=0.1)
    params = MODEL.init(jax.random.key(0))
    # A unit that nothing reads: an inert site.
    params["head"]["kernel"] = params["head"]["kernel"].at[3].set(0.0)
    network = Network(MODEL, params)
    fit, test = (record(network, _encode, bank, tap="hidden") for bank in (banks.fit, banks.tests["test"]))
    return network, fit, _encode(banks.fit.source), test


def _encode(setting):
    return equality.encode(VECTORS, equality.rows_of(setting))


def test_prob_delta_matches_a_loop_over_sites(setup):
    network, recorded, source, _ = setup
    patched = lambda row: patched_mlp(network.params, recorded.runs.inputs, source, row)
    plain = patched(np.zeros((2, 6)))
    expected = [prob_delta_signature(patched(row), plain) for row in SITES.rows()]
    # float32 against float64
    np.testing.assert_allclose(site_signatures(network, recorded.runs, SITES), expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["logit_delta", "margin_delta", "transition_margin", "kl", "tv"])
def test_other_modes_match_their_formula(setup, mode):
    network, recorded, *_ = setup
    base = np.asarray(recorded.runs.outputs, np.float64)
    patched = np.asarray(patched_outputs(network, recorded.runs, Handle("hidden", SITES.rows()[7])), np.float64)
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
    np.testing.assert_allclose(site_signatures(network, recorded.runs, SITES, Signature(mode))[7], expected, atol=2e-6)


@pytest.mark.parametrize("mode", get_args(SignatureMode))
def test_an_inert_site_has_the_zero_signature(setup, mode):
    network, recorded, *_ = setup
    signatures = np.asarray(site_signatures(network, recorded.runs, SITES, Signature(mode)))
    np.testing.assert_allclose(signatures[6 + 3], 0.0, atol=1e-6)  # resumed and plain runs sum in another order
    assert np.abs(signatures[6 + 2]).max() > 2e-5


@pytest.mark.parametrize("mode", ["kl", "tv"])
def test_kl_and_tv_lie_between_zero_and_one(setup, mode):
    network, recorded, *_ = setup
    signatures = np.asarray(site_signatures(network, recorded.runs, SITES, Signature(mode)))
    assert signatures.min() >= -1e-6
    assert signatures.max() <= 1


def test_the_class_halves_of_two_classes_are_opposite(setup):
    network, recorded, *_ = setup
    first, second = np.split(np.asarray(site_signatures(network, recorded.runs, SITES)), 2, axis=1)
    np.testing.assert_allclose(first, -second, atol=1e-6)


def test_abstract_signatures_by_hand(setup):
    bank = setup[1].bank
    signatures = np.asarray(abstract_signatures(bank, 2))
    for v in range(2):
        delta = np.eye(2)[bank.labels[v]] - np.eye(2)[bank.factual]
        np.testing.assert_array_equal(signatures[v], delta.T.reshape(-1))
    np.testing.assert_array_equal((signatures**2).sum(-1), 2 * bank.active.sum(-1))
    changed = np.asarray(abstract_signatures(bank, 2, Signature("kl")))
    np.testing.assert_array_equal(changed, bank.active)
    margin = np.asarray(abstract_signatures(bank, 2, Signature("margin_delta")))
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
    network, recorded, *_ = setup
    order = rng.permutation(SITES.size)
    permuted = jax.tree.map(lambda leaf: leaf[order], SITES)
    plain, moved = (measure_effects(network, recorded, sites) for sites in (SITES, permuted))
    np.testing.assert_allclose(moved.neural, np.asarray(plain.neural)[order], atol=1e-6)
    np.testing.assert_allclose(moved.cost, np.asarray(plain.cost)[:, order], rtol=1e-6)


def test_families_are_averaged_before_they_are_compared(setup, rng):
    network, recorded, *_ = setup
    families = rng.permutation(np.arange(N) % 5)
    plain = np.asarray(site_signatures(network, recorded.runs, SITES)).reshape(SITES.size, 2, N)
    expected = np.stack([plain[:, :, families == family].mean(axis=-1) for family in range(5)], axis=1)
    got = site_signatures(network, recorded.runs, SITES, Signature(families=families))
    np.testing.assert_allclose(got, expected.reshape(SITES.size, -1), atol=1e-6)  # float32 sums
    abstract = np.asarray(abstract_signatures(recorded.bank, 2)).reshape(2, 2, N)
    expected = np.stack([abstract[:, :, families == family].mean(axis=-1) for family in range(5)], axis=1)
    got = abstract_signatures(recorded.bank, 2, Signature(families=families))
    np.testing.assert_allclose(got, expected.reshape(2, -1), atol=1e-6)


@pytest.mark.parametrize("families", [np.zeros(7, int), np.full(N, 2)])
def test_families_that_do_not_cover_the_pairs_are_refused(setup, families):
    network, recorded, *_ = setup
    with pytest.raises(ValueError, match=f"expected one for each of {N} pairs"):
        site_signatures(network, recorded.runs, SITES, Signature(families=families))


def test_effects_are_measured_on_fit_pairs_only(setup):
    network, *_, test = setup
    with pytest.raises(ValueError, match="got a test bank to measure effects on"):
        measure_effects(network, test, SITES)


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
    network, recorded, *_ = setup
    families = np.arange(N) % 3
    one, both = (
        site_signatures(network, recorded.runs, SITES, Signature("logit_delta", families=families, classes=classes))
        for classes in (1, None)
    )
    expected = np.asarray(both).reshape(SITES.size, 3, 2)[..., 0]
    np.testing.assert_allclose(one, expected, atol=1e-7)  # float32 sums in another order
    signature = Signature("logit_delta", families=families, classes=2, blocks=True)
    found = measure_effects(network, recorded, SITES, signature)
    np.testing.assert_allclose(found.cost, transport_cost(found.abstract, found.neural, blocks=3), rtol=1e-6)


class _Deaf(MLP):
    """An MLP that takes edits and runs on without them."""

    def apply(self, params, inputs, edits=NO_EDITS, record=()):
        return super().apply(params, inputs, NO_EDITS, record)

    @property
    def taps(self):
        return {name: dataclasses.replace(tap, resumes=False) for name, tap in super().taps.items()}


def test_a_network_that_ignores_every_edit_is_refused(setup):
    """One without a reader of the tap, one that never applies an edit, and one site that nothing reads."""
    network = setup[0]
    fit = lambda one: record(one, _encode, setup[1].bank, tap="hidden")
    unread = Network(MODEL, {**network.params, "head": jax.tree.map(np.zeros_like, network.params["head"])})
    deaf = Network(_Deaf(16, 6, 2, 2), network.params)
    heard = lambda one, sites: check_heard(one, fit(one), measure_effects(one, fit(one), sites))
    for one, sites in ((unread, SITES), (deaf, SITES), (network, SITES.take(np.array([6 + 3])))):
        with pytest.raises(
            ValueError, match=f"effects of at most 1e-08 at all {sites.size} sites of tap 'hidden', exp"
        ):
            heard(one, sites)
    faint = Network(MODEL, {**network.params, "head": jax.tree.map(lambda leaf: 1e-4 * leaf, network.params["head"])})
    heard(faint, SITES)
    effects = measure_effects(faint, fit(faint), SITES)
    assert 1e-8 < np.abs(effects.neural).max() < 1e-4, "a small effect is one"


def test_effects_that_are_not_finite_are_refused_by_the_number_of_the_site(setup):
    network, recorded, *_ = setup
    endless = {tap: jnp.full_like(states, np.inf) for tap, states in recorded.runs.source.items()}
    runs = dataclasses.replace(recorded.runs, source=endless)
    with pytest.raises(ValueError, match=r"got effects of sites \[0, 1, 2, .* not finite, expected finite outputs"):
        measure_effects(network, dataclasses.replace(recorded, runs=runs), SITES)


@pytest.mark.parametrize("metric", ["sq_l2", "l1", "cosine"])
def test_costs_of_signatures_that_are_not_kept_are_those_of_kept_ones(setup, metric):
    """Four of eleven sites at a time: the last block repeats a site, and counts it once."""
    network, recorded, *_ = setup
    whole, streamed = (
        measure_effects(network, recorded, SITES.take(np.arange(11)), Signature(metric=metric, memory=memory))
        for memory in (2**30, 5 * 4 * 2 * N)
    )
    assert streamed.neural is None
    np.testing.assert_allclose(streamed.cost, whole.cost, rtol=1e-6)
    assert streamed.largest == whole.largest == np.abs(whole.neural).max()
    with pytest.raises(ValueError, match=r"without the signatures of their 11 sites, which are 0.00528 MB, expected"):
        kept_signatures(streamed)
    check_heard(network, recorded, streamed, Signature(memory=5 * 4 * 2 * N))


def test_a_memory_too_small_for_one_site_is_refused_with_its_size(setup):
    network, recorded, *_ = setup
    with pytest.raises(ValueError, match=r"120 numbers each .60 pairs, 2 outputs.: 0.00048 MB for one and 0.00576 MB"):
        measure_effects(network, recorded, SITES, Signature(memory=479))
    families = np.arange(N) % 3
    with pytest.raises(ValueError, match="for all sites, expected all to fit the memory"):
        measure_effects(network, recorded, SITES, Signature(families=families, blocks=True, memory=100))


def test_unheard_sites_are_told_some_at_a_time(setup):
    network, recorded, *_ = setup
    inert = SITES.take(np.array([6 + 3] * 4))
    signature = Signature(memory=2 * 4 * 2 * N)
    with pytest.raises(ValueError, match="effects of at most 1e-08 at all 4 sites"):
        check_heard(network, recorded, measure_effects(network, recorded, inert, signature), signature)


def test_classes_are_counted_by_their_names(setup, rng):
    """Of a vocabulary of seven, the two answers: the same effects as of a network that has these two outputs."""
    _, recorded, *_ = setup
    wide, narrow = MLP(16, 6, 2, 7), MLP(16, 6, 2, 2)
    params = wide.init(jax.random.key(1))
    cut = {**params, "head": jax.tree.map(lambda leaf: leaf[..., [5, 2]], params["head"])}
    names = np.array([5, 2])
    bank = recorded.bank
    named = dataclasses.replace(bank, labels=names[bank.labels], factual=names[bank.factual])
    assert answer_classes(named) == (2, 5)
    pairs = (
        (Network(narrow, cut), bank, None),
        (Network(wide, params), named, (5, 2)),
    )
    expected, found = (
        measure_effects(network, record(network, _encode, one, tap="hidden"), SITES, Signature(classes=classes))
        for network, one, classes in pairs
    )
    np.testing.assert_array_equal(found.abstract, expected.abstract)
    np.testing.assert_allclose(found.neural, expected.neural, atol=1e-6)  # float32 sums in another order
    with pytest.raises(ValueError, match=r"got labels \[5\], expected some of the 2 classes"):
        abstract_signatures(named, 7, Signature(classes=(1, 2)))
    with pytest.raises(ValueError, match=r"got \(7, 2\) classes, expected 1 to 7"):
        abstract_signatures(named, 7, Signature(classes=(7, 2)))


@pytest.mark.parametrize(
    ("classes", "said"), [((), "at least one"), ((1, 1), "only once"), ((-1, 2), "class -1"), ((0.5,), "class 0.5")]
)
def test_classes_that_are_none_are_refused(unchecked, classes, said):
    with pytest.raises(ValueError, match=said):
        Signature(classes=classes)
    with pytest.raises(ValueError, match="expected a number of bits"):
        Signature("bit_delta", classes=(0, 1))
