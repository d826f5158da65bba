"""Several interventions in one run: order-free where they are independent, refused where they are not."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import mlp_layers

from abstraction.interventions import Basis
from abstraction.interventions import building as do
from abstraction.interventions.bases import random_frames
from abstraction.interventions.combining import Together
from abstraction.interventions.sources import Link, chained_outputs
from abstraction.models import MLP, Network, Tap
from abstraction.models.taps import at_depth

L, N, T, D = 3, 4, 5, 6
TAP = Tap("stream", D, L)
BASE, SOURCE = np.random.default_rng(0).standard_normal((2, L, N, T, D)).astype(np.float32)
VECTORS = np.random.default_rng(1).standard_normal((2, D)).astype(np.float32)
EARLY, LATE = np.array([[0, 1], [2, -1], [0, 3], [-1, 4]]), np.array([[2, 3], [1, 0], [4, -1], [-1, 0]])
MODEL = MLP(4, 6, 3, 2)
INPUTS = np.random.default_rng(2).standard_normal((4, 7, 4)).astype(np.float32)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 against float64


def apply(edits, base=BASE):
    return np.stack([np.asarray(at_depth(edits, depth)["stream"](jnp.asarray(base[depth]))) for depth in range(L)])


def halves():
    frame = random_frames(jax.random.key(0), (L,), D, D)
    return Basis(frame, frame.mT, np.zeros((L, D), np.float32))


INDEPENDENT = {
    "units": [do.zero(TAP, units=[0, 1]), do.constant(TAP, 2.0, units=[2]), do.interchange(TAP, SOURCE, units=[3, 5])],
    "depths": [do.zero(TAP, depth=0), do.interchange(TAP, SOURCE[2], depth=2), do.scale(TAP, 3.0, depth=1)],
    "positions": [
        do.zero(TAP, at=EARLY),
        do.interchange(TAP, do.taken(SOURCE, at=LATE), at=LATE),
        do.clamp(TAP, -0.1, 0.1, depth=1, at=np.full(N, -1)),
    ],
    "examples": [
        do.zero(TAP, at=np.array([0, 0, -1, -1])),
        do.constant(TAP, 1.0, at=np.array([-1, -1, 0, 0])),
        do.renormalised(do.add(TAP, VECTORS[0], at=np.array([1, 1, 1, 1]))),
    ],
    "features": [
        do.interchange(TAP, SOURCE, units=[0, 1], basis=halves()),
        do.zero(TAP, units=[2, 3], basis=halves()),
        do.clamp(TAP, -0.1, 0.2, units=[4], basis=halves()),
    ],
    "features and depths": [
        do.interchange(TAP, SOURCE, units=[0, 1], depth=[0, 1], basis=halves()),
        do.zero(TAP, units=[2], depth=[2]),
        do.scale(TAP, 2.0, units=[0], depth=[2]),
    ],
    "additions": [
        do.add(TAP, VECTORS[0]),
        do.zero(TAP, units=[0, 3]),
        do.subtract(TAP, VECTORS[1], units=[3, 4]),
    ],
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_the_order_of_what_is_put_together_does_not_matter(name):
    """P16."""
    edits = INDEPENDENT[name]
    results = [apply(do.together(*order)) for order in permutations(edits)]
    for other in results[1:]:
        if name in ("features", "additions"):
            np.testing.assert_allclose(other, results[0], **CLOSE)
        else:
            np.testing.assert_array_equal(other, results[0])
    assert (results[0] != BASE).any()


@pytest.mark.parametrize("name", [name for name in INDEPENDENT if name != "additions"])
def test_each_changes_what_it_changes_alone(name):
    """The change of all is the sum of the changes of each."""
    edits = INDEPENDENT[name]
    total = sum(apply(edit).astype(np.float64) - BASE for edit in edits)
    np.testing.assert_allclose(apply(do.together(*edits)), BASE + total, **CLOSE)


def test_a_value_is_written_and_then_added_to():
    both = apply(do.together(do.add(TAP, VECTORS[0]), do.constant(TAP, 2.0, units=[1]), do.add(TAP, VECTORS[1])))
    written = BASE.astype(np.float64)
    written[..., 1] = 2.0
    np.testing.assert_allclose(both, written + VECTORS[0] + VECTORS[1], **CLOSE)


def test_what_is_put_together_can_be_put_together():
    parts = INDEPENDENT["units"]
    nested = do.together(do.together(*parts[:2]), do.together(parts[2], do.add(TAP, 1.0)))
    flat = do.together(*parts, do.add(TAP, 1.0))
    assert isinstance(nested["stream"], Together)
    np.testing.assert_array_equal(apply(nested), apply(flat))


def test_a_source_that_is_none_is_left_out():
    """P17, to the bit."""
    network = Network(MODEL, MODEL.init(jax.random.key(0)))
    tap = MODEL.taps["hidden"]
    states = [network(inputs, record=("hidden",))[1]["hidden"] for inputs in INPUTS[1:]]
    units = [[0, 1], [2], [4, 5]]
    for skipped in range(3):
        given = [None if index == skipped else state for index, state in enumerate(states)]
        some = do.together(*[do.interchange(tap, s, units=u, depth=[1]) for s, u in zip(given, units, strict=True)])
        kept = [index for index in range(3) if index != skipped]
        without = do.together(None, *[do.interchange(tap, states[i], units=units[i], depth=[1]) for i in kept])
        np.testing.assert_array_equal(network(INPUTS[0], some)[0], network(INPUTS[0], without)[0])


@pytest.fixture(scope="module", name="network")
def _network():
    return Network(MODEL, MODEL.init(jax.random.key(0)))


def test_two_sources_at_two_sites_are_one_run(network):
    """P15, parallel."""
    tap = network.taps["hidden"]
    first, second = (network(inputs, record=("hidden",))[1]["hidden"] for inputs in INPUTS[1:3])
    edits = do.together(
        do.interchange(tap, first[0], depth=0, units=[0, 1, 2]), do.interchange(tap, second[2], depth=2, units=[3, 4])
    )
    theirs = [mlp_layers(network.params, inputs)[1] for inputs in INPUTS[1:3]]

    def change(layer, state):
        state = state.copy()
        if layer == 0:
            state[:, :3] = theirs[0][0][:, :3]
        if layer == 2:
            state[:, 3:5] = theirs[1][2][:, 3:5]
        return state

    wanted, _ = mlp_layers(network.params, INPUTS[0], change)
    np.testing.assert_allclose(network(INPUTS[0], edits)[0], wanted, **CLOSE)
    assert np.abs(wanted - mlp_layers(network.params, INPUTS[0])[0]).max() > 1e-2


@pytest.mark.parametrize("skip", [False, True], ids=["whole", "one link is none"])
def test_sources_in_a_chain_are_nested_by_hand(network, skip):
    """P15, serial: s0 at depth 0 into s1, whose depth 1 goes into the base."""
    tap = network.taps["hidden"]
    into = lambda a: None if skip else do.interchange(tap, a["hidden"][0], depth=0, units=[0, 1, 2])
    links = [
        Link(INPUTS[1], ("hidden",), into),
        Link(INPUTS[2], ("hidden",), lambda a: do.interchange(tap, a["hidden"][1], depth=1)),
    ]
    _, first = mlp_layers(network.params, INPUTS[1])

    def into_second(layer, state):
        if layer == 0 and not skip:
            state = np.concatenate([first[0][:, :3], state[:, 3:]], axis=1)
        return state

    _, second = mlp_layers(network.params, INPUTS[2], into_second)
    wanted, _ = mlp_layers(network.params, INPUTS[3], lambda layer, state: second[1] if layer == 1 else state)
    np.testing.assert_allclose(chained_outputs(network, links, INPUTS[3]), wanted, **CLOSE)


def test_traced_weights_count_as_everywhere():
    def build(weight):
        edits = do.together(do.interchange(TAP, SOURCE, weight=weight), do.zero(TAP, units=[0]))
        return at_depth(edits, 0)["stream"](jnp.asarray(BASE[0]))

    with pytest.raises(ValueError, match="got two writes of tap 'stream'"):
        jax.jit(build)(jnp.zeros(D))
