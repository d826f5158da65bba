"""Figures of the reduction of a language model, from its records alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.harness.metrics import Metrics
from experiments.harness.records import Unit
from experiments.harness.style import GREY, legend_below, look, panels, save_figure
from experiments.lm_reduction.tables import KINDS, calibrations, keeps, methods, variables


def draw(units: Sequence[Unit], folder: Path) -> list[Path]:
    """Draw every figure into a folder and return the files."""
    metrics = Metrics(row for unit in units for row in unit.rows)
    figures = {f"loss-{kind}": loss_figure(metrics, kind) for kind in KINDS}
    figures["swaps"] = swap_figure(units)
    return [path for name, figure in figures.items() for path in save_figure(folder, name, figure)]


def loss_figure(metrics: Metrics, kind: str) -> Figure:
    """Draw the log-perplexity that is lost against the share kept, a panel for each part and spread."""
    text, shown = calibrations(metrics)[0], variables(metrics)
    shares = keeps(metrics, text)
    figure, grid = panels(1, len(shown), height=2.6, sharey=True)
    for axes, variable in zip(grid, shown, strict=True):
        for method in methods(metrics, variable, text):
            values = [metrics.mean(method, variable, f"{text}-keep{share:g}", f"loss_{kind}") for share in shares]
            axes.plot(shares, np.where(np.array(values) > 0, values, np.nan), **look(method).line, label=method)
        axes.set(title=variable, yscale="log", xlabel="share kept")
    grid[0].set_ylabel("log-perplexity lost / nats")
    legend_below(figure, grid, 6)
    return figure


def swap_figure(units: Sequence[Unit]) -> Figure:
    """Draw how often full swaps of the last token are followed, block by block, in the dense network."""
    figure, (axes,) = panels(1, 1, height=2.0)
    for unit in units:
        followed = unit.arrays["dense/followed"]
        axes.plot(range(len(followed)), followed, ".-", color=GREY, label=unit.name)
    axes.set(xlabel="block", ylabel="source's name said", ylim=(0, 1.02))
    legend_below(figure, [axes])
    return figure
