"""Interrupted, damaged and resumed runs: the numbers of a run do not depend on how often it was stopped."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heqruns import SMALL, Ended, command, handmade_unit, numbers, snapshot

from abstraction.training import Trained, Watch
from experiments import command_line
from experiments.equality import experiment as heq
from experiments.equality.options import Equality, EqualityBanks
from experiments.harness.records import RunFolder, Unit, create_run, open_run
from experiments.harness.running import run_seeds

TWO_SEEDS = ("heq", "--methods", "plot-ot", "das", "--seeds", "1:3", *SMALL)
SECOND_SEED = ("heq", "--methods", "plot-ot", "das", "--seeds", "2", *SMALL)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds that nothing interrupted."""
    out = tmp_path_factory.mktemp("small") / "run"
    ended = command(*TWO_SEEDS, "--out", out)
    assert (ended.status, ended.err) == (0, "")
    return out


@pytest.fixture
def copy(straight: Path, tmp_path: Path) -> Path:
    return shutil.copytree(straight, tmp_path / "run")


def _second(folder: Path) -> Unit:
    return open_run(folder).read_unit("seed-2")


def _without_costs(unit: Unit) -> dict[str, Any]:
    plain = {name: value for name, value in unit.details.items() if not isinstance(value, dict)}
    nested = {name: value for name, value in unit.details.items() if isinstance(value, dict)}
    return plain | {name: {key: each for key, each in of.items() if key != "cost"} for name, of in nested.items()}


def _assert_same(unit: Unit, expected: Unit) -> None:
    assert numbers(unit) == numbers(expected)
    assert _without_costs(unit) == _without_costs(expected)
    assert set(unit.arrays) == set(expected.arrays)
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(unit.arrays[name], array, err_msg=name)


