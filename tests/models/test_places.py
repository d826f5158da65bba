"""Places: a layer and a named token as one depth, of any tap of a block and of any model."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_families import FAMILIES, LATER, drawn, padded

from abstraction.interventions import Handle, Interchange, Set, group_sites
from abstraction.interventions.bases import random_frames, rotation_basis
from abstraction.interventions.patching import map_handles, patched_outputs, run_pairs
from abstraction.models import Decoder, Network, PlaceView, TokenView, at_positions, highlighted, placed, prompts_at
from abstraction.models.places import Placed
from abstraction.models.token_views import window_of

N, T, SHORTEST, L = 5, 7, 4, 3
NAMES = ("early", "middle", "last")
P = len(NAMES)
# Sums of 16 to 24 terms in another order, through 3 blocks whose norms divide by small numbers; logits are of order 1.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def _positions(rng, tokens):
    """Name three tokens of each prompt, the last one among them; in the first prompt two are one token."""
    first = (tokens >= 0).argmax(axis=1)
    early, middle = first + rng.integers(0, 2, N), first + 2 + rng.integers(0, T - SHORTEST, N) % (T - first - 2)
    middle[0] = early[0]
    return dict(zip(NAMES, (early, middle, np.full(N, T - 1)), strict=True))


def _draw(rng):
    tokens = padded(rng, N, T, SHORTEST)
    return tokens, _positions(rng, tokens)


@pytest.fixture(scope="module", name="case")
def _case():
    """Draw base and source prompts with named tokens."""
    rng = np.random.default_rng(1)
    return _draw(rng), _draw(rng)


@partial(jax.jit, static_argnums=0)
def _full_run(decoder, params, base, source, place):
    """Run the decoder, whole, with its state at one tap, layer and token of each prompt swapped; a program for all."""
    (tokens, base_positions), (source_tokens, source_positions) = base, source
    tap, layer, which = place
    names = [name for name in decoder.taps if name not in ("final_input", "logits")]
    _, states = decoder.apply(params, source_tokens, record=names)
    edits = {}
    for index, name in enumerate(names):
        values = states[name][:, jnp.arange(N), source_positions[:, which]]
        there = ((jnp.arange(L) == layer) & (tap == index))[:, None, None] * jnp.ones((L, 1, values.shape[-1]))
        edits[name] = at_positions(Interchange(values, there), base_positions[:, which], depth=L)
    return decoder.apply(params, tokens, edits)[0]


def _full_runs(decoder, params, case, tap):
    """Swap a tap at each place, by full runs."""
    sides = [(tokens, np.stack(list(positions.values()), axis=1)) for tokens, positions in case]
    index = list(decoder.taps).index(tap)
    places = [(index, layer, which) for layer in range(L) for which in range(sides[0][1].shape[1])]
    return [_full_run(decoder, params, *sides, jax.tree.map(jnp.int32, place)) for place in places]


@partial(jax.jit, static_argnums=(1, 2))
def _swapped(network, tap, chunk, runs, handles):
    return map_handles(lambda handle: patched_outputs(network, runs, handle), handles, chunk=chunk)


def _whole(view, tap):
    """A handle for each place, that swaps everything there."""
    width, count = view.taps[tap].width, view.taps[tap].depth
    return Handle(tap, np.ones((count, width), np.float32), None, np.arange(count))


def _runs(view, params, case, taps):
    prompts = [prompts_at(*each) for each in case]
    view = dataclasses.replace(view, window=window_of(*prompts))
    network = Network(view, params)
    return network, run_pairs(network, *prompts, taps=taps)


SOME = {
    "gpt2": ("query", "head_output", "mlp_hidden"),
    "gemma2": ("block_input", "block_output", "key", "value", "mlp_product", "attention_post_norm"),
    "gpt_neox": ("value", "head_output", "mlp_input", "mlp_hidden"),
    "gemma3": ("query", "value", "head_output"),
}
"""Taps that the others are beside in a block; all of them in all families take minutes to compile."""


@pytest.mark.parametrize(  # Gemma-2 is seen at places by the tests below, too
    ("family", "taps"),
    [
        *[
            pytest.param(*each, marks=pytest.mark.slow if each[0] in ("gemma2", "gpt_neox") else ())
            for each in SOME.items()
        ],
        *[pytest.param(name, None, marks=pytest.mark.slow, id=name) for name in FAMILIES | LATER],
    ],
)
def test_a_swap_at_a_place_is_that_of_the_full_run_at_every_tap_layer_and_token(family, taps, case):
    decoder = Decoder((FAMILIES | LATER)[family])
    params, view = drawn(decoder), TokenView(decoder, positions=NAMES)
    assert set(view.taps) == set(decoder.taps) - {"final_input"}
    taps = tuple(name for name in view.taps if name != "logits") if taps is None else taps
    network, runs = _runs(view, params, case, taps)
    for tap in taps:
        found, expected = _swapped(network, tap, L * P, runs, _whole(view, tap)), _full_runs(decoder, params, case, tap)
        np.testing.assert_allclose(found, expected, **CLOSE, err_msg=tap)
        # the last token is read at every layer, an earlier one at least after the first
        moved = np.abs(found - runs.outputs).max(axis=(1, 2))
        assert (moved[P - 1 :: P] > 1e-3).all(), tap
        assert (moved[:P] > 1e-3).all(), tap


def test_a_view_of_the_last_token_keeps_one_token_and_gives_what_the_full_run_gives(case):
    decoder = Decoder(FAMILIES["llama"])
    params, view = drawn(decoder), TokenView(decoder)
    last = [(tokens, np.full(N, T - 1)) for tokens, _ in case]
    named = [(tokens, {"last": position}) for tokens, position in last]
    network, runs = _runs(view, params, last, ("block_input", "key", "mlp_product"))
    assert runs.inputs.window.shape == (N, L, 1, decoder.config.width)
    for tap in ("block_input", "key"):
        expected = _full_runs(decoder, params, named, tap)
        np.testing.assert_allclose(_swapped(network, tap, L, runs, _whole(view, tap)), expected, **CLOSE)
    # of the residual stream at the last token nothing is kept beside it
    assert _runs(view, params, last, ("block_output", "block_input"))[1].inputs.window is None


@pytest.fixture(scope="module", name="gemma")
def _gemma(case):
    decoder = Decoder(FAMILIES["gemma2"])
    taps = ("block_input", "head_output", "value")
    view = TokenView(decoder, positions=NAMES)
    return view, *_runs(view, drawn(decoder), case, taps)


def test_places_are_layers_and_names_the_names_fastest(gemma):
    view, network, runs = gemma
    tap = view.taps["value"]
    assert tap.axes == (("layer", ("0", "1", "2")), ("position", NAMES))
    assert (tap.depth, tap.width) == (L * P, 12)
    assert [tap.place(depth) for depth in (0, 5, 7)] == [
        {"layer": "0", "position": "early"},
        {"layer": "1", "position": "last"},
        {"layer": "2", "position": "middle"},
    ]
    whole = network.model.decoder.apply(network.params, runs.inputs.tokens, record=("value",))[1]["value"]
    for depth in range(L * P):
        expected = whole[depth // P, np.arange(N), runs.inputs.position[:, depth % P]]
        np.testing.assert_allclose(runs.base["value"][depth], expected, **CLOSE)
    assert TokenView(view.decoder).taps["value"].axes == view.decoder.taps["value"].axes
    with pytest.raises(ValueError, match=r"got depths at tap 'value' \[9\], expected whole numbers from 0 to 8"):
        tap.place(9)


def test_one_program_serves_all_places(gemma, rng):
    _, network, runs = gemma
    traces = []

    @jax.jit
    def run(handle):
        traces.append(1)
        return patched_outputs(network, runs, handle)

    for place in range(L * P):
        run(Handle("head_output", rng.random(24, np.float32), None, jnp.int32(place)))
    assert len(traces) == 1


@pytest.mark.slow
def test_mapping_over_places_is_a_loop(gemma):
    _, network, runs = gemma
    frames = random_frames(jax.random.key(3), (L * P,), 12, 4)
    weight = np.linspace(0.5, 1.5, 4 * L * P, dtype=np.float32).reshape(L * P, 4)
    handles = Handle("value", weight, rotation_basis(frames), np.arange(L * P)[::-1].copy())
    mapped, loop = (_swapped(network, "value", chunk, runs, handles) for chunk in (L * P, 1))
    np.testing.assert_allclose(mapped, loop, **CLOSE)


def test_a_head_is_a_group_of_coordinates_at_a_place(gemma, case):
    view, network, runs = gemma
    size = view.decoder.config.head_size
    heads = group_sites(view.taps["head_output"], size)
    place, head = 4, 2  # layer 1, the token `middle`
    site = heads.take(np.array([place * 4 + head]))
    found = _swapped(network, "head_output", 1, runs, site.handles())[0]
    weight = np.zeros((L, 1, 24), np.float32)
    weight[1, :, head * size : (head + 1) * size] = 1
    swap = Interchange(runs.source["head_output"][np.array([1, 4, 7])], weight)
    edit = at_positions(swap, np.asarray(runs.inputs.position)[:, 1], depth=L)
    expected = view.decoder.apply(network.params, case[0][0], {"head_output": edit})[0]
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_recording_in_parts_changes_nothing(gemma, case):
    _, network, runs = gemma
    parted = Network(dataclasses.replace(network.model, batch=2), network.params)
    prompts = [prompts_at(*each) for each in case]
    parts = run_pairs(parted, *prompts, taps=tuple(runs.base))
    for part, whole in zip(jax.tree.leaves(parts), jax.tree.leaves(runs), strict=True):
        np.testing.assert_allclose(part, whole, **CLOSE)


def test_blocks_before_every_place_need_not_be_compiled_in(gemma):
    _, network, runs = gemma
    handles = _whole(network.model, "value")
    expected = _swapped(network, "value", L * P, runs, handles)
    for depth in (P, 2 * P + 1):
        later = Network(network.model.from_depth(depth), network.params)
        assert later.model.first == depth // P
        deeper = jax.tree.map(lambda leaf, depth=depth: leaf[depth:], handles)
        np.testing.assert_allclose(_swapped(later, "value", L * P, runs, deeper), expected[depth:], **CLOSE)


@pytest.mark.slow
def test_gradients_at_a_place_are_those_of_the_full_run(gemma):
    _, network, runs = gemma
    direction = jax.random.normal(jax.random.key(2), runs.outputs.shape)
    one = jax.nn.one_hot(4, L * P)[:, None]

    def slope(weight, handle):
        handle = dataclasses.replace(handle, weight=handle.weight * weight)
        return (patched_outputs(network, runs, handle) * direction).sum()

    gradient = jax.jit(jax.grad(slope))
    weight = jnp.linspace(0.2, 1.0, 24)
    cached = gradient(weight, Handle("head_output", jnp.ones(24), None, jnp.int32(4)))
    whole = gradient(weight, Handle("head_output", one * jnp.ones(24)))
    assert np.abs(cached).max() > 1e-3
    # a gradient sums over pairs and outputs, some of which cancel
    np.testing.assert_allclose(cached, whole, rtol=1e-4, atol=1e-5)


def test_edits_of_two_names_of_one_token_act_in_order(gemma):
    _, network, runs = gemma
    value = np.zeros((L * P, 1, 16), np.float32)
    value[3:5] = [[[1.0]], [[2.0]]]  # layer 1, `early` and `middle`, one token in prompt 0
    weight = (value != 0)[:, 0].astype(np.float32)
    _, recorded = network(runs.inputs, {"block_input": Set(value, weight)}, ("block_input",))
    seen = np.asarray(recorded["block_input"])
    np.testing.assert_array_equal(seen[3, :, 0], [2, *[1] * (N - 1)])
    np.testing.assert_array_equal(seen[4, :, 0], 2)


def test_tokens_named_otherwise_and_taps_not_recorded_are_refused(case):
    decoder = Decoder(FAMILIES["llama"])
    params, (tokens, positions) = drawn(decoder), case[0]
    view = TokenView(decoder, T, positions=NAMES)
    prompts = prompts_at(tokens, {name: positions[name] for name in NAMES[::-1]})
    with pytest.raises(
        ValueError, match=r"got inputs with positions \['last', 'middle', 'early'\], expected \['early'"
    ):
        view.apply(params, prompts)
    with pytest.raises(ValueError, match=r"expected \['token'\]"):
        TokenView(decoder, T).record(params, prompts, ())
    plain = TokenView(decoder)
    last = plain.record(params, prompts_at(tokens), ("block_output",))[0]
    with pytest.raises(ValueError, match="recorded for edits of the residual stream alone"):
        plain.resume(params, "query", jnp.int32(0), jnp.zeros((N, 16)), inputs=last, states=jnp.zeros((L, N, 16)))


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A decoder as a user has it: prompts in a dictionary, and one tap without tokens between them."""

    decoder: Decoder

    @property
    def taps(self):
        return {name: self.decoder.taps[name] for name in ("value", "block_output", "logits")}

    def init(self, key):
        return self.decoder.init(key)

    def apply(self, params, inputs, edits=(), record=()):
        return self.decoder.apply(params, inputs["ids"], dict(edits), record)

    def resume(self, params, tap, depth, activation, *, inputs, states):
        raise NotImplementedError


