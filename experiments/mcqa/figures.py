"""The figures of an MCQA run, from its records alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from abstraction.tasks.mcqa import VARIABLES
from experiments.harness import style
from experiments.harness.accuracy import Measure
from experiments.harness.figures import accuracy_figure, runtime_figure, shares
from experiments.harness.metrics import IDENTITY, Metrics
from experiments.harness.records import Unit
from experiments.mcqa.options import POSITIONS
from experiments.mcqa.tables import papers_numbers

MEASURES = (Measure("test", "", "mean of the variables"), *(Measure("test", "", v, v) for v in VARIABLES))
SEARCHES = {"ranks": ("rank", "directions swapped"), "layers": ("depth", "block")}
"""Axes of the candidates of a search, by the figure that shows them."""
_COLUMNS, _ROOM = 4, 30
"""Panels in a row, and blocks up to which there is room for numbers and markers."""


def draw(units: Sequence[Unit], folder: Path) -> list[Path]:
    """Draw every figure into a folder and return the files."""
    metrics = Metrics(row for unit in units for row in unit.rows)
    figures = {"accuracy": accuracy_figure(metrics, MEASURES, papers_numbers(units)), "sweep": sweep_figure(units)}
    methods = [m for m in metrics.tested() if m != IDENTITY and len(metrics.values(m, "mean", "test", "seconds"))]
    if methods:
        figures["runtime"] = runtime_figure(metrics, methods)
    if coarse := [m for m in methods if "stage-a" in m and all(f"{m}/plan" in unit.arrays for unit in units)]:
        figures["coupling"] = coupling_figure(units, coarse)
    for name, (axis, label) in SEARCHES.items():
        found = {method: best_scores(units, method, axis) for method in methods}
        tried = {method: best.drop_duplicates(["variable", "place"]) for method, best in found.items()}
        if several := {m: best for m, best in found.items() if tried[m].duplicated("variable").any()}:
            figures[name] = search_figure(several, axis, label)
    return [path for name, figure in figures.items() for path in style.save_figure(folder, name, figure)]


def sweep_figure(units: Sequence[Unit]) -> Figure:
    """Draw IIA of full swaps, block by token, a panel per variable, all on one scale."""
    sweep = np.mean([unit.arrays["sweep"] for unit in units], axis=0)
    figure, places = style.panels(len(VARIABLES), 1, height=0.2 * len(POSITIONS) + 0.3, sharex=True)
    images = [style.heatmap(axes, values) for axes, values in zip(places, np.swapaxes(sweep, 0, 1), strict=True)]
    for axes, variable, values in zip(places, VARIABLES, np.swapaxes(sweep, 0, 1), strict=True):
        for (row, column), value in np.ndenumerate(values) if values.shape[1] <= _ROOM else ():
            text, color = f"{value:.2f}"[1:] if value < 0.995 else "1", "white" if value < 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=6)
        axes.set_title(variable)
        axes.set_yticks(range(len(POSITIONS)), POSITIONS)
        axes.xaxis.set_major_locator(MaxNLocator(20, integer=True))
    places[-1].set_xlabel("block after which the whole residual stream is swapped")
    figure.supylabel("token", fontsize=8)
    style.color_bar(figure, images[0], places, "IIA on test pairs")
    return figure


def coupling_figure(units: Sequence[Unit], methods: Sequence[str]) -> Figure:
    """Draw the share of its coupling that each variable gives to each block in Stage A, mean and range over seeds."""
    figure, places = style.panels(1, len(methods), height=1.9, sharex=True, sharey=True)
    for axes, method in zip(places, methods, strict=True):
        mass = shares(units, method, "plan").sum(axis=-1)
        for variable, look, seeds in zip(VARIABLES, style.VARIABLES, np.swapaxes(mass, 0, 1), strict=False):
            draw_line(axes, pd.DataFrame(seeds), variable, look)
        style.level(axes, 1 / mass.shape[-1], "uniform")
        axes.set(title=method, xlabel="block")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    places[0].set_ylabel("share of the coupling mass")
    style.legend_below(figure, places)
    return figure


def search_figure(found: dict[str, pd.DataFrame], axis: str, label: str) -> Figure:
    """Draw the best calibration IIA of searches against the rank or the block of their candidates."""
    rows = -(-len(found) // _COLUMNS)
    columns = -(-len(found) // rows)
    figure, places = style.panels(rows, columns, height=1.15 + 0.8 / rows, count=len(found), sharex=True, sharey=True)
    for axes, (method, best) in zip(places, found.items(), strict=True):
        for variable, look in zip(VARIABLES, style.VARIABLES, strict=False):
            mine = best[best["variable"] == variable]
            draw_line(axes, mine.pivot(index="seed", columns="place", values="score"), variable, look)
        axes.set(title=method, ylim=(-0.07, 1.07))
        if axis == "rank":
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:.0f}")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes in places[-columns:]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(label)
    figure.supylabel("best calibration IIA", fontsize=8)
    style.legend_below(figure, places)
    return figure


def draw_line(axes: Axes, values: pd.DataFrame, label: str, look: style.Look) -> None:
    """Draw the mean of a row per seed, and from the lowest to the highest."""
    marker = look.marker if values.shape[1] <= _ROOM else ""
    axes.plot(values.columns, values.mean(), color=look.color, linestyle=look.linestyle, marker=marker, label=label)
    axes.fill_between(values.columns, values.min(), values.max(), color=look.color, alpha=0.15, linewidth=0)


def best_scores(units: Sequence[Unit], method: str, axis: str) -> pd.DataFrame:
    """Return the best score by seed, variable and place on an axis of the candidates; strengths share a candidate."""
    rows = []
    for unit in (unit for unit in units if f"{method}/candidates/{axis}" in unit.arrays):
        owner, places = (unit.arrays[f"{method}/candidates/{name}"] for name in ("variable", axis))
        scores = unit.arrays[f"{method}/scores"]
        for place, variable in enumerate(VARIABLES):
            tried = places[owner == place]
            best = scores[place][~np.isnan(scores[place])].reshape(-1, len(tried)).max(axis=0)
            rows += [(unit.name, variable, *pair) for pair in zip(tried, best, strict=True)]
    frame = pd.DataFrame(rows, columns=["seed", "variable", "place", "score"]).sort_values("score")
    return frame.drop_duplicates(["seed", "variable", "place"], keep="last")
