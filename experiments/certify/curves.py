"""What the page of a certification run draws, from its units alone: fidelities with the intervals that certify them."""

from collections.abc import Sequence
from math import isfinite

from abstraction.evaluation.certification import CERTIFIED, REFUTED
from experiments.certify.tables import Frame, Run
from experiments.harness.curves import Curves, Point, Reduced
from experiments.harness.records import Unit
from experiments.reduction.curves import OURS

_SAMPLING = {"iid": "independent trials", "adaptive": "adaptive trials"}


def reduced(units: Sequence[Unit]) -> Reduced:
    """Return the fidelity of every method by what it keeps, for each strength of interventions and way to sample."""
    run = Run(units)
    if "certification" not in run.options["studies"]:
        return Reduced([])
    found = []
    for sampling, said in _SAMPLING.items():
        cells, decided = run.of("certification", sampling), run.of("certification", f"{sampling}-betting")
        for p in sorted(set(run.numbers["p"][run.numbers["study"] == "certification"])):
            here = cells[cells["p"] == p]
            lines = {
                method: [_point(run, row, decided) for row in here[here["method"] == method].itertuples()]
                for method in dict.fromkeys(here["method"])
            }
            what = f"fidelity by {said}, {1 - run.options['delta']:.0%} confidence sequences"
            group = f"units interchanged with p = {p:g}"
            spoken = sampling == "iid"
            found.append(Curves(group, what, lines, OURS, lower=False, dense=1.0, spoken=spoken, certified=spoken))
    return Reduced([each for each in found if each.lines])


def _point(run: Run, row: Frame, decided: Frame) -> Point:
    width = run.facts["width"]
    cell = decided[(decided["method"] == row.method) & (decided["keep"] == row.keep) & (decided["p"] == row.p)]
    told = [text for each in cell.itertuples() if (text := _verdict(each))]
    units = f"{row.keep} of {width} units"
    return Point(row.keep / width, row.iia, row.low, row.high, units, ", ".join(told))


def _verdict(row: Frame) -> str:
    """Say what most orders of the trials decided of a fidelity, and after how many of them."""
    if not isfinite(row.verdict):
        return ""
    sign = ">=" if row.verdict * CERTIFIED > 0.5 else "<" if row.verdict * REFUTED > 0.5 else ""
    return f"{sign} {row.level:g} after {row.trials:.0f}" if sign else f"{row.level:g} undecided"
