"""What is never chosen, and what nobody may choose by: numbers that are none, empty evidence, test pairs."""

import dataclasses

import jax
import numpy as np
import pytest
from planted import UNITS, WIDTH, planted

from abstraction.causal.pairs import restrict
from abstraction.evaluation import Repeats
from abstraction.interventions import Handle, state_sites, unit_sites
from abstraction.localization import (
    VARIANTS,
    CutMenu,
    Recipe,
    Search,
    SearchConfig,
    Selection,
    Transport,
    Weights,
    alignment_search,
    candidate_grid,
    coarse_stage,
    fine_stage,
    full_supports,
    localize,
    measure_effects,
    plot,
)
from abstraction.localization.calibration import calibrate, calibrate_candidates, onset, select
from abstraction.localization.cutting import Grid, handle_grid
from abstraction.localization.pipeline import all_candidates
from abstraction.localization.searching import train_candidates


@pytest.fixture(scope="module", name="plant")
def _plant():
    return planted(rotate=False, gains=(2.0, 2.0))


def _candidates(*units):
    """Swap one unit each, at depth 0; None is a candidate that is not finite."""
    weight = np.zeros((len(units), WIDTH), np.float32)
    for row, unit in enumerate(units):
        weight[row] = np.nan if unit is None else np.arange(WIDTH) == unit
    return Handle("hidden", weight, None, np.zeros(len(units), np.int32))


def _choose(plant, handles, variable, evidence=None, cost=None):
    settings = [{"name": index} for index in range(len(variable))]
    cost = np.zeros(len(variable)) if cost is None else cost
    evidence = plant.calibration if evidence is None else evidence
    return calibrate_candidates(plant.network, evidence, handles, np.array(variable), settings, cost=cost)


def test_a_candidate_that_is_not_finite_is_never_chosen_and_counted(plant):
    """Its argmax is class 0, the answer of a quarter of the pairs, and it costs nothing: it loses all the same."""
    handles = _candidates(None, 0, UNITS[0], None, 5, None)
    choice = _choose(plant, handles, [0, 0, 0, 1, 1, 1], cost=np.array([0.0, 9, 9, 0, 9, 0]))
    assert [setting["name"] for setting in choice.settings] == [2, 4]
    assert choice.not_finite.tolist() == [1, 2]
    assert np.isfinite(choice.handles.weight).all()
    assert choice.scores[0, 0] == 0, "a miss on every pair"


def test_where_nothing_is_finite_nothing_is_chosen_and_the_variable_is_named(plant):
    with pytest.raises(
        ValueError, match=r"got no candidate of \['q'\] whose outputs are finite on every pair, expected"
    ):
        _choose(plant, _candidates(UNITS[0], None, None), [0, 1, 1])
    with pytest.raises(ValueError, match=r"got no candidate of \['p', 'q'\]"):
        _choose(plant, _candidates(None, None), [0, 1])


def test_a_candidate_that_is_not_finite_on_one_bank_is_none_on_all(plant):
    """Weights of 1e38 overflow on some pairs only; pooled evidence is not finite where one of its banks is not."""
    large = _candidates(UNITS[0], 0, UNITS[1], 5)
    weight = np.asarray(large.weight).copy()
    weight[0] *= np.float32(3e38)
    handles = dataclasses.replace(large, weight=weight)
    choice = _choose(plant, handles, [0, 0, 1, 1], evidence=(plant.fit, plant.calibration))
    assert [setting["name"] for setting in choice.settings] == [1, 2]
    assert choice.not_finite.tolist() == [1, 0]


def test_a_grid_is_chosen_from_like_a_list(plant):
    """One plan of a coupling that is not finite leaves no mass, and a grid of NaN weights no candidate."""
    sites, menu = unit_sites(plant.tap), CutMenu((1,), (1.0,))
    plan, cost = np.eye(WIDTH)[list(UNITS)][None], np.ones((2, WIDTH))
    grid = handle_grid(np.concatenate([np.full_like(plan, np.nan), plan]), cost, sites, (("epsilon", (1, 2)),), menu)
    assert (grid.weight[:, 0] == 0).all()
    assert [setting["epsilon"] for setting in calibrate(plant.network, plant.calibration, grid).settings] == [2, 2]
    broken = grid.weight.copy()
    broken[:, 1] = np.nan
    choice = calibrate(plant.network, plant.calibration, grid._replace(weight=broken))
    assert [setting["epsilon"] for setting in choice.settings] == [1, 1]
    assert choice.not_finite.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"got no candidate of \['p', 'q'\]"):
        calibrate(plant.network, plant.calibration, grid._replace(weight=np.full_like(broken, np.nan)))


