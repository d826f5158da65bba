import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.models import Decoder, DecoderConfig, TokenView, prompts_at
from abstraction.models.costs import (
    block_flops,
    forward_flops,
    parameter_bytes,
    read_flops,
    recording_bytes,
    suffix_bytes,
    suffix_flops,
)

TOY = DecoderConfig(vocabulary=11, width=4, depth=3, heads=2, kv_heads=1, head_size=2, hidden=5)
MIDDLE = DecoderConfig(vocabulary=500, width=64, depth=1, heads=4, kv_heads=2, head_size=16, hidden=128)
GPT2 = dataclasses.replace(
    TOY, learned_positions=9, norm="layer", gated=False, activation="gelu_tanh", qkv_bias=True, output_bias=True,
    mlp_bias=True,
)  # fmt: skip
GEMMA = dataclasses.replace(TOY, post_norms=True, window=2, windowed=(True, False, True), norm_offset=1.0, tied=False)
GEMMA_2_2B = DecoderConfig(
    vocabulary=256_000, width=2304, depth=26, heads=8, kv_heads=4, head_size=256, hidden=9216, dtype="bfloat16"
)
# of two blocks the one before an edit is not compiled in; one is left, as the compiler counts bodies of loops once
TWO_BLOCKS = dataclasses.replace(MIDDLE, depth=2)
TOKENS, ANSWERS = 100, 26


def test_a_toy_block_by_hand():
    # query 4x4, key and value 4x2 each, output 4x4, gate, up and down 4x5 each: 108 multiply-adds a token,
    # and two products of 2 heads of size 2 with each token seen
    assert block_flops(TOY, 1, 7) == 2 * 108 + 2 * 7 * 2 * 2 * 2
    assert block_flops(TOY, 3, 7) == 3 * block_flops(TOY, 1, 7)
    assert block_flops(dataclasses.replace(TOY, gated=False), 1, 7) == block_flops(TOY, 1, 7) - 2 * 20


def test_toy_runs_by_hand():
    assert read_flops(TOY, 11) == 88
    assert forward_flops(TOY, 7, outputs=11) == 3 * 7 * 328 + 88
    assert forward_flops(TOY, 7, outputs=11, every_token=True) == 3 * 7 * 328 + 7 * 88
    assert [suffix_flops(TOY, depth, 7, outputs=2) for depth in range(3)] == [2 * 328 + 16, 328 + 16, 16]
    # of seven fresh tokens the last block maps all to keys and values, 4x2 each, and one to everything else
    assert suffix_flops(TOY, 1, 7, window=7, outputs=11) == 328 + 6 * 2 * 16 + 88
    assert suffix_flops(TOY, 0, 7, window=7, outputs=11) == 7 * 328 + 328 + 6 * 2 * 16 + 88
    assert [suffix_flops(TOY, depth, 7, outputs=2, inside=True) for depth in (0, 2)] == [3 * 328 + 16, 328 + 16]


@pytest.mark.parametrize("config", [TOY, GPT2, GEMMA, dataclasses.replace(TOY, dtype="bfloat16")])
def test_parameters_are_those_that_are_drawn(config):
    assert parameter_bytes(config) == _bytes(jax.eval_shape(Decoder(config).init, jax.random.key(0)))


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("config", [TOY, dataclasses.replace(TOY, dtype="bfloat16")])
def test_recordings_are_as_large_as_what_is_kept(config, window):
    _, kept, _, states = _recorded(TokenView(Decoder(config), window), prompts=5, tokens=7)
    assert recording_bytes(config, 5, 7, window) == _bytes((kept, states))
    names = ("early", "late")
    _, kept, _, states = _recorded(TokenView(Decoder(config), window, positions=names), prompts=5, tokens=7)
    assert recording_bytes(config, 5, 7, window, positions=2) == _bytes((kept, states))


def test_a_forward_costs_what_the_compiler_counts():
    decoder = Decoder(MIDDLE)
    params, tokens = jax.eval_shape(decoder.init, jax.random.key(0)), jnp.ones((8, 40), jnp.int32)
    counted = _compiled(lambda params: decoder.apply(params, tokens)[0], params).cost_analysis()["flops"]
    # norms, rotations, masks and softmax are counted by the compiler alone
    assert counted == pytest.approx(8 * forward_flops(MIDDLE, 40, outputs=500), rel=0.06)
    assert counted > 8 * forward_flops(MIDDLE, 40, outputs=500)


