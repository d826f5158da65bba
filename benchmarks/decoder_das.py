"""DAS at the last token of a decoder as wide as a small language model: 24 rotations of ranks 1 to 64.

Blocks of SmolLM2-135M's shape (width 576, 9 heads, 3 of keys and values, 1536 hidden units), four of them, drawn at
random; 64 pairs of 100 tokens. What users call trains one subspace after another, and runs source and patched base in
every batch; a few of the 24 are timed and scaled. The last PyTorch row is the best we could write, from what has been
recorded, as in ours.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from abstraction.evaluation import Recorded
from abstraction.localization import Rotation, SearchConfig, candidate_grid, full_supports
from abstraction.localization.searching import train_candidates
from abstraction.localization.supports import Candidates
from benchmarks.records import Row, compare, measure, require_agreement
from benchmarks.suffix import TAP, Problem, decoder_problem
from benchmarks.torch_decoder import cache_prefix, last_states, llama
from benchmarks.torch_decoder_das import Group, Task, train_hooked, train_pyvene, train_together
from benchmarks.torch_oracle import measure_torch, tensor

PAIRS, TOKENS, VOCABULARY, DEPTH, WIDTH = 64, 100, 1000, 4, 576
RANKS, DEPTHS, STEPS, BATCH = (1, 2, 4, 8, 16, 32, 48, 64), (0, 1, 2), 10, 16
TIMED, TIMED_STEPS = ((0, 64), (1, 8), (2, 1)), 2
"""Depths and ranks of the searches that are timed one by one, and for how many steps."""
START_KEY, ORDER_KEY = jax.random.split(jax.random.key(0))


def run(budget: float) -> list[Row]:
    """Time ten steps of all searches."""
    network = llama(vocabulary=VOCABULARY, width=WIDTH, depth=DEPTH, heads=(9, 3), hidden=1536, tokens=TOKENS)
    problem = decoder_problem(network, PAIRS)
    labels = np.asarray(problem.view(problem.prompts()[1])[0].argmax(axis=-1))
    tap, recorded = problem.view.taps[TAP], problem.record(labels)
    candidates = candidate_grid(
        START_KEY, tap, full_supports(tap, range(1), DEPTHS), ranks=RANKS, learning_rates=(1e-3,)
    )
    base, source = problem.tensors()
    task = Task(base, source, torch.tensor(labels, dtype=torch.long), STEPS, BATCH)
    cached, base_states = cache_prefix(network, base, source, BATCH), last_states(network, base, BATCH)
    groups, order = grouped(candidates)
    together = lambda task: torch.cat(train_together(network, task, cached, base_states, groups)).numpy()
    whole = task._replace(steps=1, batch=PAIRS)
    require_agreement(
        {"abstraction": train(problem, recorded, candidates, 1, PAIRS)[0][order], "PyTorch": together(whole)}, atol=1e-4
    )
    part = f"{TIMED_STEPS} steps of {len(TIMED)} of {len(order)} timed and scaled"
    short, scale = task._replace(steps=TIMED_STEPS), len(order) / len(TIMED) * STEPS / TIMED_STEPS
    one_by_one = lambda rival: np.array([rival(network, short, depth, rank) for depth, rank in TIMED])
    pyvene, hooks = (f"{name}, one by one, source run in each batch, {part}" for name in ("pyvene", "PyTorch hooks"))
    best = "PyTorch, all rotations of a layer at once, thin frames, keys and values reused, once recorded"
    timings = {
        pyvene: measure(lambda: one_by_one(train_pyvene), budget=0, least=1).scaled(scale),
        hooks: measure(lambda: one_by_one(train_hooked), budget=0, least=1).scaled(scale),
        best: measure_torch(lambda: together(task), budget=budget),
        "abstraction, recording and training": measure(
            lambda: train(problem, problem.record(labels), candidates, STEPS, BATCH), budget=budget, compiled=True
        ),
        "abstraction, once recorded": measure(
            lambda: train(problem, recorded, candidates, STEPS, BATCH), budget=budget, compiled=True
        ),
    }
    size = f"{len(order)} rotations of width {WIDTH}, ranks 1 to {RANKS[-1]}, {STEPS} batches of {BATCH} pairs"
    return compare("decoder-das", size, timings, baseline=pyvene)


def grouped(candidates: Candidates) -> tuple[list[Group], np.ndarray]:
    """Put candidates of one depth together, and say which they are."""
    members = [np.flatnonzero(candidates.depth == depth) for depth in np.unique(candidates.depth)]
    groups = [
        Group(int(candidates.depth[rows[0]]), tensor(candidates.start[rows]), tensor(candidates.rank[rows]))
        for rows in members
    ]
    return groups, np.concatenate(members)


def train(problem: Problem, recorded: Recorded, candidates: Candidates, steps: int, batch: int) -> np.ndarray:
    """Train all rotations and return their losses, `[steps, C]`."""
    config = SearchConfig(batch_size=batch, max_epochs=steps, min_epochs=steps, patience=steps, steps_per_epoch=1)
    return np.asarray(
        jnp.asarray(train_candidates(ORDER_KEY, problem.view, recorded, candidates, Rotation(), config).curve)
    )
