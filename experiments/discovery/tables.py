"""The tables of a discovery run, from its units alone: one per task, a row per width and reduction."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.discovery.options import DENSE, HARD, SURVIVES
from experiments.harness.accuracy import beside_controls
from experiments.harness.metrics import Metrics
from experiments.harness.records import Unit
from experiments.harness.tables import Part, Table, table

FINDERS = ("plot", "das", "transferred")
Sweep = Sequence[tuple[int, str]]
"""Widths and reductions, widest first."""
TITLES = {
    "heq": "hierarchical equality: WX and YZ in reduced MLPs (units kept in each hidden layer)",
    "addition": "binary addition: the carries in reduced GRUs (units of the state kept)",
    "mcqa": "multiple choice: answer pointer and answer in reduced decoders (units kept in each MLP)",
}
NOTES = (
    "plot, das: searched afresh in the reduced network, das with rotations (heq, mcqa) or invertible maps (addition).",
    "transferred: the dense network's PLOT handle, cut to the units kept, and the share of its weight that is left; of "
    "mcqa, whose stream keeps its width, its DAS handle.",
    "sens.: the output must change; spec.: it must not, although another variable changes; all: mean of sens. and inv.",
    "Doing nothing scores at most .5 (mcqa: .25, where answer has no invariant pairs).",
    "rand., shuf.: same weights on random directions, and with another pair's source, on the first accuracy's pairs.",
    "fidelity: both networks give the same answer when kept units are interchanged with p = .1.",
    f"verdict: in how many seeds DAS has IIA >= {SURVIVES} for every variable, on pairs that must change and on those "
    "that must not; weakest: the least of these.",
    "low, high: 95%, the wider of binomial over pairs or trials and Student's t over seeds; worst: the lowest seed.",
)


def tables(units: Sequence[Unit], details: bool) -> list[Part]:
    """Make what a run prints; a table per variable, too, with details."""
    metrics = metrics_of(units)
    shown: list[Part] = []
    for task in TITLES:
        if sweep := places(metrics, task):
            shown.append(network_table(metrics, task, sweep))
            for variable in variables(metrics, task) if details else ["mean"]:
                shown += [finder_table(metrics, task, finder, variable) for finder in FINDERS]
            shown.append(verdict(metrics, task, sweep))
            shown += below_controls(metrics, task, sweep)
    return [*shown, *NOTES]


def metrics_of(units: Sequence[Unit]) -> Metrics:
    """Look a run's rows up; fidelities are accuracies over trials, and get their intervals as such."""
    names = {"fidelity": "iia", "trials": "pairs"}
    return Metrics(row._replace(metric=names.get(row.metric, row.metric)) for unit in units for row in unit.rows)


def places(metrics: Metrics, task: str) -> list[tuple[int, str]]:
    """Return every width and reduction of a task, widest first, reductions in the order they were run."""
    start = f"{task}-keep"
    found = [
        (int(split.removeprefix(start)), method)
        for method, variable, split, metric in metrics.measured()
        if (variable, metric) == ("network", "survives") and split.startswith(start)
    ]
    return sorted(found, key=lambda place: -place[0])


def variables(metrics: Metrics, task: str) -> list[str]:
    """Name what a task is scored by, the mean first."""
    width, method = places(metrics, task)[0]
    split = f"{task}-keep{width}-sensitive"
    names = [name for name in metrics.variables if name != "mean"]
    return ["mean", *(name for name in names if metrics.rate(f"{method}/das", name, split))]


def network_table(metrics: Metrics, task: str, sweep: Sweep) -> Table:
    """Show what every network computes: right answers, agreement with the dense one, and the verdict."""
    rows = []
    for width, method in sweep:
        split = f"{task}-keep{width}"
        survived, rate = metrics.values(method, "network", split, "survives"), metrics.rate(method, "network", split)
        row: dict[str, Any] = {"kept": str(width), "reduced by": method}
        row["accuracy"] = metrics.mean(method, "network", split, "accuracy")
        row["worst cell"] = metrics.mean(method, "network", split, "worst_cell")
        ends = (rate.mean, rate.low, rate.high) if rate else (np.nan,) * 3
        row |= dict(zip(("fidelity", "low", "high"), ends, strict=True))
        weakest = float(metrics.values(method, "network", split, "weakest").min())
        rows.append({**row, "weakest": weakest, "verdict": f"{survived.sum():.0f} of {len(survived)}"})
    title = f"{TITLES[task]}, {len(metrics.seeds)} seed{'s' if len(metrics.seeds) > 1 else ''}"
    return table(title, rows, {"low": ".3f", "high": ".3f"}, keys=2).without_empty_columns()


def finder_table(metrics: Metrics, task: str, finder: str, variable: str) -> Table:
    """Show the accuracy of one kind of handle in every network, beside its controls."""
    (first, title), others = splits(task)
    rows = []
    for width, method in places(metrics, task):
        label, place = f"{method}/{finder}", f"{task}-keep{width}"
        if rate := metrics.rate(label, variable, place + first):
            row: dict[str, Any] = {"kept": str(width), "reduced by": method, title: rate.mean, "low": rate.low}
            row |= {"high": rate.high, "worst": rate.worst if len(metrics.seeds) > 1 else np.nan}
            row |= {name: metrics.mean(label, variable, place + split, "iia") for split, name in others}
            for kind, name in (("random", "rand."), ("shuffled", "shuf.")):
                row[name] = metrics.mean(f"control-{kind}-{label}", variable, place + first, "iia")
            rows.append({**row, "weight left": metrics.mean(label, variable, place, "kept_share")})
    what = "mean of the variables" if variable == "mean" else f"variable {variable}"
    short = dict.fromkeys(("low", "high", "worst", "inv.", "spec.", "sens.", "rand.", "shuf.", "weight left"), ".3f")
    return table(
        f"{task}, {finder}: IIA on test pairs, {what}", rows, {**short, title: ".4f"}, 2
    ).without_empty_columns()


def below_controls(metrics: Metrics, task: str, sweep: Sweep) -> list[str]:
    """Name the searches whose accuracy is not above its controls, in which networks and by which of them."""
    split = splits(task)[0][0]
    return [
        f"{line}, {width} units kept"
        for width, method in sweep
        for line in beside_controls(metrics, [f"{method}/{finder}" for finder in FINDERS], f"{task}-keep{width}{split}")
    ]


def verdict(metrics: Metrics, task: str, sweep: Sweep) -> str:
    """Say how small each reduction can go before the variables break in some seed."""
    parts = []
    for method in dict.fromkeys(name for _, name in sweep):
        if method == DENSE:
            continue
        smallest = None
        for width in [w for w, name in sweep if name in (DENSE, method)]:
            name = method if (width, method) in sweep else DENSE
            if not metrics.values(name, "network", f"{task}-keep{width}", "survives").all():
                break
            smallest = width
        parts.append(f"{method} {'none' if smallest is None else smallest}")
    kinds = " and ".join(HARD[task])
    return f"{task}: smallest width down to which the variables survive in every seed ({kinds}): {', '.join(parts)}"


def splits(task: str) -> tuple[tuple[str, str], list[tuple[str, str]]]:
    """Return the split that is the score, and the others, each with its title."""
    if task == "heq":
        return ("-sensitive", "sens."), [("-invariant", "inv."), ("-specific", "spec.")]
    return ("", "all"), [("-sensitive", "sens."), ("-invariant", "inv.")]
