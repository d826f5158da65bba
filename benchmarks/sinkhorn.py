"""Batches of entropic couplings in the log domain, the same number of iterations for everyone (PLOT, Sec. 3.2).

POT solves one problem at a time in float64 on the columns in scope; `ot.batch` solves all at once, which takes equal
shapes and eps divided out of the costs. Ours solves every scope at every eps in one program, in float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from abstraction.localization.couplings import relative_epsilons, sinkhorn_couplings
from benchmarks.records import Row, compare, measure, require_agreement

try:
    import ot
    from ot.batch import solve_batch
except ImportError as error:
    raise ImportError("POT is not installed; install the baselines with: pip install -e '.[benchmarks]'") from error

ITERATIONS = 2000
BASELINE = "POT sinkhorn_log, one problem at a time"


class Case(NamedTuple):
    """Costs, the columns each scope may use, and eps relative to the spread of the costs in scope."""

    cost: np.ndarray
    scopes: np.ndarray
    ratios: tuple[float, ...]


def cases() -> list[Case]:
    """Hierarchical equality (2 variables, three layers of 16 units), and a search of a thousand sites."""
    generator = np.random.default_rng(0)
    cost = lambda *shape: generator.uniform(0, 100, shape).astype(np.float32)
    layers = np.repeat(np.eye(3, dtype=bool), 16, axis=1)
    return [
        Case(cost(2, 48), layers, (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
        Case(cost(8, 1000), np.ones((1, 1000), bool), (0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 3.0)),
    ]


def run(budget: float) -> list[Row]:
    """Time every case."""
    return [row for case in cases() for row in _run(case, budget)]


def _run(case: Case, budget: float) -> list[Row]:
    epsilons = relative_epsilons(case.cost, case.scopes, case.ratios)
    ours = lambda: sinkhorn_couplings(case.cost, epsilons, case.scopes, iterations=ITERATIONS).plan
    rivals: dict[str, Callable[[], np.ndarray]] = {
        BASELINE: lambda: pot_loop(case, epsilons),
        "POT batch, all problems at once": lambda: pot_batch(case, epsilons),
    }
    require_agreement({"abstraction": ours(), BASELINE: rivals[BASELINE]()}, atol=1e-5)
    # The batch solver scales rows first, the others columns: at the smallest eps that still shows after all iterations.
    require_agreement({name: function() for name, function in rivals.items()}, atol=2e-4)
    timings = {name: measure(function, budget=budget) for name, function in rivals.items()}
    timings["abstraction"] = measure(ours, budget=budget, compiled=True)
    shapes = " + ".join(f"{len(case.cost)}x{scope.sum()}" for scope in case.scopes)
    size = f"{shapes} costs x {len(case.ratios)} eps, {ITERATIONS} iterations"
    return compare("sinkhorn", size, timings, baseline=BASELINE)


def pot_loop(case: Case, epsilons: np.ndarray) -> np.ndarray:
    """Solve problem by problem; a stopping threshold of zero runs all iterations."""
    plans = np.zeros((*epsilons.shape, *case.cost.shape))
    for g, scope in enumerate(case.scopes):
        cost = case.cost[:, scope].astype(np.float64)
        for r, epsilon in enumerate(epsilons[g]):
            plans[g, r][:, scope] = ot.sinkhorn(
                [], [], cost, float(epsilon), method="sinkhorn_log", numItermax=ITERATIONS, stopThr=0, warn=False
            )
    return plans


def pot_batch(case: Case, epsilons: np.ndarray) -> np.ndarray:
    """Solve all problems at once; scopes have equally many columns here."""
    costs = np.stack([case.cost[:, scope].astype(np.float64) for scope in case.scopes])
    scaled = costs[:, None] / epsilons[..., None, None]
    solved = solve_batch(
        scaled.reshape(-1, *scaled.shape[2:]), reg=1.0, max_iter=ITERATIONS, tol=0.0, method="log_sinkhorn"
    )
    plans = np.zeros((*epsilons.shape, *case.cost.shape))
    for g, scope in enumerate(case.scopes):
        plans[g][..., scope] = np.asarray(solved.plan).reshape(scaled.shape)[g]
    return plans