def test_any_model_is_seen_at_places_as_a_decoder_is(gemma, case):
    view, network, runs = gemma
    seen = ("value", "block_output")
    whole = Network(PlaceView(Wrapped(view.decoder), NAMES, seen), network.params)
    assert {name: (tap.depth, tap.axes) for name, tap in whole.taps.items()} == {
        **{name: (L * P, view.taps[name].axes) for name in seen},
        "logits": (1, (("layer", ("0",)),)),
    }
    inputs = [placed({"ids": tokens}, positions) for tokens, positions in case]
    own = run_pairs(whole, *inputs, taps=("value", "logits"))
    np.testing.assert_allclose(own.source["value"], runs.source["value"], **CLOSE)
    np.testing.assert_allclose(own.source["logits"][0], whole(inputs[1])[0], **CLOSE)
    handles = _whole(whole.model, "value")
    found = _swapped(whole, "value", 1, own, handles)
    np.testing.assert_allclose(found, _swapped(network, "value", L * P, runs, handles), **CLOSE)
    swap = _swapped(whole, "logits", 1, own, Handle("logits", np.ones((1, 1, 23), np.float32)))
    np.testing.assert_allclose(swap[0], own.source["logits"][0], **CLOSE)


def test_a_model_of_token_ids_says_itself_which_taps_have_tokens(gemma):
    decoder = gemma[0].decoder
    view = PlaceView(decoder, ("last",))
    assert set(view.seen) == set(decoder.taps) - {"logits"}
    assert view.taps["final_input"].axes == (("layer", ("0",)), ("position", ("last",)))
    assert not any(tap.resumes for tap in view.taps.values())
    with pytest.raises(ValueError, match=r"got a Wrapped that does not take token ids .*tokens=.*'block_output'"):
        PlaceView(Wrapped(decoder), ("last",)).taps  # noqa: B018


