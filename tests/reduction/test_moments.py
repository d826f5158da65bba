"""Statistics of a tap: brute force over examples, merging, batches, and the moments of an intervention law."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoder import TinyDecoder

from abstraction.models import GRU, Activation, Dense, Network, Sequential
from abstraction.models.layers import Convolution, Flatten
from abstraction.models.taps import NO_EDITS
from abstraction.reduction import Calibration, streaming
from abstraction.reduction.curvature import (
    by_position,
    gauss_newton_rows,
    hessian_diagonal,
    replacement_hessian,
    suffix_at,
)
from abstraction.reduction.discrepancies import CE, KL, LOGIT
from abstraction.reduction.moments import Statistics, collect_statistics, law_moments, merge_statistics

DENSE = Sequential((4,), (Dense("first", 5), Activation("hidden", "relu"), Dense("head", 3)))
CONV = Sequential(
    (3, 3, 2), (Convolution("mix", 3, (2, 2)), Activation("hidden", "tanh"), Flatten("flat"), Dense("head", 3))
)
RECURRENT = GRU(2, 3, 3)


class LastToken(TinyDecoder):
    """A decoder that is asked for the token after the last one only."""

    def apply(self, params, inputs, edits=NO_EDITS, record=()):
        outputs, recorded = super().apply(params, inputs, edits, record)
        return outputs[:, -1], recorded


DECODER = LastToken(5, 8, 4, ((0, 0),), (3,))
MODELS = {"dense": DENSE, "conv": CONV, "gru": RECURRENT, "decoder": DECODER}
TAPS = dict.fromkeys(MODELS, "hidden") | {"decoder": "mlp0"}
FIELDS = [field.name for field in dataclasses.fields(Statistics)]
COUNT = 13


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def _case(name, count=COUNT):
    generator = np.random.default_rng(3)
    model = MODELS[name]
    params = jax.tree.map(lambda leaf: 3 * jnp.asarray(leaf, jnp.float64), model.init(jax.random.key(1)))
    labels = generator.integers(0, 3, count)
    if model is DECODER:
        return model, params, generator.integers(0, 5, (count, 4)), labels
    inputs = generator.standard_normal((count, *((3, 2) if model is RECURRENT else model.inputs)))
    return model, params, inputs, labels


def _assert_equal(first, second, *, names=FIELDS, rtol=1e-12):
    for name in names:
        left, right = np.asarray(getattr(first, name)), np.asarray(getattr(second, name))
        np.testing.assert_allclose(left, right, rtol=rtol, atol=1e-14, err_msg=name)


def _brute_force(model, params, inputs, tap, labels):
    """Every field under cross-entropy, from the whole Jacobian of each example and loops over units."""

    def whole(params, inputs):
        suffix = suffix_at(Network(model, params), inputs, tap)
        total = jax.jacobian(lambda e: suffix.run(e).sum(0))(jnp.zeros(suffix.activation.shape))
        return suffix.activation, suffix.outputs, jnp.moveaxis(total, 0, 1)  # examples do not interact

    a, z, jacobian = (np.asarray(values) for values in jax.jit(whole)(params, inputs))  # jacobian [N, C, P, D]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    count, positions, width = a.shape
    result = {name: np.zeros(width) for name in FIELDS} | {"hessian": np.zeros((width, width))}
    for n in range(count):
        metric = np.diag(p[n]) - np.outer(p[n], p[n])
        gradient = np.einsum("cpd,c->pd", jacobian[n], p[n] - np.eye(z.shape[1])[labels[n]])
        for s in range(positions):
            result["hessian"] += jacobian[n, :, s].T @ metric @ jacobian[n, :, s] / count
        for j in range(width):
            h = jacobian[n, :, :, j].T @ metric @ jacobian[n, :, :, j]  # positions x positions
            result["gradient_eps"][j] -= gradient[:, j] @ a[n, :, j] / count
            result["gradient_kappa"][j] += gradient[:, j].sum() / count
            result["eps_eps"][j] += a[n, :, j] @ h @ a[n, :, j] / count
            result["eps_kappa"][j] -= a[n, :, j] @ h.sum(1) / count
            result["kappa_kappa"][j] += h.sum() / count
    states = a.reshape(-1, width)
    result |= {"mean": states.mean(0), "covariance": np.cov(states.T, bias=True)}
    result |= {"low": states.min(0), "high": states.max(0), "count": count, "positions": positions}
    return Statistics(**{name: np.asarray(value, np.float64) for name, value in result.items()})


@pytest.mark.parametrize("name", MODELS)
def test_statistics_are_those_of_a_loop_over_examples(name):
    model, params, inputs, labels = _case(name)
    found = collect_statistics(Network(model, params), Calibration(inputs, labels), TAPS[name], discrepancy=CE)
    _assert_equal(found, _brute_force(model, params, inputs, TAPS[name], labels), rtol=1e-10)
    assert found.width == model.taps[TAPS[name]].width
    np.testing.assert_array_equal(found.variance, np.diagonal(found.covariance))


@pytest.mark.parametrize("numbers", [1, 150, 400])
@pytest.mark.parametrize("name", ["dense", "conv"])
def test_classes_may_come_a_few_at_a_time(monkeypatch, name, numbers):
    model, params, inputs, labels = _case(name)
    collect = lambda: collect_statistics(Network(model, params), Calibration(inputs, labels), "hidden", discrepancy=CE)
    whole = collect()
    for backend in (True, False):
        monkeypatch.setitem(streaming._NUMBERS, backend, numbers)
    _assert_equal(collect(), whole, rtol=1e-12)


@pytest.mark.parametrize("discrepancy", [KL, LOGIT], ids=lambda one: one.name)
@pytest.mark.parametrize("name", ["dense", "conv"])
@pytest.mark.parametrize("numbers", [1, 700, 2**20])
def test_units_are_summed_where_there_are_fewer_of_them_than_classes(monkeypatch, discrepancy, name, numbers):
    """The same network with outputs repeated and scaled, so that there are more outputs than units and positions."""
    model, params, inputs, _ = _case(name)
    outputs = params["head"]["kernel"].shape[1]
    positions, width = streaming._seen(Network(model, params), Calibration(inputs), tap="hidden")[0].shape[1:]
    copies = positions * width // outputs + 1
    wide = Sequential(
        model.inputs, (*model.layers[:-1], dataclasses.replace(model.layers[-1], features=copies * outputs))
    )
    kernel = np.concatenate([np.asarray(params["head"]["kernel"]) * (1 + step) for step in range(copies)], axis=1)
    bias = np.tile(np.asarray(params["head"]["bias"]), copies)
    network = Network(wide, {**params, "head": {"kernel": kernel, "bias": bias}})
    for backend in (True, False):
        monkeypatch.setitem(streaming._NUMBERS, backend, numbers)
    found = collect_statistics(network, inputs, "hidden", discrepancy=discrepancy)
    rows = np.asarray(gauss_newton_rows(network, Calibration(inputs), "hidden", discrepancy))
    states = np.asarray(by_position(network(inputs, record=("hidden",))[1]["hidden"]))
    eps, kappa = -(rows * states).sum(2), rows.sum(2)
    assert rows.shape[0] > positions * width
    expected = {"eps_eps": eps**2, "eps_kappa": eps * kappa, "kappa_kappa": kappa**2}
    for field, values in expected.items():
        np.testing.assert_allclose(getattr(found, field), values.sum((0, 1)) / len(inputs), rtol=1e-9, atol=1e-14)
    hessian = np.einsum("rnpi,rnpj->ij", rows, rows) / len(inputs)
    np.testing.assert_allclose(found.hessian, hessian, rtol=1e-9, atol=1e-13)
    np.testing.assert_array_equal(found.hessian, found.hessian.T)


@pytest.mark.parametrize("program", ["_rows", "_columns"])
def test_what_a_chunk_holds_does_not_grow_with_the_square_of_classes(program):
    """Temporaries by XLA's own count; a matrix of classes by classes for each example would quadruple and more."""
    held = []
    for classes in (200, 400, 800):
        model = Sequential((8,), (Dense("hidden", 16), Dense("last", classes)))
        network = Network(model, model.init(jax.random.key(0)))
        arguments = (network, Calibration(np.zeros((32, 8), np.float32)), "hidden", KL, np.arange(8, dtype=np.int32))
        analysis = getattr(streaming, program).lower(*arguments).compile().memory_analysis()
        if analysis is None:
            pytest.skip("this backend does not say what programs hold")
        held.append(analysis.temp_size_in_bytes)
    assert held[-1] < 8 * 32 * 800 * 4 * 4, "a few arrays of chunk x examples x classes"
    assert held[2] < 5 * held[0]


