"""Figures of a discovery run, from its units alone: what is left of accuracy, fidelity and the variables by width."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.discovery.options import DENSE, SURVIVES
from experiments.discovery.tables import FINDERS, TITLES, metrics_of, places, splits
from experiments.harness.metrics import Metrics
from experiments.harness.records import Unit
from experiments.harness.style import GREY, band, legend_below, level, look, panels, save_figure

_FACTUAL = {"heq": ("worst_cell", "worst cell"), "addition": ("accuracy", "sums exact")}
_HANDLES = {"plot": "PLOT, afresh", "das": "DAS, afresh", "transferred": "handle of the dense network"}


def draw(units: Sequence[Unit], folder: Path) -> list[Path]:
    """Draw one figure per task into a folder and return the files."""
    metrics = metrics_of(units)
    tasks = [task for task in TITLES if places(metrics, task)]
    return [path for task in tasks for path in save_figure(folder, f"discovery-{task}", survival_figure(metrics, task))]


def survival_figure(metrics: Metrics, task: str) -> Figure:
    """Draw a panel per kind of handle, then fidelity and factual accuracy, all against the units kept."""
    figure, grid = panels(2, 3, height=2.0, count=5, sharey=True)
    (split, header), _ = splits(task)
    for axes, finder in zip(grid, FINDERS, strict=False):
        for method, widths in reductions(metrics, task).items():
            # What is transferred is the dense network's PLOT handle.
            kind = "plot" if (method, finder) == (DENSE, "transferred") else finder
            curve(axes, metrics, (f"{method}/{kind}", "mean"), {w: f"{task}-keep{w}{split}" for w in widths})
        controls(axes, metrics, task, finder, split)
        axes.set_title(_HANDLES[finder])
    level(grid[1], SURVIVES, f"verdict: {SURVIVES}")
    for method, widths in reductions(metrics, task).items():
        curve(grid[3], metrics, (method, "network"), {width: f"{task}-keep{width}" for width in widths})
        factual(grid[4], metrics, task, method, widths)
    grid[3].set_title("same answer as the dense network")
    grid[4].set_title(_FACTUAL.get(task, ("", "answers right"))[1])
    widths = sorted({width for width, _ in places(metrics, task)})
    for axes in grid:
        axes.set(xscale="log", xlabel="units kept", ylim=(-0.02, 1.02))
        axes.set_xticks(widths, [str(width) for width in widths], fontsize=6)
        axes.minorticks_off()
    grid[0].set_ylabel(f"IIA on test pairs, {header}")
    grid[3].set_ylabel("share of trials, of inputs")
    legend_below(figure, grid, 6)
    return figure


def curve(axes: Axes, metrics: Metrics, what: tuple[str, str], places_of: dict[int, str]) -> None:
    """Draw one accuracy by width with its interval as a band; the dense network is a level."""
    rates = {width: metrics.rate(*what, split) for width, split in places_of.items()}
    found = {width: rate for width, rate in rates.items() if rate is not None}
    method = what[0].split("/")[0]
    if method == DENSE:
        for rate in found.values():
            axes.axhline(rate.mean, **{**look(DENSE).line, "marker": ""}, linewidth=0.8, label="dense network")
    elif found:
        axes.plot(list(found), [rate.mean for rate in found.values()], **look(method).line, label=method)
        band(axes, list(found), ([rate.low for rate in found.values()], [rate.high for rate in found.values()]), method)


def controls(axes: Axes, metrics: Metrics, task: str, finder: str, split: str) -> None:
    """Draw the controls of the handles, each the mean over reductions to one width."""
    for kind, dashes in (("random", ":"), ("shuffled", "-.")):
        values: dict[int, list[float]] = {}
        for width, method in places(metrics, task):
            rate = metrics.rate(f"control-{kind}-{method}/{finder}", "mean", f"{task}-keep{width}{split}")
            values.setdefault(width, []).extend([rate.mean] if rate else [])
        means = {width: float(np.mean(each)) for width, each in values.items() if each}
        axes.plot(
            list(means), list(means.values()), color=GREY, linestyle=dashes, linewidth=0.9, label=f"{kind} control"
        )


def factual(axes: Axes, metrics: Metrics, task: str, method: str, widths: Sequence[int]) -> None:
    """Draw factual accuracy by width: the mean over seeds, and from the worst to the best seed as a band."""
    name = _FACTUAL.get(task, ("accuracy", ""))[0]
    values = [metrics.values(method, "network", f"{task}-keep{width}", name) for width in widths]
    means = [float(each.mean()) for each in values]
    if method == DENSE:
        axes.axhline(means[0], **{**look(DENSE).line, "marker": ""}, linewidth=0.8, label="dense network")
        return
    axes.plot(widths, means, **look(method).line, label=method)
    band(axes, widths, ([float(each.min()) for each in values], [float(each.max()) for each in values]), method)


def reductions(metrics: Metrics, task: str) -> dict[str, list[int]]:
    """Return the widths at which each reduction was run."""
    widths: dict[str, list[int]] = {}
    for width, method in places(metrics, task):
        widths.setdefault(method, []).append(width)
    return widths
