"""Units of a wrapped model are removed without a declaration: who reads them is found in its program."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slowly import all_but
from zoo import linen_networks, nnx_networks, plain_networks

from abstraction import reduce_network, tap, wrap
from abstraction.interventions import Set
from abstraction.models import At
from abstraction.models.wiring import find_array
from abstraction.reduction import METHODS
from abstraction.reduction.compiling import compile_plan, patch
from abstraction.reduction.folding import affine_fold, constant_fold
from abstraction.reduction.plans import reduction_plan

CLOSE = 2e-6  # float32 sums in another order, relative to outputs of order 1


class Convolutions(nn.Module):
    """Zeros around the border, pooling, and positions that are flattened."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(5, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Conv(4, (3, 3), name="second")(x))
        x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        return nn.Dense(3, name="head")(nn.relu(nn.Dense(6, name="dense")(x)))


def named_mlp(params, x):
    for number, (kernel, bias) in enumerate(params["layers"]):
        x = tap(jax.nn.relu(x @ kernel + bias), f"hidden{number}")
    return x @ params["head"]


def _numbers():
    return nnx_networks.numbers(np.random.default_rng(0), 12)


def _mlp():
    x = _numbers()
    return wrap(nnx_networks.MLP(nnx_networks.seeded()), None, x, {"a": "second.input", "b": "head.input"}), x


def _linen():
    x, model = _numbers(), linen_networks.MLP()
    return wrap(model, model.init(jax.random.key(0), x), x, {"a": "Dense_1.input", "b": "head.input"}), x


def _equinox():
    networks = pytest.importorskip("zoo.equinox_networks", reason="needs equinox")
    x = _numbers()
    return wrap(networks.MLP(jax.random.key(0)), None, x, {"a": "layers/1.input", "b": "head.input"}), x


def _plain():
    x = _numbers()
    params = plain_networks.init_mlp(np.random.default_rng(1))
    return wrap(named_mlp, params, x, {"a": "hidden0", "b": "hidden1"}), x


def _transformer():
    x = nnx_networks.tokens(np.random.default_rng(0), 6)
    taps = {"a": "blocks/0/mlp/down.input", "b": "blocks/1/mlp/down.input"}
    return wrap(nnx_networks.Transformer(nnx_networks.seeded()), None, x, taps), x


def _convolutions():
    x, model = jnp.asarray(np.random.default_rng(0).standard_normal((6, 8, 8, 2)), jnp.float32), Convolutions()
    places = {"a": At(".* relu", only=0), "b": At(".* relu", only=1), "c": "head.input"}
    return wrap(model, model.init(jax.random.key(0), x), x, places), x


MAKERS = {
    "nnx": _mlp, "linen": _linen, "equinox": _equinox, "plain": _plain,
    "transformer": _transformer, "convolutions": _convolutions,
}  # fmt: skip


@pytest.fixture(scope="module", params=all_but(set(MAKERS) - {"transformer"}, MAKERS))
def made(request):
    return MAKERS[request.param]()


def _folds(network, affine):
    rng = np.random.default_rng(3)
    for name, each in network.taps.items():
        gone = np.sort(rng.choice(each.width, each.width // 2, replace=False))
        kept = np.setdiff1d(np.arange(each.width), gone)
        values = rng.standard_normal(len(gone))
        if affine:
            yield affine_fold(name, kept, gone, values, 0.3 * rng.standard_normal((len(gone), len(kept))))
        else:
            yield constant_fold(name, each.width, gone, values)


@pytest.mark.parametrize("affine", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["constants", "affine"])
def test_the_smaller_network_is_the_patched_one(made, affine):
    network, x = made
    plan = reduction_plan(network, list(_folds(network, affine)))
    if affine and "c" in network.taps:  # a maximum over a window does not pass an affine map of other units
        with pytest.raises(ValueError, match=r"does not pass reduce_window_max at .*; expected .* 'patch'"):
            compile_plan(network, plan)
        return
    small = compile_plan(network, plan)
    patched, dense = network(x, patch(network, plan))[0], network(x)[0]
    assert np.abs(patched - dense).max() > 1e-2
    np.testing.assert_allclose(small(x)[0], patched, rtol=0, atol=CLOSE * max(1, float(np.abs(patched).max())))
    for fold in plan.folds:
        assert small.taps[fold.tap].width == len(fold.kept)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(each.params)) for each in (small, network)]
    assert sizes[0] < sizes[1]


