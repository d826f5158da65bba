"""Bad inputs of interventions: each entry point refuses them by name, before anything is compiled."""

import dataclasses

import jax
import numpy as np
import pytest
from refusals import Refusal, check_refusal

from abstraction.interventions import (
    Basis,
    Handle,
    Interchange,
    SiteBank,
    Substitute,
    coordinate_sites,
    group_sites,
    pca_basis,
    rotation_basis,
    span_sites,
    unit_sites,
)
from abstraction.interventions.bases import pca_bases, random_frames
from abstraction.interventions.handles import at_one_depth, check_depths, check_handles, stack_handles, take_handle
from abstraction.interventions.patching import patched_outputs, reorder_sources, run_pairs, take_pairs
from abstraction.interventions.sites import band_sites, check_sites, prefix_sites, sites_within
from abstraction.models import MLP, Network, Tap

TAP = Tap("hidden", 4, 3)
NETWORK = Network(MLP(2, 4, 3, 2), MLP(2, 4, 3, 2).init(jax.random.key(0)))
BASE, SOURCE = np.random.default_rng(0).standard_normal((2, 5, 2)).astype(np.float32)
RUNS = run_pairs(NETWORK, BASE, SOURCE, taps=("hidden",))
STATES = np.random.default_rng(1).standard_normal((3, 9, 4))
BASES = pca_bases(STATES)
NAN = STATES[0].copy()
NAN[2, 1] = np.nan
KEY = jax.random.key(0)
ONES = np.ones((2, 4), np.float32)
FRAMES = random_frames(KEY, (2,), 4)


def _handle(depth=None, weight=ONES, tap="hidden", basis=None):
    return Handle(tap, weight, basis, np.array([0, 1]) if depth is None else np.asarray(depth))


def _sites(**change):
    return dataclasses.replace(unit_sites(TAP), **change)


def _basis(encoder, decoder):
    return Basis(encoder, decoder, np.zeros(len(encoder)))


def _substituted(kept, replaced):
    return Substitute(np.asarray(kept), np.asarray(replaced), np.zeros(1), np.zeros((1, 2)))(jax.numpy.ones((5, 4)))


