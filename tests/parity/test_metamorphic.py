"""Laws that need no oracle but the library itself, run another way. No PyTorch.

Each first sees that the intervention moved something, and each has a fault that makes it fail.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from broken import broken, noticed
from decoder_families import FAMILIES, SIZES, drawn, padded

from abstraction.causal import PairBank
from abstraction.evaluation import record
from abstraction.interventions import Handle, Interchange, rotation_basis
from abstraction.interventions.bases import random_frames
from abstraction.interventions.patching import map_handles, patched_outputs, run_pairs
from abstraction.localization import Rotation, SearchConfig, candidate_grid, full_supports
from abstraction.localization.searching import train_candidates
from abstraction.models import (
    MLP,
    Decoder,
    Network,
    TokenView,
    at_positions,
    decoder,
    decoder_blocks,
    prompts_at,
    token_views,
)
from abstraction.models.decoder_unrolled import unrolled_decoder

N, T, L, TAP, WIDTH = 4, 6, SIZES["depth"], "block_output", SIZES["width"]
# Sums of 16 to 24 float32 terms in another order, through 3 blocks whose norms divide by small numbers.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
MOVED = 1e-2
DECODER = Decoder(FAMILIES["gemma2"])


def draw():
    return np.random.default_rng(19)


def pair(back=0):
    rng = draw()
    return tuple(prompts_at(padded(rng, N, T, 4), np.full(N, T - 1 - back)) for _ in range(2))


def moved(outputs, clean):
    assert (np.abs(np.asarray(outputs) - clean).max(axis=-1) > MOVED).all(), "the intervention moves nothing"


def subspaces(weight=1.0):
    """Handles at different depths of subspaces of rank 5."""
    frames = rotation_basis(random_frames(jax.random.key(3), (5,), WIDTH, 5))
    return Handle(TAP, np.full((5, 5), weight, np.float32), frames, np.array([2, 0, 1, 0, 1]))


def one(handles, index):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], handles)


def viewed(window=1, of=DECODER, params=None, back=0):
    network = Network(TokenView(of, window), drawn(of) if params is None else params)
    return network, run_pairs(network, *pair(back), taps=(TAP,))


_alone = jax.jit(lambda network, runs, handle: patched_outputs(network, runs, handle))


def every(network, runs, handles):
    """Run each handle alone."""
    return np.stack([_alone(network, runs, one(handles, index)) for index in range(len(handles.depth))])


def check_vmap():
    """vmap over sites is a Python loop over them."""
    network, runs = viewed()
    loop = every(network, runs, subspaces())
    moved(loop, runs.outputs)
    mapped = jax.jit(jax.vmap(lambda handle: patched_outputs(network, runs, handle)))(subspaces())
    np.testing.assert_allclose(mapped, loop, **CLOSE)


def check_jit():
    """jit is eager."""
    model = MLP(4, 6, 3, 3)
    network = Network(model, model.init(jax.random.key(0)))
    base, source = draw().standard_normal((2, N, 4)).astype(np.float32) * 5
    _, states = network(source, record=("hidden",))
    edits = Handle("hidden", np.full((3, 6), 0.5, np.float32)).edits(states["hidden"])
    compiled = jax.jit(lambda network, base, edits: network(base, edits)[0])(network, base, edits)
    moved(compiled, network(base)[0])
    with jax.disable_jit():
        np.testing.assert_allclose(compiled, network(base, edits)[0], **CLOSE)


def check_scan():
    """A scan over layers is the layers one after another, with edits of all of them."""
    params = drawn(DECODER)
    apart, own = unrolled_decoder(DECODER, params)
    tokens = padded(draw(), N, T, 4)
    source = draw().standard_normal((L, N, T, WIDTH)).astype(np.float32)
    edit = Interchange(source, np.linspace(0.1, 0.5, L, dtype=np.float32)[:, None] * np.ones(WIDTH, np.float32))
    each = {f"{TAP}{depth}": jax.tree.map(lambda leaf, d=depth: leaf[d : d + 1], edit) for depth in range(L)}
    run = lambda model: jax.jit(lambda params, edits: model.apply(params, tokens, edits)[0])
    scanned = run(DECODER)(params, {TAP: edit})
    moved(scanned, run(DECODER)(params, {}))
    np.testing.assert_allclose(scanned, run(apart)(own, each), **CLOSE)


def check_prefix():
    """What runs on from cached keys and values is the whole prompt, run again."""
    network, runs = viewed(window=3, back=1)
    local = Handle(TAP, np.ones((2, WIDTH), np.float32), None, np.array([0, 1]))
    cached = every(network, runs, local)
    moved(cached, runs.outputs)
    whole = np.eye(L, dtype=np.float32)[:2, :, None] * np.ones(WIDTH, np.float32)
    full = [_alone(network, runs, Handle(TAP, weight)) for weight in whole]
    np.testing.assert_allclose(cached, np.stack(full), **CLOSE)


def check_chunks():
    """Chunks of any size are one shot."""
    network, runs = viewed()
    handles = subspaces()
    sweep = lambda chunk: jax.jit(
        lambda runs, handles: map_handles(lambda handle: patched_outputs(network, runs, handle), handles, chunk=chunk)
    )(runs, handles)
    shot = sweep(5)
    moved(shot, runs.outputs)
    for chunk in (1, 2):
        np.testing.assert_allclose(sweep(chunk), shot, **CLOSE)


def check_self():
    """A patch with the base's own states is none: bitwise without a basis."""
    network, runs = viewed()
    moved(every(network, runs, subspaces()), runs.outputs)
    own = dataclasses.replace(runs, source=runs.base)
    np.testing.assert_allclose(every(network, own, subspaces(3.0)), np.stack([runs.outputs] * 5), **CLOSE)
    tokens, params = padded(draw(), N, T, 4), drawn(DECODER)
    run = jax.jit(lambda edits: DECODER.apply(params, tokens, edits, (TAP,)))
    outputs, states = run({TAP: Interchange(jnp.zeros((L, N, T, WIDTH)), jnp.zeros((L, 1, WIDTH)))})
    weight = np.ones((L, 1, WIDTH), np.float32)
    again, _ = run({TAP: Interchange(states[TAP], weight)})
    np.testing.assert_array_equal(again, outputs)
    moved(run({TAP: Interchange(states[TAP][:, ::-1], weight)})[0], outputs)


