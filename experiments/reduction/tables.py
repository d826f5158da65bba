"""The tables of the reduction experiment, from its records alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from abstraction.evaluation import mean_interval
from experiments.certify.published import IIA, NETWORK
from experiments.harness.metrics import Metrics
from experiments.harness.records import Unit
from experiments.harness.tables import Part, Table, table

SHOWN = 0.1
"""The strength of the summary."""
LAST = "hidden2"
CONTROLS = ("ignored", "shuffled")
NOTES = (
    "IIA: how often both networks choose the same class when every kept unit is interchanged with probability p.",
    "±: half of a 95% betting interval, or of Student's over seeds where that is wider.",
    "ignored: only the dense network is intervened on; shuffled: the reduced one gets another source. Where they come "
    "near IIA, interventions of that strength hardly matter.",
    "followed: IIA on the trials in which the dense network changes its class (their share: changed).",
)


def tables(units: Sequence[Unit], details: bool) -> list[Part]:
    """Make what a run prints."""
    metrics = Metrics(row for unit in units for row in unit.rows)
    keeps, p = kept_counts(metrics), shown_strength(metrics)
    methods = reduced_by(metrics)
    parts: list[Part] = [_network(metrics, units), _accuracy(metrics, methods, keeps), _iia(metrics, methods, keeps, p)]
    if published(units):
        parts.append(_published(keeps, p))
    for method in methods if details else methods[:1]:
        parts += [_lost(metrics, method, keeps), _saved(metrics, method, keeps)]
    if both := kept_counts(metrics, "both"):
        parts.append(_both(metrics, both, p))
    return [*parts, *NOTES, *_warnings(units)]


def strengths(metrics: Metrics) -> list[float]:
    """Return the interchange probabilities of a run."""
    splits = {split for _, place, split, name in metrics.measured() if (place, name) == (LAST, "iia")}
    return sorted({float(split.partition("-p")[2]) for split in splits})


def shown_strength(metrics: Metrics) -> float:
    """Return the probability next to that of the summary."""
    return min(strengths(metrics), key=lambda p: abs(p - SHOWN))


def kept_counts(metrics: Metrics, variable: str = LAST) -> list[int]:
    """Return the budgets of a layer, largest first."""
    splits = {split for _, place, split, name in metrics.measured() if (place, name) == (variable, "accuracy")}
    return sorted((int(split.removeprefix("keep")) for split in splits), reverse=True)


def reduced_by(metrics: Metrics, variable: str = LAST) -> list[str]:
    """Return the methods that reduced a layer, in the order they ran."""
    there = {method for method, place, _, name in metrics.measured() if (place, name) == (variable, "accuracy")}
    return [method for method in metrics.methods if method in there]


def published(units: Sequence[Unit]) -> bool:
    """Tell whether this is the network that the authors' numbers are of."""
    return all(unit.details["data"] == NETWORK for unit in units)


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
    names = ("accuracy", "epochs", "parameters", "multiply_adds", "latency")
    accuracy, epochs, size, adds, latency = (metrics.mean("dense", "network", "test", name) for name in names)
    trained = f"trained here for {epochs:.0f} epochs" if epochs else "read from a checkpoint"
    images = {"mnist": "MNIST", "digits": "scikit-learn's digits"}[units[0].details["images"]]
    return (
        f"dense network, {trained}, {images}: accuracy {accuracy:.4f}, {size:,.0f} parameters, {adds:,.0f} "
        f"multiply-adds, {1e3 * latency:.2f} ms for 256 images"
    )


def _accuracy(metrics: Metrics, methods: Sequence[str], keeps: Sequence[int]) -> Table:
    seeds = f"{len(metrics.seeds)} seed{'s' if len(metrics.seeds) > 1 else ''}"
    rows = [
        {"method": method, **{str(keep): metrics.mean(method, LAST, f"keep{keep}", "accuracy") for keep in keeps}}
        for method in methods
    ]
    return table(f"accuracy on all test images by units kept of the last hidden layer, {seeds}", rows)


