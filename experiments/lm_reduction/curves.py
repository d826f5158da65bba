"""What the page of a language model's reduction draws, from its records alone."""

from collections.abc import Sequence

import numpy as np

from experiments.harness.curves import Curves, KeptMap, Reduced, seeds_point
from experiments.harness.metrics import Metrics
from experiments.harness.records import Unit
from experiments.lm_reduction.options import OURS
from experiments.lm_reduction.tables import calibrations, keeps, methods, variables

MEASURES = {
    "loss_python": ("log-perplexity lost on docstrings / nats", True),
    "loss_own": ("log-perplexity lost on its own text / nats", True),
    "kl_python": ("KL from the dense network on docstrings / nats", True),
    "kl_own": ("KL from the dense network on its own text / nats", True),
    "agreement_python": ("same next token as the dense network, docstrings", False),
    "accuracy": ("indirect objects named", False),
    "followed": ("names followed in full swaps", False),
}


def reduced(units: Sequence[Unit]) -> Reduced:
    """Return a line per method, for each measure of each part, spread and calibration text; and what blocks keep."""
    metrics = Metrics(row for unit in units for row in unit.rows)
    found = [
        _curves(metrics, variable, text, name)
        for text in calibrations(metrics)
        for variable in variables(metrics)
        for name in MEASURES
    ]
    return Reduced([each for each in found if any(each.lines.values())], _kept(units[0], metrics))


def _curves(metrics: Metrics, variable: str, text: str, name: str) -> Curves:
    (what, lower), first = MEASURES[name], text == calibrations(metrics)[0]
    part, _, spread = variable.partition("-")
    units, lines = "heads" if part == "heads" else "MLP units", {}
    words = f"one budget of {units} over all blocks" if spread == "global" else f"as many {units} in every block"
    for method in methods(metrics, variable, text):
        points = [
            seeds_point(metrics, (method, variable, f"{text}-keep{share:g}"), name, share, words)
            for share in keeps(metrics, text)
        ]
        lines[method] = [point for point in points if point is not None]
    dense = {"accuracy": "accuracy", "followed": "followed"}.get(name)
    level = metrics.mean("dense", "network", "ioi", dense) if dense else 0.0 if lower else 1.0
    group = f"{variable}, calibrated on {text}"
    return Curves(group, what, lines, OURS, lower=lower, dense=level, spoken=first and name == "loss_python")


def _kept(unit: Unit, metrics: Metrics) -> list[KeptMap]:
    """Return a map per part and budget in which blocks keep different counts."""
    maps, text = [], calibrations(metrics)[0]
    for variable in variables(metrics):
        named = {method: f"{method}/{variable}" for method in methods(metrics, variable, text)}
        for share in keeps(metrics, text):
            arrays = {m: unit.arrays.get(f"{start}/{text}-keep{share:g}/kept") for m, start in named.items()}
            counts = {method: array for method, array in arrays.items() if array is not None}
            if not any(len(np.unique(array)) > 1 for array in counts.values()):
                continue
            total = max(int(array.sum()) for array in counts.values())
            blocks = len(next(iter(counts.values())))
            # A budget over all blocks is their share of all units, rounded.
            whole = max(round(total / share / blocks), *(int(array.max()) for array in counts.values()))
            title = f"{variable}, {share:.0%} kept: kept in every block ({unit.name})"
            maps.append(KeptMap(title, list(counts), np.stack(list(counts.values())), whole))
    return maps
