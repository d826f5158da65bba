"""Row P18: path patching in networks of transformers, by two passes of hooks.

Pass 1 holds every head and MLP at its base value, but for the sender; pass 2 gives the receiver what it read there.
Prompts end at different tokens, and the logits of the last one are compared.
"""

import jax
import numpy as np
import pytest
from broken import noticed
from gentle_decoders import gentle, recorded
from hooked_decoders import L, ends, hook_run, padded, replacing, torch

from abstraction.interventions import Add, paths
from abstraction.interventions import building as do

pytestmark = pytest.mark.parity

LENGTHS = (9, 5, 7, 6)
N = len(LENGTHS)
# float32 in two orders of summation; logits are of order 1
CLOSE = {"rtol": 0, "atol": 1e-5}
MOVED = 1e-4
FROZEN = ("head_output", "mlp_output")
# Sender (tap, depth, head), receiver (tap, depth, head), and whether it is sent at some positions alone.
CASES = {
    "head to query in llama": ("llama", ("head_output", 0, 1), ("query", 2, 2), False),
    "mlp to mlp in llama": ("llama", ("mlp_output", 0, None), ("mlp_input", 3, None), True),
    "head to outputs in gpt2": ("gpt2", ("head_output", 1, 5), ("final_input", None, None), False),
    "mlp to value in gpt2": ("gpt2", ("mlp_output", 1, None), ("value", 3, 2), True),
}


def _units(ours, tap, head):
    size = ours.model.config.head_size
    return range(ours.taps[tap].width) if head is None else range(head * size, (head + 1) * size)


def _hooks(net, kind, base, sent, received, clean):
    """Run both passes; `sent` and `received` are a place, its positions `[N, P]`, and its units.

    Returns logits of the second pass, and of a run in which all paths are open.
    """
    (place, at, units, values), (where, reads) = sent, received
    send = replacing(at, values, [list(units)] * N)
    held = lambda here: lambda value: torch.tensor(clean[here])
    first = {(tap, depth): held((tap, depth)) for tap in FROZEN for depth in range(L)}
    first[place] = lambda value: send(torch.tensor(clean[place]))
    seen = hook_run(net, kind, base, first)[1]

    def receive(value):
        value[..., list(reads)] = torch.tensor(seen[where])[..., list(reads)]
        return value

    return hook_run(net, kind, base, {where: receive})[0], hook_run(net, kind, base, {place: send})[0]


def check_path(case):
    kind, (tap, depth, head), (reader, level, part), some = CASES[case]
    net, ours = gentle(kind)
    rng = np.random.default_rng(11)
    base, source = (padded(rng, net.config.vocab_size, LENGTHS, "left" if some else "right") for _ in range(2))
    last, rows, tokens = ends(base), np.arange(N), base.shape[1]
    at = np.stack([last, last - 2], axis=1) if some else np.tile(np.arange(tokens), (N, 1))
    units, reads = _units(ours, tap, head), _units(ours, reader, part)
    logits, clean = hook_run(net, kind, base)
    values = hook_run(net, kind, source)[1][tap, depth][rows[:, None], at]
    wanted, total = _hooks(net, kind, base, ((tap, depth), at, units, values), ((reader, level), reads), clean)
    wanted, total, logits = (found[rows, last] for found in (wanted, total, logits))
    assert (np.abs(wanted - logits).max(axis=1) > MOVED).all(), "the intervention moves nothing"
    assert np.abs(wanted - total).max() > 10 * MOVED, "other paths must count"

    given = do.taken(recorded(ours, source)[tap], depth=depth, at=at)
    senders = do.interchange(ours.taps[tap], given, depth=depth, units=units, at=at)
    read = ours.taps[reader]
    places = (np.arange(read.depth) == (level or 0))[:, None] & np.isin(np.arange(read.width), reads)
    got = jax.jit(lambda edits: paths.path_outputs(ours, base, edits, {reader: places}))(senders)
    np.testing.assert_allclose(got, wanted, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_two_passes_are_those_of_hooks(case):
    check_path(case)


SET, PATHS = paths.Set, paths.path_outputs


def _nothing_held(value, weight=None):
    """Let what is frozen be what it would be."""
    return Add(0 * value) if weight is None else SET(value, weight)


MUTANTS = {
    "nothing is frozen": ("mlp to mlp in llama", "Set", _nothing_held),
    "heads are not frozen": (
        "head to outputs in gpt2", "path_outputs", lambda *args: PATHS(*args, frozen=("mlp_output",)),
    ),
    "all heads receive": ("head to query in llama", "_weight", lambda where: where.any(axis=1, keepdims=True) * 1.0),
    "all depths receive": ("mlp to value in gpt2", "_weight", lambda where: where.any(axis=0) * np.ones((L, 1))),
}  # fmt: skip


@pytest.mark.parametrize("fault", MUTANTS)
def test_the_row_notices_what_is_broken(fault):
    case, name, wrong = MUTANTS[fault]
    with noticed(paths, name, wrong):
        check_path(case)