def _iia(metrics: Metrics, methods: Sequence[str], keeps: Sequence[int], p: float) -> Table:
    rows = []
    for method in methods:
        row: dict[str, Any] = {"method": method}
        for keep in keeps:
            row |= _rated(metrics, method, LAST, f"keep{keep}-p{p:g}", str(keep), "± " + str(keep))
        rows.append(row)
    return table(f"IIA at p = {p:g} by units kept", rows, {f"± {keep}": ".3f" for keep in keeps})


def _published(keeps: Sequence[int], p: float) -> Table:
    rows = [
        {"method": method, **{str(keep): getattr(IIA.get((method, keep, p)), "value", np.nan) for keep in keeps}}
        for method in dict.fromkeys(name for name, _, _ in IIA)
    ]
    return table(f"published: the authors' IIA at p = {p:g}, on their own trials", rows).without_empty_columns()


def _rated(metrics: Metrics, method: str, variable: str, split: str, name: str, half: str) -> dict[str, float]:
    rate = iia_of(metrics, method, variable, split)
    return {name: rate[0], half: (rate[2] - rate[1]) / 2} if rate else {name: np.nan, half: np.nan}


def _lost(metrics: Metrics, method: str, keeps: Sequence[int]) -> Table:
    rows = []
    for keep in keeps:
        known = {name: metrics.mean(method, LAST, f"keep{keep}", name) for name in ("accuracy", "agreement", "kl")}
        for p in strengths(metrics):
            split = f"keep{keep}-p{p:g}"
            row = {"kept": str(keep), "accuracy": known["accuracy"], "agree": known["agreement"], "KL": known["kl"]}
            row |= {"p": p, **_rated(metrics, method, LAST, split, "IIA", "±")}
            row |= {kind: metrics.mean(f"control-{kind}-{method}", LAST, split, "iia") for kind in CONTROLS}
            row |= {name: metrics.mean(method, LAST, split, name) for name in ("changed", "followed")}
            rows.append(row)
    precise = dict.fromkeys(("KL", "±", "ignored", "shuffled", "changed", "followed"), ".3f")
    return table(f"{method}: what is lost", rows, {"p": ".3g", **precise})


def _saved(metrics: Metrics, method: str, keeps: Sequence[int]) -> Table:
    rows = []
    for keep in keeps:
        names = ("parameters", "multiply_adds", "latency", "seconds", "seconds_compile")
        size, adds, latency, run, compile_ = (metrics.mean(method, LAST, f"keep{keep}", name) for name in names)
        row = {"kept": str(keep), "parameters": size, "multiply-adds": adds, "ms for 256 images": 1e3 * latency}
        rows.append({**row, "run s": run, "compile s": compile_})
    formats = {"parameters": ",.0f", "multiply-adds": ",.0f", "ms for 256 images": ".2f"}
    return table(f"{method}: what is saved, and what it took", rows, {**formats, "run s": ".2f", "compile s": ".2f"})


def _both(metrics: Metrics, keeps: Sequence[int], p: float) -> Table:
    rows = []
    for method in reduced_by(metrics, "both"):
        for keep in keeps:
            row: dict[str, Any] = {"method": method, "kept": f"{keep} + {keep}"}
            row["accuracy"] = metrics.mean(method, "both", f"keep{keep}", "accuracy")
            for tap in ("hidden1", "hidden2"):
                row |= _rated(metrics, method, f"both-{tap}", f"keep{keep}-p{p:g}", f"IIA {tap}", f"± {tap[-1]}")
            rows.append({**row, "parameters": metrics.mean(method, "both", f"keep{keep}", "parameters")})
    formats = {"± 1": ".3f", "± 2": ".3f", "parameters": ",.0f"}
    return table(f"both hidden layers reduced in one call, IIA at p = {p:g} at either", rows, formats, keys=2)


def _warnings(units: Sequence[Unit]) -> list[str]:
    """Say once per method what cannot be trusted, in the words of the first seed."""
    warned: dict[str, list[str]] = {}
    for unit in units:
        for method, text in unit.details["warnings"].items():
            warned.setdefault(method, []).append(text)
    return [f"WARNING  {method}, {len(texts)} of {len(units)} seeds: {texts[0]}" for method, texts in warned.items()]
