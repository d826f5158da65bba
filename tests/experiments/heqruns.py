"""Helpers of the experiment tests: the command line in-process, a small configuration, and hand-made runs."""

import contextlib
import dataclasses
import io
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.equality.options import Equality
from experiments.harness.records import Row, RunFolder, Unit, create_run

SPLITS = ("test", "test-invariant", "test-specific")
VARIABLES = ("wx", "yz", "mean")
VALUES = [0.1 + 0.2, 1 / 3, 1e-300, 5e-324, -0.0, 123456789.123456789, math.inf, 7.0]
"""Numbers that are hard to write down."""
PAIRS = 1000
"""Pairs per variable and split of a hand-made run."""

SMALL_NETWORK = (
    "--backbone.depth 2 --backbone.rows 131072 --backbone.epochs 6 --backbone.batch-size 256 "
    "--backbone.learning-rate 5e-3 --backbone.validation-rows 2000"
)
SMALL_BANKS = (
    "--banks.size 100 --banks.fit 300 --banks.calibration 300 --banks.fit-pool 256 --banks.calibration-pool 256 "
    "--banks.test-pool 256 --control-draws 2 --control-shuffles 1"
)
SMALL_GRIDS = (
    "--plot.epsilons 0.1 1.0 --plot.subset-sizes 1 4 --plot.strengths 1.0 --plot.iterations 100 "
    "--das.ranks 1 4 --das.training.max-epochs 2 --das.training.batch-size 64"
)
SMALL = f"{SMALL_NETWORK} {SMALL_BANKS} {SMALL_GRIDS}".split()
"""A network that is right on 99% of uniform rows in a second, small banks and thin grids."""


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def command(*arguments: object) -> Ended:
    """Run `python -m experiments` with these arguments in this process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    status: int | str | None = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["experiments", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            status = end.code
    assert status is None or isinstance(status, int)
    for stream in (out, err):
        stream.seek(0)
    return Ended(status or 0, out.read(), err.read())


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def numbers(unit: Unit) -> dict[tuple, float]:
    """Return a unit's values by what they measure, without the times."""
    return {tuple(row[:-1]): row.value for row in unit.rows if not row.metric.startswith("seconds")}


def accuracy_rows(method: str, seed: int, accuracy: Mapping[str, float], pairs: int = PAIRS) -> list[Row]:
    """Make the rows a method leaves: IIA, bounds and pairs by variable and split; the variables are equal."""
    rows = []
    for split, value in accuracy.items():
        for variable in VARIABLES:
            values = {
                "iia": value,
                "iia_low": value - 0.01,
                "iia_high": value + 0.01,
                "pairs": float(pairs * (2 if variable == "mean" else 1)),
            }
            rows += [Row("heq", method, variable, split, name, seed, number) for name, number in values.items()]
    return rows


def time_rows(method: str, seed: int, seconds: Sequence[float]) -> list[Row]:
    """Make the rows of a method's times: full grid, at the selected eps, selected alone, compilation."""
    names = ("seconds", "seconds_epsilon", "seconds_selected", "seconds_compile")
    return [Row("heq", method, "mean", "test", name, seed, value) for name, value in zip(names, seconds, strict=True)]


def backbone_rows(seed: int, worst_cell: float = 1.0) -> list[Row]:
    """Make the rows of a backbone."""
    values = {
        "accuracy": 0.9998,
        "balanced_accuracy": 0.9987,
        "worst_cell": worst_cell,
        "epochs": 6.0 + seed,
        "seconds": 2.5,
    }
    return [Row("heq", "backbone", "output", "validation", name, seed, value) for name, value in values.items()]


def method_details(**changes: object) -> dict[str, object]:
    """Make the details of a method that ran without numerical trouble."""
    return {
        "settings": {"wx": {"epsilon": 0.25, "subset": 3}, "yz": {"epsilon": 1.0, "subset": 7}},
        "calibration_score": [0.9712, 0.9634],
        "ties": [5, 2],
        "candidates_per_variable": 321,
        "last_site_ambiguous": [False, False],
        "clamped_kernel": 0.0,
        "converged": 1.0,
        "finite": True,
        **changes,
    }


def handmade_unit(seed: int, accuracy: Mapping[str, float], *, worst_cell: float = 1.0, **details: object) -> Unit:
    """Make the unit of one seed from each method's IIA on sensitive pairs; invariant .97, specific .96."""
    rows = backbone_rows(seed, worst_cell)
    rows += accuracy_rows("control-identity", seed, {"test": 0.0, "test-invariant": 1.0, "test-specific": 1.0})
    arrays = {}
    for method, value in accuracy.items():
        rows += accuracy_rows(method, seed, {"test": value, "test-invariant": 0.97, "test-specific": 0.96})
        rows += accuracy_rows(f"control-random-{method}", seed, {"test": 0.412})
        rows += accuracy_rows(f"control-shuffled-{method}", seed, {"test": 0.487})
        rows += time_rows(method, seed, (4.0 * seed, 2.0, 1.0, 8.0))
        generator = np.random.default_rng(seed)
        arrays[f"{method}/plan"] = generator.uniform(size=(2, 12)).astype(np.float32)
        arrays[f"{method}/mass"] = generator.uniform(size=(2, 3, 4)).astype(np.float32)
    shared = {"data": "0" * 64, "backbone": {"accuracy": 0.9998}}
    return Unit(f"seed-{seed}", rows, {**shared, **{m: method_details(**details) for m in accuracy}}, arrays)


def handmade_run(path: Path, units: Sequence[Unit]) -> RunFolder:
    """Write hand-made units into a new run folder."""
    run = create_run(path, Equality(), resume=False)
    for unit in units:
        run.write_unit(unit)
    return run


@dataclasses.dataclass(frozen=True)
class Inner:
    """Nested options."""

    size: int = 3
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a run."""

    seeds: str = "1:3"
    method: str = "ot"
    inner: Inner = Inner()


def plain_unit(name: str = "seed-1", **arrays: np.ndarray) -> Unit:
    """Make a unit of a few rows whose values are hard to write down."""
    rows = [Row("heq", f"m{place}", "wx", "test", "iia", 1, value) for place, value in enumerate(VALUES)]
    return Unit(name, rows, {"note": "x", "nested": {"list": [1, 2.5, None, True]}}, arrays or {"a": np.arange(3.0)})
