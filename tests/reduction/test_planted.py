"""Seven networks where pruning by variance loses, and why: the right unit is known because it was put there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from once import once

from abstraction.interventions import InOrder, Interchange, Substitute
from abstraction.models import Activation, Dense, Network, Sequential
from abstraction.reduction import Calibration
from abstraction.reduction.curvature import replacement_hessian
from abstraction.reduction.discrepancies import KL, LOGIT, custom_discrepancy
from abstraction.reduction.elimination import eliminate, eliminate_constants
from abstraction.reduction.fitting import distortion, fit_affine, replaced_units
from abstraction.reduction.moments import collect_statistics, law_moments
from abstraction.reduction.scores import constant_risk, off_diagonal_share, unit_scores
from abstraction.reduction.selection import keep_highest

UNCENTRED = custom_discrepancy("uncentred", lambda z, t, y: ((z - t) ** 2).sum(-1))


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def _reading(weights):
    """A network whose hidden units are its inputs, read by `weights [D, C]`."""
    width, classes = weights.shape
    model = Sequential((width,), (Dense("hidden", width, use_bias=False), Dense("head", classes, use_bias=False)))
    return model, {"hidden": {"kernel": jnp.eye(width)}, "head": {"kernel": jnp.asarray(weights)}}


def _patched(model, params, states, kept, constants):
    """Set the units that are not kept to constants; return how often the choice stays, and the logit distortion."""
    replaced = replaced_units(kept, model.taps["hidden"].width)
    edit = Substitute(kept, replaced, np.asarray(constants)[replaced], np.zeros((len(replaced), len(kept))))
    outputs, reduced = model.apply(params, states)[0], model.apply(params, states, {"hidden": once(edit)})[0]
    same = (np.asarray(outputs).argmax(-1) == np.asarray(reduced).argmax(-1)).mean()
    return float(same), float(LOGIT.compare(reduced, outputs, None).mean())


def _by_variance(statistics, keep):
    return keep_highest(unit_scores("variance", statistics), keep)


def test_p1_the_same_function_with_rescaled_units(rng):
    model = Sequential((6,), (Dense("first", 24), Activation("hidden"), Dense("head", 4)))
    params = jax.tree.map(lambda leaf: 3 * jnp.asarray(leaf, jnp.float64), model.init(jax.random.key(0)))
    inputs = jnp.asarray(rng.standard_normal((300, 6)))
    rank = np.argsort(np.argsort(constant_risk(collect_statistics(Network(model, params), inputs, "hidden")).score))
    scale = np.exp(np.where(rank < 8, 3.0, -3.0))
    first = {name: values * scale for name, values in params["first"].items()}
    rescaled = params | {
        "first": first, "head": params["head"] | {"kernel": params["head"]["kernel"] / scale[:, None]}
    }  # fmt: skip
    kept, same = {}, {}
    for name, weights in (("original", params), ("rescaled", rescaled)):
        statistics = collect_statistics(Network(model, weights), inputs, "hidden")
        risk = constant_risk(statistics)
        kept["variance", name], kept["kl", name] = _by_variance(statistics, 16), keep_highest(risk.score, 16)
        same["variance", name], _ = _patched(model, weights, inputs, kept["variance", name], statistics.mean)
        same["kl", name], _ = _patched(model, weights, inputs, kept["kl", name], risk.constant)
    np.testing.assert_array_equal(kept["kl", "original"], kept["kl", "rescaled"])
    assert same["kl", "original"] == same["kl", "rescaled"] > 0.8
    assert same["variance", "rescaled"] < same["variance", "original"] - 0.1
    assert same["variance", "rescaled"] < same["kl", "rescaled"] - 0.1


def test_p2_a_loud_unit_in_the_direction_that_no_softmax_sees(rng):
    model, params = _reading(np.array([[10.0, 10, 10], [0.5, -0.5, 0]]))
    states = jnp.asarray(rng.standard_normal((400, 2)) * np.sqrt([100, 0.1]))
    statistics = {each.name: collect_statistics(Network(model, params), states, "hidden", discrepancy=each)
                  for each in (KL, LOGIT, UNCENTRED)}  # fmt: skip
    assert _by_variance(statistics["kl"], 1).tolist() == [0]
    assert keep_highest(constant_risk(statistics["uncentred"]).score, 1).tolist() == [0]
    for name in ("kl", "logit"):
        score = constant_risk(statistics[name]).score
        assert keep_highest(score, 1).tolist() == [1]
        assert score[0] == pytest.approx(0, abs=1e-9)  # float32 sums of terms of order 1e4
    mean = statistics["kl"].mean
    assert _patched(model, params, states, np.array([1]), mean) == (1.0, pytest.approx(0, abs=1e-9))
    assert _patched(model, params, states, np.array([0]), mean)[0] < 0.7


def test_p3_a_loud_unit_that_speaks_where_all_is_decided(rng):
    """Margin, a loud unit that varies only where |margin| > 20, a soft one at the decision boundary."""
    model, params = _reading(np.array([[1.0, 0], [1, 0], [1, 0]]))
    sign, boundary = rng.choice([-1.0, 1.0], (3, 600)), np.arange(600) % 2 == 0
    margin = np.where(boundary, 0.4 * rng.uniform(-1, 1, 600), 25 * sign[0])
    loud, soft = np.where(boundary, 0, 2 * np.sqrt(2) * sign[1]), np.where(boundary, np.sqrt(0.5) * sign[2], 0)
    states = jnp.asarray(np.stack([margin, loud, soft], axis=1))
    statistics = collect_statistics(Network(model, params), states, "hidden")
    risk = constant_risk(statistics)
    np.testing.assert_allclose(statistics.variance[1:], [4, 0.25], rtol=0.05)  # drawn signs
    logit = constant_risk(collect_statistics(Network(model, params), states, "hidden", discrepancy=LOGIT)).score
    assert np.argmin(risk.score) == 1
    assert np.argmin(statistics.variance) == np.argmin(logit) == 2
    assert _patched(model, params, states, np.array([0, 2]), risk.constant)[0] == 1
    assert _patched(model, params, states, np.array([0, 1]), risk.constant)[0] < 0.85


def test_p4_a_copy_of_the_loudest_unit(rng):
    model, params = _reading(rng.standard_normal((5, 3)))
    states = rng.standard_normal((300, 5)) * np.array([3.0, 1, 1, 1, 3])
    states[:, 4] = states[:, 0]
    statistics = collect_statistics(Network(model, params), jnp.asarray(states), "hidden", discrepancy=LOGIT)
    moments = law_moments(statistics, ridge=1e-9)
    path = eliminate(statistics.hessian, moments, keep=1)
    assert path.order[0] in (0, 4)
    assert path.increases[0] < 1e-6 < path.increases[1]
    assert {0, 4} <= set(_by_variance(statistics, 2).tolist())
    kept = path.kept(4)
    fit = fit_affine(moments, kept)
    edit = Substitute(kept, path.order[:1], fit.intercept, fit.coefficients)
    reduced = model.apply(params, jnp.asarray(states), {"hidden": once(edit)})[0]
    np.testing.assert_allclose(reduced, model.apply(params, jnp.asarray(states))[0], atol=1e-6)  # the ridge of 1e-9


def test_p5_a_crowd_of_whispers(rng):
    """50 units z / 50 write one direction; 10 others write their own, each louder than any one of the crowd."""
    crowd, solo = np.zeros((50, 12)), np.zeros((10, 12))
    crowd[:, :2], solo[:, 2:] = [1, -1], np.eye(10)
    model, params = _reading(np.concatenate([crowd, solo]))
    z = rng.standard_normal((400, 11))
    states = jnp.asarray(np.concatenate([np.tile(z[:, :1], 50) / 50, z[:, 1:] / 15], axis=1))
    statistics = collect_statistics(Network(model, params), states, "hidden", discrepancy=LOGIT)
    score, units = constant_risk(statistics).score, np.arange(50)
    outputs = model.apply(params, states)[0]
    gradient, hessian = replacement_hessian(
        Network(model, params), Calibration(states, target=outputs), "hidden", LOGIT
    )
    share = off_diagonal_share(gradient, hessian, units, statistics.mean[:50])
    assert share == pytest.approx(1 - 1 / 50, rel=1e-8)

    alone, mean = keep_highest(score, 10), statistics.mean
    assert alone.tolist() == list(range(50, 60))
    _, lost = _patched(model, params, states, alone, mean)
    assert lost == pytest.approx(50 * score[:50].sum(), rel=1e-8)
    path = eliminate_constants(statistics.hessian, statistics.covariance, keep=10)
    together = path.kept(10)
    assert (together < 50).sum() >= 5
    _, less = _patched(model, params, states, together, mean)
    assert less == pytest.approx(path.risk(10) / 2, rel=1e-8)
    assert less < 0.75 * lost


def test_p6_a_pair_that_cancels(rng):
    weights = rng.standard_normal((5, 3))
    weights[0], weights[1] = 5 * weights[0], -5 * weights[0]
    model, params = _reading(weights)
    states = rng.standard_normal((300, 5))
    states[:, 1] = states[:, 0]
    statistics = collect_statistics(Network(model, params), jnp.asarray(states), "hidden", discrepancy=LOGIT)
    assert set(keep_highest(constant_risk(statistics).score, 2).tolist()) == {0, 1}
    path = eliminate(statistics.hessian, law_moments(statistics, ridge=1e-9), keep=3)
    assert set(path.order.tolist()) == {0, 1}
    assert np.abs(path.increases).max() < 1e-6  # the ridge of 1e-9
    assert _patched(model, params, jnp.asarray(states), path.kept(3), statistics.mean)[1] == pytest.approx(0, abs=1e-12)


def test_p7_units_that_move_together_and_do_not_cause_each_other(rng):
    """Fitted on what is observed a fold loses to constants once kept units are interchanged; fitted so it does not."""
    model, params = _reading(rng.standard_normal((6, 3)))
    shared = rng.standard_normal((4000, 1))
    states = shared + 0.4 * rng.standard_normal((4000, 6))
    statistics = collect_statistics(Network(model, params), jnp.asarray(states), "hidden", discrepancy=LOGIT)
    kept, replaced = np.array([0, 1, 2]), np.array([3, 4, 5])
    observed = fit_affine(law_moments(statistics, ridge=0.0), kept).coefficients
    found = {}
    for p in (0.0, 0.1, 0.5, 1.0):
        moments = law_moments(statistics, (p,), ridge=0.0)
        fits = {"observed": observed, "constant": np.zeros((3, 3)), "law": fit_affine(moments, kept).coefficients}
        for name, fit in fits.items():
            predicted = distortion(statistics.hessian, moments, kept, fit) / 2
            losses = _interchanged(model, params, states, kept, replaced, statistics.mean, fit, p, rng)
            # base and source are independent draws of the same states
            assert abs(losses.mean() - predicted) <= 5 * losses.std() / np.sqrt(len(losses))
            found[name, p] = predicted
        assert found["law", p] <= min(found["observed", p], found["constant", p]) + 1e-12
    assert found["observed", 0.0] < 0.5 * found["constant", 0.0]
    assert found["observed", 1.0] > 1.2 * found["constant", 1.0]
    assert found["law", 0.5] < 0.95 * min(found["observed", 0.5], found["constant", 0.5])


def _interchanged(model, params, states, kept, replaced, mean, fit, p, rng):
    """Interchange kept units in the dense and in the folded network; return the logit distortion of each pair."""
    base, source = (jnp.asarray(states[rng.integers(0, len(states), 20_000)]) for _ in range(2))
    mask = np.zeros(base.shape)
    mask[:, kept] = rng.random((len(base), len(kept))) < p
    swap = Interchange(source, mask)
    fold = Substitute(kept, replaced, mean[replaced] - fit @ mean[kept], fit)
    dense = model.apply(params, base, {"hidden": once(swap)})[0]
    reduced = model.apply(params, base, {"hidden": once(InOrder((swap, fold)))})[0]
    return np.asarray(LOGIT.compare(reduced, dense, None))