@pytest.mark.parametrize("name", ["dense", "conv"])
def test_the_size_of_batches_does_not_matter(name):
    model, params, inputs, labels = _case(name)
    collect = lambda size: collect_statistics(
        Network(model, params), Calibration(inputs, labels), "hidden", discrepancy=CE, batch_size=size
    )
    whole = collect(100)
    for size in (1, 4, 6):  # 13 examples: batches of unequal sizes
        _assert_equal(collect(size), whole)


def test_merging_ragged_parts_is_one_pass_over_the_union():
    model, params, inputs, labels = _case("conv", 20)
    collect = lambda rows: collect_statistics(
        Network(model, params), Calibration(inputs[rows], labels[rows]), "hidden", discrepancy=CE
    )
    one, few, many = collect(slice(0, 1)), collect(slice(1, 8)), collect(slice(8, 20))
    whole = collect(slice(0, 20))
    _assert_equal(merge_statistics(merge_statistics(one, few), many), whole)
    _assert_equal(merge_statistics(one, merge_statistics(many, few)), whole)


def test_the_mean_far_from_zero_does_not_cost_digits():
    model, params, inputs, _ = _case("dense")
    shifted = params | {"first": params["first"] | {"bias": params["first"]["bias"] + 1e6}}
    parts = [collect_statistics(Network(model, shifted), inputs, "hidden", batch_size=size) for size in (2, 100)]
    exact = inputs @ np.asarray(params["first"]["kernel"])
    np.testing.assert_allclose(parts[0].covariance, np.cov(exact.T, bias=True), rtol=1e-7)  # 1e6 eats 6 of 16 digits
    np.testing.assert_allclose(parts[0].covariance, parts[1].covariance, rtol=1e-7)


