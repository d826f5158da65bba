"""Laws every model obeys; join by adding a row to `MODELS`."""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_families import FAMILIES, LATER, drawn, padded

from abstraction.interventions import Add, Interchange
from abstraction.models import (
    GRU,
    MLP,
    Activation,
    Decoder,
    Dense,
    Model,
    PlaceView,
    Sequential,
    TokenView,
    placed,
    prompts_at,
)
from abstraction.models.base import Recordable
from abstraction.models.decoder_unrolled import unrolled_decoder

N, T = 6, 5


@functools.cache
def _initial(model):
    return jax.jit(model.init)(jax.random.key(0))


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
    params: Callable[[Any], Any] = _initial

    @property
    def some(self):
        """The name of a tap, from which the model resumes if it does."""
        return self.resumes[-1] if self.resumes else "block_output"


QWEN3 = {"qwen3": dataclasses.replace(FAMILIES["llama"], rope_scaling=None, query_key_norms=True)}


def _normal(*shape):
    return lambda rng: rng.standard_normal((N, *shape)).astype(np.float32)


def _decoder(family, **options):
    model = Decoder((FAMILIES | LATER | QWEN3)[family], **options)
    tokens = frozenset(model.taps) - {"logits"}
    bypassed = tokens - {"block_input", "block_output", "final_input"}
    draw = lambda rng: padded(rng, N, T, 3)
    return Case(model, draw, ("block_input", "block_output"), bypassed, tokens, drawn)


def _named(rng):
    """Draw prompts and name two tokens of each."""
    tokens = padded(rng, N, T, 3)
    first = (tokens >= 0).argmax(axis=1)
    return tokens, {"early": first + rng.integers(0, 2, N), "last": np.full(N, T - 1)}


def _token_view(family, window, named=False):
    names = {"positions": ("early", "last")} if named else {}
    model = TokenView(Decoder(FAMILIES[family], answers=((1,), (4, 7), (2,)), rest=True), window, **names)
    draw = (lambda rng: prompts_at(*_named(rng))) if named else lambda rng: prompts_at(padded(rng, N, T, 3))
    bypassed = frozenset(model.taps) - {"block_output", "logits"}
    # every tap of a block resumes: tests/models/test_places.py
    return Case(
        model,
        draw,
        ("key", "block_output") if named else ("block_output",),
        bypassed,
        params=lambda view: drawn(view.decoder),
    )


def _place_view(family):
    model = PlaceView(Decoder(FAMILIES[family]), ("early", "last"))
    bypassed = frozenset(model.taps) - {"block_output", "final_input", "logits"}
    return Case(model, lambda rng: placed(*_named(rng)), (), bypassed, params=lambda view: drawn(view.model))


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
    "decoder-gpt_neox": _decoder("gpt_neox"),
    "decoder-qwen3": _decoder("qwen3"),
    "decoder-gemma3": _decoder("gemma3"),
    "unrolled": _unrolled(
        "llama", ("head_output1", [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15]), ("mlp_product2", [1, 5])
    ),
    "token-view": _token_view("gemma2", 1),
    "token-view-window": _token_view("llama", 2),
    "token-view-places": _token_view("llama", T, named=True),
    "place-view": _place_view("qwen2"),
}
# float32 sums in another order
CLOSE = {"rtol": 1e-5, "atol": 5e-6}  # float32 outputs of order 2, through up to three blocks, sums in another order


REPEATED = ("decoder-llama", "mlp-tanh", "token-view-window", "token-view-places")  # tests/models/test_places.py
"""Whose laws the others cover."""
LONG = ("decoder-gpt_neox", "decoder-qwen3", "decoder-gemma3")
"""Parallel blocks and norms of queries: together more than ten seconds."""


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow) if name in (*REPEATED, *LONG) else name for name in MODELS],
    name="case",
)
def _case(request):
    return MODELS[request.param]


def _runs(case):
    rng = np.random.default_rng(0)
    return case.params(case.model), case.inputs(rng), case.inputs(rng)


@partial(jax.jit, static_argnums=0)
def _run(model, params, inputs, edits):
    return model.apply(params, inputs, edits, tuple(model.taps))


@partial(jax.jit, static_argnums=(0, 1))
def _resume(model, name, params, inputs, states, depth, state):
    return model.resume(params, name, depth, state, inputs=inputs, states=states)


