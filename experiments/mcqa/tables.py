"""The tables of an MCQA run, from its records alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from abstraction.tasks.mcqa import VARIABLES
from abstraction.tasks.symbols import SCORERS
from experiments.harness.layouts import is_control_of_a_method
from experiments.harness.metrics import Metrics
from experiments.harness.paper import reference
from experiments.harness.records import Unit
from experiments.harness.accuracy import beside_controls, number, seconds, settings_lines, trouble
from experiments.mcqa.options import POSITIONS

EXPERIMENT = "mcqa"
NOTES = (
    "IIA: mean over variables, of sensitive (the letter must change) and invariant pairs (it must not); every pair of",
    "`answer` is sensitive. block: whose output holds the handle; k: weight swapped, directions where each weighs 1.",
    "paper: on Gemma-2-2B, whatever network was run here. random, shuffled: same weights on random directions, and",
    "with another pair's source. -v1, -v4: the paper's variants. run s counts the stages a method builds on.",
)


def renderables(units: Sequence[Unit], *, details: bool) -> list[Any]:
    """Return what the table command prints."""
    metrics = Metrics(row for unit in units for row in unit.rows)
    parts: list[Any] = [_network(units, metrics), _results(units, metrics), *NOTES, _sweep(units)]
    if details:
        parts.append(_scorers(metrics))
    below = beside_controls(metrics, shown_methods(metrics))
    return [*parts, *below, *trouble(units), *(settings_lines(units) if details else ())]


def shown_methods(metrics: Metrics) -> list[str]:
    """Return the methods with rows of their own."""
    return [m for m in metrics.methods if metrics.rate(m, "mean", "test") and not is_control_of_a_method(m)]


def _network(units: Sequence[Unit], metrics: Metrics) -> str:
    known, seeds = units[0].details["network"], len(units)
    return (
        f"network: {known['name']}, {known['depth']} blocks of width {known['width']}, {known['parameters']:,} "
        f"parameters; both prompts of {metrics.mean('backbone', 'output', 'validation', 'accuracy'):.4f} of the pairs "
        f"answered, only these are kept; prompts of {known['tokens']} tokens; {seeds} seed{'s' if seeds > 1 else ''}"
    )


def _results(units: Sequence[Unit], metrics: Metrics) -> Table:
    table = Table(title="mcqa: interchange-intervention accuracy on test pairs", title_justify="left")
    places = ("pointer", "inv.", "block", "k", "answer", "block", "k")
    for name in ("method", "IIA", "95% interval", "paper", *places):
        table.add_column(name, justify="left" if name in ("method", "95% interval") else "right", no_wrap=True)
    for name in ("random", "shuffled", "run s", "comp. s"):
        table.add_column(name, justify="right", no_wrap=True)
    for method in shown_methods(metrics):
        rate, known = metrics.rate(method, "mean", "test"), reference(EXPERIMENT, method, "mean", "test")
        cells = [method, number(rate), f"{rate.low:.4f} {rate.high:.4f}" if rate else ""]
        cells.append(f"{known.value:.3f}" if known else "")
        for variable in VARIABLES:
            cells.append(number(metrics.rate(method, variable, "test-sensitive")))
            if variable == VARIABLES[0]:
                cells.append(number(metrics.rate(method, variable, "test-invariant"), digits=3))
            cells += _places(units, method, VARIABLES.index(variable))
        controls = [metrics.rate(f"control-{kind}-{method}", "mean", "test") for kind in ("random", "shuffled")]
        times = (metrics.mean(method, "mean", "test", name) for name in ("seconds", "seconds_compile"))
        table.add_row(*cells, *(number(control, digits=3) for control in controls), *map(seconds, times))
    return table


def _places(units: Sequence[Unit], method: str, variable: int) -> list[str]:
    """Return the blocks a handle acts on, and how many directions it swaps."""
    masses = [unit.arrays[f"{method}/mass"][variable].sum(axis=-1) for unit in units if f"{method}/mass" in unit.arrays]
    if not masses:
        return ["", ""]
    blocks = sorted({int(mass.argmax()) for mass in masses})
    return [",".join(map(str, blocks)), f"{np.mean([mass.max() for mass in masses]):.3g}"]


def _sweep(units: Sequence[Unit]) -> Table:
    sweep = np.mean([unit.arrays["sweep"] for unit in units], axis=0)
    depth = sweep.shape[-1]
    table = Table(title="swap of the whole residual stream after a block, IIA on test pairs", title_justify="left")
    table.add_column("token")
    table.add_column("variable")
    for block in range(depth):
        table.add_column(str(block), justify="right")
    for position, rows in zip(POSITIONS, sweep, strict=True):
        for variable, row in zip(VARIABLES, rows, strict=True):
            table.add_row(position, variable, *(f"{value:.3f}" for value in row))
    return table


def _scorers(metrics: Metrics) -> Table:
    """Compare scorers over all pairs alike; only what --scorer names was used to select."""
    table = Table(title="by scorer, all test pairs pooled, mean of the variables", title_justify="left")
    for name in ("method", *SCORERS):
        table.add_column(name, justify="left" if name == "method" else "right")
    for method in shown_methods(metrics):
        values = [metrics.mean(method, "mean", "test", f"pooled_{name}") for name in SCORERS]
        if not np.isnan(values).all():
            table.add_row(method, *(f"{value:.4f}" for value in values))
    return table
