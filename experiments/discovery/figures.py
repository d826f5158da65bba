"""Figures of a discovery run, from its units alone: what is left of accuracy, fidelity and the variables by width."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.discovery.options import DENSE
from experiments.discovery.tables import FINDERS, TITLES, metrics_of, places
from experiments.harness.figures import save_figure
from experiments.harness.metrics import Metrics, Rate
from experiments.harness.records import Unit

_FACTUAL = {"heq": "worst cell", "addition": "sums exact", "mcqa": "answers right"}
_TITLES = {"plot": "PLOT, afresh", "das": "DAS, afresh", "transferred": "handle of the dense network"}


def draw(units: Sequence[Unit], folder: Path) -> list[Path]:
    """Draw one figure per task into a folder and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = metrics_of(units)
    tasks = [task for task in TITLES if places(metrics, task)]
    return [save_figure(folder / f"discovery-{task}.png", survival_figure(metrics, task)) for task in tasks]


def survival_figure(metrics: Metrics, task: str) -> Figure:
    """Draw a panel per kind of handle, then fidelity and factual accuracy, all against the units kept."""
    figure, panels = plt.subplots(1, len(FINDERS) + 2, figsize=(18, 3.6), sharex=True)
    split = "-sensitive" if task == "heq" else ""
    for axes, finder in zip(panels, FINDERS, strict=False):
        curves(axes, metrics, task, f"/{finder}", "mean", split)
        axes.set_title(_TITLES[finder])
    curves(panels[-2], metrics, task, "", "network", "").set_title("fidelity to the dense network")
    factual_curves(panels[-1], metrics, task).set_title(_FACTUAL[task])
    panels[0].set_ylabel("IIA, sensitive pairs" if task == "heq" else "IIA, combined")
    for axes in panels:
        axes.set_xlabel("units kept")
        axes.set_ylim(-0.02, 1.02)
    panels[0].legend(fontsize=7)
    return figure


def curves(axes: Axes, metrics: Metrics, task: str, ending: str, variable: str, split: str) -> Axes:
    """Draw one accuracy of every reduction by width with its interval as a band, and the dense value as a line."""
    for method, widths in _reductions(metrics, task).items():
        # What is transferred is the dense network's PLOT handle.
        label = method + (ending.replace("transferred", "plot") if method == DENSE else ending)
        rates = {w: metrics.rate(label, variable, f"{task}-keep{w}{split}") for w in widths}
        found: dict[int, Rate] = {width: rate for width, rate in rates.items() if rate is not None}
        if method == DENSE:
            for rate in found.values():
                axes.axhline(rate.mean, color="black", linewidth=0.8, linestyle="--", label=DENSE)
            continue
        (line,) = axes.plot(list(found), [rate.mean for rate in found.values()], marker="o", markersize=3, label=method)
        low, high = [rate.low for rate in found.values()], [rate.high for rate in found.values()]
        axes.fill_between(list(found), low, high, color=line.get_color(), alpha=0.15)
    return axes


def factual_curves(axes: Axes, metrics: Metrics, task: str) -> Axes:
    """Draw factual accuracy by width: the mean over seeds, and from the worst to the best seed as a band."""
    name = "worst_cell" if task == "heq" else "accuracy"
    for method, widths in _reductions(metrics, task).items():
        values = [metrics.values(method, "network", f"{task}-keep{width}", name) for width in widths]
        if method == DENSE:
            axes.axhline(values[0].mean(), color="black", linewidth=0.8, linestyle="--", label=DENSE)
            continue
        (line,) = axes.plot(widths, [each.mean() for each in values], marker="o", markersize=3, label=method)
        low, high = [each.min() for each in values], [each.max() for each in values]
        axes.fill_between(widths, low, high, color=line.get_color(), alpha=0.15)
    return axes


def _reductions(metrics: Metrics, task: str) -> dict[str, list[int]]:
    """Return the widths at which each reduction was run."""
    widths: dict[str, list[int]] = {}
    for width, method in places(metrics, task):
        widths.setdefault(method, []).append(width)
    return widths
