"""Figures of certification, from its units alone; crosses are published numbers, for the published network only."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from abstraction.evaluation import binomial_interval
from experiments.certify.tables import SEQUENCES, Frame, Run
from experiments.harness.records import Unit
from experiments.harness.style import BLACK, GREY, band, legend_below, level, look, panels, save_figure

_PROTOCOLS = ("iid", "iid-peeking", "adaptive", "adaptive-peeking")
_CROSS = {"marker": "x", "linestyle": "", "markersize": 4.5, "markeredgewidth": 0.8}


def draw(units: Sequence[Unit], folder: Path) -> list[Path]:
    """Draw a figure for every study that was run and has one; return the files."""
    run, files = Run(units), []
    if "certification" in run.options["studies"]:
        files += save_figure(folder, "trials", trials_figure(run))
        for unit in units:
            if "trace/trials" in unit.arrays:
                files += save_figure(folder, f"sequences-{unit.name}", sequences_figure(run, unit))
    if "coverage" in run.options["studies"]:
        files += save_figure(folder, "coverage", coverage_figure(run))
    return files


def trials_figure(run: Run) -> Figure:
    """Draw trials to certify against units kept, a panel per p and fidelity, all on the same axes."""
    found = run.numbers[(run.numbers["study"] == "certification") & (run.numbers["kind"] == "iid-betting")]
    strengths, fidelities = list(dict.fromkeys(found["p"])), sorted(set(found["level"]))
    figure, places = panels(len(strengths), len(fidelities), height=1.9, sharex=True, sharey=True)
    for (p, fidelity), axes in zip(itertools.product(strengths, fidelities), places, strict=True):
        _trials(axes, found[(found["p"] == p) & (found["level"] == fidelity)], run.options["trials"])
        axes.set_title(f"p = {p:g}, fidelity {fidelity:g}")
    fewest = found["trials_q1"].where(found["verdict"] > 0.5, run.options["trials"]).min()
    places[0].set_ylim(0.6 * fewest, 70 * run.options["trials"])
    _name(places, len(fidelities), "units kept", "trials to certify\n(medians, quartiles)")
    legend_below(figure, places, columns=7)
    return figure


def _trials(axes: Axes, found: Frame, most: int) -> None:
    """Draw trials where a fidelity was certified, and above them what was not, a row per method."""
    methods, keeps = list(dict.fromkeys(found["method"])), sorted(set(found["keep"]))
    undecided, refuted = (most * np.geomspace(*ends, len(methods)) for ends in ((1.8, 8.0), (13.0, 58.0)))
    axes.axhspan(1.3 * most, 10 * most, color=GREY, alpha=0.1, linewidth=0)
    axes.axhspan(10 * most, 70 * most, color=GREY, alpha=0.25, linewidth=0)
    for place, method in enumerate(methods):
        part, style = found[found["method"] == method].sort_values("keep"), look(method)
        beside, verdict = part["keep"] * 2 ** (0.04 * (place - len(methods) / 2 + 0.5)), part["verdict"].to_numpy()
        first, median, third = (part[name].where(verdict > 0.5) for name in ("trials_q1", "trials", "trials_q3"))
        axes.plot(beside, median, **style.line, label=method)
        axes.vlines(beside, first, third, color=style.color, linewidth=0.8)
        for row, there in ((undecided, abs(verdict) <= 0.5), (refuted, verdict < -0.5)):
            hollow = {"markersize": 2.5, "markerfacecolor": "white", "markeredgewidth": 0.7, "linestyle": ""}
            axes.plot(part["keep"][there], np.full(there.sum(), row[place]), **(style.line | hollow))
        axes.plot(beside, part["trials*"].where(np.isfinite(part["trials*"])), **_CROSS, color=style.color)
    axes.plot([], [], **_CROSS, color=BLACK, label="published" if found["trials*"].notna().any() else None)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(keeps, [str(keep) for keep in keeps], fontsize=6, rotation=45)
    numbers = {f"{10**power:,}": 10**power for power in range(1, 9) if 10**power <= most}
    numbers |= {name: np.sqrt(row[0] * row[-1]) for name, row in (("undecided", undecided), ("refuted", refuted))}
    axes.set_yticks(list(numbers.values()), list(numbers))
    axes.minorticks_off()


def sequences_figure(run: Run, unit: Unit) -> Figure:
    """Draw the confidence sequences of one cell and seed, a panel per method, and the fidelities to certify."""
    methods, times = run.options["methods"], unit.arrays["trace/trials"].tolist()
    split, columns = next(name for name in unit.arrays if name.endswith("/betting")).split("/")[2], min(3, len(methods))
    figure, places = panels(-(-len(methods) // 3), columns, height=1.7, count=len(methods), sharex=True, sharey=True)
    # On a scale of 1 - F, 1 is infinitely far.
    highest = 1 - min(5e-4, (1 - max(run.options["fidelities"])) / 2)
    scale = (lambda f: -np.log10(np.maximum(1 - f, 1e-7))), (lambda y: 1 - 10.0**-y)
    for method, axes in zip(methods, places, strict=True):
        for sequence in ("hoeffding", "betting"):
            ends, style = np.minimum(unit.arrays[f"trace/{method}/{split}/{sequence}"], 1 - 1e-6), look(sequence)
            band(axes, times, (ends[0], ends[1]), sequence)
            for end in ends:
                axes.plot(times, end, style.linestyle, color=style.color, label=SEQUENCES[sequence])
        for fidelity in run.options["fidelities"]:
            level(axes, fidelity, "fidelity to certify")
        axes.set_title(f"{method}, {split.replace('keep', '').replace('-p', ' units, p = ')}")
        axes.set_xscale("log")
        axes.set_yscale("function", functions=scale)
        ticks = sorted({0, 0.5, *run.options["fidelities"], 0.999})
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_ylim(0, highest)
    _name(places, columns, "trials", "fidelity F = 1 - R\n(log scale of R)")
    legend_below(figure, places)
    return figure


def coverage_figure(run: Run) -> Figure:
    """Draw how many streams hold the risk, with 95% intervals, a panel per level, all on the same scale."""
    found, streams = run.of("coverage"), run.options["coverage"]["repetitions"] * run.seeds
    levels = list(dict.fromkeys(found["level"][found["level"] > 0]))
    figure, places = panels(1, len(levels), height=2.1, sharex=True, sharey=True)
    for delta, axes in zip(levels, places, strict=True):
        for shift, sequence in ((-0.22, "hoeffding"), (0, "betting"), (0.22, "betting-two-sided")):
            part = found[found["level"] == delta].set_index("kind").loc[[f"{name}-{sequence}" for name in _PROTOCOLS]]
            rows, style, shares = np.arange(len(part)) + shift, look(sequence), part["coverage"].to_numpy()
            axes.hlines(rows, *binomial_interval(shares * streams, streams), color=style.color, linewidth=0.8)
            axes.plot(shares, rows, style.marker, color=style.color, label=SEQUENCES[sequence])
            known = "published" if shift > 0 and part["coverage*"].notna().any() else None
            axes.plot(part["coverage*"], rows, **_CROSS, color=BLACK, label=known)
        level(axes, 1 - delta, "level asked for", vertical=True)
        axes.set_title(f"level {1 - delta:g}")
        axes.set_yticks(range(len(_PROTOCOLS)), [name.replace("-", ",\n") for name in _PROTOCOLS])
        axes.locator_params(axis="x", nbins=4)
    places[0].invert_yaxis()
    _name(places, len(levels), f"share of {streams} streams that hold\nthe risk, with 95% intervals", "sampling")
    legend_below(figure, places)
    return figure


def _name(places: Sequence[Axes], columns: int, across: str, up: str) -> None:
    """Name the axes of the lowest panels and of those on the left."""
    for axes in places[-columns:]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(across)
    for axes in places[::columns]:
        axes.set_ylabel(up)
