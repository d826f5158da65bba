"""Alignment search, end to end: its defaults, its keys by name, and taps that occur once."""

import dataclasses

import jax
import numpy as np
import pytest
from planted import planted, planted_chain

from abstraction.evaluation import Repeats, judge
from abstraction.localization import Search, SearchConfig, alignment_search, candidate_grid, full_supports
from abstraction.localization.das import Rotation
from abstraction.localization.pipeline import all_candidates
from abstraction.localization.searching import train_candidates
from abstraction.models import Tap
from abstraction.randomness import named_key

FEW = Repeats(draws=3, shuffles=2)
SHORT = SearchConfig(batch_size=64, max_epochs=60, patience=60, cosine=True)


@pytest.fixture(scope="module", name="plant")
def _plant():
    return planted(rotate=True, gains=(2.0, 2.0))


def _grid(plant):
    supports = full_supports(plant.tap, range(2))
    return candidate_grid(jax.random.key(0), plant.tap, supports, ranks=(1,), learning_rates=(2e-2,))


def _search(plant, search, candidates=None):
    key = jax.random.key(0)
    return alignment_search(key, plant.network, plant.fit, candidates, search, evidence=plant.calibration)


@pytest.mark.parametrize("positions", [False, True], ids=["dense", "convolution"])
def test_a_tap_without_depth_is_searched_to_the_end(plant, positions):
    chain = planted_chain(plant, positions=positions)
    found = _search(chain, Search(config=SHORT, controls=FEW), _grid(chain))
    assert found.handles.tap == "stem"
    assert np.asarray(found.handles.depth).tolist() == [0, 0]
    assert found.score.exceeds.all()
    score = judge(chain.network, found.handles, chain.test, FEW)["test"]
    assert score.tally.combined.min() > 0.98
    assert score.exceeds.all()


def test_a_chain_trains_as_the_network_it_writes_down(plant):
    """One step each: the same losses and the same features, whatever the model is called."""
    config, found = SearchConfig(batch_size=64, max_epochs=1), []
    for one in (plant, planted_chain(plant)):
        found.append(train_candidates(jax.random.key(1), one.network, one.fit, _grid(one), Rotation(), config))
    np.testing.assert_allclose(found[1].curve, found[0].curve, rtol=1e-4)  # float32 sums
    assert found[1].handles.tap == "stem"


def test_the_default_candidates_are_whole_states_at_ranks_below_the_width():
    for width, ranks in ((6, [1, 2, 4]), (8, [1, 2, 4]), (9, [1, 2, 4, 8]), (1, [1]), (2, [1])):
        candidates = all_candidates(jax.random.key(0), Tap("hidden", width, 2), 3)
        assert sorted(set(np.asarray(candidates.rank).tolist())) == ranks
        assert len(candidates.rank) == len(ranks) * 2 * 3


def test_candidates_that_are_not_given_are_drawn_by_name(plant):
    """So what is drawn for the order of pairs, or by a later step, does not move them."""
    search = Search(config=SearchConfig(batch_size=64, max_epochs=1), controls=None)
    drawn, given = (
        _search(plant, search, candidates)
        for candidates in (None, all_candidates(named_key(jax.random.key(0), "candidates"), plant.tap, 2))
    )
    np.testing.assert_array_equal(drawn.searched.candidates.start, given.searched.candidates.start)
    np.testing.assert_array_equal(drawn.handles.weight, given.handles.weight)
    assert drawn.score is None


def test_controls_of_a_choice_are_drawn_by_name_and_change_nothing_of_it(plant):
    config = SearchConfig(batch_size=64, max_epochs=1)
    first, again, other = (
        _search(plant, Search(config=config, controls=controls), _grid(plant))
        for controls in (FEW, FEW, dataclasses.replace(FEW, seed=1))
    )
    np.testing.assert_array_equal(first.score.random.loss, again.score.random.loss)
    assert not np.array_equal(first.score.random.loss, other.score.random.loss)
    np.testing.assert_array_equal(first.choice.tally.hits, other.choice.tally.hits)
