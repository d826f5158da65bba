"""A decoder block by block: the same function, its units named and removed, and back again."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_families import FAMILIES, drawn, padded

from abstraction.interventions import Set
from abstraction.models import Decoder, Reducible, UnrolledDecoder
from abstraction.models.base import Padded
from abstraction.models.decoder import ONCE
from abstraction.models.decoder_unrolled import stacked_decoder, unrolled_decoder
from abstraction.models.taps import NO_EDITS

N, T = 5, 7
TWO, EMPTY = np.zeros((1, 2), np.int32), jnp.zeros(())
# float32 sums in another order, through three blocks
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@partial(jax.jit, static_argnums=0, static_argnames="record")
def _apply(model, params, tokens, edits=NO_EDITS, record=()):
    return model.apply(params, tokens, edits, record)


REPEATED = "qwen2"
"""Whose laws those of Llama cover."""


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow) if name == REPEATED else name for name in FAMILIES],
    name="family",
)
def _family(request):
    return request.param


def _both(family):
    decoder = Decoder(FAMILIES[family])
    params = drawn(decoder)
    return decoder, params, *unrolled_decoder(decoder, params)


def _units(model):
    return "mlp_product" if model.decoder.config.gated else "mlp_hidden"


def _heads(model, *heads):
    size = model.decoder.config.head_size
    return np.concatenate([np.arange(size) + size * head for head in heads])


def test_both_forms_are_one_function_and_record_the_same(family, rng):
    decoder, params, model, apart = _both(family)
    tokens = padded(rng, N, T, 3)
    assert isinstance(model, Reducible)
    assert isinstance(model, Padded)
    outputs, recorded = _apply(decoder, params, tokens, record=tuple(decoder.taps))
    apart_outputs, apart_recorded = _apply(model, apart, tokens, record=tuple(model.taps))
    np.testing.assert_allclose(apart_outputs, outputs, **CLOSE)
    for name, tap in decoder.taps.items():
        names = [name] if name in ONCE else [f"{name}{index}" for index in range(tap.depth)]
        each = np.concatenate([apart_recorded[part] for part in names])
        np.testing.assert_allclose(each, recorded[name], **CLOSE)
    assert set(apart_recorded) == {
        f"{n}{i}" for n, t in decoder.taps.items() if n not in ONCE for i in range(t.depth)
    } | {
        "final_input",
        "logits",
    }


def test_what_it_draws_has_the_shapes_of_what_is_unrolled_and_stacking_undoes_it(family):
    decoder, params, model, apart = _both(family)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(jax.eval_shape(model.init, jax.random.key(0))) == shapes(apart)
    again, stacked = stacked_decoder(model, apart)
    assert again == decoder
    jax.tree.map(np.testing.assert_array_equal, stacked, params)


def test_taps_come_in_the_order_they_run():
    _, _, model, _ = _both("gemma2")
    names = list(model.taps)
    assert names[0] == "block_input0"
    assert names.index("head_output0") < names.index("mlp_product0") < names.index("block_output0")
    assert names.index("block_output0") + 1 == names.index("block_input1")
    assert names[-2:] == ["final_input", "logits"]


@pytest.mark.parametrize(
    ("family", "heads", "kv_heads"),
    [
        ("gpt2", (0, 3), (0, 3)),
        ("llama", (0, 1), (0,)),
        ("llama", (1, 2, 3), (0, 1)),  # one reads the first key-value head, two the second
        pytest.param("llama", (2,), (1,), marks=pytest.mark.slow),
        ("gemma2", (0, 2), (0, 1)),
        pytest.param("qwen2", (3,), (0,), marks=pytest.mark.slow),
    ],
)
def test_removed_heads_are_those_that_write_nothing(family, heads, kv_heads, rng):
    _, _, model, params = _both(family)
    tokens, kept = padded(rng, N, T, 3), _heads(model, *heads)
    _, recorded = _apply(model, params, tokens, record=("head_output1",))
    silent = jnp.zeros_like(recorded["head_output1"]).at[..., kept].set(recorded["head_output1"][..., kept])
    expected, _ = _apply(model, params, tokens, {"head_output1": Set(silent)})
    smaller, arrays = model.narrowed(params, "head_output1", kept)
    outputs, values = _apply(smaller, arrays, tokens, record=("head_output1",))
    np.testing.assert_allclose(outputs, expected, **CLOSE)
    np.testing.assert_allclose(values["head_output1"], recorded["head_output1"][..., kept], **CLOSE)
    size = model.decoder.config.head_size
    assert arrays["block1"]["key"]["kernel"].shape[1] == size * len(kv_heads)
    np.testing.assert_array_equal(
        arrays["block1"]["value"]["kernel"], params["block1"]["value"]["kernel"][:, _heads(model, *kv_heads)]
    )
    assert (smaller.taps["query1"].width, smaller.taps["key1"].width) == (size * len(heads), size * len(kv_heads))
    assert smaller.blocks[0] == model.blocks[0]
    drawn_shapes = jax.tree.map(jnp.shape, jax.eval_shape(smaller.init, jax.random.key(0)))
    assert drawn_shapes == jax.tree.map(jnp.shape, arrays)


def test_heads_are_removed_again_from_what_is_left(rng):
    _, _, model, params = _both("llama")
    once = model.narrowed(params, "head_output0", _heads(model, 0, 2, 3))
    twice = once[0].narrowed(once[1], "head_output0", _heads(model, 1, 2))
    direct = model.narrowed(params, "head_output0", _heads(model, 2, 3))
    assert twice[0] == direct[0]
    jax.tree.map(np.testing.assert_array_equal, twice[1], direct[1])


def test_removed_units_of_the_mlp_are_those_that_write_nothing(family, rng):
    _, _, model, params = _both(family)
    tap, kept = f"{_units(model)}2", np.array([0, 4, 5, 17])
    tokens = padded(rng, N, T, 3)
    values = _apply(model, params, tokens, record=(tap,))[1][tap]
    silent = jnp.zeros_like(values).at[..., kept].set(values[..., kept])
    expected, _ = _apply(model, params, tokens, {tap: Set(silent)})
    smaller, arrays = model.narrowed(params, tap, kept)
    np.testing.assert_allclose(_apply(smaller, arrays, tokens)[0], expected, **CLOSE)
    assert arrays["block2"]["up"]["kernel"].shape == (16, 4)
    assert arrays["block2"]["down"]["kernel"].shape == (4, 16)


def test_blocks_of_one_smaller_shape_stack_to_a_smaller_decoder(family, rng):
    _, _, model, params = _both(family)
    tokens = padded(rng, N, T, 3)
    for index in range(3):
        model, params = model.narrowed(params, f"{_units(model)}{index}", np.arange(index, 24, 3))
        model, params = model.narrowed(params, f"head_output{index}", _heads(model, 0, 1, 2, 3)[: 2 * _size(model)])
    model, params = model.with_biases(params, f"{_units(model)}1")
    model, params = model.with_biases(params, "head_output2")
    params["block1"]["down"]["bias"] = params["block1"]["down"]["bias"] + 1.5
    decoder, stacked = stacked_decoder(model, params)
    assert isinstance(decoder, Decoder)
    assert (decoder.config.hidden, decoder.config.heads) == (8, 2)
    np.testing.assert_allclose(_apply(decoder, stacked, tokens)[0], _apply(model, params, tokens)[0], **CLOSE)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(decoder.init, jax.random.key(0)))
    assert shapes == jax.tree.map(jnp.shape, stacked)


def _size(model):
    return model.decoder.config.head_size


def test_with_biases_changes_nothing_and_is_asked_for_once(rng):
    _, _, model, params = _both("llama")
    tokens = padded(rng, N, T, 3)
    biased, arrays = model.with_biases(params, "mlp_product0")
    assert arrays["block0"]["down"]["bias"].shape == (16,)
    np.testing.assert_allclose(_apply(biased, arrays, tokens)[0], _apply(model, params, tokens)[0], **CLOSE)
    assert biased.with_biases(arrays, "mlp_product0") == (biased, arrays)
    assert "bias" not in params["block0"]["down"]


def test_padding_is_named_at_taps_that_have_positions(rng):
    _, _, model, _ = _both("llama")
    tokens = padded(rng, N, T, 3)
    np.testing.assert_array_equal(model.present(tokens, "mlp_product0"), tokens >= 0)
    assert np.asarray(model.present(tokens, "logits")).tolist() == [[True]] * N


@pytest.mark.parametrize(
    ("family", "tap", "message"),
    [
        ("llama", "mlp_hidden1", "is multiplied by the other half"),
        ("gpt2", "mlp_product1", r"or is unknown; expected one of \['head_output0', 'mlp_hidden0'"),
        ("llama", "block_output0", "has readers that are not affine"),
        ("llama", "key0", "has readers that are not affine"),
        ("llama", "mlp_product3", "expected one of"),
        ("llama", "mlp_product", "expected one of"),
        ("llama", "logits", "expected one of"),
    ],
)
def test_taps_that_cannot_be_reduced_say_why(family, tap, message):
    _, _, model, params = _both(family)
    for ask in (lambda: model.consumers(tap), lambda: model.narrowed(params, tap, np.arange(2))):
        with pytest.raises(ValueError, match=message):
            ask()


def test_what_cannot_be_is_refused():
    _, _, model, params = _both("llama")
    with pytest.raises(ValueError, match="got 5 units of 'head_output0', expected whole heads of 4"):
        model.narrowed(params, "head_output0", np.arange(5))
    with pytest.raises(ValueError, match="got tap 'mlp_product0', which has no heads, expected 'head_output0'"):
        model.head_groups("mlp_product0")
    with pytest.raises(ValueError, match="got a resume from 'key0'"):
        model.resume(params, "key0", jnp.int32(0), jnp.zeros((1, 2, 16)), inputs=TWO, states=EMPTY)
    uneven = model.narrowed(params, "head_output0", _heads(model, 1, 2, 3))
    with pytest.raises(ValueError, match="expected one shape"):
        stacked_decoder(*uneven)
    for index in (1, 2):
        uneven = uneven[0].narrowed(uneven[1], f"head_output{index}", _heads(model, 1, 2, 3))
    with pytest.raises(ValueError, match="serve equally many"):
        stacked_decoder(*uneven)
    assert model.head_groups("head_output2")[1] == (4, 5, 6, 7)


def test_a_billion_parameters_are_unrolled_as_shapes():
    config = FAMILIES["gemma2"].__class__(
        vocabulary=256_000, width=2304, depth=26, heads=8, kv_heads=4, head_size=256, hidden=9216, dtype="bfloat16"
    )
    decoder = Decoder(config)
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    apart = jax.eval_shape(lambda params: unrolled_decoder(decoder, params)[1], params)
    model = UnrolledDecoder(decoder, (config.block,) * 26)
    smaller = jax.eval_shape(lambda params: model.narrowed(params, "mlp_product25", np.arange(4608))[1], apart)
    assert smaller["block25"]["down"]["kernel"].shape == (4608, 2304)
