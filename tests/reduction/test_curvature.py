"""Curvature at a tap: known forms, jax.hessian example by example, and five routes to one diagonal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.models import GRU, MLP, Activation, Dense, Network, Sequential
from abstraction.models.layers import Convolution, Flatten
from abstraction.reduction import Calibration
from abstraction.reduction.curvature import (
    fisher_diagonal,
    gauss_newton_product,
    gauss_newton_rows,
    hessian_diagonal,
    hessian_vector_product,
    hutchinson_diagonal,
    last_layer_curvature,
    pull,
    replacement_hessian,
    suffix_at,
    tap_gradient,
)
from abstraction.reduction.discrepancies import CE, KL, LOGIT, MSE, centred, custom_discrepancy, zero_one

WIDTH, CLASSES, COUNT = 5, 3, 7


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def _dense(function):
    """A tap `hidden` with one nonlinear layer behind it, and `last`, which the logits are read from."""
    layers = (
        Dense("first", WIDTH), Activation("hidden", function),
        Dense("second", WIDTH), Activation("last", function), Dense("head", CLASSES),
    )  # fmt: skip
    return Sequential((4,), layers)


def _case(model, seed=0):
    """Double-precision parameters three times the usual size, inputs, labels, and another network's outputs."""
    generator = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: 3 * jnp.asarray(leaf, jnp.float64), model.init(jax.random.key(seed)))
    shape = {MLP: (4,), GRU: (3, 2)}.get(type(model)) or model.inputs
    inputs = generator.standard_normal((COUNT, *shape))
    outputs = model.apply(params, inputs)[0]
    labels = generator.integers(0, outputs.shape[-1], COUNT)
    other = outputs + generator.standard_normal(outputs.shape)
    return params, inputs, jnp.asarray(labels), other


CONV = Sequential(
    (4, 4, 2), (Convolution("mix", 3, (2, 2)), Activation("hidden", "tanh"), Flatten("flat"), Dense("head", CLASSES))
)
MODELS = {"dense": _dense("tanh"), "conv": CONV, "mlp": MLP(4, 4, 2, CLASSES, "tanh"), "gru": GRU(2, 3, 3)}


def _per_example(derivative, network, calibration, tap, discrepancy):
    """Differentiate D of each example alone, at a batch of one, over positions and units laid flat."""

    def one(x, t, y):
        suffix = suffix_at(network, x[None], tap)
        loss = lambda e: discrepancy.compare(suffix.run(e.reshape(suffix.activation.shape)), t[None], y[None])[0]
        return derivative(loss)(jnp.zeros(suffix.activation.size))

    return np.asarray(jax.jit(jax.vmap(one))(calibration.inputs, calibration.target, calibration.labels))


@pytest.mark.parametrize("discrepancy", [KL, LOGIT, CE, MSE], ids=lambda d: d.name)
def test_the_root_squared_is_the_hessian_in_the_outputs(discrepancy, rng):
    outputs, target = (jnp.asarray(rng.standard_normal((4, CLASSES))) for _ in range(2))
    labels = jnp.asarray(rng.integers(0, CLASSES, 4)) if discrepancy is CE else jnp.asarray(rng.random((4, CLASSES)))
    given = labels if discrepancy.labelled else None
    bend = discrepancy.bending(outputs, target, given)
    root = jnp.moveaxis(bend.columns(jnp.arange(CLASSES)), 0, -1)
    one = lambda z, t, y: discrepancy.compare(z[None], t[None], None if given is None else y[None])[0]
    hessian = jax.jit(jax.vmap(jax.hessian(one)))(outputs, target, labels)
    np.testing.assert_allclose(root @ root.transpose(0, 2, 1), hessian, atol=1e-12)
    moved = jnp.asarray(rng.standard_normal((4, CLASSES)))
    np.testing.assert_allclose(bend.product(moved), jnp.einsum("ncd,nd->nc", hessian, moved), atol=1e-12)
    some = bend.columns(jnp.array([2, 0]))
    np.testing.assert_array_equal(some, jnp.moveaxis(root, -1, 0)[jnp.array([2, 0])])


