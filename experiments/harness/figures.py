"""Figures of a localization run, from its unit files alone."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from experiments.harness import style
from experiments.harness.accuracy import TIMES, Known, Layout, Measure, tables
from experiments.harness.metrics import IDENTITY, Metrics
from experiments.harness.paper import reference
from experiments.harness.records import Unit
from experiments.harness.report import Report

KINDS = {
    "plan": ("coupling", "unit, or principal component where a method cuts along these"),
    "mass": ("weight that the handle swaps", "unit"),
    "components": ("weight that the handle swaps", "principal component"),
}
"""Arrays by site: what is shared out, and what a column is."""
ROW, PAGE = 0.16, 10
"""Height of a method's row in inches, and rows of heatmaps on a page."""
CONTROLS = {"random": "|", "shuffled": "d"}
CLOCKS = ((6, "o", style.BLUE), (4.5, "s", style.ORANGE), (2, "o", style.BLACK), (4, "D", style.GREY))
"""Sizes, markers and colours of what is counted, so that equal times stand inside one another."""


def report(layout: Layout) -> Report:
    """Return how an experiment of this layout is shown."""
    return Report(partial(tables, layout), partial(draw, layout))


def draw(layout: Layout, units: Sequence[Unit], folder: Path) -> list[Path]:
    """Draw every figure of a localization run into a folder and return the files."""
    metrics, network = Metrics(row for unit in units for row in unit.rows), layout.network(units)
    known: Known = lambda method, variable, split: reference(layout.experiment, method, variable, split, network)
    figures = {"accuracy": accuracy_figure(metrics, layout.measures, known)}
    methods = [m for m in metrics.tested() if m != IDENTITY]
    if timed := [m for m in methods if len(metrics.values(m, "mean", "test", "seconds"))]:
        figures["runtime"] = runtime_figure(metrics, timed)
    variables = [v for v in metrics.variables if v != "mean"]
    for kind in KINDS:
        shown = [m for m in methods if any(f"{m}/{kind}" in unit.arrays for unit in units)]
        pages = -(-len(shown) // PAGE)
        for page, part in enumerate(np.array_split(shown, pages) if pages else [], 1):
            name = f"{kind}-{page}" if pages > 1 else kind
            figures[name] = heatmap_figure(units, list(part), variables, kind, layout.depth)
    return [path for name, figure in figures.items() for path in style.save_figure(folder, name, figure)]


def accuracy_figure(metrics: Metrics, measures: Sequence[Measure], known: Known) -> Figure:
    """Draw a panel for each accuracy, all methods below one another."""
    methods = [*(m for m in metrics.tested() if m != IDENTITY), IDENTITY]
    figure, places = style.panels(1, len(measures), height=ROW * len(methods) + 0.8, sharey=True)
    for axes, measure in zip(places, measures, strict=True):
        accuracy_panel(axes, metrics, methods, measure, known)
    name_rows(places[0], methods)
    style.legend_below(figure, places, columns=3)
    return figure


def accuracy_panel(axes: Axes, metrics: Metrics, methods: Sequence[str], measure: Measure, known: Known) -> None:
    """Draw means and intervals, the seeds below them, controls, the paper's numbers, and what takes no localization."""
    split, variable = measure.split, measure.variable
    axes.plot([], [], "o-", color=style.BLACK, label="mean, 95% interval")
    axes.plot([], [], "o-", color=style.BLACK, markerfacecolor="white", label="same, the paper's variant")
    for place, method in enumerate(methods):
        rate, look = metrics.rate(method, variable, split), style.look(method)
        if rate is None:
            continue
        axes.plot([rate.low, rate.high], [place] * 2, color=look.color, linewidth=1.4)
        face = "white" if look.hatch else look.color
        axes.plot(rate.mean, place, look.marker, color=look.color, markerfacecolor=face, markersize=4, label="_mean")
        seeds = metrics.values(method, variable, split, "iia")
        axes.plot(seeds, [place + 0.3] * len(seeds), ".", color=style.BLACK, markersize=2, label="a seed")
        for kind, marker in CONTROLS.items():
            control = metrics.mean(f"control-{kind}-{method}", variable, split, "iia")
            thin = {"markerfacecolor": "none", "markersize": 4, "markeredgewidth": 0.8}
            axes.plot(control, place, marker, color=style.GREY, label=f"{kind} control", **thin)
        if number := known(method, variable, split):
            axes.plot(number.value, place, "x", color=style.BLACK, markersize=4, label=f"paper: {number.network}")
    floor = [metrics.mean(IDENTITY, variable, split, name) for name in ("iia", "chance")]
    if not np.isnan(floor).all():
        style.level(axes, float(np.nanmax(floor)), "the better of no swap and a constant answer", vertical=True)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel(f"IIA, {measure.title}")


def name_rows(axes: Axes, methods: Sequence[str]) -> None:
    """Name a row per method, the first on top."""
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.4, -0.6)