def test_against_its_own_outputs_kl_has_no_gradient_and_against_others_it_has(rng):
    model, params, inputs, _ = _case("dense")
    own = collect_statistics(Network(model, params), inputs, "hidden")
    assert np.abs([own.gradient_eps, own.gradient_kappa]).max() < 1e-15
    target = model.apply(params, inputs)[0] + rng.standard_normal((COUNT, 3))
    other = collect_statistics(Network(model, params), Calibration(inputs, target=target), "hidden", batch_size=5)
    assert np.abs(other.gradient_kappa).min() > 1e-3
    _assert_equal(other, own, names=["hessian", "kappa_kappa", "mean"])


@pytest.mark.slow
def test_the_full_hessian_takes_the_place_of_the_units_diagonals():
    model, params, inputs, labels = _case("gru")
    found = collect_statistics(
        Network(model, params), Calibration(inputs, labels), "hidden", discrepancy=CE, curvature="hessian", batch_size=4
    )
    target = model.apply(params, inputs)[0]
    hessian = np.asarray(
        replacement_hessian(
            Network(model, params), Calibration(inputs, jnp.asarray(labels), target=target), "hidden", CE
        )[1]
    )
    np.testing.assert_allclose(found.eps_eps, np.diagonal(hessian)[:3], rtol=1e-12)
    np.testing.assert_allclose(found.eps_kappa, np.diagonal(hessian, 3), rtol=1e-12)
    np.testing.assert_allclose(found.kappa_kappa, np.diagonal(hessian)[3:], rtol=1e-12)
    plain = collect_statistics(Network(model, params), Calibration(inputs, labels), "hidden", discrepancy=CE)
    assert np.abs(found.kappa_kappa - plain.kappa_kappa).max() > 1e-3
    _assert_equal(found, plain, names=["hessian", "mean", "covariance", "gradient_eps"])


def test_one_positions_kappa_block_is_the_mean_diagonal_and_relu_needs_no_more():
    model, params, inputs, labels = _case("dense")
    full, plain = (
        collect_statistics(
            Network(model, params), Calibration(inputs, labels), "hidden", discrepancy=CE, curvature=curvature
        )
        for curvature in ("hessian", "ggn")
    )
    _assert_equal(full, plain)
    outputs = model.apply(params, inputs)[0]
    diagonal = hessian_diagonal(
        Network(model, params), Calibration(inputs, jnp.asarray(labels), target=outputs), "hidden", CE
    )[:, 0]
    np.testing.assert_allclose(plain.kappa_kappa, diagonal.mean(0), rtol=1e-12)
    np.testing.assert_allclose(np.diagonal(plain.hessian), diagonal.mean(0), rtol=1e-12)