def _record(case, params, inputs):
    return _run(case.model, params, inputs, {})


def _interchange(tap, amount, source):
    return Interchange(source, _weight(tap, amount))


def _add(tap, amount, source):
    return Add(amount * jnp.ones((tap.depth, 1, tap.width)))


@partial(jax.jit, static_argnums=(0, 1))
@partial(jax.vmap, in_axes=(None, None, None, None, None, 0))
def _edited(model, edit, params, inputs, sources, amounts):
    """Edit every tap of a model, each by its own amount; one program serves all laws of a kind of edit."""
    names = tuple(model.taps)
    edits = {name: edit(model.taps[name], amount, sources[name]) for name, amount in zip(names, amounts, strict=True)}
    return model.apply(params, inputs, edits, names)


def _each_tap(case, params, inputs, edit, sources):
    """Edit every tap by itself, others by nothing: outputs and records of each; last, no tap at all."""
    names = tuple(case.model.taps)
    amounts = jnp.eye(len(names) + 1, len(names))
    outputs, recorded = _edited(case.model, edit, params, inputs, sources, amounts)
    nothing = (outputs[-1], {name: values[-1] for name, values in recorded.items()})
    return {name: (outputs[index], recorded[name][index]) for index, name in enumerate(names)}, nothing


def test_recording_changes_nothing(case):
    params, base, _ = _runs(case)
    plain, nothing = jax.jit(case.model.apply)(params, base)
    assert nothing == {}
    np.testing.assert_allclose(_record(case, params, base)[0], plain, **CLOSE)


def test_recorded_shapes_are_those_of_the_taps(case):
    params, base, _ = _runs(case)
    _, acts = _record(case, params, base)
    assert set(acts) == set(case.model.taps)
    for name, tap in case.model.taps.items():
        assert acts[name].shape == (tap.depth, N, *((T,) if name in case.tokens else ()), tap.width)


def test_interchange_with_itself_is_identity(case):
    params, base, _ = _runs(case)
    outputs, acts = _record(case, params, base)
    each, _ = _each_tap(case, params, base, _interchange, acts)
    for patched, _ in each.values():
        np.testing.assert_allclose(patched, outputs, **CLOSE)


def test_weight_zero_is_identity_whatever_the_source(case):
    params, base, source = _runs(case)
    (outputs, own), (_, other) = _record(case, params, base), _record(case, params, source)
    edited, same = (_each_tap(case, params, base, _interchange, acts)[1] for acts in (other, own))
    np.testing.assert_array_equal(edited[0], same[0])
    # not to the last bit: a compiler that fuses an edit may add beside it in another order
    np.testing.assert_allclose(edited[0], outputs, **CLOSE)


def test_weight_one_on_a_whole_tap_is_downstream_of_the_source_exactly(case):
    params, base, source = _runs(case)
    outputs, acts = _record(case, params, source)
    each, _ = _each_tap(case, params, base, _interchange, acts)
    for name, (patched, recorded) in each.items():
        np.testing.assert_array_equal(recorded, acts[name])
        if name not in case.bypassed:
            np.testing.assert_allclose(patched, outputs, **CLOSE)
        else:
            assert not np.allclose(patched, outputs, rtol=1e-2), f"{name} is not bypassed"


def test_records_hold_values_after_their_edit(case):
    params, base, _ = _runs(case)
    _, plain = _record(case, params, base)
    each, _ = _each_tap(case, params, base, _add, plain)
    for name, (_, edited) in each.items():
        np.testing.assert_allclose(edited[0], plain[name][0] + 1.0, **CLOSE | {"atol": 1e-5})


def test_resume_from_a_recorded_state_gives_the_outputs_of_apply(case):
    params, base, _ = _runs(case)
    outputs, acts = _record(case, params, base)
    inputs = _resumable(case, params, base)
    for name in case.resumes:
        for depth in range(case.model.taps[name].depth):
            resumed = _resume(case.model, name, params, inputs, acts[name], jnp.int32(depth), acts[name][depth])
            np.testing.assert_allclose(resumed, outputs, **CLOSE)


