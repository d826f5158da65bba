"""Rows P25 and P26: a run leaves nothing behind, whether it ended or failed, and whatever ran before it.

Every run here is traced anew, so that what a run might leave would be met.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from broken import broken
from gentle_decoders import gentle
from hooked_decoders import hook_run, replacing

from abstraction.interventions import Interchange, Set
from abstraction.models import at_positions, decoder_blocks
from abstraction.models.positions import AtPositions
from abstraction.pytrees import pytree

pytestmark = pytest.mark.parity

N, T, L, KIND = 4, 7, 4, "gpt2"
MOVED = 1e-3
CLOSE = {"rtol": 0, "atol": 1e-5}  # float32 in two orders of summation; logits are of order 1


class Interrupted(Exception):
    """What an edit of these tests raises in the middle of a run."""


@pytree
class Failing:
    """Edit, then fail."""

    value: jax.Array

    def __call__(self, activation):
        raise Interrupted


def prompts():
    return np.random.default_rng(17).integers(gentle(KIND)[0].config.vocab_size, size=(2, N, T))


def fresh(ours, tokens, edits=None):
    """Trace and run anew."""
    run = lambda params, tokens, edits: ours.model.apply(params, tokens, edits, ("block_output",))
    outputs, states = jax.jit(run)(ours.params, tokens, edits or {})
    return np.asarray(outputs), np.asarray(states["block_output"])


def _constant(ours, where):
    width = ours.taps["block_output"].width
    chosen = (np.arange(L) == 1)[:, None] * np.ones(width, np.float32)
    return at_positions(Set(np.full((L, width), 3, np.float32), chosen), where, depth=L)


def check_residue():
    """P25: an edit works, then one after it fails; the next clean run is bitwise the one before."""
    (net, ours), (base, _) = gentle(KIND), prompts()
    before = fresh(ours, base)
    where = np.full(N, T - 1)
    good = {"block_output": _constant(ours, where)}
    edited = fresh(ours, base, good)
    assert (np.abs(edited[0] - before[0]).max(axis=1) > MOVED).all(), "the intervention moves nothing"
    wide = Set(jnp.ones((L, 3, 5)))
    for tap, wrong, error in (
        ("mlp_output", Failing(jnp.ones((L, 1))), Interrupted),
        ("mlp_output", wide, ValueError),
        ("final_input", Failing(jnp.ones((1, 1))), Interrupted),
    ):
        with pytest.raises(error):
            fresh(ours, base, {**good, tap: wrong})
        for got, wanted in zip(fresh(ours, base), before, strict=True):
            np.testing.assert_array_equal(got, wanted)
        for got, wanted in zip(fresh(ours, base, good), edited, strict=True):
            np.testing.assert_array_equal(got, wanted)
    np.testing.assert_allclose(before[0], hook_run(net, KIND, base)[0][:, -1], **CLOSE)


def check_independence():
    """P26: one position for all, then one for each, then several: each what it is alone, and what hooks do."""
    (net, ours), (base, source) = gentle(KIND), prompts()
    clean, states = fresh(ours, base)[0], fresh(ours, source)[1]
    seen = hook_run(net, KIND, source)[1]["block_output", 1]
    sets = [np.full(N, 3), np.array([6, 2, 5, 4]), np.array([[6, 2], [5, 3], [4, -1], [6, 0]]), np.full(N, 3)]

    def run(where):
        index = np.maximum(where, 0)
        values = np.stack(
            [layer[np.arange(N) if where.ndim == 1 else np.arange(N)[:, None], index] for layer in states]
        )
        weight = (np.arange(L) == 1).reshape(L, *[1] * where.ndim) * np.ones(values.shape[-1], np.float32)
        edit = at_positions(Interchange(jnp.asarray(values), jnp.asarray(weight)), where, depth=L)
        return fresh(ours, base, {"block_output": edit})[0]

    for where in sets:
        got, rows = run(where), where if where.ndim == 2 else where[:, None]
        values = np.take_along_axis(seen, np.maximum(rows, 0)[..., None], axis=1)
        wanted = hook_run(net, KIND, base, {("block_output", 1): replacing(rows, values)})[0][:, -1]
        assert (np.abs(wanted - clean).max(axis=1) > MOVED).all(), "the intervention moves nothing"
        np.testing.assert_allclose(got, wanted, **CLOSE)
    np.testing.assert_array_equal(run(sets[0]), run(sets[-1]))


def test_a_run_that_failed_leaves_nothing_behind():
    """P25."""
    check_residue()


def test_positions_of_one_call_are_not_those_of_the_next():
    """P26."""
    check_independence()


def test_an_edit_that_stays_is_noticed():
    """P25: as a hook that is not taken away."""
    left, right = {}, decoder_blocks.tapped

    def leaking(name, activation, edits):
        try:
            return right(name, activation, left if name in left else edits)
        except Interrupted:
            left[name] = Set(jnp.zeros(()))
            raise

    with broken(decoder_blocks, "tapped", leaking), pytest.raises(AssertionError, match="Arrays are not equal"):
        check_residue()


def test_positions_that_stay_are_noticed():
    """P26: as pyvene's `use_fast` once a position was given for all."""
    kept, right = [], AtPositions.__call__

    def sticky(self, activation):
        positions = np.asarray(self.positions) if not isinstance(self.positions, jax.core.Tracer) else self.positions
        kept.append(positions.ndim)
        row = positions[:1] if kept[0] == 1 else positions
        return right(AtPositions(self.edit, jnp.broadcast_to(row, positions.shape)), activation)

    with broken(AtPositions, "__call__", sticky), pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_independence()
