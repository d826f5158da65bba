"""The table of a run, from its unit files alone."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from abstraction.evaluation import binomial_interval, mean_interval
from experiments.paper import reference
from experiments.records import Row, RunFolder, Unit

SPLITS = ("test", "test-invariant", "test-specific")
_COLUMNS = (
    "method",
    "sensitive",
    "95% interval",
    "worst",
    "paper",
    "invariant",
    "paper",
    "specific",
    "random",
    "shuffled",
    "run s",
    "compile s",
)
_WIDTH = 150


class Rate(NamedTuple):
    """An accuracy over seeds.

    Attributes:
      mean: over seeds.
      low: lower end of the interval.
      high: upper end.
      worst: the lowest seed.
    """

    mean: float
    low: float
    high: float
    worst: float


class Metrics:
    """Rows of a run, looked up by what they measure."""

    def __init__(self, rows: Iterable[Row]):
        self._values: dict[tuple[str, str, str, str], dict[int, float]] = defaultdict(dict)
        self.methods: list[str] = []
        self.variables: list[str] = []
        self.seeds: list[int] = []
        for row in rows:
            self._values[row.method, row.variable, row.split, row.metric][row.seed] = row.value
            if row.method not in self.methods:
                self.methods.append(row.method)
            if row.seed not in self.seeds:
                self.seeds.append(row.seed)
            if row.metric == "iia" and row.variable not in self.variables:
                self.variables.append(row.variable)

    def values(self, method: str, variable: str, split: str, metric: str) -> np.ndarray:
        """Return one value per seed, in the order of the seeds; empty where nothing was measured."""
        return np.array(list(self._values.get((method, variable, split, metric), {}).values()))

    def mean(self, method: str, variable: str, split: str, metric: str) -> float:
        """Return the mean over seeds, NaN where nothing was measured."""
        values = self.values(method, variable, split, metric)
        return float(values.mean()) if len(values) else float("nan")

    def rate(self, method: str, variable: str, split: str) -> Rate | None:
        """Return an accuracy with its interval: the wider of the pooled binomial one and Student's t over seeds."""
        accuracy = self.values(method, variable, split, "iia")
        if not len(accuracy):
            return None
        pairs = self.values(method, variable, split, "pairs")
        low, high = binomial_interval((accuracy * pairs).sum(), pairs.sum())
        if len(accuracy) > 1:
            t_low, t_high = mean_interval(accuracy)
            low, high = min(low, t_low), max(high, t_high)
        return Rate(float(accuracy.mean()), max(float(low), 0.0), min(float(high), 1.0), float(accuracy.min()))


def show(run: RunFolder, *, details: bool = False) -> None:
    """Print the table of a run.

    Raises:
      ValueError: the run has no complete unit, or a damaged one.
    """
    units = run.units()
    if not units:
        raise ValueError(f"got {run.path}, which holds no complete seed yet; expected a run with results")
    metrics = Metrics(row for unit in units for row in unit.rows)
    console = Console(width=max(_WIDTH, Console().width))
    console.print(_backbone_line(metrics))
    for variable in ["mean", *(v for v in metrics.variables if v != "mean")] if details else ["mean"]:
        console.print(_result_table(metrics, units[0].rows[0].experiment, variable))
    for line in (*_notes(units), *(_settings(units) if details else ())):
        console.print(line, highlight=False)
    console.print(f"records {run.path}", highlight=False)


def _result_table(metrics: Metrics, experiment: str, variable: str) -> Table:
    seeds = f"{len(metrics.seeds)} seed{'s' if len(metrics.seeds) > 1 else ''}"
    what = "mean of the variables" if variable == "mean" else f"variable {variable}"
    title = f"{experiment}: interchange-intervention accuracy on test pairs, {what}, {seeds}"
    table = Table(title=title, title_justify="left")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("method", "95% interval") else "right", no_wrap=True)
    for method in metrics.methods:
        if metrics.rate(method, variable, "test") is None or method.startswith(("control-random", "control-shuffled")):
            continue
        table.add_row(*_cells(metrics, experiment, method, variable))
    return table


