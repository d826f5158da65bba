"""Tables of certification, from its units alone: one per study, and more where details are asked for.

A column with a star holds published numbers (see `published`). They belong to one network and one level: for any
other there are no such columns.
"""

import itertools
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any

import pandas as pd

from abstraction.evaluation.certification import CERTIFIED, REFUTED
from experiments.certify.published import ALPHA, COVERAGE_TRIALS, LEVEL, ROWS
from experiments.harness.records import Row, Unit
from experiments.harness.tables import Part, Table

Frame = Any
"""A data frame: pandas does not say what its columns are."""
DASH = "–"
CELL = ["method", "keep", "p"]
KEYS = ["study", *CELL, "kind", "level"]
SEQUENCES = {"betting": "betting", "hoeffding": "Hoeffding", "betting-two-sided": "two-sided bets"}
_NUMBER = r"[\d.]+(?:e-\d+)?"
_SPLIT = rf"keep(?P<keep>\d+)-p(?P<p>{_NUMBER})(?:-(?P<kind>.+?))?(?:-(?:F|delta)(?P<level>{_NUMBER}))?$"
_LOSSES = {"zero_one": "another class", "clipped_kl": "min(1, KL)", "clipped_l2": "min(1, L2)"}
_MASKS = {"iid": "independent", "static": "by norms", "history": "by failures"}
_CASES = {"certify": (">=", CERTIFIED), "refute": ("<", REFUTED)}


class Run:
    """What a run was asked for, and its numbers: a column per metric, and with a star what was published."""

    def __init__(self, units: Sequence[Unit]):
        self.options, self.facts = (units[0].details[name] for name in ("options", "certify"))
        self.seeds, known = len(units), [unit.details["certify"]["published"] for unit in units]
        self.published = all(known) and (self.options["delta"], self.options["alpha"]) == (LEVEL, ALPHA)
        theirs = numbers(ROWS).rename(columns=lambda name: name if name in KEYS else f"{name}*")
        alike = (theirs["study"] != "coverage") | (self.options["coverage"]["trials"] == COVERAGE_TRIALS)
        theirs = theirs[alike] if self.published else theirs.iloc[:0]
        self.numbers = numbers(row for unit in units for row in unit.rows).merge(theirs, on=KEYS, how="left")

    def of(self, study: str, kind: str | None = None) -> Frame:
        """Select a study; where all units are kept, every p is the same and the first stands for all."""
        found = self.numbers[self.numbers["study"] == study]
        if kind is not None:
            found = found[found["kind"] == kind]
        if study == "certification":
            again = found.duplicated(["method", "keep", "kind", "level"])
            found = found[(found["keep"] < self.facts["width"]) | ~again]
        return found.reset_index(drop=True)


def numbers(rows: Iterable[Row]) -> Frame:
    """Sum rows up over seeds, trials by their median, in the order of the rows."""
    frame: Frame = pd.DataFrame(list(rows), columns=list(Row._fields)).rename(columns={"variable": "study"})
    parts = frame["split"].str.extract(_SPLIT).fillna({"keep": "0", "p": "0", "kind": "", "level": "0"})
    frame = frame.join(parts.astype({"keep": int, "p": float, "level": float}))
    sums = frame.groupby([*KEYS, "metric"], sort=False)["value"].agg(["mean", "median"]).reset_index()
    sums["value"] = sums["median"].where(sums["metric"].str.startswith("trials"), sums["mean"])
    return sums[KEYS].drop_duplicates().merge(sums.pivot(index=KEYS, columns="metric", values="value"), on=KEYS)


def tables(units: Sequence[Unit], details: bool) -> list[Part]:
    """Make the tables of every study that was run, each with its notes."""
    run = Run(units)
    facts, accuracy = run.facts, run.of("output")["accuracy"].max()
    known = "*: published; one stream of other trials, two-sided bets, another random set, five adaptive streams"
    other = "another network, delta or alpha than published, so without those numbers"
    parts: list[Part] = [
        f"network: {facts['images']}, {facts['width']} units in the layer that is reduced, accuracy {accuracy:.4f}",
        f"images: {facts['calibration']} to calibrate, {facts['evaluation']} of the test set; seeds: {run.seeds}",
        known if run.published else other,
    ]
    for study in run.options["studies"]:
        parts += _TABLES[study](run, details)
    return [*parts, *_warnings(units)]


