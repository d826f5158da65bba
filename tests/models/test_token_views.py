"""An edit at one token costs the tokens after it, and gives what a full run gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_families import FAMILIES, drawn, padded
from slowly import all_but

from abstraction.interventions import Handle, state_sites
from abstraction.interventions.bases import random_frames, rotation_basis
from abstraction.interventions.edits import Interchange, Scale
from abstraction.interventions.patching import map_handles, patched_outputs, run_pairs
from abstraction.models import Decoder, Network, TokenView, prompts_at
from abstraction.models.token_views import window_of

N, T, SHORTEST, L = 6, 7, 5, 3
TAP = "block_output"
# Sums of 16 to 24 terms in another order, through 3 blocks whose norms divide by small numbers; logits are of order 1.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def _pair(rng, position=None):
    """Draw base and source prompts, looked at `position` tokens from the end, by default the last."""
    tokens = padded(rng, N, T, SHORTEST), padded(rng, N, T, SHORTEST)[::-1].copy()
    at = None if position is None else np.full(N, T - 1 - position)
    return tuple(prompts_at(one, at) for one in tokens)


def _states(width=16):
    """Whole states at every depth, as handles resumed there and as handles of a full run."""
    local = Handle(TAP, np.ones((L, width), np.float32), None, np.arange(L))
    full = Handle(TAP, np.eye(L, dtype=np.float32)[:, :, None] * np.ones(width, np.float32))
    return local, full


def _sweep(view, params, pair, handles, chunk=L):
    network = Network(view, params)
    return _mapped(network, run_pairs(network, *pair, taps=(TAP,)), handles, chunk)


def _whole(view, params, pair, handles):
    """Run prompts that have not been recorded, whole, with each handle's edits."""
    network = Network(view, params)
    source = run_pairs(network, *pair, taps=(TAP,)).source[TAP]
    return jax.jit(jax.vmap(lambda handle: network(pair[0], handle.edits(source))[0]))(handles)


_mapped = jax.jit(
    lambda network, runs, handles, chunk: map_handles(
        lambda handle: patched_outputs(network, runs, handle), handles, chunk=chunk
    ),
    static_argnums=3,
)


_run = jax.jit(
    lambda decoder, params, tokens, edits: decoder.apply(params, tokens, edits, ("block_input", "block_output")),
    static_argnums=0,
)


@pytest.fixture(scope="module", params=all_but(["gpt2", "gemma2"], FAMILIES), name="network")
def _network(request):
    decoder = Decoder(FAMILIES[request.param])
    return decoder, drawn(decoder)


@pytest.fixture(scope="module", name="gemma")
def _gemma():
    decoder = Decoder(FAMILIES["gemma2"])
    return decoder, drawn(decoder)


def test_a_cached_suffix_is_the_full_run_at_every_layer_and_token(network, rng):
    decoder, params = network
    (local, full), whole = _states(), TokenView(decoder, SHORTEST)
    for window in (1, SHORTEST):
        view = TokenView(decoder, window)
        for back in range(window):
            pair = _pair(rng, back)
            network = Network(view, params)
            runs = run_pairs(network, *pair, taps=(TAP,))
            cached = _mapped(network, runs, local, L)
            np.testing.assert_allclose(cached, _whole(whole, params, pair, full), **CLOSE)
            moved = np.abs(cached - runs.outputs).max(axis=(1, 2)) > 1e-2
            # nothing reads an earlier token after the last block, nor, in a windowed one, a token far back
            near = back < (decoder.config.window or T)
            assert moved.tolist() == [True, near, back == 0]
        if window == 1:
            np.testing.assert_allclose(cached[-1], decoder.apply(params, pair[1].tokens)[0], **CLOSE)