def test_a_search_that_diverges_is_trained_counted_and_not_chosen(plant):
    candidates = candidate_grid(
        jax.random.key(0), plant.tap, full_supports(plant.tap, range(2)), ranks=(1,), learning_rates=(1e-2, 1e38)
    )
    config = SearchConfig(batch_size=64, max_epochs=2)
    search = Search(Weights(), config, controls=None)
    found = alignment_search(
        jax.random.key(0), plant.network, plant.fit, candidates, search, evidence=plant.calibration
    )
    assert np.asarray(found.searched.finite).tolist() == [True, False] * 2
    assert found.choice.not_finite.tolist() == [1, 1]
    assert [setting["learning_rate"] for setting in found.choice.settings] == pytest.approx([1e-2, 1e-2])
    bad = jax.tree.map(lambda leaf: leaf[1::2], candidates)
    with pytest.raises(ValueError, match=r"got no candidate of \['p', 'q'\].*the search diverged"):
        alignment_search(jax.random.key(0), plant.network, plant.fit, bad, search, evidence=plant.calibration)


def _selecting(plant):
    """Every function that selects, as a call of the evidence."""
    network, fit, tap = plant.network, plant.fit, plant.tap
    sites, menu = unit_sites(tap), CutMenu((1,), (1.0,))
    recipe = Recipe(Transport(epsilons=(1.0,)), menu, controls=None)
    effects = measure_effects(network, fit, sites)
    plans = recipe.rule(effects)
    grid = handle_grid(plans.coupling.plan, effects.cost, sites, plans.axes, menu)
    search = Search(config=SearchConfig(batch_size=64, max_epochs=1), controls=None)
    key, menus = jax.random.key(0), {"units": sites}
    return {
        "calibrate": lambda evidence: calibrate(network, evidence, grid),
        "calibrate_candidates": lambda evidence: _choose(plant, _candidates(1, 4), [0, 1], evidence),
        "plot": lambda evidence: plot(network, fit, sites, recipe, evidence=evidence),
        "localize": lambda evidence: localize(network, effects, plans, menu, evidence=evidence),
        "alignment_search": lambda evidence: alignment_search(key, network, fit, None, search, evidence=evidence),
        "coarse_stage": lambda evidence: coarse_stage(network, fit, VARIANTS["v4"], evidence=evidence),
        "fine_stage": lambda evidence: fine_stage(network, fit, menus, (0, 0), VARIANTS["v4"], evidence=evidence),
    }


SELECTING = ("calibrate", "calibrate_candidates", "plot", "localize", "alignment_search", "coarse_stage", "fine_stage")


@pytest.fixture(scope="module", name="selecting")
def _calls(plant):
    calls = _selecting(plant)
    assert tuple(calls) == SELECTING
    return calls


@pytest.mark.parametrize("name", SELECTING)
def test_nothing_is_selected_by_test_pairs(plant, selecting, name):
    for evidence in (plant.test, (plant.calibration, plant.test)):
        with pytest.raises(
            ValueError, match="got a test bank as evidence for a selection, expected fit or calibration"
        ):
            selecting[name](evidence)


@pytest.mark.parametrize("name", SELECTING)
def test_nothing_is_selected_by_no_pairs_and_the_variable_is_named(plant, selecting, name):
    calibration = plant.calibration
    part = dataclasses.replace(calibration, bank=restrict(calibration.bank, 0))
    with pytest.raises(ValueError, match=r"got evidence without an eligible pair of \['q'\], expected some of every"):
        selecting[name](part)
    with pytest.raises(ValueError, match=r"got evidence of variables \[\], expected at least one"):
        selecting[name](())


def test_banks_of_one_variable_each_are_evidence_together(plant):
    calibration = plant.calibration
    parts = [dataclasses.replace(calibration, bank=restrict(calibration.bank, v)) for v in range(2)]
    whole, pooled = (_choose(plant, _candidates(0, 1, 4, 5), [0, 0, 1, 1], bank) for bank in (calibration, parts))
    assert whole.settings == pooled.settings
    np.testing.assert_array_equal(whole.tally.hits, pooled.tally.hits)


def test_evidence_of_other_variables_than_each_other_is_refused(plant):
    renamed = dataclasses.replace(
        plant.fit, bank=dataclasses.replace(plant.fit.bank, variables=tuple(reversed(plant.fit.variables)))
    )
    with pytest.raises(
        ValueError, match=r"of variables \[\('p', 'q'\), \('q', 'p'\)\], expected .* of equal variables"
    ):
        _choose(plant, _candidates(1, 4), [0, 1], (plant.calibration, renamed))


def test_only_fit_pairs_are_trained_on_or_measured(plant):
    candidates = all_candidates(jax.random.key(0), plant.tap, 2)
    for recorded in (plant.calibration, plant.test):
        role = recorded.bank.role
        with pytest.raises(ValueError, match=f"got a {role} bank to train on, expected a fit bank"):
            train_candidates(jax.random.key(0), plant.network, recorded, candidates, Weights())
        with pytest.raises(ValueError, match=f"got a {role} bank to measure effects on, expected a fit bank"):
            measure_effects(plant.network, recorded, state_sites(plant.tap))