def certification(run: Run, details: bool) -> list[Part]:
    """Show IIA and the trials until each fidelity was decided; in details quartiles, and by other sequences."""
    options, cells = run.options, run.of("certification", "iid")[[*CELL, "iia", "low", "high", "iia*"]]
    title = "certification: independent trials until fidelity F is decided by betting"
    parts: list[Part] = [
        _trials(run, title, "iid-betting", cells.rename(columns={"iia": "IIA", "iia*": "IIA*"})),
        f"IIA: 1 - R, R how often the networks differ; low, high: by betting, level {options['delta']:g}.",
        f"F: medians over {options['orders']} orders; not 200: refuted at 200; {DASH}: neither in {options['trials']}.",
    ]
    if details:
        for sampling, kind in itertools.product(("independent", "adaptive"), ("betting", "hoeffding")):
            title = f"certification, {sampling} trials, {SEQUENCES[kind]}: medians and quartiles"
            parts.append(_trials(run, title, f"{sampling.replace('independent', 'iid')}-{kind}"))
        parts.append(
            f"adaptive: masks by norms of outgoing weights too, weights up to {1 / (1 - options['alpha']):.3g}."
        )
    return parts


def paired(run: Run, details: bool) -> list[Part]:
    """Show differences of risks on the same trials, in details by Hoeffding too."""
    every, parts = run.of("paired"), []
    risks = every[every["kind"] == ""].set_index("method")["risk"]
    for kind in ("betting", "hoeffding") if details else ("betting",):
        found = every[every["kind"] == kind]
        first, second = (found["method"].str.split(":").str[place] for place in (0, 1))
        columns = {"first": first, "second": second, "R1": first.map(risks), "R2": second.map(risks)}
        columns |= {"diff.": found["difference"], "±": found["radius"]}
        columns["sig."] = (found["significant"] > 0.5).map({True: "yes", False: "no"})
        columns |= {"diff.*": found["difference*"], "±*": found["radius*"]}
        title = f"paired: {every['keep'][0]} units, p = {every['p'][0]:g}, by {SEQUENCES[kind]}"
        parts.append(_table(title, pd.DataFrame(columns), 2, **{"diff.": "+.4f", "diff.*": "+.4f"}))
    return [
        *parts,
        f"diff.: of risks on the same {run.options['trials']} trials; ±: half its confidence sequence,",
        f"level {run.options['delta']:g}; sig.: that excludes 0.",
        "Masks are the same bits over the sorted kept units: methods that keep others swap others.",
    ]


def sensitivity(run: Run, details: bool) -> list[Part]:
    """Show fidelity by three measures of disagreement."""
    found = run.of("sensitivity")
    named = found.assign(measure=found["kind"].map(_LOSSES)).rename(columns={"fidelity": "F", "fidelity*": "F*"})
    frame = named[["method", "p", "measure", "F", "low", "high", "F*"]]
    known = f" (published {found['radius*'].max():.4f})" if found["radius*"].any() else ""
    return [
        _table(f"sensitivity: three measures, {found['keep'][0]} units", frame, 3),
        f"F: 1 - mean disagreement; low, high: by betting; by Hoeffding, F ± {found['radius'][0]:.4f}{known}.",
        "KL and L2 compare the two networks' probabilities.",
    ]


def coverage(run: Run, details: bool) -> list[Part]:
    """Show how often sequences cover the risk."""
    options, found = run.options["coverage"], run.of("coverage")
    pool, streams = found[found["kind"] == "iid"].iloc[0], found[found["level"] > 0]
    shares = _across(streams.assign(level=1 - streams["level"]), "coverage", "{:g}", ["kind"])
    ways = shares.pop("kind").str.extract(r"^((?:iid|adaptive)(?:-peeking)?)-(.+)$")
    shares.insert(0, "sampling", ways[0].str.replace("-", ", "))
    shares.insert(1, "sequence", ways[1].map(SEQUENCES))
    error = (0.05 * 0.95 / (options["repetitions"] * run.seeds)) ** 0.5
    known = f" (published {pool['risk*']:.5f})" if pool["risk*"] > 0 else ""
    title = f"coverage: {options['method']}, {pool['keep']} units, p = {pool['p']:g}, by 1 - delta"
    return [
        _table(title, shares, 2, **dict.fromkeys(shares.columns[2:], ".3f")),
        f"share of {options['repetitions']} streams of {options['trials']} trials whose sequence holds the risk;",
        f"standard error of a share of .95: {error:.3f}.",
        f"risk {pool['risk']:.5f}{known}, of the {options['pool']} trials streams are drawn from.",
        f"iid: independent; peeking: a look every {options['every']} trials, otherwise one, at the last.",
    ]


