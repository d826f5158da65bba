"""The choice among the paper's grid of handles: K 1..20 x strength 1..80, 2 variables, 6 eps (PLOT, Sec. 3.3).

Ours is timed from the couplings on: record the pairs, cut the plans, drop repeated handles, evaluate, choose. The
PyTorch loops evaluate handle by handle; a hundred handles spread over the grid are timed and scaled to all of them.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from abstraction.causal import PairBank
from abstraction.interventions import Handle, SiteBank, unit_sites
from abstraction.localization import Choice, CutMenu, Effects, ReferenceTransport, Selection, measure_effects
from abstraction.localization.calibration import calibrate
from abstraction.localization.cutting import handle_grid
from abstraction.localization.rules import Plans
from benchmarks.problem import TAP, Problem, equality_problem
from benchmarks.records import Row, compare, measure, require_agreement
from benchmarks.torch_oracle import (
    DepthEdit,
    TorchMLP,
    depth_edits,
    looped_logits,
    measure_torch,
    patched_logits,
    record_hidden,
    tensor,
    torch_mlp,
)

PAIRS, BATCH, SUBSET = 1000, 128, 100
MENU = CutMenu(tuple(range(1, 21)), tuple(float(r) for r in range(1, 81)), per_site=False, break_ties="order")


def run(budget: float) -> list[Row]:
    """Time the choice, and the evaluation of the same handles in PyTorch."""
    problem = equality_problem(PAIRS)
    sites = unit_sites(problem.network.taps[TAP])
    effects = measure_effects(problem.network, problem.record(problem.fit), sites)
    plans = ReferenceTransport()(effects)
    choice = ours(problem, sites, effects, plans)
    total = choice.scores.size
    chosen = np.linspace(0, total - 1, SUBSET).round().astype(int)
    edits, variable = _spread_handles(sites, effects, plans, chosen)
    network = torch_mlp(problem.network.params)
    batches, one_batch = _loops(network, problem.calibration, edits, variable)
    scores = {"abstraction": choice.scores.ravel()[chosen], "hooks": batches(), "one batch": one_batch()}
    # A score is the mean of two halves of at least 340 pairs; rounding error may flip a pair with equal logits.
    require_agreement(scores, atol=2e-3)
    part = f"{SUBSET} of {total} handles timed and scaled"
    baseline = f"PyTorch hooks, batches of {BATCH}, source run in each, {part}"
    loops = {baseline: batches, f"PyTorch hooks, sources recorded once, one batch, {part}": one_batch}
    timings = {name: measure_torch(loop, budget=budget).scaled(total / SUBSET) for name, loop in loops.items()}
    timings[f"abstraction, {choice.evaluated} distinct handles"] = measure(
        lambda: ours(problem, sites, effects, plans).scores, budget=budget, compiled=True
    )
    size = f"{choice.candidates // 6} settings x 6 eps x 2 variables x {PAIRS} pairs"
    return compare("calibration", size, timings, baseline=baseline)


def ours(problem: Problem, sites: SiteBank, effects: Effects, plans: Plans) -> Choice:
    """Cut plans into handles, evaluate the distinct ones and choose, by the paper's rules."""
    grid = handle_grid(plans.coupling.plan, effects.cost, sites, plans.axes, MENU)
    return calibrate(problem.network, problem.record(problem.calibration), grid, Selection("epsilon", first_wins=True))


def _spread_handles(
    sites: SiteBank, effects: Effects, plans: Plans, chosen: np.ndarray
) -> tuple[list[list[DepthEdit]], np.ndarray]:
    """Return the chosen handles of the flat grid, and their variables."""
    grid = handle_grid(plans.coupling.plan, effects.cost, sites, plans.axes, MENU)
    weight = grid.weight.reshape(-1, *grid.weight.shape[-2:])
    variable = chosen // (len(weight) // len(grid.weight))
    return [depth_edits(Handle(TAP, weight[index])) for index in chosen], variable


def _loops(
    network: TorchMLP, bank: PairBank, edits: list[list[DepthEdit]], variable: np.ndarray
) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    base, source = tensor(bank.base["inputs"]), tensor(bank.source["inputs"])
    labels, active = tensor(bank.labels, torch.int64), tensor(bank.active)

    def score(logits: Tensor, v: int) -> float:
        hit = (logits.argmax(-1) == labels[v]).float()
        return 0.5 * float(hit[active[v]].mean() + hit[~active[v]].mean())

    def batches() -> np.ndarray:
        logits = [looped_logits(network, base, source, edit, BATCH) for edit in edits]
        return np.array([score(*pair) for pair in zip(logits, variable, strict=True)])

    def one_batch() -> np.ndarray:
        with torch.inference_mode():
            states = record_hidden(network, source)
            logits = [patched_logits(network, base, states, edit) for edit in edits]
            return np.array([score(*pair) for pair in zip(logits, variable, strict=True)])

    return batches, one_batch