def test_edits_of_several_blocks_rerun_the_window_alone_and_give_what_a_full_run_gives(network, rng):
    decoder, params = network
    taps = ("block_output", "head_output", "key", "mlp_output")
    for window in (1, SHORTEST):
        view, pair = TokenView(decoder, window), _pair(rng, window - 1)
        seen = Network(view, params)
        runs = run_pairs(seen, *pair, taps=taps)
        edits = {tap: Interchange(runs.source[tap], rng.random((L, view.taps[tap].width), np.float32)) for tap in taps}
        edits["logits"] = Scale(np.full((1, 1), 2.0, np.float32))
        found, kept = seen(runs.inputs, edits)
        expected, recorded = seen(pair[0], edits, record=taps)
        # four edits in each of three blocks, and twice the logits
        np.testing.assert_allclose(found, expected, rtol=5e-5, atol=5e-5)
        assert not kept
        assert np.abs(found - 2 * runs.outputs).max() > 1e-2
        again, values = seen(runs.inputs, edits, record=taps)
        np.testing.assert_array_equal(again, expected)
        for tap in taps:
            np.testing.assert_array_equal(values[tap], recorded[tap])
        # what the tokens before the window are is not looked at again
        tokens = np.array(runs.inputs.tokens)
        tokens[:, : T - window] = np.where(tokens[:, : T - window] >= 0, 1, -1)
        np.testing.assert_array_equal(seen(dataclasses.replace(runs.inputs, tokens=tokens), edits)[0], found)


def test_prompts_at_different_tokens_share_a_window(gemma, rng):
    decoder, params = gemma
    base, source = padded(rng, N, T, SHORTEST), padded(rng, N, T, SHORTEST)
    at = [np.array([6, 4, 5, 6, 3, 3]), np.array([2, 4, 6, 5, 6, 6])]
    pair = tuple(prompts_at(tokens, position) for tokens, position in zip((base, source), at, strict=True))
    assert window_of(*pair) == 5
    local, full = _states()
    cached, run = _sweep(TokenView(decoder, 5), params, pair, local), _whole(TokenView(decoder, 5), params, pair, full)
    np.testing.assert_allclose(cached, run, **CLOSE)
    alone = tuple(prompts_at(tokens[2:3], position[2:3]) for tokens, position in zip((base, source), at, strict=True))
    single = _sweep(TokenView(decoder, 2), params, alone, _states()[0])
    np.testing.assert_allclose(single[:, 0], cached[:, 2], **CLOSE)


def test_padding_on_either_side_and_of_any_length_changes_nothing(gemma, rng):
    decoder, params = gemma
    base, source = _pair(rng, 1)
    expected = _sweep(TokenView(decoder, 2), params, (base, source), _states()[0])
    pads = [np.full((N, count), -1, np.int32) for count in (2, 1)]
    for left, right in (([pads[0]], []), ([pads[1]], [pads[1]]), ([], [pads[0]])):
        pair = tuple(
            prompts_at(
                np.concatenate([*left, one.tokens, *right], axis=1), one.position + sum(p.shape[1] for p in left)
            )
            for one in (base, source)
        )
        np.testing.assert_allclose(_sweep(TokenView(decoder, 2), params, pair, _states()[0]), expected, **CLOSE)


@pytest.mark.slow
def test_batch_order_chunks_and_recording_in_parts_change_nothing(gemma, rng):
    decoder, params = gemma
    view, pair, local = TokenView(decoder, 2), _pair(rng, 1), _states()[0]
    expected = _sweep(view, params, pair, local)
    order = rng.permutation(N)
    shuffled = jax.tree.map(lambda leaf: leaf[order], pair)
    np.testing.assert_allclose(_sweep(view, params, shuffled, local), expected[:, order], **CLOSE)
    for chunk in (1, 2):
        np.testing.assert_allclose(_sweep(view, params, pair, local, chunk), expected, **CLOSE)
    parts = run_pairs(Network(dataclasses.replace(view, batch=4), params), *pair, taps=(TAP,))
    jax.tree.map(
        lambda part, whole: np.testing.assert_allclose(part, whole, **CLOSE),
        jax.tree.leaves(parts),
        jax.tree.leaves(run_pairs(Network(view, params), *pair, taps=(TAP,))),
    )