@pytest.mark.slow
def test_what_is_left_is_recorded_and_edited_as_before(made):
    network, x = made
    plan = reduction_plan(network, list(_folds(network, False)))
    small, name = compile_plan(network, plan), "b"
    _, patched = network(x, patch(network, plan), record=tuple(network.taps))
    outputs, states = small(x, record=tuple(small.taps))
    kept = {fold.tap: fold.kept for fold in plan.folds}
    for each, values in states.items():
        # Activations are of order 1: float32 sums in another order.
        np.testing.assert_allclose(values, patched[each][..., kept[each]], atol=1e-5)
    swapped, _ = small(x, {name: Set(states[name][:, ::-1])}, record=(name,))
    assert np.abs(swapped - outputs).max() > 1e-4


def test_affine_folds_of_an_mlp_are_compiled_as_well():
    network, x = _mlp()
    plan = reduction_plan(network, list(_folds(network, True)))
    patched = network(x, patch(network, plan))[0]
    np.testing.assert_allclose(
        compile_plan(network, plan)(x)[0], patched, rtol=0, atol=CLOSE * max(1, float(np.abs(patched).max()))
    )


def test_reduce_network_needs_no_declaration():
    network, x = _mlp()
    reduction = reduce_network(network, x, {"a": 5, "b": 4}, METHODS["cmr-closed"])
    patched = network(x, patch(network, reduction.plan))[0]
    np.testing.assert_allclose(reduction.network(x)[0], patched, atol=CLOSE)
    assert {name: each.width for name, each in reduction.network.taps.items()} == {"a": 5, "b": 4}


def test_readers_are_those_of_the_params():
    network, _ = _transformer()
    (reader,) = network.model.consumers("a")
    assert reader.kernel == ("blocks", 0, "mlp", "down", "kernel")
    assert find_array(network.params, reader.kernel).shape[reader.axes[0]] == network.taps["a"].width


@pytest.mark.parametrize(
    ("taps", "why"),
    [
        ({"s": "blocks/1"}, r"may mix them \(gather at nnx_networks.py"),
        ({"s": "blocks/1/attention/out"}, "may mix them|mixed by"),
        ({"s": At("blocks/1/attention/query", 2)}, "2 axes together"),
        ({"s": "blocks/1/attention/out.input"}, "summed together with a further axis|product of two activations"),
        ({"s": "head"}, "cut apart|network's outputs|may mix them"),
        ({"s": "blocks/[0-9]+/mlp/down.input"}, "at 2 places"),
    ],
)
def test_what_stands_in_the_way_is_named(taps, why):
    x = nnx_networks.tokens(np.random.default_rng(0), 3)
    network = wrap(nnx_networks.Transformer(nnx_networks.seeded()), None, x, taps)
    with pytest.raises(ValueError, match=why):
        network.model.consumers("s")


@pytest.mark.parametrize(
    ("equation", "why"),
    [
        ("nhd,hdo->no", r"summed together with a further axis.* \(dot_general at test_any_model_reduction.py:\d+\)"),
        ("nhd,hdo->nho", r"another kernel at each place of a further axis.* \(dot_general at test_any_model_reduc"),
    ],
)
def test_a_kernel_that_sums_over_or_runs_along_a_further_axis_is_refused(equation, why):
    rng = np.random.default_rng(0)
    params = {"in": rng.standard_normal((6, 3, 4)), "out": rng.standard_normal((3, 4, 5))}
    params = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in params.items()}

    def heads(params, x):
        hidden = tap(jnp.tanh(jnp.einsum("ni,ihd->nhd", x, params["in"])), "hidden")
        return jnp.einsum(equation, hidden, params["out"])

    x = jnp.asarray(rng.standard_normal((5, 6)), jnp.float32)
    network = wrap(heads, params, x, {"hidden": At("hidden", units=1)})
    with pytest.raises(ValueError, match=why):
        network.model.consumers("hidden")


def test_units_that_recur_or_are_read_twice_are_refused():
    x = linen_networks.sequences(np.random.default_rng(0))
    model = linen_networks.Recurrent()
    network = wrap(model, model.init(jax.random.key(0), x), x, {"state": "GRUCell_0"})
    with pytest.raises(ValueError, match="carried from step to step"):
        network.model.consumers("state")
    early = lambda params, x: tap(jax.nn.relu(pre := x @ params["a"]), "unit") @ params["b"] + pre @ params["c"]
    params = {name: jnp.ones((6, 6)) for name in "abc"}
    with pytest.raises(ValueError, match="read before the tap"):
        wrap(early, params, _numbers(), ["unit"]).model.consumers("unit")
    gated = lambda params, x: (tap(jax.nn.silu(x @ params["a"]), "gate") * (x @ params["b"])) @ params["c"]
    with pytest.raises(ValueError, match=r"combined with another activation .*mul at"):
        wrap(gated, params, _numbers(), ["gate"]).model.consumers("gate")
