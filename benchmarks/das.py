"""Distributed alignment search: 96 rotations (3 depths x 16 ranks x 2 variables), one epoch over 1000 pairs.

What users call trains one rotation after another, through `torch.nn.utils.parametrizations.orthogonal` and Adam, in
batches of 128; a few of the 96 are timed and scaled. The baseline runs source and patched base in every batch, as
intervention libraries do; the second PyTorch row resumes at the layer from states recorded once, as ours does. The
third is the best PyTorch we could write: all rotations of a layer at once as thin frames (Cholesky-QR, batched
products), resumed there, in eager mode.
"""

from typing import NamedTuple

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from abstraction.localization import Rotation, SearchConfig, candidate_grid, full_supports
from abstraction.localization.searching import Searched, train_candidates
from abstraction.localization.supports import Candidates
from benchmarks.problem import TAP, Problem, equality_problem
from benchmarks.records import Row, compare, measure, require_agreement
from benchmarks.torch_oracle import TorchMLP, hooked, measure_torch, record_hidden, tensor, thin_frames, torch_mlp

PAIRS, BATCH, EPOCHS, RANKS = 1000, 128, 10, tuple(range(1, 17))
STEPS = PAIRS // BATCH
START_KEY, ORDER_KEY = jax.random.split(jax.random.key(0))
TIMED = [(0, 1, 0), (1, 8, 1), (2, 16, 0)]
"""Depth, rank and variable of the searches that are timed in PyTorch."""


class TorchPairs(NamedTuple):
    """What one search needs: inputs of both runs, their states at its depth, and labels."""

    base: Tensor
    source: Tensor
    base_states: Tensor
    source_states: Tensor
    labels: Tensor


def run(budget: float) -> list[Row]:
    """Time an epoch of all searches."""
    problem = equality_problem(PAIRS)
    tap = problem.network.taps[TAP]
    candidates = candidate_grid(START_KEY, tap, full_supports(tap, range(2)), ranks=RANKS, learning_rates=(1e-3,))
    count = len(candidates.depth)
    network = torch_mlp(problem.network.params)
    require_agreement(first_losses(problem, network, candidates), atol=1e-5)
    part = f"{len(TIMED)} of {count} searches timed and scaled"
    baseline = f"PyTorch hooks, search by search, source run in each batch, {part}"
    scale = count / len(TIMED)
    timings = {
        name: measure_torch(lambda resumed=resumed: torch_epoch(problem, network, resumed), budget=budget).scaled(scale)
        for name, resumed in ((baseline, False), (f"PyTorch, search by search, resumed at the layer, {part}", True))
    }
    timings["PyTorch, all rotations of a layer at once, thin frames, resumed there"] = measure_torch(
        lambda: torch_epoch_together(problem, network, candidates), budget=budget
    )
    timings["abstraction"] = measure(
        lambda: ours(problem, candidates, BATCH, EPOCHS).handles, budget=budget, compiled=True
    ).scaled(1 / EPOCHS)
    size = f"{count} rotations of 16x16, one epoch of {STEPS} batches of {BATCH} pairs"
    return compare("das", size, timings, baseline=baseline)


def ours(problem: Problem, candidates: Candidates, batch_size: int, epochs: int) -> Searched:
    """Train all searches at once, none of them stopping early, from the recording of the pairs on."""
    config = SearchConfig(batch_size=batch_size, max_epochs=epochs, min_epochs=epochs, patience=epochs)
    fit = problem.record(problem.fit)
    return train_candidates(ORDER_KEY, problem.network, fit, candidates, Rotation(), config)


