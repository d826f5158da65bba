"""An intervention is data: another network, site, strength or eps compiles nothing."""

import jax
import numpy as np
from compilations import compilations
from planted import planted

from abstraction.evaluation import Repeats, bernoulli_trials, interchanged_outputs, judge
from abstraction.evaluation.interchange import view
from abstraction.interventions import unit_sites
from abstraction.localization import (
    VARIANTS,
    Boundless,
    CutMenu,
    Mask,
    Recipe,
    Rotation,
    Search,
    SearchConfig,
    Transport,
    alignment_search,
    candidate_grid,
    coarse_stage,
    fine_stage,
    full_supports,
    plot,
)
from abstraction.localization.supports import coordinate_support
from abstraction.models import Activation, Dense, Network, Sequential
from abstraction.reduction import METHODS, Calibration
from abstraction.reduction.pipeline import replace_units
from abstraction.reduction.ranking import rank_units

REPEATS = Repeats(draws=3, shuffles=2)


def _everything(plant, seed, epsilons, strengths, rates, order):
    network, fit, tap, evidence = plant.network, plant.fit, plant.tap, plant.calibration
    sites = jax.tree.map(lambda leaf: leaf[order], unit_sites(tap))
    recipe = Recipe(Transport(epsilons=epsilons), CutMenu((1, 2), strengths), controls=REPEATS)
    found = plot(network, fit, sites, recipe, evidence=evidence)
    supports = [*full_supports(tap, range(2)), coordinate_support(tap, 0, 0, order[:3].tolist(), "three")]
    candidates = candidate_grid(
        jax.random.key(seed), tap, supports, ranks=(1, 2), learning_rates=rates, sparsities=rates
    )
    config = SearchConfig(max_epochs=2, batch_size=64)
    searches = [
        alignment_search(
            jax.random.key(seed), network, fit, candidates, Search(featurizer, config, strengths, REPEATS),
            evidence=evidence,
        )
        for featurizer in (Rotation(), Rotation("oblique"), Boundless(), Mask())
    ]  # fmt: skip
    coarse_stage(network, fit, VARIANTS["ours"], evidence=evidence)
    fine_stage(network, fit, {"units": sites}, (0, 0), VARIANTS["ours"], evidence=evidence)
    for handles in (found.handles, *(search.handles for search in searches)):
        judge(network, handles, plant.test, REPEATS)
    return found.choice.scores


def test_the_second_call_compiles_nothing():
    first, second = planted(rotate=False), planted(rotate=True)
    with compilations() as cold:
        before = _everything(first, 0, (0.1, 1.0), (1.0,), (1e-3,), np.arange(6))
    with compilations() as warm:
        after = _everything(second, 1, (0.2, 2.0), (0.7,), (1e-2,), np.arange(6)[::-1].copy())
    assert cold, "the counter counts"
    assert not np.array_equal(before, after), "the second call is another problem"
    assert not warm


def test_interchange_trials_of_other_units_masks_and_weights_compile_nothing(rng):
    model = Sequential((5,), (Dense("one", 6), Activation("hidden", "relu"), Dense("two", 4)))
    params, inputs = model.init(jax.random.key(0)), rng.standard_normal((9, 5)).astype(np.float32)
    draw = lambda p: bernoulli_trials(rng, examples=9, units=3, probability=p, trials=8)
    interchanged_outputs(view(Network(model, params), "hidden", np.arange(3)), inputs, draw(0.1))
    other = view(Network(model, jax.tree.map(lambda leaf: leaf * 2, params)), "hidden", np.array([1, 4, 5]))
    with compilations() as events:
        interchanged_outputs(other, inputs, draw(0.9))
    assert not events


def test_ranking_and_folding_another_network_of_the_same_shape_compiles_nothing(rng):
    model = Sequential((5,), (Dense("one", 6), Activation("hidden", "relu"), Dense("two", 4)))
    inputs = rng.standard_normal((40, 5)).astype(np.float32)
    for step in range(2):
        with compilations() as events:
            params = model.init(jax.random.key(step))
            ranking = rank_units(Network(model, params), Calibration(inputs), "hidden", METHODS["cmr-closed"])
            for keep in (5, 3, 2):
                replace_units(ranking, keep)
    assert not events
