"""The tables of a localization run, from its unit files alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.harness.metrics import IDENTITY, Metrics
from experiments.harness.paper import Reference, reference, references
from experiments.harness.records import Unit
from experiments.harness.tables import Part, Table, table

HONESTY = {"shuffled-labels": "shuffled labels", "earlier": "a step earlier", "untrained": "untrained network"}
"""Controls of a search: it runs again where there is nothing to find."""
TIMES = {"": "full grid", "_epsilon": "selected eps", "_selected": "selected run", "_compile": "compile"}
"""What is counted, by how the metric `seconds` ends."""
WARNING = "\nWARNING: a backbone does not compute the causal model, which caps every IIA of its seed"
NOTES = (
    "IIA: interchange-intervention accuracy; low, high: 95%, the wider of binomial and Student t; worst: lowest seed.",
    "rand., shuf.: the same weights on random directions, and with another pair's source.",
    "run s: the full grid with the stages it builds on, without compilation. -paper, -v1, -v4: the paper's variants.",
)
Known = Callable[[str, str, str], Reference | None]
"""The paper's number of a method, variable and split, if there is one on this network."""


class Measure(NamedTuple):
    """An accuracy: its split of pairs, the header of its column, the title of its panel, and its variable."""

    split: str
    header: str
    title: str
    variable: str = "mean"


class Layout(NamedTuple):
    """What a localization experiment measures (the first accuracy is the score), and how it is said.

    `backbone` describes the networks, `network` names them as `paper.csv` would, `depth` is what a layer is called.
    """

    experiment: str
    measures: tuple[Measure, ...]
    backbone: Callable[[Metrics], str]
    network: Callable[[Sequence[Unit]], str]
    notes: tuple[str, ...]
    depth: str = "layer"


def tables(layout: Layout, units: Sequence[Unit], details: bool) -> list[Part]:
    """Return what the table command prints of a localization run."""
    metrics, network = Metrics(row for unit in units for row in unit.rows), layout.network(units)
    known: Known = lambda method, variable, split: reference(layout.experiment, method, variable, split, network)
    parts: list[Part] = [layout.backbone(metrics)]
    for variable in ["mean", *(v for v in metrics.variables if v != "mean")][: None if details else 1]:
        what = "mean of the variables" if variable == "mean" else f"variable {variable}"
        measures = [measure._replace(variable=variable) for measure in layout.measures]
        parts.append(accuracy_table(f"{layout.experiment}: IIA on test pairs, {what}", metrics, measures, known))
    parts += [*_honesty_tables(metrics), *(detail_tables(metrics, known) if details else ())]
    parts += [*layout.notes, *NOTES, paper_note(layout.experiment, network)]
    return [*parts, *ending(metrics, units, details)]


def accuracy_table(title: str, metrics: Metrics, measures: Sequence[Measure], known: Known) -> Table:
    """Show the score of every method with its interval, worst seed and controls, and its other accuracies."""
    (split, header, _, variable), *others = measures
    seeds, rows = len(metrics.seeds), []
    for method in metrics.tested():
        if rate := metrics.rate(method, variable, split):
            number = known(method, variable, split)
            row = {"method": method, header: rate.mean, "low": rate.low, "high": rate.high}
            row |= {"worst": rate.worst if seeds > 1 else np.nan, "paper": number.value if number else np.nan}
            row |= {each.header: metrics.mean(method, each.variable, each.split, "iia") for each in others}
            for kind, name in (("random", "rand."), ("shuffled", "shuf.")):
                row[name] = metrics.mean(f"control-{kind}-{method}", variable, split, "iia")
            rows.append({**row, "run s": metrics.mean(method, "mean", "test", "seconds")})
    short = dict.fromkeys(["low", "high", "worst", *(each.header for each in others), "rand.", "shuf."], ".3f")
    heading = f"{title}, {seeds} seed{'s' if seeds > 1 else ''}"
    return table(heading, rows, {"run s": ".1f", **short}).without_empty_columns()


def paper_note(experiment: str, network: str) -> str:
    """Say which network the paper's numbers are of."""
    networks = list(dict.fromkeys(name[-1] for name in references() if name[0] == experiment))
    if network in networks:
        return f"paper: on {network}."
    return f"The paper's numbers are not shown: they are of {' and of '.join(networks)}."


def detail_tables(metrics: Metrics, known: Known) -> list[Part]:
    """Show the paper's numbers with where they are from, and times by what is counted."""
    rows = [
        {"method": m} | {of: metrics.mean(m, "mean", "test", f"seconds{end}") for end, of in TIMES.items()}
        for m in metrics.tested()
        if len(metrics.values(m, "mean", "test", "seconds"))
    ]
    times = table("seconds per seed by what is counted", rows, dict.fromkeys(TIMES.values(), ".2f"))
    return [*paper_tables(metrics, known), *([times] if rows else [])]


