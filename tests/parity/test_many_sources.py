"""Rows P15 to P17: several sources at once and one after another, linked features, and a source that is left out.

The oracle is hooks on networks of transformers, at the logits of all positions, and pyvene's own modes where it is
installed.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from broken import noticed
from gentle_decoders import at, every_logit, gentle, recorded, table_edits
from hooked_decoders import hook_run, replacing, torch

from abstraction.interventions import Handle, InOrder, Interchange, combining, rotation_basis
from abstraction.interventions import building as do
from abstraction.models.positions import AtPositions, at_positions

try:
    import pyvene as pv
except ImportError:
    pv = None

pytestmark = pytest.mark.parity

N, T, L = 4, 7, 4
KIND = "gpt2"
# float32 in two orders of summation; logits are of order 1
CLOSE = {"rtol": 0, "atol": 1e-5}
MOVED = 1e-3
EARLY, LATE = np.full((N, 1), 2), np.full((N, 1), 4)


def prompts(count):
    return np.random.default_rng(11).integers(gentle(KIND)[0].config.vocab_size, size=(count, N, T))


def whole(tap, depth, where, states, ours):
    """Swap a tap at one depth for recorded states there."""
    return tap, (depth, where, {"source": at(states, where), "weight": np.ones(ours.taps[tap].width)})


def run_table(ours, base, *changes):
    return np.asarray(every_logit(ours, base, table_edits(ours, N, 1, dict(changes))))


def moved(logits, clean):
    assert (np.abs(logits - clean).max(axis=(1, 2)) > MOVED).all(), "the intervention moves nothing"


def _pyvene(settings, mode, base, sources, locations):
    net = gentle(KIND)[0]
    config = pv.IntervenableConfig([{"unit": "pos", **setting} for setting in settings], mode=mode)
    config.intervention_types = pv.VanillaIntervention
    model = pv.IntervenableModel(config, model=net)
    inputs = [None if tokens is None else {"input_ids": torch.tensor(tokens)} for tokens in (base, *sources)]
    with torch.no_grad():
        return model(inputs[0], inputs[1:], locations)[1].logits.numpy()


def check_parallel():
    """P15: two sources at two places, both of unpatched runs."""
    net, ours = gentle(KIND)
    base, first, second = prompts(3)
    states = [recorded(ours, tokens) for tokens in (first, second)]
    got = run_table(
        ours, base, whole("block_output", 1, EARLY, states[0]["block_output"][1], ours),
        whole("mlp_output", 2, LATE, states[1]["mlp_output"][2], ours),
    )  # fmt: skip
    clean = hook_run(net, KIND, base)[0]
    seen = [hook_run(net, KIND, tokens)[1] for tokens in (first, second)]
    edits = {
        ("block_output", 1): replacing(EARLY, at(seen[0]["block_output", 1], EARLY)),
        ("mlp_output", 2): replacing(LATE, at(seen[1]["mlp_output", 2], LATE)),
    }
    wanted = hook_run(net, KIND, base, edits)[0]
    moved(wanted, clean)
    for place in edits:
        moved(wanted, hook_run(net, KIND, base, {place: edits[place]})[0])
    np.testing.assert_allclose(got, wanted, **CLOSE)
    if pv is not None:
        settings = [{"layer": 1, "component": "block_output"}, {"layer": 2, "component": "mlp_output"}]
        places = [EARLY.tolist(), LATE.tolist()]
        theirs = _pyvene(settings, "parallel", base, [first, second], {"sources->base": (places, places)})
        np.testing.assert_allclose(got, theirs, **CLOSE)


def check_serial():
    """P15: one source is patched into another, and that run into the base."""
    net, ours = gentle(KIND)
    base, first, second = prompts(3)
    states = recorded(ours, first)["block_output"][0]
    inner = table_edits(ours, N, 1, dict([whole("block_output", 0, EARLY, states, ours)]))
    patched = recorded(ours, second, inner)["block_output"][2]
    got = run_table(ours, base, whole("block_output", 2, LATE, patched, ours))
    clean, seen = hook_run(net, KIND, base)[0], hook_run(net, KIND, first)[1]
    edit = {("block_output", 0): replacing(EARLY, at(seen["block_output", 0], EARLY))}
    between = hook_run(net, KIND, second, edit)[1]
    late = lambda values: {("block_output", 2): replacing(LATE, at(values["block_output", 2], LATE))}
    wanted = hook_run(net, KIND, base, late(between))[0]
    moved(wanted, clean)
    moved(wanted, hook_run(net, KIND, base, late(hook_run(net, KIND, second)[1]))[0])
    np.testing.assert_allclose(got, wanted, **CLOSE)
    if pv is not None:
        settings = [{"layer": 0, "component": "block_output"}, {"layer": 2, "component": "block_output"}]
        place = lambda where: ([where.tolist()], [where.tolist()])
        locations = {"source_0->source_1": place(EARLY), "source_1->base": place(LATE)}
        theirs = _pyvene(settings, "serial", base, [first, second], locations)
        np.testing.assert_allclose(got, theirs, **CLOSE)


def _in_turn(order, parts, frame, base, sources):
    """Swap parts of one frame, each from its own source, in some order: at the last position of every prompt."""
    _, ours = gentle(KIND)
    edits = []
    for index in order:
        weight = np.zeros((L, 1, frame.shape[1]), np.float32)
        weight[1, :, parts[index]] = 1
        states = np.asarray(recorded(ours, sources[index])["block_output"])[:, :, -3]
        basis = rotation_basis(np.broadcast_to(frame, (L, *frame.shape)))
        edits.append(Interchange(states, weight, basis))
    edit = at_positions(InOrder(tuple(edits)), np.full(N, T - 3), depth=L)
    return np.asarray(every_logit(ours, base, {"block_output": edit}))


def check_order():
    """P16: interchanges of disjoint features of one frame commute, and are one of the union; those that overlap not."""
    net, ours = gentle(KIND)
    base, first, second = prompts(3)
    width = ours.taps["block_output"].width
    frame = np.linalg.qr(np.random.default_rng(3).standard_normal((width, width)))[0].astype(np.float32)
    apart, over = ([0, 1, 2], [3, 4, 5, 6, 7]), ([0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7])
    there, back = (_in_turn(order, apart, frame, base, (first, second)) for order in ((0, 1), (1, 0)))
    clean = hook_run(net, KIND, base)[0]
    moved(there, clean)
    np.testing.assert_allclose(there, back, **CLOSE)
    seen = [hook_run(net, KIND, tokens)[1] for tokens in (first, second)]

    def swap(value):
        for n in range(N):
            state = value[n, T - 3].numpy().astype(np.float64) @ frame
            for part, run in zip(apart, seen, strict=True):
                state[part] = (run["block_output", 1][n, T - 3].astype(np.float64) @ frame)[part]
            value[n, T - 3] = torch.tensor((state @ frame.T).astype(np.float32))
        return value

    np.testing.assert_allclose(there, hook_run(net, KIND, base, {("block_output", 1): swap})[0], **CLOSE)
    one, other = (_in_turn(order, over, frame, base, (first, second)) for order in ((0, 1), (1, 0)))
    assert (np.abs(one - other).max(axis=(1, 2)) > MOVED).all(), "which of two absolute writes is last must count"


def _refused(*edits):
    try:
        do.together(*edits)
    except ValueError as error:
        return "two writes" in str(error)
    return False


def check_overlap():
    """P16: `together` refuses two absolute writes of one unit in either order; those that are apart it does in both."""
    net, ours = gentle(KIND)
    base, first, second = prompts(3)
    tap, where = ours.taps["block_output"], np.full(N, T - 3)
    left, right, over = [0, 1, 2], [3, 4, 5, 6, 7], [2, 3]
    states = [do.taken(recorded(ours, tokens)["block_output"], depth=1, at=where) for tokens in (first, second)]
    write = lambda index, units, at=where: do.interchange(tap, states[index], depth=1, units=units, at=at)
    zero = do.zero(tap, depth=1, units=over, at=where)
    for one, other in ((write(0, left), write(1, left + right)), (write(0, left), zero), (zero, zero)):
        assert _refused(one, other), "an overlap must be refused"
        assert _refused(other, one), "an overlap must be refused"
    seen = [at(hook_run(net, KIND, tokens)[1]["block_output", 1], where[:, None]) for tokens in (first, second)]

    def swap(value):
        for run, units in zip(seen, (left, right), strict=True):
            value = replacing(where[:, None], run, [units] * N)(value)
        return value

    wanted = hook_run(net, KIND, base, {("block_output", 1): swap})[0]
    moved(wanted, hook_run(net, KIND, base)[0])
    parts = write(0, left), write(1, right)
    there, back = (np.asarray(every_logit(ours, base, do.together(*order))) for order in (parts, parts[::-1]))
    np.testing.assert_array_equal(there, back)
    np.testing.assert_allclose(there, wanted, **CLOSE)
    # The same units at another position, or in another layer, do not overlap.
    later = do.interchange(tap, states[1], depth=2, units=left, at=where)
    assert not _refused(write(0, left), write(1, left, where + 1))
    assert not _refused(write(0, left), later)


def check_linked():
    """P16: a handle of two sites with one frame is both, whichever is named first."""
    net, ours = gentle(KIND)
    base, first = prompts(2)
    width, where = ours.taps["block_output"].width, np.full(N, T - 3)
    source = jnp.asarray(recorded(ours, first)["block_output"])[:, :, T - 3]
    frame = rotation_basis(np.broadcast_to(np.eye(width, dtype=np.float32)[:, ::-1], (L, width, width)))
    weight = np.zeros((2, L, width), np.float32)
    weight[0, 1, :4], weight[1, 1, 4:9] = 1, 1

    def run(weights):
        edits = Handle("block_output", weights, frame).edits(source)
        placed = {tap: at_positions(edit, where, depth=L) for tap, edit in edits.items()}
        return np.asarray(every_logit(ours, base, placed))

    both = run(weight.sum(axis=0))
    seen = hook_run(net, KIND, first)[1]
    units = [list(range(width - 9, width))] * N
    edit = replacing(where[:, None], at(seen["block_output", 1], where[:, None]), units)
    wanted = hook_run(net, KIND, base, {("block_output", 1): edit})[0]
    moved(wanted, hook_run(net, KIND, base)[0])
    np.testing.assert_allclose(both, wanted, **CLOSE)
    np.testing.assert_array_equal(both, run(weight[::-1].sum(axis=0)))
    assert (np.abs(both - run(weight[0])).max(axis=(1, 2)) > MOVED).all()


def check_skipping():
    """P17: k of n interchanges without a source are those of the others alone, bitwise."""
    net, ours = gentle(KIND)
    base, first, second, third = prompts(4)
    taps = [("block_output", 1, EARLY), ("mlp_output", 2, LATE), ("key", 3, LATE)]
    changes = [
        whole(tap, depth, where, recorded(ours, tokens)[tap][depth], ours)
        for (tap, depth, where), tokens in zip(taps, (first, second, third), strict=True)
    ]
    every = run_table(ours, base, *changes)
    clean = hook_run(net, KIND, base)[0]
    for skipped in range(len(changes)):
        tap, (depth, where, what) = changes[skipped]
        nowhere = tap, (depth, np.full_like(where, -1), what)
        left = [change for index, change in enumerate(changes) if index != skipped]
        got = run_table(ours, base, *left, nowhere)
        moved(got, clean)
        assert np.abs(got - every).max() > MOVED
        np.testing.assert_array_equal(got, run_table(ours, base, *left))
    if pv is not None:
        names = {"block_output": "block_output", "mlp_output": "mlp_output", "key": "key_output"}
        settings = [{"layer": depth, "component": names[tap]} for tap, depth, _ in taps]
        places = [where.tolist() for _, _, where in taps]
        theirs = _pyvene(settings, "parallel", base, [first, None, third], {"sources->base": (places, places)})
        np.testing.assert_allclose(run_table(ours, base, changes[0], changes[2]), theirs, **CLOSE)


CHECKS = {
    "P15 parallel": check_parallel,
    "P15 serial": check_serial,
    "P16 order": check_order,
    "P16 links": check_linked,
    "P16 overlap": check_overlap,
    "P17 skipping": check_skipping,
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_many_sources(check):
    check()


SWAP, SOME, TURNS = Interchange.__call__, AtPositions.__call__, InOrder.__call__


def _own(self, activation):
    return SWAP(Interchange(self.source[::-1], self.weight, self.basis), activation)


def _half(self, activation):
    """Swap a rotated feature by halves, so that what comes last counts."""
    if self.basis is None:
        return SWAP(self, activation)
    return SWAP(Interchange(self.source, 0.5 * jnp.ones_like(jnp.asarray(self.weight)), self.basis), activation)


def _last(self, activation):
    """Read no position as the last one."""
    return SOME(AtPositions(self.edit, jnp.where(jnp.asarray(self.positions) < 0, T - 1, self.positions)), activation)


MUTANTS = {
    "P15 parallel": (Interchange, _own),
    "P15 serial": (Interchange, _own),
    "P16 order": (Interchange, _half),
    "P16 links": (Interchange, _half),
    "P16 overlap": (Interchange, _own),
    "P17 skipping": (AtPositions, _last),
}


@pytest.mark.parametrize("row", MUTANTS)
def test_a_row_notices_what_is_broken(row):
    place, wrong = MUTANTS[row]
    with noticed(place, "__call__", wrong):
        CHECKS[row]()


def test_edits_of_which_one_is_dropped_are_noticed():
    """P16: of edits in order none may be dropped."""
    with noticed(InOrder, "__call__", lambda self, h: TURNS(InOrder(self.edits[:1]), h)):
        check_order()


def _nothing(*_):
    """Refuse no edits."""


def _no_positions(*_):
    """Let no positions meet."""
    return np.zeros((1, 1), bool)


@pytest.mark.parametrize(("name", "wrong"), [("_check_independent", _nothing), ("_met", _no_positions)])
def test_an_overlap_that_is_let_through_is_noticed(name, wrong):
    """P16: what is left of two absolute writes would be a matter of order."""
    with noticed(combining, name, wrong):
        check_overlap()
