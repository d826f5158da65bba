"""Laws every model obeys; join by adding a row to `MODELS`."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_families import FAMILIES, drawn, padded

from abstraction.interventions import Add, Interchange
from abstraction.models import (
    GRU,
    MLP,
    Activation,
    Decoder,
    Dense,
    Model,
    Recordable,
    Sequential,
    TokenView,
    prompts_at,
    unrolled_decoder,
)

N, T = 6, 5


class Case(NamedTuple):
    """A model and what the laws need to know of it.

    Attributes:
      model: the model.
      inputs: draws a batch of N; what is no number, padding, is the same in all batches.
      resumes: taps it resumes from.
      bypassed: taps that do not carry everything, so that outputs do not follow from them.
      tokens: taps with an axis of T tokens.
      params: draws parameters.
    """

    model: Model
    inputs: Callable[[np.random.Generator], Any]
    resumes: tuple[str, ...]
    bypassed: frozenset[str] = frozenset()
    tokens: frozenset[str] = frozenset()
    params: Callable[[Any], Any] = lambda model: jax.jit(model.init)(jax.random.key(0))


def _normal(*shape):
    return lambda rng: rng.standard_normal((N, *shape)).astype(np.float32)


def _decoder(family, **options):
    model = Decoder(FAMILIES[family], **options)
    tokens = frozenset(model.taps) - {"logits"}
    bypassed = tokens - {"block_input", "block_output", "final_input"}
    draw = lambda rng: padded(rng, N, T, 3)
    return Case(model, draw, ("block_input", "block_output"), bypassed, tokens, drawn)


def _token_view(family, window):
    model = TokenView(Decoder(FAMILIES[family], answers=((1,), (4, 7), (2,)), rest=True), window)
    draw = lambda rng: prompts_at(padded(rng, N, T, 3))
    return Case(model, draw, ("block_output",), params=lambda view: drawn(view.decoder))


def _unrolled(family, *drops):
    """A decoder whose blocks differ: each drop keeps some units of a tap."""
    decoder = Decoder(FAMILIES[family])
    model, params = unrolled_decoder(decoder, drawn(decoder))
    for tap, kept in drops:
        model, params = model.narrowed(params, tap, np.array(kept))
    tokens = frozenset(model.taps) - {"logits"}
    resumes = tuple(name for name in model.taps if name.startswith("block_"))
    draw = lambda rng: padded(rng, N, T, 3)
    return Case(model, draw, resumes, tokens - {*resumes, "final_input"}, tokens, lambda _: params)


MODELS = {
    "mlp": Case(MLP(5, 7, 3, 4), _normal(5), ("hidden", "preactivation")),
    "mlp-one-layer": Case(MLP(5, 7, 1, 4), _normal(5), ("hidden", "preactivation")),
    "gru": Case(GRU(2, 6, 4), _normal(4, 2), ("hidden",)),
    "gru-one-step": Case(GRU(3, 5, 1), _normal(1, 3), ("hidden",)),
    "sequential": Case(
        Sequential((5,), (Dense("first", 7), Activation("hidden", "tanh"), Dense("last", 4))),
        _normal(5),
        ("hidden", "first"),
    ),
    "mlp-tanh": Case(MLP(3, 4, 2, 2, "tanh"), _normal(3), ("hidden",)),
    "decoder-gpt2": _decoder("gpt2"),
    "decoder-llama": _decoder("llama", answers=((1,), (4, 7), (2,))),
    "decoder-gemma2": _decoder("gemma2"),
    "unrolled": _unrolled(
        "llama", ("head_output1", [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15]), ("mlp_product2", [1, 5])
    ),
    "token-view": _token_view("gemma2", 1),
    "token-view-window": _token_view("llama", 2),
}
# float32 sums in another order
CLOSE = {"rtol": 1e-5, "atol": 5e-6}  # float32 outputs of order 2, through up to three blocks, sums in another order


REPEATED = ("decoder-llama", "mlp-tanh")
"""Whose laws the others cover."""


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow) if name in REPEATED else name for name in MODELS], name="case"
)
def _case(request):
    return MODELS[request.param]


def _runs(case):
    rng = np.random.default_rng(0)
    return case.params(case.model), case.inputs(rng), case.inputs(rng)


@partial(jax.jit, static_argnums=0)
def _run(model, params, inputs, edits):
    return model.apply(params, inputs, edits, tuple(model.taps))


def _record(case, params, inputs):
    return _run(case.model, params, inputs, {})


def _each_tap(case, params, inputs, edit):
    """Edit every tap by itself, others by nothing: outputs and records of each, in one program.

    `edit` makes an edit of a tap's name and how much of it there is, 0 or 1.
    """
    names = tuple(case.model.taps)

    @jax.jit
    @jax.vmap
    def run(amounts):
        edits = {name: edit(name, amount) for name, amount in zip(names, amounts, strict=True)}
        return case.model.apply(params, inputs, edits, names)

    outputs, recorded = run(jnp.eye(len(names)))
    return {name: (outputs[index], recorded[name][index]) for index, name in enumerate(names)}


def test_recording_changes_nothing(case):
    params, base, _ = _runs(case)
    recorded = case.model.apply(params, base, record=tuple(case.model.taps))
    chex.assert_trees_all_equal(case.model.apply(params, base)[0], recorded[0])


def test_recorded_shapes_are_those_of_the_taps(case):
    params, base, _ = _runs(case)
    _, acts = _record(case, params, base)
    assert set(acts) == set(case.model.taps)
    for name, tap in case.model.taps.items():
        assert acts[name].shape == (*_depth(tap), N, *((T,) if name in case.tokens else ()), tap.width)


def test_interchange_with_itself_is_identity(case):
    params, base, _ = _runs(case)
    outputs, acts = _record(case, params, base)
    edit = lambda name, amount: Interchange(acts[name], _weight(case.model.taps[name], amount))
    for patched, _ in _each_tap(case, params, base, edit).values():
        np.testing.assert_allclose(patched, outputs, **CLOSE)


def test_weight_zero_is_identity_exactly(case):
    params, base, source = _runs(case)
    (outputs, own), (_, other) = _record(case, params, base), _record(case, params, source)
    edits = lambda acts: {name: Interchange(acts[name], _weight(tap, 0.0)) for name, tap in case.model.taps.items()}
    edited, _ = _run(case.model, params, base, edits(other))
    np.testing.assert_array_equal(edited, _run(case.model, params, base, edits(own))[0])
    # to the last bit only where the compiler fuses edits without changing the sums beside them
    np.testing.assert_allclose(edited, outputs, **CLOSE if case.tokens else {"rtol": 0})


def test_weight_one_on_a_whole_tap_is_downstream_of_the_source_exactly(case):
    params, base, source = _runs(case)
    outputs, acts = _record(case, params, source)
    edit = lambda name, amount: Interchange(acts[name], _weight(case.model.taps[name], amount))
    for name, (patched, recorded) in _each_tap(case, params, base, edit).items():
        np.testing.assert_array_equal(recorded, acts[name])
        if name not in case.bypassed:
            np.testing.assert_allclose(patched, outputs, **CLOSE)
        else:
            assert not np.allclose(patched, outputs, rtol=1e-2), f"{name} is not bypassed"


def test_records_hold_values_after_their_edit(case):
    params, base, _ = _runs(case)
    _, plain = _record(case, params, base)
    edit = lambda name, amount: Add(amount * jnp.ones((*_depth(case.model.taps[name]), 1, case.model.taps[name].width)))
    for name, (_, edited) in _each_tap(case, params, base, edit).items():
        first = (lambda a: a) if case.model.taps[name].depth is None else (lambda a: a[0])
        np.testing.assert_allclose(first(edited), first(plain[name]) + 1.0, **CLOSE | {"atol": 1e-5})


def test_resume_from_a_recorded_state_gives_the_outputs_of_apply(case):
    params, base, _ = _runs(case)
    outputs, acts = _record(case, params, base)
    for name in case.resumes:
        states, tap = acts[name], case.model.taps[name]
        inputs = _resumable(case, params, base)
        run = lambda d, h, name=name, inputs=inputs, states=states: case.model.resume(
            params, name, d, h, inputs=inputs, states=states
        )
        resumed = jax.vmap(run)(np.arange(tap.depth or 1), _stack(tap, states))
        np.testing.assert_allclose(resumed, np.broadcast_to(outputs, resumed.shape), **CLOSE)


def test_resume_from_an_edited_state_gives_the_outputs_of_the_edit(case):
    params, base, source = _runs(case)
    (_, own), (_, other) = _record(case, params, base), _record(case, params, source)
    inputs = _resumable(case, params, base)
    apply = jax.jit(lambda edits: case.model.apply(params, base, edits))
    resume = jax.jit(
        lambda name, depth, state, states: case.model.resume(params, name, depth, state, inputs=inputs, states=states),
        static_argnums=0,
    )
    for name in case.resumes:
        tap = case.model.taps[name]
        for depth in range(tap.depth or 1):
            weight = jax.nn.one_hot(depth, tap.depth or 1)[:, None, None] * jnp.ones(tap.width)
            weight = weight[0] if tap.depth is None else weight
            edited, _ = apply({name: Interchange(other[name], weight)})
            state = _stack(tap, other[name])[depth]
            resumed = resume(name, jnp.int32(depth), state, own[name])
            np.testing.assert_allclose(resumed, edited, **CLOSE)


def test_resume_under_jit_compiles_once_for_all_depths(case):
    params, base, _ = _runs(case)
    _, acts = _record(case, params, base)
    inputs, traces = _resumable(case, params, base), []

    @jax.jit
    def resume(depth, state):
        traces.append(1)
        return case.model.resume(params, case.resumes[0], depth, state, inputs=inputs, states=acts[case.resumes[0]])

    tap = case.model.taps[case.resumes[0]]
    for depth in range(tap.depth or 1):
        resume(jnp.int32(depth), _stack(tap, acts[case.resumes[0]])[depth])
    assert len(traces) == 1


def test_edits_differentiate(case):
    params, base, _ = _runs(case)
    name = case.resumes[-1]
    tap = case.model.taps[name]
    offset = jnp.zeros((*_depth(tap), 1, tap.width))
    step = 1e-2
    direction = jax.random.normal(jax.random.key(1), offset.shape)
    value = lambda o: case.model.apply(params, base, {name: Add(o)})[0].sum()
    gradient, value = jax.jit(jax.grad(value))(offset), jax.jit(value)
    numeric = (float(value(step * direction)) - float(value(-step * direction))) / (2 * step)
    # a finite difference across ReLU kinks in float32
    np.testing.assert_allclose((gradient * direction).sum(), numeric, rtol=5e-2, atol=5e-2)


def test_unknown_taps_are_refused_by_name(case):
    params, base, _ = _runs(case)
    with pytest.raises(ValueError, match=r"got a record of \['nope'\], expected tap names among .*" + case.resumes[0]):
        case.model.apply(params, base, record=("nope",))
    with pytest.raises(ValueError, match=r"got an edit of \['nope'\]"):
        case.model.apply(params, base, {"nope": Add(jnp.zeros(1))})


def test_edits_without_the_depth_axis_are_refused(case):
    name = case.resumes[0]
    if case.model.taps[name].depth is None:
        pytest.skip("the tap occurs once")
    params, base, _ = _runs(case)
    with pytest.raises(ValueError, match="leading depth axis"):
        case.model.apply(params, base, {name: Add(jnp.zeros((99, 1, case.model.taps[name].width)))})


def test_edits_of_another_width_are_refused(case):
    params, base, _ = _runs(case)
    name = case.resumes[0]
    tap, ones = case.model.taps[name], (1, 1) if name in case.tokens else (1,)
    with pytest.raises(ValueError, match=f"'{name}'"):
        case.model.apply(params, base, {name: Add(jnp.zeros((*_depth(tap), *ones, tap.width + 1)))})


def test_models_hash_and_compare_by_value(case):
    twin = dataclasses.replace(case.model)
    assert twin == case.model
    assert hash(twin) == hash(case.model)


def _resumable(case, params, inputs):
    """Return a batch as `resume` wants it."""
    return case.model.record(params, inputs, ())[0] if isinstance(case.model, Recordable) else inputs


def _depth(tap):
    return () if tap.depth is None else (tap.depth,)


def _stack(tap, states):
    """Return states with a depth axis, of one where the tap has none."""
    return states[None] if tap.depth is None else states


def _weight(tap, value):
    return jnp.full((*(() if tap.depth is None else (tap.depth, 1)), tap.width), value)