def adaptive(run: Run, details: bool) -> list[Part]:
    """Show trials to a decision by ways of drawing masks."""
    options, found = run.options["adaptive"], run.of("adaptive")
    case, sampling = (found["kind"].str.split("-").str[place] for place in (0, 1))
    wanted = case.map({name: verdict for name, (_, verdict) in _CASES.items()})
    shows = case.map({name: f"F {sign} " for name, (sign, _) in _CASES.items()}) + found["level"].map("{:g}".format)
    columns = {"to show": shows, "masks": sampling.map(_MASKS), "trials": decided(found, wanted)}
    columns |= {name: found[f"trials_{name}"].where(found["verdict"] * wanted > 0.5) for name in ("q1", "q3")}
    columns |= {"trials*": found["trials*"], "q1*": found["trials_q1*"], "q3*": found["trials_q3*"]}
    cells = found.assign(shows=shows).drop_duplicates("shows").itertuples()
    return [
        _table("adaptive: trials to show it by betting", pd.DataFrame(columns), 2, **dict.fromkeys(columns, ".0f")),
        *(f"{cell.shows}: {cell.method}, {cell.keep} units, p = {cell.p:g}." for cell in cells),
        f"trials: medians and quartiles of {options['repetitions']} fresh streams of at most {options['trials']};",
        f"{DASH}: most end undecided; not 200: the contrary was shown.",
        "by norms: of outgoing weights; by failures: of trials before, in blocks of 100;",
        f"alpha, the share of the proposal: {run.options['alpha']:g}.",
    ]


def margins(run: Run, details: bool) -> list[Part]:
    """Show margin certificates: bounds on the rate of disagreement."""
    frame = run.of("margins").rename(columns={"disagreement": "R"})
    frame.columns = frame.columns.str.replace("certified_(.+)", r"\1†", regex=True).str.replace("_", " ")
    bounds = ("plain", "centred", "per sample")
    frame = frame[["keep", "p", "R", *bounds, *(f"{name}†" for name in bounds)]]
    return [
        _table(f"margins: bounds on R, how often the networks differ, {run.options['margins']['method']}", frame, 2),
        "plain: Pr(m <= 2 eps) + E||e||^2 / eps^2; centred: sqrt 2 and centred errors;",
        "per sample: E min(1, 2||e||^2 / m^2); eps is chosen by the data; 1 says nothing.",
        f"†: certified, holds with probability {1 - run.options['delta']:g}, eps chosen on other trials.",
        "Counting disagreements (first table) is the practical tool.",
    ]


def decided(found: Frame, wanted: Frame = CERTIFIED, *, spread: bool = False) -> Frame:
    """Give the trials to the verdict that is wanted, `not` and those to the contrary, or a dash."""
    verdict, median, first, third = (found[name] for name in ("verdict", "trials", "trials_q1", "trials_q3"))
    shown = median.astype(object)
    if spread:
        ends = first.map(" ({:.0f}-".format) + third.map("{:.0f})".format)
        shown = shown.mask(first < third, median.map("{:.0f}".format) + ends)
    contrary = median.map("not {:.0f}".format).where(verdict * wanted < -0.5, DASH)
    return shown.where(verdict * wanted > 0.5, contrary)


def _trials(run: Run, title: str, kind: str, cells: Frame = None) -> Table:
    """Show trials to a decision, a column per fidelity: beside other columns, or alone and with quartiles."""
    found = run.of("certification", kind)
    theirs = found["trials*"].astype(object).replace(inf, DASH)
    counts = _across(found.assign(**{"n": decided(found, spread=cells is None), "n*": theirs}), "n", "F {:g}")
    frame = counts if cells is None else cells.merge(counts, on=CELL)
    return _table(title, frame, 3, **dict.fromkeys(counts.columns[3:], ".0f"))


def _across(found: Frame, value: str, name: str, keys: Sequence[str] = CELL) -> Frame:
    """Give every level a column, and one to what was published beside it."""
    columns = {
        f"{name.format(level)}{star}": at.set_index(list(keys))[f"{value}{star}"]
        for level, at in found.groupby("level", sort=False)
        for star in ("", "*")
    }
    return pd.DataFrame(columns).reset_index()


def _table(title: str, frame: Frame, keys: int, **formats: str) -> Table:
    return Table(title, frame, {"p": "g", **formats}, keys).without_empty_columns()


def _warnings(units: Sequence[Unit]) -> list[str]:
    """Say which methods cannot be trusted, and why."""
    warned = [(text, f"{name}, {unit.name}") for unit in units for name, text in unit.details["warnings"].items()]
    texts = dict.fromkeys(text for text, _ in warned)
    return [f"note  {'; '.join(name for said, name in warned if said == text)}: {text}" for text in texts]


_TABLES = {study.__name__: study for study in (certification, paired, sensitivity, coverage, adaptive, margins)}
