"""Mechanism reduction end to end, the quick run on the bundled digits.

python -m experiments reduction --quick
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from heqruns import Ended, command, snapshot
from safetensors.numpy import load_file

from abstraction.models import Activation, Dense, Sequential
from abstraction.reduction import load_plan
from experiments import command_line
from experiments.harness.metrics import Metrics
from experiments.harness.records import Unit, open_run
from experiments.reduction import experiment
from experiments.reduction.options import Reduction, budgets
from experiments.reduction.tables import iia_of

METHODS = ("cmr", "cmr-closed", "cip-const", "vbp")
COMMAND = ("reduction", "--quick", "--methods", *METHODS, "--keeps", 1, 0.25, 0.125, "--trials", 1000)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    out = tmp_path_factory.mktemp("quick") / "run"
    return out, command(*COMMAND, "--out", out)


@pytest.fixture(scope="module")
def folder(done: tuple[Path, Ended]) -> Path:
    return done[0]


@pytest.fixture(scope="module")
def unit(folder: Path) -> Unit:
    return open_run(folder).read_unit("seed-0")


@pytest.fixture(scope="module")
def metrics(unit: Unit) -> Metrics:
    return Metrics(unit.rows)


def test_the_run_ends_well_and_explains_its_tables(done: tuple[Path, Ended]):
    folder, ended = done
    assert (ended.status, ended.err) == (0, "")
    text = " ".join(ended.out.split())
    for words in (
        "scikit-learn's digits",
        "ignored",
        "followed",
        "WARNING cip-const",
        "both hidden layers",
        str(folder),
    ):
        assert words in text, words
    for name in ("accuracy", "iia", "strengths", "scores"):
        for kind in ("png", "pdf"):
            assert (folder / "figures" / f"{name}.{kind}").stat().st_size > 1000


def test_keeping_every_unit_is_the_dense_network(metrics: Metrics):
    dense = metrics.mean("dense", "network", "test", "accuracy")
    for method in METHODS:
        assert metrics.mean(method, "hidden2", "keep128", "accuracy") == dense
        assert metrics.mean(method, "hidden2", "keep128", "agreement") == 1
        for p in ("0.1", "0.5"):
            assert metrics.mean(method, "hidden2", f"keep128-p{p}", "iia") == 1


def test_the_default_beats_the_baselines_and_the_authors_constants_fail(metrics: Metrics):
    accuracy = lambda method, keep: metrics.mean(method, "hidden2", f"keep{keep}", "accuracy")
    for keep in (32, 16):
        assert accuracy("cmr", keep) > 0.95
        assert accuracy("cmr-closed", keep) > 0.95
        assert accuracy("vbp", keep) < accuracy("cmr", keep) - 0.05
        assert accuracy("cip-const", keep) < 0.5
    assert metrics.mean("cmr", "both", "keep32", "accuracy") > 0.93


def test_intervals_hold_their_rates_and_agreement_is_iia_without_interventions(metrics: Metrics):
    for method in METHODS:
        for keep in (32, 16):
            rate = iia_of(metrics, method, "hidden2", f"keep{keep}-p0.1")
            assert rate is not None
            assert rate[1] <= rate[0] <= rate[2]
            low, mid, high = (
                metrics.mean(method, "hidden2", f"keep{keep}", name)
                for name in ("agreement_low", "agreement", "agreement_high")
            )
            assert low <= mid <= high


def test_every_row_stands_beside_its_controls(metrics: Metrics):
    for method in METHODS:
        for kind in ("ignored", "shuffled"):
            values = metrics.values(f"control-{kind}-{method}", "hidden2", "keep32-p0.5", "iia")
            assert len(values) == 1
    # far from observation a wrong source must cost something
    assert (
        metrics.mean("control-shuffled-cmr", "hidden2", "keep128-p0.5", "iia")
        < metrics.mean("cmr", "hidden2", "keep128-p0.5", "iia") - 0.1
    )


def test_smaller_networks_cost_what_their_shapes_say(metrics: Metrics):
    for keep in (32, 16):
        expected = 64 * 128 + 128 + (128 + 1) * keep + (keep + 1) * 10
        assert metrics.mean("cmr", "hidden2", f"keep{keep}", "parameters") == expected
        adds = metrics.mean("cmr", "hidden2", f"keep{keep}", "multiply_adds")
        assert adds == 64 * 128 + 128 * keep + keep * 10


def test_stored_networks_run_and_their_plans_load(folder: Path, unit: Unit):
    arrays = load_file(folder / "networks" / "seed-0" / "cmr-keep16.params.safetensors")
    layers = (Dense("fc1", 128), Activation("hidden1"), Dense("fc2", 16), Activation("hidden2"), Dense("fc_out", 10))
    params: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        layer, _, leaf = name.partition(".")
        params.setdefault(layer, {})[leaf] = array
    outputs, _ = Sequential((64,), layers).apply(params, np.zeros((2, 64), np.float32))
    assert np.isfinite(outputs).all()
    plan = load_plan(folder / "networks" / "seed-0" / "cmr-keep16.plan.safetensors")
    np.testing.assert_array_equal(plan.folds[0].kept, unit.arrays["cmr/keep16/kept"])


def test_scores_predict_what_replacing_a_unit_does(unit: Unit):
    score, measured = unit.arrays["effects/score"], unit.arrays["effects/measured"]
    large = score > np.quantile(score, 0.5)
    assert np.corrcoef(np.log(score[large]), np.log(measured[large]))[0, 1] > 0.95


def test_resuming_a_complete_run_computes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copy = shutil.copytree(folder, tmp_path / "run")

    def fail(*_: object) -> Unit:
        raise AssertionError("a complete seed was computed again")

    monkeypatch.setitem(command_line.EXPERIMENTS, "reduction", experiment.EXPERIMENT._replace(run_seed=fail))
    before = snapshot(copy)
    assert command(*COMMAND, "--resume", "--out", copy).status == 0
    assert {name for name, content in snapshot(copy).items() if before[name] != content} == {
        "manifest.json",
        "report.html",
    }


def test_the_tables_are_made_from_the_records_alone(folder: Path, done: tuple[Path, Ended]):
    ended = command("tables", "--out", folder)
    assert ended.status == 0
    assert ended.out in done[1].out
    assert "vbp: what is lost" in command("tables", "--details", "--out", folder).out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--keeps", 200), "got --keeps [200.0], expected at most 128 units, the width"),
        (("--keeps", 0), "got --keeps [0.0]"),
        (("--both-keeps", 1.5), "got --both-keeps [1.5]"),
        (("--probabilities", 2), "got --probabilities [2.0]"),
        (("--trials", 0), "got --trials 0, expected at least 1"),
        (("--calibration", 20), "got --calibration 20, expected at least 65"),
        (("--methods", "vbp", "vbp"), "got --methods"),
        (("--network.checkpoint", "nowhere.npz"), "got --network.checkpoint nowhere.npz, expected an npz file"),
        (("--data-dir", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(options: tuple, words: str, tmp_path: Path):
    data = () if "--data-dir" in options else ("--data", "digits")
    ended = command("reduction", *data, *options, "--out", tmp_path / "run")
    assert (ended.status, ended.out) == (2, "")
    assert words in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_budgets_are_shares_or_counts():
    assert budgets("--keeps", (1, 0.5, 0.25, 3), 128) == [128, 64, 32, 3]
    with pytest.raises(ValueError, match=r"got --keeps \[64, 64\], expected budgets that are each there once"):
        budgets("--keeps", (0.5, 64), 128)
    with pytest.raises(ValueError, match=r"got --keeps \[129\], expected at most 128 units"):
        budgets("--keeps", (129,), 128)
    assert budgets("--keeps", Reduction().keeps, 512) == [256, 128, 64, 32, 16]
