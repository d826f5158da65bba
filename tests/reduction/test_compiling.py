"""The law of reduction: the smaller network computes what the original one does under the edits of the same plan."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from once import parts
from tiny_decoder import TinyDecoder

from abstraction.models import GRU, MLP, Activation, Dense, Model, Network, Reducible, Sequential
from abstraction.models.layers import AveragePool, BatchNorm, Convolution, Flatten, GlobalAverage, MaxPool
from abstraction.models.taps import NO_EDITS
from abstraction.reduction.compiling import bill, compile_plan, latency, patch
from abstraction.reduction.folding import affine_fold, constant_fold, fold_params
from abstraction.reduction.plans import reduction_plan


class Case(NamedTuple):
    model: Model
    folds: tuple[tuple[str, str, list[int]], ...]  # tap, kind, replaced units
    inputs: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]  # of arrays of the smaller network, by path


HEAD = (Flatten("flat"), Dense("head", 3))
TWO = Sequential((5,), (Dense("a", 6), Activation("act"), Dense("head", 3)))
LINEAR = Sequential((5,), (Dense("a", 6), Dense("head", 3, use_bias=False)))
DEEP = Sequential((5,), (Dense("a", 6), Activation("x"), Dense("b", 7), Activation("y", "gelu"), Dense("head", 3)))


def _spatial(*between, first=None):
    return Sequential((6, 5, 2), (first or Convolution("a", 4, padding="SAME"), *between))


POINT = _spatial(Activation("act"), Convolution("b", 3, (1, 1)), *HEAD)
VALID = _spatial(Activation("act"), Convolution("b", 3), *HEAD)
SAME = _spatial(Activation("act"), Convolution("b", 3, padding="SAME"), *HEAD)
STRIDED = _spatial(Activation("act"), Convolution("b", 3, (2, 3), (2, 2), "SAME", use_bias=False), *HEAD)
NORM_AFTER = _spatial(BatchNorm("norm"), Convolution("b", 3, padding="SAME"), *HEAD)
NORM_BEFORE = _spatial(BatchNorm("norm"), Activation("act"), *HEAD)
NORM_FLAT = _spatial(Flatten("flat"), BatchNorm("norm"), Dense("head", 3))
AVERAGE = _spatial(Activation("act"), AveragePool("pool"), *HEAD)
GLOBAL = _spatial(Activation("act"), GlobalAverage("pool"), Dense("head", 3))
MAXIMUM = _spatial(BatchNorm("norm"), Activation("act"), MaxPool("max"), *HEAD)
PER_POSITION = _spatial(Activation("act"), Dense("mix", 3), *HEAD)
CHAIN = _spatial(
    Activation("x"), Convolution("b", 5, padding="SAME"), BatchNorm("norm"), Activation("y"),
    Convolution("c", 4, padding="SAME", use_bias=False), Activation("z"), *HEAD,
)  # fmt: skip
DECODER = TinyDecoder(11, 8, 3, ((0, 0, 1, 1), (0, 0, 1, 1)), (10, 9))
HEADS = lambda *heads: [3 * head + unit for head in heads for unit in range(3)]

CASES = {
    "dense-constant": Case(TWO, (("act", "constant", [1, 4]),), (5,), {"a.kernel": (5, 4), "head.kernel": (4, 3)}),
    "dense-affine": Case(TWO, (("act", "affine", [1, 4]),), (5,), {"a.bias": (4,), "head.kernel": (4, 3)}),
    "linear-linear-without-bias": Case(LINEAR, (("a", "affine", [0, 5]),), (5,), {"head.bias": (3,)}),
    "linear-linear-constant": Case(LINEAR, (("a", "constant", [0, 1, 2, 3, 4]),), (5,), {"a.kernel": (5, 1)}),
    "constant-through-relu": Case(TWO, (("a", "constant", [0, 3]),), (5,), {"a.kernel": (5, 4)}),
    "two-layers": Case(DEEP, (("x", "affine", [0, 3]), ("y", "affine", [1, 6])), (5,), {"b.kernel": (4, 5)}),
    "point-constant": Case(POINT, (("act", "constant", [2]),), (6, 5, 2), {"b.kernel": (1, 1, 3, 3), "b.bias": (3,)}),
    "point-affine": Case(POINT, (("act", "affine", [2]),), (6, 5, 2), {"a.kernel": (3, 3, 2, 3)}),
    "valid-constant": Case(VALID, (("act", "constant", [0, 2]),), (6, 5, 2), {"b.bias": (3,)}),
    "valid-affine": Case(VALID, (("act", "affine", [0, 2]),), (6, 5, 2), {"b.kernel": (3, 3, 2, 3)}),
    "same-constant": Case(SAME, (("act", "constant", [0, 2]),), (6, 5, 2), {"b.bias": (6, 5, 3)}),
    "same-affine": Case(SAME, (("act", "affine", [0, 2]),), (6, 5, 2), {"b.bias": (6, 5, 3)}),
    "same-strided-without-bias": Case(STRIDED, (("act", "affine", [1]),), (6, 5, 2), {"b.bias": (3, 3, 3)}),
    "norm-after-constant": Case(NORM_AFTER, (("a", "constant", [1]),), (6, 5, 2), {"norm.mean": (3,)}),
    "norm-after-affine": Case(NORM_AFTER, (("a", "affine", [1, 3]),), (6, 5, 2), {"norm.var": (2,)}),
    "norm-before-affine": Case(NORM_BEFORE, (("act", "affine", [1]),), (6, 5, 2), {"norm.scale": (3,)}),
    "constant-through-norm-and-relu": Case(NORM_BEFORE, (("a", "constant", [1]),), (6, 5, 2), {"norm.bias": (3,)}),
    "norm-of-positions": Case(NORM_FLAT, (("a", "affine", [1, 2]),), (6, 5, 2), {"norm.mean": (60,)}),
    "average-flatten-affine": Case(AVERAGE, (("act", "affine", [0, 3]),), (6, 5, 2), {"head.kernel": (12, 3)}),
    "global-average-affine": Case(GLOBAL, (("act", "affine", [0]),), (6, 5, 2), {"head.kernel": (3, 3)}),
    "after-the-average": Case(GLOBAL, (("pool", "affine", [0]),), (6, 5, 2), {"a.kernel": (3, 3, 2, 3)}),
    "constant-through-max-pool": Case(MAXIMUM, (("act", "constant", [0, 3]),), (6, 5, 2), {"head.kernel": (12, 3)}),
    "constant-through-everything": Case(MAXIMUM, (("a", "constant", [0, 3]),), (6, 5, 2), {"head.kernel": (12, 3)}),
    "affine-after-max-pool": Case(MAXIMUM, (("max", "affine", [0, 3]),), (6, 5, 2), {"norm.mean": (2,)}),
    "dense-per-position": Case(PER_POSITION, (("act", "affine", [0, 3]),), (6, 5, 2), {"mix.kernel": (2, 3)}),
    "chain": Case(
        CHAIN, (("x", "affine", [1]), ("norm", "constant", [0, 4]), ("z", "affine", [3])), (6, 5, 2),
        {"b.kernel": (3, 3, 3, 3), "b.bias": (6, 5, 3), "norm.mean": (3,), "c.bias": (6, 5, 3)},
    ),
    "gru": Case(
        GRU(2, 6, 4), (("hidden", "homogeneous", [0, 4]),), (4, 2),
        {"cell.state.kernel": (4, 12), "cell.inputs.kernel": (2, 12), "step.kernel": (4, 1), "final.kernel": (4, 1)},
    ),
    "gated-mlp-constant": Case(DECODER, (("mlp0", "constant", [2, 7]),), (5,), {"block0.down_bias": (8,)}),
    "gated-mlp-affine": Case(DECODER, (("mlp1", "affine", [2, 7]),), (5,), {"block1.gate": (8, 7)}),
    "one-head": Case(
        DECODER, (("heads0", "affine", HEADS(1)),), (5,), {"block0.query": (8, 9), "block0.key": (8, 6)}
    ),
    "a-group-of-heads": Case(
        DECODER, (("heads0", "affine", HEADS(0, 1, 2)),), (5,), {"block0.key": (8, 3), "block0.value": (8, 3)}
    ),
    "whole-decoder": Case(
        DECODER,
        (
            ("heads0", "constant", HEADS(0, 1)), ("mlp0", "affine", [0]),
            ("heads1", "affine", HEADS(3)), ("mlp1", "affine", [8]),
        ),
        (5,),
        {"block0.key": (8, 3), "block1.key": (8, 6), "block1.down": (8, 8)},
    ),
}  # fmt: skip


@pytest.fixture(params=CASES, name="case")
def _case(request):
    return CASES[request.param]


def _params(model, seed=0):
    """Draw weights in which no array is trivially 0 or 1, as the statistics of a fresh BatchNorm are."""
    rng = np.random.default_rng(seed)
    draw = lambda path, leaf: rng.uniform(0.5, 1.5, leaf.shape) if "var" in str(path) else rng.normal(size=leaf.shape)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(draw(path, leaf) / leaf.shape[0] ** 0.5, jnp.float32),
        jax.eval_shape(model.init, jax.random.key(0)),
    )


@partial(jax.jit, static_argnums=0)
def _outputs(model, params, inputs, edits=NO_EDITS):
    return model.apply(params, inputs, edits)[0]


def _fold(model, tap, kind, replaced, seed=0):
    rng, width = np.random.default_rng(seed), model.taps[tap].width
    kept = np.setdiff1d(np.arange(width), replaced)
    intercept = rng.normal(size=len(replaced)) * (kind != "homogeneous")
    coefficients = rng.normal(size=(len(replaced), len(kept))) * (kind != "constant") / len(kept) ** 0.5
    return affine_fold(tap, kept, replaced, intercept, coefficients)


def _plan(case, params):
    return reduction_plan(Network(case.model, params), [_fold(case.model, *fold) for fold in case.folds])


def _inputs(case, dtype=np.float32):
    rng = np.random.default_rng(1)
    if isinstance(case.model, TinyDecoder):
        return rng.integers(0, case.model.tokens, (4, *case.inputs), dtype=np.int32)
    return rng.normal(size=(4, *case.inputs)).astype(dtype)


def test_the_compiled_network_is_the_patched_one(case):
    params, inputs = _params(case.model), _inputs(case)
    plan = _plan(case, params)
    assert plan.obstacles == ("",) * len(case.folds)
    patched = _outputs(case.model, params, inputs, patch(Network(case.model, params), plan))
    small, arrays = parts(compile_plan(Network(case.model, params), plan))
    assert isinstance(small, Reducible)
    outputs = _outputs(small, arrays, inputs)
    # float32 sums in another order, of up to a hundred terms of order 1
    np.testing.assert_allclose(outputs, patched, rtol=1e-5, atol=1e-5 * np.abs(patched).max())
    plain = _outputs(case.model, params, inputs)
    assert np.abs(plain - patched).max() > 1e-3 * np.abs(plain).max()


@pytest.mark.parametrize("name", ["dense-affine", "same-affine", "norm-of-positions", "chain", "gru", "whole-decoder"])
def test_in_double_precision_both_agree_to_twelve_digits(name):
    case = CASES[name]
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), _params(case.model))
        inputs, plan = _inputs(case, np.float64), _plan(case, params)
        patched = _outputs(case.model, params, inputs, patch(Network(case.model, params), plan))
        small, arrays = parts(compile_plan(Network(case.model, params), plan))
        outputs = _outputs(small, arrays, inputs)
        assert outputs.dtype == np.float64
    np.testing.assert_allclose(outputs, patched, rtol=1e-12, atol=1e-12)


def test_the_removed_units_are_neither_stored_nor_computed(case):
    params, inputs = _params(case.model), _inputs(case)
    small, arrays = parts(compile_plan(Network(case.model, params), _plan(case, params)))
    shapes = {
        ".".join(str(key.key) for key in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }
    assert {name: shapes[name] for name in case.shapes} == case.shapes
    for tap, _, replaced in case.folds:
        assert small.taps[tap].width == case.model.taps[tap].width - len(replaced)
    before, after = (
        bill(Network(*one), case.inputs, dtype=inputs.dtype) for one in ((case.model, params), (small, arrays))
    )
    assert after.parameters == sum(np.prod(shape, dtype=int) for shape in shapes.values())
    assert after.multiply_adds < before.multiply_adds
    # the smaller network's own shapes are the ones it draws, but for biases that are maps and those it did not have
    drawn = jax.eval_shape(small.init, jax.random.key(0))
    kernels = lambda tree: {p: x.shape for p, x in jax.tree_util.tree_leaves_with_path(tree) if "bias" not in str(p)}
    assert kernels(drawn) == kernels(arrays)


def test_a_reduced_network_can_be_reduced_again():
    params, inputs = _params(TWO), _inputs(CASES["dense-affine"])
    once = compile_plan(
        Network(TWO, params), reduction_plan(Network(TWO, params), [_fold(TWO, "act", "affine", [1, 4])])
    )
    plan = reduction_plan(once, [_fold(once.model, "act", "affine", [0])])
    twice = compile_plan(once, plan)
    assert twice.params["head"]["kernel"].shape == (3, 3)
    patched, _ = once.model.apply(once.params, inputs, patch(once, plan))
    # float32 sums in another order
    np.testing.assert_allclose(twice.model.apply(twice.params, inputs)[0], patched, rtol=1e-5, atol=1e-5)


def test_at_a_border_a_vector_is_right_inside_only():
    case = CASES["same-constant"]
    params, inputs = _params(SAME), _inputs(case)
    fold = constant_fold("act", 4, [0, 2], [1.5, -2.0])
    patched = SAME.apply(
        params, inputs, patch(Network(SAME, params), reduction_plan(Network(SAME, params), [fold])), record=("b",)
    )[1]["b"][0]
    folded = fold_params(Network(SAME, params), fold).params
    exact = SAME.apply(folded, inputs, record=("b",))[1]["b"][0]
    # float32 sums in another order
    np.testing.assert_allclose(exact, patched, rtol=1e-4, atol=1e-4)
    interior = params["b"]["kernel"].sum(axis=(0, 1))[np.array([0, 2])].T @ jnp.array([1.5, -2.0])
    vector = folded | {"b": folded["b"] | {"bias": params["b"]["bias"] + interior}}
    inside = SAME.apply(vector, inputs, record=("b",))[1]["b"][0]
    np.testing.assert_allclose(inside[:, 1:-1, 1:-1], patched[:, 1:-1, 1:-1], rtol=1e-4, atol=1e-4)
    error = np.abs(inside - patched)
    border = np.ones((6, 5), bool)
    border[1:-1, 1:-1] = False
    assert (error.max(axis=-1)[:, border] > 1e-2).all()


def test_the_gru_agrees_with_its_patch_at_every_step():
    case = CASES["gru"]
    params, inputs = _params(case.model), _inputs(case)
    plan = _plan(case, params)
    kept = plan.folds[0].kept
    _, patched = case.model.apply(params, inputs, patch(Network(case.model, params), plan), record=("hidden",))
    small, arrays = parts(compile_plan(Network(case.model, params), plan))
    _, states = small.apply(arrays, inputs, record=("hidden",))
    # float32 sums in another order
    np.testing.assert_allclose(states["hidden"], patched["hidden"][..., kept], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "fold", "message"),
    [
        (GRU(2, 3, 4), ("hidden", "constant", [1]), "does not pass the first step, whose state is 0"),
        (MLP(3, 4, 2, 2), ("hidden", "affine", [1]), "MLP does not tell what reads its taps"),
        (TWO, ("a", "affine", [1]), "an affine map of kept units does not pass Activation 'act'"),
        (MAXIMUM, ("act", "affine", [1]), "does not pass MaxPool 'max'"),
        (DECODER, ("heads0", "affine", [1]), "expected whole heads of 3"),
        (DECODER, ("inputs", "affine", [1]), "read through a norm"),
    ],
)
def test_what_is_not_exact_is_refused_and_can_be_patched(model, fold, message):
    params = _params(model)
    plan = reduction_plan(Network(model, params), [_fold(model, *fold)])
    assert message in plan.obstacles[0]
    with pytest.raises(ValueError, match=rf"got a fold at '{fold[0]}'.*{message}.*patch\(network, plan\)"):
        compile_plan(Network(model, params), plan)
    assert set(patch(Network(model, params), plan)) == {fold[0]}


def test_a_patch_of_a_tap_with_depth_holds_at_every_depth(rng):
    model = MLP(3, 4, 2, 2)
    params, inputs = _params(model), rng.normal(size=(5, 3)).astype(np.float32)
    plan = reduction_plan(Network(model, params), [affine_fold("hidden", [0, 2, 3], [1], [0.5], [[1.0, -1, 2]])])
    _, acts = model.apply(params, inputs, patch(Network(model, params), plan), record=("hidden",))
    expected = 0.5 + acts["hidden"][..., [0, 2, 3]] @ np.array([1.0, -1, 2])
    # float32 against float64
    np.testing.assert_allclose(acts["hidden"][..., 1], expected, rtol=1e-5, atol=1e-5)


def test_units_of_one_layer_are_folded_at_one_tap():
    params = _params(TWO)
    folds = [_fold(TWO, "a", "constant", [1]), _fold(TWO, "act", "affine", [2])]
    with pytest.raises(ValueError, match="'act' that cannot be compiled exactly: units of the same layer"):
        compile_plan(Network(TWO, params), reduction_plan(Network(TWO, params), folds))


def test_bills_by_hand():
    params = _params(TWO)
    assert bill(Network(TWO, params), (5,)) == (5 * 6 + 6 + 6 * 3 + 3, 5 * 6 + 6 * 3)
    conv = Sequential((6, 5, 2), (Convolution("a", 4, (3, 2), padding="SAME"), *HEAD))
    assert bill(Network(conv, _params(conv)), (6, 5, 2)) == (3 * 2 * 2 * 4 + 4 + 120 * 3 + 3, 30 * 4 * 12 + 120 * 3)
    gru = GRU(2, 6, 4)  # four steps of 8 x 18 products, four bits and a carry of 6
    assert bill(Network(gru, _params(gru)), (4, 2)).multiply_adds == 4 * (8 * 18 + 6) + 6
    mlp = MLP(3, 5, 3, 2)
    assert bill(Network(mlp, _params(mlp)), (3,)).multiply_adds == 3 * 5 + 2 * 25 + 5 * 2


def test_latency_is_a_number_of_seconds(rng):
    seconds = latency(Network(TWO, _params(TWO)), rng.normal(size=(8, 5)).astype(np.float32), repeats=3)
    assert isinstance(seconds, float)
    assert seconds > 0
