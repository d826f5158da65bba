"""The published certification numbers: against the result files they were copied from, and against each other."""

import csv
import itertools
import math
import re
from pathlib import Path

import pytest

from experiments.certify import published as published_module
from experiments.certify.published import COVERAGE_TRIALS, FIDELITIES, IIA, ROWS, TRIALS

METHODS = ("cip-affine", "cip-const", "vbp", "random")
MASKS = (0.1, 0.2, 0.5)
KEEPS = (512, 384, 256, 128, 64, 32)
WAYS = tuple(itertools.product(("iid", "adaptive"), ("hoeffding", "betting")))
NUMBERS = {(row.variable, row.method, row.split, row.metric): row.value for row in ROWS}
SHARED = Path(__file__).parents[3] / "shared"
ROUNDED = 5e-7
"""Tables hold six digits of the files' sixteen."""


def published(name: str) -> list[dict[str, str]]:
    path = SHARED / "reference" / name
    if not path.exists():
        pytest.skip(f"the published results are not in {path.parent}")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def to_certify(method: str, keep: int, p: float, sampling: str, sequence: str, fidelity: float) -> float:
    """Look trials up; they are infinite where nothing was certified."""
    return NUMBERS["certification", method, f"keep{keep}-p{p:g}-{sampling}-{sequence}-F{fidelity:g}", "trials"]


def test_every_number_is_there_once_with_its_source():
    assert len(NUMBERS) == len(ROWS)
    with (Path(published_module.__file__).with_name("published.csv")).open(newline="") as file:
        assert all(line["source"].startswith("CIF 4b8359f ") for line in csv.DictReader(file))


def test_every_certification_is_the_published_one():
    rows = published("cif_e1_certification.csv")
    for row in rows:
        cell = row["method"], int(row["keep"]), float(row["mask_p"])
        ours = to_certify(*cell, row["sampling"], row["cs_type"], float(row["F_0"]))
        if row["certified"] == "True":
            assert ours == int(row["n_certify"])
        else:
            assert (ours, int(row["n_certify"])) == (math.inf, TRIALS)
    assert len(rows) == len(METHODS) * len(KEEPS) * len(MASKS) * len(WAYS) * len(FIDELITIES)
    assert len(rows) == sum(key[0] == "certification" and key[3] == "trials" for key in NUMBERS)


def test_every_paired_difference_is_the_published_one_in_both_orders():
    rows = published("cif_e1_paired.csv")
    assert 2 * len(rows) == sum(key[0] == "paired" and key[3] == "difference" for key in NUMBERS)
    for row in rows:
        assert (row["keep"], row["mask_p"], int(row["n"])) == ("256", "0.5", TRIALS)
        first, second = row["pair"].split("_vs_")
        for pair, sign in ((f"{first}:{second}", 1), (f"{second}:{first}", -1)):
            ours = {
                name: NUMBERS["paired", pair, f"keep256-p0.5-{row['cs_type']}", name]
                for name in ("difference", "radius", "significant")
            }
            assert sign * ours["difference"] == pytest.approx(float(row["mu_hat"]), abs=ROUNDED)
            assert ours["radius"] == pytest.approx(float(row["radius"]), abs=ROUNDED)
            assert ours["significant"] == (row["significant"] == "True")
        for method, name in ((first, "method_1_r_hat"), (second, "method_2_r_hat")):
            risk = NUMBERS["paired", method, "keep256-p0.5", "risk"]
            assert risk == pytest.approx(float(row[name]), abs=ROUNDED)


def test_every_fidelity_is_the_published_one():
    rows = published("cif_e3_sensitivity.csv")
    assert 2 * len(rows) == sum(key[0] == "sensitivity" for key in NUMBERS)
    for row in rows:
        split = f"keep256-p{float(row['mask_p']):g}-{row['metric']}"
        for ours, theirs in (("fidelity", "f_hat"), ("radius", "radius")):
            assert NUMBERS["sensitivity", "vbp", split, ours] == pytest.approx(float(row[theirs]), abs=ROUNDED)


def test_every_coverage_is_the_published_one():
    """Published bets are two-sided, and what is called aggressive peeking is ours of independent trials."""
    rows = published("cif_e4_coverage.csv")
    assert 2 * len(rows) == sum(key[0] == "coverage" and key[3] == "coverage" for key in NUMBERS)
    for row in rows:
        assert (row["n_reps"], int(row["n_trials"])) == ("500", COVERAGE_TRIALS)
        risk = NUMBERS["coverage", "vbp", "keep256-p0.5-iid", "risk"]
        assert risk == pytest.approx(float(row["R_true"]), abs=ROUNDED)
        protocol = {"aggressive_peeking": "iid-peeking"}.get(row["protocol"], row["protocol"])
        for theirs, ours in (("hoeffding", "hoeffding"), ("betting", "betting-two-sided")):
            split = f"keep256-p0.5-{protocol}-{ours}-delta{float(row['delta']):g}"
            share = float(row[f"empirical_coverage_{theirs}"])
            assert NUMBERS["coverage", "vbp", split, "coverage"] == share


