"""The certification experiment: the quick run on the bundled digits end to end, its records, tables and figures."""

import contextlib
import dataclasses
import io
import itertools
import math
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from abstraction.evaluation.proposals import largest_weight
from abstraction.models import Network
from abstraction.reduction import Calibration
from abstraction.tasks.mnist import load_digits
from experiments.certify import experiment as certify
from experiments.certify.bench import NAME, TAP, Bench, Networks, split_name
from experiments.certify.figures import draw, trials_figure
from experiments.certify.options import STUDIES, Certify
from experiments.certify.published import NETWORK
from experiments.certify.tables import Run, tables
from experiments.harness.options import changed
from experiments.harness.records import Row, RunFolder, Unit, open_run
from experiments.harness.running import run_experiment
from experiments.harness.tables import Table, show_parts
from experiments.reduction.digits import LoadedDigits, loaded_digits, network, trained_network
from experiments.reduction.options import Data, NetworkOptions

SHARED = Path(__file__).parents[3] / "shared" / "data"
CONFIG = changed(Certify.preset("quick"), {"methods": ("cmr", "cip-affine", "cip-const", "vbp")})
WIDTH = 128
KEEPS = (128, 64, 16)
FIDELITIES = (0.9, 0.95, 0.99)


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("certify") / "run"
    return run_experiment(certify.EXPERIMENT, dataclasses.replace(CONFIG, out=out)).path


@pytest.fixture(scope="module", name="unit")
def _unit(folder: Path) -> Unit:
    return open_run(folder).read_unit("seed-0")


@pytest.fixture(scope="module", name="values")
def _values(unit: Unit) -> dict[tuple[str, str, str, str], float]:
    return {(row.variable, row.method, row.split, row.metric): row.value for row in unit.rows}


def printed(units: list[Unit], *, details: bool = False, width: int = 250) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), mock.patch.dict(os.environ, COLUMNS=str(width)):
        show_parts(tables(units, details))
    return shown.getvalue()


def tables_of(units: list[Unit], *, details: bool = False) -> list[Table]:
    return [part for part in tables(units, details) if isinstance(part, Table)]


def numbers(unit: Unit, study: str) -> set[Row]:
    return {row for row in unit.rows if row.variable == study}


def test_every_number_is_finite_written_once_and_belongs_to_a_study(unit: Unit, values: dict):
    assert len(values) == len(unit.rows)
    assert all(np.isfinite(row.value) for row in unit.rows)
    assert {row.variable for row in unit.rows} == {"output", *STUDIES}
    assert {(row.experiment, row.seed) for row in unit.rows} == {(NAME, 0)}
    assert values["output", "network", "test", "accuracy"] > 0.95
    assert all(values["output", study, "test", "seconds"] > 0 for study in STUDIES)


@pytest.mark.parametrize("method", CONFIG.methods)
@pytest.mark.parametrize(
    ("sequence", "counts"),
    {
        "iid-betting": (64, 125, 613),
        "iid-hoeffding": (889, 4172, None),
        "adaptive-betting": (90, 177, 875),
        "adaptive-hoeffding": (1976, 9156, None),
    }.items(),
)
def test_all_units_kept_certify_after_the_published_trials(
    values: dict, method: str, sequence: str, counts: tuple[int | None, ...]
):
    for fidelity, count in zip(FIDELITIES, counts, strict=True):
        split = split_name(WIDTH, 0.1, sequence, f"F{fidelity}")
        found = [values["certification", method, split, name] for name in ("verdict", "trials", "trials_q1")]
        assert found == ([0.0, 10_000, 10_000] if count is None else [1.0, count, count])


def test_all_units_kept_never_differ(values: dict):
    assert values["certification", "cmr", "keep128-p0.5-iid", "iia"] == 1
    # All-zero streams of n trials: the upper end is at most 2 (40^(1/n) - 1), from bets of 1/2 at delta/2 per side.
    assert 1 - 2 * (40**1e-4 - 1) - 1e-4 < values["certification", "cmr", "keep128-p0.5-iid", "low"] < 1
    assert values["margins", "cmr", "keep128-p0.1", "disagreement"] == 0


