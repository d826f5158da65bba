"""The table of a run, from its unit files alone."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from experiments.harness.layouts import HONESTY, LAYOUTS, is_control_of_a_method
from experiments.harness.metrics import Metrics, Rate
from experiments.harness.paper import reference
from experiments.harness.records import Unit


def renderables(units: Sequence[Unit], *, details: bool) -> list[Any]:
    """Return what the table command prints of a localization run."""
    metrics = Metrics(row for unit in units for row in unit.rows)
    experiment = units[0].rows[0].experiment
    layout = LAYOUTS[experiment]
    variables = ["mean", *(v for v in metrics.variables if v != "mean")] if details else ["mean"]
    parts: list[Any] = [layout.backbone(metrics)]
    parts += [_result_table(metrics, experiment, variable) for variable in variables]
    if any(metrics.rate(f"control-{HONESTY[0][0]}-{method}", "mean", "test") for method in metrics.methods):
        parts.append(_honesty_table(metrics))
    below = beside_controls(metrics, [m for m in metrics.methods if not is_control_of_a_method(m)])
    return [*parts, *layout.notes, *below, *trouble(units), *(settings_lines(units) if details else ())]


def _result_table(metrics: Metrics, experiment: str, variable: str) -> Table:
    seeds = f"{len(metrics.seeds)} seed{'s' if len(metrics.seeds) > 1 else ''}"
    what = "mean of the variables" if variable == "mean" else f"variable {variable}"
    title = f"{experiment}: interchange-intervention accuracy on test pairs, {what}, {seeds}"
    table = Table(title=title, title_justify="left")
    layout = LAYOUTS[experiment]
    for name in layout.columns():
        table.add_column(name, justify="left" if name in ("method", "95% interval") else "right", no_wrap=True)
    for method in metrics.methods:
        if metrics.rate(method, variable, "test") is not None and not is_control_of_a_method(method):
            table.add_row(*_cells(metrics, experiment, method, variable))
    return table


def _cells(metrics: Metrics, experiment: str, method: str, variable: str) -> list[str]:
    layout = LAYOUTS[experiment]
    cells = [method]
    for place, split in enumerate(layout.splits):
        rate = metrics.rate(method, variable, split)
        cells.append(number(rate))
        if place == 0:
            cells += [f"{rate.low:.4f} {rate.high:.4f}", f"{rate.worst:.4f}"] if rate else ["", ""]
        if split in layout.compared:
            known = reference(experiment, method, variable, split)
            cells.append(f"{known.value:.4f}" if known else "")
    controls = [metrics.rate(f"control-{kind}-{method}", variable, "test") for kind in ("random", "shuffled")]
    times = (metrics.mean(method, "mean", "test", name) for name in ("seconds", "seconds_compile"))
    return [*cells, *(number(rate, digits=3) for rate in controls), *map(seconds, times)]


def beside_controls(metrics: Metrics, methods: Sequence[str], split: str = "test") -> list[str]:
    """Name the methods whose score is not above its controls: its interval reaches down to one of them."""
    notes = []
    for method in methods:
        rate = metrics.rate(method, "mean", split)
        if rate is None or method.startswith("control-"):
            continue
        named = {kind: metrics.rate(f"control-{kind}-{method}", "mean", split) for kind in ("random", "shuffled")}
        levels = {kind: control.mean for kind, control in named.items() if control is not None}
        if (identity := metrics.rate("control-identity", "mean", split)) is not None:
            levels["identity"] = identity.mean
        if not np.isnan(chance := metrics.mean("control-identity", "mean", split, "chance")):
            levels["chance"] = chance
        reached = [f"{kind} {level:.4f}" for kind, level in levels.items() if rate.low <= level]
        if reached:
            notes.append(f"note  {method}: {rate.mean:.4f} is not above its controls ({', '.join(reached)})")
    return notes


def _honesty_table(metrics: Metrics) -> Table:
    """Compare searches with the same searches where there is nothing to find."""
    title = "the same search where there is nothing to find: the score it reaches on test pairs"
    table = Table(title=title, title_justify="left")
    for name in ("method", "at the site", *(title for _, title in HONESTY)):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for method in metrics.methods:
        rates = [metrics.rate(f"control-{kind}-{method}", "mean", "test") for kind, _ in HONESTY]
        if any(rates):
            table.add_row(method, *(number(rate) for rate in (metrics.rate(method, "mean", "test"), *rates)))
    return table


def trouble(units: Sequence[Unit]) -> list[str]:
    """Say aloud what did not work numerically."""
    notes = []
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


def settings_lines(units: Sequence[Unit]) -> list[str]:
    lines = []
    for unit in units:
        for method, details in unit.details.items():
            if isinstance(details, dict) and "settings" in details:
                for index, (variable, settings) in enumerate(details["settings"].items()):
                    chosen = ", ".join(
                        f"{name} {value}" if isinstance(value, str) else f"{name} {value:.4g}"
                        for name, value in settings.items()
                        if _informative(name, value)
                    )
                    lines.append(
                        f"{unit.name}  {method}  {variable}: {chosen}; "
                        f"calibration {details['calibration_score'][index]:.4f}, "
                        f"{details['ties'][index]} tied of {details['candidates_per_variable']}"
                    )
    return lines


def _informative(name: str, value: Any) -> bool:
    """Leave out what every search has: no price of features, and norms of 1."""
    if value is None or name in ("limit", "restart", "epochs"):
        return False
    usual = {"sparsity": 0.0, "projector_norm": 1.0, "condition": 1.0, "read_norm": 1.0, "write_norm": 1.0}
    return name not in usual or abs(value - usual[name]) > 1e-3


def number(rate: Rate | None, digits: int = 4) -> str:
    return "" if rate is None else f"{rate.mean:.{digits}f}"


def seconds(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}"