@pytest.mark.parametrize("window", [1, 4])
def test_a_suffix_costs_what_the_compiler_counts(window):
    # of a window the last block is compiled apart
    config = TWO_BLOCKS if window == 1 else dataclasses.replace(TWO_BLOCKS, depth=3)
    counted = _compiled_suffix(window, handles=1, config=config).cost_analysis()["flops"]
    expected = 8 * suffix_flops(config, 0, 40, window=window, outputs=500)
    assert counted == pytest.approx(expected, rel=0.06)
    # the block is run again
    counted = _compiled_suffix(window, handles=1, tap="value", config=config).cost_analysis()["flops"]
    expected = 8 * suffix_flops(config, 1, 40, window=window, outputs=500, inside=True)
    assert counted == pytest.approx(expected, rel=0.06)


def test_a_toy_working_set_by_hand():
    # a token of the residual stream and its copy 2*4*4, then the largest of scores with their softmax 2*4*2*T, gate and
    # hidden units 2*4*5, logits 4*C
    sizes = {"tokens": 2, "outputs": 7}
    assert suffix_bytes(TOY, 3, handles=5, **sizes) == 3 * 5 * (32 + 40)
    assert suffix_bytes(TOY, 3, handles=5, **sizes | {"outputs": 11}) == 3 * 5 * (32 + 44)
    assert suffix_bytes(TOY, 3, handles=5, **sizes | {"tokens": 7}) == 3 * 5 * (32 + 112)
    assert suffix_bytes(TOY, 3, window=2, handles=5, **sizes) == 3 * 5 * (64 + 80)
    assert suffix_bytes(dataclasses.replace(TOY, gated=False), 3, handles=5, **sizes) == 3 * 5 * (32 + 32)


@pytest.mark.parametrize("window", [1, 4])
def test_the_compiled_working_set_grows_with_handles_no_faster_than_its_estimate(window):
    few, many = (_compiled_suffix(window, handles).memory_analysis().temp_size_in_bytes for handles in (8, 24))
    # a compiler that fuses more needs less; copying weights or keys for every handle would be ten times as much
    assert 0 < many - few < 1.5 * suffix_bytes(TWO_BLOCKS, 8, 40, window, 16, outputs=500)


@pytest.mark.parametrize("outputs", [ANSWERS, GEMMA_2_2B.vocabulary])
def test_an_edit_of_gemma_costs_a_hundredth_of_a_forward(outputs):
    suffixes = [suffix_flops(GEMMA_2_2B, depth, TOKENS, outputs=outputs) for depth in range(GEMMA_2_2B.depth)]
    mean = sum(suffixes) / len(suffixes)
    every = forward_flops(GEMMA_2_2B, TOKENS, outputs=GEMMA_2_2B.vocabulary, every_token=True)
    last = forward_flops(GEMMA_2_2B, TOKENS, outputs=outputs)
    expected = {ANSWERS: (268, 207), GEMMA_2_2B.vocabulary: (167, 130)}[outputs]
    assert (int(every / mean), int(last / mean)) == expected
    assert min(expected) >= 100


def test_impossible_edits_are_refused():
    with pytest.raises(ValueError, match="got an edit after block 3, expected 0 to 2"):
        suffix_flops(TOY, 3, 7, outputs=2)
    for function in (recording_bytes, lambda *sizes: suffix_bytes(*sizes, outputs=2)):
        with pytest.raises(ValueError, match="got a window of 8 tokens, expected 1 to 7"):
            function(TOY, 5, 7, 8)


def _recorded(view, *, prompts, tokens, tap="block_output"):
    """Return the shapes of parameters, of what is kept of prompts, its structure, and the shapes of states."""
    ids, structure = np.ones((prompts, tokens), np.int32), []
    last = np.full(prompts, tokens - 1)
    inputs = prompts_at(ids, None if view.positions == ("token",) else dict.fromkeys(view.positions, last))

    def record(params):
        run, _, states = view.record(params, inputs, (tap,))
        leaves, tree = jax.tree.flatten(run)
        structure.append(tree)
        return leaves, states[tap]

    params = jax.eval_shape(view.init, jax.random.key(0))
    leaves, states = jax.eval_shape(record, params)
    return params, leaves, structure[0], states


def _bytes(shapes):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _compiled_suffix(window, handles, tap="block_output", config=TWO_BLOCKS):
    """Compile edits at several depths of eight prompts of 40 tokens."""
    view = TokenView(Decoder(config), window)
    params, leaves, structure, states = _recorded(view, prompts=8, tokens=40, tap=tap)

    def resume(params, leaves, states, depths):
        inputs = jax.tree.unflatten(structure, leaves)
        run = lambda depth: view.resume(params, tap, depth, states[0], inputs=inputs, states=states)
        return jax.vmap(run)(depths)

    return _compiled(resume, params, leaves, states, jnp.zeros(handles, jnp.int32))


def _compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()
