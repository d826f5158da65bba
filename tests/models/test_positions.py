"""Edits at token positions: those named and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_families import FAMILIES, drawn, padded

from abstraction.interventions import Add, Interchange, Set
from abstraction.models import Decoder, at_positions
from abstraction.models.positions import AtPositions, last_token, picked, token_mask, token_positions

N, T, D = 4, 6, 3
STREAM = np.random.default_rng(1).standard_normal((N, T, D)).astype(np.float32)
OTHER = np.random.default_rng(2).standard_normal((N, T, D)).astype(np.float32)


def _looped(positions):
    """Take the tokens named from `OTHER`, one at a time."""
    expected = STREAM.copy()
    for row, chosen in enumerate(positions):
        for position in np.atleast_1d(chosen):
            if position >= 0:
                expected[row, position] = OTHER[row, position]
    return expected


@pytest.mark.parametrize(
    "positions",
    [
        [5, 0, 2, 3],
        [-1, 0, -1, 3],
        [[5, 1], [0, 3], [2, 4], [3, 0]],
        [[5, 1, -1], [-1, -1, -1], [2, -1, 4], [-1, 0, -1]],
    ],
    ids=["one", "some-nowhere", "several", "ragged"],
)
def test_only_the_positions_of_each_example_are_edited(positions):
    positions = np.array(positions)
    # what a ragged set leaves out may hold any value
    source = picked(jnp.asarray(OTHER), jnp.asarray(positions))
    source = jnp.where((positions >= 0)[..., None], source, jnp.nan)
    edited = AtPositions(Interchange(source, np.ones(D, np.float32)), positions)(jnp.asarray(STREAM))
    np.testing.assert_array_equal(edited, _looped(positions))


def test_positions_are_values():
    traces = []

    @jax.jit
    def run(positions):
        traces.append(1)
        return AtPositions(Set(np.zeros(D, np.float32)), positions)(jnp.asarray(STREAM))

    for positions in ([5, 0, 2, 3], [1, -1, 1, 1]):
        expected = np.array(run(np.array(positions)))
        for row, position in enumerate(positions):
            if position >= 0:
                np.testing.assert_array_equal(expected[row, position], 0)
                expected[row, position] = STREAM[row, position]
        np.testing.assert_array_equal(expected, STREAM)
    assert len(traces) == 1


def test_gradients_stay_at_the_positions():
    positions = np.array([[5, 1], [-1, -1], [2, -1], [-1, 0]])
    run = lambda offset, stream: (AtPositions(Add(offset), positions)(stream) * OTHER).sum()
    offset, stream = jax.grad(run, argnums=(0, 1))(jnp.zeros((N, 2, D)), jnp.asarray(STREAM))
    expected = np.where((positions >= 0)[..., None], OTHER[np.arange(N)[:, None], positions], 0)
    np.testing.assert_array_equal(offset, expected)
    np.testing.assert_array_equal(stream, OTHER)


def test_a_decoder_is_edited_at_its_positions_and_from_its_depth_on(rng):
    decoder = Decoder(FAMILIES["llama"])
    params, tokens = drawn(decoder), padded(rng, N, T, 4)
    depth, positions = decoder.config.depth, np.array([[5, 2], [4, -1], [3, 4], [-1, -1]])
    run = jax.jit(lambda edits: decoder.apply(params, tokens, edits, ("block_output",)))
    offset = jnp.zeros((depth, N, 2, 16)).at[1].set(1.0)
    still = run({"block_output": at_positions(Add(offset * 0), positions, depth=depth)})[1]["block_output"]
    moved = run({"block_output": at_positions(Add(offset), positions, depth=depth)})[1]["block_output"]
    # padding reads everything and is read by nothing
    changed = np.any(np.asarray(moved != still), axis=-1) & (tokens >= 0)
    assert not changed[0].any()
    expected = np.zeros((N, T), bool)
    for row, position in zip(*np.nonzero(positions >= 0), strict=True):
        expected[row, positions[row, position]] = True
    np.testing.assert_array_equal(changed[1], expected)
    # later tokens read the edited ones in the next block, earlier ones never
    np.testing.assert_array_equal(changed[2], np.maximum.accumulate(expected, axis=1))


def test_an_edit_at_every_position_is_the_plain_edit(rng):
    positions = np.broadcast_to(np.arange(T), (N, T))
    weight = rng.random(D, np.float32)
    edit = Interchange(OTHER, weight)
    np.testing.assert_array_equal(AtPositions(edit, positions)(jnp.asarray(STREAM)), edit(jnp.asarray(STREAM)))


def test_tokens_are_counted_without_padding():
    tokens = np.array([[-1, -1, 3, 4], [3, 4, -1, -1], [-1, 5, 6, -1], [7, 8, 9, 1]])
    assert token_mask(tokens).sum(axis=1).tolist() == [2, 2, 2, 4]
    assert token_positions(tokens)[np.asarray(token_mask(tokens))].tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 2, 3]
    assert last_token(tokens).tolist() == [3, 1, 2, 3]