def test_discrepancies_by_hand():
    outputs, target = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.75]])) + 4
    np.testing.assert_allclose(KL.compare(outputs, target, None), [0.25 * np.log(0.5) + 0.75 * np.log(1.5)])
    np.testing.assert_allclose(CE.compare(outputs, target, jnp.array([1])), [np.log(1.5)])
    np.testing.assert_allclose(LOGIT.compare(outputs, target, None), [np.log(3) ** 2 / 2])  # twice (log 3 / 2)^2
    regression = MSE.compare(jnp.array([[1.0, 2]]), jnp.array([[0.0, 0]]), jnp.array([[3.0, 0]]))
    np.testing.assert_allclose(regression, [4 + 4 - 9])
    np.testing.assert_array_equal(zero_one(np.array([[1.0, 0], [1, 0]]), np.array([[5.0, 0], [0, 5]])), [0, 1])
    np.testing.assert_allclose(centred(jnp.array([[1.0, 3]])), [[-1, 1]])


def test_a_discrepancy_of_ones_own_has_the_curvature_of_its_convex_part(rng):
    own = custom_discrepancy("weighted", lambda z, t, y: ((z - t) ** 2 * jnp.array([1.0, 3, -2])).sum(-1))
    outputs = jnp.asarray(rng.standard_normal((4, CLASSES)))
    bend = own.bending(outputs, outputs + 1, None)
    root = jnp.moveaxis(bend.columns(jnp.arange(3)), 0, -1)
    expected = np.broadcast_to(np.diag([2.0, 6, 0]), (4, 3, 3))
    np.testing.assert_allclose(root @ root.transpose(0, 2, 1), expected, atol=1e-12)
    np.testing.assert_allclose(bend.product(outputs), outputs * np.array([2.0, 6, 0]), atol=1e-12)


def test_a_discrepancy_that_reads_labels_asks_for_them():
    with pytest.raises(ValueError, match="got no labels, expected labels"):
        CE.compare(jnp.zeros((2, 3)), jnp.zeros((2, 3)), None)


@pytest.mark.parametrize(
    ("name", "discrepancy"), [("dense", KL), ("conv", CE), ("mlp", KL), pytest.param("gru", CE, marks=pytest.mark.slow)]
)
def test_gradient_and_diagonal_are_those_of_jax_example_by_example(name, discrepancy):
    model = MODELS[name]
    params, inputs, labels, other = _case(model)
    arguments = (Network(model, params), Calibration(inputs, labels, other), "hidden", discrepancy)
    gradient = tap_gradient(*arguments)
    np.testing.assert_allclose(gradient.reshape(COUNT, -1), _per_example(jax.grad, *arguments), atol=1e-12)
    diagonal = np.diagonal(_per_example(jax.hessian, *arguments), axis1=1, axis2=2)
    np.testing.assert_allclose(hessian_diagonal(*arguments, chunk=4).reshape(COUNT, -1), diagonal, atol=1e-12)


@pytest.mark.parametrize("name", ["dense", "conv"])
def test_products_are_those_with_the_whole_matrices(name, rng):
    model = MODELS[name]
    params, inputs, labels, other = _case(model)
    arguments = (Network(model, params), Calibration(inputs, labels, other), "hidden", CE)
    suffix = suffix_at(Network(model, params), inputs, "hidden")
    vector = jnp.asarray(rng.standard_normal(suffix.activation.shape))
    hessians = _per_example(jax.hessian, *arguments)
    expected = np.einsum("nij,nj->ni", hessians, vector.reshape(COUNT, -1)).reshape(vector.shape)
    np.testing.assert_allclose(hessian_vector_product(*arguments, vector), expected, atol=1e-12)

    rows = np.asarray(gauss_newton_rows(*arguments)).reshape(suffix.outputs.shape[-1], COUNT, -1)
    expected = np.einsum("rni,rnj,nj->ni", rows, rows, vector.reshape(COUNT, -1)).reshape(vector.shape)
    np.testing.assert_allclose(gauss_newton_product(*arguments, vector), expected, atol=1e-12)


