"""DAS at the last token of a decoder as wide as a small language model: many rotations in a block, and one in each.

Blocks of SmolLM2-135M's shape (width 576, 9 heads, 3 of keys and values, 1536 hidden units) drawn at random, and 64
pairs of 100 tokens. Eight rotations, of ranks 1 to 64, in each of three blocks; and one of rank 64 in each of five, as
a band of Full DAS has it. What users call trains one subspace after another, and runs source and patched base in every
batch; a few are timed and scaled. The last PyTorch row is the best we could write, from what has been recorded, as in
ours: the rotations of a block at once, so that each block runs what follows it alone. Ours puts all in one batch where
few rows go, and runs the blocks before an edit in vain; the last row trains one after another and skips them.
"""

from typing import NamedTuple

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

PAIRS, TOKENS, VOCABULARY, WIDTH = 64, 100, 1000, 576
START_KEY, ORDER_KEY = jax.random.split(jax.random.key(0))


class Size(NamedTuple):
    """How many rotations are trained, where, and for how long; and which of them are timed one by one."""

    depth: int
    depths: tuple[int, ...]
    ranks: tuple[int, ...]
    steps: int
    batch: int
    timed: tuple[tuple[int, int], ...]
    """Depths and ranks of the searches that are timed one by one, for two steps."""

    @property
    def title(self) -> str:
        """Name the rows."""
        count, ranks = (
            len(self.depths) * len(self.ranks),
            " to ".join(map(str, sorted({self.ranks[0], self.ranks[-1]}))),
        )
        return (
            f"{count} rotations of width {WIDTH} in {len(self.depths)} blocks, ranks {ranks}, "
            f"{self.steps} batches of {self.batch} pairs"
        )


MANY = Size(4, (0, 1, 2), (1, 2, 4, 8, 16, 32, 48, 64), 10, 16, ((0, 64), (1, 8), (2, 1)))
EACH = Size(6, tuple(range(5)), (64,), 3, 32, ((0, 64), (2, 64), (4, 64)))
TIMED_STEPS = 2


def run(budget: float) -> list[Row]:
    """Time a few steps of all searches, where a block has many of them and where it has one."""
    return [row for size in (MANY, EACH) for row in size_rows(size, budget)]


def size_rows(size: Size, budget: float) -> list[Row]:
    """Time every way to train rotations of one size."""
    network = llama(vocabulary=VOCABULARY, width=WIDTH, depth=size.depth, heads=(9, 3), hidden=1536, tokens=TOKENS)
    problem = decoder_problem(network, PAIRS)
    labels = np.asarray(problem.view(problem.prompts()[1])[0].argmax(axis=-1))
    tap, recorded = problem.view.taps[TAP], problem.record(labels)
    candidates = candidate_grid(
        START_KEY, tap, full_supports(tap, range(1), size.depths), ranks=size.ranks, learning_rates=(1e-3,)
    )
    base, source = problem.tensors()
    task = Task(base, source, torch.tensor(labels, dtype=torch.long), size.steps, size.batch)
    cached, base_states = cache_prefix(network, base, source, size.batch), last_states(network, base, size.batch)
    groups, order = grouped(candidates)
    together = lambda task: torch.cat(train_together(network, task, cached, base_states, groups)).numpy()
    whole = task._replace(steps=1, batch=PAIRS)
    found = {
        "abstraction": train(problem, recorded, candidates, 1, PAIRS)[0][order], "PyTorch": together(whole),
        "one by one": one_after_another(problem, recorded, candidates, 1, PAIRS)[0][order],
    }  # fmt: skip
    require_agreement(found, atol=1e-4)
    part = f"{TIMED_STEPS} steps of {len(size.timed)} of {len(order)} timed and scaled"
    short, scale = task._replace(steps=TIMED_STEPS), len(order) / len(size.timed) * size.steps / TIMED_STEPS
    one_by_one = lambda rival: np.array([rival(network, short, depth, rank) for depth, rank in size.timed])
    pyvene, hooks = (f"{name}, one by one, source run in each batch, {part}" for name in ("pyvene", "PyTorch hooks"))
    best = "PyTorch, all rotations of a layer at once, thin frames, keys and values reused, once recorded"
    ours = lambda call: measure(call, budget=budget, compiled=True)
    timings = {
        pyvene: measure(lambda: one_by_one(train_pyvene), budget=0, least=1).scaled(scale),
        hooks: measure(lambda: one_by_one(train_hooked), budget=0, least=1).scaled(scale),
        best: measure_torch(lambda: together(task), budget=budget),
        "abstraction, recording and training": ours(
            lambda: train(problem, problem.record(labels), candidates, size.steps, size.batch)
        ),
        "abstraction, once recorded": ours(lambda: train(problem, recorded, candidates, size.steps, size.batch)),
        "abstraction, once recorded, one search after another": ours(
            lambda: one_after_another(problem, recorded, candidates, size.steps, size.batch)
        ),
    }
    return compare("decoder-das", size.title, timings, baseline=pyvene)


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


def one_after_another(
    problem: Problem, recorded: Recorded, candidates: Candidates, steps: int, batch: int
) -> np.ndarray:
    """Train each rotation in a call of its own, and return their losses, `[steps, C]`."""
    take = lambda index: jax.tree.map(lambda leaf: leaf[index : index + 1], candidates)
    each = [train(problem, recorded, take(index), steps, batch) for index in range(len(candidates.depth))]
    return np.concatenate(each, axis=1)
