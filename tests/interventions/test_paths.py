"""Path patching: against two passes written in NumPy, and in a decoder against the residual stream by hand."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_families import FAMILIES, drawn, padded

from abstraction.interventions import building as do
from abstraction.interventions.paths import path_outputs
from abstraction.models import Decoder, Network, Tap
from abstraction.models.taps import NO_EDITS, at_depth, check_taps, tapped, tapped_once

N, D, L = 6, 4, 4
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 against float64


@dataclass(frozen=True)
class Residual:
    """x_0 = inputs,  w_l = tanh(r_l A_l),  r_l = x_l,  x_{l+1} = x_l + w_l,  logits = x_L U."""

    @property
    def taps(self):
        taps = [Tap("read", D, L), Tap("write", D, L), Tap("final", D), Tap("logits", 3)]
        return {tap.name: tap for tap in taps}

    def init(self, key):
        keys = jax.random.split(key)
        return {"layers": jax.random.normal(keys[0], (L, D, D)), "head": jax.random.normal(keys[1], (D, 3))}

    def apply(self, params, inputs, edits=NO_EDITS, record=()):
        check_taps(self.taps, edits, record)
        stream, values = jnp.asarray(inputs), {"read": [], "write": []}
        for layer in range(L):
            here = at_depth({name: edit for name, edit in edits.items() if name in values}, layer)
            values["read"].append(tapped("read", stream, here))
            values["write"].append(tapped("write", jnp.tanh(values["read"][-1] @ params["layers"][layer]), here))
            stream = stream + values["write"][-1]
        stream, final = tapped_once("final", stream, edits)
        logits, emitted = tapped_once("logits", stream @ params["head"], edits)
        recorded = {name: jnp.stack(value) for name, value in values.items()} | {"final": final, "logits": emitted}
        return logits, {name: recorded[name] for name in record}

    def resume(self, params, tap, depth, activation, *, inputs, states):
        raise ValueError(f"got a resume from {tap!r}, expected none")


NETWORK = Network(Residual(), Residual().init(jax.random.key(0)))
BASE, SOURCE = np.random.default_rng(0).standard_normal((2, N, D)).astype(np.float32)


def run(inputs, reads=None):
    """Run in float64, some reads replaced; return logits, reads and writes."""
    layers, head = (np.asarray(NETWORK.params[name], np.float64) for name in ("layers", "head"))
    stream, seen, written = inputs.astype(np.float64), [], []
    for layer in range(L):
        seen.append(stream if reads is None or layer not in reads else reads[layer](stream))
        written.append(np.tanh(seen[-1] @ layers[layer]))
        stream = stream + written[-1]
    return stream @ head, np.stack(seen), np.stack(written)


def whole(tap, *depths):
    return np.isin(np.arange(tap.depth), depths)[:, None]


def states(inputs):
    return NETWORK(inputs, record=("write",))[1]["write"]


@pytest.mark.parametrize(("sender", "receiver"), [(0, 1), (0, 3), (1, 3), (2, 3)])
def test_the_direct_path_carries_what_was_written_and_nothing_else(sender, receiver):
    """P18: the receiver reads its base value and the change of the sender's write; all after it is run."""
    _, seen, written = run(BASE)
    change = run(SOURCE)[2][sender] - written[sender]
    wanted, _, _ = run(BASE, {receiver: lambda _: seen[receiver] + change})
    edits = do.interchange(NETWORK.taps["write"], states(SOURCE)[sender], depth=sender)
    places = {"read": whole(NETWORK.taps["read"], receiver)}
    got = path_outputs(NETWORK, BASE, edits, places, frozen=("write",))
    np.testing.assert_allclose(got, wanted, **CLOSE)
    total = NETWORK(BASE, edits)[0]
    assert np.abs(got - NETWORK(BASE)[0]).max() > 1e-2
    assert np.abs(got - total).max() > 1e-2


def test_several_receivers_and_units_get_their_own_paths():
    """Two passes by hand: units 0 and 2 of the read at depth 2, all of it at depth 3; unit 1 of what is sent."""
    _, seen, written = run(BASE)
    change = np.zeros((N, D))
    change[:, 1] = run(SOURCE)[2][0][:, 1] - written[0][:, 1]
    some = np.isin(np.arange(D), [0, 2])
    reads = {2: lambda stream: np.where(some, seen[2] + change, stream), 3: lambda _: seen[3] + change}
    mask = np.stack([np.zeros(D, bool), np.zeros(D, bool), some, np.ones(D, bool)])
    edits = do.interchange(NETWORK.taps["write"], states(SOURCE)[0], depth=0, units=[1])
    got = path_outputs(NETWORK, BASE, edits, {"read": mask}, frozen=("write",))
    np.testing.assert_allclose(got, run(BASE, reads)[0], **CLOSE)


def test_several_senders_send_their_sum():
    written = run(BASE)[2]
    theirs = run(SOURCE)[2]
    change = sum(theirs[depth] - written[depth] for depth in (0, 2))
    edits = do.interchange(NETWORK.taps["write"], states(SOURCE), depth=[0, 2])
    got = path_outputs(NETWORK, BASE, edits, {"final": np.ones((1, 1), bool)}, frozen=("write",))
    head = np.asarray(NETWORK.params["head"], np.float64)
    np.testing.assert_allclose(got, run(BASE)[0] + change @ head, **CLOSE)


