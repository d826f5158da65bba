"""Record once, patch many: against NumPy, and against itself."""

import dataclasses

import jax
import numpy as np
import pytest
from oracles import mlp_layers, patched_mlp

from abstraction.interventions import (
    Handle,
    LocalHandle,
    handle_chunk,
    map_handles,
    patched_outputs,
    random_frames,
    record_pairs,
    reorder_sources,
    resume_chunk,
    rotation_basis,
    stack_handles,
    take_handle,
    take_pairs,
    unit_sites,
)
from abstraction.models import MLP

MODEL = MLP(4, 6, 3, 2)
N = 9
# float32 against float64, or float32 sums in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module", name="setup")
def _setup():
    params = MODEL.init(jax.random.key(0))
    base, source = np.random.default_rng(0).standard_normal((2, N, 4)).astype(np.float32)
    return params, base, source, record_pairs(MODEL, params, base, source, taps=("hidden",))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an accelerator always takes the batch")
def test_handles_run_one_by_one_where_what_is_kept_makes_each_work_enough(setup):
    recording = setup[3]
    assert resume_chunk(recording, "hidden") == handle_chunk(recording, "hidden") > 1
    keeping = dataclasses.replace(recording, inputs=(recording.inputs, np.zeros((N, 3, 1000), np.float32)))
    assert resume_chunk(keeping, "hidden") == 1


def test_a_recording_holds_both_runs(setup):
    params, base, source, recording = setup
    outputs, states = mlp_layers(params, base)
    np.testing.assert_allclose(recording.outputs, outputs, **CLOSE)
    np.testing.assert_allclose(recording.base["hidden"], states, **CLOSE)
    np.testing.assert_allclose(recording.source["hidden"], mlp_layers(params, source)[1], **CLOSE)


@pytest.mark.parametrize("seed", range(3))
def test_handles_of_several_depths_match_numpy(setup, seed):
    params, base, source, recording = setup
    weight = np.random.default_rng(seed).uniform(0, 1.5, (3, 6)).astype(np.float32)
    patched = patched_outputs(MODEL, params, recording, Handle(weight))
    np.testing.assert_allclose(patched, patched_mlp(params, base, source, weight), **CLOSE)


def test_local_handles_agree_with_handles_of_one_depth(setup):
    params, _, _, recording = setup
    for depth in range(3):
        weight = np.linspace(0, 1.2, 6).astype(np.float32)
        whole = np.zeros((3, 6), np.float32)
        whole[depth] = weight
        local = patched_outputs(MODEL, params, recording, LocalHandle(np.array(depth), weight))
        np.testing.assert_allclose(local, patched_outputs(MODEL, params, recording, Handle(whole)), **CLOSE)


def test_local_handles_in_a_basis_agree_with_handles_in_it(setup):
    params, _, _, recording = setup
    frames = random_frames(jax.random.key(1), (3,), 6)
    weight = np.zeros((3, 6), np.float32)
    weight[1, :2] = 1.0
    whole = Handle(weight, rotation_basis(frames))
    local = LocalHandle(np.array(1), weight[1], rotation_basis(frames[1]))
    runs = [patched_outputs(MODEL, params, recording, handle) for handle in (whole, local)]
    np.testing.assert_allclose(*runs, **CLOSE)


def test_only_the_product_of_weight_and_strength_matters(setup):
    params, _, _, recording = setup
    sites = unit_sites(MODEL.taps["hidden"])
    row = sites.rows()[3]
    twice, half = (patched_outputs(MODEL, params, recording, Handle(s * (w * row))) for s, w in ((2, 0.25), (0.5, 1)))
    np.testing.assert_array_equal(twice, half)


@pytest.mark.parametrize("chunk", [1, 2, 5, 18, 100])
def test_the_chunk_size_changes_nothing(setup, chunk):
    params, _, _, recording = setup
    handles = unit_sites(MODEL.taps["hidden"]).handles()
    run = lambda handle: patched_outputs(MODEL, params, recording, handle)
    chunked = jax.jit(lambda handles: map_handles(run, handles, chunk=chunk))(handles)
    np.testing.assert_allclose(chunked, jax.vmap(run)(handles), **CLOSE)


def test_taking_pairs_is_recording_them(setup):
    params, base, source, recording = setup
    rows = np.array([4, 0, 7])
    taken = take_pairs(recording, rows)
    direct = record_pairs(MODEL, params, base[rows], source[rows], taps=("hidden",))
    for first, second in zip(jax.tree.leaves(taken), jax.tree.leaves(direct), strict=True):
        np.testing.assert_allclose(first, second, **CLOSE)


def test_reordering_sources_moves_sources_only(setup):
    params, base, source, recording = setup
    order = np.roll(np.arange(N), 1)
    moved = reorder_sources(recording, order)
    direct = record_pairs(MODEL, params, base, source[order], taps=("hidden",))
    np.testing.assert_allclose(moved.source["hidden"], direct.source["hidden"], **CLOSE)
    np.testing.assert_array_equal(moved.base["hidden"], recording.base["hidden"])


def test_stacked_handles_come_apart_again():
    handles = [Handle(np.full((3, 6), float(value), np.float32)) for value in range(4)]
    batch = stack_handles(handles)
    np.testing.assert_array_equal(take_handle(batch, 2).weight, handles[2].weight)


def test_handles_of_different_kinds_do_not_stack():
    with pytest.raises(ValueError, match="got 2 handles of different kinds"):
        stack_handles([Handle(np.zeros((3, 6))), Handle(np.zeros((3, 6)), None, "preactivation")])