SITES = [
    (
        "sites within handles of another tap",
        lambda: sites_within(unit_sites(TAP), _handle(tap="logits")),
        "handles of tap 'logits'",
    ),
    (
        "sites within what does not move",
        lambda: sites_within(unit_sites(TAP), _handle(weight=0 * ONES)),
        "got 12 sites, none within",
    ),
    ("units by width 0", lambda: group_sites(TAP, 0), "site width 0, expected between 1 and 4"),
    ("width too large", lambda: group_sites(TAP, 5), "site width 5"),
    ("width of a half", lambda: group_sites(TAP, 1.5), "site width 1.5"),
    ("width that is true", lambda: group_sites(TAP, True), "site width True"),
    ("width not a number", lambda: group_sites(TAP, np.nan), "site width nan"),
    ("depth too large", lambda: coordinate_sites(TAP, [(3, [0])]), "site 0 at depth 3, expected 0 to 2"),
    ("depth negative", lambda: coordinate_sites(TAP, [(0, [0]), (-1, [0])]), "site 1 at depth -1"),
    ("depth of a half", lambda: coordinate_sites(TAP, [(0.5, [0])]), "site 0 at depth 0.5"),
    ("depth that is true", lambda: coordinate_sites(TAP, [(True, [0])]), "site 0 at depth True"),
    ("coordinate too large", lambda: coordinate_sites(TAP, [(0, [4])]), r"coordinates \[4\] in site 0.*0 to 3"),
    ("coordinate negative", lambda: coordinate_sites(TAP, [(0, [-1])]), r"coordinates \[-1\]"),
    ("coordinate of a half", lambda: coordinate_sites(TAP, [(0, [0.5])]), r"coordinates \[0.5\]"),
    ("coordinate twice", lambda: coordinate_sites(TAP, [(0, [1, 1])]), r"coordinates \[1, 1\].*each once"),
    ("a mask as coordinates", lambda: coordinate_sites(TAP, [(0, [True, False])]), r"coordinates \[True, False\]"),
    ("no coordinate", lambda: coordinate_sites(TAP, [(0, [])]), r"coordinates \[\]"),
    ("no site", lambda: coordinate_sites(TAP, []), "no site of tap 'hidden'"),
    ("component too large", lambda: span_sites(TAP, BASES, [(0, [4])]), r"components \[4\] in site 0, expected 0 to 3"),
    ("component twice", lambda: span_sites(TAP, BASES, [(0, [2, 2])]), r"components \[2, 2\].*each once"),
    ("a mask as components", lambda: span_sites(TAP, BASES, [(0, [True])]), r"components \[True\]"),
    ("no component", lambda: span_sites(TAP, BASES, [(0, [])]), r"components \[\]"),
    ("no span", lambda: span_sites(TAP, BASES, []), "no site of tap"),
    ("span at no depth", lambda: span_sites(TAP, BASES, [(3, [0])]), "site 0 at depth 3"),
    (
        "basis of two depths",
        lambda: span_sites(TAP, pca_bases(STATES[:2]), [(0, [0])]),
        "basis at 2 depths, expected 3",
    ),
    (
        "basis of another width",
        lambda: span_sites(Tap("hidden", 5, 3), BASES, [(0, [0])]),
        "expected a basis of width 5",
    ),
    ("basis without depths", lambda: span_sites(TAP, pca_basis(STATES[0]), [(0, [0])]), "no axis of depths"),
    ("span of 0", lambda: prefix_sites(TAP, BASES, 0), "spans of 0 components, expected 1 to 4"),
    ("span too large", lambda: prefix_sites(TAP, BASES, 5), "spans of 5 components"),
    ("span of a half", lambda: prefix_sites(TAP, BASES, 1.5), "spans of 1.5 components"),
    ("band of 0", lambda: band_sites(TAP, BASES, 0), "spans of 0 components"),
    (
        "sites of another tap",
        lambda: check_sites(_sites(tap="logits"), TAP),
        "sites of tap 'logits'.*expected tap 'hid",
    ),
    ("sites of another depth", lambda: check_sites(_sites(), Tap("hidden", 4, 2)), "of depth 3, expected.*of depth 2"),
    (
        "sites of another width",
        lambda: check_sites(_sites(), Tap("hidden", 5, 3)),
        "among 4, expected .* of 5 features",
    ),
    ("sites at no depth", lambda: check_sites(_sites(depth=np.full(12, 3)), TAP), r"depths at tap 'hidden' \[3, 3"),
    ("sites at depth -1", lambda: check_sites(_sites(depth=np.full(12, -1)), TAP), r"depths at tap 'hidden' \[-1"),
    ("sites at half depths", lambda: check_sites(_sites(depth=np.full(12, 0.5)), TAP), r"\[0.5"),
    (
        "depths of fewer sites",
        lambda: check_sites(_sites(depth=np.zeros(3, int)), TAP),
        r"got 3 sites of features \(12, 1\)",
    ),
    ("weights of NaN", lambda: check_sites(_sites(value=np.full((12, 1), np.nan)), TAP), "not finite"),
    ("weights of fewer", lambda: check_sites(_sites(value=np.ones((11, 1))), TAP), r"12 sites of features \(12, 1\)"),
    ("features past the end", lambda: check_sites(_sites(index=np.full((12, 1), 4)), TAP), r"features of sites.*\[4"),
    ("features of -1", lambda: check_sites(_sites(index=np.full((12, 1), -1)), TAP), r"features of sites.*\[-1"),
    ("no sites", lambda: check_sites(unit_sites(TAP).take(np.zeros(12, bool)), TAP), r"0 sites of features \(0, 1\)"),
    ("basis of NaN", lambda: check_sites(_sites(basis=jax.tree.map(lambda x: x * np.nan, BASES)), TAP), "not finite"),
    (
        "basis and weights",
        lambda: check_sites(_sites(basis=pca_bases(STATES[:, :3])), TAP),
        "among 4, expected .* of 2 features",
    ),
    (
        "a bank made by hand",
        lambda: check_sites(SiteBank(np.array([0]), np.array([[0]]), np.ones((1, 1)), "hidden", 3, 9), TAP),
        "1 sites of features .* among 9, expected .* of 4 features",
    ),
]

