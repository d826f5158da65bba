"""Decoders against transformers: logits, every tap, and interchanges by raw PyTorch forward hooks."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hooked_decoders import CONFIGS, L, T, ends, hook_run, network, padded, places, replacing, torch, transformers

from abstraction.interventions.edits import Add, Interchange, Set
from abstraction.models import Network, at_positions, load_decoder
from abstraction.models.positions import AtPositions

pytestmark = pytest.mark.parity

N, P = 4, 3
# float32, other orders of summation through four blocks of weights near 0.3: transformers itself is up to 2e-5 from
# its own float64, and we are no further.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
# An effect that counts in one example, several times what is within tolerance; some example moves ten times as far.
MOVED = 2e-3


class Case(NamedTuple):
    kind: str
    net: object
    network: Network
    base: np.ndarray
    source: np.ndarray
    clean: tuple  # of the base, by hooks
    theirs: dict  # taps of the source, by hooks
    ours: dict  # the same, recorded


LENGTHS = {"none": [T] * N, "left": [5, 9, 6, 7], "right": [5, 9, 6, 7]}


@pytest.fixture(scope="module", params=CONFIGS, name="case")
def _case(request, tmp_path_factory):
    return built(request.param, tmp_path_factory.mktemp(request.param))


def built(kind, folder):
    """Write a network, read it, and run both forms once."""
    net, rng = network(kind), np.random.default_rng(1)
    net.save_pretrained(folder)
    ours = load_decoder(folder)
    base = padded(rng, ours.model.config.vocabulary, [6, 9, 7, 8], "left")
    source = padded(rng, ours.model.config.vocabulary, [7, 6, 9, 8], "right")
    clean, (_, theirs) = hook_run(net, kind, base), hook_run(net, kind, source)
    return Case(kind, net, ours, base, source, clean, theirs, _recorded(ours, source)[1])


@partial(jax.jit, static_argnames=("record",))
def _run(ours, tokens, edits, record=(), at=None):
    run = ours.model.run(ours.params, tokens, edits, record, at=at)
    return run.outputs, run.recorded


@jax.jit
def _read(ours, stream):
    """Read the stream before the last norm at every position."""
    network = ours.model.network(ours.params)
    return ours.model.read(network, stream.reshape(-1, stream.shape[-1])).reshape(*stream.shape[:2], -1)


def _close(ours, theirs, place=""):
    """Compare activations, which are far above 1 in some taps and cancel to nothing beside it in some units."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * max(1, np.abs(theirs).max()), err_msg=str(place))


def _recorded(ours, tokens):
    """Run `[N, T]` or `[T N, T]` tokens, as so many that each network compiles once."""
    outputs, values = _run(ours, np.resize(tokens, (T * N, T)), {}, tuple(ours.taps))
    rows = {tap: np.asarray(value)[..., : len(tokens), :, :] for tap, value in values.items() if tap != "logits"}
    return np.asarray(outputs)[: len(tokens)], rows | {"logits": np.asarray(values["logits"])[0, : len(tokens)]}


def _patched(case, *changes):
    """Run the base with interchanges, each (tap, depth, positions, values `[N, P, D]`, units per example or None).

    Every tap has an edit, nearly all of weight 0: what is edited is a value, and each network compiles once.
    """
    edits = {}
    for tap in case.network.taps.values():
        if tap.name == "logits":
            continue
        weight, source = (np.zeros((tap.depth, N, P, tap.width), np.float32) for _ in range(2))
        positions = np.full((tap.depth, N, P), -1)
        for name, depth, where, values, units in changes:
            if name == tap.name:
                slot = depth or 0
                positions[slot], source[slot] = where, values
                for n in range(N):
                    weight[slot, n, slice(None), slice(None) if units is None else units[n]] = 1
        edits[tap.name] = AtPositions(Interchange(source, weight), positions)
    outputs, values = _run(case.network, case.base, edits, tuple(case.network.taps))
    return np.asarray(outputs), {name: np.asarray(value) for name, value in values.items()}


def _at(values, positions):
    """Take `[N, P, D]` at positions of `[N, T, D]`; whatever at negative ones."""
    return np.stack([value[np.maximum(where, 0)] for value, where in zip(values, positions, strict=True)])