def test_rows_are_the_factor_times_the_jacobian():
    model = MODELS["conv"]
    params, inputs, labels, other = _case(model)
    rows = gauss_newton_rows(Network(model, params), Calibration(inputs, labels, target=other), "hidden", CE)

    def one(x):
        suffix = suffix_at(Network(model, params), x[None], "hidden")
        return jax.jacobian(lambda e: suffix.run(e[None])[0])(jnp.zeros(suffix.activation.shape[1:])), suffix.outputs[0]

    jacobian, outputs = jax.jit(jax.vmap(one))(inputs)
    p = np.asarray(jax.nn.softmax(outputs))
    pulled = np.einsum("ncpd,nc,ncpd->npd", jacobian, p, jacobian) - np.einsum("ncpd,nc->npd", jacobian, p) ** 2
    np.testing.assert_allclose((np.asarray(rows) ** 2).sum(0), pulled, atol=1e-12)


def test_the_last_layer_has_a_closed_form():
    model = MODELS["dense"]
    params, inputs, labels, other = _case(model)
    arguments = (Network(model, params), Calibration(inputs, labels, other), "last", CE)
    outputs = model.apply(params, inputs)[0]
    gradient, diagonal = last_layer_curvature(params["head"]["kernel"], outputs, labels)
    np.testing.assert_allclose(gradient, _per_example(jax.grad, *arguments), atol=1e-12)
    hessians = _per_example(jax.hessian, *arguments)
    np.testing.assert_allclose(diagonal, np.diagonal(hessians, axis1=1, axis2=2), atol=1e-12)


def test_five_routes_lead_to_the_diagonal_at_the_last_layer():
    model, draws = MODELS["dense"], 800
    params, inputs, labels, other = _case(model)
    arguments = (Network(model, params), Calibration(inputs, labels, other), "last", CE)
    outputs = model.apply(params, inputs)[0]
    _, closed = last_layer_curvature(params["head"]["kernel"], outputs, labels)
    np.testing.assert_allclose(hessian_diagonal(*arguments)[:, 0], closed, atol=1e-12)
    np.testing.assert_allclose((gauss_newton_rows(*arguments)[:, :, 0] ** 2).sum(0), closed, atol=1e-12)
    _, both = replacement_hessian(*arguments)
    np.testing.assert_allclose(np.diagonal(both)[WIDTH:], closed.mean(0), atol=1e-12)

    # Two estimates: within five standard errors of it, known exactly, and those are not idle.
    hessians = _per_example(jax.hessian, *arguments)
    spread = np.sqrt(((hessians**2).sum(2) - closed**2) / draws)
    error = hutchinson_diagonal(jax.random.key(1), *arguments, draws=draws)[:, 0] - closed
    assert (np.abs(error) <= 5 * spread + 1e-12).all()
    assert np.abs(error).max() > spread.min()

    p, kernel = np.asarray(jax.nn.softmax(outputs)), np.asarray(params["head"]["kernel"])
    squares = (p @ kernel.T)[:, :, None] - kernel  # gradient of every class that may be drawn, [N, D, C]
    spread = np.sqrt(np.maximum((p[:, None] * squares**4).sum(2) - np.asarray(closed) ** 2, 0) / draws)
    error = fisher_diagonal(jax.random.key(2), Network(model, params), inputs, "last", draws=draws)[:, 0] - closed
    assert (np.abs(error) <= 5 * spread + 1e-12).all()
    assert np.abs(error).max() > spread.min()


def test_a_piecewise_linear_suffix_has_no_curvature_but_gauss_and_newtons():
    model = _dense("relu")
    params, inputs, labels, other = _case(model)
    arguments = (Network(model, params), Calibration(inputs, labels, other), "hidden", CE)
    np.testing.assert_allclose(hessian_diagonal(*arguments), (gauss_newton_rows(*arguments) ** 2).sum(0), atol=1e-12)


