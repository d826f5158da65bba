"""Cutting, choosing and the fence around test data (PLOT, Sec. 3.3)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import top_k_handle

from abstraction.evaluation import record, tally_handles
from abstraction.interventions import (
    Handle,
    InOrder,
    Interchange,
    coordinate_sites,
    group_sites,
    state_sites,
    unit_sites,
)
from abstraction.interventions.bases import pca_bases
from abstraction.interventions.sites import prefix_sites
from abstraction.localization import CutMenu, Selection
from abstraction.localization.calibration import calibrate, calibrate_candidates, select
from abstraction.localization.cutting import handle_grid
from abstraction.models import MLP, Network, Tap
from abstraction.tasks import equality

MODEL = MLP(16, 4, 2, 2)
TAP = MODEL.taps["hidden"]
SITES = unit_sites(TAP)
VECTORS = equality.entities(0)


def _encode(setting):
    return equality.encode(VECTORS, equality.rows_of(setting))


@pytest.fixture(scope="module", name="setup")
def _setup():
    banks = equality.independent_banks(0, fit=60, calibration=90, test=20, both=0.1)
    network = Network(MODEL, MODEL.init(jax.random.key(0)))
    return network, banks, record(network, _encode, banks.calibration, tap="hidden")


def _grid(menu, rng, epsilons=(0.1, 1.0), sites=SITES):
    plan = rng.dirichlet(np.ones(sites.size), (len(epsilons), 2)).astype(np.float32) / 2
    cost = rng.uniform(size=(2, sites.size)).astype(np.float32)
    return handle_grid(plan, cost, sites, (("epsilon", epsilons),), menu), plan, cost


@pytest.mark.parametrize("per_site", [True, False])
@pytest.mark.parametrize("break_ties", ["cost", "order"])
def test_handles_match_a_loop_over_rows(rng, per_site, break_ties):
    menu = CutMenu((1, 3, 8), (0.5, 2.0), per_site, break_ties)
    sites = group_sites(TAP, 1)
    plan = rng.integers(0, 3, (2, 2, 8)).astype(np.float32)  # many ties
    plan[..., 0] += 1
    cost = rng.uniform(size=(2, 8)).astype(np.float32)
    grid = handle_grid(plan, cost, sites, (("epsilon", (0.1, 1.0)),), menu)
    for v, e, k, r in np.ndindex(2, 2, 3, 2):
        mass = top_k_handle(plan[e, v], cost[v], menu.subset_sizes[k], break_ties == "cost")
        factor = menu.strengths[r] * (menu.subset_sizes[k] if per_site else 1)
        np.testing.assert_allclose(grid.weight[v, e, k, r].reshape(-1), factor * mass, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(grid.cost[v, e, k, r], (mass * cost[v]).sum(), rtol=1e-5)


@pytest.mark.parametrize("per_site", [True, False])
def test_overlapping_sites_of_a_handle_are_swapped_one_after_another(rng, per_site):
    sites = coordinate_sites(TAP, [(0, [0, 1]), (0, [1, 2]), (0, [1]), (1, [0, 1, 2, 3]), (1, [3])])
    plan, cost = rng.uniform(0.1, 1, (2, 2, 5)).astype(np.float32), rng.uniform(size=(2, 5)).astype(np.float32)
    menu = CutMenu((1, 2, 4), (0.5, 1.5), per_site, overlap="after")
    grid = handle_grid(plan, cost, sites, (("epsilon", (0.1, 1.0)),), menu)
    base, source = jnp.asarray(rng.standard_normal((2, 6, 4)), jnp.float32)
    differs = False
    for v, e, k, r in np.ndindex(2, 2, 3, 2):
        mass = top_k_handle(plan[e, v], cost[v], menu.subset_sizes[k], True)
        factor = menu.strengths[r] * (menu.subset_sizes[k] if per_site else 1)
        for depth in range(2):
            edits = [Interchange(source, np.float32(factor * mass[j]) * sites.weights()[j]) for j in _at(sites, depth)]
            at_once = Interchange(source, grid.weight[v, e, k, r, depth])(base)
            np.testing.assert_allclose(at_once, InOrder(tuple(edits))(base), rtol=1e-4, atol=1e-5)  # float32 products
        differs |= bool(np.abs(grid.weight[v, e, k, r] - sites.union(factor * mass)).max() > 0.05)
    assert differs, "some handles overlap"


def _at(sites, depth):
    return np.flatnonzero(np.asarray(sites.depth) == depth)


def test_a_grid_keeps_the_basis_of_its_sites(setup, rng):
    """Components are swapped as they are cut: with all of them at weight 1, a full swap."""
    network, _, evidence = setup
    states = np.asarray(evidence.runs.base["hidden"])
    sites = prefix_sites(TAP, pca_bases(states), 4)
    grid = handle_grid(np.eye(2)[None], np.ones((2, 2)), sites, (("epsilon", (1.0,)),), CutMenu((1,), (1.0,)))
    choice = calibrate(network, evidence, grid)
    np.testing.assert_array_equal(choice.handles.basis.encoder, np.stack([sites.basis.encoder] * 2))
    swaps = handle_grid(np.eye(2)[None], np.ones((2, 2)), state_sites(TAP), grid.axes[:1], CutMenu((1,), (1.0,)))
    native = calibrate(network, evidence, swaps)
    np.testing.assert_array_equal(choice.tally.hits, native.tally.hits)
    np.testing.assert_allclose(choice.tally.loss, native.tally.loss, rtol=1e-4)  # float32 products with components


def test_ties_at_the_cut_are_broken_by_cost_and_reported():
    plan = np.array([[[0.5, 0.5, 0.5, 0.2], [0.5, 0.5, 0.1, 0.1]]], np.float32)
    cost = np.array([[3.0, 1.0, 2.0, 0.0], [1.0, 1.0, 2.0, 3.0]], np.float32)
    sites = group_sites(MODEL.taps["hidden"], 2)
    by_cost, in_order = (
        handle_grid(plan, cost, sites, (("epsilon", (1.0,)),), CutMenu((1, 2), (1.0,), False, rule))
        for rule in ("cost", "order")
    )
    one_hot = lambda grid, v: grid.weight[v, 0, 0, 0].reshape(4, 2)[:, 0].argmax()
    assert (one_hot(by_cost, 0), one_hot(in_order, 0)) == (1, 0)
    # equal mass, different cost: decided. Equal mass and cost: arbitrary, and said so.
    assert by_cost.ambiguous[:, 0, :, 0].tolist() == [[False, False], [True, False]]
    assert in_order.ambiguous[:, 0, :, 0].tolist() == [[True, True], [True, False]]


def test_permuting_sites_changes_no_handle_unless_a_tie_is_reported(rng):
    menu = CutMenu((1, 2, 5), (1.0,))
    grid, plan, cost = _grid(menu, rng)
    order = rng.permutation(SITES.size)
    moved = handle_grid(
        plan[..., order], cost[:, order], jax.tree.map(lambda leaf: leaf[order], SITES), grid.axes[:1], menu
    )
    assert not grid.ambiguous.any()
    np.testing.assert_allclose(moved.weight, grid.weight, atol=1e-6)


def test_a_row_without_mass_gives_a_handle_that_changes_nothing():
    grid = handle_grid(np.zeros((2, 8)), np.ones((2, 8)), SITES, (), CutMenu((1, 4), (1.0,)))
    assert (grid.weight == 0).all()


def test_keeping_some_values_of_an_axis(rng):
    grid, *_ = _grid(CutMenu((1, 2), (0.5, 1.0, 2.0)), rng)
    part = grid.only("strength", [2.0, 0.5])
    np.testing.assert_array_equal(part.weight, grid.weight[:, :, :, [0, 2]])
    assert dict(part.axes)["strength"] == (0.5, 2.0)


def test_calibration_evaluates_every_handle_and_picks_the_best(setup, rng):
    network, _, evidence = setup
    grid, *_ = _grid(CutMenu((1, 2, 4), (0.5, 1.0)), rng)
    choice = calibrate(network, evidence, grid)
    for v in range(2):
        flat = grid.weight[v].reshape(-1, 2, 4)
        tally = tally_handles(network, evidence, Handle("hidden", flat), np.full(len(flat), v))
        np.testing.assert_allclose(choice.scores[v].reshape(-1), tally.combined, rtol=1e-6)
        best = np.flatnonzero(tally.combined >= tally.combined.max() - 1e-9)
        winner = best[np.argmin(tally.mean_loss[best])]
        np.testing.assert_allclose(choice.handles.weight[v], flat[winner], atol=1e-6)
        assert choice.ties[v] == len(best)
        assert choice.tally.combined[v] == pytest.approx(tally.combined[winner])
        place = np.unravel_index(winner, grid.cost.shape[1:])
        assert choice.settings[v] == {name: values[i] for (name, values), i in zip(grid.axes, place, strict=True)}


def test_identical_handles_are_evaluated_once(setup, rng):
    network, _, evidence = setup
    plan = np.repeat(rng.dirichlet(np.ones(8), (1, 2)), 3, axis=0).astype(np.float32)
    grid = handle_grid(plan, np.ones((2, 8)), SITES, (("epsilon", (1, 2, 3)),), CutMenu((1, 2), (1.0, 0.5)))
    choice = calibrate(network, evidence, grid)
    assert choice.candidates == 12
    assert choice.evaluated <= 8
    assert [setting["epsilon"] for setting in choice.settings] == [1, 1]


def test_the_shared_value_has_the_highest_mean_of_bests():
    # eps 1: bests (.8, .5), mean .65; eps 2: (.7, .7), mean .70, so eps 2 although variable 0 prefers eps 1
    scores = np.array([[[0.8, 0.1], [0.7, 0.2]], [[0.5, 0.4], [0.6, 0.7]]])
    zero = np.zeros_like(scores)
    assert select(scores, zero, zero, shared_axis=0) == [2, 3]
    assert select(scores, zero, zero) == [0, 3]


def test_equal_scores_fall_to_loss_then_cost_then_order():
    scores = np.array([[0.9, 0.9, 0.9, 0.1]])
    assert select(scores, np.array([[3.0, 2.0, 2.0, 0.0]]), np.array([[0.0, 5.0, 4.0, 0.0]])) == [2]
    assert select(scores, np.array([[3.0, 2.0, 2.0, 0.0]]), np.zeros((1, 4))) == [1]
    assert select(scores, np.zeros((1, 4)), np.zeros((1, 4))) == [0]


def test_a_loss_that_is_not_a_number_loses():
    assert select(np.ones((1, 2)), np.array([[np.nan, 9.0]]), np.zeros((1, 2))) == [1]


def test_an_axis_that_is_not_there_cannot_be_shared(setup, rng):
    network, _, evidence = setup
    grid, *_ = _grid(CutMenu((1,), (1.0,)), rng)
    with pytest.raises(ValueError, match=r"got shared axis 'beta', expected one of \['epsilon', 'subset'"):
        calibrate(network, evidence, grid, Selection(shared_axis="beta"))


def test_candidates_in_a_list_are_chosen_by_score_loss_and_cost(setup, rng):
    network, _, evidence = setup
    weight = rng.uniform(0, 1, (6, 4)).astype(np.float32)
    weight[3] = weight[0]
    handles = Handle("hidden", weight, None, np.zeros(6, np.int32))
    variable = np.array([0, 0, 1, 0, 1, 1])
    settings = [{"name": i} for i in range(6)]
    choice = calibrate_candidates(network, evidence, handles, variable, settings, cost=np.array([2.0, 1, 1, 1, 1, 1]))
    assert choice.settings[0]["name"] in (1, 3)  # 0 equals 3 and costs more
    assert choice.settings[1]["name"] in (2, 4, 5)
    with pytest.raises(ValueError, match=r"got \[6, 0\] candidates of \['wx', 'yz'\], expected at least one of each"):
        calibrate_candidates(network, evidence, handles, np.zeros(6, int), settings, cost=np.zeros(6))


def test_lists_of_unequal_length_are_chosen_from_one_variable_at_a_time(setup, rng):
    network, _, evidence = setup
    weight, variable = rng.uniform(0, 1, (6, 4)).astype(np.float32), np.array([1, 0, 1, 1, 1, 0])
    settings = [{"name": i} for i in range(6)]
    handles, cost = Handle("hidden", weight, None, np.zeros(6, np.int32)), np.arange(6.0)
    choice = calibrate_candidates(network, evidence, handles, variable, settings, cost=cost)
    tally = tally_handles(network, evidence, handles, variable)
    for v, own in enumerate(([1, 5], [0, 2, 3, 4])):
        np.testing.assert_allclose(choice.scores[v, : len(own)], tally.combined[own], rtol=1e-12)
        assert np.isnan(choice.scores[v, len(own) :]).all()
        winner = min(own, key=lambda i: (-tally.combined[i].round(9), tally.mean_loss[i], cost[i]))
        assert choice.settings[v]["name"] == winner
        np.testing.assert_array_equal(choice.handles.weight[v], weight[winner])
    assert (choice.candidates, choice.evaluated) == (4, 6)


def test_alone_takes_the_kth_heaviest_site_by_itself():
    tap = Tap("hidden", 4, 1)
    sites = unit_sites(tap)
    plan, cost = np.array([[0.1, 0.4, 0.2, 0.3], [0.4, 0.1, 0.3, 0.2]]), np.zeros((2, 4))
    grid = handle_grid(plan, cost, sites, (), CutMenu((1, 2, 4), (1.0, 2.0), alone=True))
    for variable, order in enumerate(([1, 3, 0], [0, 2, 1])):
        for place, site in enumerate(order):
            for strength in range(2):
                expected = (strength + 1.0) * np.eye(4)[site]
                np.testing.assert_array_equal(grid.weight[variable, place, strength, 0], expected)


def test_a_handle_of_every_site_has_no_tie_at_its_cut():
    plan, cost = np.full((1, 2, SITES.size), 0.5 / SITES.size, np.float32), np.ones((2, SITES.size), np.float32)
    grid = handle_grid(plan, cost, SITES, (("epsilon", (0.1,)),), CutMenu((SITES.size - 1, SITES.size), (1.0,)))
    np.testing.assert_array_equal(grid.ambiguous[:, 0, :, 0], [[True, False]] * 2)