def test_blocks_before_every_edit_need_not_be_compiled_in(gemma, rng):
    decoder, params = gemma
    view, pair, local = TokenView(decoder, 2), _pair(rng, 1), _states()[0]
    expected = _sweep(view, params, pair, local)
    for first in range(1, L):
        deeper = jax.tree.map(lambda leaf, first=first: leaf[first:], local)
        found = _sweep(dataclasses.replace(view, first=first), params, pair, deeper)
        np.testing.assert_allclose(found, expected[first:], **CLOSE)


@pytest.mark.slow
def test_mapping_over_handles_is_a_loop_and_jit_is_eager(gemma, rng):
    decoder, params = gemma
    network = Network(TokenView(decoder, 2), params)
    runs = run_pairs(network, *_pair(rng, 1), taps=(TAP,))
    frames = random_frames(jax.random.key(3), (5,), 16, 4)
    handles = Handle(
        TAP,
        np.linspace(0.5, 1.5, 20, dtype=np.float32).reshape(5, 4),
        rotation_basis(frames),
        np.array([2, 0, 1, 0, 1]),
    )
    run = lambda handle: patched_outputs(network, runs, handle)
    mapped = jax.jit(jax.vmap(run))(handles)
    for index in range(5):
        alone = run(jax.tree.map(lambda leaf, index=index: jnp.asarray(leaf)[index], handles))
        np.testing.assert_allclose(mapped[index], alone, **CLOSE)


def test_a_scan_over_blocks_is_a_loop_over_decoders_of_one_block(network, rng):
    decoder, params = network
    tokens = padded(rng, N, T, SHORTEST)
    whole, acts = _run(decoder, params, tokens, {})
    for depth in range(L):
        config = dataclasses.replace(decoder.config, depth=1, windowed=decoder.config.windowed[depth : depth + 1])
        own = {**params, "blocks": jax.tree.map(lambda leaf, depth=depth: leaf[depth : depth + 1], params["blocks"])}
        single = Decoder(config)
        replace = {"block_input": _Constant(acts["block_input"][depth][None])}
        outputs, one = _run(single, own, tokens, replace)
        np.testing.assert_allclose(one["block_output"][0], acts["block_output"][depth], **CLOSE)
    np.testing.assert_allclose(outputs, whole, **CLOSE)


@pytest.mark.slow
def test_gradients_through_the_suffix_are_those_of_the_full_run(gemma, rng):
    decoder, params = gemma
    network = Network(TokenView(decoder, 2), params)
    runs = run_pairs(network, *(pair := _pair(rng, 1)), taps=(TAP,))
    local, full = _states()
    direction = jax.random.normal(jax.random.key(2), runs.outputs.shape)

    def slope(weight, handles, inputs=runs.inputs):
        at = dataclasses.replace(runs, inputs=inputs)
        run = lambda handle: (patched_outputs(network, at, handle) * direction).sum()
        return jax.vmap(run)(dataclasses.replace(handles, weight=weight)).sum()

    gradient = jax.jit(jax.grad(slope))
    cached = gradient(jnp.asarray(local.weight) * 0.5, local)
    run = gradient(jnp.asarray(full.weight) * 0.5, full, jax.tree.map(jnp.asarray, pair[0]))
    rerun = gradient(jnp.asarray(full.weight) * 0.5, full)
    np.testing.assert_allclose(rerun, run, rtol=1e-4, atol=1e-4)
    assert np.abs(cached[0]).max() > 1e-2
    # a gradient sums over pairs and outputs, some of which cancel
    np.testing.assert_allclose(cached, run[np.arange(L), np.arange(L)], rtol=1e-4, atol=1e-4)


