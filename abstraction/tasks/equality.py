"""Hierarchical equality: are W and X the same entity exactly when Y and Z are?

    WX = [W = X],   YZ = [Y = Z],   O = [WX = YZ]                          (PLOT, hierarchical equality benchmark)

Inputs are four of `ENTITIES` entities, each a fixed vector in U(-1, 1)^4; the network sees the four vectors in the
order W, X, Y, Z. Under uniform inputs P(O = 1) is about .98, so accuracy alone says little.

Two ways to draw pair banks:

`paper_banks`  reproduces the authors' banks draw by draw (NumPy PCG64): all ordered pairs of a pool of distinct
               rows, permuted twice. A pool of 2048 rows holds about twenty rows with W = X, so the pairs of one bank
               share a handful of equal entities.
`independent_banks`  draws every pair afresh, so a bank covers all entities and its pairs are independent, which is
               what a binomial interval assumes.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Int, Integer

from abstraction.causal import (
    PairBank,
    Quota,
    causal_model,
    changes,
    changes_exactly,
    concatenate_banks,
    sample_bank,
    unchanged,
)
from abstraction.causal.pairs import Role, restrict, shared_pairs
from abstraction.causal.sampling import changes_any, changes_none
from abstraction.checks import is_whole, whole
from abstraction.tasks.ranges import check_indices
from abstraction.typing import AnyArray, Setting

ENTITIES = 100
ENTITY_WIDTH = 4
INPUTS = ("w", "x", "y", "z")
POOL_SEED = 17
"""What the authors add to a bank's seed to draw its pool."""
VARIABLES = ("wx", "yz")
CLASSES = 2

EQUALITY = causal_model(
    INPUTS,
    "o",
    wx=lambda w, x: w == x,
    yz=lambda y, z: y == z,
    o=lambda wx, yz: wx == yz,
)

CalibrationPolicy = Literal[
    "shared_only",
    "shared_wx_positive",
    "shared_yz_positive",
    "shared_any_positive",
    "shared_any_mixed50",
    "shared_both_positive",
    "separate_variable_positive",
    "separate_variable_only",
]


class Banks(NamedTuple):
    """The pair banks of one run, by role. Test banks go by the name of the split they report.

    Attributes:
      fit: pairs for signatures and training.
      calibration: pairs for choosing.
      tests: `test` (sensitive pairs), `test-invariant` (the output must not change) and `test-specific` (the output
        would change for the other variable and must not change for this one).
    """

    fit: PairBank
    calibration: PairBank
    tests: dict[str, PairBank]


def entities(seed: int) -> Float[np.ndarray, "entities width"]:
    """Draw the vector of every entity, U(-1, 1), from `default_rng(seed)`.

    Raises:
      ValueError: the seed is negative or no whole number.
    """
    whole("seed", seed, 0)
    vectors = np.random.default_rng(seed).uniform(-1.0, 1.0, (ENTITIES, ENTITY_WIDTH))
    return vectors.astype(np.float32)


def encode(vectors: Float[AnyArray, "entities width"], rows: Integer[AnyArray, "N 4"]) -> Float[AnyArray, "N 4*width"]:
    """Concatenate the vectors of W, X, Y, Z: the network's input.

    Raises:
      ValueError: where their values are known: rows of other than four entities, or an entity without a vector.
    """
    if np.ndim(rows) != 2 or np.shape(rows)[1] != len(INPUTS):
        raise ValueError(f"got rows of shape {np.shape(rows)}, expected (N, {len(INPUTS)})")
    if not isinstance(rows, Tracer):
        check_indices("rows", rows, len(vectors))
    numpy = rows.__array_namespace__()
    return numpy.asarray(vectors)[rows].reshape(rows.shape[0], -1)


def encoded_rows(batch: Mapping[str, AnyArray], vectors: AnyArray) -> AnyArray:
    """Encode the rows of a training batch, as `abstraction.evaluation.readouts.FactualLoss` asks for its inputs."""
    return encode(vectors, batch["rows"])


def rows_of(setting: Setting) -> Int[np.ndarray, "N 4"]:
    """Stack the input variables of a setting into rows in the order W, X, Y, Z."""
    return np.stack([np.asarray(setting[name]) for name in INPUTS], axis=-1)


def factual_data(seed: int, count: int) -> dict[str, np.ndarray]:
    """Draw uniform rows (`rows`, `[count, 4]` uint8) and their outputs (`labels`, `[count]` int32).

    Raises:
      ValueError: fewer than one row, or a negative seed.
    """
    whole("seed", seed, 0)
    whole("count", count, 1)
    rows = np.random.default_rng(seed).integers(0, ENTITIES, (count, len(INPUTS)), dtype=np.uint8)
    labels = np.asarray(EQUALITY.run(_setting(rows))["o"]).astype(np.int32)
    return {"rows": rows, "labels": labels}