def _cells(metrics: Metrics, experiment: str, method: str, variable: str) -> list[str]:
    sensitive, invariant, specific = (metrics.rate(method, variable, split) for split in SPLITS)
    known = [reference(experiment, method, variable, split) for split in SPLITS[:2]]
    controls = [metrics.rate(f"control-{kind}-{method}", variable, "test") for kind in ("random", "shuffled")]
    return [
        method,
        _number(sensitive),
        f"{sensitive.low:.4f} {sensitive.high:.4f}" if sensitive else "",
        f"{sensitive.worst:.4f}" if sensitive else "",
        f"{known[0].value:.4f}" if known[0] else "",
        _number(invariant),
        f"{known[1].value:.4f}" if known[1] else "",
        _number(specific),
        *(_number(rate, digits=3) for rate in controls),
        *(_seconds(metrics.mean(method, "mean", "test", name)) for name in ("seconds", "seconds_compile")),
    ]


def _backbone_line(metrics: Metrics) -> str:
    accuracy, balanced, worst, epochs = (
        metrics.values("backbone", "output", "validation", name)
        for name in ("accuracy", "balanced_accuracy", "worst_cell", "epochs")
    )
    seconds = metrics.mean("backbone", "output", "validation", "seconds")
    text = (
        f"backbone: accuracy {accuracy.min():.4f} or more, balanced {balanced.min():.4f}, on the worst combination of "
        f"the causal variables {worst.min():.4f}; {epochs.min():.0f} to {epochs.max():.0f} epochs, {seconds:.1f} s"
    )
    warning = "\nWARNING: a backbone does not compute the causal model, which caps every IIA of its seed"
    return text if worst.min() > 0.99 else text + warning


def _notes(units: Sequence[Unit]) -> list[str]:
    """Explain the columns, and say aloud what did not work numerically."""
    notes = [
        "sensitive: the output must change; invariant: it must not (the paper's two splits). specific: it must not,",
        "though it would for another variable; only this split tells a variable from a swap of everything.",
        "random, shuffled: sensitive pairs with the same weights on random directions, and with another pair's source.",
        "interval: the wider of binomial over pairs and Student t over seeds. paper: see experiments/paper.py.",
    ]
    trouble: dict[tuple[str, str], list[float]] = defaultdict(list)
    for unit in units:
        for method, details in unit.details.items():
            if isinstance(details, dict):
                for problem, share in _problems(details).items():
                    trouble[method, problem].append(share)
    for (method, problem), shares in trouble.items():
        low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
        share = low if low == high else f"{low} to {high}"
        notes.append(f"note  {method}: {share} of {problem}, in {len(shares)} of {len(units)} seeds")
    return notes


def _problems(details: dict[str, Any]) -> dict[str, float]:
    """Name what went wrong numerically in one method's run, and on which share of what."""
    ambiguous = details.get("last_site_ambiguous", [])
    shares = {
        "the kernel is clamped": details.get("clamped_kernel", 0.0),
        "the couplings did not converge": 1 - details.get("converged", 1.0),
        "the results are not finite": 0.0 if details.get("finite", True) else 1.0,
        "the handles end in one of several equal sites": sum(ambiguous) / max(len(ambiguous), 1),
    }
    return {problem: share for problem, share in shares.items() if share > (0.5 if "clamped" in problem else 0)}


def _settings(units: Sequence[Unit]) -> list[str]:
    lines = []
    for unit in units:
        for method, details in unit.details.items():
            if isinstance(details, dict) and "settings" in details:
                for index, (variable, settings) in enumerate(details["settings"].items()):
                    chosen = ", ".join(f"{name} {value:.4g}" for name, value in settings.items() if value is not None)
                    lines.append(
                        f"{unit.name}  {method}  {variable}: {chosen}; "
                        f"calibration {details['calibration_score'][index]:.4f}, "
                        f"{details['ties'][index]} tied of {details['candidates_per_variable']}"
                    )
    return lines


def _number(rate: Rate | None, digits: int = 4) -> str:
    return "" if rate is None else f"{rate.mean:.{digits}f}"


def _seconds(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}"
