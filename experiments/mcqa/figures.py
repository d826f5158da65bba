"""The figures of an MCQA run, from its records alone."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from abstraction.tasks.mcqa import VARIABLES
from experiments.harness.figures import runtime_figure, save_figure
from experiments.harness.metrics import Metrics
from experiments.harness.paper import reference
from experiments.harness.records import Unit
from experiments.mcqa.options import POSITIONS
from experiments.mcqa.tables import shown_methods

_LINES = ("tab:blue", "tab:orange")
_COLUMNS = 5


def draw(units: Sequence[Unit], folder: Path) -> list[Path]:
    """Draw every figure into a folder and return the files."""
    metrics = Metrics(row for unit in units for row in unit.rows)
    methods = shown_methods(metrics)
    figures = {"accuracy": accuracy_figure(metrics, methods), "sweep": sweep_figure(units)}
    timed = [method for method in methods if len(metrics.values(method, "mean", "test", "seconds"))]
    if timed:
        figures["runtime"] = runtime_figure(metrics, timed)
    coarse = [method for method in timed if f"{method}/plan" in units[0].arrays and "stage-a" in method]
    if coarse:
        figures["coupling"] = coupling_figure(units, coarse)
    for name, axis, label in (("ranks", "rank", "directions swapped"), ("layers", "depth", "block")):
        candidates = {method: units[0].arrays.get(f"{method}/candidates/{axis}") for method in timed}
        if several := [m for m, values in candidates.items() if values is not None and len(np.unique(values)) > 1]:
            figures[name] = search_figure(units, several, axis, label)
    return [save_figure(folder / f"{name}.png", figure) for name, figure in figures.items()]


def accuracy_figure(metrics: Metrics, methods: Sequence[str]) -> Figure:
    """Draw IIA of the mean, beside its paper's number, and of each variable."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 0.32 * len(methods) + 1.6), sharey=True)
    splits = (("mean", "test"), *((variable, "test") for variable in VARIABLES))
    for axes, (variable, split) in zip(panels, splits, strict=True):
        for place, method in enumerate(methods):
            rate = metrics.rate(method, variable, split)
            if rate is not None:
                error = [[max(rate.mean - rate.low, 0.0)], [max(rate.high - rate.mean, 0.0)]]
                axes.barh(place, rate.mean, xerr=error, color="tab:blue", alpha=0.6)
            if known := reference("mcqa", method, variable, split):
                axes.plot(known.value, place, "rx")
        axes.set_title(variable if variable != "mean" else "mean (x: paper, Gemma-2-2B)")
        axes.set_yticks(range(len(methods)), methods)
        axes.set_xlim(0.0, 1.02)
    panels[0].invert_yaxis()
    return figure


def sweep_figure(units: Sequence[Unit]) -> Figure:
    """Draw IIA of full swaps, block by token, a panel per variable."""
    sweep = np.mean([unit.arrays["sweep"] for unit in units], axis=0)
    figure, panels = plt.subplots(1, len(VARIABLES), figsize=(9, 3.2), sharey=True)
    for axes, variable, values in zip(panels, VARIABLES, np.swapaxes(sweep, 0, 1), strict=True):
        axes.imshow(values, aspect="auto", cmap="viridis", vmin=0.0, vmax=1.0)
        for (row, column), value in np.ndenumerate(values):
            if values.size <= 64:
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="w" if value < 0.6 else "k")
        axes.set_xlabel("block")
        axes.set_title(f"{variable}: IIA of a full swap", fontsize=9)
        axes.set_yticks(range(len(POSITIONS)), POSITIONS)
    return figure


def coupling_figure(units: Sequence[Unit], methods: Sequence[str]) -> Figure:
    """Draw the coupling mass that each variable gives to each block in Stage A."""
    figure, panels = plt.subplots(1, len(methods), figsize=(4 * len(methods), 3), squeeze=False, sharey=True)
    for axes, method in zip(panels[0], methods, strict=True):
        depth = units[0].arrays[f"{method}/mass"].shape[1]
        plans = np.stack([unit.arrays[f"{method}/plan"].reshape(len(VARIABLES), depth, -1) for unit in units])
        mass = plans.sum(axis=-1)
        mass = (mass / np.maximum(mass.sum(axis=-1, keepdims=True), 1e-30)).mean(axis=0)
        for variable, row, color, shift in zip(VARIABLES, mass, _LINES, (-0.2, 0.2), strict=True):
            axes.bar(np.arange(depth) + shift, row, 0.4, label=variable, color=color)
        axes.set_title(f"{method}: coupling mass", fontsize=9)
        axes.set_xlabel("block")
    panels[0, 0].legend()
    return figure


def search_figure(units: Sequence[Unit], methods: Sequence[str], axis: str, label: str) -> Figure:
    """Draw the best calibration IIA of a search against the rank or the block of its candidates."""
    rows = -(-len(methods) // _COLUMNS)
    columns = min(len(methods), _COLUMNS)
    figure, panels = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.8 * rows), squeeze=False, sharey=True)
    for axes in panels.ravel()[len(methods) :]:
        axes.set_axis_off()
    for axes, method in zip(panels.ravel(), methods, strict=False):
        for variable, (name, color) in enumerate(zip(VARIABLES, _LINES, strict=True)):
            places, best = _best(units[0], method, variable, axis)
            axes.plot(places, best, "o-", color=color, label=name, markersize=3)
        axes.set_title(method, fontsize=9)
        axes.set_xlabel(label)
        axes.set_ylim(0.0, 1.02)
        if axis == "rank":
            axes.set_xscale("log", base=2)
        else:
            axes.set_xticks(range(units[0].arrays["sweep"].shape[-1]))
    panels[0, 0].set_ylabel("best calibration IIA")
    panels[0, 0].legend(fontsize=7)
    figure.tight_layout()
    return figure


def _best(unit: Unit, method: str, variable: int, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of an axis of the candidates and the best score at each; strengths share a candidate."""
    owner, values = (unit.arrays[f"{method}/candidates/{name}"] for name in ("variable", axis))
    mine = values[owner == variable]
    scores = unit.arrays[f"{method}/scores"][variable]
    scores = scores[~np.isnan(scores)].reshape(-1, len(mine)).max(axis=0)
    places = np.unique(mine)
    return places, np.array([scores[mine == place].max() for place in places])
