"""What the page of a reduction run draws, from its records alone."""

from collections.abc import Sequence

import numpy as np

from experiments.harness.curves import Curves, Point, Reduced, seeds_point
from experiments.harness.metrics import Metrics
from experiments.harness.records import Unit
from experiments.reduction.tables import LAST, iia_of, kept_counts, reduced_by, strengths

OURS = ("cmr", "cmr-closed", "cmr-kl", "obs-affine")
MEASURES = {
    "accuracy": ("accuracy on test images", False),
    "kl": ("KL from the dense network / nats", True),
    "distortion": ("logit distortion / squared logits", True),
}


def reduced(units: Sequence[Unit]) -> Reduced:
    """Return a line per method, for each measure of the last layer and of both: accuracy speaks."""
    metrics, width = Metrics(row for unit in units for row in unit.rows), int(units[0].details["width"])
    dense = metrics.mean("dense", "network", "test", "accuracy")
    found = []
    for variable, group in ((LAST, "last hidden layer"), ("both", "both hidden layers")):
        for name, (what, lower) in MEASURES.items():
            lines = _lines(metrics, variable, width, name)
            level = 0.0 if lower else dense
            found.append(Curves(group, what, lines, OURS, lower=lower, dense=level, spoken=name == "accuracy"))
    found.append(Curves("last hidden layer", "same class as the dense network", _rates(metrics, width, None), OURS,
                        lower=False, dense=1.0))  # fmt: skip
    for p in strengths(metrics):
        what = f"IIA, each kept unit interchanged with probability {p:g}"
        found.append(Curves("last hidden layer", what, _rates(metrics, width, p), OURS, lower=False))
    return Reduced([each for each in found if any(each.lines.values())])


def _lines(metrics: Metrics, variable: str, width: int, name: str) -> dict[str, list[Point]]:
    each = "in each " if variable == "both" else ""
    lines = {}
    for method in reduced_by(metrics, variable):
        points = [
            seeds_point(
                metrics, (method, variable, f"keep{keep}"), name, keep / width, f"{keep} of {width} units {each}"
            )
            for keep in kept_counts(metrics, variable)
        ]
        lines[method] = [point for point in points if point is not None]
    return lines


def _rates(metrics: Metrics, width: int, p: float | None) -> dict[str, list[Point]]:
    """Return agreement without interventions, or IIA at a strength, each with its interval."""
    lines = {}
    for method in reduced_by(metrics):
        points = []
        for keep in kept_counts(metrics):
            if p is None:
                ends = tuple(
                    metrics.mean(method, LAST, f"keep{keep}", f"agreement{end}") for end in ("", "_low", "_high")
                )
            else:
                ends = iia_of(metrics, method, LAST, f"keep{keep}-p{p:g}") or (np.nan,) * 3
            if np.isfinite(ends[0]):
                points.append(Point(keep / width, *ends, units=f"{keep} of {width} units"))
        lines[method] = points
    return lines
