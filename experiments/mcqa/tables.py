"""The tables of an MCQA run, from its records alone."""

from collections.abc import Sequence

import numpy as np

from abstraction.tasks.mcqa import VARIABLES
from abstraction.tasks.symbols import SCORERS
from experiments.harness import accuracy
from experiments.harness.accuracy import Known, Measure
from experiments.harness.metrics import Metrics
from experiments.harness.paper import reference
from experiments.harness.records import Unit
from experiments.harness.tables import Part, Table, table
from experiments.mcqa.options import POSITIONS

EXPERIMENT = "mcqa"
POINTER, ANSWER = VARIABLES
MEASURES = (
    Measure("test", "IIA", "mean of the variables"),
    Measure("test-sensitive", "ptr.", "pointer, sensitive pairs", POINTER),
    Measure("test-invariant", "inv.", "pointer, invariant pairs", POINTER),
    Measure("test", "answer", "answer", ANSWER),
)
OWN_NOTES = (
    "ptr.: answer_pointer where the letter must change; inv.: where it must not. Every pair of answer is sensitive.",
    "block: whose output holds the handle; k: weight swapped, directions where each weighs 1.",
)
FEW = 8
"""Blocks up to which the sweep is shown whole."""


def tables(units: Sequence[Unit], details: bool) -> list[Part]:
    """Return what the table command prints."""
    metrics, known = Metrics(row for unit in units for row in unit.rows), papers_numbers(units)
    parts: list[Part] = [
        _network_line(units, metrics),
        accuracy.accuracy_table(f"{EXPERIMENT}: IIA on test pairs", metrics, MEASURES, lambda *_: None),
        _places(units, metrics),
        *_sweep(units, details),
        *([_scorers(metrics)] if details else ()),
        *(accuracy.detail_tables(metrics, known) if details else accuracy.paper_tables(metrics, known)),
    ]
    notes = [*OWN_NOTES, *accuracy.NOTES, accuracy.paper_note(EXPERIMENT, units[0].details["network"]["name"])]
    return [*parts, *notes, *accuracy.ending(metrics, units, details)]


def papers_numbers(units: Sequence[Unit]) -> Known:
    """Look up the paper's numbers on the network that was run."""
    network = units[0].details["network"]["name"]
    return lambda method, variable, split: reference(EXPERIMENT, method, variable, split, network)


def _network_line(units: Sequence[Unit], metrics: Metrics) -> str:
    known, answered = units[0].details["network"], metrics.mean("backbone", "output", "validation", "accuracy")
    return (
        f"network: {known['name']}, {known['depth']} blocks of width {known['width']}, {known['parameters']:,} "
        f"parameters; prompts of {known['tokens']} tokens; kept: the {answered:.4f} of pairs with both prompts answered"
    )


def _places(units: Sequence[Unit], metrics: Metrics) -> Table:
    """Show the blocks a handle acts on, and how many directions it swaps."""
    rows = []
    for method in metrics.tested():
        found = [unit.arrays[f"{method}/mass"].sum(axis=-1) for unit in units if f"{method}/mass" in unit.arrays]
        row: dict[str, object] = {"method": method}
        for name, masses in zip(("pointer", "answer"), np.swapaxes(found, 0, 1) if found else (), strict=False):
            row[f"{name} block"] = ",".join(map(str, np.unique(masses.argmax(axis=1))))
            row[f"{name} k"] = masses.max(axis=1).mean()
        rows += [row] if found else []
    return table(
        "where: the block of each handle, and how much it swaps", rows, {"pointer k": ".1f", "answer k": ".1f"}
    )


def _sweep(units: Sequence[Unit], details: bool) -> list[Part]:
    """Show where a full swap works: in every block where they are few, otherwise where it is best."""
    sweep = np.mean([unit.arrays["sweep"] for unit in units], axis=0)
    blocks, peaks, grid = [str(block) for block in range(sweep.shape[-1])], [], []
    for position, rows in zip(POSITIONS, sweep, strict=True):
        for variable, row in zip(VARIABLES, rows, strict=True):
            names = {"token": position, "variable": variable}
            above = np.flatnonzero(row > (row.min() + row.max()) / 2)
            peak = (
                {"peak block": str(row.argmax()), "above mid-range": f"{above[0]} to {above[-1]}"} if len(above) else {}
            )
            peaks.append(names | {"lowest IIA": row.min(), "highest IIA": row.max()} | peak)
            grid.append(names | dict(zip(blocks, row, strict=True)))
    title = "swap of the whole residual stream after a block: IIA on test pairs"
    whole, few = table(title, grid, dict.fromkeys(blocks, ".3f"), keys=2), len(blocks) <= FEW
    return [*([] if few else [table(title, peaks, keys=2)]), *([whole] if few or details else [])]


def _scorers(metrics: Metrics) -> Table:
    """Compare scorers over all pairs alike; only what --scorer names was used to select."""
    rows = [
        {"method": m} | {name: metrics.mean(m, "mean", "test", f"pooled_{name}") for name in SCORERS}
        for m in metrics.tested()
        if len(metrics.values(m, "mean", "test", f"pooled_{SCORERS[0]}"))
    ]
    return table("by scorer: all test pairs pooled, mean of the variables", rows)
