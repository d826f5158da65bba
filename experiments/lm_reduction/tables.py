"""The tables of the reduction of a language model, from its records alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.harness.metrics import Metrics
from experiments.harness.records import Unit
from experiments.harness.tables import Part, Table, table
from experiments.lm_reduction.options import OURS

NOTES = (
    "loss: mean -log p(next token) on held-out text, less that of the dense network, nats; python: docstrings of "
    "modules that no calibration has, own: what the dense network writes.",
    "uniform: the same share kept in every block; global: one budget over all blocks.",
    "IOI: prompts answered with the indirect object, over the whole vocabulary; swap: the source's name said once the "
    "last token's residual stream, where the dense network has it, is the source's.",
    "Methods that end in -zero put nothing in place of a unit; the others fold means, cmr, obs and -affine maps.",
)
KINDS = ("python", "own")


def tables(units: Sequence[Unit], details: bool) -> list[Part]:
    """Make what a run prints."""
    metrics = Metrics(row for unit in units for row in unit.rows)
    first = calibrations(metrics)[0]
    parts: list[Part] = [_dense(metrics, units)]
    for variable in variables(metrics):
        parts.append(losses(metrics, variable, first))
        parts.append(_kept(metrics, variable, first))
    parts += [_elsewhere(metrics), _cost(metrics), _time(metrics), *verdicts(metrics), *NOTES]
    return parts if details else [part for part in parts if not isinstance(part, Table) or len(part.frame)]


def variables(metrics: Metrics) -> list[str]:
    """Return what was reduced and how budgets were spread, `mlp-uniform`."""
    return list(dict.fromkeys(place for _, place, _, name in metrics.measured() if name == "loss_python"))


def calibrations(metrics: Metrics) -> list[str]:
    """Return the calibration texts, in the order they ran."""
    splits = [split for _, _, split, name in metrics.measured() if name == "loss_python"]
    return list(dict.fromkeys(split.partition("-keep")[0] for split in splits))


def keeps(metrics: Metrics, text: str) -> list[float]:
    """Return the shares kept on a calibration text, largest first."""
    splits = {split for _, _, split, name in metrics.measured() if name == "loss_python"}
    parts = [split.partition("-keep") for split in splits]
    return sorted({float(share) for name, _, share in parts if name == text}, reverse=True)


def methods(metrics: Metrics, variable: str, text: str) -> list[str]:
    """Return the methods that were run there."""
    there = {m for m, v, s, name in metrics.measured() if v == variable and s.startswith(text) and name == "seconds"}
    return [method for method in metrics.methods if method in there]


def losses(metrics: Metrics, variable: str, text: str) -> Table:
    """Show what every method loses on both texts."""
    shares = keeps(metrics, text)
    rows = [
        {"method": method}
        | {
            f"{kind} {share:g}": metrics.mean(method, variable, f"{text}-keep{share:g}", f"loss_{kind}")
            for kind in KINDS
            for share in shares
        }
        for method in methods(metrics, variable, text)
    ]
    seeds = len(metrics.seeds)
    title = f"{variable}, calibrated on {text}: log-perplexity lost, {seeds} seed{'s' if seeds > 1 else ''}"
    return table(title, rows)


def verdicts(metrics: Metrics) -> list[str]:
    """Say for every budget how the loss of ours compares with that of the best rival."""
    lines, first = [], calibrations(metrics)[0]
    for variable in variables(metrics):
        known = methods(metrics, variable, first)
        for share in keeps(metrics, first):
            for kind in KINDS:
                of = lambda m, kind=kind, share=share, variable=variable: metrics.mean(
                    m, variable, f"{first}-keep{share:g}", f"loss_{kind}"
                )
                rivals = {m: of(m) for m in known if m not in (*OURS, "vbp-affine") and np.isfinite(of(m))}
                best = min(rivals, key=lambda name: rivals[name], default=None)
                if best is not None and "cmr-closed" in known and rivals[best] > 0:
                    lines.append(
                        f"{variable}, {share:g} kept, {kind}: cmr-closed loses {of('cmr-closed'):.4f}, {best}, the "
                        f"best rival, {rivals[best]:.4f}: {of('cmr-closed') / rivals[best]:.2f} of it"
                    )
    return lines


def _dense(metrics: Metrics, units: Sequence[Unit]) -> str:
    value = lambda split, name: metrics.mean("dense", "network", split, name)
    perplexity = {kind: float(np.exp(value(kind, "surprise"))) for kind in KINDS}
    return (
        f"{units[0].details['network']}: perplexity {perplexity['python']:.2f} on held-out docstrings and "
        f"{perplexity['own']:.2f} on its own text; IOI {value('ioi', 'accuracy'):.3f}; the name is at the last token "
        f"after block {value('ioi', 'block'):.0f} (full swap {value('ioi', 'followed'):.3f})"
    )


def _kept(metrics: Metrics, variable: str, text: str) -> Table:
    rows = []
    for method in methods(metrics, variable, text):
        row: dict[str, Any] = {"method": method}
        for share in keeps(metrics, text):
            split = f"{text}-keep{share:g}"
            names = {"KL": "kl_python", "same": "agreement_python", "IOI": "accuracy", "swap": "followed"}
            row |= {f"{head} {share:g}": metrics.mean(method, variable, split, name) for head, name in names.items()}
        rows.append(row)
    formats = {name: ".3f" for row in rows for name in row if name != "method"}
    return table(f"{variable}, calibrated on {text}: what is kept", rows, formats)


def _elsewhere(metrics: Metrics) -> Table:
    rows = []
    for variable in variables(metrics):
        for text in calibrations(metrics):
            for method in methods(metrics, variable, text):
                for share in keeps(metrics, text):
                    split = f"{text}-keep{share:g}"
                    others = [each for each in calibrations(metrics) if each != text]
                    if not any(len(metrics.values(method, variable, f"{o}-keep{share:g}", "seconds")) for o in others):
                        continue
                    row = {"calibration": text, "reduced": variable, "kept": f"{share:g}", "method": method}
                    names = {"python": "loss_python", "own": "loss_own", "IOI": "accuracy", "swap": "followed"}
                    row |= {head: metrics.mean(method, variable, split, name) for head, name in names.items()}
                    rows.append(row)
    return table("other calibration texts", rows, keys=4)


def _cost(metrics: Metrics) -> Table:
    named = {"parameters": "parameters", "multiply-adds": "multiply_adds", "ms a token": "seconds_a_token"}
    of = lambda m, v, s: {head: metrics.mean(m, v, s, name) for head, name in named.items()}
    rows = [{"network": "dense", "kept": "", **of("dense", "network", "cost")}]
    for method, variable, split, name in metrics.measured():
        if name == "parameters" and method != "dense":
            rows.append({"network": variable, "kept": split.partition("-keep")[2], **of(method, variable, split)})
    rows = [{**row, "ms a token": 1e3 * row["ms a token"]} for row in rows]
    formats = {"parameters": ",.0f", "multiply-adds": ",.0f", "ms a token": ".3f"}
    return table("what is saved (multiply-adds of one row of text)", rows, formats, keys=2)


def _time(metrics: Metrics) -> Table:
    rows = [
        {"what": method, "run s": metrics.mean(method, "mean", "test", "seconds"), "compile s": compiled}
        for method in metrics.methods
        if method.startswith("statistics-")
        for compiled in [metrics.mean(method, "mean", "test", "seconds_compile")]
    ]
    text = calibrations(metrics)[0]
    for variable in variables(metrics):
        for method in methods(metrics, variable, text):
            split = f"{text}-keep{min(keeps(metrics, text)):g}"
            names = {"run s": "seconds", "compile s": "seconds_compile"}
            row = {head: metrics.mean(method, variable, split, name) for head, name in names.items()}
            rows.append({"what": f"{method}, {variable}", **row})
    return table("seconds: the one pass over a text, and ranking and folding all blocks", rows, {"run s": ".1f"})