def check_last():
    """The whole residual stream after the last layer, patched, gives the source's logits."""
    network, runs = viewed()
    source = np.asarray(jax.jit(lambda p: DECODER.apply(network.params, p)[0])(pair()[1].tokens))
    moved(source, runs.outputs)
    last = Handle(TAP, np.ones((1, WIDTH), np.float32), None, np.array([L - 1]))
    np.testing.assert_allclose(every(network, runs, last)[0], source, **CLOSE)


LEARNED = Decoder(FAMILIES["gpt2"])
_edited = jax.jit(lambda params, tokens, edits: LEARNED.apply(params, tokens, edits)[0])


def _patched(tokens, positions, source):
    """Patch the block outputs at depth 1 at a position of each prompt."""
    weight = (np.arange(L) == 1)[:, None, None] * np.ones(WIDTH, np.float32)
    edit = at_positions(Interchange(np.broadcast_to(source, (L, *source.shape)), weight), positions, depth=L)
    params = drawn(LEARNED)
    return np.asarray(_edited(params, tokens, {TAP: edit})), np.asarray(_edited(params, tokens, {}))


def check_padding():
    """Padding of any length, on either side, changes nothing: positions count tokens."""
    rng = draw()
    tokens, source = padded(rng, N, T, 4), rng.standard_normal((N, WIDTH)).astype(np.float32)
    where = np.full(N, T - 2)
    got, clean = _patched(tokens, where, source)
    moved(got, clean)
    for left, right in ((2, 1), (0, 3)):
        more = np.pad(tokens, ((0, 0), (left, right)), constant_values=-1)
        np.testing.assert_allclose(_patched(more, where + left, source)[0], got, **CLOSE)


def check_order():
    """A batch in another order is the results in that order."""
    rng = draw()
    tokens, source = padded(rng, N, T, 4), rng.standard_normal((N, WIDTH)).astype(np.float32)
    where, order = np.array([T - 1, T - 2, T - 1, T - 3]), np.array([1, 2, 0, 3])
    got, clean = _patched(tokens, where, source)
    moved(got, clean)
    np.testing.assert_allclose(_patched(tokens[order], where[order], source[order])[0], got[order], **CLOSE)


HALF = 0.1
"""8 bits of mantissa are 0.4 % of each activation; a few of these make a logit: a tenth of the largest bounds it."""