@pytest.mark.parametrize("function", [pytest.param("gelu", marks=pytest.mark.slow), "tanh"])
def test_a_smooth_suffix_has_more_unless_outputs_are_where_kl_is_least(function):
    model = _dense(function)
    params, inputs, labels, other = _case(model)
    outputs = model.apply(params, inputs)[0]
    for discrepancy, target, agree in ((CE, outputs, False), (KL, other, False), (KL, outputs, True)):
        arguments = (Network(model, params), Calibration(inputs, labels, target), "hidden", discrepancy)
        difference = hessian_diagonal(*arguments) - (gauss_newton_rows(*arguments) ** 2).sum(0)
        assert (np.abs(difference).max() < 1e-12) == agree
        assert agree or np.abs(difference).max() > 1e-2


def _replaced_mlp(params, inputs, eps, kappa):
    state = inputs @ params["stem"]["kernel"] + params["stem"]["bias"]
    for layer in range(2):
        hidden = jnp.tanh(state) * (1 - eps) + kappa
        place = params["head"] if layer else jax.tree.map(lambda leaf: leaf[0], params["blocks"])
        state = hidden @ place["kernel"] + place["bias"]
    return state


def _replaced_conv(params, inputs, eps, kappa):
    windows = [inputs[:, i : i + 3, j : j + 3] @ params["mix"]["kernel"][i, j] for i in range(2) for j in range(2)]
    hidden = jnp.tanh(sum(windows) + params["mix"]["bias"]) * (1 - eps) + kappa
    return hidden.reshape(len(inputs), -1) @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize(
    ("name", "replaced", "discrepancy"),
    [
        ("mlp", _replaced_mlp, CE), pytest.param("mlp", _replaced_mlp, KL, marks=pytest.mark.slow),
        ("conv", _replaced_conv, KL), pytest.param("conv", _replaced_conv, CE, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_replacement_hessian_is_that_of_the_network_with_moved_units(name, replaced, discrepancy):
    model = MODELS[name]
    params, inputs, labels, other = _case(model)
    width = model.taps["hidden"].width
    np.testing.assert_allclose(replaced(params, inputs, 0.0, 0.0), model.apply(params, inputs)[0], atol=1e-12)

    def mean_loss(both):
        return discrepancy.compare(replaced(params, inputs, both[:width], both[width:]), other, labels).mean()

    origin = jnp.zeros(2 * width)
    gradient, hessian = replacement_hessian(
        Network(model, params), Calibration(inputs, labels, target=other), "hidden", discrepancy
    )
    np.testing.assert_allclose(gradient, jax.jit(jax.grad(mean_loss))(origin), atol=1e-12)
    np.testing.assert_allclose(hessian, jax.jit(jax.hessian(mean_loss))(origin), atol=1e-12)
    few = replacement_hessian(
        Network(model, params), Calibration(inputs, labels, target=other), "hidden", discrepancy, chunk=3
    )[1]
    np.testing.assert_allclose(few, hessian, atol=1e-14)


def test_an_unknown_tap_is_refused():
    params, inputs, labels, other = _case(MODELS["dense"])
    with pytest.raises(ValueError, match="expected tap names among"):
        tap_gradient(Network(MODELS["dense"], params), Calibration(inputs, labels, target=other), "nowhere", CE)


@pytest.mark.parametrize("together", [1, 2, 10])
def test_how_many_cotangents_are_pulled_back_at_once_does_not_matter(together, monkeypatch, rng):
    model = MODELS["dense"]
    params, inputs, *_ = _case(model)
    suffix = suffix_at(Network(model, params), inputs, "hidden")
    cotangents = jnp.asarray(rng.standard_normal((5, COUNT, CLASSES)))
    jacobian = jax.jacobian(lambda offset: suffix.run(offset).sum(0))(jnp.zeros(suffix.activation.shape))
    monkeypatch.setattr(
        "abstraction.reduction.curvature._AT_ONCE", dict.fromkeys((True, False), together * COUNT * WIDTH)
    )
    expected = np.einsum("rnc,cnpd->rnpd", cotangents, jacobian)
    np.testing.assert_allclose(pull(suffix, cotangents), expected, rtol=1e-12, atol=1e-14)