def test_the_authors_constants_never_certify_and_the_warning_is_recorded_and_printed(unit: Unit, values: dict):
    shown = [
        value
        for (study, method, split, metric), value in values.items()
        if (study, method, metric) == ("certification", "cip-const", "verdict") and not split.startswith("keep128")
    ]
    assert len(shown) == 2 * 2 * 2 * 2 * 3  # budgets, p, samplings, sequences, fidelities
    assert max(shown) <= 0
    assert min(shown) == -1
    assert "unstable" in unit.details["warnings"]["cip-const"]
    assert set(unit.details["warnings"]) == {"cip-const", "cip-affine"}
    notes = [part for part in tables([unit], details=False) if isinstance(part, str) and part.startswith("note  ")]
    assert any("cip-const, seed-0" in note and ": unstable: " in note for note in notes)


def test_cmr_is_more_faithful_than_variance_at_every_budget(values: dict):
    for keep in (64, 16):
        cmr, vbp = (values["certification", method, f"keep{keep}-p0.1-iid", "iia"] for method in ("cmr", "vbp"))
        # Known of this network: .988 and .955, .941 and .362; a standard error is .002 to .005.
        assert cmr > vbp + 0.02


def test_paired_differences_are_differences_of_risks_and_significant_where_the_interval_excludes_zero(values: dict):
    for first, second in itertools.combinations(CONFIG.methods, 2):
        risks = [values["paired", method, "keep64-p0.5", "risk"] for method in (first, second)]
        for sequence in ("betting", "hoeffding"):
            found = {
                name: values["paired", f"{first}:{second}", f"keep64-p0.5-{sequence}", name]
                for name in ("difference", "low", "high", "radius", "significant")
            }
            assert found["difference"] == pytest.approx(risks[0] - risks[1], abs=1e-12)
            assert found["radius"] == pytest.approx((found["high"] - found["low"]) / 2, abs=1e-12)
            assert found["significant"] == (found["low"] > 0 or found["high"] < 0)
    worst = values["paired", "cip-const:vbp", "keep64-p0.5-betting", "significant"]
    assert worst == 1


def test_sensitivity_has_one_hoeffding_radius_and_ordered_ends(values: dict):
    splits = {key[1:3] for key in values if key[0] == "sensitivity"}
    assert len(splits) == 2 * 2 * 3
    for method, split in splits:
        low, high, radius = (values["sensitivity", method, split, name] for name in ("low", "high", "radius"))
        assert 0 <= low <= high <= 1
        assert radius == pytest.approx(0.03362087, abs=5e-9)


def test_sequences_cover_as_often_as_they_promise(values: dict):
    shares = {key[2]: value for key, value in values.items() if key[0] == "coverage" and key[3] == "coverage"}
    assert len(shares) == 4 * 3 * 3
    for name, share in shares.items():
        level = float(name.split("delta")[1])
        assert share >= 1 - level - 4 * math.sqrt(level * (1 - level) / 100)
        if "peeking" in name:
            assert share <= shares[name.replace("-peeking", "")], "looking more often found fewer misses"
        if "hoeffding" in name:
            assert share == 1


def test_margin_bounds_are_ordered_and_certified_ones_are_larger(values: dict):
    for keep, p in itertools.product(KEEPS, ("0", "0.1")):
        found = {key[3]: value for key, value in values.items() if key[:3] == ("margins", "cmr", f"keep{keep}-p{p}")}
        assert found["disagreement"] <= found["per_sample"] <= found["centred"] <= found["plain"] <= 1
        assert found["per_sample"] <= found["certified_per_sample"]
        assert max(found.values()) <= 1


def test_adaptive_cases_are_decided_by_the_numbers(values: dict):
    splits = [key[1:3] for key in values if key[0] == "adaptive" and key[3] == "verdict"]
    assert len(splits) == 6
    for method, split in splits:
        iia, verdict = (values["adaptive", method, split, name] for name in ("iia", "verdict"))
        # 5 streams of 1000 trials: a standard error is .007 at most, weights make it .01.
        if abs(iia - float(split.split("-F")[1])) > 0.05:
            assert verdict == math.copysign(1, iia - float(split.split("-F")[1]))