def test_places_that_are_not_there_are_nan_where_they_are_traced(gemma, case):
    view, network, _ = gemma
    whole = PlaceView(view.decoder, ("here",))
    tokens = case[0][0]
    run = jax.jit(lambda positions: whole.apply(network.params, Placed(tokens, positions, ("here",)), {}, ("value",)))
    outputs, recorded = run(jnp.array([[T], *[[T - 1]] * (N - 1)]))
    assert np.isfinite(outputs).all()
    assert np.isnan(recorded["value"][:, 0]).all()
    assert np.isfinite(recorded["value"][:, 1:]).all()


def test_chosen_tokens_are_shown_in_brackets():
    tokens = np.array([[-1, 3, 1, 2], [1, 1, 2, 0]])
    assert highlighted(tokens, np.array([1, 3])) == ["[3] 1 2", "1 1 2 [0]"]
    words = ("a", "the", "cat", "Sat")
    decode = lambda ids: " ".join(words[index] for index in ids)
    both = np.array([[1, 3], [0, -1]])
    assert highlighted(tokens, both, decode) == ["[Sat] the [cat]", "[the] the cat a"]
    # pieces of words with their own spaces, and two that are one character
    pieces = (b"Jo", b"hn", b" said ", b"\xc3", b"\xa9")
    bytewise = lambda ids: b"".join(pieces[index] for index in ids).decode(errors="replace")
    assert highlighted(np.array([[0, 1, 2, 3, 4]]), np.array([[1, 4]]), bytewise)[0].startswith("Jo[hn] said ")
    with pytest.raises(ValueError, match="got position 0 in prompt 0, expected one of its tokens, 1 to 3"):
        highlighted(tokens, np.array([0, 1]))