HANDLES = [
    (
        "another tap",
        lambda: check_handles(_handle(tap="logits"), TAP),
        "handles of tap 'logits', expected tap 'hidden'",
    ),
    (
        "another width",
        lambda: check_handles(_handle(weight=np.ones((2, 5))), TAP),
        r"shape \(2, 5\), expected \(2, 4\)",
    ),
    ("one weight for all", lambda: check_handles(_handle(weight=np.ones((2, 1))), TAP), r"shape \(2, 1\)"),
    ("weights at all depths", lambda: check_handles(_handle(weight=np.ones((2, 3, 4))), TAP), r"shape \(2, 3, 4\)"),
    ("weights at two", lambda: check_handles(Handle("hidden", np.ones((2, 2, 4))), TAP), r"expected \(2, 3, 4\)"),
    ("a single handle", lambda: check_handles(Handle("hidden", np.ones((3, 4))), TAP), "expected"),
    ("depth 3", lambda: check_handles(_handle([0, 3]), TAP), r"depths at tap 'hidden' \[3\], expected whole.*0 to 2"),
    ("depth 99", lambda: check_handles(_handle([99, 0]), TAP), r"\[99\]"),
    ("depth -1", lambda: check_handles(_handle([0, -1]), TAP), r"\[-1\]"),
    ("half depths", lambda: check_handles(_handle([0.0, 0.5]), TAP), r"\[0.0, 0.5\]"),
    ("depths that are truths", lambda: check_handles(_handle([True, False]), TAP), r"\[True, False\]"),
    ("three depths of two", lambda: check_handles(_handle([0, 1, 2]), TAP), "expected arrays that share one leading"),
    (
        "a basis of another width",
        lambda: check_handles(_handle(basis=Basis(FRAMES[:, :3], FRAMES[:, :, :3], ONES)), TAP),
        r"shapes \(\(2, 3, 4\), \(2, 4, 3\)\), expected \(\(2, 4, 4\), \(2, 4, 4\)\)",
    ),
    (
        "40 bases of 2",
        lambda: check_handles(_handle(basis=Basis(np.ones((40, 4, 4)), np.ones((40, 4, 4)), np.ones((40, 4)))), TAP),
        "expected arrays that share one leading axis",
    ),
    ("no handles", lambda: stack_handles([]), "0 handles of kinds"),
    ("handles of two taps", lambda: stack_handles([Handle("a", ONES), Handle("b", ONES)]), "2 handles of kinds"),
    (
        "with and without depth",
        lambda: stack_handles([Handle("a", ONES), Handle("a", ONES, None, np.array(0))]),
        r"\('a', False, False\), \('a', True, False\)",
    ),
    ("handles of two shapes", lambda: stack_handles([Handle("a", ONES), Handle("a", ONES[:1])]), "2 handles of shapes"),
    ("handle 2 of 2", lambda: take_handle(_handle(), 2), r"handle indices \[2\], expected whole numbers from 0 to 1"),
    ("handle -1", lambda: take_handle(_handle(), -1), r"handle indices \[-1\]"),
    ("handles by a mask", lambda: take_handle(_handle(), np.array([True, False])), r"handle indices \[True, False\]"),
    ("handle of a half", lambda: take_handle(_handle(), 0.5), r"handle indices \[0.5\]"),
    ("depths past the end", lambda: check_depths(np.array([0, 3]), TAP), r"\[3\]"),
    ("depths not numbers", lambda: check_depths(np.array(["a"]), TAP), r"\['a'\]"),
]

RUNNING = [
    ("an unknown tap", lambda: run_pairs(NETWORK, BASE, SOURCE, taps=("hiden",)), r"taps \['hiden'\] to record"),
    ("a name as taps", lambda: run_pairs(NETWORK, BASE, SOURCE, taps="hidden"), "expected some of"),
    ("fewer sources", lambda: run_pairs(NETWORK, BASE, SOURCE[:3], taps=("hidden",)), "5 base and 3 source inputs"),
    ("one source", lambda: run_pairs(NETWORK, BASE, SOURCE[:1], taps=("hidden",)), "5 base and 1 source"),
    ("lists", lambda: run_pairs(NETWORK, [1.0, 2.0], [1.0, 2.0], taps=("hidden",)), "expected arrays that share one"),
    ("nothing", lambda: run_pairs(NETWORK, {}, {}, taps=("hidden",)), "empty tree"),
    ("row 5 of 5", lambda: take_pairs(RUNS, np.array([0, 5])), r"rows \[5\], expected whole numbers from 0 to 4"),
    ("row -1", lambda: take_pairs(RUNS, np.array([-1])), r"rows \[-1\]"),
    ("half a row", lambda: take_pairs(RUNS, np.array([0.5])), r"rows \[0.5\]"),
    ("rows by a mask", lambda: take_pairs(RUNS, np.ones(5, bool)), r"rows \[True"),
    ("order past the end", lambda: reorder_sources(RUNS, np.array([0, 1, 2, 3, 5])), r"take sources from \[5\]"),
    ("order -1", lambda: reorder_sources(RUNS, np.array([0, 1, 2, 3, -1])), r"\[-1\]"),
    ("a shorter order", lambda: reorder_sources(RUNS, np.array([0, 1])), r"order of shape \(2,\), expected \(5,\)"),
    ("order by a mask", lambda: reorder_sources(RUNS, np.ones(5, bool)), r"\[True"),
    (
        "a handle of a tap not recorded",
        lambda: patched_outputs(NETWORK, RUNS, Handle("preactivation", np.ones((3, 4)))),
        r"a handle of tap 'preactivation', expected a recorded tap: \['hidden'\]",
    ),
    (
        "8 bases and a source",
        lambda: Interchange(np.ones((1, 4)), np.ones(4))(jax.numpy.ones((8, 4))),
        r"sources of shape \(1, 4\), expected \(8, 4\), one per base",
    ),
    (
        "40 bases and 10 sources",
        lambda: NETWORK(np.ones((40, 2)), {"hidden": Interchange(np.ones((3, 10, 4)), np.ones((3, 1, 4)))}),
        r"sources of shape \(10, 4\), expected \(40, 4\)",
    ),
    ("a kept unit past the end", lambda: _substituted([0, 4], [1]), r"kept units \[4\], expected whole.* 0 to 3"),
    ("a kept unit -1", lambda: _substituted([0, -1], [1]), r"kept units \[-1\]"),
    ("a replaced unit past the end", lambda: _substituted([0, 1], [4]), r"replaced units \[4\]"),
]

