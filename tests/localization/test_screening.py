"""Screening: the score is a cosine, the best sites are kept, and only what is kept is measured."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import UNITS, planted, planted_adder

from abstraction.causal import causal_model, label_pairs
from abstraction.evaluation import Bits, record
from abstraction.evaluation.planted import planted_network
from abstraction.interventions import state_sites, unit_sites
from abstraction.interventions.bases import pca_bases
from abstraction.interventions.sites import band_sites
from abstraction.localization import BruteForce, CutMenu, Recipe, Signature, measure_effects, plot, screen_sites
from abstraction.localization.attribution import first_order_signatures
from abstraction.localization.rules import single_site_scores
from abstraction.localization.signatures import abstract_signatures
from abstraction.models import GRU, MLP, Network, TokenView, prompts_at
from abstraction.tasks import addition, mcqa

DATA = Path(__file__).parents[3] / "shared" / "data"
XOR = causal_model(("a", "b"), "y", p=lambda a: a, q=lambda b: b, y=lambda p, q: p ^ q)


def _two_classes():
    """Draw a network of two outputs, and pairs whose label p xor q it does not know."""
    model = MLP(2, 5, 2, 2, "tanh")
    network = Network(model, model.init(jax.random.key(1)))
    a, b, c, d = np.random.default_rng(4).integers(0, 2, (4, 60))
    bank = label_pairs(XOR, {"a": a, "b": b}, {"a": c, "b": d}, variables=("p", "q"), role="fit")
    encode = lambda setting: np.stack([setting["a"], setting["b"]], axis=-1).astype(np.float32) + 0.1
    return network, record(network, encode, bank, tap="hidden")


@pytest.mark.parametrize("points", [(0.0,), (0.25, 0.75)])
def test_with_two_outputs_the_score_is_the_cosine_of_first_order_signatures(points):
    network, fit = _two_classes()
    sites = unit_sites(network.taps["hidden"])
    logits = Signature("logit_delta")
    u = np.asarray(abstract_signatures(fit.bank, 2, logits))
    v = first_order_signatures(network, fit.runs, sites, logits, points).reshape(sites.size, 2, -1)
    v = (v - v.mean(axis=1, keepdims=True)).reshape(sites.size, -1)
    expected = u @ v.T / np.outer(np.linalg.norm(u, axis=1), np.linalg.norm(v, axis=1))
    found = screen_sites(network, fit, sites, points=points)
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    assert found.passes == len(points)


def test_the_top_share_of_every_variable_is_kept_and_their_union_measured():
    plant = planted(rotate=False)
    sites = unit_sites(plant.tap)
    found = screen_sites(plant.network, plant.fit, sites, 0.2)
    assert found.kept.sum(axis=1).tolist() == [2, 2], "a share is rounded up"
    assert found.scores.argmax(axis=1).tolist() == list(UNITS)
    for kept, scores in zip(found.kept, found.scores, strict=True):
        assert scores[kept].min() >= scores[~kept].max()
    np.testing.assert_array_equal(found.columns, np.flatnonzero(found.kept.any(axis=0)))
    np.testing.assert_array_equal(found.sites.index, sites.index[found.columns])
    assert found.passes == 2
    everything = screen_sites(plant.network, plant.fit, sites, 1.0)
    assert everything.kept.all()
    exact = -np.asarray(measure_effects(plant.network, plant.fit, sites).cost)
    np.testing.assert_allclose(everything.agreement(exact), found._replace(columns=np.arange(6)).agreement(exact))


def test_directions_that_are_drawn_are_of_a_seed():
    plant = planted_adder()
    one, same, other = (
        screen_sites(plant.network, plant.fit, unit_sites(plant.tap), seed=seed).scores for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_plot_measures_what_was_screened_and_finds_the_same():
    plant = planted(rotate=False)
    recipe = Recipe(menu=CutMenu((1,), (1.0,)), controls=None)
    sites = unit_sites(plant.tap)
    full = plot(plant.network, plant.fit, sites, recipe, evidence=plant.calibration)
    few = plot(plant.network, plant.fit, sites, dataclasses.replace(recipe, screen=0.2), evidence=plant.calibration)
    np.testing.assert_allclose(few.handles.weight, full.handles.weight, atol=1e-6)
    assert few.effects.cost.shape[1] == few.screened.sites.size < sites.size
    assert full.screened is None
    assert full.agreement is None
    assert few.agreement.shape == (2,)
    np.testing.assert_allclose(few.agreement, few.screened.agreement(-np.asarray(few.effects.cost)))


def test_brute_force_measures_what_was_screened_and_no_other_site_wins():
    plant = planted(rotate=False)
    sites = unit_sites(plant.tap)
    kept = screen_sites(plant.network, plant.fit, sites, 0.2).kept
    scores, every = (single_site_scores(plant.network, plant.fit, sites, mask) for mask in (kept, None))
    np.testing.assert_array_equal(scores[kept], every[kept])
    assert np.isneginf(scores[~kept]).all()
    plan = BruteForce(scores)(measure_effects(plant.network, plant.fit, sites)).coupling.plan
    assert not np.asarray(plan)[:, ~kept].any()


def test_pairs_that_do_not_count_are_not_asked():
    plant = planted(rotate=False)
    bank = plant.fit.bank
    eligible = np.array(bank.eligible)
    eligible[0, ::2] = False
    some = dataclasses.replace(plant.fit, bank=dataclasses.replace(bank, eligible=eligible))
    broken = np.array(some.runs.source["hidden"])
    broken[0, ::2, UNITS[1]] += 5.0  # only pairs that do not count for p
    runs = dataclasses.replace(some.runs, source={"hidden": jnp.asarray(broken)})
    first, second = (
        screen_sites(plant.network, fit, unit_sites(plant.tap)).scores
        for fit in (some, dataclasses.replace(some, runs=runs))
    )
    np.testing.assert_allclose(first[0], second[0], atol=1e-6)
    assert np.abs(first[1] - second[1]).max() > 1e-2


def test_sites_without_a_finite_gradient_are_never_kept():
    plant = planted(rotate=False)
    source = np.array(plant.fit.runs.source["hidden"])
    source[0, 3, 2] = np.nan
    fit = dataclasses.replace(
        plant.fit, runs=dataclasses.replace(plant.fit.runs, source={"hidden": jnp.asarray(source)})
    )
    found = screen_sites(plant.network, fit, unit_sites(plant.tap), 1.0)
    assert np.isnan(found.scores[:, 2]).all()
    assert found.kept.sum(axis=1).tolist() == [5, 5]
    assert not found.kept[:, 2].any()


def _best_is_kept(network, fit, sites, signature):
    exact = -np.asarray(measure_effects(network, fit, sites, signature).cost)
    found = screen_sites(network, fit, sites, 0.25, signature)
    return found.kept[np.arange(len(exact)), exact.argmax(axis=1)].all()


@pytest.mark.slow
def test_the_best_block_of_a_decoder_is_kept_and_the_base_alone_misses_it():
    network, tokenizer, plant = planted_network(0)
    view = Network(TokenView(network.model), network.params)
    bank = mcqa.make_banks(5, {"fit": 60})["fit"].bank
    encode = lambda setting: prompts_at(mcqa.encode(setting, tokenizer).tokens)
    fit = record(view, encode, bank, tap="block_output")
    sites = state_sites(view.taps["block_output"])
    found = screen_sites(view, fit, sites)
    exact = single_site_scores(view, fit, sites)
    blocks = [plant.pointer_block, plant.symbol_block]
    assert exact.argmax(axis=1).tolist() == blocks
    assert found.kept.argmax(axis=1).tolist() == blocks
    assert found.kept.sum(axis=1).tolist() == [1, 1]
    saturated = screen_sites(view, fit, sites, points=(0.0,))
    assert saturated.kept.argmax(axis=1).tolist() != blocks


@pytest.mark.parametrize("seed", [0])
def test_the_best_step_and_components_of_a_trained_adder_are_kept(seed):
    path = DATA / f"binary_addition_gru_h16_seed{seed}.npz"
    if not path.exists():
        pytest.skip("the trained adders are not beside this checkout")
    model = GRU(2, 16, 4)
    network = Network(model, model.params_from_torch(np.load(path)))
    fit = record(network, addition.encode, addition.structured_banks(seed).fit, tap="hidden", readout=Bits())
    tap, signature = model.taps["hidden"], Signature("bit_delta")
    for sites in (state_sites(tap), band_sites(tap, pca_bases(fit.runs.base["hidden"]), 4)):
        exact = single_site_scores(network, fit, sites)
        kept = screen_sites(network, fit, sites, 0.25, signature).kept
        assert kept[np.arange(3), exact.argmax(axis=1)].all()
        assert _best_is_kept(network, fit, sites, signature)