def _watch_training(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Note how many epochs each call of `fit` trains; interrupt after so many."""
    fit, epochs = heq.fit, []

    def watched(*arguments: Any, context: Any) -> Trained:
        *first, watch = arguments
        assert isinstance(watch, Watch)
        progress = watch.progress

        def report(epoch: int, metrics: Any) -> None:
            assert progress is not None
            progress(epoch, metrics)
            if epoch == stop_after:
                raise KeyboardInterrupt

        trained = fit(*first, watch._replace(progress=report), context=context)
        epochs.append(len(trained.history))
        return trained

    monkeypatch.setattr(heq, "fit", watched)
    return epochs


def test_the_small_run_says_something(straight: Path):
    # Otherwise equal numbers would mean little: the seeds differ, and handles beat doing nothing.
    first, second = open_run(straight).units()
    assert list(numbers(first).values()) != list(numbers(second).values())
    for unit in (first, second):
        values = numbers(unit)
        seed = int(unit.name.removeprefix("seed-"))
        for method in ("plot-ot", "das"):
            found, nothing = (values["heq", name, "mean", "test", "iia", seed] for name in (method, "control-identity"))
            assert found > nothing + 0.3


@pytest.mark.parametrize("stage", ["backbone", "banks", "plot-ot", "das"])
def test_the_second_seed_compiles_nothing(straight: Path, stage: str):
    compiling = [row.value for row in _second(straight).rows if (row.method, row.metric) == (stage, "seconds_compile")]
    assert compiling == [0.0]


def test_a_deleted_unit_is_computed_again_from_its_checkpoint(
    straight: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
):
    epochs = _watch_training(monkeypatch)
    for suffix in ("json", "safetensors"):
        (copy / "units" / f"seed-2.{suffix}").unlink()
    before = snapshot(copy)
    assert command(*TWO_SEEDS, "--resume", "--out", copy).status == 0
    assert epochs == [0], "the checkpoint was there, and yet epochs were trained"
    _assert_same(_second(copy), _second(straight))
    after = snapshot(copy)
    kept = [name for name in before if "seed-1" in name or name == "config.json"]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


def _watch_methods(monkeypatch: pytest.MonkeyPatch, stop_at: str | None = None) -> list[str]:
    """Note which methods are run; interrupt one."""
    run_method, ran = heq._run_method, []

    def watched(config: Equality, method: str, *rest: Any) -> Any:
        if method == stop_at:
            raise KeyboardInterrupt
        ran.append(method)
        return run_method(config, method, *rest)

    monkeypatch.setattr(heq, "_run_method", watched)
    return ran


def test_a_seed_that_is_stopped_goes_on_with_the_method_it_was_at(
    straight: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
):
    for suffix in ("json", "safetensors"):
        (copy / "units" / f"seed-2.{suffix}").unlink()
    with monkeypatch.context() as patch:
        assert _watch_methods(patch, stop_at="das") == []
        assert command(*TWO_SEEDS, "--resume", "--out", copy).status == 130
    parts = copy / "parts" / "seed-2"
    assert sorted(path.name for path in parts.iterdir()) == ["plot-ot.json", "plot-ot.safetensors"]
    whole = (parts / "plot-ot.json").read_bytes()
    (parts / "plot-ot.json").write_bytes(whole.replace(b"0.9", b"1.0", 1))
    ended = command(*TWO_SEEDS, "--resume", "--out", copy)
    assert (ended.status, ended.out) == (2, "")
    assert re.fullmatch(r"error: got a damaged record .*plot-ot\.json .*delete this file to compute it .*\n", ended.err)
    (parts / "plot-ot.json").write_bytes(whole)
    ran = _watch_methods(monkeypatch)
    assert command(*TWO_SEEDS, "--resume", "--out", copy).status == 0
    assert ran == ["das"]
    _assert_same(_second(copy), _second(straight))
    assert not (copy / "parts").exists()


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_numbers_of_a_straight_one(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        _watch_training(patch, stop_after=2)
        assert command(*SECOND_SEED, "--out", out).status == 130
    assert open_run(out).unit_names() == []
    epochs = _watch_training(monkeypatch)
    assert command(*SECOND_SEED, "--resume", "--out", out).status == 0
    assert epochs == [4]
    _assert_same(_second(out), _second(straight))


def test_a_truncated_unit_is_one_error_line_and_changes_nothing(copy: Path):
    unit = copy / "units" / "seed-2.json"
    unit.write_bytes(unit.read_bytes()[:100])
    before = snapshot(copy)
    ended = command(*TWO_SEEDS, "--resume", "--out", copy)
    assert (ended.status, ended.out) == (2, "")
    assert re.fullmatch(r"error: got a damaged record .*seed-2\.json .*nothing was changed.*\n", ended.err)
    assert snapshot(copy) == before


def test_a_damaged_unit_that_is_deleted_as_told_is_computed_again(straight: Path, copy: Path):
    arrays = copy / "units" / "seed-2.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-8])
    ended = command(*TWO_SEEDS, "--resume", "--out", copy)
    assert ended.status == 2
    found = re.search(r"damaged record (\S+)", ended.err)
    assert found
    Path(found[1]).unlink()
    assert command(*TWO_SEEDS, "--resume", "--out", copy).status == 0
    _assert_same(_second(copy), _second(straight))


def test_a_damaged_checkpoint_is_one_error_line_and_stays(copy: Path):
    (copy / "units" / "seed-2.json").unlink()
    # Where arrays are cut short instead, orbax may go on complaining from its own threads after the error.
    [metadata] = (copy / "checkpoints" / "seed-2").glob("*/default/_METADATA")
    metadata.write_bytes(metadata.read_bytes()[:10])
    before = snapshot(copy / "checkpoints")
    ended = command(*TWO_SEEDS, "--resume", "--out", copy)
    assert (ended.status, ended.out) == (2, "")
    assert re.fullmatch(r"error: cannot restore checkpoint .*seed-2.*\n", ended.err)
    assert snapshot(copy / "checkpoints") == before
    assert open_run(copy).unit_names() == ["seed-1"]


def _replace_seeds(monkeypatch: pytest.MonkeyPatch, *, interrupt_at: int | None = None) -> list[int]:
    """Let seeds have hand-made results; note which ran."""
    ran: list[int] = []

    def run_seed(config: Equality, seed: int, run: RunFolder, report: Callable[[str], None]) -> Unit:
        report(f"seed {seed}")
        if seed == interrupt_at:
            raise KeyboardInterrupt
        ran.append(seed)
        return handmade_unit(seed, {"das": 0.9})

    monkeypatch.setitem(command_line.EXPERIMENTS, "heq", heq.EXPERIMENT._replace(run_seed=run_seed))
    return ran


def _metric_seeds(folder: Path) -> set[int]:
    with (folder / "metrics.csv").open(newline="") as file:
        return {int(row["seed"]) for row in csv.DictReader(file)}


def _resume(folder: Path, seeds: str) -> Ended:
    return command("heq", "--seeds", seeds, "--resume", "--out", folder)


def test_an_interrupted_run_keeps_complete_seeds_and_resumes_with_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        ran = _replace_seeds(patch, interrupt_at=2)
        assert command("heq", "--seeds", "1:4", "--out", out).status == 130
    assert ran == [1]
    assert open_run(out).unit_names() == ["seed-1"]
    assert _metric_seeds(out) == {1}
    first = snapshot(out / "units")
    ran = _replace_seeds(monkeypatch)
    assert _resume(out, "1:4").status == 0
    assert ran == [2, 3]
    assert _metric_seeds(out) == {1, 2, 3}
    after = snapshot(out / "units")
    assert {name: after[name] for name in first} == first


def test_seeds_are_added_to_a_run_and_none_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ran = _replace_seeds(monkeypatch)
    assert command("heq", "--seeds", "10", "--out", tmp_path).status == 0
    assert _resume(tmp_path, "2,10").status == 0
    assert _resume(tmp_path, "5").status == 0
    assert ran == [10, 2, 5]
    assert open_run(tmp_path).unit_names() == ["seed-2", "seed-5", "seed-10"]
    assert _metric_seeds(tmp_path) == {2, 5, 10}
    entries = json.loads((tmp_path / "manifest.json").read_text())["invocations"]
    assert [entry["seeds"] for entry in entries] == [[10], [2, 10], [5]]


def test_metrics_that_lag_behind_the_units_are_written_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    _replace_seeds(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_metrics", fail)
        assert command("heq", "--seeds", "1", "--out", tmp_path).status == 130
    assert open_run(tmp_path).unit_names() == ["seed-1"]
    assert _resume(tmp_path, "1").status == 0
    assert (tmp_path / "metrics.csv").exists()


def test_what_the_manifest_says_of_a_seed_survives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    _replace_seeds(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "note_in_manifest", fail)
        assert command("heq", "--seeds", "1", "--out", tmp_path).status == 130
    assert _resume(tmp_path, "1").status == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["data"] == {"seed-1": open_run(tmp_path).read_unit("seed-1").details["data"]}
    assert set(manifest["random_seeds"]) == {"seed-1"}


def test_the_seeds_in_the_manifest_are_those_numpy_was_given(monkeypatch: pytest.MonkeyPatch):
    generator, given = np.random.default_rng, set()

    def watched(seed: int) -> np.random.Generator:
        given.add(seed)
        return generator(seed)

    monkeypatch.setattr(np.random, "default_rng", watched)
    options = EqualityBanks(size=60, fit_pool=256, calibration_pool=256, test_pool=256, fit=60, calibration=60)
    heq._draw_banks(options, 5000)
    assert given
    assert sorted(given - set(heq.random_seeds(5000).values())) == []


def test_the_runs_loop_computes_what_is_missing_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = create_run(tmp_path, Equality(), resume=False)
    run.write_unit(handmade_unit(2, {"das": 0.5}))
    ran = _replace_seeds(monkeypatch)
    run_seeds(command_line.EXPERIMENTS["heq"], Equality(seeds="1,2,3"), run)
    assert ran == [1, 3]
    assert run.read_unit("seed-2").rows == handmade_unit(2, {"das": 0.5}).rows
