"""Scores: a handle beside chance, the network as it is, random directions and shuffled sources."""

import dataclasses

import jax
import numpy as np
import pytest
from planted import UNITS, WIDTH, planted, recorded_banks

from abstraction.causal.pairs import restrict
from abstraction.evaluation import Repeats, Score, Tally, identity_handle, judge, tally_handles
from abstraction.evaluation.controls import chance_level
from abstraction.evaluation.judging import judge_alone, score_handles
from abstraction.interventions import Handle
from abstraction.interventions.handles import stack_handles
from abstraction.models import Network

FEW = Repeats(draws=4, shuffles=2)


@pytest.fixture(scope="module", name="plant")
def _plant():
    return planted(rotate=False)


def _units(*units):
    weight = np.zeros((len(units), 1, WIDTH), np.float32)
    weight[np.arange(len(units)), 0, list(units)] = 1.0
    return Handle("hidden", weight)


@pytest.fixture(scope="module", name="score")
def _score(plant):
    return judge(plant.network, _units(*UNITS), plant.test, FEW)["test"]


def test_planted_units_exceed_their_controls(plant, score):
    assert score.exceeds.tolist() == [True, True]
    np.testing.assert_array_equal(score.tally.combined, 1.0)
    np.testing.assert_allclose(score.chance, chance_level(plant.test.bank), rtol=1e-12)
    same = stack_handles([identity_handle(plant.tap)] * 2)
    own = tally_handles(plant.network, plant.test, same, np.arange(2))
    np.testing.assert_array_equal(score.identity.hits, own.hits)
    np.testing.assert_array_equal(score.identity.combined, 0.5)  # wrong on sensitive pairs, right on the others
    controls = [score.chance, score.random.combined, score.shuffled.combined, [0.5, 0.5]]
    np.testing.assert_array_equal(score.yardstick, np.max(controls, axis=0))


@pytest.mark.parametrize("units", [UNITS[::-1], (0, 5), (0, UNITS[1])])
def test_a_handle_of_the_wrong_unit_does_not_exceed_its_controls(plant, units):
    score = judge(plant.network, _units(*units), plant.test, FEW)["test"]
    assert score.exceeds.tolist() == [units[0] == UNITS[0], units[1] == UNITS[1]]
    for row, exceeds in zip(score.rows(), score.exceeds, strict=True):
        assert row["verdict"] == ("above its controls" if exceeds else "not above its controls")


def test_an_untrained_network_does_not_exceed_its_controls(plant):
    model = plant.network.model
    network = Network(model, model.init(jax.random.key(5)))
    test = recorded_banks(network)[2]
    assert not judge(network, _units(*UNITS), test, FEW)["test"].exceeds.any()


def test_a_handle_that_is_not_finite_scores_nothing(plant):
    handles = _units(*UNITS)
    weight = np.asarray(handles.weight).copy()
    weight[0] = np.nan
    score = judge(plant.network, dataclasses.replace(handles, weight=weight), plant.test, FEW)["test"]
    assert score.exceeds.tolist() == [False, True]
    assert score.tally.combined[0] == 0
    assert np.isposinf(score.tally.mean_loss[0])


def test_what_is_judged_alone_is_the_tally_of_the_score(plant, score):
    alone = judge_alone(plant.network, _units(*UNITS), {"test": plant.test})["test"]
    for first, second in zip(jax.tree.leaves(alone), jax.tree.leaves(score.tally), strict=True):
        np.testing.assert_array_equal(first, second)


def test_rows_and_text_say_every_number_and_the_verdict(score):
    rows = score.rows()
    assert [row["variable"] for row in rows] == ["p", "q"]
    low, high = score.tally.interval()
    for v, row in enumerate(rows):
        assert row["iia"] == score.tally.combined[v]
        assert (row["low"], row["high"]) == (low[v], high[v])
        assert (row["chance"], row["identity"]) == (score.chance[v], score.identity.combined[v])
        assert (row["random"], row["shuffled"]) == (score.random.combined[v], score.shuffled.combined[v])
        assert row["verdict"] == "above its controls"
    head, *lines = str(score).splitlines()
    assert head.split() == ["variable", *list(rows[0])[1:]]
    assert [line.split()[0] for line in lines] == ["p", "q"]
    assert all("1.0000" in line and line.endswith("above its controls") for line in lines)


