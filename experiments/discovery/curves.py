"""What the page of a discovery run draws, from its units alone: what is left of variables and answers by width."""

from collections.abc import Sequence

from experiments.discovery.figures import reductions
from experiments.discovery.options import DENSE
from experiments.discovery.tables import FINDERS, TITLES, metrics_of, places, splits
from experiments.harness.curves import Curves, Point, Reduced, seeds_point
from experiments.harness.metrics import Metrics
from experiments.harness.records import Unit

OURS = {"heq": ("cmr", "cmr-closed"), "addition": ("obs-affine",), "mcqa": ("cmr-closed",)}
LOT = {"addition": "random-affine"}
_HANDLES = {"plot": "searched afresh by PLOT", "das": "searched afresh by DAS", "transferred": "cut from the dense one"}


def reduced(units: Sequence[Unit]) -> Reduced:
    """Return a line per reduction of every task: the variables' IIA, agreement with the dense network, and answers."""
    metrics, found = metrics_of(units), []
    for task in TITLES:
        if not places(metrics, task):
            continue
        (split, header), _ = splits(task)
        for finder in ("das", *(name for name in FINDERS if name != "das")):
            lines, dense = _rates(metrics, task, f"/{finder}", ("mean", split))
            what = f"IIA of handles {_HANDLES[finder]}, {header}"
            found.append(_curves(task, what, lines, dense, spoken=finder == "das"))
        lines, _ = _rates(metrics, task, "", ("network", ""))
        found.append(_curves(task, "same answer as the dense network", lines, 1.0))
        found.append(_curves(task, "accuracy", *_accuracy(metrics, task)))
    return Reduced([each for each in found if any(each.lines.values())])


def _curves(task: str, what: str, lines: dict[str, list[Point]], dense: float, spoken: bool = False) -> Curves:
    lot = LOT.get(task, "random")
    return Curves(task, what, lines, OURS.get(task, ()), lot, lower=False, dense=dense, spoken=spoken)


def _whole(metrics: Metrics, task: str) -> int:
    return max(width for width, _ in places(metrics, task))


def _rates(metrics: Metrics, task: str, ending: str, of: tuple[str, str]) -> tuple[dict[str, list[Point]], float]:
    """Return an accuracy with its interval by width, and the dense network's."""
    (variable, split), whole, lines = of, _whole(metrics, task), {}
    dense = metrics.rate(f"{DENSE}{ending}", variable, f"{task}-keep{whole}{split}")
    for method, widths in reductions(metrics, task).items():
        points = []
        for width in widths if method != DENSE else ():
            if rate := metrics.rate(f"{method}{ending}", variable, f"{task}-keep{width}{split}"):
                note = _survives(metrics, method, f"{task}-keep{width}")
                words = f"{width} of {whole} units"
                points.append(Point(width / whole, rate.mean, rate.low, rate.high, words, note))
        lines[method] = points
    return {method: points for method, points in lines.items() if points}, dense.mean if dense else float("nan")


def _survives(metrics: Metrics, method: str, place: str) -> str:
    told = metrics.values(method, "network", place, "survives")
    return f"variables survive in {told.sum():.0f} of {len(told)} seeds" if len(told) else ""


def _accuracy(metrics: Metrics, task: str) -> tuple[dict[str, list[Point]], float]:
    whole, lines = _whole(metrics, task), {}
    for method, widths in reductions(metrics, task).items():
        points = [
            seeds_point(metrics, (method, "network", f"{task}-keep{width}"), "accuracy", width / whole,
                        f"{width} of {whole} units")
            for width in widths
        ]  # fmt: skip
        lines[method] = [point for point in points if point is not None]
    dense = metrics.mean(DENSE, "network", f"{task}-keep{whole}", "accuracy")
    return {method: points for method, points in lines.items() if points and method != DENSE}, dense