def test_traces_are_sequences_of_the_fidelity(unit: Unit):
    times = unit.arrays["trace/trials"]
    assert (times[0], times[-1]) == (1, 10_000)
    assert (np.diff(times) > 0).all()
    for method, confidence in itertools.product(CONFIG.methods, ("betting", "hoeffding")):
        low, high = unit.arrays[f"trace/{method}/keep64-p0.1/{confidence}"]
        assert low.shape == times.shape
        assert (np.diff(low) >= 0).all()
        assert (np.diff(high) <= 0).all()


def test_numbers_do_not_depend_on_what_else_is_run(unit: Unit, tmp_path: Path):
    """The network is trained again, and one method alone gives its rows again."""
    alone = dataclasses.replace(CONFIG, methods=("vbp",), keeps=(0.125, 0.5), studies=("certification",), out=tmp_path)
    again = run_experiment(certify.EXPERIMENT, alone).read_unit("seed-0")
    expected = {row for row in numbers(unit, "certification") if row.method == "vbp" and "keep128" not in row.split}
    assert numbers(again, "certification") == expected
    assert len(tables_of([again])) == 1, "one table for the one study that was run"
    files = draw([again], tmp_path / "figures")
    assert {path.name for path in files} == drawn("trials", "sequences-seed-0")


def test_tables_and_figures_are_made_from_units_alone(folder: Path, unit: Unit, tmp_path: Path):
    bare = tmp_path / "run"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("checkpoints", "metrics.csv"))
    units = open_run(bare).units()
    assert printed(units) == printed([unit])
    assert [part.title.split(":")[0] for part in tables_of(units)] == list(STUDIES)
    assert len(tables_of(units, details=True)) == len(STUDIES) + 5, "four sequences with quartiles, pairs by Hoeffding"
    files = draw(units, bare / "figures")
    assert {path.name for path in files} == drawn("trials", "sequences-seed-0", "coverage")
    assert sorted(path.name for path in (bare / "figures").iterdir()) == sorted(path.name for path in files)


def drawn(*names: str) -> set[str]:
    return {f"{name}.{ending}" for name in names for ending in ("png", "pdf")}


@pytest.mark.parametrize("width", [80, 140])
def test_tables_fit_into_their_console_in_one_piece_and_notes_into_two_lines(unit: Unit, width: int):
    shown = printed([unit], details=True, width=width)
    assert "…" not in shown
    assert "(continued)" not in shown
    for note in tables([unit], details=True):
        assert isinstance(note, Table) or note.startswith("note  ") or len(note) < 160


def test_every_cell_is_drawn_certified_or_not(unit: Unit):
    """Above the limit of trials there is one hollow marker for each that was not certified."""
    run = Run([unit])
    verdicts = [row.value for row in unit.rows if row.metric == "verdict" and "-iid-betting-" in row.split]
    lines = [line for axes in trials_figure(run).axes for line in axes.lines]
    points = {mark: 0 for mark in ("certified", "open")}
    for line in lines:
        heights = np.asarray(line.get_ydata(), float)
        points["certified"] += int((heights <= CONFIG.trials).sum())
        points["open"] += int((heights > CONFIG.trials).sum())
    certified = sum(verdict > 0.5 for verdict in verdicts)
    assert points == {"certified": certified, "open": len(verdicts) - certified}
    assert 0 < certified < len(verdicts)


def test_resuming_computes_nothing(folder: Path, tmp_path: Path):
    copy = shutil.copytree(folder, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (copy / "units").iterdir()}

    def fail(*_: object) -> Unit:
        raise AssertionError("a complete seed was computed again")

    resumed = dataclasses.replace(CONFIG, out=copy, resume=True)
    run_experiment(certify.EXPERIMENT._replace(run_seed=fail), resumed)
    assert {path: path.stat().st_mtime_ns for path in (copy / "units").iterdir()} == before