def check_half():
    """bfloat16 is within a tenth of the largest logit, and is not float32."""
    params = drawn(DECODER)
    half = Decoder(dataclasses.replace(DECODER.config, dtype="bfloat16"))
    network, runs = viewed(params=params)
    exact = every(network, runs, subspaces())
    moved(exact, runs.outputs)
    cast, cast_runs = viewed(of=half, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
    error = np.abs(every(cast, cast_runs, subspaces()).astype(np.float32) - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < HALF, f"{error} of the largest logit"


def _search(candidates, key, fit, network):
    config = SearchConfig(batch_size=8, max_epochs=3, min_epochs=3, patience=3)
    return train_candidates(key, network, fit, candidates, Rotation(), config)


def check_seeds():
    """A seed's draws, of frames and of batches, are the same however many candidates are searched at once."""
    model = MLP(4, 6, 2, 3, "tanh")
    network = Network(model, model.init(jax.random.key(0)))
    base, source = draw().standard_normal((2, 16, 4)).astype(np.float32)
    labels = draw().integers(0, 3, (1, 16)).astype(np.int32)
    bank = PairBank({"x": base}, {"x": source}, np.zeros(16, np.int32), labels, np.ones((1, 16), bool), ("z",), "fit")
    fit, tap = record(network, lambda setting: setting["x"], bank, tap="hidden"), model.taps["hidden"]
    grid = lambda depths: candidate_grid(
        jax.random.key(1), tap, full_supports(tap, [0], depths), ranks=(2,), learning_rates=(1e-2,), restarts=2
    )
    together = _search(grid([0, 1]), jax.random.key(2), fit, network)
    start = np.asarray(together.candidates.start)
    assert np.abs(np.asarray(together.handles.basis.encoder) - start).max() > MOVED / 2, "nothing is trained"
    alone = [_search(grid([depth]), jax.random.key(2), fit, network) for depth in (0, 1)]
    for got, want in zip(
        jax.tree.leaves((together.handles.basis, together.curve.T)),
        zip(*(jax.tree.leaves((part.handles.basis, part.curve.T)) for part in alone), strict=True),
        strict=True,
    ):
        np.testing.assert_allclose(got, np.concatenate(want), rtol=1e-4, atol=1e-5)
    bands = train_candidates(
        jax.random.key(2), network, fit, grid([0, 1]), Rotation(),
        SearchConfig(batch_size=8, max_epochs=3, min_epochs=3, patience=3, bands=2),
    )  # fmt: skip
    np.testing.assert_allclose(bands.curve, together.curve, rtol=1e-4)


def check_remat():
    """Gradients with what is between blocks kept are those with it computed again."""
    network, runs = viewed(window=2, back=1)
    direction = jax.random.normal(jax.random.key(2), runs.outputs.shape)

    def slope(weight):
        handle = Handle(TAP, weight, None, jnp.int32(0))
        return (patched_outputs(network, runs, handle) * direction).sum()

    weight = jnp.full(WIDTH, 0.5)
    again = np.asarray(jax.jit(jax.grad(slope))(weight))
    assert np.abs(again).max() > MOVED, "the intervention moves nothing"
    with broken(jax, "checkpoint", lambda function, **options: function):
        kept = jax.jit(jax.grad(lambda weight: slope(weight)))(weight)
    # a gradient sums over pairs and outputs, some of which cancel
    np.testing.assert_allclose(again, kept, rtol=1e-4, atol=1e-4)


LAWS = {
    "vmap is a loop": check_vmap,
    "jit is eager": check_jit,
    "a scan is its steps": check_scan,
    "a cached prefix is a full run": check_prefix,
    "chunks are one shot": check_chunks,
    "one's own states are no patch": check_self,
    "the last layer is the output": check_last,
    "padding is nothing": check_padding,
    "order is nothing": check_order,
    "half precision is close": check_half,
    "seeds do not see the batch": check_seeds,
    "remat is nothing": check_remat,
}


@pytest.mark.parametrize("law", LAWS)
def test_a_law(law):
    LAWS[law]()


SWAP, NORM, START, MAP = Interchange.__call__, decoder_blocks.Norm.__call__, Rotation.init, jax.lax.map


def _run_all(needed, function, value):
    """Skip for all or for none, and forget that some entries keep their value."""
    from abstraction.models.skipping import _any

    return jax.lax.cond(_any(needed), function, lambda same: same, value)


def _rolled(function, xs, *, batch_size=None):
    found = MAP(function, xs, batch_size=batch_size)
    return found if batch_size is None else jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), found)


def _traced(self, activation):
    return SWAP(self, activation) * (1.01 if isinstance(activation, jax.core.Tracer) else 1)


def _halved(values):
    """Keep values, and half of each gradient."""
    return 0.5 * values + jax.lax.stop_gradient(0.5 * values)


FAULTS = {
    "vmap is a loop": (decoder, "run_if", _run_all),
    "jit is eager": (Interchange, "__call__", _traced),
    "a scan is its steps": (Decoder, "_windowed", lambda self: jnp.zeros(L, bool)),
    "a cached prefix is a full run": (
        token_views, "token_positions", lambda tokens: jnp.zeros(tokens.shape, jnp.int32),
    ),
    "chunks are one shot": (jax.lax, "map", _rolled),
    "one's own states are no patch": (Interchange, "__call__", lambda self, h: SWAP(self, h) + 0.01 * h),
    "the last layer is the output": (Interchange, "__call__", lambda self, h: 0.9 * SWAP(self, h) + 0.1 * h),
    "padding is nothing": (decoder, "token_positions", lambda tokens: jnp.arange(tokens.shape[1]) + 0 * tokens),
    "order is nothing": (
        Interchange, "__call__", lambda self, h: SWAP(Interchange(self.source[::-1], self.weight, self.basis), h),
    ),
    "half precision is close": (
        decoder_blocks.Norm, "__call__", lambda self, h: NORM(self, h) * (1 + (h.dtype == jnp.bfloat16)),
    ),
    "seeds do not see the batch": (
        Rotation, "init", lambda self, some: jax.tree.map(lambda leaf: leaf + 0.02 * len(leaf), START(self, some)),
    ),
    "remat is nothing": (
        jax, "checkpoint", lambda function, **options: lambda *args: _halved(function(*args)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("law", LAWS)
def test_a_law_notices_its_fault(law):
    assert set(FAULTS) == set(LAWS)
    with noticed(*FAULTS[law]):
        LAWS[law]()
