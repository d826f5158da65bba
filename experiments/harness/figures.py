"""Figures of a run, from its unit files and metrics alone. Functions draw on axes and return them."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from abstraction.files import replaced
from experiments.harness.layouts import LAYOUTS
from experiments.harness.metrics import Metrics
from experiments.harness.paper import reference
from experiments.harness.records import Unit

KINDS = {"plan": "coupling", "mass": "handle", "components": "handle, by principal component"}
PAPER = ("-paper", "-v1", "-v4")
"""Endings of rows that are the paper's variants."""


def draw(units: Sequence[Unit], folder: Path) -> list[Path]:
    """Draw every figure of a localization run into a folder and return the files."""
    metrics = Metrics(row for unit in units for row in unit.rows)
    experiment = units[0].rows[0].experiment
    methods = [m for m in metrics.methods if metrics.rate(m, "mean", "test") and not m.startswith("control-")]
    variables = [v for v in metrics.variables if v != "mean"]
    files = [save_figure(folder / "accuracy.png", accuracy_figure(metrics, experiment, [*methods, "control-identity"]))]
    if methods:
        files.append(save_figure(folder / "runtime.png", runtime_figure(metrics, methods)))
    for kind in KINDS:
        shown = [m for m in methods if f"{m}/{kind}" in units[0].arrays]
        if shown:
            files.append(
                save_figure(folder / f"{kind}-{units[0].name}.png", heatmap_figure(units[0], shown, variables, kind))
            )
    return files


def accuracy_bars(axes: Axes, metrics: Metrics, methods: Sequence[str], split: str) -> Axes:
    """Draw mean IIA over seeds with its interval, one bar per method, and every seed as a dot."""
    for place, method in enumerate(methods):
        rate = metrics.rate(method, "mean", split)
        if rate is None:
            continue
        error = [[max(rate.mean - rate.low, 0.0)], [max(rate.high - rate.mean, 0.0)]]
        axes.barh(place, rate.mean, xerr=error, color="tab:gray" if method.endswith(PAPER) else "tab:blue", alpha=0.6)
        seeds = metrics.values(method, "mean", split, "iia")
        axes.plot(seeds, np.full(len(seeds), place), "k.", markersize=3)
    axes.set_yticks(range(len(methods)), methods)
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.02)
    axes.set_xlabel("IIA")
    return axes


def accuracy_figure(metrics: Metrics, experiment: str, methods: Sequence[str]) -> Figure:
    """Draw IIA on the test splits side by side, with the paper's numbers as crosses."""
    layout = LAYOUTS[experiment]
    figure, panels = plt.subplots(1, len(layout.splits), figsize=(13, 0.32 * len(methods) + 1.6), sharey=True)
    for axes, split, title in zip(panels, layout.splits, layout.titles, strict=True):
        accuracy_bars(axes, metrics, methods, split).set_title(title)
        for place, method in enumerate(methods):
            if known := reference(experiment, method, "mean", split):
                axes.plot(known.value, place, "rx", label="paper")
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles[:1], labels[:1], loc="lower right")
    return figure


def runtime_figure(metrics: Metrics, methods: Sequence[str]) -> Figure:
    """Draw seconds per seed by the three runtime conventions, compilation apart, on a log axis."""
    figure, axes = plt.subplots(figsize=(8, 0.4 * len(methods) + 1.6))
    names = ("seconds", "seconds_epsilon", "seconds_selected", "seconds_compile")
    labels = ("full grid", "selected eps", "selected run", "compile")
    for offset, (name, label) in enumerate(zip(names, labels, strict=True)):
        values = [metrics.mean(method, "mean", "test", name) for method in methods]
        places = np.arange(len(methods)) + (offset - 1.5) * 0.2
        axes.barh(places, values, height=0.2, label=label, color="lightgray" if name == "seconds_compile" else None)
    axes.set_yticks(range(len(methods)), methods)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("seconds per seed")
    axes.legend()
    return figure


def heatmap_figure(unit: Unit, methods: Sequence[str], variables: Sequence[str], kind: str) -> Figure:
    """Draw, per method and variable, depth by unit: row-normalised coupling (`plan`) or handle weight (`mass`).

    `components` are handle weights too, by principal component instead of unit.

    The bars beside each panel are the mass per depth.
    """
    figure, panels = plt.subplots(
        len(methods),
        2 * len(variables),
        figsize=(5 * len(variables), 1.15 * len(methods) + 0.6),
        width_ratios=[6, 1] * len(variables),
        squeeze=False,
    )
    for row, method in enumerate(methods):
        values = _by_depth(unit, method, kind)
        for column, variable in enumerate(variables):
            heat, bars = panels[row, 2 * column], panels[row, 2 * column + 1]
            mass_heatmap(heat, values[column])
            depth_bars(bars, values[column])
            heat.set_ylabel(method if column == 0 else "", rotation=0, ha="right", va="center")
            if row == 0:
                heat.set_title(f"{variable}: {KINDS[kind]}, {unit.name}", fontsize=9)
    return figure


def mass_heatmap(axes: Axes, values: np.ndarray) -> Axes:
    """Draw one [depth, unit] array; depth runs downwards."""
    axes.imshow(values, aspect="auto", cmap="magma", vmin=0.0)
    axes.set_yticks(range(len(values)))
    axes.set_xticks([])
    return axes


def depth_bars(axes: Axes, values: np.ndarray) -> Axes:
    """Draw the mass per depth beside a heatmap."""
    axes.barh(range(len(values)), values.sum(axis=1), color="tab:orange")
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlim(0.0, None)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def _by_depth(unit: Unit, method: str, kind: str) -> np.ndarray:
    """Return `[V, L, D]`; a plan over all single units is depth-major."""
    values = unit.arrays[f"{method}/{kind}"]
    if kind == "plan":
        depth = unit.arrays[f"{method}/mass"].shape[1]
        values = values.reshape(len(values), depth, -1)
    return values / np.maximum(values.sum(axis=(1, 2), keepdims=True), 1e-30)


def save_figure(path: Path, figure: Figure) -> Path:
    """Write a figure, under its name only when complete, and close it."""
    try:
        with replaced(path) as temporary:
            figure.savefig(temporary, dpi=150, bbox_inches="tight", format="png")
    finally:
        plt.close(figure)
    return path
