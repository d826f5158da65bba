"""Figures of the reduction experiment, from its records alone.

Seventeen methods do not fit one panel: they stand in four, by what they replace units by, each beside `cmr` and
`random` in grey.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.certify.published import IIA
from experiments.harness.metrics import Metrics
from experiments.harness.records import Unit
from experiments.harness.style import GREY, band, legend_below, level, look, panels, save_figure
from experiments.reduction.tables import LAST, iia_of, kept_counts, published, reduced_by, shown_strength, strengths

FAMILIES = {
    "affine replacement": ("cmr", "cmr-closed", "cmr-kl", "obs-affine", "cip-affine", "vbp-affine"),
    "constant replacement": ("kl-const", "logit-const", "joint-const", "cip-const"),
    "variance and means": ("vbp", "vbp-bias", "random"),
    "size and gradient": ("magnitude", "taylor", "wanda", "obd"),
}
YARDSTICKS = ("cmr", "random")
Values = tuple[list[float], list[float] | None, list[float] | None]
"""A line, and the ends of its interval where there is one."""


def draw(units: Sequence[Unit], folder: Path) -> list[Path]:
    """Draw every figure into a folder and return the files."""
    metrics = Metrics(row for unit in units for row in unit.rows)
    p = shown_strength(metrics)
    figures = {"accuracy": accuracy_figure(metrics), "iia": iia_figure(metrics, p, published(units))}
    figures |= {"strengths": strength_figure(metrics), "scores": score_figure(units)}
    return [path for name, figure in figures.items() for path in save_figure(folder, name, figure)]


def accuracy_figure(metrics: Metrics) -> Figure:
    """Draw accuracy against units kept, a panel per family of methods."""
    keeps = kept_counts(metrics)
    find = lambda method: ([metrics.mean(method, LAST, f"keep{keep}", "accuracy") for keep in keeps], None, None)
    figure, grid = _families(metrics, keeps, find, "accuracy on test images")
    for axes in grid:
        level(axes, metrics.mean("dense", "network", "test", "accuracy"), "dense network")
    legend_below(figure, grid, 7)
    return figure


def iia_figure(metrics: Metrics, p: float, known: bool) -> Figure:
    """Draw IIA at one strength with its intervals against units kept, the authors' numbers as crosses."""
    keeps = kept_counts(metrics)
    figure, grid = _families(metrics, keeps, lambda method: _rates(metrics, method, keeps, [p]), f"IIA at p = {p:g}")
    for axes, methods in zip(grid, FAMILIES.values(), strict=True):
        for method in methods:
            points = {keep: IIA[method, keep, p].value for keep in keeps if (method, keep, p) in IIA}
            if known and points:
                axes.plot(list(points), list(points.values()), "x", color=look(method).color)
                axes.plot([], [], "kx", label="published")
    legend_below(figure, grid, 7)
    return figure


def strength_figure(metrics: Metrics) -> Figure:
    """Draw IIA against the strength of interventions, a panel per budget, with the controls of `cmr`."""
    keeps, ps = kept_counts(metrics), strengths(metrics)
    shown = [method for method in ("cmr", "cip-affine", "cip-const", "vbp", "random") if method in reduced_by(metrics)]
    figure, grid = panels(1, len(keeps), height=2.3, sharey=True)
    for axes, keep in zip(grid, keeps, strict=True):
        for method in shown:
            agreement = metrics.mean(method, LAST, f"keep{keep}", "agreement")
            values, low, high = _rates(metrics, method, [keep], ps)
            axes.plot([0.0, *ps], [agreement, *values], **look(method).line, label=method)
            band(axes, ps, (low, high), method)
        for kind, dashes in (("ignored", ":"), ("shuffled", "--")):
            values = [metrics.mean(f"control-{kind}-{shown[0]}", LAST, f"keep{keep}-p{p:g}", "iia") for p in ps]
            axes.plot(ps, values, color=GREY, linestyle=dashes, label=f"{kind} ({shown[0]})")
        axes.set(title=f"{keep} kept", xlabel="p", ylim=(0, 1.02))
    grid[0].set_ylabel("agreement (p = 0), IIA")
    grid[len(keeps) // 2].set_xlabel("probability p of an interchange")
    legend_below(figure, grid, 7)
    return figure


def score_figure(units: Sequence[Unit]) -> Figure:
    """Draw what replacing each unit really does against its curvature score, and against its variance."""
    measured = np.concatenate([unit.arrays["effects/measured"] for unit in units])
    figure, grid = panels(1, 2, height=2.6, sharey=True)
    for axes, name, title in zip(grid, ("score", "variance"), ("curvature score / nats", "variance"), strict=True):
        predicted = np.concatenate([unit.arrays[f"effects/{name}"] for unit in units])
        shown = (predicted > 0) & (measured > 0)
        axes.loglog(predicted[shown], measured[shown], ".", color=look("cmr").color, alpha=0.6, label="a unit")
        axes.set_xlabel(f"{title} of the unit")
    ends = [float(measured[measured > 0].min()), float(measured.max())]
    grid[0].plot(ends, ends, color=GREY, linestyle="--", label="as predicted")
    grid[0].set_ylabel("mean KL / nats when it alone\nis replaced by its constant")
    legend_below(figure, grid)
    return figure


def _families(
    metrics: Metrics, keeps: Sequence[int], find: Callable[[str], Values], label: str
) -> tuple[Figure, list[Axes]]:
    """Draw a panel per family against units kept; the yardsticks stand in every one."""
    figure, grid = panels(2, 2, height=2.0, sharex=True, sharey=True)
    there = reduced_by(metrics)
    for place, (axes, (title, methods)) in enumerate(zip(grid, FAMILIES.items(), strict=True)):
        for method in (name for name in YARDSTICKS if name in there and name not in methods):
            dashes = "-" if method == "cmr" else ":"
            other = f"{method}, for comparison"
            axes.plot(keeps, find(method)[0], color=GREY, linewidth=0.8, linestyle=dashes, label=other)
        for method in (name for name in methods if name in there):
            values, low, high = find(method)
            axes.plot(keeps, values, **look(method).line, label=method)
            if low is not None:
                band(axes, keeps, (low, high), method)
        axes.set(title=title, ylim=(0, 1.02), xscale="log")
        axes.set_xticks(keeps, [str(keep) for keep in keeps], minor=False)
        axes.minorticks_off()
        if place >= 2:
            axes.set_xlabel("units kept in the last hidden layer")
        if place % 2 == 0:
            axes.set_ylabel(label)
    return figure, grid


def _rates(metrics: Metrics, method: str, keeps: Sequence[int], ps: Sequence[float]) -> Values:
    found = [iia_of(metrics, method, LAST, f"keep{keep}-p{p:g}") or (np.nan,) * 3 for keep in keeps for p in ps]
    values, low, high = (list(column) for column in zip(*found, strict=True))
    return values, low, high