def test_a_sender_before_nothing_or_that_does_nothing_leaves_the_base():
    places = {"read": whole(NETWORK.taps["read"], 1)}
    later = do.interchange(NETWORK.taps["write"], states(SOURCE)[2], depth=2)
    nothing = do.interchange(NETWORK.taps["write"], states(SOURCE), weight=0.0)
    for edits in (later, nothing):
        got = path_outputs(NETWORK, BASE, edits, places, frozen=("write",))
        np.testing.assert_array_equal(got, NETWORK(BASE)[0])


def test_without_anything_frozen_all_paths_are_open():
    edits = do.interchange(NETWORK.taps["write"], states(SOURCE)[0], depth=0)
    got = path_outputs(NETWORK, BASE, edits, {"final": np.ones((1, 1), bool)}, frozen=())
    np.testing.assert_allclose(got, NETWORK(BASE, edits)[0], **CLOSE)


def test_senders_are_mapped_in_one_program():
    tap, base, source = NETWORK.taps["write"], states(BASE), states(SOURCE)
    places = {"read": whole(NETWORK.taps["read"], 3)}
    several = [do.interchange(tap, source[depth], depth=depth) for depth in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    traces = []

    def one(edits):
        traces.append(1)
        return path_outputs(NETWORK, BASE, edits, places, frozen=("write",), base={"write": base})

    got = jax.jit(jax.vmap(one))(stacked)
    assert len(traces) == 1
    for depth in range(3):
        np.testing.assert_allclose(got[depth], one(several[depth]), **CLOSE)


def test_a_path_between_heads_of_a_decoder_is_the_residual_stream_by_hand():
    """P18: what head 1 of block 0 writes reaches the queries of head 2 of block 2, at one position per example."""
    decoder, rng = Decoder(FAMILIES["llama"]), np.random.default_rng(5)
    network, (prompts, tokens, size) = Network(decoder, drawn(decoder)), (4, 6, decoder.config.head_size)
    base, source = padded(rng, prompts, tokens, tokens), padded(rng, prompts, tokens, tokens)
    names = ("head_output", "mlp_output", "block_input", "query")
    record = jax.jit(lambda tokens: network(tokens, record=names))
    (clean, ours), (_, theirs) = record(base), record(source)
    head, at = range(size, 2 * size), np.array([5, 2, 0, 4])
    senders = do.interchange(
        network.taps["head_output"], do.taken(theirs["head_output"], depth=0, at=at), depth=0, units=head, at=at
    )
    receiver = np.arange(3)[:, None] == 2
    receiver = receiver & np.isin(np.arange(4 * size), range(2 * size, 3 * size))
    got = jax.jit(lambda edits: path_outputs(network, base, edits, {"query": receiver}))(senders)

    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), network.params["blocks"])
    change = np.zeros((prompts, tokens, 4 * size))
    for n in range(prompts):
        change[n, at[n], list(head)] = (theirs["head_output"] - ours["head_output"])[0, n, at[n], list(head)]
    stream = np.asarray(ours["block_input"][2], np.float64) + change @ weights["output"]["kernel"][0]
    normed = stream / np.sqrt((stream**2).mean(axis=-1, keepdims=True) + decoder.config.norm_epsilon)
    queries = (normed * weights["attention_norm"]["scale"][2]) @ weights["query"]["kernel"][2]
    given = do.constant(network.taps["query"], queries.astype(np.float32), depth=2, units=range(2 * size, 3 * size))
    wanted = jax.jit(lambda edits: network(base, edits)[0])(given)
    np.testing.assert_allclose(got, wanted, **CLOSE)
    assert np.abs(got - clean).max() > 1e-3


def test_receivers_at_positions_are_those_alone():
    decoder, rng = Decoder(FAMILIES["gemma2"]), np.random.default_rng(5)
    network, tokens = Network(decoder, drawn(decoder)), 5
    base, source = padded(rng, 3, tokens, tokens), padded(rng, 3, tokens, tokens)
    sent = network(source, record=("mlp_output",))[1]["mlp_output"]
    senders = do.interchange(network.taps["mlp_output"], sent[0], depth=0)
    at = np.array([4, 1, 3])
    there = (np.arange(tokens) == at[:, None])[None, :, :, None]
    patched = jax.jit(lambda places: path_outputs(network, base, senders, {"mlp_input": places}))
    depths = whole(network.taps["mlp_input"], 1)[:, :, None, None]
    some, all_, plain = patched(depths & there), patched(depths & np.ones_like(there)), network(base)[0]

    assert np.abs(some - plain).max() > 1e-3
    assert np.abs(some - all_).max() > 1e-3
    # Pass 1 by explicit edits, pass 2 by a vector at each position.
    names = ("head_output", "mlp_output")
    frozen = network(base, record=names)[1]
    mixed = np.asarray(frozen["mlp_output"]).copy()
    mixed[0] = sent[0]
    taps = network.taps
    first = {**do.constant(taps["head_output"], frozen["head_output"]), **do.constant(taps["mlp_output"], mixed)}
    received = network(base, first, ("mlp_input",))[1]["mlp_input"]
    second = do.interchange(taps["mlp_input"], do.taken(received, depth=1, at=at), depth=1, at=at)
    np.testing.assert_allclose(some, network(base, second)[0], **CLOSE)


@pytest.mark.parametrize("name", ["value", "attention_input", "mlp_hidden"])
def test_a_sender_whose_effect_is_frozen_is_refused(name):
    decoder = Decoder(FAMILIES["gpt2"])
    network = Network(decoder, drawn(decoder))
    sender = do.add(network.taps[name], 1.0)
    with pytest.raises(ValueError, match=f"sender at '{name}', all of whose effect goes through"):
        path_outputs(network, np.array([[1, 2, 3]]), sender, {"final_input": np.ones((1, 1), bool)})