def test_fisher_draws_estimate_the_curvature():
    model, params, inputs, _ = _case("conv")
    exact = collect_statistics(Network(model, params), inputs, "hidden")
    runs = [
        collect_statistics(
            Network(model, params),
            inputs,
            "hidden",
            curvature="fisher",
            key=jax.random.key(seed),
            batch_size=7,
        )
        for seed in range(12)
    ]
    for name in ("hessian", "eps_eps", "eps_kappa", "kappa_kappa"):
        draws = np.stack([getattr(run, name) for run in runs])
        error = np.abs(draws.mean(0) - getattr(exact, name))
        assert (error <= 5 * draws.std(0, ddof=1) / np.sqrt(len(runs)) + 1e-15).all(), name
        assert draws.std(0).max() > 0
    _assert_equal(runs[0], exact, names=["mean", "covariance", "low", "high", "count", "positions"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "exact"}, "got curvature 'exact', expected one of"),
        ({"discrepancy": CE}, "got no labels, expected labels for the discrepancy 'ce'"),
        ({"curvature": "fisher"}, "got no key"),
        ({"curvature": "fisher", "discrepancy": LOGIT}, "expected a softmax"),
        ({"batch_size": 0}, "got batch size 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message, unchecked):
    model, params, inputs, _ = _case("dense")
    with pytest.raises(ValueError, match=message):
        collect_statistics(Network(model, params), inputs, "hidden", **options)


def test_activations_that_are_not_finite_and_no_inputs_are_refused():
    model, params, inputs, _ = _case("dense")
    inputs[8, 0], inputs[12, 1] = np.nan, np.inf
    message = "got calibration inputs with 2 values of .* not finite"
    with pytest.raises(ValueError, match=message):
        collect_statistics(Network(model, params), inputs, "hidden", batch_size=7)
    with pytest.raises(ValueError, match="got no calibration inputs"):
        collect_statistics(Network(model, params), inputs[:0], "hidden")


def test_kl_is_what_is_collected_by_default():
    model, params, inputs, _ = _case("dense")
    named = collect_statistics(Network(model, params), inputs, "hidden", discrepancy=KL)
    _assert_equal(collect_statistics(Network(model, params), inputs, "hidden"), named)


def _statistics(rng, width=4):
    root = rng.standard_normal((width, width))
    zeros = np.zeros(width)
    values = dict.fromkeys(FIELDS, zeros) | {"mean": rng.standard_normal(width), "covariance": root @ root.T}
    return Statistics(**values | {"count": np.array(1.0), "positions": np.array(1.0), "hessian": np.eye(width)})


@pytest.mark.parametrize("origin", [False, True], ids=["about the mean", "about zero"])
@pytest.mark.parametrize("law", [(0.0,), (0.3,), (1.0,), (0.0, 0.1, 0.8)])
def test_law_moments_are_those_of_drawn_interchanges(rng, law, origin):
    statistics = _statistics(rng)
    moments = law_moments(statistics, law, ridge=0.0, origin=origin)
    draws = 40_000
    base, source = rng.multivariate_normal(statistics.mean, statistics.covariance, (2, draws))
    mask = rng.random((draws, 4)) < rng.choice(law, draws)[:, None]
    centre = np.zeros(4) if origin else statistics.mean
    hybrid, base = np.where(mask, source, base) - centre, base - centre
    # replaced units keep the base value, kept ones are interchanged; a unit is never both, so diagonals are apart
    for left, right, expected in (
        (base, hybrid, moments.cross),
        (hybrid, hybrid, moments.regressor),
        (base, base, moments.target),
    ):
        products = left[:, :, None] * right[:, None, :]
        bound = 5 * products.std(0) / np.sqrt(draws)
        assert (np.abs(products.mean(0) - expected) <= bound).all()
    moved = hybrid.mean(0) - (statistics.mean if origin else 0)
    assert np.abs(moved).max() <= 5 * hybrid.std() / np.sqrt(draws)
    np.testing.assert_array_equal(moments.mean, centre)


def test_the_ridge_follows_the_units_scales(rng):
    statistics = _statistics(rng)
    scale = np.array([1e-3, 1, 10, 1e3])
    rescaled = dataclasses.replace(statistics, covariance=statistics.covariance * np.outer(scale, scale))
    first, second = (law_moments(each, (0.1,), ridge=0.2).regressor for each in (statistics, rescaled))
    np.testing.assert_allclose(second, first * np.outer(scale, scale), rtol=1e-12)
    np.testing.assert_allclose(np.diagonal(first), 1.2 * statistics.variance, rtol=1e-12)


@pytest.mark.parametrize(("law", "ridge"), [((), 0.0), ((1.1,), 0.0), ((-0.1, 0.5), 0.0), ((0.1,), -1e-3)])
def test_laws_that_are_none_are_refused(rng, law, ridge):
    with pytest.raises(ValueError, match=r"got (law|probability of a law|ridge) .*, expected"):
        law_moments(_statistics(rng), law, ridge=ridge)
