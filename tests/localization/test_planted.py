"""PLOT on networks whose answer is known: what it must find, and what it cannot."""

import jax
import numpy as np
import pytest
from planted import MENU, UNITS, WIDTH, Plant, planted, planted_chain, recorded_banks

from abstraction.evaluation import Repeats, judge, tally_handles
from abstraction.evaluation.judging import judge_alone
from abstraction.interventions import Handle, unit_sites
from abstraction.localization import (
    BruteForce,
    Cosine,
    CutMenu,
    GromovWasserstein,
    Nearest,
    Recipe,
    ReferenceTransport,
    Transport,
    measure_effects,
    plot,
)
from abstraction.localization.rules import single_site_scores, site_scopes
from abstraction.models import Network


@pytest.fixture(scope="module", name="plant")
def _plant():
    return planted(rotate=False)


def _run(plant, rule, menu=MENU):
    recipe = Recipe(rule, menu, controls=None)
    return plot(plant.network, plant.fit, unit_sites(plant.tap), recipe, evidence=plant.calibration)


def _combined(plant, handles):
    return judge_alone(plant.network, handles, {"test": plant.test})["test"].combined


def _scores(plant):
    return single_site_scores(plant.network, plant.fit, unit_sites(plant.tap))


RULES = {
    "transport": lambda plant: Transport(),
    "one-sided": lambda plant: Transport(taus=(0.5,)),
    "two-sided": lambda plant: Transport(taus=(0.5,), tau_abstract=0.8),
    "joint": lambda plant: Transport("joint"),
    "reference": lambda plant: ReferenceTransport(epsilons=(4.0, 16.0)),
    "cosine": lambda plant: Cosine(),
    "brute-force": lambda plant: BruteForce(_scores(plant)),
    "nearest": lambda plant: Nearest(),
    "fused": lambda plant: GromovWasserstein(alpha=0.5),
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_finds_planted_units(plant, name):
    found = _run(plant, RULES[name](plant))
    weight = np.abs(found.handles.weight)
    assert weight.reshape(2, WIDTH).argmax(axis=1).tolist() == list(UNITS)
    assert found.score is None, "no controls were asked for"
    score = judge(plant.network, found.handles, plant.test)["test"]
    assert score.tally.combined.min() > 0.99
    assert score.random.combined.max() < 0.9
    assert score.shuffled.combined.max() < 0.9
    assert score.exceeds.all()


def test_the_cheapest_sites_are_the_planted_ones(plant):
    effects = measure_effects(plant.network, plant.fit, unit_sites(plant.tap))
    assert np.asarray(effects.cost).argmin(axis=1).tolist() == list(UNITS)
    assert _scores(plant).argmax(axis=1).tolist() == list(UNITS)


def test_unbalanced_rows_concentrate_as_eps_falls(plant):
    plans = _run(plant, Transport(taus=(0.05,), epsilons=(10.0, 1.0, 0.1))).plans.coupling.plan[0, 0]
    top = [plan[v, UNITS[v]] / plan[v].sum() for plan in plans for v in range(2)]
    assert top[0] < top[2] < top[4]
    assert top[4] > 0.99


def test_rotated_variables_are_not_in_units():
    plant = planted(rotate=True)
    assert _combined(plant, _run(plant, Transport()).handles).max() < 0.95


def test_two_copies_need_a_handle_of_two_sites():
    plant = planted(rotate=False, copies=2)
    one = _run(plant, Transport(taus=(0.5,)), CutMenu((1,), (1.0,)))
    two = _run(plant, Transport(taus=(0.5,)), CutMenu((1, 2), (1.0,)))
    assert _combined(plant, one.handles)[0] < 0.9
    assert _combined(plant, two.handles)[0] > 0.99
    assert set(np.flatnonzero(np.asarray(two.handles.weight)[0, 0])) == {1, 2}


def test_of_three_copies_each_alone_does_nothing_and_two_do_it_all():
    """The reading is the mean of the copies: one of three is outvoted, two of three are not."""
    plant = planted(rotate=False, copies=3)
    weight = np.zeros((5, 1, WIDTH), np.float32)
    for handle, units in enumerate(([], [1], [2], [3], [1, 3])):
        weight[handle, 0, units] = 1.0
    tally = tally_handles(plant.network, plant.test, Handle("hidden", weight), np.zeros(5, int))
    nothing, *alone, both = tally.hits.tolist()
    assert nothing[0] == 0, "no-ops are wrong on every sensitive pair and right on every invariant one"
    assert nothing[1] == tally.pairs[0, 1]
    assert alone == [nothing] * 3
    assert both == tally.pairs[0].tolist()
    found = _run(plant, Transport(taus=(0.5,)), CutMenu((1, 2), (1.0,)))
    assert found.choice.settings[0]["subset"] == 2
    assert set(np.flatnonzero(np.asarray(found.handles.weight)[0, 0])) < {1, 2, 3}
    assert _combined(plant, found.handles).min() > 0.99


def test_an_untrained_network_has_no_alignment_and_says_so(plant):
    model = plant.network.model
    network = Network(model, model.init(jax.random.key(5)))
    fit, calibration, test = recorded_banks(network)
    recipe = Recipe(Transport(), MENU, controls=Repeats(draws=5, shuffles=2))
    found = plot(network, fit, unit_sites(plant.tap), recipe, evidence=calibration)
    assert found.choice.tally.combined.max() < 0.6
    assert not found.score.exceeds.any()
    assert not judge(network, found.handles, test)["test"].exceeds.any()
    assert "not above its controls" in str(found.score)


def test_permuting_the_units_of_the_network_permutes_the_handles(plant):
    order = np.array([3, 0, 5, 1, 2, 4])
    params = plant.network.params
    moved = {
        "stem": {"kernel": params["stem"]["kernel"][:, order], "bias": params["stem"]["bias"][order]},
        "head": {"kernel": params["head"]["kernel"][order], "bias": params["head"]["bias"]},
        "blocks": None,
    }
    network = Network(plant.network.model, {name: moved[name] for name in params})
    other = Plant(network, plant.directions, *recorded_banks(network))
    first, second = (_run(p, Transport()).choice for p in (plant, other))
    assert not first.ambiguous.any()
    weights = [np.asarray(choice.handles.weight) for choice in (first, second)]
    np.testing.assert_allclose(weights[1], weights[0][..., order], atol=1e-5)


@pytest.mark.parametrize("positions", [False, True], ids=["dense", "convolution"])
def test_a_tap_without_depth_is_searched_as_any_other(plant, positions):
    """The same network as a chain, whose tap occurs once, with positions or without: the same choice and score."""
    chain = planted_chain(plant, positions=positions)
    assert chain.fit.tap == "stem"
    assert chain.fit.runs.base["stem"].shape == (1, 256, *((2, 2) if positions else ()), WIDTH)
    found, expected = (_run(p, Transport()) for p in (chain, plant))
    assert found.handles.tap == "stem"
    assert found.choice.settings == expected.choice.settings
    np.testing.assert_allclose(found.handles.weight, expected.handles.weight, atol=1e-5)
    np.testing.assert_array_equal(found.choice.tally.hits, expected.choice.tally.hits)
    score = judge(chain.network, found.handles, chain.test)["test"]
    assert score.exceeds.all()
    np.testing.assert_array_equal(score.tally.combined, 1.0)


def test_ranking_sites_refuses_test_pairs(plant):
    with pytest.raises(ValueError, match="got a test bank to rank sites on"):
        single_site_scores(plant.network, plant.test, unit_sites(plant.tap))


def test_an_unknown_scope_is_refused(plant, unchecked):
    with pytest.raises(ValueError, match=r"got scope 'layer', expected one of \('depth', 'joint'\)"):
        site_scopes(unit_sites(plant.tap), "layer")
