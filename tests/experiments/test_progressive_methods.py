"""Every method of binary addition on a small adder: what it returns, and that it never sees a test pair."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from abstraction.interventions import Handle
from abstraction.localization.cutting import Grid
from abstraction.tasks import addition
from experiments.addition.experiment import Problem, known_values, make_bench
from experiments.addition.network import trained_adder
from experiments.addition.options import METHODS as NAMES
from experiments.addition.options import AdderBackbone, Addition, AdditionBanks
from experiments.harness import methods
from experiments.harness.progressive import METHODS, Stages, refined_at
from experiments.harness.records import RunFolder
from experiments.harness.results import Results
from experiments.harness.stages import StageOptions
from experiments.harness.timing import Time

CONFIG = dataclasses.replace(
    Addition.preset("quick"),
    backbone=AdderBackbone(bits=3, width=8),
    banks=AdditionBanks(32, 16, 16),
    stages=StageOptions(resolutions=(8, 2), fitted_shares=(0.8, 1.0)),
)
SHRINK = {"max_epochs": 2, "min_epochs": 1, "batch_size": 32}


class _Forbidden:
    """A place of test pairs that may not be looked at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a selection looked at the test pairs: .{name}")

    def __getitem__(self, name: str) -> Any:
        raise AssertionError(f"a selection looked at the test pairs: [{name}]")

    def __iter__(self) -> Any:
        raise AssertionError("a selection looked at the test pairs")


def _short(config: Addition) -> Addition:
    das = {
        name: dataclasses.replace(
            getattr(config, name), ranks=(1, 4), training=dataclasses.replace(getattr(config, name).training, **SHRINK)
        )
        for name in ("das", "oblique", "das_v1")
    }
    others = {
        name: dataclasses.replace(
            getattr(config, name), training=dataclasses.replace(getattr(config, name).training, **SHRINK)
        )
        for name in ("masks", "boundless", "weights")
    }
    return dataclasses.replace(config, **das, **others)


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    run = RunFolder(tmp_path_factory.mktemp("adder"))
    results = Results("addition", 1)
    network = trained_adder(CONFIG.backbone, results, run, lambda _: None)
    assert results.details["backbone"]["accuracy"] == 1
    return Problem(network, addition.structured_banks(1, bits=3, **dataclasses.asdict(CONFIG.banks)))


@pytest.fixture(scope="module")
def stages(problem: Problem) -> Stages:
    bench = make_bench(problem)
    return Stages(_short(CONFIG), dataclasses.replace(bench, tests=_Forbidden()), known_values(CONFIG))  # pyright: ignore[reportArgumentType]


FENCED = ("plot-stage-a", "plot-native", "plot-das", "plot-pca-fitted", "dbm")


@pytest.mark.parametrize(
    "method",
    [name if name in FENCED else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_a_method_chooses_one_handle_per_carry_without_the_test_pairs(stages: Stages, method):
    outcome = METHODS[method].run(stages, METHODS[method], jax.random.key(0), lambda _: None)
    assert len(outcome.choice.settings) == 2
    assert len(np.asarray(outcome.choice.handles.weight)) == 2
    assert set(outcome.times) == {"seconds", "seconds_epsilon", "seconds_selected"}
    assert (outcome.choice.tally.combined >= 0).all()
    assert outcome.details.get("finite", True)


def test_the_fence_of_the_tests_holds():
    with pytest.raises(AssertionError, match="looked at the test pairs"):
        _Forbidden()["test"]


def test_stage_a_sends_each_carry_to_its_step(stages: Stages):
    for protocol in ("v1", "v4", "ours"):
        assert stages.depths(protocol).tolist() == [0, 1]


def test_stages_run_once_and_are_charged_to_every_method(stages: Stages):
    assert stages.fine("ours", "native") is stages.fine("ours", "native")
    refinement, elapsed = stages.fine("ours", "native")
    assert elapsed.total > stages.coarse("ours")[1].total
    assert isinstance(refinement.choice.handles, Handle)


def test_guided_searches_look_where_the_stages_point(stages: Stages):
    for name, kind in (("plot-native-das", "native"), ("plot-pca-das", "pca")):
        supports = refined_at(stages, METHODS[name])
        assert {(support.variable, support.depth) for support in supports} == {(0, 0), (1, 1)}
        names = {support.name for support in supports if support.variable == 1}
        assert "full" in names or any(support.size == 8 for support in supports)
        assert names & {"selected", "S80", "S90", "first 1", "first 2"}, kind
        keys = [(s.variable, s.encoder.tobytes()) for s in supports]
        assert len(set(keys)) == len(keys), "a support is searched once"


def test_a_full_search_looks_everywhere(stages: Stages):
    outcome = METHODS["full-das"].run(stages, METHODS["full-das"], jax.random.key(0), lambda _: None)
    places = zip(*(outcome.arrays[f"candidates/{name}"].tolist() for name in ("variable", "depth")), strict=True)
    assert set(places) == {(v, depth) for v in range(2) for depth in range(3)}


def test_a_method_is_told_by_its_value():
    assert METHODS["plot-pca-das-v1"] == METHODS["plot-pca-das"]._replace(protocol="v1")
    assert {way.protocol for way in METHODS.values()} == {"ours", "v1", "v4"}
    assert set(NAMES) <= set(METHODS)


def test_a_trained_adder_is_read_back_from_its_checkpoint(problem: Problem, tmp_path: Path):
    trained = problem.network.params
    names = {
        "cell.weight_ih": trained["cell"]["inputs"]["kernel"],
        "cell.bias_ih": trained["cell"]["inputs"]["bias"],
        "cell.weight_hh": trained["cell"]["state"]["kernel"],
        "cell.bias_hh": trained["cell"]["state"]["bias"],
        "sum_head.weight": trained["step"]["kernel"],
        "sum_head.bias": trained["step"]["bias"],
        "final_carry_head.weight": trained["final"]["kernel"],
        "final_carry_head.bias": trained["final"]["bias"],
    }
    np.savez(tmp_path / "binary_addition_gru_h8_seed5.npz", **{n: np.asarray(a).T for n, a in names.items()})
    options = dataclasses.replace(CONFIG.backbone, checkpoints=tmp_path)
    results = Results("addition", 5)
    network = trained_adder(options, results, RunFolder(tmp_path), lambda _: None)
    known = results.details["backbone"]
    assert (known["accuracy"], known["epochs"]) == (1.0, 0.0)
    assert len(results.details["data"]) == 64
    jax.tree.map(np.testing.assert_array_equal, network.params, trained)


def test_a_part_of_a_grid_is_not_charged_the_whole(stages: Stages, monkeypatch: pytest.MonkeyPatch):
    seconds = {"whole": 8.0, "part": 1.0}
    sizes = []

    def evaluated(bench: object, grid: Grid, selection: object) -> Time:
        sizes.append(grid.cost.size)
        return Time(seconds["whole" if grid.cost.size == max(sizes) else "part"])

    monkeypatch.setattr(methods, "evaluated", evaluated)
    found, selection = stages.fine("ours", "native")[0], stages.protocols["ours"].selection
    times = methods.localization_times(stages.bench, found.grid, found.choice, (Time(11.0, 1.0), None), selection)
    # 11 seconds, of which 1 was compilation and 8 the evaluation of the grid; 2 are common to all conventions
    assert {name: (each.run, each.compile) for name, each in times.items()} == {
        "seconds": (10.0, 1.0), "seconds_epsilon": (3.0, 1.0), "seconds_selected": (3.0, 1.0)
    }  # fmt: skip