def _check_patch(case, *changes, changed=(True,) * N):
    """Compare one patched run; each change is (tap, depth, positions, from tap, from depth, from positions, units)."""
    changed = np.array(changed)
    edits, interchanges = {}, []
    for tap, depth, positions, from_tap, from_depth, from_positions, units in changes:
        edits[tap, depth] = replacing(positions, _at(case.theirs[from_tap, from_depth], from_positions), units)
        recorded = case.ours[from_tap][from_depth or 0]
        interchanges.append((tap, depth, positions, _at(recorded, from_positions), units))
    rows, last = np.arange(N), ends(case.base)
    wanted, seen = hook_run(case.net, case.kind, case.base, edits)
    moved = np.abs(wanted - case.clean[0])[rows, last].max(axis=1)
    assert (moved > MOVED)[changed].all(), ("moves nothing", changes[0][:2], moved)
    assert moved.max() > 10 * MOVED, ("moves nothing", changes[0][:2], moved)
    assert not moved[np.logical_not(changed)].any(), (changes[0][:2], moved)
    got, values = _patched(case, *interchanges)
    np.testing.assert_allclose(got, wanted[rows, last], **CLOSE, err_msg=str(changes[0][:2]))
    every = np.asarray(_read(case.network, values["final_input"][0]))
    np.testing.assert_allclose(every[case.base >= 0], wanted[case.base >= 0], **CLOSE, err_msg=str(changes[0][:2]))
    return values, seen


def _positions(case):
    """Return P positions of each base prompt and of its source prompt, the last token of both among them.

    Both are in padded coordinates, of prompts padded on different sides: no two are equal.
    """
    base = np.stack([ends(case.base), ends(case.base) - 2, ends(case.base) - 4], axis=1)
    source = np.stack([ends(case.source) - 1, ends(case.source), ends(case.source) - 3], axis=1)
    source = np.where(source == base, source - 2, source)
    assert (base != source).all()
    assert all(
        (tokens[np.arange(N)[:, None], at] >= 0).all() for tokens, at in ((case.base, base), (case.source, source))
    )
    return base, source


def _only(column, positions):
    return np.where(np.arange(P) == column, positions, -1)


