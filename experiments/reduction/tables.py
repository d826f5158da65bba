"""The tables of the reduction experiment, from its records alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from abstraction.evaluation import mean_interval
from experiments.certify.published import IIA
from experiments.harness.metrics import Metrics
from experiments.harness.records import Unit

SHOWN = 0.1
"""The strength of the summary."""
_LAST = "hidden2"
_CONTROLS = ("ignored", "shuffled")
_NOTES = (
    "cells: accuracy on all test images, then IIA: how often reduced and dense network choose the same class when",
    "every kept unit is interchanged with probability p; half width of a 95% betting interval.",
    "ignored: IIA when only the dense network is intervened on; shuffled: when the reduced one gets another source.",
    "Where they come near IIA, interventions of that strength hardly matter. followed: IIA on the trials in which the",
    "dense network changes its class (their share: changed). published: the authors' tables, on their own trials.",
)


def renderables(units: Sequence[Unit], *, details: bool) -> list[Any]:
    """Return what the table command prints."""
    metrics = Metrics(row for unit in units for row in unit.rows)
    keeps = _keeps(metrics, _LAST)
    shown = min(_probabilities(metrics), key=lambda p: abs(p - SHOWN))
    methods = [m for m in metrics.methods if len(metrics.values(m, _LAST, f"keep{keeps[0]}", "accuracy"))]
    parts: list[Any] = [_network(metrics, units), _summary(metrics, units, methods, keeps, shown)]
    for method in methods if details else methods[:1]:
        parts += _details(metrics, method, keeps)
    both = _keeps(metrics, "both")
    if both:
        parts.append(_both(metrics, both, shown))
    return [*parts, *_NOTES, *_warnings(units)]


def strengths(metrics: Metrics) -> list[float]:
    """Return the interchange probabilities of a run."""
    return _probabilities(metrics)


def kept_counts(metrics: Metrics) -> list[int]:
    """Return the budgets of the last layer, largest first."""
    return _keeps(metrics, _LAST)


def iia_of(metrics: Metrics, method: str, variable: str, split: str) -> tuple[float, float, float] | None:
    """Return mean IIA over seeds and its interval: the mean of the seeds' ends, or Student's where that is wider."""
    values, low, high = (metrics.values(method, variable, split, name) for name in ("iia", "iia_low", "iia_high"))
    if not len(values):
        return None
    ends = [float(low.mean()), float(high.mean())]
    if len(values) > 1:
        t_low, t_high = mean_interval(values)
        ends = [min(ends[0], t_low), max(ends[1], t_high)]
    return float(values.mean()), max(ends[0], 0.0), min(ends[1], 1.0)


def _network(metrics: Metrics, units: Sequence[Unit]) -> str:
    accuracy, epochs, size, adds, latency = (
        metrics.mean("dense", "network", "test", name)
        for name in ("accuracy", "epochs", "parameters", "multiply_adds", "latency")
    )
    trained = f"trained here for {epochs:.0f} epochs" if epochs else "read from a checkpoint"
    images = {"mnist": "MNIST", "digits": "scikit-learn's digits"}[units[0].details["images"]]
    return (
        f"dense network, {trained}, {images}: accuracy {accuracy:.4f}, {size:,.0f} parameters, {adds:,.0f} "
        f"multiply-adds, {1e3 * latency:.2f} ms for 256 images"
    )


def _summary(metrics: Metrics, units: Sequence[Unit], methods: list[str], keeps: list[int], p: float) -> Table:
    width = units[0].details["width"]
    seeds = f"{len(metrics.seeds)} seed{'s' if len(metrics.seeds) > 1 else ''}"
    title = f"reduction of the last hidden layer, {width} units: accuracy, IIA at p = {p:g}, {seeds}; by units kept"
    table = Table(title=title, title_justify="left")
    for name in ("method", *map(str, keeps)):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for method in methods:
        table.add_row(method, *(_pair(metrics, method, _LAST, keep, p) for keep in keeps))
    if units[0].details["images"] == "mnist" and width == 512:
        table.add_section()
        for method in dict.fromkeys(name for name, _, _ in IIA):
            known = [IIA.get((method, keep, p)) for keep in keeps]
            table.add_row(
                f"{method}, published",
                *(f"{each.value:.4f} ±{(each.high - each.low) / 2:.3f}" if each else "" for each in known),
            )
    return table


def _pair(metrics: Metrics, method: str, variable: str, keep: int, p: float, site: str | None = None) -> str:
    accuracy = metrics.mean(method, variable, f"keep{keep}", "accuracy")
    rate = iia_of(metrics, method, site or variable, f"keep{keep}-p{p:g}")
    if rate is None:
        return ""
    return f"{accuracy:.4f}  {rate[0]:.4f} ±{(rate[2] - rate[1]) / 2:.3f}"


def _details(metrics: Metrics, method: str, keeps: list[int]) -> list[Table]:
    lost = Table(title=f"{method}: what is lost", title_justify="left")
    probabilities = _probabilities(metrics)
    for name in (
        "kept",
        "accuracy",
        "agreement",
        "KL",
        "p",
        "IIA",
        "95% interval",
        *_CONTROLS,
        "changed",
        "followed",
        "95%",
    ):
        lost.add_column(name, justify="right", no_wrap=True)
    saved = Table(title=f"{method}: what is saved, and what it took", title_justify="left")
    for name in ("kept", "parameters", "multiply-adds", "ms for 256 images", "run s", "compile s"):
        saved.add_column(name, justify="right", no_wrap=True)
    for keep in keeps:
        lost.add_section()
        mean = lambda name, keep=keep: metrics.mean(method, _LAST, f"keep{keep}", name)
        head = [str(keep), *(f"{mean(name):.4f}" for name in ("accuracy", "agreement", "kl"))]
        for p in probabilities:
            lost.add_row(*head, f"{p:g}", *_intervened(metrics, method, f"keep{keep}-p{p:g}"))
            head = [""] * 4
        latency = mean("latency")
        saved.add_row(
            str(keep),
            *(f"{mean(name):,.0f}" for name in ("parameters", "multiply_adds")),
            "" if np.isnan(latency) else f"{1e3 * latency:.2f}",
            *(f"{mean(name):.2f}" for name in ("seconds", "seconds_compile")),
        )
    return [lost, saved]


def _intervened(metrics: Metrics, method: str, split: str) -> list[str]:
    """Format what was measured under interventions of one strength."""
    rate = iia_of(metrics, method, _LAST, split)
    controls = [iia_of(metrics, f"control-{kind}-{method}", _LAST, split) for kind in _CONTROLS]
    changed, followed, low, high = (
        metrics.mean(method, _LAST, split, name) for name in ("changed", "followed", "followed_low", "followed_high")
    )
    return [
        *((f"{rate[0]:.4f}", f"{rate[1]:.4f} {rate[2]:.4f}") if rate else ("", "")),
        *(f"{each[0]:.4f}" if each else "" for each in controls),
        f"{changed:.4f}",
        *(("", "") if np.isnan(followed) else (f"{followed:.3f}", f"{low:.3f} {high:.3f}")),
    ]


def _both(metrics: Metrics, keeps: list[int], p: float) -> Table:
    title = f"both hidden layers reduced in one call: accuracy, and IIA at p = {p:g} at either layer"
    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    for keep in keeps:
        for name in (f"{keep} + {keep}: accuracy", "IIA hidden1", "IIA hidden2", "parameters"):
            table.add_column(name, justify="right", no_wrap=True)
    for method in metrics.methods:
        if not len(metrics.values(method, "both", f"keep{keeps[0]}", "accuracy")):
            continue
        cells = []
        for keep in keeps:
            cells.append(f"{metrics.mean(method, 'both', f'keep{keep}', 'accuracy'):.4f}")
            for tap in ("hidden1", "hidden2"):
                rate = iia_of(metrics, method, f"both-{tap}", f"keep{keep}-p{p:g}")
                cells.append(f"{rate[0]:.4f} ±{(rate[2] - rate[1]) / 2:.3f}" if rate else "")
            cells.append(f"{metrics.mean(method, 'both', f'keep{keep}', 'parameters'):,.0f}")
        table.add_row(method, *cells)
    return table


def _warnings(units: Sequence[Unit]) -> list[str]:
    """Say once per method what cannot be trusted, in the words of the first seed."""
    warned: dict[str, list[str]] = {}
    for unit in units:
        for method, text in unit.details["warnings"].items():
            warned.setdefault(method, []).append(text)
    return [f"WARNING  {method}, {len(texts)} of {len(units)} seeds: {texts[0]}" for method, texts in warned.items()]


def _keeps(metrics: Metrics, variable: str) -> list[int]:
    found = {split for _, place, split, name in metrics.measured() if place == variable and name == "accuracy"}
    return sorted((int(split.removeprefix("keep")) for split in found), reverse=True)


def _probabilities(metrics: Metrics) -> list[float]:
    found = {
        split.partition("-p")[2] for _, place, split, name in metrics.measured() if place == _LAST and name == "iia"
    }
    return sorted(map(float, found))
