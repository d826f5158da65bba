"""Folds: the algebra by hand, what crosses what, and everything that is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from once import once, parts

from abstraction.interventions import Set
from abstraction.interventions.edits import Substitute
from abstraction.models import Activation, Consumer, Dense, Network, Sequential, Tap
from abstraction.models.layers import BatchNorm, Convolution, Flatten, MaxPool
from abstraction.reduction.folding import affine_fold, constant_fold, fold_params, obstacle

MODEL = Sequential((4,), (Dense("first", 3), Activation("hidden"), Dense("head", 2)))


def _params():
    params = MODEL.init(jax.random.key(0))
    return params | {"head": {"kernel": jnp.array([[1.0, 2], [3, 4], [5, 6]]), "bias": jnp.array([10.0, 20])}}


def test_constants_go_into_the_bias_by_hand():
    _, params = parts(fold_params(Network(MODEL, _params()), constant_fold("hidden", 3, [1], [0.5])))
    np.testing.assert_array_equal(params["head"]["kernel"], [[1, 2], [0, 0], [5, 6]])
    np.testing.assert_array_equal(params["head"]["bias"], [11.5, 22])


def test_affine_maps_go_into_the_rows_of_kept_units_by_hand():
    _, params = parts(fold_params(Network(MODEL, _params()), affine_fold("hidden", [0, 2], [1], [0.5], [[2.0, -1]])))
    # rows 0 and 2 gain 2 and -1 times row 1
    np.testing.assert_array_equal(params["head"]["kernel"], [[7, 10], [0, 0], [2, 2]])
    np.testing.assert_array_equal(params["head"]["bias"], [11.5, 22])


def test_folding_leaves_the_given_params_as_they_are():
    params = _params()
    fold_params(Network(MODEL, params), constant_fold("hidden", 3, [1], [0.5]))
    np.testing.assert_array_equal(params["head"]["kernel"], _params()["head"]["kernel"])


def test_a_folded_network_does_not_depend_on_the_replaced_units(rng):
    fold = affine_fold("hidden", [0, 2], [1], [0.5], [[2.0, -1]])
    _, params = parts(fold_params(Network(MODEL, _params()), fold))
    inputs = rng.standard_normal((6, 4)).astype(np.float32)
    outputs, _ = MODEL.apply(params, inputs)
    moved, _ = MODEL.apply(
        params, inputs, {"hidden": once(Set(np.full(1, 100, np.float32), np.array([0, 1, 0], np.float32)))}
    )
    np.testing.assert_array_equal(moved, outputs)


def test_params_keep_their_dtype_and_their_library():
    host = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), _params())
    for params in (_params(), host):
        _, folded = parts(fold_params(Network(MODEL, params), constant_fold("hidden", 3, [1], [0.5])))
        kinds = jax.tree.map(lambda leaf: (type(leaf), leaf.dtype), folded)
        assert kinds == jax.tree.map(lambda leaf: (type(leaf), leaf.dtype), params)


def test_a_kernel_stored_output_first_with_heads_needs_its_axes_only(rng, unchecked):
    kernel = rng.normal(size=(5, 2, 3))  # outputs, heads, units of a head

    class Attention:
        taps = MODEL.taps | {"heads": Tap("heads", 6)}
        consumers = staticmethod(lambda tap: (Consumer(("out",), ("bias",), axes=(1, 2)),))

    fold = affine_fold("heads", [0, 1, 2], [3, 4, 5], rng.normal(size=3), rng.normal(size=(3, 3)))
    _, params = parts(fold_params(Network(Attention(), {"out": kernel, "bias": np.zeros(5)}), fold))
    flat = kernel.reshape(5, 6)
    np.testing.assert_allclose(params["bias"], flat[:, 3:] @ fold.intercept, rtol=1e-12)
    np.testing.assert_allclose(params["out"][:, 0], flat[:, :3] + flat[:, 3:] @ fold.coefficients, rtol=1e-12)
    assert (params["out"][:, 1] == 0).all()


def test_a_substitution_is_the_affine_map_at_every_position(rng):
    fold = affine_fold("t", [0, 3], [1, 2], rng.normal(size=2), rng.normal(size=(2, 2)))
    values = rng.standard_normal((5, 3, 4)).astype(np.float32)
    after = Substitute(fold.kept, fold.replaced, fold.intercept, fold.coefficients)(jnp.asarray(values))
    np.testing.assert_array_equal(after[..., [0, 3]], values[..., [0, 3]])
    expected = fold.intercept + values[..., [0, 3]] @ fold.coefficients.T
    # float32 against float64
    np.testing.assert_allclose(after[..., [1, 2]], expected, rtol=1e-5, atol=1e-5)


def test_a_constant_substitution_is_a_set_edit_exactly(rng):
    fold = constant_fold("t", 4, [1, 2], [0.25, -3.0])
    values = jnp.asarray(rng.standard_normal((5, 4)), jnp.float32)
    edit = Set(np.array([0, 0.25, -3.0, 0], np.float32), np.array([0, 1, 1, 0], np.float32))
    after = Substitute(fold.kept, fold.replaced, fold.intercept, fold.coefficients)(values)
    np.testing.assert_array_equal(after, edit(values))


def test_an_affine_fold_with_zero_coefficients_is_a_constant_fold():
    one, other = (
        constant_fold("t", 4, [1, 2], [0.25, -3.0]),
        affine_fold("t", [0, 3], [1, 2], [0.25, -3.0], np.zeros((2, 2))),
    )
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for leaf, twin in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(leaf, twin)


def test_changing_the_values_of_a_substitution_compiles_nothing():
    traces = []

    @jax.jit
    def run(edit, activation):
        traces.append(1)
        return edit(activation)

    for kept, replaced in (([0, 1], [2]), ([1, 2], [0])):
        fold = affine_fold("t", kept, replaced, [1.0], [[1.0, 2.0]])
        run(Substitute(fold.kept, fold.replaced, fold.intercept, fold.coefficients), jnp.ones((2, 3)))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("kept", "replaced", "intercept", "coefficients", "message"),
    [
        ([1, 0], [2], [0.0], [[0.0, 0]], "expected a sorted list of integers"),
        ([0, 0], [1], [0.0], [[0.0, 0]], "each once"),
        ([0, 1], [1], [0.0], [[0.0, 0]], "each in one of them"),
        ([0, 3], [1], [0.0], [[0.0, 0]], "expected 0 to 2"),
        ([0, 1], [-1], [0.0], [[0.0, 0]], "expected 0 to 2"),
        ([], [0, 1], [0.0, 0], np.zeros((2, 0)), "got no kept unit at 't'"),
        ([0, 1], [2], [0.0, 1], [[0.0, 0]], r"shapes \(\(2,\), \(1, 2\)\) at 't', expected \(\(1,\), \(1, 2\)\)"),
        ([0, 1], [2], [np.nan], [[0.0, 0]], "not finite"),
        ([0, 1], [2], [0.0], [[np.inf, 0]], "not finite"),
        ([True, True], [False], [0.0], [[0.0, 0]], "expected a sorted list of integers"),
    ],
)
def test_folds_that_are_none_are_refused(kept, replaced, intercept, coefficients, message, unchecked):
    with pytest.raises(ValueError, match=message):
        affine_fold("t", kept, replaced, intercept, coefficients)


def test_an_index_beyond_the_width_is_refused():
    with pytest.raises(ValueError, match="expected 0 to 2, each in one of them"):
        constant_fold("t", 3, [3], [0.0])


def test_a_fold_that_replaces_nothing_changes_nothing():
    _, params = parts(fold_params(Network(MODEL, _params()), constant_fold("hidden", 3, [], np.zeros(0))))
    jax.tree.map(np.testing.assert_array_equal, params, _params())


NORM = Sequential((3,), (Dense("a", 3), BatchNorm("norm"), Dense("head", 2)))
POOL = Sequential((4, 4, 1), (Convolution("a", 3, (1, 1)), MaxPool("max"), Flatten("flat"), Dense("head", 2)))
AFFINE = ([0, 2], [1], [0.5], [[2.0, -1]])


@pytest.mark.parametrize(
    ("model", "fold", "message"),
    [
        (MODEL, affine_fold("first", *AFFINE), "an affine map of kept units does not pass Activation 'hidden'"),
        (POOL, affine_fold("a", *AFFINE), "an affine map of kept units does not pass MaxPool 'max'"),
        (MODEL, constant_fold("hidden", 4, [1], [1.0]), "got a fold of 4 units at 'hidden', expected one of 3"),
        (MODEL, constant_fold("nope", 3, [1], [1.0]), "expected a tap among"),
        (MODEL, constant_fold("head", 2, [1], [1.0]), "read by the output alone"),
    ],
)
def test_folds_that_are_not_exact_are_refused_and_say_why(model, fold, message):
    params = model.init(jax.random.key(0))
    assert message in obstacle(Network(model, params), fold)
    with pytest.raises(ValueError, match=message):
        fold_params(Network(model, params), fold)


@pytest.mark.parametrize(
    ("model", "fold"),
    [
        (MODEL, affine_fold("hidden", *AFFINE)),
        (MODEL, constant_fold("first", 3, [1], [1.0])),
        (POOL, constant_fold("a", 3, [1], [1.0])),
        (POOL, affine_fold("max", *AFFINE)),
        (NORM, affine_fold("a", *AFFINE)),
    ],
)
def test_exact_folds_meet_no_obstacle(model, fold):
    assert obstacle(Network(model, model.init(jax.random.key(0))), fold) == ""


def test_a_parent_that_a_norm_scales_to_zero_is_lost():
    params = NORM.init(jax.random.key(0))
    dead = params | {"norm": params["norm"] | {"scale": jnp.array([1.0, 1.0, 0.0])}}
    assert "kept units [2] are lost on the way to head.kernel" in obstacle(
        Network(NORM, dead), affine_fold("a", *AFFINE)
    )
    # a fold that does not read the lost unit is exact
    assert obstacle(Network(NORM, dead), affine_fold("a", [0, 2], [1], [0.5], [[2.0, 0]])) == ""