def paper_tables(metrics: Metrics, known: Known) -> list[Part]:
    """Show every number of the paper beside ours."""
    rows = [
        {"method": method, "variable": variable, "split": split}
        | {"ours": metrics.mean(method, variable, split, "iia"), "paper": number.value, "source": number.source}
        for method, variable, split, metric in metrics.measured()
        if metric == "iia" and (number := known(method, variable, split))
    ]
    return [table("beside the paper's numbers", rows, keys=3)] if rows else []


def _honesty_tables(metrics: Metrics) -> list[Part]:
    """Compare searches with the same searches where there is nothing to find."""
    columns = {"at the site": "{}"} | {name: f"control-{kind}-{{}}" for kind, name in HONESTY.items()}
    rows = [
        {"method": m} | {name: metrics.mean(row.format(m), "mean", "test", "iia") for name, row in columns.items()}
        for m in metrics.tested()
        if any(f"control-{kind}-{m}" in metrics.methods for kind in HONESTY)
    ]
    title = "the same search where there is nothing to find: IIA on test pairs"
    return [table(title, rows)] if rows else []


def ending(metrics: Metrics, units: Sequence[Unit], details: bool) -> list[str]:
    """Say what is no result and what did not work, and with the details every choice."""
    notes = [*beside_controls(metrics, metrics.tested()), *trouble(units)]
    return [*notes, *(settings_lines(units) if details else ())]


def beside_controls(metrics: Metrics, methods: Sequence[str], split: str = "test") -> list[str]:
    """Name the methods whose score is not above its controls: its interval reaches down to one of them."""
    notes = []
    for method in methods:
        rate = metrics.rate(method, "mean", split)
        if rate is None or method.startswith("control-"):
            continue
        rows = {kind: (f"control-{kind}-{method}", "iia") for kind in ("random", "shuffled")}
        rows |= {"identity": (IDENTITY, "iia"), "chance": (IDENTITY, "chance")}
        levels = {kind: metrics.mean(row, "mean", split, metric) for kind, (row, metric) in rows.items()}
        reached = [f"{kind} {level:.4f}" for kind, level in levels.items() if rate.low <= level]
        if reached:
            notes.append(f"note  {method}: {rate.mean:.4f} is not above its controls ({', '.join(reached)})")
    return notes


def trouble(units: Sequence[Unit]) -> list[str]:
    """Say aloud what did not work numerically, and on which share of what."""
    found = [
        (method, problem, share)
        for unit in units
        for method, details in unit.details.items()
        if isinstance(details, dict)
        for problem, share in {
            "the kernel is clamped": details.get("clamped_kernel", 0.0),
            "the couplings did not converge": 1 - details.get("converged", 1.0),
            "the results are not finite": 1.0 - details.get("finite", True),
            "the handles end in one of several equal sites": np.mean(details.get("last_site_ambiguous") or [0.0]),
        }.items()
        if share > (0.5 if "clamped" in problem else 0)
    ]
    shares = pd.DataFrame(found, columns=["method", "problem", "share"]).groupby(["method", "problem"], sort=False)
    notes = []
    for (method, problem), low, high, count in shares["share"].agg(["min", "max", "count"]).itertuples(name=None):
        share = " to ".join(dict.fromkeys((f"{low:.0%}", f"{high:.0%}")))
        notes.append(f"note  {method}: {share} of {problem}, in {count} of {len(units)} seeds")
    return notes


def settings_lines(units: Sequence[Unit]) -> list[str]:
    """Say what every method chose, on which calibration score, and among how many."""
    return [
        f"{unit.name}  {method}  {variable}: {_written(settings)}; "
        f"calibration {score:.4f}, {tied} tied of {details['candidates_per_variable']}"
        for unit in units
        for method, details in unit.details.items()
        if isinstance(details, dict) and "settings" in details
        for (variable, settings), score, tied in zip(
            details["settings"].items(), details["calibration_score"], details["ties"], strict=True
        )
    ]


def _written(settings: dict[str, Any]) -> str:
    """Leave out what every search has: no price of features, and norms of 1."""
    usual = {"sparsity": 0.0, "projector_norm": 1.0, "condition": 1.0, "read_norm": 1.0, "write_norm": 1.0}
    return ", ".join(
        f"{name} {value}" if isinstance(value, str) else f"{name} {value:.4g}"
        for name, value in settings.items()
        if value is not None and name not in ("limit", "restart", "epochs")
        if name not in usual or abs(value - usual[name]) > 1e-3
    )
