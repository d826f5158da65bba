"""Full DAS on 4-bit binary addition at the authors' budget: 120 rotations of a GRU's state, 48 steps of 64 pairs each.

4 timesteps x 5 ranks x 2 learning rates x 3 carries; then the same with every rotation evaluated at six strengths on
1664 calibration pairs, and a choice. PyTorch trains one rotation after another in three ways (see `torch_addition`), of
which four rotations, one per timestep, are timed and scaled to all; and the 30 of a timestep at once. All start at the
same rotations. Ours is timed from the pairs on, recordings included; the recordings of PyTorch are not timed.
"""

from itertools import groupby
from typing import NamedTuple

import jax
import numpy as np
import optax
import torch

from abstraction.causal import PairBank
from abstraction.evaluation import Bits, Recorded, record
from abstraction.evaluation.readouts import FactualLoss
from abstraction.localization import (
    AlignmentSearch,
    Rotation,
    Search,
    SearchConfig,
    alignment_search,
    candidate_grid,
    full_supports,
)
from abstraction.localization.searching import Searched, train_candidates
from abstraction.localization.supports import Candidates
from abstraction.models import GRU, Network
from abstraction.tasks import addition
from abstraction.training import Schedule, fit
from benchmarks.records import Row, compare, measure, require_agreement
from benchmarks.torch_addition import (
    Run,
    TorchGRU,
    TorchPairs,
    TorchSearch,
    leading_columns,
    pair_by_pair,
    pair_loss,
    resumed,
    scores,
    scores_together,
    source_too,
    starts,
    together,
    torch_gru,
    torch_pairs,
    train,
    train_together,
)
from benchmarks.torch_oracle import measure_torch, tensor

