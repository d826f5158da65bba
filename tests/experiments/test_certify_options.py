"""Options of the certification experiment: defaults, the small version, what is refused, and the help."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from experiments.certify import experiment as certify
from experiments.certify.options import (
    Certify,
    CoverageOptions,
    MarginOptions,
    PairedOptions,
)
from experiments.harness.running import run_experiment
from experiments.reduction.options import Data, NetworkOptions, kept_units


def test_defaults_are_the_published_settings():
    config = Certify()
    dataclasses.replace(config, network=NetworkOptions(width=512)).check()
    assert [kept_units(keep, 512) for keep in config.keeps] == [512, 384, 256, 128, 64, 32]
    assert (config.trials, config.delta, config.alpha, config.seeds) == (10_000, 0.05, 0.3, "0")
    assert kept_units(384.0, 512) == 384


REFUSED = {
    "keep above the width": ({"keeps": (200.0,)}, r"got --keeps \[200.0\], expected at most 128 units, the width"),
    "half a unit": ({"keeps": (2.5,)}, r"got --keeps \[2.5\], expected shares in \(0, 1\]"),
    "no unit": ({"keeps": (0.0,)}, r"got --keeps \[0.0\], expected shares in"),
    "one budget twice": ({"keeps": (0.5, 64.0)}, r"got --keeps \[64, 64\], expected budgets that are each there once"),
    "a keep of a study": ({"paired": PairedOptions(keep=129)}, r"got --paired.keep \[129\], expected at most 128"),
    "probability 2": (
        {"probabilities": (0.1, 2.0)},
        r"got --probabilities \[0.1, 2.0\], expected values in \(0, 1\), each once",
    ),
    "probability 0": ({"coverage": CoverageOptions(probability=0.0)}, r"got --coverage.probability 0.0, expected"),
    "fidelity 1.2": ({"fidelities": (1.2,)}, r"got --fidelities \[1.2\], expected values in \(0, 1\), each once"),
    "no trials": ({"trials": 0}, "got --trials 0, expected at least 1"),
    "no orders": ({"orders": 0}, "got --orders 0, expected at least 1"),
    "no streams": ({"coverage": CoverageOptions(repetitions=0)}, "got --coverage.repetitions 0, expected at least 1"),
    "looks beyond the end": ({"coverage": CoverageOptions(every=3000)}, "got --coverage.every 3000, expected .* 2000"),
    "delta 0": ({"delta": 0.0}, r"got --delta 0.0, expected in \(0, 1\)"),
    "alpha 1": ({"alpha": 1.0}, r"got --alpha 1.0, expected in \[0, 1\)"),
    "nothing to compare": ({"methods": ("vbp",)}, r"got --methods \['vbp'\], expected two or more"),
    "a method twice": ({"methods": ("vbp", "vbp")}, r"got --methods \['vbp', 'vbp'\], expected some of .* each once"),
    "an unknown method": (
        {"coverage": CoverageOptions(method="best")},
        r"got --coverage.method best, expected some of",
    ),
    "a margin at p = 1": ({"margins": MarginOptions(probabilities=(1.0,))}, r"got --margins.probabilities \[1.0\]"),
    "too few calibration images": ({"calibration": 64}, "got --calibration 64, expected more than 96"),
    "no study": ({"studies": ()}, r"got --studies \[\], expected one or more some of"),
    "a broken network": ({"network": NetworkOptions(epochs=0)}, "got --network.epochs 0, expected at least 1"),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_options_that_cannot_work_are_refused_in_one_line(changes: dict[str, Any], words: str, tmp_path: Path):
    config = Certify(data=Data("digits"), out=tmp_path / "run")
    with pytest.raises(ValueError, match=words) as refusal:
        run_experiment(certify.EXPERIMENT, dataclasses.replace(config, **changes))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_more_calibration_images_than_there_are_leave_no_run_behind(tmp_path: Path):
    config = Certify(data=Data("digits"), calibration=5000, out=tmp_path / "run")
    with pytest.raises(ValueError, match="got 5000 calibration rows, expected between 1 and the 1297"):
        run_experiment(certify.EXPERIMENT, config)
    assert not (tmp_path / "run").exists()
