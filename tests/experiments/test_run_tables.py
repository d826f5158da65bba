"""The printed table: means, worst seeds, intervals and the paper's numbers, from hand-made records alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from heqruns import PAIRS, accuracy_rows, command, handmade_run, handmade_unit, method_details, snapshot
from scipy import stats

from experiments.harness import reports
from experiments.harness.accuracy import Metrics, beside_controls
from experiments.harness.paper import reference
from experiments.harness.records import Row, RunFolder

TWO_SEEDS = {1: {"plot-ot": 0.98, "full-state": 0.5}, 2: {"plot-ot": 0.99, "full-state": 0.5}}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return handmade_run(tmp_path / "run", [handmade_unit(seed, values) for seed, values in TWO_SEEDS.items()])


def _tables(text: str) -> list[dict[str, list[str]]]:
    """Return the cells of every table by method, the header as `method`."""
    found: list[dict[str, list[str]]] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]
        if cells and cells[0] == "method":
            found.append({})
        if cells:
            found[-1][cells[0]] = cells[1:]
    return found


def _shown(
    run: RunFolder, capsys: pytest.CaptureFixture[str], **options: bool
) -> tuple[str, list[dict[str, list[str]]]]:
    reports.show(run, **options)
    text = capsys.readouterr().out
    return text, _tables(text)


def _exact(hits: float, trials: int) -> tuple[float, float]:
    interval = stats.binomtest(round(hits), trials).proportion_ci(confidence_level=0.95, method="exact")
    return interval.low, interval.high


def test_the_row_of_a_method_holds_mean_worst_paper_controls_and_times(run: RunFolder, capsys):
    text, [table] = _shown(run, capsys)
    sensitive, _, worst, paper, invariant, paper_invariant, *rest = table["plot-ot"]
    assert (sensitive, worst, paper) == ("0.9850", "0.9800", "0.9928")
    assert (invariant, paper_invariant) == ("0.9700", "0.9730")
    # specific, random, shuffled; 4 and 8 seconds in the two seeds, and 8 of compilation in both
    assert rest == ["0.9600", "0.412", "0.487", "6.00", "8.00"]
    assert "2 seeds" in text


def test_the_columns_are_labelled(run: RunFolder, capsys):
    _, [table] = _shown(run, capsys)
    assert table["method"] == [
        *("sensitive", "95% interval", "worst", "paper", "invariant", "paper"),
        *("specific", "random", "shuffled", "run s", "compile s"),
    ]


def test_methods_stand_in_the_order_they_ran_and_controls_of_handles_are_columns(run: RunFolder, capsys):
    _, [table] = _shown(run, capsys)
    assert list(table) == ["method", "control-identity", "plot-ot", "full-state"]


def test_a_method_the_paper_does_not_have_shows_no_number_of_the_paper(run: RunFolder, capsys):
    _, [table] = _shown(run, capsys)
    assert (table["full-state"][3], table["full-state"][5]) == ("", "")
    assert table["control-identity"][7:] == ["", "", "", ""]


def test_the_interval_over_seeds_that_differ_is_students(run: RunFolder, capsys):
    _, [table] = _shown(run, capsys)
    low, high = stats.t.interval(0.95, 1, loc=0.985, scale=stats.sem([0.98, 0.99]))
    assert high > 1, "an upper end above 1 is shown as 1"
    assert table["plot-ot"][1] == f"{low:.4f} 1.0000"


def test_the_interval_over_seeds_that_agree_is_binomial(run: RunFolder, capsys):
    _, [table] = _shown(run, capsys)
    low, high = _exact(0.5 * 4 * PAIRS, 4 * PAIRS)
    assert table["full-state"][1] == f"{low:.4f} {high:.4f}"


def test_the_interval_of_one_seed_is_binomial(tmp_path: Path, capsys):
    text, [table] = _shown(handmade_run(tmp_path, [handmade_unit(3, {"das": 0.995})]), capsys)
    low, high = _exact(0.995 * 2 * PAIRS, 2 * PAIRS)
    assert table["das"][1] == f"{low:.4f} {high:.4f}"
    assert table["das"][3] == "0.9950"
    assert "1 seed " in text


@pytest.mark.parametrize("accuracy", [[0.9, 0.95, 1.0], [0.97, 0.97, 0.97], [0.0, 0.0], [0.5, 0.51, 0.52, 0.53]])
def test_the_interval_is_the_wider_of_both_and_stays_in_bounds(accuracy: list[float]):
    rows = [row for seed, value in enumerate(accuracy) for row in accuracy_rows("m", seed, {"test": value}, pairs=200)]
    rate = Metrics(rows).rate("m", "mean", "test")
    assert rate is not None
    low, high = _exact(sum(accuracy) * 400, 400 * len(accuracy))
    t_low, t_high = stats.t.interval(
        0.95, len(accuracy) - 1, loc=np.mean(accuracy), scale=max(stats.sem(accuracy), 1e-30)
    )
    # 1e-9: two libraries invert the incomplete beta function.
    np.testing.assert_allclose([rate.low, rate.high], [max(min(low, t_low), 0), min(max(high, t_high), 1)], atol=1e-9)
    assert (rate.mean, rate.worst) == (pytest.approx(np.mean(accuracy), rel=1e-12), min(accuracy))


def test_a_rate_of_nothing_is_nothing():
    metrics = Metrics(accuracy_rows("m", 1, {"test": 0.5}))
    assert metrics.rate("m", "mean", "test-invariant") is None
    assert metrics.rate("other", "mean", "test") is None
    assert np.isnan(metrics.mean("m", "mean", "test", "seconds"))
    assert metrics.values("other", "mean", "test", "iia").shape == (0,)


def test_a_method_missing_from_one_seed_is_averaged_over_the_others(tmp_path: Path, capsys):
    units = [handmade_unit(1, {"das": 0.9}), handmade_unit(2, {"das": 0.8, "gw": 0.6})]
    _, [table] = _shown(handmade_run(tmp_path, units), capsys)
    assert table["das"][0] == "0.8500"
    assert (table["gw"][0], table["gw"][2]) == ("0.6000", "0.6000")


def test_a_method_without_controls_or_times_leaves_its_cells_empty(tmp_path: Path, capsys):
    unit = handmade_unit(1, {"das": 0.9})
    unit.rows.extend(accuracy_rows("bare", 1, {"test": 0.7}))
    _, [table] = _shown(handmade_run(tmp_path, [unit]), capsys)
    assert table["bare"][0] == "0.7000"
    assert table["bare"][3:] == [""] * 8


def test_details_show_every_variable_and_every_choice(run: RunFolder, capsys):
    text, shown = _shown(run, capsys, details=True)
    assert len(shown) == 3
    assert [name in text for name in ("mean of the variables", "variable wx", "variable yz")] == [True] * 3
    # the authors' released run: WX .990, YZ .996
    assert (shown[1]["plot-ot"][3], shown[2]["plot-ot"][3]) == ("0.9900", "0.9960")
    flat = " ".join(text.split())
    assert "seed-1 plot-ot wx: epsilon 0.25, subset 3; calibration 0.9712, 5 tied of 321" in flat
    assert "seed-2 full-state yz: epsilon 1, subset 7; calibration 0.9634, 2 tied of 321" in flat


def test_without_details_only_the_mean_is_shown(run: RunFolder, capsys):
    text, shown = _shown(run, capsys)
    assert len(shown) == 1
    assert "calibration" not in text


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ({"clamped_kernel": 0.75}, "75% of the kernel is clamped"),
        ({"converged": 0.9}, "10% of the couplings did not converge"),
        ({"finite": False}, "100% of the results are not finite"),
        ({"last_site_ambiguous": [True, False]}, "50% of the handles end in one of several equal sites"),
    ],
)
def test_numerical_trouble_is_said_aloud(tmp_path: Path, capsys, problem: dict, words: str):
    units = [handmade_unit(1, {"gw": 0.9}, **problem), handmade_unit(2, {"gw": 0.9})]
    text, _ = _shown(handmade_run(tmp_path, units), capsys)
    assert f"note gw: {words}, in 1 of 2 seeds" in " ".join(text.split())


def _beside(accuracy: float, *, chance: float | None = None, **levels: float) -> list[str]:
    """Return the notes on a method `m` of 1000 pairs per variable beside controls of these levels."""
    rows = accuracy_rows("m", 1, {"test": accuracy})
    for kind, level in levels.items():
        name = "control-identity" if kind == "identity" else f"control-{kind}-m"
        rows += accuracy_rows(name, 1, {"test": level})
    if chance is not None:
        rows.append(Row("heq", "control-identity", "mean", "test", "chance", 1, chance))
    metrics = Metrics(rows)
    return beside_controls(metrics, metrics.methods)


LOWER = _exact(0.9 * 2 * PAIRS, 2 * PAIRS)[0]
"""The lower end of the interval of .9."""


@pytest.mark.parametrize("kind", ["random", "shuffled", "identity", "chance"])
def test_a_method_whose_interval_reaches_a_control_is_named_with_it(kind: str):
    levels = dict.fromkeys(("random", "shuffled", "identity", "chance"), 0.5)
    [note] = _beside(0.9, **{**levels, kind: LOWER + 1e-3})
    assert note == f"note  m: 0.9000 is not above its controls ({kind} {LOWER + 1e-3:.4f})"
    assert _beside(0.9, **{**levels, kind: LOWER - 1e-3}) == []


def test_every_control_that_is_reached_is_named():
    [note] = _beside(0.4, random=0.6, shuffled=0.2, identity=0.5, chance=0.5)
    assert note == "note  m: 0.4000 is not above its controls (random 0.6000, identity 0.5000, chance 0.5000)"


def test_a_method_without_controls_is_not_compared_and_controls_are_not_methods():
    assert _beside(0.9) == []
    assert not [
        note for note in _beside(0.9, random=0.1, shuffled=0.1, identity=0.0) if "control-" in note.split(":")[0]
    ]


def test_the_table_names_the_method_that_is_not_above_its_controls_and_no_other(tmp_path: Path, capsys):
    text, _ = _shown(handmade_run(tmp_path, [handmade_unit(1, {"das": 0.9, "gw": 0.48})]), capsys)
    flat = " ".join(text.split())
    assert "note gw: 0.4800 is not above its controls (shuffled 0.4870)" in flat
    assert "das: " not in flat


def test_no_trouble_is_no_note(tmp_path: Path, capsys):
    text, _ = _shown(handmade_run(tmp_path, [handmade_unit(1, {"das": 0.9, "plot-ot": 0.98})]), capsys)
    assert "note " not in text
    assert "WARNING" not in text


def test_trouble_that_varies_is_a_range(tmp_path: Path, capsys):
    units = [handmade_unit(seed, {"gw": 0.9}) for seed in (1, 2)]
    for unit, converged in zip(units, (0.25, 0.9), strict=True):
        unit.details["gw"] = method_details(converged=converged)
    text, _ = _shown(handmade_run(tmp_path, units), capsys)
    assert "10% to 75% of the couplings did not converge, in 2 of 2 seeds" in " ".join(text.split())


def test_the_backbone_line_warns_of_the_worst_seed(tmp_path: Path, capsys):
    units = [handmade_unit(1, {"das": 0.9}), handmade_unit(2, {"das": 0.9}, worst_cell=0.25)]
    text, _ = _shown(handmade_run(tmp_path, units), capsys)
    flat = " ".join(text.split())
    assert "the causal variables 0.2500; 7 to 8 epochs, 2.5 s" in flat
    assert "WARNING: a backbone does not compute the causal model" in flat


def test_a_run_without_results_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no complete seed yet"):
        reports.show(handmade_run(tmp_path, []))


def test_the_command_prints_the_same_from_the_units_alone(run: RunFolder, capsys):
    shown = _shown(run, capsys)[0]
    run.write_metrics(run.units())
    before = snapshot(run.path)
    assert command("tables", "--out", run.path) == (0, shown, "")
    assert command("tables", run.path) == (0, shown, "")
    assert snapshot(run.path) == before


def test_a_unit_that_was_deleted_is_told(run: RunFolder, capsys):
    (run.path / "units" / "seed-2.json").unlink()
    text, _ = _shown(run, capsys)
    assert "note  seed-2 was computed and is not there: --resume computes it again" in text


def test_the_command_refuses_what_is_not_a_run(run: RunFolder, tmp_path: Path):
    unit = run.path / "units" / "seed-2.json"
    unit.write_text(unit.read_text()[:-9])
    for path, words in ((tmp_path / "none", "expected the folder of a run"), (run.path, "seed-2.json")):
        ended = command("tables", "--out", path)
        assert (ended.status, ended.out) == (2, "")
        assert ended.err.startswith("error: got ")
        assert words in ended.err
        assert len(ended.err.splitlines()) == 1


def test_a_moved_run_prints_the_same_table(run: RunFolder, tmp_path: Path, capsys):
    _, table = _shown(run, capsys)
    shutil.move(run.path, tmp_path / "elsewhere")
    assert _tables(command("tables", "--out", tmp_path / "elsewhere").out) == table


def test_our_methods_are_compared_with_the_papers_variant_and_controls_with_nothing():
    known = reference("heq", "plot-ot", "mean", "test")
    assert known == reference("heq", "plot-ot-paper", "mean", "test")
    assert known is not None
    assert known.value == 0.9928
    assert reference("heq", "control-identity", "mean", "test") is None
    assert reference("other", "plot-ot", "mean", "test") is None


def test_a_repeated_row_does_not_count_twice():
    rows = [*accuracy_rows("m", 1, {"test": 0.5}), Row("heq", "m", "mean", "test", "iia", 1, 0.5)]
    assert Metrics(rows).values("m", "mean", "test", "iia").tolist() == [0.5]
