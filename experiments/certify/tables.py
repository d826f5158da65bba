"""Tables of the certification experiment, from its units alone: one per study, published numbers beside ours.

Published numbers (see `cif_tables`) belong to one network; for any other the columns stay empty.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from abstraction.evaluation.certification import CERTIFIED
from experiments.certify.options import ADAPTIVE_CASES, kept_units, split_name
from experiments.certify.published import CERTIFIED as COUNTS
from experiments.certify.published import (
    COVERAGE,
    COVERAGE_RISK,
    IIA,
    LEVEL,
    PAIRED,
    SENSITIVITY,
    SENSITIVITY_RADIUS,
    TRIALS,
    Difference,
)
from experiments.harness.metrics import Metrics
from experiments.harness.records import Unit

TO_STOP: Mapping[tuple[str, str], tuple[int, int, int]] = {
    ("certify", "iid"): (1217, 763, 3263),
    ("certify", "static"): (1708, 1501, 3007),
    ("certify", "history"): (3800, 806, 4031),
    ("refute", "iid"): (88, 86, 150),
    ("refute", "static"): (201, 151, 219),
    ("refute", "history"): (118, 101, 129),
}
"""Published median and quartiles of five streams of at most 5,000 trials, by case and sampling (CIF, 4b8359f)."""
_PUBLISHED_WIDTH = 512
_DASH = "–"
TITLES = {
    "zero_one": "another class",
    "clipped_kl": "min(1, KL)",
    "clipped_l2": "min(1, L2)",
    "iid": "independent",
    "adaptive": "adaptive",
    "static": "by norms",
    "history": "by failures",
    "iid-peeking": "independent, peeking",
    "adaptive-peeking": "adaptive, peeking",
}
PROTOCOLS = {"iid": "iid", "iid-peeking": "aggressive_peeking", "adaptive": "adaptive", "adaptive-peeking": None}
_SEQUENCES = {"hoeffding": "hoeffding", "betting": None, "betting-two-sided": "betting"}
"""Ours, and what the published numbers call it; one-sided bets, with half of delta each, are ours alone."""


class Records:
    """The numbers of a run, and what it was asked for."""

    def __init__(self, units: Sequence[Unit]):
        self.metrics = Metrics(row for unit in units for row in unit.rows)
        self.options: dict[str, Any] = units[0].details["options"]
        self.facts: dict[str, Any] = units[0].details["certify"]
        self.width: int = self.facts["width"]
        self.published = all(unit.details["certify"]["published"] for unit in units)
        self.keeps = [self.units(keep) for keep in self.options["keeps"]]

    def units(self, keep: float) -> int:
        """Count the units that an option keeps."""
        return kept_units(keep, self.width)

    def value(self, study: str, method: str, split: str, metric: str) -> float:
        """Return the mean over seeds, NaN where nothing was measured."""
        return self.metrics.mean(method, study, split, metric)

    def median(self, study: str, method: str, split: str, metric: str) -> float:
        """Return the median over seeds."""
        return float(np.median(self.metrics.values(method, study, split, metric)))

    def usual(self, study: str) -> bool:
        """Tell whether a study was run on the published network and on as much as was published."""
        options = self.options[study]
        return self.published and self.units(options["keep"]) == _PUBLISHED_WIDTH // 2


def renderables(units: Sequence[Unit], *, details: bool) -> list[Table | str]:
    """Make one table per study that was run, each with its notes."""
    records = Records(units)
    shown: list[Table | str] = [_header(records, len(units))]
    for study in records.options["studies"]:
        shown += _TABLES[study](records)
        if details and study == "certification":
            shown += other_sequences(records)
    return shown + _warnings(units)


def _header(records: Records, seeds: int) -> str:
    facts = records.facts
    accuracy = records.value("output", "network", "test", "accuracy")
    known = "the published network" if records.published else "not the published network: its columns stay empty"
    return (
        f"network: {facts['width']} units in the hidden layer that is reduced, {facts['images']}, test accuracy "
        f"{accuracy:.4f}; {known}\n{facts['calibration']} calibration images of the training set, trials between "
        f"{facts['evaluation']} test images; {seeds} seed{'s' if seeds > 1 else ''}"
    )


def certification(records: Records) -> list[Table | str]:
    """Show IIA and the trials until each fidelity was decided by betting."""
    fidelities = records.options["fidelities"]
    table = _table(
        "certification: independent trials until a fidelity F is certified by betting",
        ("method", "keep", "p", "IIA", "interval", "published", *(f"F {f:g}" for f in fidelities), "published"),
    )
    for method, keep, p in _cells(records):
        split = split_name(keep, p, "iid")
        value, low, high = (records.value("certification", method, split, name) for name in ("iia", "low", "high"))
        known = IIA.get((method, keep, p)) if records.published else None
        ends = f"{low:.4f} {high:.4f}"
        cells = [f"{value:.4f}", ends, f"{known.value:.4f}" if known else ""]
        names = [f"{split}-betting-F{fidelity:g}" for fidelity in fidelities]
        cells += [_to_stop(records, method, "certification", name, spread=True) for name in names]
        table.add_row(method, str(keep), f"{p:g}", *cells, _known(records, method, keep, p, "iid", "betting"))
    return [
        table,
        f"trials: median (and quartiles) over {records.options['orders']} orders of the same trials; not 200: refuted "
        f"after 200; {_DASH}: neither within {records.options['trials']}.",
        f"interval: of the IIA after all trials, by betting, at level {records.options['delta']:g}.",
        "published: one stream of other trials; random: another random set of units. IIA 1 - R, R the rate at which "
        "the networks differ.",
    ]


def other_sequences(records: Records) -> list[Table | str]:
    """Show trials by Hoeffding, and with adaptive trials, where a fidelity was certified."""
    kinds = (("iid", "hoeffding"), ("adaptive", "betting"), ("adaptive", "hoeffding"))
    fidelities = records.options["fidelities"]
    names = [c for sampling, sequence in kinds for c in (f"{TITLES[sampling]}, {sequence}", "published")]
    title = f"certification by other sequences: trials to certify F {'/'.join(f'{f:g}' for f in fidelities)}, medians"
    table = _table(title, ("method", "keep", "p", *names))
    for method, keep, p in _cells(records):
        cells = []
        for sampling, sequence in kinds:
            splits = [split_name(keep, p, sampling, sequence, f"F{fidelity:g}") for fidelity in fidelities]
            cells.append("/".join(_to_stop(records, method, "certification", split, spread=False) for split in splits))
            cells.append(_known(records, method, keep, p, sampling, sequence))
        table.add_row(method, str(keep), f"{p:g}", *cells)
    weight = 1 / (1 - records.options["alpha"])
    return [table, f"adaptive: masks drawn by the norms of outgoing weights too, weights up to {weight:.3g}."]


def paired(records: Records) -> list[Table | str]:
    """Show differences of risks on the same trials."""
    options = records.options["paired"]
    keep, p = records.units(options["keep"]), options["probability"]
    split = split_name(keep, p)
    title = f"paired: difference of risks on the same {records.options['trials']} trials, {keep} units, p = {p:g}"
    names = ("first", "second", "R first", "R second", "difference", "published")
    table = _table(title, (*names, "betting", "", "published", "hoeffding", "", "published"), left=2)
    for first, second in itertools.combinations(records.options["methods"], 2):
        risks = [records.value("paired", method, split, "risk") for method in (first, second)]
        cells, difference = [], float("nan")
        known = None
        for sequence in ("betting", "hoeffding"):
            name = f"{split}-{sequence}"
            difference, radius, significant = (
                records.value("paired", f"{first}:{second}", name, metric)
                for metric in ("difference", "radius", "significant")
            )
            known = _known_difference(first, second, sequence) if records.usual("paired") and p == 0.5 else None
            cells += [f"± {radius:.4f}", _significant(significant)]
            cells += [f"± {known.radius:.4f} {_significant(known.significant)}" if known else ""]
        published = f"{known.value:+.4f}" if known else ""
        table.add_row(first, second, *(f"{risk:.4f}" for risk in risks), f"{difference:+.4f}", published, *cells)
    return [
        table,
        f"±: half the width of the confidence sequence at level {records.options['delta']:g}; *: it excludes 0. "
        "Masks are the same bits over the sorted kept units,",
        "so methods that keep other units swap others. Published: one stream of other trials, two-sided bets.",
    ]


def sensitivity(records: Records) -> list[Table | str]:
    """Show fidelity by three measures of disagreement."""
    options = records.options["sensitivity"]
    keep = records.units(options["keep"])
    title = f"sensitivity: fidelity by three measures of disagreement, {keep} units"
    table = _table(title, ("method", "p", *(c for m in SENSITIVITY_METRICS for c in (TITLES[m], "±", "published"))))
    radius = float("nan")
    for method, p in itertools.product(options["methods"], options["probabilities"]):
        cells = []
        for metric in SENSITIVITY_METRICS:
            split = split_name(keep, p, metric)
            value, low, high, radius = (
                records.value("sensitivity", method, split, name) for name in ("fidelity", "low", "high", "radius")
            )
            known = SENSITIVITY.get((metric, p)) if method == "vbp" and records.usual("sensitivity") else None
            cells += [f"{value:.4f}", f"{(high - low) / 2:.4f}", "" if known is None else f"{known:.4f}"]
        table.add_row(method, f"{p:g}", *cells)
    same = (records.options["trials"], records.options["delta"]) == (TRIALS, LEVEL) and records.published
    published = f", published {SENSITIVITY_RADIUS:.4f}" if same else ""
    return [
        table,
        f"±: half the width of the betting interval; Hoeffding's is {radius:.4f} for all{published}. KL and L2 compare "
        "the two networks' probabilities.",
        "Published: vbp, one stream of other trials.",
    ]


def coverage(records: Records) -> list[Table | str]:
    """Show how often sequences cover the risk."""
    options = records.options["coverage"]
    keep, p, levels = records.units(options["keep"]), options["probability"], options["levels"]
    title = (
        f"coverage: share of {options['repetitions']} streams of {options['trials']} trials whose sequence holds the "
        f"risk, {options['method']}, {keep} units, p = {p:g}"
    )
    names = [c for level in levels for c in (f"{1 - level:g}", "published")]
    table = _table(title, ("sampling", "sequence", *names), left=2)
    for protocol, sequence in itertools.product(PROTOCOLS, _SEQUENCES):
        cells = []
        for level in levels:
            split = split_name(keep, p, protocol, sequence, f"delta{level:g}")
            known = known_coverage(records, protocol, sequence, level)
            covered = records.value("coverage", options["method"], split, "coverage")
            cells += [f"{covered:.3f}", "" if known is None else f"{known:.3f}"]
        table.add_row(TITLES[protocol], sequence, *cells)
    risk = records.value("coverage", options["method"], split_name(keep, p, "iid"), "risk")
    streams = options["repetitions"] * len(records.metrics.seeds)
    known_risk = f" (published {COVERAGE_RISK:.5f})" if _as_published(records) else ""
    return [
        table,
        f"risk {risk:.5f}{known_risk}, that of the {options['pool']} trials streams are drawn from; standard error of "
        f"a share of .95: {(0.05 * 0.95 / streams) ** 0.5:.3f}.",
        f"peeking: looking every {options['every']} trials; otherwise at the last one alone. Published numbers are of "
        "two-sided bets.",
    ]


def known_coverage(records: Records, protocol: str, sequence: str, level: float) -> float | None:
    """Look a published coverage up."""
    if not _as_published(records):
        return None
    return COVERAGE.get((str(PROTOCOLS[protocol]), str(_SEQUENCES[sequence]), level))


def _as_published(records: Records) -> bool:
    options = records.options["coverage"]
    settings = (options["method"], options["probability"], options["trials"])
    return records.usual("coverage") and settings == ("vbp", 0.5, 2000)


def adaptive(records: Records) -> list[Table | str]:
    """Show trials to a decision by ways of drawing masks."""
    options = records.options["adaptive"]
    columns = ("to show", "method", "keep", "p", "masks", "trials: median, quartiles", "published")
    table = _table("adaptive: betting trials until a decision, by how masks are drawn", columns, left=2)
    for name, case in ADAPTIVE_CASES.items():
        keep = records.units(case.keep)
        what = f"F {'>=' if name == 'certify' else '<'} {case.fidelity:g}"
        for sampling in ("iid", "static", "history"):
            split = split_name(keep, case.probability, name, sampling, f"F{case.fidelity:g}")
            found = _to_stop(records, case.method, "adaptive", split, spread=True, wanted=case.verdict)
            known = TO_STOP[name, sampling] if records.published else None
            published = "" if known is None else f"{known[0]} ({known[1]}-{known[2]})"
            row = (what, case.method, str(keep), f"{case.probability:g}", TITLES[sampling], found, published)
            table.add_row(*row)
    return [
        table,
        f"{options['repetitions']} fresh streams of at most {options['trials']} trials each, published: 5 of at most "
        f"5000. {_DASH}: most end undecided; not: the contrary was shown.",
        "by norms: of outgoing weights; by failures: of trials before, in blocks of 100. "
        f"Share of the proposal {records.options['alpha']:g}.",
    ]


def margins(records: Records) -> list[Table | str]:
    """Show margin certificates: bounds on the rate of disagreement."""
    options = records.options["margins"]
    names = ("disagree", "plain", "centred", "per sample", "certified plain", "certified centred", "certified p.s.")
    metrics = ("disagreement", "plain", "centred", "per_sample")
    metrics += tuple(f"certified_{name}" for name in metrics[1:])
    table = _table(f"margins: bounds on the rate of disagreement, {options['method']}", ("keep", "p", *names), left=0)
    for keep, p in itertools.product(records.keeps, options["probabilities"]):
        split = split_name(keep, p)
        values = [records.value("margins", options["method"], split, metric) for metric in metrics]
        table.add_row(str(keep), f"{p:g}", *(f"{value:.4f}" for value in values))
    return [
        table,
        "plain: Pr(m <= 2 eps) + E||e||^2 / eps^2; centred: sqrt 2 and centred errors; per sample: E min(1, 2||e||^2 / "
        "m^2); eps is chosen by the data.",
        f"certified: holds with probability {1 - records.options['delta']:g}, eps chosen on other trials. 1 says "
        "nothing; counting disagreements (first table) is the practical tool.",
    ]


def _cells(records: Records) -> Iterable[tuple[str, int, float]]:
    """List what was certified; where all units are kept, every p is the same."""
    options = records.options
    for method, keep, p in itertools.product(options["methods"], records.keeps, options["probabilities"]):
        if keep < records.width or p == options["probabilities"][0]:
            yield method, keep, p


def _to_stop(records: Records, method: str, study: str, split: str, *, spread: bool, wanted: int = CERTIFIED) -> str:
    """Write the trials to the verdict that is wanted, or, where there is room, `not` and the trials to the contrary."""
    verdict = records.value(study, method, split, "verdict") * wanted
    if not abs(verdict) > 0.5:
        return _DASH
    median, first, third = (
        f"{records.median(study, method, split, name):.0f}" for name in ("trials", "trials_q1", "trials_q3")
    )
    if verdict < 0:
        return f"not {median}" if spread else _DASH
    return f"{median} ({first}-{third})" if spread and first != third else median


def _known(records: Records, method: str, keep: int, p: float, sampling: str, sequence: str) -> str:
    if not records.published or (method, keep, p) not in _PUBLISHED_CELLS:
        return ""
    counts = [COUNTS.get((method, keep, p, sampling, sequence, f), _DASH) for f in records.options["fidelities"]]
    return "/".join(map(str, counts))


_PUBLISHED_CELLS = {*IIA, *(key[:3] for key in COUNTS)}
SENSITIVITY_METRICS = tuple(dict.fromkeys(metric for metric, _ in SENSITIVITY))


def _known_difference(first: str, second: str, sequence: str) -> Difference | None:
    """Look a difference up in either order."""
    known, swapped = PAIRED.get((first, second, sequence)), PAIRED.get((second, first, sequence))
    if known is None and swapped is not None:
        return swapped._replace(value=-swapped.value, first=swapped.second, second=swapped.first)
    return known


def _significant(share: float) -> str:
    return "*" if share > 0.5 else ""


def _warnings(units: Sequence[Unit]) -> list[Table | str]:
    """Say why a method cannot be trusted."""
    found: dict[tuple[str, str], list[str]] = {}
    for unit in units:
        for method, text in unit.details["warnings"].items():
            found.setdefault((method, text), []).append(unit.name)
    return [f"note  {method}, {', '.join(names)}: {text}" for (method, text), names in found.items()]


def _table(title: str, columns: Iterable[str], *, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < left else "right", no_wrap=True)
    return table


_TABLES: Mapping[str, Callable[[Records], list[Table | str]]] = {
    "certification": certification,
    "paired": paired,
    "sensitivity": sensitivity,
    "coverage": coverage,
    "adaptive": adaptive,
    "margins": margins,
}
