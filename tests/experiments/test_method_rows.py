"""What a tested method writes down: where its handle sits, its accuracies with their intervals, its controls."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest
from heqruns import SPLITS, VARIABLES
from scipy import stats

from abstraction.artifacts import description, load
from abstraction.causal import PairBank
from abstraction.causal.pairs import digest
from abstraction.evaluation import Recorded, Repeats, Tally
from abstraction.evaluation.judging import judge_controls
from abstraction.interventions import Basis, Handle, rotation_basis, unit_sites
from abstraction.interventions.bases import random_frames
from abstraction.interventions.handles import coordinate_mass
from abstraction.localization import Choice, CutMenu, Transport
from abstraction.models import MLP, Network
from abstraction.tasks import equality
from experiments.equality.experiment import _draw_banks, record_equality
from experiments.equality.options import EqualityBanks
from experiments.harness.methods import (
    Bench,
    Outcome,
    run_localization,
)
from experiments.harness.records import Row
from experiments.harness.results import Results, keep_choice

LEVEL = 0.95
BENCH = cast(Bench, SimpleNamespace(variables=("wx", "yz"), halves=False))
MODEL = MLP(equality.ENTITY_WIDTH * 4, 8, 2, equality.CLASSES)


def _exact(hits: float, pairs: float) -> tuple[float, float]:
    interval = stats.binomtest(int(hits), int(pairs)).proportion_ci(LEVEL, method="exact")
    return interval.low, interval.high


def _tally(hits: list[list[float]], pairs: list[list[float]]) -> Tally:
    return Tally(np.asarray(hits), np.asarray(pairs), np.zeros((len(hits), 2)))


def _rows(tally: Tally) -> dict[tuple[str, str], float]:
    results = Results("heq", 3)
    results.tallied(BENCH, "m", {"split": tally})
    rows = results.rows
    assert {(row.experiment, row.method, row.split, row.seed) for row in rows} == {("heq", "m", "split", 3)}
    assert len({(row.variable, row.metric) for row in rows}) == len(rows)
    return {(row.variable, row.metric): row.value for row in rows}


def _interval(rows: dict[tuple[str, str], float], variable: str) -> tuple[float, float]:
    return rows[variable, "iia_low"], rows[variable, "iia_high"]


def test_the_mass_of_native_handles_is_the_size_of_their_weights(rng: np.random.Generator):
    weight = rng.normal(size=(2, 3, 5)).astype(np.float32)
    assert weight.min() < 0
    np.testing.assert_array_equal(coordinate_mass(Handle("hidden", weight), 3), np.abs(weight))


def test_the_mass_of_a_rotated_local_handle_is_the_diagonal_of_its_projector(rng: np.random.Generator):
    rotation = np.linalg.qr(rng.normal(size=(2, 5, 5)))[0]
    rank, depth = (2, 4), (2, 0)
    weight = np.stack([np.arange(5) < k for k in rank]).astype(float)
    mass = coordinate_mass(Handle("hidden", weight, rotation_basis(rotation), np.array(depth)), 3)
    expected = np.zeros((2, 3, 5))
    for v in range(2):
        directions = rotation[v][:, : rank[v]]
        expected[v, depth[v]] = np.diag(directions @ directions.T)
    np.testing.assert_allclose(mass, expected, rtol=1e-12)
    np.testing.assert_allclose(mass.sum(axis=(1, 2)), rank, rtol=1e-12)


def test_the_mass_of_an_oblique_handle_is_the_diagonal_of_what_it_writes(rng: np.random.Generator):
    encoder, weight = rng.normal(size=(2, 3, 5, 4)), rng.uniform(size=(2, 3, 4))
    decoder = rng.normal(size=(2, 3, 4, 5))
    mass = coordinate_mass(Handle("hidden", weight, Basis(encoder, decoder, np.zeros((2, 3, 5)))), 3)
    for v, depth in np.ndindex(2, 3):
        full = encoder[v, depth] @ np.diag(weight[v, depth]) @ decoder[v, depth]
        np.testing.assert_allclose(mass[v, depth], np.diag(full), rtol=1e-12, atol=1e-14)


def test_a_native_local_handle_has_its_mass_at_its_depth_alone():
    weight = np.array([[1.0, 0.0, 2.0], [0.0, 0.5, 0.0]])
    mass = coordinate_mass(Handle("hidden", weight, depth=np.array([1, 3])), 4)
    assert mass.shape == (2, 4, 3)
    np.testing.assert_array_equal(mass[[0, 1], [1, 3]], weight)
    assert mass.sum() == weight.sum()


def test_the_full_rotation_has_unit_mass_everywhere(rng: np.random.Generator):
    basis = rotation_basis(random_frames(jax.random.key(0), (1,), 6))
    mass = coordinate_mass(Handle("hidden", np.ones((1, 6), np.float32), basis, np.array([0])), 1)
    np.testing.assert_allclose(mass, 1, rtol=1e-5)  # float32 frames


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("hits", [(0, 17), (20, 40), (13, 39)])
def test_a_test_split_has_exact_intervals_and_pools_its_variables(half: int, hits: tuple[int, int]):
    pairs = np.zeros((2, 2))
    pairs[:, half] = 40
    rows = _rows(_tally(np.where(pairs > 0, np.asarray(hits)[:, None], 0).tolist(), pairs.tolist()))
    for variable, count in zip(("wx", "yz"), hits, strict=True):
        assert (rows[variable, "iia"], rows[variable, "pairs"]) == (count / 40, 40)
        np.testing.assert_allclose(_interval(rows, variable), _exact(count, 40), rtol=1e-9)
    assert rows["mean", "iia"] == pytest.approx(sum(hits) / 80, rel=1e-12)
    assert rows["mean", "pairs"] == 80
    np.testing.assert_allclose(_interval(rows, "mean"), _exact(sum(hits), 80), rtol=1e-9)


def test_calibration_is_scored_by_the_mean_of_its_halves_and_of_their_bounds():
    hits, pairs = [[30, 90], [7, 200]], [[60, 100], [10, 200]]
    rows = _rows(_tally(hits, pairs))
    bounds = np.array([[_exact(hits[v][h], pairs[v][h]) for h in range(2)] for v in range(2)])
    accuracy = np.divide(hits, pairs).mean(axis=1)
    for v, variable in enumerate(("wx", "yz")):
        assert rows[variable, "iia"] == pytest.approx(accuracy[v], rel=1e-12)
        assert rows[variable, "pairs"] == sum(pairs[v])
        np.testing.assert_allclose(_interval(rows, variable), bounds[v].mean(axis=0), rtol=1e-9)
    assert rows["mean", "iia"] == pytest.approx(accuracy.mean(), rel=1e-12)
    assert rows["mean", "pairs"] == 370
    np.testing.assert_allclose(_interval(rows, "mean"), bounds.mean(axis=(0, 1)), rtol=1e-9)


@pytest.mark.parametrize(
    ("hits", "pairs"),
    [
        ([[40, 0], [20, 0]], [[40, 0], [40, 0]]),
        ([[30, 90], [7, 200]], [[60, 100], [10, 200]]),
        ([[0, 40], [40, 0]], [[40, 40], [40, 40]]),
        # the paper's calibration policy `shared_wx_positive`: only YZ has pairs of both halves
        ([[1000, 0], [0, 990]], [[1000, 0], [10, 990]]),
    ],
    ids=["test", "calibration", "extremes", "one variable has one half"],
)
def test_every_accuracy_lies_between_its_bounds(hits: list[list[float]], pairs: list[list[float]]):
    rows = _rows(_tally(hits, pairs))
    for variable in VARIABLES:
        low, high = _interval(rows, variable)
        assert low <= rows[variable, "iia"] <= high, variable


def test_the_mean_counts_of_a_control_have_an_interval_between_its_neighbours():
    rows = _rows(_tally([[20.5, 0], [20.5, 0]], [[40.0, 0], [40.0, 0]]))
    assert rows["wx", "iia"] == 20.5 / 40
    low, high = _interval(rows, "wx")
    assert _exact(20, 40)[0] < low < _exact(21, 40)[0]
    assert _exact(20, 40)[1] < high < _exact(21, 40)[1]


@pytest.fixture(scope="module")
def bench() -> Bench:
    """Record small banks of an untrained network that is right on some base inputs and wrong on others."""
    network, vectors = Network(MODEL, MODEL.init(jax.random.key(3))), equality.entities(5)
    banks = equality.paper_banks(5, size=60, fit_pool=256, calibration_pool=256, test_pool=256)

    def recorded(bank: PairBank) -> Recorded:
        return record_equality(network, vectors, bank)

    tests = {split: recorded(bank) for split, bank in banks.tests.items()}
    sites = unit_sites(network.taps["hidden"])
    return Bench(network, sites, recorded(banks.fit), recorded(banks.calibration), tests)


def test_the_identity_control_is_right_exactly_where_the_network_already_gives_the_label(bench: Bench):
    rows = {(row.variable, row.split, row.metric): row.value for row in _compared(bench)}
    assert {variable for variable, _, _ in rows} == set(VARIABLES)
    for split in SPLITS:
        recorded = bench.tests[split]
        base, bank = np.asarray(bench.network(recorded.runs.inputs)[0]).argmax(axis=-1), recorded.bank
        assert len(np.unique(base)) == 2
        # With two classes, sensitive pairs are hit where the network is wrong on the base, others where it is right.
        right = base == bank.factual
        expected = ~right if split == "test" else right
        for v, variable in enumerate(("wx", "yz")):
            assert rows[variable, split, "iia"] == pytest.approx(expected[bank.eligible[v]].mean(), rel=1e-12)
            assert rows[variable, split, "pairs"] == 60


def test_the_level_of_chance_is_what_the_best_constant_answer_scores(bench: Bench):
    rows = {(row.variable, row.split): row for row in _compared(bench) if row.metric == "chance"}
    assert {(row.method, row.seed) for row in rows.values()} == {("control-identity", 5)}
    assert set(rows) == {(variable, split) for variable in VARIABLES for split in SPLITS}
    for split in SPLITS:
        bank = bench.tests[split].bank
        levels = []
        for v, variable in enumerate(("wx", "yz")):
            ones = bank.labels[v][bank.eligible[v]].mean()
            levels.append(max(ones, 1 - ones))
            assert rows[variable, split].value == pytest.approx(levels[-1], rel=1e-12)
        assert rows["mean", split].value == pytest.approx(np.mean(levels), rel=1e-12)


def test_a_variable_without_pairs_has_no_level_of_chance(bench: Bench):
    recorded = bench.tests["test"]
    eligible = recorded.bank.eligible & np.array([[True], [False]])
    alone = dataclasses.replace(recorded, bank=dataclasses.replace(recorded.bank, eligible=eligible))
    rows = _compared(dataclasses.replace(bench, tests={"test": alone}))
    levels = {row.variable: row.value for row in rows if row.metric == "chance"}
    assert set(levels) == {"wx", "mean"}
    assert levels["mean"] == levels["wx"]


def _compared(bench: Bench) -> list[Row]:
    results = Results("heq", 5)
    results.compare(bench)
    return results.rows


def _found(bench: Bench) -> Outcome:
    return run_localization(bench, Transport("depth", (0.3, 1.0), (1.0,), 50), CutMenu((1, 3), (1.0, 2.0)))


def test_a_kept_choice_is_read_back_for_its_network_and_refused_for_another(bench: Bench, tmp_path: Path):
    choice = _found(bench).choice
    keep_choice(tmp_path, bench, choice, "ot-seed-5")
    path = tmp_path / "handles" / "ot-seed-5.safetensors"
    again = load(path, bench.network)
    assert isinstance(again, Choice)
    assert again.variables == ("wx", "yz")
    assert list(again.settings) == list(choice.settings)
    leaves = [jax.tree.leaves((each.handles, each.tally)) for each in (again, choice)]
    for ours, theirs in zip(*leaves, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert description(path)["data"] == digest(bench.fit.bank)
    other = Network(MODEL, MODEL.init(jax.random.key(4)))
    with pytest.raises(ValueError, match=r"got a choice of a network with weights .*, expected"):
        load(path, other)


def _tested(bench: Bench, seed: int = 5) -> tuple[list[Row], dict[str, Any], dict[str, np.ndarray]]:
    results = Results("heq", seed, Repeats(3, 2))
    results.judge(bench, "ot", _found(bench), jax.random.key(1))
    return results.rows, results.details["ot"], results.arrays


def test_a_tested_method_leaves_rows_for_itself_and_its_controls(bench: Bench):
    rows, _, _ = _tested(bench)
    accuracies = {(row.method, row.variable, row.split) for row in rows if row.metric == "iia"}
    methods = ("ot", "control-random-ot", "control-shuffled-ot")
    expected = {(method, variable, split) for method in methods for variable in VARIABLES for split in SPLITS}
    assert accuracies == expected | {("ot", variable, "calibration") for variable in VARIABLES}
    times = {row.metric for row in rows if row.metric.startswith("seconds")}
    assert times == {f"seconds{name}" for name in ("", "_epsilon", "_selected", "_compile", "_wall")}
    assert {row.seed for row in rows} == {5}


def test_a_tested_method_leaves_what_it_cost(bench: Bench):
    rows, details, _ = _tested(bench)
    seconds = next(row.value for row in rows if (row.method, row.metric) == ("ot", "seconds"))
    cost = details["cost"]
    assert cost["sites_a_second"] == pytest.approx(bench.sites.size / seconds)
    assert "searches_a_second" not in cost
    assert 0.01 < cost["peak_memory"] < 1000, "GB; on Linux"


def test_control_rows_are_the_counts_of_the_controls(bench: Bench):
    outcome = _found(bench)
    controls = judge_controls(jax.random.key(1), bench.network, outcome.choice.handles, bench.tests, Repeats(3, 2))
    values = {(row.method, row.variable, row.split, row.metric): row.value for row in _tested(bench)[0]}
    for kind, splits in controls._asdict().items():
        for split, tally in splits.items():
            written = [values[f"control-{kind}-ot", variable, split, "iia"] for variable in ("wx", "yz")]
            np.testing.assert_allclose(written, tally.combined, rtol=1e-12)


def test_times_are_ordered_as_their_definitions_say(bench: Bench):
    seconds = {row.metric: row.value for row in _tested(bench)[0] if row.metric.startswith("seconds")}
    assert min(seconds.values()) >= 0
    assert seconds["seconds"] > 0
    assert seconds["seconds_wall"] == pytest.approx(seconds["seconds"] + seconds["seconds_compile"], rel=1e-9)


def test_the_mass_of_a_cut_plan_is_its_strength_on_its_sites(bench: Bench):
    _, details, arrays = _tested(bench)
    assert arrays["ot/plan"].shape == (2, 16)
    assert arrays["ot/cost"].shape == (2, 16)
    for v, variable in enumerate(("wx", "yz")):
        chosen, mass = details["settings"][variable], arrays["ot/mass"][v]
        # float32 weights, rounded to multiples of 2^-20 when repeated handles are dropped
        assert mass.sum() == pytest.approx(chosen["subset"] * chosen["strength"], rel=1e-5)
        assert np.count_nonzero(mass) == chosen["subset"]
        assert np.flatnonzero(mass.sum(axis=1)).tolist() == [chosen["scope"]]
        kept = np.sort(arrays["ot/plan"][v][mass.ravel() > 0])
        assert kept[0] >= np.sort(arrays["ot/plan"][v])[-chosen["subset"]] * (1 - 1e-4), "not the heaviest sites"


def test_independent_banks_that_share_pairs_with_the_tests_are_refused(monkeypatch: pytest.MonkeyPatch):
    # The tests that are used are the paper's, whatever the policy of the other banks.
    options = EqualityBanks(size=60, fit_pool=256, calibration_pool=256, test_pool=256, fit=60, calibration=60)
    paper = equality.paper_banks(5, size=60, fit_pool=256, calibration_pool=256, test_pool=256)
    leaked = dataclasses.replace(equality.independent_banks(5, fit=60, calibration=60).fit, role="test")
    monkeypatch.setattr(equality, "paper_banks", lambda *_, **__: paper._replace(tests={"test": leaked}))
    with pytest.raises(ValueError, match="expected disjoint banks"):
        _draw_banks(options, 5)


def test_effects_are_measured_once_per_bench(bench: Bench):
    first, elapsed = bench.effects()
    again, charged = bench.effects()
    assert again is first
    assert charged is elapsed
