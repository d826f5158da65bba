"""`python -m benchmarks forecast`: what PLOT and DAS ask of 2, 9 and 70 billion parameters, and how long that takes.

    seconds  >=  operations / (devices x peak)

Operations are counted from the programs (`abstraction.explaining`), nothing is compiled or run. The forecast divides by
a share of the peak, SHARE, which is an assumption and stands beside it: large products of matrices reach more, the few
tokens of an edit less. Multiple choice as `mcqa` runs it: 200 pairs of each bank, 100 tokens, one token patched.
"""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
from tqdm import tqdm

from abstraction.explaining import Case, Searches, count_operations
from abstraction.models.decoder_config import DecoderConfig
from abstraction.planning import TARGETS
from benchmarks.drivers import GEMMA_2B, GEMMA_9B, language_model
from benchmarks.records import write_csv

FORECAST = "forecast"
TABLE = Path("forecast.csv")
SHARE = 0.3
"""Of a device's peak in bfloat16 that is assumed to be reached."""
LLAMA_70B = DecoderConfig(
    vocabulary=128_256, width=8192, depth=80, heads=64, kv_heads=8, head_size=128, hidden=28_672, dtype="bfloat16"
)
MODELS = {"Gemma-2-2B": GEMMA_2B, "Gemma-2-9B": GEMMA_9B, "Llama-3-70B": LLAMA_70B}
TOKENS, PAIRS, EPOCHS, VARIABLES = 100, 200, 12, 2
RANKS, RESTARTS = 11, 2
DEVICES = (("h100", 1), ("h100", 8), ("v5e", 8), ("v5e", 64), ("v5p", 8))


class Row(NamedTuple):
    """One method on one model: operations, and for each kind of device the least and the expected minutes."""

    model: str
    method: str
    runs: int
    operations: float
    weights_gb: float
    kept_gb: float
    target: str
    devices: int
    least_minutes: float
    minutes: float
    holds: str


def forecast(folder: Path) -> None:
    """Count every method on every model, and write the table."""
    rows: list[Row] = []
    for name, config in (bar := tqdm(MODELS.items(), unit="model", disable=None, leave=False)):
        bar.set_description(name)
        rows += _of_model(name, config)
    path = folder / TABLE
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    write_csv(path, Row._fields, cells)
    path.with_suffix(".md").write_text("\n".join(_page(path)), encoding="utf-8")


def _of_model(name: str, config: DecoderConfig) -> Iterable[Row]:
    searches = RANKS * RESTARTS * VARIABLES
    one = Searches("PLOT-DAS", searches, config.width, epochs=EPOCHS)
    every = Searches("Full DAS", searches * config.depth, config.width, config.depth, epochs=EPOCHS)
    case = language_model(name, config, TOKENS, PAIRS, (one, every))
    shapes = case.network.params
    weights = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    kept = 3 * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(case.runs()))
    for method, (runs, operations) in _methods(case).items():
        for target, devices in DEVICES:
            device = TARGETS[target]
            least = operations / (devices * device.flops) / 60
            holds = "yes" if weights + kept <= 0.75 * devices * device.memory else "no"
            yield Row(
                name, method, runs, operations, weights / 1e9, kept / 1e9, target, devices, least, least / SHARE, holds
            )  # fmt: skip


def _methods(case: Case) -> dict[str, tuple[int, float]]:
    """Return runs and operations of each method: recordings and stages before it included."""
    parts = {}
    for driver in case.drivers():
        name = driver.size.split(":")[0] if driver.name == "train_candidates" else driver.name
        known = parts.get(name, (0, 0.0))
        found = driver.runs, count_operations(driver.at(1)) * driver.calls
        parts[name] = known[0] + found[0], known[1] + found[1]
    plot = ("record", "site_signatures", "sweep", "tally_handles")
    chosen = {"PLOT": plot, "PLOT-DAS": (*plot, "PLOT-DAS"), "Full DAS": ("record", "Full DAS")}
    return {
        method: (sum(parts[name][0] for name in names), sum(parts[name][1] for name in names))
        for method, names in chosen.items()
    }


def _page(path: Path) -> Iterable[str]:
    """Write the rows as a table: a line for each model and method, a column for each kind of device."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    yield "# Forecast\n"
    yield f"Minutes at {SHARE:.0%} of the vendors' peak in bfloat16, an assumption; in brackets those at the peak,"
    yield "which no run is below. A dash: weights and recordings are more than three quarters of the memory. Operations"
    yield "are counted from the programs by `python -m benchmarks forecast`; compilation is not in it.\n"
    columns = [f"{devices} x {TARGETS[target].name}" for target, devices in DEVICES]
    yield f"| model | method | runs | operations | weights, GB | recordings, GB | {' | '.join(columns)} |"
    yield "|---" * (6 + len(columns)) + "|"
    for start in range(0, len(rows), len(DEVICES)):
        group = rows[start : start + len(DEVICES)]
        first = group[0]
        cells = [
            f"{float(row['minutes']):.2g} ({float(row['least_minutes']):.2g})" if row["holds"] == "yes" else "-"
            for row in group
        ]
        about = (first["model"], first["method"], f"{int(first['runs']):,}", first["operations"])
        yield f"| {' | '.join((*about, first['weights_gb'], first['kept_gb'], *cells))} |"
    yield ""