BASES_ = [
    ("states of NaN", lambda: pca_basis(NAN), "expected finite numbers"),
    ("states of infinity", lambda: pca_basis(STATES[0] / 0.0), "expected finite numbers"),
    ("one state as a vector", lambda: pca_basis(STATES[0, 0]), r"shape \(4,\)"),
    ("states at depths", lambda: pca_basis(STATES), r"shape \(3, 9, 4\)"),
    ("no states", lambda: pca_basis(STATES[0, :0]), r"shape \(0, 4\)"),
    ("words", lambda: pca_basis(np.array([["a", "b"]])), "expected finite numbers"),
    ("rank 0", lambda: pca_basis(STATES[0], rank=0), "rank 0, expected between 1 and 4"),
    ("rank 5", lambda: pca_basis(STATES[0], rank=5), "rank 5"),
    ("rank of a half", lambda: pca_basis(STATES[0], rank=1.5), "rank 1.5"),
    ("states that do not move", lambda: pca_basis(np.ones((5, 4))), "between 1 and 0"),
    ("depths of NaN", lambda: pca_bases(np.stack([STATES[0], NAN])), "expected finite numbers"),
    ("states at no depths", lambda: pca_bases(STATES[0]), r"shape \(9, 4\), expected \[L, N, D\]"),
    ("no depths", lambda: pca_bases(STATES[:0]), "at least one depth"),
    ("columns of length 2", lambda: rotation_basis(2 * np.eye(4)), "differs from I by 3, expected at most"),
    ("columns that are not square to each other", lambda: rotation_basis(np.ones((4, 2)) / 2), "not orthonormal"),
    ("more columns than rows", lambda: rotation_basis(np.eye(4)[:2]), "not orthonormal"),
    ("columns of NaN", lambda: rotation_basis(np.eye(4) * np.nan), "differs from I by nan"),
    ("one bad frame of many", lambda: rotation_basis(np.stack([np.eye(4), np.ones((4, 4))])), "not orthonormal"),
    ("more features than width", lambda: random_frames(KEY, (), 4, 5), "5 features, expected between 1 and 4"),
    ("no features", lambda: random_frames(KEY, (), 4, 0), "0 features"),
    ("half a feature", lambda: random_frames(KEY, (), 4, 1.5), "1.5 features"),
    ("no width", lambda: random_frames(KEY, (), 0), "0 features"),
    ("a negative number of frames", lambda: random_frames(KEY, (-1,), 4), r"\(-1,\) frames"),
    ("a seed as key", lambda: random_frames(0, (), 4), "key 0, expected one typed key"),
    ("two keys", lambda: random_frames(jax.random.split(KEY), (), 4), "expected one typed key"),
]

ROWS = [Refusal(*row) for row in (*SITES, *HANDLES, *RUNNING, *BASES_)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_bad_inputs_are_refused(row):
    check_refusal(row)


def test_what_jax_traces_passes():
    """A check of values is one of the host: inside a program there is nothing to see."""
    taken = jax.jit(lambda rows: take_pairs(RUNS, rows).outputs)(np.array([3, 0]))
    np.testing.assert_array_equal(taken, np.asarray(RUNS.outputs)[[3, 0]])
    picked = jax.jit(lambda index: take_handle(_handle(), index).depth)(1)
    assert int(picked) == 1
    assert at_one_depth(_handle()).depth.tolist() == [0, 1]