def test_scores_that_are_not_numbers_never_win():
    score, zero = np.array([[np.nan, 0.2, 0.9]]), np.zeros((1, 3))
    assert select(score, zero, zero) == [2]
    assert select(score, np.array([[0.0, 1.0, np.inf]]), zero) == [1]
    assert select(score, np.array([[0.0, 1.0, np.nan]]), zero) == [1]
    with pytest.raises(ValueError, match=r"got no candidate of \[0\] whose outputs are finite"):
        select(score, np.array([[0.0, np.nan, np.inf]]), zero)
    with pytest.raises(ValueError, match=r"got no candidate of \['carry'\]"):
        select(np.full((1, 3), np.nan), zero, zero, names=["carry"])


def test_a_score_of_zero_is_one():
    zero = np.zeros((1, 3))
    assert select(zero, np.array([[2.0, 1.0, 3.0]]), zero) == [1]


def test_a_shared_value_leaves_every_variable_a_candidate():
    """At the first value one variable is perfect and the other has none; the second serves both, badly."""
    scores = np.array([[[1.0, 1.0], [0.0, 0.0]], [[np.nan, np.nan], [0.0, 0.0]]])
    zero = np.zeros_like(scores)
    assert select(scores, zero, zero, shared_axis=0) == [2, 2]
    scores[1, 1] = np.nan
    with pytest.raises(ValueError, match=r"got no candidate of \[1\]"):
        select(scores, zero, zero, shared_axis=0)


def test_the_first_of_equal_scores_wins_where_asked(plant):
    sites, menu = unit_sites(plant.tap), CutMenu((1,), (1.0, 2.0))
    plan, cost = np.eye(WIDTH)[list(UNITS)], np.ones((2, WIDTH))
    grid = handle_grid(plan[None], cost, sites, (("epsilon", (1,)),), menu)
    first, best = (
        calibrate(plant.network, plant.calibration, grid, Selection(first_wins=flag)) for flag in (True, False)
    )
    np.testing.assert_array_equal(first.tally.combined, 1.0)
    np.testing.assert_array_equal(best.tally.combined, 1.0)
    assert [setting["strength"] for setting in first.settings] == [1.0, 1.0]
    assert [setting["strength"] for setting in best.settings] == [2.0, 2.0], "further is surer"


def test_the_onset_is_the_first_depth_within_an_error_of_the_best():
    weight = np.zeros((2, 4, 3, 2), np.float32)
    for handle, depth in enumerate((2, 1, 1, 0)):
        weight[:, handle, depth] = 1.0
    grid = Grid(weight, np.zeros((2, 4)), np.zeros((2, 4), bool), (("subset", (1, 2, 3, 4)),), "hidden")
    scores = np.array([[0.99, 0.97, 0.80, 0.50], [0.60, np.nan, 0.55, 0.60]])
    there = onset(grid, scores, np.full((2, 4), 0.03))
    assert there.tolist() == [[False, True, True, False], [False, False, False, True]]
    assert onset(grid, scores, np.full((2, 4), 0.001))[0].tolist() == [True, False, False, False]


def test_an_onset_chooses_as_always_where_there_is_one_depth(plant):
    grid = handle_grid(
        np.eye(WIDTH)[list(UNITS)], np.ones((2, WIDTH)), unit_sites(plant.tap), (), CutMenu((1,), (1.0, 2.0))
    )
    found, always = (
        calibrate(plant.network, plant.calibration, grid, Selection(onset=flag)).settings for flag in (True, False)
    )
    assert found == always
    with pytest.raises(ValueError, match="got an onset with the shared axis 'epsilon'"):
        Selection(shared_axis="epsilon", onset=True)


def test_a_forbidden_pair_is_no_part_of_a_handle_nor_of_its_cost():
    sites = unit_sites(planted(rotate=False).tap)
    plan, cost = np.zeros((2, WIDTH)), np.full((2, WIDTH), np.inf)
    plan[:, :2], cost[:, :2] = (0.75, 0.25), (1.0, 3.0)
    grid = handle_grid(plan, cost, sites, (), CutMenu((1, 2, 3), (1.0,)))
    np.testing.assert_allclose(grid.cost[0, :, 0], [1.0, 1.5, 1.5], rtol=1e-6)


def test_a_choice_says_what_it_is_and_its_score_stands_beside_it(plant):
    recipe = Recipe(Transport(epsilons=(1.0,)), CutMenu((1, 2), (1.0,)), controls=Repeats(draws=3, shuffles=2))
    found = plot(plant.network, plant.fit, unit_sites(plant.tap), recipe, evidence=plant.calibration)
    assert found.choice.variables == found.score.variables == ("p", "q")
    assert found.choice.not_finite.tolist() == [0, 0]
    assert found.handles is found.choice.handles
    np.testing.assert_array_equal(found.score.tally.hits, found.choice.tally.hits)
    assert found.score.exceeds.all()
    wrong = plot(plant.network, plant.fit, unit_sites(plant.tap).take(np.array([0, 5, 4])), recipe, evidence=plant.fit)
    assert wrong.score.exceeds.tolist() == [False, True], "p is at none of these units"
