"""Record once, patch many: against NumPy, and against itself."""

import dataclasses

import jax
import numpy as np
import pytest
from oracles import mlp_layers, patched_mlp
from summed import Summed

from abstraction.interventions import Handle, rotation_basis, unit_sites
from abstraction.interventions.bases import random_frames
from abstraction.interventions.handles import stack_handles, take_handle
from abstraction.interventions.patching import (
    handle_chunk,
    handle_outputs,
    map_handles,
    patched_outputs,
    reorder_sources,
    resume_chunk,
    run_pairs,
    take_pairs,
)
from abstraction.models import GRU, MLP, Dense, Network, Sequential

MODEL = MLP(4, 6, 3, 2)
N = 9
# float32 against float64, or float32 sums in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module", name="setup")
def _setup():
    network = Network(MODEL, MODEL.init(jax.random.key(0)))
    base, source = np.random.default_rng(0).standard_normal((2, N, 4)).astype(np.float32)
    return network, base, source, run_pairs(network, base, source, taps=("hidden",))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an accelerator always takes the batch")
def test_handles_run_one_by_one_where_what_is_kept_makes_each_work_enough(setup):
    runs = setup[3]
    assert resume_chunk(runs, "hidden") == handle_chunk(runs, "hidden") > 1
    keeping = dataclasses.replace(runs, inputs=(runs.inputs, np.zeros((N, 3, 1000), np.float32)))
    assert resume_chunk(keeping, "hidden") == 1
    # Handles that come depth by depth are patched together, those of one depth.
    assert resume_chunk(keeping, "hidden", np.repeat(np.arange(3), 4)) == 4
    assert resume_chunk(keeping, "hidden", np.array([0, 1, 0, 1])) == 1
    assert resume_chunk(keeping, "hidden", np.array([0, 0, 0, 1, 1])) == 1


def test_a_runs_holds_both_runs(setup):
    network, base, source, runs = setup
    params = network.params
    outputs, states = mlp_layers(params, base)
    np.testing.assert_allclose(runs.outputs, outputs, **CLOSE)
    np.testing.assert_allclose(runs.base["hidden"], states, **CLOSE)
    np.testing.assert_allclose(runs.source["hidden"], mlp_layers(params, source)[1], **CLOSE)


@pytest.mark.parametrize("seed", range(3))
def test_handles_of_several_depths_match_numpy(setup, seed):
    network, base, source, runs = setup
    weight = np.random.default_rng(seed).uniform(0, 1.5, (3, 6)).astype(np.float32)
    patched = patched_outputs(network, runs, Handle("hidden", weight))
    np.testing.assert_allclose(patched, patched_mlp(network.params, base, source, weight), **CLOSE)


def test_local_handles_agree_with_handles_of_one_depth(setup):
    network, _, _, runs = setup
    for depth in range(3):
        weight = np.linspace(0, 1.2, 6).astype(np.float32)
        whole = np.zeros((3, 6), np.float32)
        whole[depth] = weight
        local = patched_outputs(network, runs, Handle("hidden", weight, None, np.array(depth)))
        np.testing.assert_allclose(local, patched_outputs(network, runs, Handle("hidden", whole)), **CLOSE)


CHAIN = Sequential((4,), (Dense("one", 6), Dense("two", 6), Dense("three", 2)))
PLACES = {
    "resumes": (MODEL, "hidden", (4,)),
    "recurrent": (GRU(2, 6, 3), "hidden", (3, 2)),
    "recurrent, does not resume": (GRU(2, 6, 3), "inputs", (3, 2)),
    "once, does not resume": (MODEL, "inputs", (4,)),
    "once, resumes": (CHAIN, "one", (4,)),
}


@pytest.mark.parametrize("rotated", [False, True], ids=["native", "in a basis"])
@pytest.mark.parametrize("place", PLACES)
def test_a_handle_with_a_depth_is_one_whose_other_weights_are_zero(rng, place, rotated):
    model, tap, shape = PLACES[place]
    network = Network(model, model.init(jax.random.key(0)))
    runs = run_pairs(network, *rng.standard_normal((2, N, *shape)).astype(np.float32), taps=(tap,))
    depths, width = network.taps[tap].depth, network.taps[tap].width
    frames = random_frames(jax.random.key(1), (depths,), width)
    for depth in range(depths):
        weight = np.zeros((depths, width), np.float32)
        weight[depth] = np.linspace(0.2, 1.2, width)
        bases = (rotation_basis(frames), rotation_basis(frames[depth])) if rotated else (None, None)
        whole, local = Handle(tap, weight, bases[0]), Handle(tap, weight[depth], bases[1], np.array(depth))
        first, second = (patched_outputs(network, runs, handle) for handle in (whole, local))
        np.testing.assert_allclose(first, second, **CLOSE)
        assert np.abs(first - runs.outputs).max() > 1e-3