def test_a_variable_without_pairs_has_no_verdict_but_says_so(plant):
    """The bank counts for p alone: q has no score, which is not a low one."""
    bank = restrict(plant.test.bank, 0)
    recorded = dataclasses.replace(plant.test, bank=bank)
    score = judge(plant.network, _units(*UNITS), recorded, FEW)["test"]
    assert score.exceeds.tolist() == [True, False]
    assert np.isnan([score.tally.combined[1], score.chance[1], score.yardstick[1]]).all()
    assert [row["verdict"] for row in score.rows()] == ["above its controls", "no pairs"]


def test_the_lower_bound_decides_and_not_the_score():
    """Seven hits of ten are more than a chance of .5, and their 95 % interval is not."""
    none = Tally(np.zeros((2, 2)), np.full((2, 2), 10), np.zeros((2, 2)))
    tally = Tally(np.array([[7, 7], [70, 70]]), np.array([[10, 10], [100, 100]]), np.zeros((2, 2)))
    score = Score(("few", "many"), tally, np.array([0.5, 0.5]), none, none, none)
    np.testing.assert_allclose(score.tally.combined, 0.7)
    assert score.exceeds.tolist() == [False, True]


def test_a_lower_bound_that_equals_its_yardstick_does_not_exceed_it():
    none = Tally(np.zeros((1, 2)), np.full((1, 2), 10), np.zeros((1, 2)))
    score = Score(("p",), none, np.zeros(1), none, none, none)
    assert score.tally.interval()[0] == score.yardstick
    assert score.exceeds.tolist() == [False]


@pytest.mark.parametrize("best", ["chance", "identity", "random", "shuffled"])
def test_the_highest_of_all_controls_is_the_yardstick(best):
    """A handle that is right on 90 of 100 exceeds controls of .5, and none that scores .95."""
    hits = lambda share: Tally(np.full((1, 2), 100 * share), np.full((1, 2), 100), np.zeros((1, 2)))
    controls = {"chance": np.array([0.5]), **{name: hits(0.5) for name in ("identity", "random", "shuffled")}}
    assert Score(("p",), hits(0.9), **controls).exceeds.tolist() == [True]
    score = Score(("p",), hits(0.9), **controls | {best: np.array([0.95]) if best == "chance" else hits(0.95)})
    np.testing.assert_allclose(score.yardstick, [0.95])
    assert score.exceeds.tolist() == [False]


def test_another_split_changes_no_other_splits_controls(plant):
    alone = judge(plant.network, _units(*UNITS), {"test": plant.test}, FEW)
    beside = judge(plant.network, _units(*UNITS), {"other": plant.calibration, "test": plant.test}, FEW)
    assert list(beside) == ["other", "test"]
    for first, second in zip(jax.tree.leaves(alone["test"][1:]), jax.tree.leaves(beside["test"][1:]), strict=True):
        np.testing.assert_array_equal(first, second)
    seeded = judge(plant.network, _units(*UNITS), plant.test, dataclasses.replace(FEW, seed=1))["test"]
    assert not np.array_equal(seeded.random.loss, alone["test"].random.loss)
    assert not np.allclose(seeded.shuffled.loss, alone["test"].shuffled.loss)


def test_pooled_banks_are_scored_by_their_summed_counts(plant):
    banks = plant.calibration, plant.test
    score = score_handles(jax.random.key(0), plant.network, _units(*UNITS), banks, FEW)
    single = [judge_alone(plant.network, _units(*UNITS), {"one": bank})["one"] for bank in banks]
    np.testing.assert_array_equal(score.tally.pairs, single[0].pairs + single[1].pairs)
    np.testing.assert_array_equal(score.tally.hits, single[0].hits + single[1].hits)
    np.testing.assert_allclose(score.chance, chance_level(*(bank.bank for bank in banks)), rtol=1e-12)