def handmade(published: bool, **options: Any) -> Unit:
    """Make the unit of one cell, vbp with 256 of 512 units at p = .1."""
    config = Certify(methods=("vbp",), keeps=(0.5,), probabilities=(0.1,), studies=("certification",), **options)
    values: dict[tuple[str, str], float] = {}
    for sampling, sequence in itertools.product(("iid", "adaptive"), ("betting", "hoeffding")):
        split = f"keep256-p0.1-{sampling}"
        values |= {(split, "iia"): 0.99, (split, "low"): 0.98, (split, "high"): 0.995}
        for fidelity, trials, verdict in ((0.9, 70.0, 1.0), (0.95, 260.0, 0.6), (0.99, 9000.0, -1.0)):
            found = {"trials": trials, "trials_q1": trials - 5, "trials_q3": trials + 5, "verdict": verdict}
            values |= {(f"{split}-{sequence}-F{fidelity}", name): value for name, value in found.items()}
    rows = [Row(NAME, "vbp", "certification", split, name, 0, value) for (split, name), value in values.items()]
    rows.append(Row(NAME, "network", "output", "test", "accuracy", 0, 0.9818))
    facts = {"images": "mnist", "width": 512, "calibration": 2000, "evaluation": 10_000, "published": published}
    details: dict[str, Any] = {NAME: facts, "options": dataclasses.asdict(config), "warnings": {}}
    return Unit("seed-0", rows, details, {})


OURS = {"method": "vbp", "keep": "256", "p": "0.1", "IIA": "0.9900", "low": "0.9800", "high": "0.9950"}
OURS |= {"F 0.9": "70", "F 0.95": "260", "F 0.99": "not 9000"}
THEIRS = {"IIA*": "0.9902", "F 0.9*": "64", "F 0.95*": "252", "F 0.99*": "–"}


def test_published_numbers_stand_beside_those_of_the_published_network_alone():
    main, spread, *_ = tables_of([handmade(True)], details=True)
    assert main.cells().to_dict("records") == [OURS | THEIRS]
    assert list(main.frame)[-6:] == ["F 0.9", "F 0.9*", "F 0.95", "F 0.95*", "F 0.99", "F 0.99*"]
    assert spread.cells()["F 0.9"].tolist() == ["70 (65-75)"]
    for other in (handmade(False), handmade(True, delta=0.01), handmade(True, alpha=0.5)):
        assert tables_of([other])[0].cells().to_dict("records") == [OURS]
        assert "so without those numbers" in printed([other])


def test_trials_that_do_not_show_what_is_asked_for_are_not_numbers():
    undecided = handmade(False)
    rows = [row._replace(value=0.5) if row.metric == "verdict" else row for row in undecided.rows]
    shown = tables_of([undecided._replace(rows=rows)])[0].cells().to_dict("records")[0]
    assert {shown[name] for name in ("F 0.9", "F 0.95", "F 0.99")} == {"–"}


def test_seeds_are_averaged_and_their_trials_summed_up_by_medians():
    units = []
    for seed, trials in enumerate((60.0, 70.0, 800.0)):
        unit = handmade(False)
        rows = [row._replace(seed=seed, value=trials if row.metric == "trials" else row.value) for row in unit.rows]
        rows = [row._replace(value=0.9 + seed / 100) if row.metric == "iia" else row for row in rows]
        units.append(unit._replace(name=f"seed-{seed}", rows=rows))
    shown = tables_of(units)[0].cells().to_dict("records")
    assert [(row["IIA"], row["F 0.9"]) for row in shown] == [("0.9100", "70")]


def test_the_published_network_is_recognized(tmp_path: Path):
    path = SHARED / "mnist_mlp_seed0.npz"
    if not (path.exists() and (SHARED / "mnist").is_dir()):
        pytest.skip(f"neither MNIST nor its network is in {SHARED}")
    data = loaded_digits(Data("mnist", SHARED / "mnist"), print)
    _, _, made_from = trained_network(NetworkOptions(path), data, 0, RunFolder(tmp_path), print)
    assert made_from["data"] == NETWORK


@pytest.fixture(scope="module", name="bench")
def _bench() -> Bench:
    """An untrained network and its reductions, whose risks are far from 0."""
    data = LoadedDigits("digits", load_digits())
    model = network(NetworkOptions(width=16), data)
    calibration = Calibration(data.digits.train_images[:200], data.digits.train_labels[:200])
    networks = Networks(Network(model, model.init(jax.random.key(0))), calibration, jax.random.key(1))
    return Bench(Certify(), networks, data.digits.test_images, 0, print)


