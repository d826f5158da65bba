"""Figures from records alone: what marks, crosses and heatmaps show, and that files are drawn without a display."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from heqruns import accuracy_rows, command, handmade_run, handmade_unit, snapshot, time_rows
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.equality.shown import LAYOUT, REPORT
from experiments.harness import figures
from experiments.harness.accuracy import Known
from experiments.harness.metrics import Metrics
from experiments.harness.paper import reference
from experiments.harness.records import RunFolder
from experiments.harness.report import draw
from experiments.harness.style import look

HEADS = {".png": b"\x89PNG\r\n\x1a\n", ".pdf": b"%PDF-"}
NAMES = {f"{name}.{kind}" for name in ("accuracy", "runtime", "plan", "mass") for kind in ("png", "pdf")}
WX_YZ = ["wx", "yz"]
MLPS: Known = lambda method, variable, split: reference("heq", method, variable, split, LAYOUT.network([]))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    units = [handmade_unit(seed, {"plot-ot": 0.9 + 0.02 * seed, "das-paper": 0.8}) for seed in (1, 2)]
    return handmade_run(tmp_path / "run", units)


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def _metrics(run: RunFolder) -> Metrics:
    return Metrics(row for unit in run.units() for row in unit.rows)


def _marks(axes: Axes, label: str) -> list[list[list[float]]]:
    """Return the points of every mark with this label."""
    return [np.transpose(line.get_data()).tolist() for line in axes.lines if line.get_label() == label]


def _panel(axes: Axes, metrics: Metrics, methods: list[str], split: int = 0) -> Axes:
    figures.accuracy_panel(axes, metrics, methods, LAYOUT.measures[split], MLPS)
    return axes


def _heatmaps(figure: Figure) -> np.ndarray:
    return np.array([np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images])


def _shares(values: np.ndarray) -> np.ndarray:
    return values / values.sum(axis=(-2, -1), keepdims=True)


def test_drawing_writes_images_and_leaves_no_figure_open(run: RunFolder):
    before = set(plt.get_fignums())
    files = draw(run, REPORT)
    assert {path.name for path in files} == NAMES
    for path in files:
        content = path.read_bytes()
        assert path.parent == run.path / "figures"
        assert content.startswith(HEADS[path.suffix])
        assert len(content) > 1000
    assert set(plt.get_fignums()) == before
    assert {path.name for path in (run.path / "figures").iterdir()} == NAMES


def test_drawing_again_replaces_the_files_and_touches_no_record(run: RunFolder):
    draw(run, REPORT)
    before = snapshot(run.path)
    (run.path / "figures" / "accuracy.png").write_bytes(b"stale")
    draw(run, REPORT)
    assert snapshot(run.path) == before


@pytest.mark.slow
def test_the_command_works_without_a_display_or_the_backend_of_the_environment(run: RunFolder):
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    ended = subprocess.run(
        [sys.executable, "-m", "experiments", "figures", "--out", str(run.path)],
        env={**environment, "MPLBACKEND": "module://a_notebook", "JAX_PLATFORMS": "cpu"},
        cwd=Path(figures.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert {Path(line.split()[-1]).name for line in ended.stdout.splitlines()} == NAMES
    assert {path.name for path in (run.path / "figures").iterdir()} == NAMES


def test_a_figure_that_fails_leaves_the_old_file(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    def half(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    draw(run, REPORT)
    old = (run.path / "figures" / "accuracy.png").read_bytes()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(OSError, match="disk full"):
        draw(run, REPORT)
    plt.close("all")
    assert (run.path / "figures" / "accuracy.png").read_bytes() == old


def test_means_stand_in_their_row_and_every_seed_below(run: RunFolder, axes: Axes):
    _panel(axes, _metrics(run), ["plot-ot", "das-paper"])
    np.testing.assert_allclose(_marks(axes, "_mean"), [[[0.93, 0]], [[0.8, 1]]])
    np.testing.assert_allclose(_marks(axes, "a seed"), [[[0.92, 0.3], [0.94, 0.3]], [[0.8, 1.3], [0.8, 1.3]]])


def test_rows_are_named_and_the_first_is_on_top(axes: Axes):
    figures.name_rows(axes, ["plot-ot", "das-paper"])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plot-ot", "das-paper"]
    assert axes.yaxis_inverted()


def test_a_method_without_rows_leaves_its_place_empty(run: RunFolder, axes: Axes):
    _panel(axes, _metrics(run), ["gw", "das-paper"], split=2)
    np.testing.assert_allclose(_marks(axes, "_mean"), [[[0.96, 1]]])


def test_controls_stand_beside_their_method_and_a_line_where_nothing_has_to_be_found(run: RunFolder, axes: Axes):
    rows = [row for unit in run.units() for row in unit.rows]
    rows += [rows[-1]._replace(method="control-identity", metric="chance", value=0.52, seed=seed) for seed in (1, 2)]
    _panel(axes, Metrics(rows), ["plot-ot", "das-paper"])
    np.testing.assert_allclose(_marks(axes, "random control"), [[[0.412, 0]], [[0.412, 1]]])
    np.testing.assert_allclose(_marks(axes, "shuffled control"), [[[0.487, 0]], [[0.487, 1]]])
    [line] = [line for line in axes.lines if str(line.get_label()).startswith("the better of")]
    assert list(line.get_xdata()) == [0.52, 0.52], "doing nothing scores 0"


def _crosses(metrics: Metrics, known: Known) -> list[dict[int, float]]:
    figure = figures.accuracy_figure(metrics, LAYOUT.measures, known)
    plt.close(figure)
    return [
        {int(y): x for line in axes.lines if line.get_marker() == "x" for x, y in np.transpose(line.get_data())}
        for axes in figure.axes
    ]


def test_crosses_are_the_papers_numbers(run: RunFolder):
    assert _crosses(_metrics(run), MLPS) == [{0: 0.9928, 1: 0.995}, {0: 0.973, 1: 1.0}, {}]


def test_no_cross_stands_beside_another_network(run: RunFolder):
    assert _crosses(
        _metrics(run), lambda method, variable, split: reference("heq", method, variable, split, "a toy")
    ) == [{}, {}, {}]


def test_every_accuracy_has_a_panel_and_the_legend_is_outside(run: RunFolder):
    figure = figures.accuracy_figure(_metrics(run), LAYOUT.measures, MLPS)
    labels = [axes.get_xlabel() for axes in figure.axes]
    plt.close(figure)
    assert labels == ["IIA, sensitive pairs", "IIA, invariant pairs", "IIA, specific pairs"]
    assert [axes.get_legend() for axes in figure.axes] == [None] * 3
    [legend] = figure.legends
    assert f"paper: {LAYOUT.network([])}" in [text.get_text() for text in legend.get_texts()]


def test_runtimes_are_the_mean_seconds_of_each_convention_and_compilation_is_apart(run: RunFolder):
    figure = figures.runtime_figure(_metrics(run), ["plot-ot", "das-paper"])
    shown = [{line.get_label(): list(line.get_xdata()) for line in axes.lines} for axes in figure.axes]
    scales = [axes.get_xscale() for axes in figure.axes]
    plt.close(figure)
    assert shown == [{"full grid": [6, 6], "selected eps": [2, 2], "selected run": [1, 1]}, {"compile": [8, 8]}]
    assert scales == ["log", "log"]


def test_a_heatmap_is_the_plan_by_depth_shared_out_per_variable_and_averaged(run: RunFolder):
    units = run.units()
    figure = figures.heatmap_figure(units, ["plot-ot"], WX_YZ, "plan", "layer")
    sums = [[float(text.get_text()) for text in axes.texts] for axes in figure.axes if axes.images]
    plt.close(figure)
    expected = np.mean([_shares(unit.arrays["plot-ot/plan"].reshape(2, 3, 4)) for unit in units], axis=0)
    np.testing.assert_allclose(_heatmaps(figure), expected, rtol=1e-6)
    np.testing.assert_allclose(sums, expected.sum(axis=2), atol=0.0051)  # two digits


def test_a_heatmap_of_mass_is_the_handle_and_says_of_which_seeds(run: RunFolder):
    units = run.units()
    methods = ["das-paper", "plot-ot"]
    both, one = (figures.heatmap_figure(part, methods, WX_YZ, "mass", "layer") for part in (units, units[:1]))
    plt.close("all")
    np.testing.assert_allclose(
        _heatmaps(one), _shares(np.concatenate([units[0].arrays[f"{method}/mass"] for method in methods])), rtol=1e-6
    )
    assert [axes.get_title() for axes in one.axes if axes.get_title()] == WX_YZ
    assert ["mean over 2 seeds" in both.get_suptitle(), "seed 1" in one.get_suptitle()] == [True, True]


def test_all_heatmaps_of_a_figure_have_one_scale_with_a_bar_and_named_axes(run: RunFolder):
    figure = figures.heatmap_figure(run.units(), ["das-paper", "plot-ot"], WX_YZ, "plan", "layer")
    plt.close(figure)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert {(image.norm.vmin, image.norm.vmax) for image in images} == {(0.0, 1.0)}
    [bar] = [axes for axes in figure.axes if not axes.images]
    assert bar.get_ylabel() == "share"
    assert figure.get_supylabel() == "layer"
    assert figure.get_supxlabel().startswith("unit")


def test_a_handle_that_moves_nothing_is_drawn_as_zeros(run: RunFolder):
    unit = run.read_unit("seed-1")
    unit.arrays["plot-ot/mass"] = np.zeros((2, 3, 4), np.float32)
    figure = figures.heatmap_figure([unit], ["plot-ot"], WX_YZ, "mass", "layer")
    plt.close(figure)
    assert np.all(_heatmaps(figure) == 0)


@pytest.mark.slow
def test_many_methods_are_drawn_on_several_pages(tmp_path: Path):
    methods = {f"method-{place}": 0.5 for place in range(12)}
    names = {path.name for path in draw(handmade_run(tmp_path, [handmade_unit(1, methods)]), REPORT)}
    assert {"mass-1.pdf", "mass-2.pdf", "plan-1.png", "plan-2.png"} <= names
    assert "mass.png" not in names


def test_the_papers_variant_has_the_colour_of_ours_and_is_open(run: RunFolder, axes: Axes):
    _panel(axes, _metrics(run), ["plot-ot", "das-paper"])
    ours, papers = (line for line in axes.lines if line.get_label() == "_mean")
    assert (ours.get_color(), ours.get_markerfacecolor()) == (look("plot-ot").color, look("plot-ot").color)
    assert (papers.get_color(), papers.get_markerfacecolor()) == (look("das").color, "white")


def test_a_method_missing_from_a_seed_or_without_arrays_does_not_stop_the_figures(tmp_path: Path):
    units = [handmade_unit(1, {"das": 0.9}), handmade_unit(2, {"das": 0.8, "gw": 0.6})]
    units[1].rows.extend(accuracy_rows("bare", 2, {"test": 0.7}))
    del units[0].arrays["das/plan"]
    assert {path.name for path in draw(handmade_run(tmp_path, units), REPORT)} == NAMES


def test_a_method_without_times_has_no_mark():
    rows = accuracy_rows("a", 1, {"test": 0.7}) + time_rows("a", 1, (1, 1, 1, 1)) + accuracy_rows("b", 1, {"test": 0.7})
    figure = figures.runtime_figure(Metrics(rows), ["a", "b"])
    plt.close(figure)
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), [1, np.nan])


def test_a_run_of_controls_alone_is_drawn(tmp_path: Path):
    files = draw(handmade_run(tmp_path, [handmade_unit(1, {})]), REPORT)
    assert {path.name for path in files} == {"accuracy.png", "accuracy.pdf"}


def test_a_run_without_results_is_refused(tmp_path: Path):
    handmade_run(tmp_path, [])
    ended = command("figures", "--out", tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert "no complete seed yet" in ended.err
    assert not (tmp_path / "figures").exists()
