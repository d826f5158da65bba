"""What must not matter: the scale of ReLU units, their order, and what no softmax sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.models import Activation, Dense, Network, Sequential
from abstraction.reduction import Calibration
from abstraction.reduction.discrepancies import CE, KL, LOGIT, custom_discrepancy
from abstraction.reduction.elimination import eliminate, eliminate_constants
from abstraction.reduction.fitting import distortion, fit_affine
from abstraction.reduction.moments import collect_statistics, law_moments
from abstraction.reduction.scores import constant_risk, unit_scores
from abstraction.reduction.selection import keep_highest

LAW = (0.0, 0.1, 0.2)
COUNT, CLASSES = 64, 4


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def _network(width, seed=0):
    model = Sequential(
        (6,),
        (Dense("first", width), Activation("hidden"), Dense("second", 8), Activation("late"), Dense("head", CLASSES)),
    )
    params = jax.tree.map(lambda leaf: 2 * jnp.asarray(leaf, jnp.float64), model.init(jax.random.key(seed)))
    generator = np.random.default_rng(seed)
    return model, params, jnp.asarray(generator.standard_normal((COUNT, 6))), generator.integers(0, CLASSES, COUNT)


def _rescaled(params, scale):
    """Multiply each hidden unit by a positive factor and what reads it by the inverse: the same function."""
    first = {"kernel": params["first"]["kernel"] * scale, "bias": params["first"]["bias"] * scale}
    return params | {
        "first": first,
        "second": params["second"] | {"kernel": params["second"]["kernel"] / scale[:, None]},
    }


def _permuted(params, order):
    first = {"kernel": params["first"]["kernel"][:, order], "bias": params["first"]["bias"][order]}
    return params | {"first": first, "second": params["second"] | {"kernel": params["second"]["kernel"][order]}}


def _statistics(network, params, discrepancy):
    model, _, inputs, labels = network
    given = labels if discrepancy.labelled else None
    return collect_statistics(Network(model, params), Calibration(inputs, given), "hidden", discrepancy=discrepancy)


@pytest.mark.parametrize("discrepancy", [KL, CE, LOGIT], ids=lambda d: d.name)
def test_scores_and_eliminations_do_not_see_the_scale_of_relu_units(discrepancy, rng):
    network = model, params, inputs, _ = _network(12)
    scale = np.exp(rng.uniform(-3, 3, 12))
    other = _rescaled(params, scale)
    np.testing.assert_allclose(model.apply(other, inputs)[0], model.apply(params, inputs)[0], rtol=1e-10)

    before, after = (_statistics(network, each, discrepancy) for each in (params, other))
    first, second = constant_risk(before), constant_risk(after)
    np.testing.assert_allclose(second.score, first.score, rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(second.constant, first.constant * scale, rtol=1e-8)
    np.testing.assert_array_equal(second.outside, first.outside)
    np.testing.assert_array_equal(keep_highest(second.score, 6), keep_highest(first.score, 6))

    paths = [eliminate(each.hessian, law_moments(each, LAW), keep=1) for each in (before, after)]
    np.testing.assert_array_equal(paths[1].order, paths[0].order)
    np.testing.assert_allclose(paths[1].increases, paths[0].increases, rtol=1e-6, atol=1e-12)
    paths = [eliminate_constants(each.hessian, each.covariance, keep=1) for each in (before, after)]
    np.testing.assert_array_equal(paths[1].order, paths[0].order)


def test_folds_follow_the_scale(rng):
    network = _network(12)
    scale, kept = np.exp(rng.uniform(-3, 3, 12)), np.arange(0, 12, 2)
    replaced = np.arange(1, 12, 2)
    before, after = (_statistics(network, each, KL) for each in (network[1], _rescaled(network[1], scale)))
    first, second = (fit_affine(law_moments(each, LAW), kept) for each in (before, after))
    np.testing.assert_allclose(second.coefficients, first.coefficients * scale[replaced, None] / scale[kept], rtol=1e-8)
    risks = [
        distortion(each.hessian, law_moments(each, LAW), kept, fit.coefficients)
        for each, fit in ((before, first), (after, second))
    ]
    assert risks[1] == pytest.approx(risks[0], rel=1e-8)


def test_variance_sees_nothing_but_the_scale(rng):
    width = 512
    network = _network(width)
    scale = np.exp(rng.uniform(-3, 3, width))
    overlap = {}
    for criterion in ("variance", "curvature"):
        before, after = (
            set(keep_highest(unit_scores(criterion, _statistics(network, each, KL)), width // 2).tolist())
            for each in (network[1], _rescaled(network[1], scale))
        )
        overlap[criterion] = len(before & after) / len(before | after)
    assert overlap["variance"] < 0.5
    assert overlap["curvature"] == 1


def test_units_in_another_order_have_the_same_scores_in_that_order(rng):
    network = _network(12)
    order = rng.permutation(12)
    before, after = (_statistics(network, each, KL) for each in (network[1], _permuted(network[1], order)))
    np.testing.assert_allclose(constant_risk(after).score, constant_risk(before).score[order], rtol=1e-8)
    paths = [eliminate(each.hessian, law_moments(each, LAW), keep=2) for each in (before, after)]
    # a dead unit ties with others that are dead, and ties go by index
    free = int((paths[0].increases == 0).sum())
    assert free <= 1
    np.testing.assert_array_equal(order[paths[1].order], paths[0].order)
    np.testing.assert_allclose(paths[1].increases, paths[0].increases, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("discrepancy", [KL, CE, LOGIT], ids=lambda d: d.name)
def test_what_all_logits_share_is_not_seen(discrepancy, rng):
    """Add the same vector to the weights of every class: the softmax stays, and so do scores; plain squares do not."""
    network = _network(12)
    head = network[1]["head"]
    shared = 3 * rng.standard_normal((8, 1))
    other = network[1] | {"head": head | {"kernel": head["kernel"] + shared}}
    before, after = (_statistics(network, each, discrepancy) for each in (network[1], other))
    np.testing.assert_allclose(constant_risk(after).score, constant_risk(before).score, rtol=1e-8, atol=1e-12)
    paths = [eliminate(each.hessian, law_moments(each, LAW), keep=1) for each in (before, after)]
    np.testing.assert_array_equal(paths[1].order, paths[0].order)

    plain = custom_discrepancy("uncentred", lambda z, t, y: ((z - t) ** 2).sum(-1))
    before, after = (constant_risk(_statistics(network, each, plain)).score for each in (network[1], other))
    assert np.abs(after / before - 1).max() > 0.1
