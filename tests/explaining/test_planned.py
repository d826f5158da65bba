"""What an experiment would cost: drivers at their shapes, chunks that fit, devices that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from abstraction.evaluation.interchange import bernoulli_trials, interchanged_outputs, view
from abstraction.explaining import Case, Planned, Reading, Reducing, Searches, Where, count_operations, plan_case, shape
from abstraction.interventions.patching import run_pairs
from abstraction.models import MLP, Decoder, DecoderConfig, Network
from abstraction.planning import footprint

ROOT = Path(__file__).parent.parent.parent
WIDTH, DEPTH, PAIRS = 8, 3, 40
MODEL = MLP(4, WIDTH, DEPTH, 2)
CASE = Case(
    "small", MODEL, lambda count: shape((count, 4)), "hidden", PAIRS, 2 * PAIRS,
    [Searches("das", 12, 4, DEPTH, batch=20, epochs=3)], handles=(30, 10),
)  # fmt: skip
FORWARD = 2 * (4 * WIDTH + (DEPTH - 1) * WIDTH**2 + WIDTH * 2)
CONFIG = DecoderConfig(vocabulary=31, width=12, depth=2, heads=2, kv_heads=1, head_size=6, hidden=16)


pytestmark = pytest.mark.usefixtures("shapes_for_arrays")


@pytest.fixture(scope="module")
def planned(shapes_for_arrays) -> dict[str, Planned]:
    return {f"{one.driver.name}, {one.driver.size}": one for one in plan_case(CASE, Where.of())}


def test_runs_and_operations_are_counted_by_hand(planned):
    by_name = {name.split(",")[0]: one for name, one in planned.items() if "native" not in name}
    assert by_name["record"].driver.runs == 4 * PAIRS
    assert by_name["record"].operations == 4 * PAIRS * FORWARD
    for name in ("site_signatures", "sweep"):
        assert by_name[name].driver.runs == WIDTH * DEPTH * PAIRS
    # each site resumes after its layer, as deep as it is counted: all of the layers
    assert by_name["sweep"].operations == by_name["site_signatures"].operations
    native = next(one for name, one in planned.items() if "native" in name)
    assert native.driver.runs == 30 * PAIRS
    assert native.operations / native.driver.runs == by_name["sweep"].operations / by_name["sweep"].driver.runs
    search = by_name["train_candidates"]
    assert search.driver.runs == 12 * 3 * PAIRS
    # more than a run forward and backward, and rotations beside it
    assert search.operations > 2 * search.driver.runs * native.operations / native.driver.runs


def test_a_recording_holds_what_the_plan_says(planned):
    program, found = CASE.recording(2 * PAIRS, None), next(iter(planned.values()))
    assert found.ahead.footprint == footprint(program)
    network = Network(MODEL, MODEL.init(jax.random.key(0)))
    inputs = np.zeros((2 * PAIRS, 4), np.float32)
    runs = run_pairs(network, inputs, inputs, taps=("hidden",))
    # and a few bytes of what tells its arrays apart
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(runs))
    assert held == pytest.approx(found.ahead.footprint.outputs, rel=0.05)
    assert all(one.fits(None) and one.chunk == one.driver.wanted for one in planned.values())


def test_a_small_device_gets_small_chunks_and_a_tiny_one_nothing():
    whole = next(plan_case(CASE, Where.of()))
    tight = Where.of()._replace(memory=int(1.2 * whole.ahead.footprint.total))
    cut = next(plan_case(CASE, tight))
    assert 0 < cut.chunk < whole.chunk
    assert cut.fits(tight.memory)
    none = next(plan_case(CASE, tight._replace(memory=100)))
    assert (none.chunk, none.fits(100)) == (0, False)


@pytest.mark.slow
def test_a_mesh_shares_what_one_device_holds_and_a_decoder_its_heads():
    settings = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).parent / "on_a_mesh.py")]
    run = subprocess.run(command, env={**os.environ, **settings}, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not run.returncode, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found["past"] == [[4, 1, 8, 6]], "pairs by pairs, heads by heads"
    assert found["collectives"] > 0, "heads are summed"
    for driver in found["drivers"]:
        assert driver["operations"][0] == driver["operations"][1]
        # of handles every device has all counts; of pairs, sites and searches its share
        assert driver["outputs"][1] < driver["outputs"][0] or "handles" in driver["driver"], driver


def test_statistics_and_trials_are_counted_by_hand():
    model, inputs = MLP(4, WIDTH, 1, 3), lambda count: shape((count, 4))
    statistics, trials = plan_case(Reducing("small", model, inputs, "hidden", 50, 30, 70, batch=(20, 32)), Where.of())
    assert (statistics.driver.calls, trials.driver.calls) == (3, 3)
    forward = 2 * (4 * WIDTH + WIDTH * 3)
    assert trials.operations == 3 * 32 * forward
    # a run, and rows of curvature pulled back through the last layer
    assert statistics.operations > 50 * forward
    network = Network(model, model.init(jax.random.key(0)))
    drawn = bernoulli_trials(np.random.default_rng(0), examples=30, units=WIDTH, probability=0.5, trials=70)
    seen = view(network, "hidden", np.arange(WIDTH))
    outputs = interchanged_outputs(seen, np.ones((30, 4), np.float32), drawn, batch_size=32)
    assert outputs.shape == (trials.driver.runs, 3)


def test_a_pass_over_text_costs_as_much_as_its_batches():
    one, many = (next(plan_case(Reading("text", Decoder(CONFIG), rows, 6, 4, ("kl",)), Where.of())) for rows in (4, 20))
    assert many.operations == 5 * one.operations
    assert many.ahead == one.ahead


def test_devices_that_are_not_there_need_their_compiler():
    with pytest.raises(ValueError, match=r"got target 'gpu', expected one of .*'h100', 'v5e', 'v5p'"):
        Where.of("gpu")
    there = Where.of()
    assert there.bound(1.0, None) is None
    bound = there._replace(flops=10.0, bandwidth=4.0)
    assert bound.bound(30.0, None) == 3.0
    assert (
        bound.bound(30.0, footprint(CASE.recording(2, None))._replace(arguments=400, outputs=0, temporary=0, aliased=0))
        == 100.0
    )


def test_counting_runs_nothing():
    assert count_operations(CASE.recording(10**6, None)) == 2 * 10**6 * FORWARD
