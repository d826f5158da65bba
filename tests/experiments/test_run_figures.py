"""Figures from records alone: what bars, crosses and heatmaps show, and that files are drawn without a display."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from heqruns import accuracy_rows, command, handmade_run, handmade_unit, snapshot, time_rows
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from experiments.harness import figures, reports
from experiments.harness.accuracy import Metrics
from experiments.harness.records import RunFolder

PNG = b"\x89PNG\r\n\x1a\n"
NAMES = {"accuracy.png", "runtime.png", "plan-seed-1.png", "mass-seed-1.png"}


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


def _widths(axes: Axes) -> list[float]:
    return [patch.get_width() for patch in axes.patches]


def test_drawing_writes_images_and_leaves_no_figure_open(run: RunFolder):
    before = set(plt.get_fignums())
    files = reports.draw(run)
    assert {path.name for path in files} == NAMES
    for path in files:
        content = path.read_bytes()
        assert path.parent == run.path / "figures"
        assert content.startswith(PNG)
        assert len(content) > 1000
    assert set(plt.get_fignums()) == before
    assert {path.name for path in (run.path / "figures").iterdir()} == NAMES


def test_drawing_again_replaces_the_files_and_touches_no_record(run: RunFolder):
    reports.draw(run)
    before = snapshot(run.path)
    (run.path / "figures" / "accuracy.png").write_bytes(b"stale")
    reports.draw(run)
    assert snapshot(run.path) == before


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

    reports.draw(run)
    old = (run.path / "figures" / "accuracy.png").read_bytes()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(OSError, match="disk full"):
        reports.draw(run)
    plt.close("all")
    assert (run.path / "figures" / "accuracy.png").read_bytes() == old


def test_accuracy_bars_are_means_and_dots_are_seeds(run: RunFolder, axes: Axes):
    figures.accuracy_bars(axes, _metrics(run), ["plot-ot", "das-paper"], "test")
    np.testing.assert_allclose(_widths(axes), [0.93, 0.8])
    dots = [np.transpose(line.get_data()) for line in axes.lines if line.get_marker() == "."]
    np.testing.assert_allclose(dots, [[[0.92, 0], [0.94, 0]], [[0.8, 1], [0.8, 1]]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plot-ot", "das-paper"]
    assert axes.yaxis_inverted()


def test_a_method_without_rows_leaves_its_place_empty(run: RunFolder, axes: Axes):
    figures.accuracy_bars(axes, _metrics(run), ["gw", "das-paper"], "test-specific")
    np.testing.assert_allclose(_widths(axes), [0.96])
    assert axes.patches[0].get_y() + axes.patches[0].get_height() / 2 == pytest.approx(1)


def test_crosses_are_the_papers_numbers(run: RunFolder):
    figure = figures.accuracy_figure(_metrics(run), "heq", ["das-paper", "plot-ot", "control-identity"])
    crosses = [
        {int(y): x for line in axes.lines if line.get_marker() == "x" for x, y in np.transpose(line.get_data())}
        for axes in figure.axes
    ]
    titles = [axes.get_title() for axes in figure.axes]
    plt.close(figure)
    assert crosses == [{0: 0.995, 1: 0.9928}, {0: 1.0, 1: 0.973}, {}]
    assert titles == ["sensitive", "invariant", "specific"]


def test_runtime_bars_are_the_mean_seconds_of_each_convention(run: RunFolder):
    figure = figures.runtime_figure(_metrics(run), ["plot-ot", "das-paper"])
    axes = figure.axes[0]
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
    plt.close(figure)
    assert widths == {"full grid": [6, 6], "selected eps": [2, 2], "selected run": [1, 1], "compile": [8, 8]}
    assert axes.get_xscale() == "log"


def test_a_heatmap_is_the_plan_by_depth_normalised_per_variable(run: RunFolder):
    unit = run.read_unit("seed-1")
    figure = figures.heatmap_figure(unit, ["plot-ot"], ["wx", "yz"], "plan")
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    depths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes if not axes.images]
    plt.close(figure)
    plan = unit.arrays["plot-ot/plan"]
    expected = (plan / plan.sum(axis=1, keepdims=True)).reshape(2, 3, 4)
    np.testing.assert_allclose(shown, expected, rtol=1e-6)
    np.testing.assert_allclose(depths, expected.sum(axis=2), rtol=1e-6)


def test_a_heatmap_of_mass_is_the_handle(run: RunFolder):
    unit = run.read_unit("seed-1")
    figure = figures.heatmap_figure(unit, ["das-paper", "plot-ot"], ["wx", "yz"], "mass")
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    plt.close(figure)
    mass = np.concatenate([unit.arrays[f"{method}/mass"] for method in ("das-paper", "plot-ot")])
    np.testing.assert_allclose(shown, mass / mass.sum(axis=(1, 2), keepdims=True), rtol=1e-6)
    assert titles == ["wx: handle, seed-1", "yz: handle, seed-1"]


def test_a_handle_that_moves_nothing_is_drawn_as_zeros(run: RunFolder):
    unit = run.read_unit("seed-1")
    unit.arrays["plot-ot/mass"] = np.zeros((2, 3, 4), np.float32)
    figure = figures.heatmap_figure(unit, ["plot-ot"], ["wx", "yz"], "mass")
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    plt.close(figure)
    assert np.all(np.asarray(shown) == 0)


def test_the_papers_methods_are_gray(run: RunFolder, axes: Axes):
    figures.accuracy_bars(axes, _metrics(run), ["plot-ot", "das-paper"], "test")
    assert [patch.get_facecolor()[:3] for patch in axes.patches] == [to_rgb("tab:blue"), to_rgb("tab:gray")]


def test_a_method_missing_from_a_seed_or_without_arrays_does_not_stop_the_figures(tmp_path: Path):
    units = [handmade_unit(1, {"das": 0.9}), handmade_unit(2, {"das": 0.8, "gw": 0.6})]
    units[1].rows.extend(accuracy_rows("bare", 2, {"test": 0.7}))
    del units[0].arrays["das/plan"]
    names = {path.name for path in reports.draw(handmade_run(tmp_path, units))}
    assert names == {"accuracy.png", "runtime.png", "mass-seed-1.png"}


def test_a_method_without_times_has_no_bar(axes: Axes):
    rows = accuracy_rows("a", 1, {"test": 0.7}) + time_rows("a", 1, (1, 1, 1, 1)) + accuracy_rows("b", 1, {"test": 0.7})
    figure = figures.runtime_figure(Metrics(rows), ["a", "b"])
    widths = [bar.get_width() for bar in figure.axes[0].containers[0]]
    plt.close(figure)
    assert widths[0] == 1
    assert np.isnan(widths[1])


def test_a_run_of_controls_alone_is_drawn(tmp_path: Path):
    files = reports.draw(handmade_run(tmp_path, [handmade_unit(1, {})]))
    assert "accuracy.png" in {path.name for path in files}


def test_a_run_without_results_is_refused(tmp_path: Path):
    handmade_run(tmp_path, [])
    ended = command("figures", "--out", tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert "no complete seed yet" in ended.err
    assert not (tmp_path / "figures").exists()