def test_resume_from_an_edited_state_gives_the_outputs_of_the_edit(case):
    params, base, source = _runs(case)
    (_, own), (_, other) = _record(case, params, base), _record(case, params, source)
    inputs = _resumable(case, params, base)
    # no edit is a swap by a weight of 0, so that one program edits them all
    still = {name: jnp.zeros((case.model.taps[name].depth, 1, 1)) for name in case.resumes}
    swap = lambda name, weight: Interchange(other[name], weight * jnp.ones(case.model.taps[name].width))
    for name in case.resumes:
        tap = case.model.taps[name]
        for depth in range(tap.depth):
            weights = still | {name: jax.nn.one_hot(depth, tap.depth)[:, None, None]}
            edited, _ = _run(case.model, params, base, {name: swap(name, weight) for name, weight in weights.items()})
            state = other[name][depth]
            resumed = _resume(case.model, name, params, inputs, own[name], jnp.int32(depth), state)
            np.testing.assert_allclose(resumed, edited, **CLOSE)


def test_resume_under_jit_compiles_once_for_all_depths(case):
    params, base, _ = _runs(case)
    _, acts = _record(case, params, base)
    if not case.resumes:
        pytest.skip("resumes from no tap")
    inputs, traces = _resumable(case, params, base), []

    @jax.jit
    def resume(depth, state):
        traces.append(1)
        return case.model.resume(params, case.resumes[0], depth, state, inputs=inputs, states=acts[case.resumes[0]])

    tap = case.model.taps[case.resumes[0]]
    for depth in range(tap.depth):
        resume(jnp.int32(depth), acts[case.resumes[0]][depth])
    assert len(traces) == 1


def test_a_tap_says_whether_the_network_resumes_from_it(case, unchecked):
    params, base, _ = _runs(case)
    _, acts = _record(case, params, base)
    inputs, states = _resumable(case, params, base), acts[case.some]
    assert all(case.model.taps[name].resumes for name in case.resumes)
    for name, tap in case.model.taps.items():
        if not tap.resumes:
            with pytest.raises(ValueError, match=f"got a resume from '{name}', expected"):
                case.model.resume(params, name, jnp.int32(0), states[0], inputs=inputs, states=states)


def test_edits_differentiate(case):
    params, base, _ = _runs(case)
    name = case.some
    tap = case.model.taps[name]
    offset = jnp.zeros((tap.depth, 1, tap.width))
    step = 1e-2
    direction = jax.random.normal(jax.random.key(1), offset.shape)
    value = lambda o: case.model.apply(params, base, {name: Add(o)})[0].sum()
    slope = jax.jit(jax.value_and_grad(value))
    _, gradient = slope(offset)
    numeric = (float(slope(step * direction)[0]) - float(slope(-step * direction)[0])) / (2 * step)
    # a finite difference across ReLU kinks in float32
    np.testing.assert_allclose((gradient * direction).sum(), numeric, rtol=5e-2, atol=5e-2)


def test_unknown_taps_are_refused_by_name(case):
    params, base, _ = _runs(case)
    with pytest.raises(ValueError, match=r"got a record of \['nope'\], expected tap names among .*" + case.some):
        case.model.apply(params, base, record=("nope",))
    with pytest.raises(ValueError, match=r"got an edit of \['nope'\]"):
        case.model.apply(params, base, {"nope": Add(jnp.zeros(1))})


def test_edits_without_the_depth_axis_are_refused(case):
    name = case.some
    params, base, _ = _runs(case)
    with pytest.raises(ValueError, match="leading depth axis"):
        case.model.apply(params, base, {name: Add(jnp.zeros((99, 1, case.model.taps[name].width)))})


def test_edits_of_another_width_are_refused(case):
    params, base, _ = _runs(case)
    name = case.some
    tap, ones = case.model.taps[name], (1, 1) if name in case.tokens else (1,)
    with pytest.raises(ValueError, match=f"'{name}'"):
        case.model.apply(params, base, {name: Add(jnp.zeros((tap.depth, *ones, tap.width + 1)))})


def test_models_hash_and_compare_by_value(case):
    twin = dataclasses.replace(case.model)
    assert twin == case.model
    assert hash(twin) == hash(case.model)


def _resumable(case, params, inputs):
    """Return a batch as `resume` wants it."""
    return case.model.record(params, inputs, case.resumes)[0] if isinstance(case.model, Recordable) else inputs


def _weight(tap, value):
    return jnp.full((tap.depth, 1, tap.width), value)
