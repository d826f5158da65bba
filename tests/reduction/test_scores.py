"""Constants and their risk: exact where the loss is quadratic, against brute force, and units that never vary."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from once import once

from abstraction.interventions.edits import Substitute
from abstraction.models import Activation, Dense, Network, Sequential, Tap
from abstraction.models.layers import Convolution, Flatten
from abstraction.models.taps import at_depth
from abstraction.reduction import Calibration
from abstraction.reduction.curvature import replacement_hessian, suffix_at, tap_gradient
from abstraction.reduction.discrepancies import CE, KL, LOGIT, MSE
from abstraction.reduction.moments import collect_statistics
from abstraction.reduction.scores import (
    ConstantRisk,
    Criterion,
    constant_risk,
    joint_constants,
    off_diagonal_share,
    set_risk,
    taylor_scores,
    unit_scores,
)

COUNT, CLASSES = 40, 3
LINEAR = Sequential((4,), (Dense("first", 6), Activation("hidden", "tanh"), Dense("second", 4), Dense("head", CLASSES)))
CONV = Sequential(
    (3, 3, 2),
    (
        Convolution("mix", 3, (2, 2)), Activation("hidden", "tanh"), Convolution("mix2", 3, (2, 2), padding="SAME"),
        Flatten("flat"), Dense("head", CLASSES),
    ),
)  # fmt: skip


class Mixed:
    """Tokens a_t = tanh(x_t V), mixed linearly over positions and units: outputs = sum_ts W[t, :, c] a_t."""

    inputs = (5, 3)

    @property
    def taps(self):
        return {"hidden": Tap("hidden", 4), "logits": Tap("logits", CLASSES)}

    def resume(self, params, tap, depth, activation, *, inputs, states):
        raise ValueError(f"got a resume from {tap!r}, expected none")

    def init(self, key):
        first, mixing = jax.random.split(key)
        return {"first": jax.random.normal(first, (3, 4)), "mixing": jax.random.normal(mixing, (5, 4, CLASSES))}

    def apply(self, params, inputs, edits=None, record=()):
        hidden = jnp.tanh(inputs @ params["first"])
        hidden = at_depth(edits or {}, 0).get("hidden", lambda h: h)(hidden)
        outputs = jnp.einsum("npd,pdc->nc", hidden, params["mixing"])
        return outputs, {name: {"hidden": hidden, "logits": outputs}[name][None] for name in record}


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def _double_params(model, seed=0, gain=2.0):
    return jax.tree.map(lambda leaf: gain * jnp.asarray(leaf, jnp.float64), model.init(jax.random.key(seed)))


def _case(name, rng):
    model = {"linear": LINEAR, "conv": CONV, "mixed": Mixed()}[name]
    return model, _double_params(model), jnp.asarray(rng.standard_normal((COUNT, *model.inputs)))


def _loss_with_constants(model, params, inputs, discrepancy, target, labels, units):
    """c -> mean discrepancy of the network whose units have been set to c, by the edit that patches them."""
    width = model.taps["hidden"].width
    kept = np.setdiff1d(np.arange(width), units)

    def loss(constants):
        edit = Substitute(kept, np.asarray(units), constants, np.zeros((len(units), len(kept))))
        return discrepancy.compare(model.apply(params, inputs, {"hidden": once(edit)})[0], target, labels).mean()

    return jax.jit(loss)


@pytest.mark.parametrize("discrepancy", [MSE, LOGIT], ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["linear", "conv", "mixed"])
def test_risk_is_the_true_change_where_the_loss_is_quadratic(name, discrepancy, rng):
    model, params, inputs = _case(name, rng)
    target = model.apply(params, inputs)[0]
    labels = jnp.asarray(rng.standard_normal(target.shape)) if discrepancy is MSE else None
    case = (model, params, inputs, discrepancy, target, labels)
    gradient, hessian = replacement_hessian(
        Network(model, params), Calibration(inputs, labels, target=target), "hidden", discrepancy
    )
    statistics = collect_statistics(
        Network(model, params), Calibration(inputs, labels), "hidden", discrepancy=discrepancy
    )
    risk = constant_risk(statistics)
    for unit in range(3):
        loss = _loss_with_constants(*case, [unit])
        for constant in (risk.constant[unit], -0.7):
            expected = float(loss(np.array([constant])))
            found = set_risk(gradient, hessian, np.array([unit]), np.array([constant]))
            assert found == pytest.approx(expected, rel=1e-10, abs=1e-12)
        assert risk.score[unit] == pytest.approx(float(loss(risk.constant[[unit]])), rel=1e-10, abs=1e-12)

    units = np.array([0, 2])
    loss = _loss_with_constants(*case, units)
    constants, joint = joint_constants(gradient, hessian, units)
    assert joint == pytest.approx(float(loss(constants)), rel=1e-10, abs=1e-12)
    assert np.abs(jax.grad(loss)(constants)).max() < 1e-12
    alone = float(loss(risk.constant[units]))
    assert joint <= alone + 1e-12
    assert discrepancy is LOGIT or joint < alone - 1e-6  # with gradients, each alone steps too far


def test_best_constants_are_the_minima_of_the_true_loss(rng):
    model, params, inputs = _case("linear", rng)
    target, labels = model.apply(params, inputs)[0], jnp.asarray(rng.standard_normal((COUNT, CLASSES)))
    risk = constant_risk(
        collect_statistics(Network(model, params), Calibration(inputs, labels), "hidden", discrepancy=MSE)
    )
    for unit in range(6):
        loss = _loss_with_constants(model, params, inputs, MSE, target, labels, [unit])
        grid = np.linspace(risk.constant[unit] - 1, risk.constant[unit] + 1, 201)
        values = [float(loss(np.array([c]))) for c in grid]
        assert np.argmin(values) == 100
        assert risk.score[unit] == pytest.approx(min(values), rel=1e-10)


def test_under_kl_scores_are_costs_and_constants_stay_in_range(rng):
    for seed in range(5):
        params = _double_params(LINEAR, seed, gain=6.0)
        inputs = rng.standard_normal((COUNT, 4))
        statistics = collect_statistics(Network(LINEAR, params), inputs, "hidden")
        risk = constant_risk(statistics)
        assert (risk.score >= 0).all()
        assert ((statistics.low <= risk.constant) & (risk.constant <= statistics.high)).all()
        assert not risk.outside.any()
        assert risk.warning is None
        # score = E[h (a - c*)^2] / 2 with h the curvature of the example
        activation, h = _curvature_per_example(params, inputs)
        np.testing.assert_allclose(risk.constant, (h * activation).mean(0) / h.mean(0), rtol=1e-10)
        np.testing.assert_allclose(risk.score, (h * (activation - risk.constant) ** 2).mean(0) / 2, rtol=1e-10)


def _curvature_per_example(params, inputs):
    suffix = suffix_at(Network(LINEAR, params), inputs, "hidden")
    weights = np.asarray(params["second"]["kernel"] @ params["head"]["kernel"])
    p = np.asarray(jax.nn.softmax(suffix.outputs))
    return np.asarray(suffix.activation[:, 0]), p @ weights.T**2 - (p @ weights.T) ** 2


def test_label_loss_on_a_confident_network_warns(rng):
    params = _double_params(LINEAR, gain=8.0)
    inputs = rng.standard_normal((COUNT, 4))
    labels = (np.asarray(LINEAR.apply(params, inputs)[0]).argmax(-1) + (rng.random(COUNT) < 0.2)) % CLASSES
    risk = constant_risk(
        collect_statistics(Network(LINEAR, params), Calibration(inputs, labels), "hidden", discrepancy=CE)
    )
    assert risk.outside.any() or (risk.score < 0).any()
    assert risk.warning is not None
    assert risk.warning.startswith("unstable")


@pytest.mark.parametrize(("bad", "warns"), [(0, False), (1, False), (2, True)])
def test_more_than_one_unit_in_twenty_is_too_many(bad, warns):
    marked = np.arange(20) < bad
    calm = np.zeros(20, bool)
    assert (ConstantRisk(np.zeros(20), np.zeros(20), calm, marked).warning is not None) == warns
    assert (ConstantRisk(np.where(marked, -1.0, 1.0), np.zeros(20), calm, calm).warning is not None) == warns


def _with_still_units(rng):
    """A ReLU network with unit 1 dead, unit 3 constant at 2.5, unit 4 read by nobody and unit 5 idle at most inputs."""
    model = Sequential((4,), (Dense("first", 6), Activation("hidden"), Dense("head", CLASSES)))
    params = _double_params(model)
    kernel, bias = params["first"]["kernel"], params["first"]["bias"]
    params["first"] = {
        "kernel": kernel.at[:, jnp.array([1, 3])].set(0.0),
        "bias": bias.at[jnp.array([1, 3])].set(jnp.array([-1.0, 2.5])),
    }
    params["head"]["kernel"] = params["head"]["kernel"].at[4].set(0.0)
    return model, params, jnp.asarray(rng.standard_normal((COUNT, 4)))


@pytest.mark.parametrize("discrepancy", [KL, LOGIT, CE], ids=lambda d: d.name)
def test_units_that_never_vary_cost_nothing_and_keep_their_value(discrepancy, rng):
    model, params, inputs = _with_still_units(rng)
    labels = rng.integers(0, CLASSES, COUNT) if discrepancy is CE else None
    statistics = collect_statistics(
        Network(model, params), Calibration(inputs, labels), "hidden", discrepancy=discrepancy
    )
    for curvature in ("curvature", "variance"):
        scores = unit_scores(curvature, statistics)
        assert np.isfinite(scores).all()
        np.testing.assert_allclose(scores[[1, 3]], 0, atol=1e-14)
    risk = constant_risk(statistics)
    assert risk.flat[[1, 3, 4]].all()
    assert not risk.flat[[0, 2]].any()
    np.testing.assert_allclose(risk.constant[[1, 3]], [0.0, 2.5], rtol=1e-14)
    np.testing.assert_allclose(risk.constant[4], statistics.mean[4])
    np.testing.assert_allclose(risk.score[[1, 3, 4]], 0, atol=1e-14)
    if discrepancy is not CE:
        assert set(np.argsort(risk.score, kind="stable")[:3]) == {1, 3, 4}


@pytest.mark.parametrize(("share", "flat"), [(0.5e-10, True), (2e-10, False)])
def test_a_unit_is_flat_where_it_costs_next_to_nothing_compared_with_the_others(share, flat, rng):
    statistics = collect_statistics(Network(LINEAR, _double_params(LINEAR)), rng.standard_normal((COUNT, 4)), "hidden")
    cost = np.sort(statistics.kappa_kappa * statistics.variance)
    low = int(np.argmin(statistics.kappa_kappa * statistics.variance))
    covariance = statistics.covariance.copy()
    covariance[low, low] = share * cost[2:4].mean() / statistics.kappa_kappa[low]  # the median of six
    risk = constant_risk(dataclasses.replace(statistics, covariance=covariance))
    assert risk.flat.tolist() == [flat and unit == low for unit in range(6)]


def test_the_authors_rule_calls_a_unit_flat_by_the_sum_over_examples(rng):
    params = _double_params(LINEAR)
    statistics = collect_statistics(Network(LINEAR, params), rng.standard_normal((COUNT, 4)), "hidden")
    total = np.sort(statistics.kappa_kappa) * COUNT
    risk = constant_risk(statistics, flat=float(total[2:4].mean()), relative=False)
    np.testing.assert_array_equal(risk.flat, statistics.kappa_kappa <= total[2] / COUNT)
    np.testing.assert_array_equal(risk.constant[risk.flat], statistics.mean[risk.flat])
    flat = np.flatnonzero(risk.flat)
    h, a, mean = statistics.kappa_kappa, statistics.eps_kappa, statistics.mean
    expected = (statistics.eps_eps + 2 * mean * a + mean**2 * h)[flat] / 2  # Q at the mean, and no gradient under kl
    np.testing.assert_allclose(risk.score[flat], expected, rtol=1e-10)


def test_criteria_by_hand(rng):
    model, params, inputs = _with_still_units(rng)
    statistics = collect_statistics(Network(model, params), inputs, "hidden")
    a = np.asarray(suffix_at(Network(model, params), inputs, "hidden").activation[:, 0])
    weights = np.asarray(params["head"]["kernel"]).T  # [C, D], as every reader of the tap
    expected: dict[Criterion, Any] = {
        "variance": a.var(0),
        "magnitude": np.sqrt((weights**2).sum(0)),
        "wanda": np.abs(weights).sum(0) * np.sqrt((a**2).mean(0)),
        # FLAP's own form: squared deviations of a unit's input times the squared norm of the weights that read it.
        "flap": [sum((x - a[:, j].mean()) ** 2 for x in a[:, j]) / len(a) * sum(weights[:, j] ** 2) for j in range(6)],
        "obd": statistics.eps_eps / 2,
        "curvature": constant_risk(statistics).score,
        "taylor": np.arange(6.0),
    }
    for criterion, scores in expected.items():
        found = unit_scores(criterion, statistics, weights=weights, taylor=np.arange(6.0))
        np.testing.assert_allclose(found, scores, rtol=1e-10, atol=1e-15)
    drawn = [unit_scores("random", statistics, key=jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    np.testing.assert_array_equal(np.sort(drawn[0]), np.arange(6))


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ("best", "got criterion 'best', expected one of"),
        ("magnitude", "consumer weights"),
        ("wanda", "consumer weights"),
        ("flap", "consumer weights"),
        ("taylor", "without taylor scores"),
        ("random", "without a key"),
    ],
)
def test_criteria_that_lack_something_are_refused(criterion, message, rng, unchecked):
    statistics = collect_statistics(Network(LINEAR, _double_params(LINEAR)), rng.standard_normal((COUNT, 4)), "hidden")
    with pytest.raises(ValueError, match=message):
        unit_scores(criterion, statistics)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_taylor_scores_sum_over_positions_before_the_absolute_value(name, rng):
    model, params, inputs = _case(name, rng)
    labels = rng.integers(0, CLASSES, COUNT)
    suffix = suffix_at(Network(model, params), inputs, "hidden")
    gradient = tap_gradient(
        Network(model, params), Calibration(inputs, jnp.asarray(labels), target=suffix.outputs), "hidden", CE
    )
    mean = rng.standard_normal(suffix.activation.shape[-1])
    expected = np.abs((np.asarray(gradient) * (np.asarray(suffix.activation) - mean)).sum(1)).mean(0)
    for size in (7, 100):
        found = taylor_scores(Network(model, params), Calibration(inputs, labels), "hidden", mean, batch_size=size)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_risks_of_units_that_write_apart_add_up_and_of_a_crowd_do_not(rng):
    activation = rng.standard_normal((COUNT, 4))
    centred = activation - activation.mean(0)
    covariance = np.diag((centred**2).mean(0))
    for metric, second, share in ((np.eye(4), covariance, 0.0), (np.ones((4, 4)), np.ones((4, 4)), 1 - 1 / 4)):
        # mean 0, so constants 0: Q_S = sum_ij H_ij Sig_ij / 2
        gram = metric * second
        hessian = np.block([[gram, np.zeros((4, 4))], [np.zeros((4, 4)), metric]])
        found = off_diagonal_share(np.zeros(8), hessian, np.arange(4), np.zeros(4))
        assert found == pytest.approx(share, abs=1e-12)


def test_joint_constants_in_single_precision_do_not_divide_by_rounding(rng):
    params = _double_params(LINEAR)
    inputs = rng.standard_normal((COUNT, 4))
    with jax.enable_x64(False):
        single = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
        target = LINEAR.apply(single, inputs.astype(np.float32))[0]
        pair = replacement_hessian(
            Network(LINEAR, single), Calibration(inputs.astype(np.float32), target=target), "hidden", LOGIT
        )
        constants, _ = joint_constants(pair[0], pair[1], np.arange(6))
    gradient, hessian = replacement_hessian(
        Network(LINEAR, params), Calibration(inputs, target=LINEAR.apply(params, inputs)[0]), "hidden", LOGIT
    )
    expected, risk = joint_constants(gradient, hessian, np.arange(6))  # rank 2 of 6: the least constants of many
    np.testing.assert_allclose(constants, expected, atol=1e-4)  # float32 curvature, condition number about 10
    assert set_risk(gradient, hessian, np.arange(6), constants) == pytest.approx(risk, rel=1e-5)  # float32
