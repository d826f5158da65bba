"""The tables of a run about indirect objects, from its records alone."""

from collections.abc import Sequence

import numpy as np

from abstraction.tasks.ioi import POSITIONS, VARIABLES
from experiments.harness import accuracy
from experiments.harness.accuracy import Measure
from experiments.harness.metrics import Metrics
from experiments.harness.records import Unit
from experiments.harness.tables import Part, Table, table
from experiments.ioi.heads import VARIABLE, WRITERS
from experiments.ioi.places import WAYS
from experiments.ioi.untrained import SEARCHED

EXPERIMENT = "ioi"
_EACH = {"sq. err.": "squared_error", "run s": "seconds", "compile": "seconds_compile"}
MEASURES = (
    Measure("test", "token", "token", "token"),
    Measure("test-sensitive", "t. sens.", "token, sensitive pairs", "token"),
    Measure("test", "position", "position", "position"),
    Measure("test-sensitive", "p. sens.", "position, sensitive pairs", "position"),
)
OWN_NOTES = (
    "Every variable is searched at its own token, where the first table has it; scores are over the whole vocabulary.",
    "sens.: on the pairs whose answer must change; low, high, rand., shuf.: of the token.",
    "sq. err.: of the logit difference of the base's two names, against the linear model (MIB).",
)


def tables(units: Sequence[Unit], details: bool) -> list[Part]:
    """Return what the table command prints."""
    metrics = Metrics(row for unit in units for row in unit.rows)
    return [
        *_network_lines(units),
        _places(metrics),
        accuracy.accuracy_table(f"{EXPERIMENT}: IIA on test pairs", metrics, MEASURES, lambda *_: None),
        _tokens(metrics),
        *_heads(units, metrics),
        *_untrained(metrics),
        *([_map(units)] if details else ()),
        *(accuracy.detail_tables(metrics, lambda *_: None) if details else ()),
        *OWN_NOTES,
        *accuracy.NOTES,
        *accuracy.ending(metrics, units, details),
    ]


def _network_lines(units: Sequence[Unit]) -> list[str]:
    known, linear = units[0].details["network"], units[0].details["linear"]
    answered = (
        f"answers {known['accuracy']:.4f} of {known['prompts']} prompts; kept: the {known['kept']:.4f} of pairs with "
        "both answered"
        if known["prompts"]
        else "pairs are kept whether they are answered or not"
    )
    return [
        f"network: {known['name']}, {known['depth']} blocks of width {known['width']}, {known['parameters']:,} "
        f"parameters; {known['names']} names, prompts of {known['tokens']} tokens; {answered}",
        f"logit difference: {linear['bias']:.2f} {linear['position']:+.2f} position {linear['token']:+.2f} token, "
        f"squared error {linear['error']:.2f}, on calibration pairs as they are and with full swaps",
    ]


def _places(metrics: Metrics) -> Table:
    rows = []
    for way in WAYS:
        row: dict[str, object] = {"found by": way}
        for variable in VARIABLES:
            found = [metrics.values(way, variable, "calibration", name) for name in ("block", "position")]
            row[variable] = ", ".join(
                dict.fromkeys(f"{int(block)} {POSITIONS[int(at)]}" for block, at in zip(*found, strict=True))
            )
        rows.append({**row, "run s": metrics.mean(way, "mean", "test", "seconds")})
    return table("where: block and token among all blocks and four tokens", rows, {"run s": ".1f"})


def _tokens(metrics: Metrics) -> Table:
    rows = []
    for method in metrics.tested():
        row: dict[str, object] = {"method": method}
        for variable in VARIABLES:
            blocks = np.unique(metrics.values(method, variable, "calibration", "block"))
            row[f"{variable} block"] = ",".join(f"{block:.0f}" for block in blocks)
            for name, metric in _EACH.items():
                row[f"{variable} {name}"] = metrics.mean(method, variable, "test", metric)
        rows += [row] if any(row[f"{variable} block"] for variable in VARIABLES) else []
    formats = {f"{v} {name}": ".2f" if name == "sq. err." else ".1f" for v in VARIABLES for name in _EACH}
    return table("blocks, errors of the logit difference, and seconds of each variable", rows, formats)


def _heads(units: Sequence[Unit], metrics: Metrics) -> list[Part]:
    rows, names = [], []
    for tap in WRITERS:
        found = {name: metrics.mean(f"plot-{tap}", VARIABLE, "fit", name) for name in ("agreement", "shared_5")}
        row: dict[str, object] = {"tap": tap, "agreement": found["agreement"], "first 5 shared": found["shared_5"]}
        row |= {"IIA of the K": metrics.mean(f"plot-{tap}", VARIABLE, "heads", "iia")}
        row |= {f"{way} s": metrics.mean(f"{way}-{tap}", "mean", "test", "seconds") for way in ("plot", "sweep")}
        rows.append(row)
        for way in ("transport", "exact"):
            first = ", ".join(f"{block}.{head}" for block, head in units[0].details[tap][way][:8])
            names.append(f"{tap} by {way}: {first}")
    title = f"what writes the {VARIABLE}: transport beside a swap of each alone"
    return [table(title, rows, {"plot s": ".1f", "sweep s": ".1f", "agreement": ".3f"}), *names]


def _untrained(metrics: Metrics) -> list[Part]:
    rows = []
    for method in SEARCHED:
        name = f"control-untrained-{method}"
        if (rate := metrics.rate(name, VARIABLE, "test")) is not None:
            row = {"method": method, "IIA": rate.mean, "low": rate.low, "high": rate.high}
            rows.append(row | {"chance": metrics.mean("control-identity", VARIABLE, "test", "chance")})
    return [table(f"the same in a network of random weights: {VARIABLE}", rows)] if rows else []


def _map(units: Sequence[Unit]) -> Table:
    values = np.mean([unit.arrays["map"] for unit in units], axis=0)
    blocks = [str(block) for block in range(values.shape[1])]
    rows = [
        {"variable": variable, "token": position} | dict(zip(blocks, values[v, :, p], strict=True))
        for v, variable in enumerate(VARIABLES)
        for p, position in enumerate(POSITIONS)
    ]
    title = "swap of the whole residual stream after a block: IIA on calibration pairs"
    return table(title, rows, dict.fromkeys(blocks, ".2f"), keys=2)
