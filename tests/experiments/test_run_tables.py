"""The printed table: means, worst seeds, intervals and the paper's numbers, from hand-made records alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from heqruns import PAIRS, accuracy_rows, command, handmade_run, handmade_unit, method_details, snapshot
from scipy import stats

from experiments.addition import shown as addition
from experiments.equality.shown import LAYOUT, REPORT
from experiments.harness.accuracy import beside_controls
from experiments.harness.metrics import Metrics
from experiments.harness.paper import reference, references
from experiments.harness.records import Row, RunFolder, Unit
from experiments.harness.report import show
from experiments.harness.tables import Table, fitted

TWO_SEEDS = {1: {"plot-ot": 0.98, "full-state": 0.5}, 2: {"plot-ot": 0.99, "full-state": 0.5}}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return handmade_run(tmp_path / "run", [handmade_unit(seed, values) for seed, values in TWO_SEEDS.items()])


MLPS = LAYOUT.network([])
"""The paper's networks."""

Cells = dict[str, dict[str, str]]
"""The cells of a table by row and column."""


def _cells(part: Table) -> Cells:
    return {row[part.frame.columns[0]]: row for row in part.cells().to_dict("records")}


def _shown(run: RunFolder, capsys: pytest.CaptureFixture[str], details: bool = False) -> tuple[str, list[Cells]]:
    """Return what is printed, and the cells of the accuracy tables."""
    show(run, REPORT, details=details)
    parts = [part for part in REPORT.tables(run.units(), details) if isinstance(part, Table)]
    return capsys.readouterr().out, [_cells(part) for part in parts if "low" in part.frame]


def _titled(run: RunFolder, words: str) -> Table:
    """Return the table with these words in its title, with the details."""
    [part] = [p for p in REPORT.tables(run.units(), True) if isinstance(p, Table) and words in p.title]
    return part


def _exact(hits: float, trials: int) -> tuple[float, float]:
    interval = stats.binomtest(round(hits), trials).proportion_ci(confidence_level=0.95, method="exact")
    return interval.low, interval.high


def test_the_row_of_a_method_holds_mean_worst_paper_controls_and_times(run: RunFolder, capsys):
    text, [table] = _shown(run, capsys)
    row = dict(table["plot-ot"])
    assert (row.pop("sens."), row.pop("worst"), row.pop("paper")) == ("0.9850", "0.980", "0.9928")
    assert (row.pop("inv."), row.pop("spec.")) == ("0.970", "0.960")
    # 4 and 8 seconds in the two seeds
    assert (row.pop("rand."), row.pop("shuf."), row.pop("run s")) == ("0.412", "0.487", "6.0")
    assert set(row) == {"method", "low", "high"}
    assert "2 seeds" in text
    [line] = [line.split() for line in text.splitlines() if line.strip().startswith("plot-ot ")]
    assert line == list(table["plot-ot"].values())


def test_details_show_the_papers_numbers_with_their_source_and_every_time(run: RunFolder):
    known = _titled(run, "paper").cells().set_index(["method", "variable", "split"])
    assert list(known.loc[("plot-ot", "mean", "test-invariant")]) == ["0.9700", "0.9730", "code; eps by test pairs"]
    assert known.loc[("plot-ot", "wx", "test"), "source"] == "pre-release run of seed 42"
    # 8 seconds of compilation in both seeds
    times = ["plot-ot", "6.00", "2.00", "1.00", "8.00"]
    assert list(_cells(_titled(run, "seconds per seed"))["plot-ot"].values()) == times


def test_the_columns_are_labelled(run: RunFolder, capsys):
    text, [table] = _shown(run, capsys)
    columns = ["sens.", "low", "high", "worst", "paper", "inv.", "spec.", "rand.", "shuf.", "run s"]
    assert list(table["plot-ot"]) == ["method", *columns]
    assert ["method", *" ".join(columns).split()] in [line.split() for line in text.splitlines()]


def test_the_table_fits_a_terminal_of_80_columns(run: RunFolder):
    [whole] = [part for part in REPORT.tables(run.units(), False) if isinstance(part, Table)]
    assert len(fitted(whole, 80)) == 1


def test_methods_stand_in_the_order_they_ran_and_controls_of_handles_are_columns(run: RunFolder, capsys):
    _, [table] = _shown(run, capsys)
    assert list(table) == ["control-identity", "plot-ot", "full-state"]


def test_a_method_the_paper_does_not_have_shows_no_number_of_the_paper(run: RunFolder, capsys):
    _, [table] = _shown(run, capsys)
    assert table["full-state"]["paper"] == ""
    assert [table["control-identity"][name] for name in ("paper", "rand.", "shuf.", "run s")] == [""] * 4
    assert "full-state" not in set(_titled(run, "paper").frame["method"])