def balanced_data(seed: int, count: int) -> dict[str, np.ndarray]:
    """Draw rows and outputs as `factual_data` does, but with every combination of WX and YZ equally often.

    Uniform rows have WX and YZ both true once in ten thousand, so they say nothing about that case.

    Returns:
      `rows`, `labels`, and `cells`, `[count]`, the combination 2 WX + YZ.

    Raises:
      ValueError: fewer than one row, or a negative seed.
    """
    whole("seed", seed, 0)
    whole("count", count, 1)
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, ENTITIES, (count, len(INPUTS)))
    cells = np.arange(count) % 4
    for first, second, equal in ((0, 1, cells >= 2), (2, 3, cells % 2 == 1)):
        other = (rows[:, first] + generator.integers(1, ENTITIES, count)) % ENTITIES
        rows[:, second] = np.where(equal, rows[:, first], other)
    labels = np.asarray(EQUALITY.run(_setting(rows))["o"]).astype(np.int32)
    return {"rows": rows.astype(np.uint8), "labels": labels, "cells": cells}


def pool_stream(seed: int, pool: int, chunk: int = 65536) -> Iterator[tuple[Setting, Setting]]:
    """Yield all ordered pairs of `pool` distinct rows in the authors' order.

    The pool is `default_rng(seed + 17).choice(100^4, pool, replace=False)` read as base-100 digits, W first. The
    pairs (b != s), enumerated base-major, are permuted twice by one `default_rng(seed)`.

    Shuffling 32-bit integers draws the same random numbers as `permutation` and moves half the memory.

    Raises:
      ValueError: a number out of its range.
    """
    whole("seed", seed, 0)
    whole("chunk", chunk, 1)
    if not is_whole(pool) or not 2 <= pool <= 46341:
        raise ValueError(f"got a pool of {pool} rows, expected between 2 and 46341")
    total = pool * (pool - 1)
    codes = np.random.default_rng(seed + POOL_SEED).choice(ENTITIES ** len(INPUTS), size=pool, replace=False)
    rows = np.stack([codes // ENTITIES**power % ENTITIES for power in (3, 2, 1, 0)], axis=-1)
    generator = np.random.default_rng(seed)
    first, second = (np.arange(total, dtype=np.int32) for _ in range(2))
    generator.shuffle(first)
    generator.shuffle(second)
    for start in range(0, total, chunk):
        base, source = np.divmod(first[second[start : start + chunk]], pool - 1)
        source = source + (source >= base)
        yield _setting(rows[base]), _setting(rows[source])


def independent_stream(seed: int, chunk: int = 65536) -> Iterator[tuple[Setting, Setting]]:
    """Yield pairs of independent uniform rows, without end.

    Raises:
      ValueError: a number out of its range.
    """
    whole("seed", seed, 0)
    whole("chunk", chunk, 1)
    generator = np.random.default_rng(seed)
    while True:
        rows = generator.integers(0, ENTITIES, (2, chunk, len(INPUTS)))
        yield _setting(rows[0]), _setting(rows[1])


def paper_banks(
    seed: int,
    *,
    size: int = 1000,
    fit_pool: int = 2048,
    calibration_pool: int = 4096,
    test_pool: int = 2048,
    calibration: CalibrationPolicy = "shared_only",
) -> Banks:
    """Draw the authors' banks for one seed, exactly, and a `test-specific` bank they do not have.

    Seeds, in the authors' order: fit s+201; calibration s+306 (and s+307 for a second bank); test s+401 (WX) and
    s+402 (YZ); invariant test s+501 and s+502. The specific test pairs are drawn independently.

    Args:
      seed: the run's seed s.
      size: pairs per bank (per variable in the test banks).
      fit_pool: distinct rows the fit pairs are made of; likewise `calibration_pool`, `test_pool`.
      calibration: which pairs calibrate; the paper's default is half WX-only and half YZ-only.

    Raises:
      ValueError: a pool cannot fill its quotas, or a bank would be empty.
    """
    whole("seed", seed, 0)
    whole("size", size, 2)
    half = size // 2
    jobs = [(seed + 201, fit_pool, [changes_any(half), changes_none(size - half)], "fit")]
    jobs += [(seed + 401 + v, test_pool, [changes(v, size)], "test") for v in range(2)]
    jobs += [(seed + 501 + v, test_pool, [unchanged(v, size)], "test") for v in range(2)]
    jobs += _calibration_jobs(seed, size, calibration_pool, calibration)
    with ThreadPoolExecutor() as threads:
        banks = list(threads.map(lambda job: _pooled(*job), jobs))
    fit, tests, calibrations = banks[0], banks[1:5], banks[5:]
    if calibration.startswith("separate"):
        calibrations = [restrict(bank, v) for v, bank in enumerate(calibrations)]
    return disjoint(
        Banks(
            fit,
            concatenate_banks(*calibrations),
            {
                "test": _per_variable(tests[:2]),
                "test-invariant": _per_variable(tests[2:]),
                "test-specific": _specific_test(seed, size),
            },
        )
    )


def independent_banks(
    seed: int,
    *,
    fit: int = 8000,
    calibration: int = 3000,
    test: int = 1000,
    both: float = 0.02,
    tests: dict[str, PairBank] | None = None,
) -> Banks:
    """Draw banks whose pairs are all independent of each other.

    Fit and calibration hold as many pairs that change for neither variable, for WX alone and for YZ alone, and a share
    that change for both. The last are four in ten thousand among random pairs and the only ones that put WX and YZ to
    the test together. Test: as in the paper.

    Args:
      seed: the run's seed.
      fit: number of fit pairs; likewise `calibration`, and `test` per variable and split.
      both: share of the fit and calibration pairs that change for both variables, in [0, 1].
      tests: test banks to use instead of drawing some.

    Raises:
      ValueError: the share is out of range, a bank would be empty, or a fit or calibration pair is in a test bank.
    """
    whole("seed", seed, 0)
    for name, count in {"fit": fit, "calibration": calibration, "test": test}.items():
        whole(name, count, 1)
    if tests is None:
        tests = {
            "test": _per_variable([_drawn(seed + 2401 + v, [changes(v, test)], "test") for v in range(2)]),
            "test-invariant": _per_variable([_drawn(seed + 2501 + v, [unchanged(v, test)], "test") for v in range(2)]),
            "test-specific": _specific_test(seed, test),
        }
    return disjoint(
        Banks(
            _drawn(seed + 2201, _every_pattern(fit, both), "fit"),
            _drawn(seed + 2301, _every_pattern(calibration, both), "calibration"),
            tests,
        )
    )


def _calibration_jobs(
    seed: int, size: int, pool: int, policy: CalibrationPolicy
) -> list[tuple[int, int, list[Quota], Role]]:
    half = size // 2
    policies: dict[str, list[list[Quota]]] = {
        "shared_only": [[changes_exactly([0], half)], [changes_exactly([1], size - half)]],
        "shared_wx_positive": [[changes(0, size)]],
        "shared_yz_positive": [[changes(1, size)]],
        "shared_any_positive": [[changes_any(size)]],
        "shared_any_mixed50": [[changes_any(half), changes_none(size - half)]],
        "shared_both_positive": [[changes_exactly([0, 1], size)]],
        "separate_variable_only": [[changes_exactly([0], size)], [changes_exactly([1], size)]],
        "separate_variable_positive": [[changes(0, size)], [changes(1, size)]],
    }
    if policy not in policies:
        raise ValueError(f"got calibration policy {policy!r}, expected one of {list(policies)}")
    return [(seed + 306 + v, pool, quotas, "calibration") for v, quotas in enumerate(policies[policy])]


def _every_pattern(size: int, both: float) -> list[Quota]:
    if not 0 <= both <= 1:
        raise ValueError(f"got a share of {both}, expected a value in [0, 1]")
    joint = round(size * both)
    patterns = [(), (0,), (1,)]
    return [changes_exactly((0, 1), joint)] + [
        changes_exactly(pattern, (size - joint + index) // len(patterns)) for index, pattern in enumerate(patterns)
    ]


def _specific_test(seed: int, size: int) -> PairBank:
    return _per_variable([_drawn(seed + 2601 + v, [changes_exactly([1 - v], size)], "test") for v in range(2)])


def _drawn(seed: int, quotas: list[Quota], role: Role) -> PairBank:
    return sample_bank(EQUALITY, independent_stream(seed), quotas, variables=VARIABLES, role=role)


def _pooled(seed: int, pool: int, quotas: list[Quota], role: Role) -> PairBank:
    return sample_bank(EQUALITY, pool_stream(seed, pool), quotas, variables=VARIABLES, role=role)


def _per_variable(banks: Sequence[PairBank]) -> PairBank:
    return concatenate_banks(*(restrict(bank, v) for v, bank in enumerate(banks)))


def disjoint(banks: Banks) -> Banks:
    """Return the banks, none of whose test pairs is a fit or calibration pair.

    Raises:
      ValueError: some pair is in both.
    """
    used = {"fit": banks.fit, "calibration": banks.calibration}
    for split, test in banks.tests.items():
        for name, bank in used.items():
            if count := shared_pairs(bank, test):
                raise ValueError(f"got {count} pairs of the {name} bank in {split}, expected disjoint banks")
    return banks


def _setting(rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: rows[..., column] for column, name in enumerate(INPUTS)}