def test_a_gradient_keeps_no_copy_of_all_blocks_for_each_block(gemma, rng):
    decoder, params = gemma
    pair, local = _pair(rng, 1), _states()[0]
    views = TokenView(decoder, 2), TokenView(decoder, 2).from_depth(0)
    runs = run_pairs(Network(views[0], params), *pair, taps=(TAP,))

    def slope(weight, view):
        handle = Handle(TAP, weight, None, jnp.asarray(1))
        return patched_outputs(Network(view, params), runs, handle)[:, 0].sum()

    slopes = [jax.grad(lambda weight, view=view: slope(weight, view)) for view in views]
    weight = jnp.asarray(local.weight[0]) * 0.5
    plain, backward = (np.asarray(jax.jit(each)(weight)) for each in slopes)
    assert np.abs(plain).max() > 1e-3
    np.testing.assert_allclose(backward, plain, **CLOSE)
    stacks = {np.shape(leaf) for leaf in jax.tree.leaves(params["blocks"])}
    kept = _shapes(jax.make_jaxpr(slopes[1])(weight).jaxpr)
    assert stacks & kept, "the stack of all blocks is read"
    assert not {shape for shape in kept if shape[1:] in stacks}
    assert {shape for shape in _shapes(jax.make_jaxpr(slopes[0])(weight).jaxpr) if shape[1:] in stacks}


def _shapes(jaxpr) -> set[tuple[int, ...]]:
    """Return the shapes of everything a program holds, its parts included."""
    found = {variable.aval.shape for equation in jaxpr.eqns for variable in (*equation.invars, *equation.outvars)}
    for part in _parts(jaxpr):
        found |= _shapes(part)
    return found


def _parts(jaxpr):
    for equation in jaxpr.eqns:
        for leaf in jax.tree.leaves(equation.params, is_leaf=lambda each: hasattr(each, "eqns")):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                yield inner


def test_one_program_serves_all_layers_strengths_sources_and_positions(gemma, rng):
    decoder, params = gemma
    network, traces = Network(TokenView(decoder, 3), params), []

    @jax.jit
    def run(network, runs, handle):
        traces.append(1)
        return patched_outputs(network, runs, handle)

    for back, depth in ((0, 0), (2, 1), (1, 2)):
        runs = run_pairs(network, *_pair(rng, back), taps=(TAP,))
        run(network, runs, Handle(TAP, rng.random(16, np.float32), None, jnp.int32(depth)))
    assert len(traces) == 1


def test_answers_are_read_of_the_suffix_as_of_the_full_run(gemma, rng):
    decoder, params = gemma
    read = dataclasses.replace(decoder, answers=((1,), (4, 7), (2,)), rest=True)
    pair = _pair(rng)
    logits = _sweep(TokenView(decoder), params, pair, _states()[0])
    others = [token for token in range(23) if token not in (1, 4, 7, 2)]
    ways = [logits[..., [1]], logits[..., [4, 7]], logits[..., [2]], logits[..., others]]
    expected = np.stack([way.max(axis=-1) for way in ways], axis=-1)
    np.testing.assert_allclose(_sweep(TokenView(read), params, pair, _states()[0]), expected, **CLOSE)


def test_bfloat16_runs_and_is_close(gemma, rng):
    decoder, params = gemma
    half = Decoder(dataclasses.replace(decoder.config, dtype="bfloat16"))
    weights = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    pair = _pair(rng, 1)
    exact = _sweep(TokenView(decoder, 2), params, pair, _states()[0])
    local, full = _states()
    cached, run = _sweep(TokenView(half, 2), weights, pair, local), _whole(TokenView(half, 2), weights, pair, full)
    assert cached.dtype == jnp.float32
    # 8 bits of mantissa: 0.4% of each of the activations, a few of which make a logit
    scale = np.abs(exact).max()
    np.testing.assert_allclose(cached, run, atol=0.03 * scale)
    np.testing.assert_allclose(cached, exact, atol=0.15 * scale)