def test_a_tap_that_does_not_resume_is_run_whole(rng):
    """What goes in is known, so a swap of inputs is a run on mixed inputs."""
    model = GRU(2, 6, 3)
    network = Network(model, model.init(jax.random.key(0)))
    base, source = rng.standard_normal((2, N, 3, 2)).astype(np.float32)
    runs = run_pairs(network, base, source, taps=("inputs",))
    for depth in range(3):
        mixed = base.copy()
        mixed[:, depth, 1] = source[:, depth, 1]
        handle = Handle("inputs", np.array([0.0, 1.0], np.float32), None, np.array(depth))
        np.testing.assert_allclose(patched_outputs(network, runs, handle), network(mixed)[0], **CLOSE)


def test_a_batch_of_handles_is_one_after_another(setup):
    network, *_, runs = setup
    handles = unit_sites(MODEL.taps["hidden"]).handles()
    batch = handle_outputs(network, runs, handles)
    for index in (0, 7, 17):
        np.testing.assert_allclose(batch[index], patched_outputs(network, runs, take_handle(handles, index)), **CLOSE)


def test_only_the_product_of_weight_and_strength_matters(setup):
    network, _, _, runs = setup
    sites = unit_sites(MODEL.taps["hidden"])
    row = sites.rows()[3]
    twice, half = (patched_outputs(network, runs, Handle("hidden", s * (w * row))) for s, w in ((2, 0.25), (0.5, 1)))
    np.testing.assert_array_equal(twice, half)


@pytest.mark.parametrize("chunk", [1, 2, 5, 18, 100])
def test_the_chunk_size_changes_nothing(setup, chunk):
    network, _, _, runs = setup
    handles = unit_sites(MODEL.taps["hidden"]).handles()
    run = lambda handle: patched_outputs(network, runs, handle)
    chunked = jax.jit(lambda handles: map_handles(run, handles, chunk=chunk))(handles)
    np.testing.assert_allclose(chunked, jax.vmap(run)(handles), **CLOSE)


def test_taking_pairs_is_runs_them(setup):
    network, base, source, runs = setup
    rows = np.array([4, 0, 7])
    taken = take_pairs(runs, rows)
    direct = run_pairs(network, base[rows], source[rows], taps=("hidden",))
    for first, second in zip(jax.tree.leaves(taken), jax.tree.leaves(direct), strict=True):
        np.testing.assert_allclose(first, second, **CLOSE)


def test_reordering_sources_moves_sources_only(setup):
    network, base, source, runs = setup
    order = np.roll(np.arange(N), 1)
    moved = reorder_sources(runs, order)
    direct = run_pairs(network, base, source[order], taps=("hidden",))
    np.testing.assert_allclose(moved.source["hidden"], direct.source["hidden"], **CLOSE)
    np.testing.assert_array_equal(moved.base["hidden"], runs.base["hidden"])


def test_pytrees_of_inputs_are_recorded_and_taken_leaf_by_leaf(rng):
    network = Network(Summed(), {"kernel": rng.standard_normal((4, 2)).astype(np.float32)})
    base, source = ({"left": left, "right": right} for left, right in rng.standard_normal((2, 2, N, 4)))
    runs = run_pairs(network, base, source, taps=("sum",))
    np.testing.assert_allclose(runs.source["sum"][0], source["left"] + source["right"], **CLOSE)
    taken = take_pairs(runs, np.array([3, 3, 1]))
    np.testing.assert_allclose(taken.inputs["right"], base["right"][[3, 3, 1]], **CLOSE)
    whole = Handle("sum", np.ones((1, 4), np.float32))
    np.testing.assert_allclose(patched_outputs(network, runs, whole), network(source)[0], **CLOSE)


def test_stacked_handles_come_apart_again():
    handles = [Handle("hidden", np.full((3, 6), float(value), np.float32)) for value in range(4)]
    batch = stack_handles(handles)
    np.testing.assert_array_equal(take_handle(batch, 2).weight, handles[2].weight)
    local = stack_handles([Handle("hidden", np.ones(6), None, np.array(depth)) for depth in (2, 0)])
    assert take_handle(local, np.array([1, 0, 1])).depth.tolist() == [0, 2, 0]