def test_every_iia_is_the_one_of_the_specification():
    path = SHARED / "spec" / "mechanism_reduction.md"
    if not path.exists():
        pytest.skip(f"the specification is not in {path.parent}")
    text = path.read_text()
    table = text[text.index("\nE.3 ") : text.index("\nE.4 ")]
    rows = re.findall(r"^\| ([a-z-]+) \| (\d+) \|(.+)\|$", table, re.MULTILINE)
    assert len(rows) * len(MASKS) == len(IIA)
    for method, keep, cells in rows:
        *intervals, adaptive = [
            [float(number) for number in re.findall(r"\d?\.\d+", cell)] for cell in cells.split("|")
        ]
        for p, interval, point in zip(MASKS, intervals, adaptive, strict=True):
            assert IIA[method, int(keep), p] == (*interval, point)


def test_every_adaptive_study_is_the_one_of_the_specification():
    path = SHARED / "spec" / "mechanism_reduction.md"
    if not path.exists():
        pytest.skip(f"the specification is not in {path.parent}")
    text = path.read_text()
    study = text[text.index("\nE.8 ") : text.index("alpha sweep", text.index("\nE.8 "))]
    found = re.findall(r"(iid|static|history)\s+(\d+)\s+\((\d+),(\d+)\)", study)
    cases = (("vbp", "keep128-p0.1-certify", "F0.9"), ("cip-affine", "keep256-p0.5-refute", "F0.7"))
    expected = {}
    for (method, split, level), numbers in zip(cases, (found[:3], found[3:]), strict=True):
        for sampling, *counts in numbers:
            for name, count in zip(("trials", "trials_q1", "trials_q3"), counts, strict=True):
                expected["adaptive", method, f"{split}-{sampling}-{level}", name] = float(count)
    assert len(expected) == 18
    assert {key: value for key, value in NUMBERS.items() if key[0] == "adaptive"} == expected


def test_values_lie_in_their_intervals():
    for key, estimate in IIA.items():
        assert 0 < estimate.low < estimate.value < estimate.high < 1, key
        # Adaptive trials are others; the widest disagreement is 1.5 points.
        assert abs(estimate.adaptive - estimate.value) < 0.02, key


def certified() -> dict[tuple[str, int, float, str, str, float], float]:
    """List what was certified: trials, by method, kept units, p, sampling, sequence and fidelity."""
    cells = [(*cell, *way) for cell in itertools.product(METHODS, KEEPS, MASKS) for way in WAYS]
    counts = {(*cell, fidelity): to_certify(*cell, fidelity) for cell in cells for fidelity in FIDELITIES}
    return {key: count for key, count in counts.items() if count < math.inf}


def test_what_is_certified_is_true_of_the_point_value():
    for (method, keep, p, _, _, fidelity), count in certified().items():
        assert 0 < count < TRIALS
        assert keep == 512 or IIA[method, keep, p].value > fidelity


def test_a_higher_fidelity_takes_more_trials_and_hoeffding_more_than_betting():
    counts = certified()
    for (method, keep, p, sampling, confidence, fidelity), count in counts.items():
        row = (method, keep, p, sampling)
        if confidence == "hoeffding":
            assert counts[*row, "betting", fidelity] < count
        if fidelity > FIDELITIES[0]:
            assert counts[*row, confidence, FIDELITIES[FIDELITIES.index(fidelity) - 1]] < count


def test_paired_risks_are_those_of_the_iia_table():
    pairs = [key[1:3] for key in NUMBERS if key[0] == "paired" and key[3] == "difference"]
    assert len(pairs) == 16
    for pair, split in pairs:
        values = {name: NUMBERS["paired", pair, split, name] for name in ("difference", "radius", "significant")}
        risks = [NUMBERS["paired", method, "keep256-p0.5", "risk"] for method in pair.split(":")]
        assert values["difference"] == pytest.approx(risks[0] - risks[1], abs=1e-9)
        assert values["significant"] == (abs(values["difference"]) > values["radius"])
        for method, risk in zip(pair.split(":"), risks, strict=True):
            assert IIA[method, 256, 0.5].value == pytest.approx(1 - risk, abs=1e-9)