@pytest.mark.parametrize("side", LENGTHS)
def test_logits_are_those_of_transformers_at_every_position(case, side, rng):
    """P1: a prompt cut after each of its tokens has the logits of the whole prompt there."""
    tokens = padded(rng, case.network.model.config.vocabulary, LENGTHS[side], side)
    wanted, _ = hook_run(case.net, case.kind, tokens)
    counts = np.cumsum(tokens >= 0, axis=1)
    cut = np.stack([np.where(counts <= length, tokens, -1) for length in range(1, T + 1)])
    got = _recorded(case.network, cut.reshape(T * N, T))[0].reshape(T, N, -1)
    assert wanted[tokens >= 0].std() > 1
    for n in range(N):
        for index in np.flatnonzero(tokens[n] >= 0):
            np.testing.assert_allclose(got[counts[n, index] - 1, n], wanted[n, index], **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_taps_are_what_hooks_see(case, side, rng):
    """P2."""
    tokens = padded(rng, case.network.model.config.vocabulary, LENGTHS[side], side)
    logits, seen = hook_run(case.net, case.kind, tokens)
    outputs, values = _recorded(case.network, tokens)
    assert {tap for tap, _ in seen} == set(case.network.taps) - {"logits"}
    for (tap, depth), value in seen.items():
        recorded = values[tap][depth or 0]
        _close(recorded[tokens >= 0], value[tokens >= 0], (tap, depth))
    np.testing.assert_allclose(outputs, logits[np.arange(N), ends(tokens)], **CLOSE)
    np.testing.assert_array_equal(values["logits"], outputs)


@pytest.mark.parametrize("many", [False, True], ids=["one position", "three positions"])
def test_interchange_at_every_tap_is_what_hooks_do(case, many):
    """P3: base and source at different positions, of prompts of different lengths."""
    base, source = _positions(case)
    for tap, depth in places(case.net, case.kind):
        # Late in the network only what the last token reads matters, and it is among the three positions.
        if depth is None or (depth >= 2) == many:
            where = base if many else _only(0 if depth is None else 1, base)
            _check_patch(case, (tap, depth, where, tap, depth, source, None))


@pytest.mark.parametrize("tap", ["query", "head_output", "key", "value"])
def test_interchange_of_heads_is_what_hooks_do(case, tap):
    """P4: another head in every example; keys and values by key-value head."""
    base, source = _positions(case)
    size = case.network.model.config.head_size
    heads = case.network.taps[tap].width // size
    kv = getattr(case.net.config, "num_key_value_heads", case.net.config.num_attention_heads)
    assert heads == (kv if tap in ("key", "value") else case.net.config.num_attention_heads)
    units = [list(range(n % heads * size, (n % heads + 1) * size)) for n in range(N)]
    values, seen = _check_patch(case, (tap, 1, base, tap, 1, source, units))
    _close(values[tap][1][case.base >= 0], seen[tap, 1][case.base >= 0])


def test_ragged_positions_are_what_loops_over_examples_do(case):
    """P5: one, two and three positions in one batch, and none: that example stays as it is."""
    base, source = _positions(case)
    ragged = np.where(np.arange(P) < np.array([[1], [0], [3], [2]]), base, -1)
    for tap, where in (("block_output", ragged), ("mlp_output", ragged[:, ::-1])):
        _check_patch(case, (tap, 1, where, tap, 1, source, None), changed=(True, False, True, True))


def test_zero_constant_mean_added_and_subtracted_vectors_are_what_hooks_do(case, rng):
    """P6: zero at all positions; at one per example a vector or a mean in its place, added, and subtracted."""
    taps, depth = case.network.taps, 1
    vector = {
        tap: rng.standard_normal(taps[tap].width).astype(np.float32)
        for tap in ("head_output", "block_output", "block_input")
    }
    vector["attention_output"] = case.ours["attention_output"][depth][case.source >= 0].mean(axis=0)
    where = _positions(case)[0][:, 0] - np.array([0, 1, 2, 3])

    def ours(active):
        at = lambda tap, array: np.where(np.arange(L)[:, None] == depth, array, 0).astype(np.float32) * (tap == active)
        put = lambda tap, value: Set(np.tile(value, (L, 1)), at(tap, np.ones(taps[tap].width)))
        edits = {"mlp_output": Set(np.zeros((L, 1), np.float32), at("mlp_output", np.ones(taps["mlp_output"].width)))}
        changes = {tap: put(tap, vector[tap]) for tap in ("head_output", "attention_output")}
        changes["block_output"] = Add(at("block_output", vector["block_output"]))
        changes["block_input"] = Add(-at("block_input", vector["block_input"]))
        edits |= {tap: at_positions(edit, where, depth=L) for tap, edit in changes.items()}
        return _run(case.network, case.base, edits)[0]

    def moved_by(offset, value):
        for n in range(N):
            value[n, where[n]] += torch.tensor(offset)
        return value

    mean = case.theirs["attention_output", depth][case.source >= 0].mean(axis=0)
    oracle = {
        "mlp_output": torch.zeros_like,
        "block_output": partial(moved_by, vector["block_output"]),
        "block_input": partial(moved_by, -vector["block_input"]),
        "head_output": replacing(where[:, None], [[vector["head_output"]]] * N),
        "attention_output": replacing(where[:, None], [[mean]] * N),
    }
    rows, last = np.arange(N), ends(case.base)
    for tap, edit in oracle.items():
        wanted, _ = hook_run(case.net, case.kind, case.base, {(tap, depth): edit})
        assert (np.abs(wanted - case.clean[0])[rows, last].max(axis=1) > MOVED).all(), f"{tap} moves nothing"
        np.testing.assert_allclose(ours(tap), wanted[rows, last], **CLOSE, err_msg=tap)


def test_recording_at_positions_gives_each_its_own_vector(case):
    """P13."""
    positions, _ = _positions(case)
    _, seen = case.clean
    names = tuple(name for name in case.network.taps if name != "logits")
    _, values = _run(case.network, case.base, {}, names, at=positions)
    for (tap, depth), value in seen.items():
        recorded = values[tap][depth or 0]
        assert recorded.shape == (N, P, case.network.taps[tap].width)
        _close(recorded, _at(value, positions), (tap, depth))
        assert np.abs(np.diff(_at(value, positions), axis=1)).max(axis=-1).min() > MOVED


def test_recording_after_an_edit_upstream_sees_it(case):
    """P14: everything downstream of two edits, themselves included, is what hooks see; upstream nothing moves."""
    base, source = _positions(case)
    changes = [(tap, depth, base, tap, depth, source, None) for tap, depth in (("mlp_output", 1), ("key", 2))]
    (values, seen), (_, before) = _check_patch(case, *changes), case.clean
    token = case.base >= 0
    for (tap, depth), value in seen.items():
        recorded = values[tap][depth or 0]
        _close(recorded[token], value[token], (tap, depth))
        moved = np.abs(value - before[tap, depth])[token].max()
        if depth is None or depth >= 2 or (depth == 1 and tap in ("mlp_output", "mlp_post_norm", "block_output")):
            assert moved > MOVED, (tap, depth)
        else:
            assert moved == 0, (tap, depth)


CROSSED = [
    ("block_input", 1, "block_output", 3),
    ("mlp_output", 0, "attention_output", 2),
    ("key", 0, "value", 2),
    ("attention_input", 2, "mlp_input", 1),
    ("block_output", 0, "final_input", None),
]


@pytest.mark.parametrize("sites", CROSSED, ids=lambda sites: f"{sites[0]} from {sites[2]}")
def test_a_source_may_be_of_another_layer_and_component(case, sites):
    """P19."""
    base, source = _positions(case)
    tap, depth, from_tap, from_depth = sites
    _check_patch(case, (tap, depth, base, from_tap, from_depth, source, None))


SWITCHES = {
    "attention cap": ("gemma2", {"attn_logit_softcapping": None}),
    "logit cap": ("gemma2", {"final_logit_softcapping": None}),
    "window": ("gemma2", {"sliding_window": 5}),
    "query scale": ("gemma2", {"query_pre_attn_scalar": 16}),
    "stretched rotations": ("llama3", {"rope_scaling": None}),
    "base of rotations": ("llama", {"rope_theta": 20000.0}),
    "activation": ("gpt2", {"activation_function": "gelu"}),
    "variance": ("qwen2", {"rms_norm_eps": 1e-3}),
}


@pytest.mark.parametrize("switch", SWITCHES.values(), ids=SWITCHES)
def test_the_fixtures_would_tell_a_switch_that_is_overlooked(switch, rng):
    kind, changes = switch
    tokens = rng.integers(CONFIGS[kind]["vocab_size"], size=(N, T))
    logits, other = (hook_run(net, kind, tokens)[0] for net in (network(kind), network(kind, **changes)))
    assert (np.abs(logits - other) / (CLOSE["atol"] + CLOSE["rtol"] * np.abs(logits))).max() > 3


RARE = {
    "gpt2": {"scale_attn_weights": False, "n_inner": 40, "tie_word_embeddings": False, "activation_function": "gelu"},
    "gemma2": {
        "attention_bias": True,
        "final_logit_softcapping": None,
        "layer_types": ["full_attention", "full_attention", "full_attention", "sliding_attention"],
    },
}


@pytest.mark.parametrize("kind", RARE)
def test_rare_switches_are_those_of_transformers(kind, tmp_path, rng):
    net = network.__wrapped__(kind, **RARE[kind])
    net.save_pretrained(tmp_path)
    ours = load_decoder(tmp_path)
    tokens = rng.integers(CONFIGS[kind]["vocab_size"], size=(N, T))
    logits, _ = hook_run(net, kind, tokens)
    np.testing.assert_allclose(_run(ours, tokens, {})[0], logits[:, -1], **CLOSE)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_bfloat16_is_no_further_from_float32_than_in_transformers(kind, tmp_path, rng):
    network(kind).save_pretrained(tmp_path)
    loaded = load_decoder(tmp_path, dtype="bfloat16")
    tokens = rng.integers(CONFIGS[kind]["vocab_size"], size=(32, T))
    exact, _ = hook_run(network(kind), kind, tokens)
    half = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, attn_implementation="eager"
    )
    with torch.no_grad():
        theirs = half(torch.tensor(tokens)).logits.float().numpy()
    ours, _ = _run(loaded, jnp.asarray(tokens), {})
    np.testing.assert_array_equal(
        loaded.params["embedding"].astype(jnp.float32), half.get_input_embeddings().weight.float().detach()
    )
    error = lambda logits: np.sqrt(np.mean((np.asarray(logits) - exact[:, -1]) ** 2))
    assert 0 < error(ours) < 1.2 * error(theirs[:, -1])
