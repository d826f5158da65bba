"""Figures of the certification experiment, from its units alone. Functions draw on axes and return them."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.certify.options import split_name
from experiments.certify.published import CERTIFIED
from experiments.certify.tables import PROTOCOLS, TITLES, Records, known_coverage
from experiments.harness.figures import save_figure
from experiments.harness.records import Unit

_COLORS = {"betting": "tab:blue", "hoeffding": "tab:gray", "betting-two-sided": "tab:cyan"}


def draw(units: Sequence[Unit], folder: Path) -> list[Path]:
    """Draw a figure for every study that was run and has one; return the files."""
    records = Records(units)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    if "certification" in records.options["studies"]:
        files.append(save_figure(folder / "trials.png", trials_figure(records)))
        if "trace/trials" in units[0].arrays:
            files.append(save_figure(folder / f"sequences-{units[0].name}.png", sequences_figure(records, units[0])))
    if "coverage" in records.options["studies"]:
        files.append(save_figure(folder / "coverage.png", coverage_figure(records)))
    return files


def sequences_figure(records: Records, unit: Unit) -> Figure:
    """Draw the confidence sequences of one cell, a panel per method."""
    methods = records.options["methods"]
    options = records.options
    split = split_name(records.units(options["paired"]["keep"]), options["probabilities"][0])
    figure, panels = _panels(len(methods), columns=3)
    for axes, method in zip(panels, methods, strict=False):
        sequence_lines(axes, unit, method, split, options["fidelities"]).set_title(f"{method}, {split}", fontsize=9)
    panels[0].legend(fontsize=7)
    return figure


def sequence_lines(axes: Axes, unit: Unit, method: str, split: str, fidelities: Sequence[float]) -> Axes:
    """Draw both ends of the fidelity's sequences against trials, and the fidelities to certify."""
    times = unit.arrays["trace/trials"]
    for confidence in ("hoeffding", "betting"):
        low, high = unit.arrays[f"trace/{method}/{split}/{confidence}"]
        axes.plot(times, low, color=_COLORS[confidence], label=confidence)
        axes.plot(times, high, color=_COLORS[confidence])
        axes.fill_between(times, low, high, color=_COLORS[confidence], alpha=0.15)
    for fidelity in fidelities:
        axes.axhline(fidelity, color="k", linestyle=":", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_ylim(0.0, 1.02)
    axes.set_xlabel("trials")
    axes.set_ylabel("fidelity")
    return axes


def trials_figure(records: Records) -> Figure:
    """Draw trials to certify by method and units kept, a panel per fidelity and p; published numbers as crosses."""
    fidelities = records.options["fidelities"]
    cells = list(itertools.product(records.options["probabilities"], fidelities))
    figure, panels = _panels(len(cells), columns=len(fidelities))
    for (p, fidelity), axes in zip(cells, panels, strict=True):
        trial_lines(axes, records, p, fidelity).set_title(f"p = {p:g}, F {fidelity:g}", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def trial_lines(axes: Axes, records: Records, p: float, fidelity: float) -> Axes:
    """Draw median trials with quartiles against units kept, where the fidelity was certified."""
    for index, method in enumerate(records.options["methods"]):
        splits = {keep: split_name(keep, p, "iid-betting", f"F{fidelity:g}") for keep in records.keeps}
        shown = {k: s for k, s in splits.items() if records.value("certification", method, s, "verdict") > 0.5}
        first, median, third = (
            np.array([records.median("certification", method, split, name) for split in shown.values()])
            for name in ("trials_q1", "trials", "trials_q3")
        )
        keeps, color = np.array(list(shown)), f"C{index}"
        error = [median - first, third - median]
        axes.errorbar(keeps, median, error, marker="o", markersize=3, capsize=2, color=color, label=method)
        known = {keep: CERTIFIED.get((method, keep, p, "iid", "betting", fidelity)) for keep in splits}
        if records.published and any(known.values()):
            axes.plot(list(known), [np.nan if count is None else count for count in known.values()], "x", color=color)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(min(records.keeps) / 1.2, max(records.keeps) * 1.2)
    axes.set_ylim(30, records.options["trials"] * 1.3)
    axes.set_xlabel("units kept")
    axes.set_ylabel("trials")
    return axes


def coverage_figure(records: Records) -> Figure:
    """Draw coverage by protocol, a panel per level; published numbers as crosses."""
    levels = records.options["coverage"]["levels"]
    figure, panels = _panels(len(levels), columns=len(levels))
    for axes, level in zip(panels, levels, strict=False):
        coverage_bars(axes, records, level).set_title(f"level {1 - level:g}", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def coverage_bars(axes: Axes, records: Records, level: float) -> Axes:
    """Draw the share of streams covered, beside what was asked for."""
    options = records.options["coverage"]
    keep, places = records.units(options["keep"]), np.arange(len(PROTOCOLS))
    for offset, (sequence, color) in enumerate(_COLORS.items()):
        splits = [split_name(keep, options["probability"], name, sequence, f"delta{level:g}") for name in PROTOCOLS]
        shares = [records.value("coverage", options["method"], split, "coverage") for split in splits]
        across = places + 0.25 * (offset - 1)
        axes.barh(across, shares, height=0.25, color=color, label=sequence)
        known = [known_coverage(records, protocol, sequence, level) for protocol in PROTOCOLS]
        axes.plot([np.nan if share is None else share for share in known], across, "rx")
    axes.axvline(1 - level, color="k", linestyle=":", linewidth=0.8)
    axes.set_yticks(places, [TITLES[protocol] for protocol in PROTOCOLS], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(min(0.9, 1 - 1.5 * level), 1.005)
    axes.set_xlabel("share covered")
    return axes


def _panels(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Make a grid of panels and leave out those that are not needed."""
    rows = -(-count // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4 * columns, 2.8 * rows), squeeze=False, layout="constrained")
    for axes in grid.flat[count:]:
        axes.remove()
    return figure, list(grid.flat[:count])
