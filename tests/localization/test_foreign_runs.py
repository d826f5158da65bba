"""Runs of one network are not searched, swept or scored in another, nor in the same one after its weights moved."""

import jax
import numpy as np
import pytest
from planted import planted

from abstraction.evaluation import judge
from abstraction.interventions import unit_sites
from abstraction.interventions.handles import Handle
from abstraction.localization import (
    Rotation,
    SearchConfig,
    candidate_grid,
    full_supports,
    measure_effects,
    screen_sites,
    sweep,
)
from abstraction.localization.searching import train_candidates
from abstraction.models import Network


@pytest.fixture(scope="module", name="plant")
def _plant():
    return planted(rotate=False)


def _states(plant):
    return Handle(plant.tap.name, np.ones((2, 1, plant.tap.width), np.float32))


def _search(network, plant):
    candidates = candidate_grid(
        jax.random.key(0), plant.tap, full_supports(plant.tap, range(2)), ranks=(1,), learning_rates=(1e-3,)
    )
    return train_candidates(
        jax.random.key(0), network, plant.fit, candidates, Rotation(), SearchConfig(max_epochs=1, batch_size=32)
    )


CALLS = {
    "judge": lambda network, plant: judge(network, _states(plant), plant.test),
    "effects": lambda network, plant: measure_effects(network, plant.fit, unit_sites(plant.tap)),
    "sweep": lambda network, plant: sweep(network, plant.calibration),
    "screen": lambda network, plant: screen_sites(network, plant.fit, unit_sites(plant.tap), keep=0.5),
    "search": _search,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_runs_of_other_weights_are_refused_before_anything_runs(plant, call, monkeypatch):
    moved = Network(plant.network.model, jax.tree.map(lambda leaf: leaf * np.float32(1.001), plant.network.params))
    monkeypatch.setattr(type(plant.network), "__call__", None)
    with pytest.raises(ValueError, match=r"got runs of a network with weights \w{8} for one with weights \w{8}"):
        call(moved, plant)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_copy_of_the_same_weights_is_the_same_network(plant, call):
    assert call(Network(plant.network.model, jax.tree.map(np.array, plant.network.params)), plant) is not None


def test_shuffled_sources_are_runs_of_the_same_network(plant):
    order = np.roll(np.arange(plant.test.bank.size), 1)
    assert judge(plant.network, _states(plant), plant.test.shuffled(order)) is not None