def first_losses(problem: Problem, network: TorchMLP, candidates: Candidates) -> dict[str, list[float]]:
    """Return the losses of the timed searches at our starts, over all pairs."""
    curve = ours(problem, candidates, PAIRS, 1).curve[0]
    losses: dict[str, list[float]] = {"abstraction": [], "hooked": [], "resumed": []}
    for depth, rank, variable in TIMED:
        same = (candidates.depth == depth) & (candidates.rank == rank) & (candidates.variable == variable)
        (index,) = np.flatnonzero(same)
        pairs = _torch_pairs(problem, network, depth, variable)
        losses["abstraction"].append(float(curve[index]))
        for name, run_network in (("hooked", _hooked), ("resumed", _resumed)):
            logits = run_network(
                network, pairs, torch.arange(PAIRS), depth, tensor(candidates.start[index][:, :rank].T)
            )
            losses[name].append(nn.functional.cross_entropy(logits, pairs.labels).item())
    return losses


def torch_epoch(problem: Problem, network: TorchMLP, resumed: bool) -> np.ndarray:
    """Train each timed search for one epoch; return their mean losses."""
    losses = []
    for depth, rank, variable in TIMED:
        pairs = _torch_pairs(problem, network, depth, variable)
        rotate = nn.Linear(16, 16, bias=False)
        parametrizations.orthogonal(rotate)
        optimizer = torch.optim.Adam(rotate.parameters(), lr=1e-3)
        order = torch.randperm(PAIRS)[: STEPS * BATCH].reshape(STEPS, BATCH)
        total = 0.0
        for rows in order:
            optimizer.zero_grad()
            logits = (_resumed if resumed else _hooked)(network, pairs, rows, depth, rotate.weight[:rank])
            loss = nn.functional.cross_entropy(logits, pairs.labels[rows])
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / STEPS)
    return np.array(losses)


def torch_epoch_together(problem: Problem, network: TorchMLP, candidates: Candidates) -> np.ndarray:
    """Train all searches for one epoch, those of a depth at once; return their mean losses."""
    losses = np.zeros(len(candidates.depth))
    for depth in np.unique(candidates.depth):
        members = np.flatnonzero(candidates.depth == depth)
        pairs = _torch_pairs(problem, network, int(depth), 0)
        labels = tensor(problem.fit.labels[candidates.variable[members]], torch.int64)
        start = tensor(candidates.start[members])
        used = (torch.arange(start.shape[-1]) < tensor(candidates.rank[members])[:, None]).float()
        free = torch.zeros_like(start, requires_grad=True)
        optimizer = torch.optim.Adam([free], lr=1e-3)
        for rows in torch.randperm(PAIRS)[: STEPS * BATCH].reshape(STEPS, BATCH):
            optimizer.zero_grad()
            frames = thin_frames(start, free, used)
            logits = network.resume(int(depth), _swap(pairs.base_states[rows], pairs.source_states[rows], frames.mT))
            each = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, rows].flatten(), reduction="none")
            loss = each.unflatten(0, (len(members), BATCH)).mean(dim=1)
            loss.sum().backward()
            optimizer.step()
            losses[members] += loss.detach().numpy() / STEPS
    return losses


def _torch_pairs(problem: Problem, network: TorchMLP, depth: int, variable: int) -> TorchPairs:
    base, source = tensor(problem.fit.base["inputs"]), tensor(problem.fit.source["inputs"])
    base_states, source_states = (record_hidden(network, inputs)[depth] for inputs in (base, source))
    labels = tensor(problem.fit.labels[variable], torch.int64)
    return TorchPairs(base, source, base_states, source_states, labels)


def _swap(hidden: Tensor, source: Tensor, frame: Tensor) -> Tensor:
    """Interchange the span of the frame's rows."""
    return hidden + (source - hidden) @ frame.mT @ frame


def _hooked(network: TorchMLP, pairs: TorchPairs, rows: Tensor, depth: int, frame: Tensor) -> Tensor:
    with torch.no_grad():
        source = record_hidden(network, pairs.source[rows])[depth]
    with hooked([(network.layers[depth], lambda output: _swap(output, source, frame))]):
        return network(pairs.base[rows])


def _resumed(network: TorchMLP, pairs: TorchPairs, rows: Tensor, depth: int, frame: Tensor) -> Tensor:
    return network.resume(depth, _swap(pairs.base_states[rows], pairs.source_states[rows], frame))
