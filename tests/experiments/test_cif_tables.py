"""The published certification numbers: against the result files they were copied from, and against each other."""

import csv
import re
from pathlib import Path

import pytest

from experiments.certify.published import (
    CERTIFIED,
    COVERAGE,
    COVERAGE_RISK,
    FIDELITIES,
    IIA,
    MASKS,
    METHODS,
    PAIRED,
    SENSITIVITY,
    SENSITIVITY_RADIUS,
    TRIALS,
)

SHARED = Path(__file__).parents[3] / "shared"
ROUNDED = 5e-7
"""Tables hold six digits of the files' sixteen."""


def published(name: str) -> list[dict[str, str]]:
    path = SHARED / "reference" / name
    if not path.exists():
        pytest.skip(f"the published results are not in {path.parent}")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_certification_is_the_published_one():
    rows = published("cif_e1_certification.csv")
    found = {}
    for row in rows:
        key = (
            row["method"],
            int(row["keep"]),
            float(row["mask_p"]),
            row["sampling"],
            row["cs_type"],
            float(row["F_0"]),
        )
        if row["certified"] == "True":
            found[key] = int(row["n_certify"])
        else:
            assert int(row["n_certify"]) == TRIALS
    assert len(rows) == len(METHODS) * 6 * len(MASKS) * 4 * len(FIDELITIES)
    assert found == CERTIFIED


def test_every_paired_difference_is_the_published_one():
    rows = published("cif_e1_paired.csv")
    assert len(rows) == len(PAIRED)
    for row in rows:
        assert (row["keep"], row["mask_p"], int(row["n"])) == ("256", "0.5", TRIALS)
        first, second = row["pair"].split("_vs_")
        ours = PAIRED[first, second, row["cs_type"]]
        names = ("mu_hat", "radius", "method_1_r_hat", "method_2_r_hat")
        theirs = [float(row[name]) for name in names]
        assert [ours.value, ours.radius, ours.first, ours.second] == pytest.approx(theirs, abs=ROUNDED)
        assert ours.significant == (row["significant"] == "True")


def test_every_fidelity_is_the_published_one():
    rows = published("cif_e3_sensitivity.csv")
    assert len(rows) == len(SENSITIVITY)
    for row in rows:
        ours = SENSITIVITY[row["metric"], float(row["mask_p"])]
        assert ours == pytest.approx(float(row["f_hat"]), abs=ROUNDED)
        assert pytest.approx(float(row["radius"]), abs=ROUNDED) == SENSITIVITY_RADIUS


def test_every_coverage_is_the_published_one():
    rows = published("cif_e4_coverage.csv")
    assert 2 * len(rows) == len(COVERAGE)
    for row in rows:
        assert (row["n_reps"], row["n_trials"]) == ("500", "2000")
        assert pytest.approx(float(row["R_true"]), abs=ROUNDED) == COVERAGE_RISK
        for name in ("hoeffding", "betting"):
            ours = COVERAGE[row["protocol"], name, float(row["delta"])]
            assert ours == float(row[f"empirical_coverage_{name}"])


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


def test_values_lie_in_their_intervals():
    for key, estimate in IIA.items():
        assert 0 < estimate.low < estimate.value < estimate.high < 1, key
        # Adaptive trials are others; the widest disagreement is 1.5 points.
        assert abs(estimate.adaptive - estimate.value) < 0.02, key


def test_what_is_certified_is_true_of_the_point_value():
    for (method, keep, p, _, _, fidelity), count in CERTIFIED.items():
        assert 0 < count < TRIALS
        assert keep == 512 or IIA[method, keep, p].value > fidelity


def test_a_higher_fidelity_takes_more_trials_and_hoeffding_more_than_betting():
    for (method, keep, p, sampling, confidence, fidelity), count in CERTIFIED.items():
        row = (method, keep, p, sampling)
        if confidence == "hoeffding":
            assert CERTIFIED[*row, "betting", fidelity] < count
        if fidelity > FIDELITIES[0]:
            assert CERTIFIED[*row, confidence, FIDELITIES[FIDELITIES.index(fidelity) - 1]] < count


def test_paired_risks_are_those_of_the_iia_table():
    for (first, second, _), difference in PAIRED.items():
        assert difference.value == pytest.approx(difference.first - difference.second, abs=1e-9)
        assert difference.significant == (abs(difference.value) > difference.radius)
        for method, risk in ((first, difference.first), (second, difference.second)):
            assert IIA[method, 256, 0.5].value == pytest.approx(1 - risk, abs=1e-9)