def test_the_interval_over_seeds_that_differ_is_students(run: RunFolder, capsys):
    _, [table] = _shown(run, capsys)
    low, high = stats.t.interval(0.95, 1, loc=0.985, scale=stats.sem([0.98, 0.99]))
    assert high > 1, "an upper end above 1 is shown as 1"
    assert (table["plot-ot"]["low"], table["plot-ot"]["high"]) == (f"{low:.3f}", "1.000")


def test_the_interval_over_seeds_that_agree_is_binomial(run: RunFolder, capsys):
    _, [table] = _shown(run, capsys)
    low, high = _exact(0.5 * 4 * PAIRS, 4 * PAIRS)
    assert (table["full-state"]["low"], table["full-state"]["high"]) == (f"{low:.3f}", f"{high:.3f}")


def test_the_interval_of_one_seed_is_binomial_and_nothing_is_called_its_worst(tmp_path: Path, capsys):
    text, [table] = _shown(handmade_run(tmp_path, [handmade_unit(3, {"das": 0.995})]), capsys)
    low, high = _exact(0.995 * 2 * PAIRS, 2 * PAIRS)
    assert (table["das"]["low"], table["das"]["high"]) == (f"{low:.3f}", f"{high:.3f}")
    assert "worst" not in table["das"]
    assert ", 1 seed\n" in "\n".join(line.rstrip() for line in text.splitlines())


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
    assert table["das"]["sens."] == "0.8500"
    assert (table["gw"]["sens."], table["gw"]["worst"]) == ("0.6000", "0.600")


def test_a_method_without_controls_or_times_leaves_its_cells_empty(tmp_path: Path, capsys):
    unit = handmade_unit(1, {"das": 0.9})
    unit.rows.extend(accuracy_rows("bare", 1, {"test": 0.7}))
    _, [table] = _shown(handmade_run(tmp_path, [unit]), capsys)
    assert table["bare"].pop("sens.") == "0.7000"
    assert {name for name, cell in table["bare"].items() if cell} == {"method", "low", "high"}


def test_details_show_every_variable_and_every_choice(run: RunFolder, capsys):
    text, shown = _shown(run, capsys, True)
    assert len(shown) == 3
    assert [name in text for name in ("mean of the variables", "variable wx", "variable yz")] == [True] * 3
    # the authors' released run: WX .990, YZ .996
    assert (shown[1]["plot-ot"]["paper"], shown[2]["plot-ot"]["paper"]) == ("0.9900", "0.9960")
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
        show(handmade_run(tmp_path, []), REPORT)


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
    text, _ = _shown(run, capsys)
    shutil.move(run.path, tmp_path / "elsewhere")
    moved = command("tables", "--out", tmp_path / "elsewhere").out
    assert moved.split("records ")[0] == text.split("records ")[0]


def test_our_methods_are_compared_with_the_papers_variant_and_controls_with_nothing():
    known = reference("heq", "plot-ot", "mean", "test", MLPS)
    assert known == reference("heq", "plot-ot-paper", "mean", "test", MLPS)
    assert known is not None
    assert known.value == 0.9928
    assert reference("heq", "control-identity", "mean", "test", MLPS) is None
    assert reference("other", "plot-ot", "mean", "test", MLPS) is None


def test_a_number_of_the_paper_stands_only_beside_its_network():
    for experiment, method, variable, split, network in references():
        assert reference(experiment, method, variable, split, network) is not None
        assert reference(experiment, method, variable, split, "another network") is None


def _adders(epochs: float) -> list[Unit]:
    """Make the unit of a run of addition, on networks that were trained for so many epochs, or read."""
    unit = handmade_unit(1, {"plot-das": 0.9, "dbm": 0.8})
    values = {"accuracy": 1.0, "epochs": epochs}
    rows = [
        row._replace(value=values.get(row.metric, row.value)) if row.method == "backbone" else row for row in unit.rows
    ]
    return [unit._replace(rows=rows, arrays={"plot-das/mass": np.ones((2, 4, 16))})]


def test_the_papers_adders_are_those_that_were_read():
    read, trained = (addition.REPORT.tables(_adders(epochs), False) for epochs in (0.0, 25.0))
    row = _cells(next(part for part in read if isinstance(part, Table)))
    # the notes' number of dbm is of adders of width 8
    assert (row["plot-das"]["paper"], row["dbm"]["paper"]) == ("0.9835", "")
    assert "paper: on the authors' adders of width 16." in read
    assert "paper" not in next(part for part in trained if isinstance(part, Table)).frame
    assert any(isinstance(part, str) and part.startswith("The paper's numbers are not shown") for part in trained)


@pytest.mark.parametrize("report", [REPORT, addition.REPORT])
def test_every_note_is_two_lines_of_a_terminal_at_most(report):
    assert all(len(part) <= 160 for part in report.tables(_adders(25.0), False) if isinstance(part, str))


def test_a_repeated_row_does_not_count_twice():
    rows = [*accuracy_rows("m", 1, {"test": 0.5}), Row("heq", "m", "mean", "test", "iia", 1, 0.5)]
    assert Metrics(rows).values("m", "mean", "test", "iia").tolist() == [0.5]
