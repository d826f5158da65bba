"""Rows P1 to P6, P13, P14 and P19 notice what is broken: each is run once more with its behaviour wrong."""

import jax.numpy as jnp
import numpy as np
import pytest
from broken import noticed

from abstraction.interventions.edits import Add, Interchange
from abstraction.models import decoder, decoder_blocks
from abstraction.models.positions import AtPositions
from abstraction.models.taps import NO_EDITS
from tests.parity import test_decoders as rows

pytestmark = pytest.mark.parity

SWAP, SOME, ADD, BLOCK = Interchange.__call__, AtPositions.__call__, Add.__call__, decoder_blocks.Block.__call__
ANGLES, KEPT = decoder_blocks.rope_angles, decoder.recorded_at


def draw():
    return np.random.default_rng(0)


def _from(change):
    """Interchange with other sources."""
    return lambda self, h: SWAP(Interchange(change(self.source), self.weight, self.basis), h)


def _everywhere(self, activation):
    """Read no position as the prompt's last one."""
    last = activation.shape[1] - 1
    return SOME(AtPositions(self.edit, jnp.where(jnp.asarray(self.positions) < 0, last, self.positions)), activation)


def _misnamed(self, *args):
    stream, fresh, values = BLOCK(self, *args)
    return stream, fresh, {**values, "attention_input": values["mlp_input"], "mlp_input": values["attention_input"]}


def _unedited(self, stream, place, past, local, edits, number=None):
    after, fresh, _ = BLOCK(self, stream, place, past, local, edits, number)
    return after, fresh, BLOCK(self, stream, place, past, local, NO_EDITS, number)[2]


HEADS = lambda self, h: SWAP(Interchange(self.source, self.weight * 0 + self.weight[:1], self.basis), h)
FAULTS = {
    "P1 angles": (
        "llama", lambda case: rows.test_logits_are_those_of_transformers_at_every_position(case, "none", draw()),
        decoder_blocks, "rope_angles", lambda *given: 1.1 * ANGLES(*given),
    ),
    "P1 padding counts": (
        "gpt2", lambda case: rows.test_logits_are_those_of_transformers_at_every_position(case, "left", draw()),
        decoder, "token_positions", lambda tokens: jnp.arange(tokens.shape[1]) + 0 * tokens,
    ),
    "P2 two names": (
        "llama", lambda case: rows.test_taps_are_what_hooks_see(case, "left", draw()),
        decoder_blocks.Block, "__call__", _misnamed,
    ),
    "P3 sources of other examples": (
        "llama", lambda case: rows.test_interchange_at_every_tap_is_what_hooks_do(case, True),
        Interchange, "__call__", _from(lambda source: source[::-1]),
    ),
    "P4 heads of the first example": (
        "llama", lambda case: rows.test_interchange_of_heads_is_what_hooks_do(case, "key"),
        Interchange, "__call__", HEADS,
    ),
    "P5 no position is the last": (
        "llama", rows.test_ragged_positions_are_what_loops_over_examples_do, AtPositions, "__call__", _everywhere,
    ),
    "P6 the other way": (
        "llama",
        lambda case: rows.test_zero_constant_mean_added_and_subtracted_vectors_are_what_hooks_do(case, draw()),
        Add, "__call__", lambda self, h: ADD(Add(-self.offset), h),
    ),
    "P13 the first position for all": (
        "llama", rows.test_recording_at_positions_gives_each_its_own_vector,
        decoder, "recorded_at", lambda value, at: KEPT(value, jnp.broadcast_to(at[:, :1], at.shape)),
    ),
    "P14 before the edit": (
        "llama", rows.test_recording_after_an_edit_upstream_sees_it, decoder_blocks.Block, "__call__", _unedited,
    ),
    "P19 other positions": (
        "llama",
        lambda case: rows.test_a_source_may_be_of_another_layer_and_component(case, rows.CROSSED[0]),
        Interchange, "__call__", _from(lambda source: source[:, ::-1]),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", name="cases")
def _cases(tmp_path_factory):
    """Both networks, as they are before anything is broken."""
    return {kind: rows.built(kind, tmp_path_factory.mktemp(kind)) for kind in ("llama", "gpt2")}


@pytest.mark.parametrize("row", FAULTS)
def test_a_row_notices_what_is_broken(row, cases):
    kind, check, place, name, wrong = FAULTS[row]
    with noticed(place, name, wrong):
        check(cases[kind])