def runtime_figure(metrics: Metrics, methods: Sequence[str]) -> Figure:
    """Draw seconds per seed by what is counted, compilation in a panel of its own, on log axes."""
    figure, places = style.panels(1, 2, height=ROW * len(methods) + 0.8, sharex=True, sharey=True)
    for (end, label), (size, marker, color) in zip(TIMES.items(), CLOCKS, strict=True):
        seconds = [metrics.mean(method, "mean", "test", f"seconds{end}") for method in methods]
        drawn = {"color": color, "markersize": size, "markerfacecolor": color if size == 2 else "none"}
        axes = places[end == "_compile"]
        axes.plot(seconds, range(len(methods)), marker, label=label, **drawn)
    for axes, title in zip(places, ("running", "compiling"), strict=True):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="x", linewidth=0.3)
        axes.set_xlabel(f"{title}, seconds per seed")
    name_rows(places[0], methods)
    style.legend_below(figure, places)
    return figure


def heatmap_figure(
    units: Sequence[Unit], methods: Sequence[str], variables: Sequence[str], kind: str, depth: str
) -> Figure:
    """Draw, per method and variable, depth by unit: what a variable shares out, mean over seeds, all on one scale."""
    values = [share for method in methods for share in shares(units, method, kind).mean(axis=0)]
    rows, (what, column) = max(len(share) for share in values), KINDS[kind]
    height = min(0.11 * rows + 0.12, 0.9) + 0.8 / len(methods)
    figure, places = style.panels(len(methods), len(variables), height=height, sharex=True, sharey=True)
    images = [style.heatmap(axes, share) for axes, share in zip(places, values, strict=True)]
    for axes, image, share in zip(places, images, values, strict=True):
        image.set_norm(PowerNorm(0.5, 0.0, 1.0))
        for row in np.flatnonzero(share.sum(axis=1) >= 0.005) if rows <= 8 else ():
            text = f"{share[row].sum():.2f}"
            axes.annotate(text, (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=5)
    places[0].yaxis.set_major_locator(MaxNLocator(rows if rows <= 8 else 4, integer=True))
    places[0].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    for axes, variable in zip(places, variables, strict=False):
        axes.set_title(variable)
    for axes, method in zip(places[:: len(variables)], methods, strict=True):
        axes.set_ylabel(method, rotation=0, ha="right", va="center")
    seeds = units[0].name.replace("-", " ") if len(units) == 1 else f"mean over {len(units)} seeds"
    figure.suptitle(f"share of the {what}, {seeds}; colours by square roots, beside a row its sum", fontsize=8)
    figure.supxlabel(column, fontsize=8)
    figure.supylabel(depth, fontsize=8)
    style.color_bar(figure, images[0], places, "share")
    return figure


def shares(units: Sequence[Unit], method: str, kind: str) -> np.ndarray:
    """Return `[N, V, L, D]`, per seed shares that sum to 1 or to 0; a plan over all single units is depth-major."""
    found = []
    for unit in units:
        if f"{method}/{kind}" in unit.arrays:
            values = np.abs(unit.arrays[f"{method}/{kind}"])
            values = values.reshape(len(values), unit.arrays[f"{method}/mass"].shape[1], -1)
            found.append(values / np.maximum(values.sum(axis=(1, 2), keepdims=True), 1e-30))
    return np.stack(found)
