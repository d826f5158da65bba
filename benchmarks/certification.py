"""Betting intervals for a stream of 10,000 losses: after the last trial, and as a trace (Waudby-Smith & Ramdas; CIF).

The baseline is plain Python: for each requested time it bisects both ends over candidate means and walks the stream
once per candidate. Floats of Python are faster here than scalars of NumPy. A second rival walks a vector of
candidates in NumPy, one bisection of all requested times together. Ours gives the interval after every trial.
"""

from collections.abc import Callable
from math import log

import numpy as np

from abstraction.evaluation.sequences import Bounds, confidence_sequence, interval
from benchmarks.records import Row, compare, measure, require_agreement

TRIALS = 10_000
RISK = 0.0162
DELTA = 0.05
TIMES = np.linspace(TRIALS / 50, TRIALS, 50).astype(int)
METHOD = "betting-two-sided"
LIMIT = 0.5
STEPS = 17
BASELINE = "Python bisection"
_ETA = 2 / (2 - log(3))


def run(budget: float) -> list[Row]:
    """Time the last interval and the trace."""
    losses = (np.random.default_rng(0).random(TRIALS) < RISK).astype(float)
    return _last(losses, budget) + _trace(losses, budget)


def _last(losses: np.ndarray, budget: float) -> list[Row]:
    functions = {
        BASELINE: lambda: python_trace(losses, TIMES[-1:]),
        "NumPy bisection": lambda: numpy_trace(losses, TIMES[-1:]),
        "abstraction": lambda: _ends(interval(losses, DELTA, method=METHOD))[:, None],
    }
    # Bisection and zoom each stop within 1e-5 of the end.
    require_agreement({name: function() for name, function in functions.items()}, atol=2e-5)
    return _compare("interval after the last trial", functions, budget)


def _trace(losses: np.ndarray, budget: float) -> list[Row]:
    ours = "abstraction, at every trial"
    functions = {
        BASELINE: lambda: python_trace(losses, TIMES),
        "NumPy bisection": lambda: numpy_trace(losses, TIMES),
        ours: lambda: _ends(confidence_sequence(losses, DELTA, method=METHOD)),
    }
    results = {name: function() for name, function in functions.items()}
    results[ours] = results[ours][:, TIMES - 1]
    # Ours are rounded outwards by about one percent of the distance from the mean, at most 0.08 at these times.
    require_agreement(results, atol=1.5e-3)
    return _compare("intervals after every 200th trial", functions, budget)


def _compare(what: str, functions: dict[str, Callable[[], np.ndarray]], budget: float) -> list[Row]:
    timings = {
        name: measure(function, budget=budget, compiled=name.startswith("abstraction"), least=2)
        for name, function in functions.items()
    }
    return compare("certification", f"{what} of {TRIALS}", timings, baseline=BASELINE)


def _ends(bounds: Bounds) -> np.ndarray:
    return np.stack([bounds.lower, bounds.upper])


def python_trace(losses: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Bisect both ends time by time, `[2, times]`."""
    stream, ends = losses.tolist(), []
    for time in times.tolist():
        past = stream[:time]
        mean = sum(past) / time
        ends.append((_bisect(past, mean, 0.0), _bisect(past, mean, 1.0)))
    return np.minimum.accumulate(np.array(ends).T * [[-1], [1]], axis=1) * [[-1], [1]]


def _bisect(past: list[float], inside: float, outside: float) -> float:
    for _ in range(STEPS):
        middle = (inside + outside) / 2
        if _largest_log_capital(past, middle) >= log(1 / DELTA):
            outside = middle
        else:
            inside = middle
    return outside


def _largest_log_capital(past: list[float], mean: float) -> float:
    capital, largest, bet, energy = 0.0, 0.0, 0.0, 1.0
    for loss in past:
        gain = 1.0 + bet * (loss - mean)
        capital += log(gain)
        if capital > largest:
            largest = capital
        gradient = (loss - mean) / gain
        energy += gradient * gradient
        bet += _ETA * gradient / energy
        if bet > LIMIT:
            bet = LIMIT
        elif bet < -LIMIT:
            bet = -LIMIT
    return largest


def numpy_trace(losses: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Bisect the ends at all times at once: each step walks one candidate per end through the whole stream."""
    means = np.cumsum(losses)[times - 1] / times
    inside, outside = np.tile(means, 2), np.repeat([0.0, 1.0], len(times))
    for _ in range(STEPS):
        middle = (inside + outside) / 2
        rejected = _crossings(losses, middle) <= np.tile(times, 2)
        outside, inside = np.where(rejected, middle, outside), np.where(rejected, inside, middle)
    return np.minimum.accumulate(outside.reshape(2, -1) * [[-1], [1]], axis=1) * [[-1], [1]]


def _crossings(losses: np.ndarray, means: np.ndarray) -> np.ndarray:
    capital, bet, energy = np.zeros(len(means)), np.zeros(len(means)), np.ones(len(means))
    crossed = np.full(len(means), len(losses) + 1)
    for trial, loss in enumerate(losses, 1):
        surprise = loss - means
        gain = 1 + bet * surprise
        capital += np.log(gain)
        crossed[(capital >= log(1 / DELTA)) & (crossed > trial)] = trial
        gradient = surprise / gain
        energy += gradient**2
        bet = np.minimum(np.maximum(bet + _ETA * gradient / energy, -LIMIT), LIMIT)
    return crossed