TAP, READOUT, MODEL = "hidden", Bits(), GRU(2, 16, 4)
BATCH, EPOCHS, STEPS_PER_EPOCH = 64, 12, 4
STEPS = EPOCHS * STEPS_PER_EPOCH
RANKS, RATES, STRENGTHS = (1, 2, 4, 8, 16), (0.01, 0.003), (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
TIMED = [(0, 1, 0, 0.01), (1, 4, 1, 0.003), (2, 16, 2, 0.01), (3, 8, 0, 0.003)]
"""Timestep, rank, variable and learning rate of the searches that are timed one after another in PyTorch."""
LOOPS: dict[str, tuple[Run, int | None]] = {
    "source run in each batch": (source_too, BATCH),
    "batches put together pair by pair, as the authors do": (pair_by_pair, BATCH),
    "resumed at the timestep": (resumed, None),
}
"""How PyTorch runs a batch, and how many calibration pairs make one; None for all of them."""
BASELINE = "source run in each batch"
START_KEY, ORDER_KEY = jax.random.split(jax.random.key(0))


class Problem(NamedTuple):
    """A trained adder, its banks and the searches: ours, and the same in PyTorch."""

    adder: Network
    banks: addition.Banks
    candidates: Candidates
    network: TorchGRU
    fit: TorchPairs
    calibration: TorchPairs
    searches: list[TorchSearch]

    @property
    def timed(self) -> list[int]:
        """Indices of the searches in `TIMED`."""
        keys = [(search.step, search.rank, search.variable, search.rate) for search in self.searches]
        return [keys.index(key) for key in TIMED]

    @property
    def groups(self) -> list[list[int]]:
        """Indices of the searches of each timestep, in the order of their rates."""
        key = lambda index: (self.searches[index].step, self.searches[index].rate)
        order = sorted(range(len(self.searches)), key=key)
        return [list(group) for _, group in groupby(order, key=lambda index: self.searches[index].step)]


def run(budget: float) -> list[Row]:
    """Time training, and training with calibration."""
    problem = addition_problem()
    require_equal_losses(problem)
    require_equal_scores(problem)
    return [*_rows(problem, False, budget), *_rows(problem, True, budget)]


def addition_problem(seed: int = 0) -> Problem:
    """Train an adder for a second, draw the banks, and start the searches.

    Raises:
      RuntimeError: the adder makes mistakes.
    """
    settings = addition.every_input()
    data = {"inputs": addition.encode(settings), "labels": settings["a"] + settings["b"]}
    init_key, order_key = jax.random.split(jax.random.key(seed))
    start = MODEL.init(init_key)
    params = fit(order_key, FactualLoss(MODEL, READOUT), start, optax.adam(2e-2), data, Schedule(64, 30)).params
    wrong = int((READOUT.decode(MODEL.apply(params, data["inputs"])[0]) != data["labels"]).sum())
    if wrong:
        raise RuntimeError(f"the adder gets {wrong} of {len(data['labels'])} sums wrong, expected none")
    banks = addition.structured_banks(seed)
    tap = MODEL.taps[TAP]
    supports = full_supports(tap, range(len(banks.fit.variables)))
    candidates = candidate_grid(START_KEY, tap, supports, ranks=RANKS, learning_rates=RATES)
    columns = (candidates.depth, candidates.rank, candidates.variable)
    rates = np.asarray(candidates.learning_rate).astype(float).round(6)
    searches = [
        TorchSearch(int(step), int(rank), int(variable), float(rate), tensor(encoder))
        for step, rank, variable, rate, encoder in zip(*columns, rates, candidates.start, strict=True)
    ]
    network = torch_gru(params)
    fit_pairs, calibration_pairs = (torch_pairs(network, bank) for bank in (banks.fit, banks.calibration))
    return Problem(Network(MODEL, params), banks, candidates, network, fit_pairs, calibration_pairs, searches)


def train_ours(
    problem: Problem, batch_size: int = BATCH, epochs: int = EPOCHS, steps: int = STEPS_PER_EPOCH
) -> Searched:
    """Train all searches at once, none of them stopping early."""
    fit_pairs, config = _record(problem, problem.banks.fit), _config(batch_size, epochs, steps)
    return train_candidates(ORDER_KEY, problem.adder, fit_pairs, problem.candidates, Rotation(), config)


def search_ours(problem: Problem) -> AlignmentSearch:
    """Train all searches at once, evaluate them at every strength and choose."""
    fit_pairs, evidence = (_record(problem, bank) for bank in (problem.banks.fit, problem.banks.calibration))
    search = Search(Rotation(), _config(BATCH, EPOCHS, STEPS_PER_EPOCH), STRENGTHS, controls=None)
    return alignment_search(ORDER_KEY, problem.adder, fit_pairs, problem.candidates, search, evidence=evidence)


def _record(problem: Problem, bank: PairBank) -> Recorded:
    return record(problem.adder, addition.encode, bank, tap=TAP, readout=READOUT)


def _config(batch_size: int, epochs: int, steps: int) -> SearchConfig:
    return SearchConfig(
        batch_size=batch_size, steps_per_epoch=steps, max_epochs=epochs, min_epochs=epochs, patience=epochs
    )


def train_in_turn(problem: Problem, loop: str, calibrated: bool) -> np.ndarray:
    """Train each timed search in PyTorch; return its columns, or its scores, side by side."""
    run_batch, size = LOOPS[loop]
    found = []
    for search in (problem.searches[index] for index in problem.timed):
        frame = train(problem.network, problem.fit, search, run_batch, STEPS, BATCH)
        if calibrated:
            frame = scores(problem.network, problem.calibration, search, frame, run_batch, STRENGTHS, size)
        found.append(np.asarray(frame))
    return np.concatenate(found, axis=-1)


def train_by_timestep(problem: Problem, calibrated: bool) -> np.ndarray:
    """Train all searches of a timestep at once in PyTorch; return their columns or scores."""
    found = []
    for searches in ([problem.searches[index] for index in group] for group in problem.groups):
        frames = train_together(problem.network, problem.fit, searches, STEPS, BATCH)
        if calibrated:
            frames = scores_together(problem.network, problem.calibration, searches, frames, STRENGTHS)
        found.append(frames.numpy())
    return np.concatenate(found)


def require_equal_losses(problem: Problem) -> None:
    """Compare the losses of all pairs at the starts."""
    size = problem.banks.fit.size
    ours = np.asarray(train_ours(problem, size, 1, 1).curve[0])
    every, network, pairs = torch.arange(size), problem.network, problem.fit
    timed = [problem.searches[index] for index in problem.timed]
    losses = {"abstraction": ours[problem.timed]}
    for name, (run_batch, _) in LOOPS.items():
        frames = [search.start[:, : search.rank] for search in timed]
        outputs = [run_batch(network, pairs, every, s, frame, 1.0) for s, frame in zip(timed, frames, strict=True)]
        losses[name] = np.array([pair_loss(*output) for output in outputs])
    # sums of float32 logistic losses of about 1 to 10 nats
    require_agreement(losses, atol=1e-5, rtol=1e-5)
    for group in problem.groups:
        searches = [problem.searches[index] for index in group]
        outputs = together(network, pairs, every, searches, leading_columns(starts(searches), searches), 1.0)
        theirs = [pair_loss(*output) for output in zip(*outputs, strict=True)]
        require_agreement({"abstraction": ours[group], "together": theirs}, atol=1e-5, rtol=1e-5)


def require_equal_scores(problem: Problem) -> None:
    """Compare the accuracies of our trained rotations at all strengths on the calibration pairs."""
    searched, choice, _ = search_ours(problem)
    variable = np.asarray(problem.candidates.variable)
    ours = np.empty((len(variable), len(STRENGTHS)))
    for v in range(len(choice.scores)):
        ours[variable == v] = choice.scores[v].reshape(len(STRENGTHS), -1).T
    basis, network, pairs = searched.handles.basis, problem.network, problem.calibration
    if basis is None:
        raise RuntimeError("got searches without a basis, expected rotations")
    encoders = tensor(basis.encoder)
    found = {"abstraction": ours[problem.timed]}
    for name, (run_batch, size) in LOOPS.items():
        found[name] = np.array([
            scores(network, pairs, search, encoders[index][:, : search.rank], run_batch, STRENGTHS, size)
            for index, search in ((index, problem.searches[index]) for index in problem.timed)
        ])  # fmt: skip
    # A score is the mean of two halves of at least 340 pairs; rounding error may flip a pair with a logit near 0.
    require_agreement(found, atol=2e-3)
    for group in problem.groups:
        searches = [problem.searches[index] for index in group]
        kept = torch.tensor(np.asarray(searched.handles.weight))[group][:, None, :]
        theirs = scores_together(network, pairs, searches, encoders[group] * kept, STRENGTHS)
        require_agreement({"abstraction": ours[group], "together": theirs}, atol=2e-3)


def _rows(problem: Problem, calibrated: bool, budget: float) -> list[Row]:
    count = len(problem.searches)
    part = f"{len(TIMED)} of {count} timed and scaled"
    label = lambda loop: f"PyTorch, rotation by rotation, {loop}, {part}"
    timings = {
        label(loop): measure_torch(lambda loop=loop: train_in_turn(problem, loop, calibrated), budget=budget).scaled(
            count / len(TIMED)
        )
        for loop in LOOPS
    }
    timings["PyTorch, all rotations of a timestep at once, resumed there"] = measure_torch(
        lambda: train_by_timestep(problem, calibrated), budget=budget
    )
    ours = (lambda: search_ours(problem).choice.scores) if calibrated else (lambda: train_ours(problem).handles)
    timings["abstraction"] = measure(ours, budget=budget, compiled=True)
    size = f"{count} rotations of 16x16, {STEPS} batches of {BATCH} pairs"
    if calibrated:
        size += f"; with calibration, {len(STRENGTHS)} strengths x {problem.banks.calibration.size} pairs"
    return compare("addition", size, timings, baseline=label(BASELINE))