@pytest.mark.parametrize("tap", ["mlp_output", "mlp_product", "head_output"])
def test_in_bfloat16_a_tap_inside_of_a_block_resumes_as_the_full_run(gemma, rng, tap):
    decoder, params = gemma
    view = TokenView(Decoder(dataclasses.replace(decoder.config, dtype="bfloat16")))
    weights, pair, width = (
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params),
        _pair(rng),
        view.taps[tap].width,
    )
    network = Network(view, weights)
    runs = run_pairs(network, *pair, taps=(tap,))
    local = Handle(tap, np.ones((L, width), np.float32), None, np.arange(L))
    full = Handle(tap, np.eye(L, dtype=np.float32)[:, :, None] * np.ones(width, np.float32))
    run = jax.jit(jax.vmap(lambda handle: network(pair[0], handle.edits(runs.source[tap]))[0]))
    expected = run(full)
    # 8 bits of mantissa: 0.4% of each of the activations, a few of which make a logit
    np.testing.assert_allclose(_mapped(network, runs, local, L), expected, atol=0.03 * np.abs(expected).max())


def test_prompts_refuse_what_is_no_prompt():
    with pytest.raises(ValueError, match=r"got prompts \[1\] without a token"):
        prompts_at(np.array([[1, 2, 3], [-1, -1, -1]]))
    with pytest.raises(ValueError, match=r"got prompts \[0\] empty or with padding inside"):
        prompts_at(np.array([[1, -1, 3], [1, 2, 3]]))
    for position in (0, 3, -1):
        with pytest.raises(
            ValueError, match=f"got position {position} in prompt 1, expected one of its tokens, 1 to 2"
        ):
            prompts_at(np.array([[1, 2, 3], [-1, 2, 3]]), np.array([0, position]))


def test_prompts_are_moved_to_the_right():
    prompts = prompts_at(np.array([[5, 6, -1, -1], [-1, 7, 8, -1], [1, 2, 3, 4]]), np.array([0, 2, 1]))
    np.testing.assert_array_equal(prompts.tokens, [[-1, -1, 5, 6], [-1, -1, 7, 8], [1, 2, 3, 4]])
    np.testing.assert_array_equal(prompts.position, [2, 3, 1])
    assert window_of(prompts) == 3


def test_views_refuse_what_they_cannot_run(gemma, rng):
    decoder, params = gemma
    base, _ = _pair(rng, 2)
    with pytest.raises(ValueError, match="got a token 3 from the end, expected it within the window of 1"):
        TokenView(decoder).record(params, base, ())
    with pytest.raises(ValueError, match=f"got a window of {T + 1} tokens, expected 1 to {T}"):
        TokenView(decoder, T + 1).record(params, base, ())
    with pytest.raises(ValueError, match=r"got a record of \['final_input'\], expected tap names among"):
        TokenView(decoder, 3).record(params, base, ("final_input",))
    resume = lambda tap: TokenView(decoder, 3).resume(
        params, tap, jnp.int32(0), jnp.zeros((N, 16)), inputs=base, states=jnp.zeros((L, N, 16))
    )
    with pytest.raises(ValueError, match="got prompts that have not been run"):
        resume(TAP)
    with pytest.raises(ValueError, match=r"got a resume from 'logits', expected one of .*'block_output'"):
        resume("logits")


def test_sites_of_a_view_are_its_blocks(gemma):
    view = TokenView(gemma[0])
    assert state_sites(view.taps[TAP]).depth.tolist() == [0, 1, 2]


class _Constant:
    """Replace the activation."""

    def __init__(self, value):
        self.value = value

    def __call__(self, activation):
        return self.value.astype(activation.dtype)


jax.tree_util.register_pytree_node(_Constant, lambda edit: ((edit.value,), None), lambda _, leaves: _Constant(*leaves))
