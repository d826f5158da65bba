"""What decoders refuse: ids of no token, positions of no token, sizes of no network, where values are known.

Where they are traced nothing can be refused: there the outputs are NaN.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import Refusal, check_refusal

from abstraction.interventions import Set
from abstraction.models import (
    Decoder,
    DecoderConfig,
    PlaceView,
    TokenView,
    at_positions,
    highlighted,
    placed,
    prompts_at,
)
from abstraction.models.costs import forward_flops, recording_bytes, suffix_flops
from abstraction.models.decoder_config import RopeScaling
from abstraction.models.decoder_unrolled import unrolled_decoder

CONFIG = DecoderConfig(vocabulary=11, width=8, depth=2, heads=2, kv_heads=1, head_size=4, hidden=16)
DECODER = Decoder(CONFIG)
PARAMS = DECODER.init(jax.random.key(0))
VIEW = TokenView(DECODER, 3)
TAP = "block_output"
TOKENS = np.array([[-1, 1, 2, 3], [4, 5, 6, 7]])


def _apply(tokens):
    return DECODER.apply(PARAMS, tokens)


def _edit(positions):
    return at_positions(Set(jnp.full((2, 1, 8), 3.0)), np.asarray(positions), depth=2)


def _edited(positions):
    return DECODER.apply(PARAMS, TOKENS, {TAP: _edit(positions)})


def _recorded(positions):
    return DECODER.run(PARAMS, TOKENS, record=(TAP,), at=np.asarray(positions)).recorded[TAP]


def _unrolled(positions):
    model, params = unrolled_decoder(DECODER, PARAMS)
    edit = at_positions(Set(jnp.full((1, 8), 3.0)), np.asarray(positions))
    return model.apply(params, TOKENS, {f"{TAP}0": edit})


def _view(token=3, position=3):
    return dataclasses.replace(prompts_at(TOKENS), tokens=np.full((2, 4), token), position=np.full(2, position))


def _any(taps, last=(3, 3)):
    view = PlaceView(DECODER, ("early", "last"), taps)
    return view.apply(PARAMS, placed(TOKENS, {"early": [1, 1], "last": last}))


PROMPTS = [
    Refusal("an id past the vocabulary", lambda: _apply(np.array([[1, 11]])), "token 11 at position 1 of prompt 0"),
    Refusal("an id far past it", lambda: _apply(np.array([[1, 2**33]])), "token 8589934592"),
    Refusal("an id below padding", lambda: _apply(np.array([[-2, 1]])), "token -2"),
    Refusal("ids on the device", lambda: _apply(jnp.array([[1, 11]])), "token 11"),
    Refusal("half an id", lambda: _apply(np.array([[1.5, 2]])), "type float64"),
    Refusal("flags", lambda: _apply(np.array([[True, False]])), "type bool"),
    Refusal("a single row", lambda: _apply(np.array([1, 2])), r"shape \(2,\)"),
    Refusal("no prompt", lambda: _apply(np.zeros((0, 4), int)), r"shape \(0, 4\)"),
    Refusal("padding alone", lambda: _apply(np.array([[1, 2], [-1, -1]])), r"prompts \[1\] without a token"),
    Refusal("rows of two lengths", lambda: prompts_at([[1, 2], [3]]), "rows of different lengths"),
    Refusal("a prompt of 1.7", lambda: prompts_at([[1.7]]), "type float64"),
    Refusal("a prompt of 2**33", lambda: prompts_at([[2**33]]), "token 8589934592"),
    Refusal("a prompt of flags", lambda: prompts_at([[True]]), "type bool"),
    Refusal("a prompt of NaN", lambda: prompts_at([[np.nan]]), "type float64"),
    Refusal("a prompt with a hole", lambda: prompts_at([[1, -1, 2]]), "padding inside"),
    Refusal("half a position", lambda: prompts_at([[1, 2]], [0.5]), "type float64"),
    Refusal("a position past the end", lambda: prompts_at([[1, 2]], [2]), "position 2 in prompt 0"),
    Refusal("a position of -1", lambda: prompts_at([[1, 2]], [-1]), "position -1"),
    Refusal("two positions", lambda: prompts_at([[1, 2]], [[0, 1]]), r"shape \(1, 2\)"),
    Refusal("a position too few", lambda: prompts_at([[1, 2], [3, 4]], [0]), r"shape \(1,\)"),
    Refusal("a view of no token", lambda: VIEW.record(PARAMS, _view(token=11), ()), "token 11"),
    Refusal("a view past the end", lambda: VIEW.record(PARAMS, _view(position=4), ()), "position 4"),
    Refusal("a view of padding", lambda: VIEW.apply(PARAMS, _view(position=-2)), "position -2"),
]
ANY = PlaceView(DECODER, ("early", "last"))
PLACES = [
    Refusal("no name", lambda: prompts_at(TOKENS, {}), r"positions \(\)"),
    Refusal("a name that is a number", lambda: prompts_at(TOKENS, {0: [3, 3]}), r"positions \(0,\)"),
    Refusal("a named token of padding", lambda: prompts_at(TOKENS, {"a": [3, 3], "b": [0, 3]}), "the token 'b'"),
    Refusal("a name for too few", lambda: prompts_at(TOKENS, {"a": [3]}), "the token 'a'"),
    Refusal("a view of names that are a word", lambda: TokenView(DECODER, positions="last"), "positions 'last'"),
    Refusal("a view of a name twice", lambda: TokenView(DECODER, positions=("a", "a")), "each once"),
    Refusal("a view of a list", lambda: TokenView(DECODER, positions=["a"]), r"positions \['a'\]"),
    Refusal(
        "a view of other names",
        lambda: TokenView(DECODER, 4, positions=("a", "b")).record(PARAMS, prompts_at(TOKENS, {"a": [3, 3]}), ()),
        r"positions \['a'\], expected \['a', 'b'\]",
    ),
    Refusal(
        "a named token before the window",
        lambda: TokenView(DECODER, 2, positions=("a",)).record(PARAMS, prompts_at(TOKENS, {"a": [1, 3]}), ()),
        "token 3 from the end",
    ),
    Refusal("any model of no name", lambda: PlaceView(DECODER, ()), r"positions \(\)"),
    Refusal("any model that is none", lambda: PlaceView(CONFIG, ("last",)), "expected Model"),
    Refusal("any model at an unknown tap", lambda: PlaceView(DECODER, ("last",), ("nope",)), "'nope'"),
    Refusal("any model at a tap without tokens", lambda: _any(("logits",)), r"tap 'logits' of shape \(1, 2, 11\)"),
    Refusal("any model of other names", lambda: ANY.check(placed(TOKENS, {"last": [3, 3]})), "expected \\['early'"),
    Refusal("any model past the end", lambda: _any(None, [3, 4]), "position 4 of 'last' in input 1, expected one of"),
    Refusal("any model of padding", lambda: _any(None, [0, 3]), "position 0 of 'last' in input 0, .* 1 to 3"),
    Refusal("a place of no name", lambda: placed(TOKENS, {}), r"positions \(\)"),
    Refusal("a place below 0", lambda: placed(TOKENS, {"last": [3, -1]}), "position -1 of 'last' in input 1"),
    Refusal("half a place", lambda: placed(TOKENS, {"last": [3, 0.5]}), "'last' of shape .* float64"),
    Refusal("a place by a flag", lambda: placed(TOKENS, {"last": [True, False]}), "type bool"),
    Refusal("a place too few", lambda: placed(TOKENS, {"last": [3]}), r"shape \(1,\)"),
    Refusal("inputs of two lengths", lambda: placed((TOKENS, TOKENS[:1]), {"last": [3, 3]}), "leading axes"),
    Refusal("a depth of no place", lambda: ANY.taps[TAP].place(4), r"\[4\], expected whole numbers from 0 to 3"),
    Refusal("brackets around padding", lambda: highlighted(TOKENS, [0, 1]), "position 0 in prompt 0"),
    Refusal("brackets past the end", lambda: highlighted(TOKENS, [1, 4]), "position 4 in prompt 1"),
]
POSITIONS = [
    Refusal("an edit past the end", lambda: _edited([1, 4]), "position 4 in prompt 1, expected one of its tokens, 0"),
    Refusal("an edit far out", lambda: _edited([1, 99]), "position 99"),
    Refusal("an edit of padding", lambda: _edited([0, 1]), "prompt 0, expected one of its tokens, 1 to 3"),
    Refusal("an edit below -1", lambda: _edited([1, -2]), "position -2"),
    Refusal("an edit of a token twice", lambda: _edited([[1, 1], [2, 3]]), r"positions \[1, 1\] of prompt 0"),
    Refusal("an edit of half a position", lambda: _edited([1.5, 2.0]), "type float64"),
    Refusal("an edit by a mask", lambda: _edited([True, False]), "type bool"),
    Refusal("an edit of one prompt of two", lambda: _edited([1]), "shape"),
    Refusal("an edit without a row", lambda: _edited(1), "shape"),
    Refusal("one block's edit of padding", lambda: _unrolled([0, 1]), "position 0 in prompt 0"),
    Refusal("one block's edit past the end", lambda: _unrolled([1, 4]), "position 4 in prompt 1"),
    Refusal("a record past the end", lambda: _recorded([1, 4]), "position 4"),
    Refusal("a record of padding", lambda: _recorded([0, 1]), "position 0"),
    Refusal("a record below -1", lambda: _recorded([1, -5]), "position -5"),
    Refusal("a record of floats", lambda: _recorded([1.0, 2.0]), "type float64"),
    Refusal("a record of one prompt of two", lambda: _recorded([1]), r"shape \(1,\)"),
    Refusal("a record of three axes", lambda: _recorded([[[1]], [[2]]]), r"shape \(2, 1, 1\)"),
]
SHAPES = {
    "no block": {"depth": 0},
    "half a block": {"depth": 1.5},
    "a width that is a flag": {"width": True},
    "more than 32 bits": {"hidden": 2**31},
    "a vocabulary that is a word": {"vocabulary": "11"},
    "heads that do not divide": {"kv_heads": 3},
    "no epsilon": {"norm_epsilon": 0.0},
    "an epsilon that is no number": {"norm_epsilon": float("nan")},
    "an epsilon below 0": {"norm_epsilon": -1.0},
    "an epsilon that is a word": {"norm_epsilon": "tiny"},
    "no rotation": {"rope_theta": 0},
    "an infinite rotation": {"rope_theta": float("inf")},
    "a stretch of 0": {"rope_scaling": RopeScaling(0.0, 1.0, 4.0, 32)},
    "a stretch turned round": {"rope_scaling": RopeScaling(8.0, 4.0, 1.0, 32)},
    "a stretch of no context": {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 0)},
    "a switch that is a word": {"tied": "yes"},
    "a switch that is a number": {"gated": 1},
    "a scale of 0": {"embedding_scale": 0.0},
    "a cap of 0": {"attention_cap": 0},
    "a cap below 0": {"final_cap": -30.0},
    "a query scale that is no number": {"query_scale": float("nan")},
    "an offset that is no number": {"norm_offset": float("nan")},
    "positions of none": {"learned_positions": 0},
    "a window of none": {"window": 0, "windowed": (True, False)},
    "windows that are numbers": {"window": 2, "windowed": (1, 0)},
    "an unknown norm": {"norm": "batch"},
}
OTHERS = [
    Refusal("an answer past the vocabulary", lambda: Decoder(CONFIG, ((11,),)).init(jax.random.key(0)), "11"),
    Refusal("half an answer", lambda: Decoder(CONFIG, ((1.5,),)).init(jax.random.key(0)), "1.5"),
    Refusal("an answer of no token", lambda: Decoder(CONFIG, ((1,), ())).init(jax.random.key(0)), "answers"),
    Refusal("the cost of no token", lambda: forward_flops(CONFIG, 0, outputs=3), "tokens 0"),
    Refusal("the cost of no output", lambda: forward_flops(CONFIG, 4, outputs=-1), "outputs -1"),
    Refusal("the cost after no block", lambda: suffix_flops(CONFIG, 2, 4, outputs=3), "block 2"),
    Refusal("the cost after half a block", lambda: suffix_flops(CONFIG, 0.5, 4, outputs=3), "block 0.5"),
    Refusal("a window past the prompt", lambda: recording_bytes(CONFIG, 2, 4, 5), "window of 5"),
    Refusal("the memory of no prompt", lambda: recording_bytes(CONFIG, 0, 4), "prompts 0"),
]


@pytest.mark.parametrize("row", PROMPTS + PLACES + POSITIONS + OTHERS, ids=lambda row: row.name)
def test_a_decoder_refuses_values_that_name_nothing(row, unchecked):
    check_refusal(row)


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_a_decoder_that_cannot_be_is_refused_by_field(change, unchecked):
    check_refusal(Refusal("config", dataclasses.replace(CONFIG, **change).check, next(iter(change)).removesuffix("ed")))


@jax.jit
def _traced(tokens, edited, recorded):
    edits = {TAP: at_positions(Set(jnp.full((2, 1, 8), 3.0)), edited, depth=2)}
    run = DECODER.run(PARAMS, tokens, edits, (TAP,), at=recorded)
    return run.outputs, run.recorded[TAP]


def test_traced_values_that_name_nothing_are_nan_and_touch_no_other_prompt():
    none = np.full(2, -1)
    clean = _apply(TOKENS)[0]
    outputs, states = _traced(TOKENS, none, none)
    np.testing.assert_allclose(outputs, clean, rtol=1e-5)  # a program that is traced sums in another order
    assert np.isnan(states).all()  # -1: there is none
    for wrong in ([[1, 2, 3, 11]], [[1, 2, 3, 2**30]], [[-2, 1, 2, 3]], [[-1, -1, -1, -1]]):
        outputs, _ = _traced(np.concatenate([wrong, TOKENS[1:]]), none, none)
        assert np.isnan(outputs[0]).all()
        np.testing.assert_allclose(outputs[1], clean[1], rtol=1e-5)
    for position in (4, 99, -2):
        outputs, states = _traced(TOKENS, np.array([position, -1]), np.array([position, 3]))
        assert np.isnan(outputs[0]).all()
        np.testing.assert_allclose(outputs[1], clean[1], rtol=1e-5)
        assert np.isnan(states[:, 0]).all()
        assert np.isfinite(states[:, 1]).all()
    assert np.isnan(_traced(TOKENS, none, np.array([0, 3]))[1][:, 0]).all()  # on padding


def test_a_record_and_an_edit_of_minus_one_mean_none():
    np.testing.assert_array_equal(_edited([-1, -1])[0], _apply(TOKENS)[0])
    assert np.isnan(_recorded([-1, 2])[:, 0]).all()
    assert np.isfinite(_recorded([-1, 2])[:, 1]).all()
