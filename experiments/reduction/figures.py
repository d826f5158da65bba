"""Figures of the reduction experiment, from its records alone."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.certify.published import IIA
from experiments.harness.figures import save_figure
from experiments.harness.metrics import Metrics
from experiments.harness.records import Unit
from experiments.reduction.tables import iia_of, kept_counts, strengths

_LAST = "hidden2"
_OURS = ("cmr", "cmr-closed", "cmr-kl")


def draw(units: Sequence[Unit], folder: Path) -> list[Path]:
    """Draw every figure into a folder and return the files."""
    metrics = Metrics(row for unit in units for row in unit.rows)
    return [
        save_figure(folder / "reduction.png", reduction_figure(metrics, units)),
        save_figure(folder / "strengths.png", strength_figure(metrics)),
        save_figure(folder / "scores.png", score_figure(units[0])),
    ]


def reduction_figure(metrics: Metrics, units: Sequence[Unit]) -> Figure:
    """Draw accuracy, and IIA at the strength next to .1 with its intervals, against kept units."""
    keeps, p = kept_counts(metrics), min(strengths(metrics), key=lambda value: abs(value - 0.1))
    methods = [m for m in metrics.methods if len(metrics.values(m, _LAST, f"keep{keeps[0]}", "accuracy"))]
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.5), sharex=True)
    colors = plt.get_cmap("tab20")(np.linspace(0, 1, max(len(methods), 2)))
    for method, color in zip(methods, colors, strict=False):
        width = 2.5 if method in _OURS else 1.0
        accuracy = [metrics.mean(method, _LAST, f"keep{keep}", "accuracy") for keep in keeps]
        left.plot(keeps, accuracy, "o-", color=color, label=method, linewidth=width, markersize=3)
        iia_curve(right, metrics, method, keeps, p, color=color, linewidth=width)
    if units[0].details["images"] == "mnist" and units[0].details["width"] == 512:
        for (_, keep, strength), known in IIA.items():
            if strength == p and keep in keeps:
                right.plot(keep, known.value, "rx", markersize=5)
        right.plot([], [], "rx", label="published")
        right.legend(loc="lower right")
    left.axhline(metrics.mean("dense", "network", "test", "accuracy"), color="black", linestyle=":", label="dense")
    left.set_title("accuracy on test images")
    right.set_title(f"IIA at p = {p:g}, with 95% confidence sequences")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(keeps, [str(keep) for keep in keeps])
        axes.set_xlabel("units kept in the last hidden layer")
    left.legend(fontsize=7, ncols=2)
    return figure


def iia_curve(axes: Axes, metrics: Metrics, method: str, keeps: Sequence[int], p: float, **style: object) -> Axes:
    """Draw one method's IIA over budgets with its interval as a band."""
    rates = [iia_of(metrics, method, _LAST, f"keep{keep}-p{p:g}") for keep in keeps]
    known = [(keep, *rate) for keep, rate in zip(keeps, rates, strict=True) if rate]
    if known:
        places, values, low, high = (np.array(part) for part in zip(*known, strict=True))
        axes.plot(places, values, "o-", markersize=3, **style)  # pyright: ignore[reportArgumentType]
        axes.fill_between(places, low, high, alpha=0.15, color=style.get("color"))  # pyright: ignore[reportArgumentType]
    return axes


def strength_figure(metrics: Metrics) -> Figure:
    """Draw IIA against the interchange probability, a panel per budget; far from observation methods change places."""
    keeps, probabilities = kept_counts(metrics), strengths(metrics)
    methods = [m for m in metrics.methods if len(metrics.values(m, _LAST, f"keep{keeps[0]}", "accuracy"))]
    figure, panels = plt.subplots(1, len(keeps), figsize=(3.2 * len(keeps), 3.6), sharey=True, squeeze=False)
    colors = plt.get_cmap("tab20")(np.linspace(0, 1, max(len(methods), 2)))
    for axes, keep in zip(panels[0], keeps, strict=True):
        for method, color in zip(methods, colors, strict=False):
            rates = [iia_of(metrics, method, _LAST, f"keep{keep}-p{p:g}") for p in probabilities]
            agreement = metrics.mean(method, _LAST, f"keep{keep}", "agreement")
            values = [agreement, *(rate[0] if rate else np.nan for rate in rates)]
            axes.plot([0.0, *probabilities], values, "o-", color=color, markersize=3, label=method)
        axes.set_title(f"{keep} kept")
        axes.set_xlabel("interchange probability p")
    panels[0, 0].set_ylabel("agreement, IIA")
    panels[0, -1].legend(fontsize=6)
    return figure


def score_figure(unit: Unit) -> Figure:
    """Draw what replacing each unit really does against its curvature score, and against its variance."""
    measured = unit.arrays["effects/measured"]
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True)
    for axes, name, title in zip(
        panels, ("score", "variance"), ("curvature score, nats", "variance of the unit"), strict=True
    ):
        predicted = unit.arrays[f"effects/{name}"]
        shown = (predicted > 0) & (measured > 0)
        axes.loglog(predicted[shown], measured[shown], ".", alpha=0.6)
        axes.set_xlabel(title)
    ends = [*panels[0].get_xlim()]
    panels[0].plot(ends, ends, "k:", linewidth=1)
    panels[0].set_ylabel("mean KL when the unit alone is replaced by its constant")
    return figure
