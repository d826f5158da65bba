"""Affine folds: least squares, the law's shrinkage, sparse parents against slow loops, and measured distortion."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from once import once

from abstraction.interventions.edits import Substitute
from abstraction.models import Activation, Dense, Network, Sequential
from abstraction.reduction.discrepancies import LOGIT
from abstraction.reduction.elimination import eliminate
from abstraction.reduction.fitting import (
    choose_parents,
    correlated_parents,
    distortion,
    fit_affine,
    fit_sparse,
    fit_weighted,
    replaced_units,
)
from abstraction.reduction.moments import LawMoments, collect_statistics, law_moments

KEPT = np.array([0, 3, 4, 6])
REPLACED = np.array([1, 2, 5])
COUNT, WIDTH = 60, 7


@pytest.fixture(name="states")
def _states(rng):
    return rng.standard_normal((COUNT, WIDTH)) @ rng.standard_normal((WIDTH, WIDTH)) + rng.standard_normal(WIDTH)


def _moments(states, law=(0.0,), *, ridge=0.0):
    """The moments of a law, written out here."""
    p, covariance = np.array(law), np.cov(states.T, bias=True)
    variance = np.diag(np.diagonal(covariance))
    regressor = ((1 - p) ** 2 + p**2).mean() * (covariance - variance) + (1 + ridge) * variance
    return LawMoments(states.mean(0), covariance, (1 - p).mean() * covariance, regressor)


def _least_squares(states, kept, unit):
    design = np.concatenate([states[:, kept], np.ones((len(states), 1))], axis=1)
    return np.linalg.lstsq(design, states[:, unit], rcond=None)[0]


def test_replaced_units_are_the_others():
    assert replaced_units(KEPT, WIDTH).tolist() == REPLACED.tolist()


def test_observed_the_fold_is_ordinary_least_squares(states):
    fit = fit_affine(_moments(states), KEPT)
    for row, unit in enumerate(REPLACED):
        expected = _least_squares(states, KEPT, unit)
        np.testing.assert_allclose(fit.coefficients[row], expected[:-1], rtol=1e-8)
        np.testing.assert_allclose(fit.intercept[row], expected[-1], rtol=1e-8)


def test_interchanged_for_certain_the_fold_is_the_mean(states):
    fit = fit_affine(_moments(states, (1.0,)), KEPT)
    np.testing.assert_array_equal(fit.coefficients, 0)
    np.testing.assert_allclose(fit.intercept, states.mean(0)[REPLACED], rtol=1e-12)


@pytest.mark.parametrize("law", [(0.0,), (0.2,), (0.0, 0.5)], ids=str)
def test_no_other_fold_distorts_less_under_its_law(law, states, rng):
    moments = _moments(states, law, ridge=1e-3)
    root = rng.standard_normal((WIDTH, WIDTH))
    fit = fit_affine(moments, KEPT)
    least = distortion(root.T @ root, moments, KEPT, fit.coefficients)
    for _ in range(20):
        moved = fit.coefficients + 0.1 * rng.standard_normal(fit.coefficients.shape)
        assert distortion(root.T @ root, moments, KEPT, moved) > least
    assert distortion(root.T @ root, moments, KEPT, np.zeros_like(fit.coefficients)) > least


def test_the_distortion_under_a_law_is_what_drawn_interchanges_show(states, rng):
    p, draws = 0.3, 40_000
    moments, root = _moments(states, (p,)), rng.standard_normal((3, WIDTH))
    fit = fit_affine(_moments(states), KEPT)  # any fold
    base, source = states[rng.integers(0, COUNT, (2, draws))]
    hybrid = np.where(rng.random((draws, WIDTH)) < p, source, base)
    error = base[:, REPLACED] - fit.intercept - hybrid[:, KEPT] @ fit.coefficients.T
    losses = ((error @ root[:, REPLACED].T) ** 2).sum(1)
    found = distortion(root.T @ root, moments, KEPT, fit.coefficients)
    assert abs(losses.mean() - found) <= 5 * losses.std() / np.sqrt(draws)


@pytest.mark.parametrize("affine", [True, False])
def test_half_of_it_is_the_measured_logit_distortion_of_a_linear_suffix(affine):
    model = Sequential((4,), (Dense("first", WIDTH), Activation("hidden", "tanh"), Dense("head", 3)))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: 2 * jnp.asarray(leaf, jnp.float64), model.init(jax.random.key(0)))
        inputs = jnp.asarray(np.random.default_rng(1).standard_normal((COUNT, 4)))
        statistics = collect_statistics(Network(model, params), inputs, "hidden", discrepancy=LOGIT)
        moments = law_moments(statistics, ridge=0.0)
        fit = fit_affine(moments, KEPT)
        coefficients = fit.coefficients if affine else np.zeros_like(fit.coefficients)
        intercept = fit.intercept if affine else statistics.mean[REPLACED]
        edit = Substitute(KEPT, REPLACED, intercept, coefficients)
        outputs, reduced = model.apply(params, inputs)[0], model.apply(params, inputs, {"hidden": once(edit)})[0]
        measured = LOGIT.compare(reduced, outputs, None).mean()
    found = distortion(statistics.hessian, moments, KEPT, coefficients)
    assert found / 2 == pytest.approx(float(measured), rel=1e-10)


def test_copies_and_sums_are_folded_exactly(states):
    states[:, 1] = states[:, 0]
    states[:, 2] = 2 * states[:, 3] - states[:, 6] + 3
    fit = fit_affine(_moments(states), KEPT)
    np.testing.assert_allclose(fit.coefficients[:2], [[1, 0, 0, 0], [0, 2, 0, -1]], atol=1e-9)
    np.testing.assert_allclose(fit.intercept[:2], [0, 3], atol=1e-9)


def test_units_that_do_not_vary_are_no_parents(states):
    states[:, 3], states[:, 5] = 0.7, -2.0  # one kept, one replaced
    moments = _moments(states)
    fit = fit_affine(moments, KEPT)
    np.testing.assert_allclose(fit.coefficients[:, 1], 0, atol=1e-12)
    np.testing.assert_allclose(fit.coefficients[2], 0, atol=1e-12)
    assert fit.intercept[2] == pytest.approx(-2.0)
    np.testing.assert_allclose(fit.intercept[0], _least_squares(states, [0, 4, 6], 1)[-1], rtol=1e-8)
    for rule in ("correlation", "partial", "forward"):
        assert (choose_parents(moments, KEPT, 3, rule)[:2] != 1).all()


def test_with_all_parents_the_sparse_fold_is_the_whole_one(states):
    moments = _moments(states, (0.1,), ridge=1e-4)
    parents = choose_parents(moments, KEPT, len(KEPT))
    np.testing.assert_array_equal(np.sort(parents, axis=1), [[0, 1, 2, 3]] * 3)
    sparse, whole = fit_sparse(moments, KEPT, parents), fit_affine(moments, KEPT)
    np.testing.assert_allclose(sparse.coefficients, whole.coefficients, rtol=1e-8)
    np.testing.assert_allclose(sparse.intercept, whole.intercept, rtol=1e-8)


def test_a_sparse_fold_regresses_on_its_parents_alone(states):
    parents = np.array([[0, 2], [3, 1], [1, 0]])
    fit = fit_sparse(_moments(states), KEPT, parents)
    for row, unit in enumerate(REPLACED):
        expected = _least_squares(states, KEPT[parents[row]], unit)
        np.testing.assert_allclose(fit.coefficients[row, parents[row]], expected[:-1], rtol=1e-8)
        np.testing.assert_allclose(fit.intercept[row], expected[-1], rtol=1e-8)
        assert (np.delete(fit.coefficients[row], parents[row]) == 0).all()


def _matching_pursuit(states, unit, parents):
    """Add the kept unit that leaves the least squared residual, fitting all chosen ones anew each time."""
    chosen = []
    for _ in range(parents):
        left = {}
        for k in set(range(len(KEPT))) - set(chosen):
            design = np.concatenate([states[:, KEPT[[*chosen, k]]], np.ones((len(states), 1))], axis=1)
            left[k] = ((states[:, unit] - design @ np.linalg.lstsq(design, states[:, unit], rcond=None)[0]) ** 2).sum()
        chosen.append(min(left, key=lambda k: left[k]))
    return chosen


def test_forward_choice_is_slow_matching_pursuit(rng):
    differs = False
    for seed in range(5):
        generator = np.random.default_rng(seed)
        states = generator.standard_normal((COUNT, WIDTH)) @ generator.standard_normal((WIDTH, WIDTH))
        found = choose_parents(_moments(states), KEPT, 3)
        assert found.tolist() == [_matching_pursuit(states, unit, 3) for unit in REPLACED]
        differs |= bool((found != choose_parents(_moments(states), KEPT, 3, "correlation")).any())
    assert differs


def test_correlation_and_partial_correlation_choose_as_written_out(states):
    moments = _moments(states)
    correlation = np.corrcoef(states.T)[np.ix_(REPLACED, KEPT)]
    expected = np.argsort(-np.abs(correlation), axis=1)[:, :2]
    np.testing.assert_array_equal(choose_parents(moments, KEPT, 2, "correlation"), expected)
    np.testing.assert_array_equal(correlated_parents(states, KEPT, 2), expected)
    strength = np.zeros((3, 4))
    for row, unit in enumerate(REPLACED):
        precision = np.linalg.inv(np.cov(states[:, [unit, *KEPT]].T))
        strength[row] = np.abs(precision[0, 1:]) / np.sqrt(np.diagonal(precision)[1:] * precision[0, 0])
    expected = np.argsort(-strength, axis=1)[:, :2]
    np.testing.assert_array_equal(choose_parents(moments, KEPT, 2, "partial"), expected)


def test_the_weighted_fit_is_a_loop_of_weighted_regressions(states, rng):
    weights, ridge = rng.random((COUNT, 3)), 0.3
    parents = correlated_parents(states, KEPT, 2)
    fit = fit_weighted(states, weights, KEPT, parents, ridge=ridge)
    for row, unit in enumerate(REPLACED):
        design = np.concatenate([states[:, KEPT[parents[row]]], np.ones((COUNT, 1))], axis=1)
        gram = design.T @ (weights[:, row, None] * design) + ridge * np.diag([1.0, 1, 0])
        expected = np.linalg.solve(gram, design.T @ (weights[:, row] * states[:, unit]))
        np.testing.assert_allclose(fit.coefficients[row, parents[row]], expected[:2], rtol=1e-10)
        np.testing.assert_allclose(fit.intercept[row], expected[2], rtol=1e-10)
        assert (np.delete(fit.coefficients[row], parents[row]) == 0).all()


def test_parents_that_do_not_fit_are_refused(states, unchecked):
    moments = _moments(states)
    for parents in (0, 5):
        with pytest.raises(ValueError, match=f"got parents {parents}, expected 1 to 4"):
            choose_parents(moments, KEPT, parents)
        with pytest.raises(ValueError, match=f"got parents {parents}, expected 1 to 4"):
            correlated_parents(states, KEPT, parents)
    unknown: Any = "nearest"
    with pytest.raises(ValueError, match="got parent rule 'nearest', expected one of"):
        choose_parents(moments, KEPT, 2, unknown)


def test_keeping_everything_leaves_nothing_to_fit(states):
    fit = fit_affine(_moments(states), np.arange(WIDTH))
    assert fit.coefficients.shape == (0, WIDTH)
    assert fit.intercept.shape == (0,)


def test_a_singular_covariance_without_ridge_is_refused(rng):
    copied = np.repeat(rng.standard_normal((30, 2)), 2, axis=1)
    covariance = np.cov(copied.T)
    moments = LawMoments(copied.mean(0), covariance, covariance, covariance)
    with pytest.raises(ValueError, match="larger ridge"):
        fit_affine(moments, np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="larger ridge"):
        eliminate(np.eye(4), moments, keep=1)
