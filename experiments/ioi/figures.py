"""The figures of a run about indirect objects, from its records alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from abstraction.tasks.ioi import POSITIONS, VARIABLES
from experiments.harness import style
from experiments.harness.accuracy import Measure
from experiments.harness.figures import accuracy_figure, runtime_figure
from experiments.harness.metrics import IDENTITY, Metrics
from experiments.harness.records import Unit
from experiments.ioi.heads import WRITERS

MEASURES = (Measure("test", "", "mean of the variables"), *(Measure("test", "", v, v) for v in VARIABLES))
_ROOM = 30


def draw(units: Sequence[Unit], folder: Path) -> list[Path]:
    """Draw every figure into a folder and return the files."""
    metrics = Metrics(row for unit in units for row in unit.rows)
    figures = {
        "accuracy": accuracy_figure(metrics, MEASURES, lambda *_: None),
        "map": map_figure(units),
        "heads": heads_figure(units),
    }
    if methods := [m for m in metrics.tested() if m != IDENTITY]:
        figures["runtime"] = runtime_figure(metrics, methods)
    return [path for name, figure in figures.items() for path in style.save_figure(folder, name, figure)]


def map_figure(units: Sequence[Unit]) -> Figure:
    """Draw IIA of full swaps, block by token, a panel per variable, all on one scale."""
    values = np.mean([unit.arrays["map"] for unit in units], axis=0)
    figure, places = style.panels(len(VARIABLES), 1, height=0.2 * len(POSITIONS) + 0.3, sharex=True)
    images = [style.heatmap(axes, each.T) for axes, each in zip(places, values, strict=True)]
    for axes, variable, each in zip(places, VARIABLES, values, strict=True):
        for (block, token), value in np.ndenumerate(each) if len(each) <= _ROOM else ():
            text, color = f"{value:.2f}"[1:] if value < 0.995 else "1", "white" if value < 0.6 else "black"
            axes.text(block, token, text, ha="center", va="center", color=color, fontsize=5)
        axes.set_title(variable)
        axes.set_yticks(range(len(POSITIONS)), [name.replace("_", " ") for name in POSITIONS])
        axes.xaxis.set_major_locator(MaxNLocator(20, integer=True))
    places[-1].set_xlabel("block after which the whole residual stream is swapped")
    style.color_bar(figure, images[0], places, "IIA on calibration pairs")
    return figure


def heads_figure(units: Sequence[Unit]) -> Figure:
    """Draw the gain of every head and of every MLP beside its transport cost, one point each."""
    figure, places = style.panels(1, len(WRITERS), height=2.0)
    for axes, tap in zip(places, WRITERS, strict=True):
        cost, exact = (np.mean([unit.arrays[f"{tap}/{name}"] for unit in units], axis=0) for name in ("cost", "exact"))
        axes.plot(cost.ravel(), exact.ravel(), "o", color=style.BLUE, markersize=2)
        for place in np.argsort(-exact.ravel(), kind="stable")[:5]:
            block, head = np.unravel_index(place, exact.shape)
            name = f"{block}.{head}" if exact.shape[1] > 1 else str(block)
            axes.annotate(name, (cost.ravel()[place], exact.ravel()[place]), fontsize=6)
        axes.set(title=tap.replace("_", " "), xlabel="transport cost", ylabel="gain in logit, swapped alone")
    return figure
