"""Laws every model obeys; join by adding a row to `MODELS`."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.interventions import Add, Interchange
from abstraction.models import GRU, MLP, Activation, Dense, Model, Sequential


class Case(NamedTuple):
    model: Model
    inputs: tuple[int, ...]
    resumes: tuple[str, ...]


MODELS = {
    "mlp": Case(MLP(5, 7, 3, 4), (5,), ("hidden", "preactivation")),
    "mlp-one-layer": Case(MLP(5, 7, 1, 4), (5,), ("hidden", "preactivation")),
    "gru": Case(GRU(2, 6, 4), (4, 2), ("hidden",)),
    "gru-one-step": Case(GRU(3, 5, 1), (1, 3), ("hidden",)),
    "sequential": Case(
        Sequential((5,), (Dense("first", 7), Activation("hidden", "tanh"), Dense("last", 4))), (5,), ("hidden", "first")
    ),
    "mlp-tanh": Case(MLP(3, 4, 2, 2, "tanh"), (3,), ("hidden",)),
}
N = 6
# float32 sums in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(params=MODELS, name="case")
def _case(request):
    return MODELS[request.param]


def _runs(case):
    params = case.model.init(jax.random.key(0))
    base, source = np.random.default_rng(0).standard_normal((2, N, *case.inputs)).astype(np.float32)
    return params, base, source


def _record(case, params, inputs):
    return case.model.apply(params, inputs, record=tuple(case.model.taps))


def test_recording_changes_nothing(case):
    params, base, _ = _runs(case)
    chex.assert_trees_all_equal(case.model.apply(params, base)[0], _record(case, params, base)[0])


def test_recorded_shapes_are_those_of_the_taps(case):
    params, base, _ = _runs(case)
    _, acts = _record(case, params, base)
    assert set(acts) == set(case.model.taps)
    for name, tap in case.model.taps.items():
        assert acts[name].shape == (*_depth(tap), N, tap.width)


def test_interchange_with_itself_is_identity(case):
    params, base, _ = _runs(case)
    outputs, acts = _record(case, params, base)
    for name in case.model.taps:
        edit = Interchange(acts[name], _weight(case.model.taps[name], 1.0))
        patched, _ = case.model.apply(params, base, {name: edit})
        np.testing.assert_allclose(patched, outputs, **CLOSE)


def test_weight_zero_is_identity_exactly(case):
    params, base, source = _runs(case)
    outputs, _ = case.model.apply(params, base)
    _, acts = _record(case, params, source)
    for name, tap in case.model.taps.items():
        patched, _ = case.model.apply(params, base, {name: Interchange(acts[name], _weight(tap, 0.0))})
        np.testing.assert_array_equal(patched, outputs)


def test_weight_one_on_a_whole_tap_is_downstream_of_the_source_exactly(case):
    params, base, source = _runs(case)
    outputs, acts = _record(case, params, source)
    for name, tap in case.model.taps.items():
        patched, recorded = case.model.apply(
            params, base, {name: Interchange(acts[name], _weight(tap, 1.0))}, record=(name,)
        )
        np.testing.assert_array_equal(recorded[name], acts[name])
        np.testing.assert_allclose(patched, outputs, **CLOSE)


def test_records_hold_values_after_their_edit(case):
    params, base, _ = _runs(case)
    for name, tap in case.model.taps.items():
        offset = jnp.ones((*_depth(tap), 1, tap.width))
        _, plain = case.model.apply(params, base, record=(name,))
        _, edited = case.model.apply(params, base, {name: Add(offset)}, record=(name,))
        first = (lambda a: a) if tap.depth is None else (lambda a: a[0])
        np.testing.assert_allclose(first(edited[name]), first(plain[name]) + 1.0, rtol=1e-6)


def test_resume_from_a_recorded_state_gives_the_outputs_of_apply(case):
    params, base, _ = _runs(case)
    outputs, acts = _record(case, params, base)
    for name in case.resumes:
        states, tap = acts[name], case.model.taps[name]
        run = lambda d, h, name=name, states=states: case.model.resume(params, name, d, h, inputs=base, states=states)
        resumed = jax.vmap(run)(np.arange(tap.depth or 1), _stack(tap, states))
        np.testing.assert_allclose(resumed, np.broadcast_to(outputs, resumed.shape), **CLOSE)


def test_resume_from_an_edited_state_gives_the_outputs_of_the_edit(case):
    params, base, source = _runs(case)
    (_, own), (_, other) = _record(case, params, base), _record(case, params, source)
    for name in case.resumes:
        tap = case.model.taps[name]
        for depth in range(tap.depth or 1):
            weight = jax.nn.one_hot(depth, tap.depth or 1)[:, None, None] * jnp.ones(tap.width)
            weight = weight[0] if tap.depth is None else weight
            edited, _ = case.model.apply(params, base, {name: Interchange(other[name], weight)})
            state = _stack(tap, other[name])[depth]
            resumed = case.model.resume(params, name, jnp.int32(depth), state, inputs=base, states=own[name])
            np.testing.assert_allclose(resumed, edited, **CLOSE)


def test_resume_under_jit_compiles_once_for_all_depths(case):
    params, base, _ = _runs(case)
    _, acts = _record(case, params, base)
    traces = []

    @jax.jit
    def resume(depth, state):
        traces.append(1)
        return case.model.resume(params, case.resumes[0], depth, state, inputs=base, states=acts[case.resumes[0]])

    tap = case.model.taps[case.resumes[0]]
    for depth in range(tap.depth or 1):
        resume(jnp.int32(depth), _stack(tap, acts[case.resumes[0]])[depth])
    assert len(traces) == 1


def test_edits_differentiate(case):
    params, base, _ = _runs(case)
    name = case.resumes[-1]
    tap = case.model.taps[name]
    offset = jnp.zeros((*_depth(tap), 1, tap.width))
    gradient = jax.grad(lambda o: case.model.apply(params, base, {name: Add(o)})[0].sum())(offset)
    step = 1e-2
    direction = jax.random.normal(jax.random.key(1), offset.shape)
    value = lambda o: float(case.model.apply(params, base, {name: Add(o)})[0].sum())
    numeric = (value(step * direction) - value(-step * direction)) / (2 * step)
    # a finite difference across ReLU kinks in float32
    np.testing.assert_allclose((gradient * direction).sum(), numeric, rtol=5e-2, atol=5e-2)


def test_unknown_taps_are_refused_by_name(case):
    params, base, _ = _runs(case)
    with pytest.raises(ValueError, match=r"got a record of \['nope'\], expected tap names among .*hidden"):
        case.model.apply(params, base, record=("nope",))
    with pytest.raises(ValueError, match=r"got an edit of \['nope'\]"):
        case.model.apply(params, base, {"nope": Add(jnp.zeros(1))})


def test_edits_without_the_depth_axis_are_refused(case):
    if case.model.taps["hidden"].depth is None:
        pytest.skip("the tap occurs once")
    params, base, _ = _runs(case)
    with pytest.raises(ValueError, match="leading depth axis"):
        case.model.apply(params, base, {"hidden": Add(jnp.zeros((99, 1, case.model.taps["hidden"].width)))})


def test_edits_of_another_width_are_refused(case):
    params, base, _ = _runs(case)
    tap = case.model.taps["hidden"]
    with pytest.raises(ValueError, match="'hidden'"):
        case.model.apply(params, base, {"hidden": Add(jnp.zeros((*_depth(tap), 1, tap.width + 1)))})


def test_models_hash_and_compare_by_value(case):
    twin = dataclasses.replace(case.model)
    assert twin == case.model
    assert hash(twin) == hash(case.model)


def _depth(tap):
    return () if tap.depth is None else (tap.depth,)


def _stack(tap, states):
    """Return states with a depth axis, of one where the tap has none."""
    return states[None] if tap.depth is None else states


def _weight(tap, value):
    return jnp.full((*(() if tap.depth is None else (tap.depth, 1)), tap.width), value)
