"""PLOT on networks whose answer is known: what it must find, and what it cannot."""

import jax
import numpy as np
import pytest
from planted import UNITS, WIDTH, planted, recorded_banks

from abstraction.evaluation import judge, judge_controls, tally_handles
from abstraction.interventions import Handle, unit_sites
from abstraction.localization import (
    BruteForce,
    Cosine,
    CutMenu,
    GromovWasserstein,
    Nearest,
    ReferenceTransport,
    Transport,
    gather_evidence,
    measure_effects,
    plot,
    single_site_scores,
)
from abstraction.localization.rules import site_scopes

MENU = CutMenu((1, 2, 3), (0.5, 1.0, 1.5))


@pytest.fixture(scope="module", name="plant")
def _plant():
    return planted(rotate=False)


def _run(plant, rule, menu=MENU):
    sites = unit_sites(plant.model.taps["hidden"])
    return plot(plant.model, plant.params, *plant.fit, sites, rule, menu, gather_evidence([plant.calibration]))


def _scores(plant):
    return single_site_scores(plant.model, plant.params, *plant.fit, unit_sites(plant.model.taps["hidden"]))


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
    weight = np.abs(found.choice.handles.weight)
    assert weight.reshape(2, WIDTH).argmax(axis=1).tolist() == list(UNITS)
    tests = {"test": plant.test}
    tally = judge(plant.model, plant.params, found.choice.handles, tests)["test"]
    assert tally.combined.min() > 0.99
    controls = judge_controls(jax.random.key(0), plant.model, plant.params, found.choice.handles, tests)
    assert controls.random["test"].combined.max() < 0.9
    assert controls.shuffled["test"].combined.max() < 0.9


def test_the_cheapest_sites_are_the_planted_ones(plant):
    effects = measure_effects(plant.model, plant.params, *plant.fit, unit_sites(plant.model.taps["hidden"]))
    assert np.asarray(effects.cost).argmin(axis=1).tolist() == list(UNITS)
    assert _scores(plant).argmax(axis=1).tolist() == list(UNITS)


def test_unbalanced_rows_concentrate_as_eps_falls(plant):
    plans = _run(plant, Transport(taus=(0.05,), epsilons=(10.0, 1.0, 0.1))).plans.coupling.plan[0, 0]
    top = [plan[v, UNITS[v]] / plan[v].sum() for plan in plans for v in range(2)]
    assert top[0] < top[2] < top[4]
    assert top[4] > 0.99


def test_rotated_variables_are_not_in_units():
    plant = planted(rotate=True)
    tally = judge(plant.model, plant.params, _run(plant, Transport()).choice.handles, {"test": plant.test})["test"]
    assert tally.combined.max() < 0.95


def test_two_copies_need_a_handle_of_two_sites():
    plant = planted(rotate=False, copies=2)
    one = _run(plant, Transport(taus=(0.5,)), CutMenu((1,), (1.0,)))
    two = _run(plant, Transport(taus=(0.5,)), CutMenu((1, 2), (1.0,)))
    score = lambda found: judge(plant.model, plant.params, found.choice.handles, {"t": plant.test})["t"].combined[0]
    assert score(one) < 0.9
    assert score(two) > 0.99
    assert set(np.flatnonzero(np.asarray(two.choice.handles.weight)[0, 0])) == {1, 2}


def test_of_three_copies_each_alone_does_nothing_and_two_do_it_all():
    """The reading is the mean of the copies: one of three is outvoted, two of three are not."""
    plant = planted(rotate=False, copies=3)
    weight = np.zeros((5, 1, WIDTH), np.float32)
    for handle, units in enumerate(([], [1], [2], [3], [1, 3])):
        weight[handle, 0, units] = 1.0
    tally = tally_handles(plant.model, plant.params, *plant.test, Handle(weight), np.zeros(5, int))
    nothing, *alone, both = tally.hits.tolist()
    assert nothing[0] == 0, "no-ops are wrong on every sensitive pair and right on every invariant one"
    assert nothing[1] == tally.pairs[0, 1]
    assert alone == [nothing] * 3
    assert both == tally.pairs[0].tolist()
    found = _run(plant, Transport(taus=(0.5,)), CutMenu((1, 2), (1.0,)))
    assert found.choice.settings[0]["subset"] == 2
    assert set(np.flatnonzero(np.asarray(found.choice.handles.weight)[0, 0])) < {1, 2, 3}
    assert judge(plant.model, plant.params, found.choice.handles, {"t": plant.test})["t"].combined.min() > 0.99


def test_an_untrained_network_has_no_alignment(plant):
    params = plant.model.init(jax.random.key(5))
    fit, calibration, _ = recorded_banks(plant.model, params)
    found = plot(
        plant.model, params, *fit, unit_sites(plant.model.taps["hidden"]), Transport(), MENU,
        gather_evidence([calibration]),
    )  # fmt: skip
    assert found.choice.tally.combined.max() < 0.6


def test_permuting_the_units_of_the_network_permutes_the_handles(plant):
    order = np.array([3, 0, 5, 1, 2, 4])
    moved = {
        "stem": {"kernel": plant.params["stem"]["kernel"][:, order], "bias": plant.params["stem"]["bias"][order]},
        "head": {"kernel": plant.params["head"]["kernel"][order], "bias": plant.params["head"]["bias"]},
        "blocks": None,
    }
    moved = {name: moved[name] for name in plant.params}
    permute = lambda pair: (jax.tree.map(lambda a: a[..., order] if a.shape[-1] == WIDTH else a, pair[0]), pair[1])
    other = plant._replace(
        params=moved, fit=permute(plant.fit), calibration=permute(plant.calibration), test=permute(plant.test)
    )
    first, second = (_run(p, Transport()).choice for p in (plant, other))
    assert not first.ambiguous.any()
    weights = [np.asarray(choice.handles.weight) for choice in (first, second)]
    np.testing.assert_allclose(weights[1], weights[0][..., order], atol=1e-5)


def test_ranking_sites_refuses_test_pairs(plant):
    with pytest.raises(ValueError, match="got a test bank to rank sites on"):
        single_site_scores(plant.model, plant.params, *plant.test, unit_sites(plant.model.taps["hidden"]))


def test_an_unknown_scope_is_refused(plant, unchecked):
    with pytest.raises(ValueError, match="got scope 'layer', expected 'depth' or 'joint'"):
        site_scopes(unit_sites(plant.model.taps["hidden"]), "layer")