def test_adaptive_trials_have_the_mean_of_independent_ones(bench: Bench, rng: np.random.Generator):
    pair = bench.networks.pair("vbp", 8)
    risk = bench.independent(rng, pair, 0.3, 20_000).mean()
    assert 0.05 < risk < 0.95
    for draw_losses, count in ((bench.static, 20_000), (bench.history, 4000)):
        losses = draw_losses(rng, pair, 0.3, count) * largest_weight(bench.config.alpha)
        # Five standard errors of the difference.
        assert abs(losses.mean() - risk) < 5 * math.sqrt(losses.var() / count + risk * (1 - risk) / 20_000)


def test_a_stream_longer_than_a_chunk_has_every_trial(bench: Bench, rng: np.random.Generator):
    assert bench.independent(rng, bench.networks.pair("vbp", 8), 0.3, 50_003).shape == (50_003,)


def test_both_networks_are_seen_from_the_same_units_and_agree_where_nothing_is_replaced(
    bench: Bench, rng: np.random.Generator
):
    kernel = np.asarray(bench.networks.dense.params["fc_out"]["kernel"])
    pair = bench.networks.pair("random", 5)
    np.testing.assert_allclose(pair.norms, np.linalg.norm(kernel, axis=1)[pair.dense.units], rtol=1e-6)
    assert pair.reduced.network.taps[TAP].width == 5
    # With every unit kept the sum runs over the same products in the same order.
    dense, reduced = bench.outputs(bench.networks.pair("vbp", 16), bench.trials(rng, 16, 0.5, 100))
    np.testing.assert_array_equal(dense, reduced)


def test_a_method_draws_other_units_than_another(bench: Bench):
    kept = [tuple(np.asarray(bench.networks.pair(method, 8).dense.units)) for method in ("random", "vbp")]
    assert kept[0] != kept[1]


def slow_misses(stream: np.ndarray, mean: float, level: float, looks: list[int]) -> dict[str, bool]:
    """Play the games trial by trial."""
    eta = 2 / (2 - math.log(3))

    def capitals(losses: np.ndarray, mean: float, low: float, high: float) -> list[float]:
        total, bet, energy, path = 0.0, 0.0, 1.0, []
        for loss in losses:
            gain = 1 + bet * (loss - mean)
            total += math.log(gain)
            gradient = (loss - mean) / gain
            energy += gradient**2
            bet = min(max(bet + eta * gradient / energy, low), high)
            path.append(total)
        return path

    above, below = capitals(stream, mean, -0.5, 0.0), capitals(1 - stream, 1 - mean, -0.5, 0.0)
    both = capitals(stream, mean, -0.5, 0.5)
    radius = lambda n: math.sqrt(math.log(2 * math.pi**2 * n**2 / (6 * level)) / (2 * n))
    return {
        "betting": any(max(above[at], below[at]) >= math.log(2 / level) for at in looks),
        "betting-two-sided": any(both[at] >= math.log(1 / level) for at in looks),
        "hoeffding": any(abs(stream[: at + 1].mean() - mean) > radius(at + 1) for at in looks),
    }


@pytest.mark.parametrize("looks", [slice(-1, None), slice(9, None, 10)], ids=["at the end", "peeking"])
def test_misses_are_those_of_the_games_played_trial_by_trial(rng: np.random.Generator, looks: slice):
    """Streams whose mean drifts away from the one to cover, so that some miss it and some do not."""
    streams = (rng.random((30, 200)) < np.linspace(0.15, 0.6, 30)[:, None]).astype(float)
    found = certify._misses(streams, 0.3, (0.05, 0.2), looks)
    times = list(range(200))[looks]
    for level in (0.05, 0.2):
        expected = [slow_misses(stream, 0.3, level, times) for stream in streams]
        for name in ("betting", "betting-two-sided", "hoeffding"):
            np.testing.assert_array_equal(found[name, level], [each[name] for each in expected])
        assert 0 < found["betting", level].mean() < 1


def test_streams_are_summed_up_by_quartiles_and_the_mean_verdict():
    found = certify._to_stop(np.array([10, 20, 30, 40, 50]), np.array([1, 1, 1, 0, -1]))
    assert found == {"trials": 30, "trials_q1": 20, "trials_q3": 40, "verdict": pytest.approx(0.4)}
