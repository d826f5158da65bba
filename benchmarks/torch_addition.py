"""Alignment search on binary addition in PyTorch: three ways to run a patched batch, and one to run all searches.

    source run in each batch   source run and patched base run, both from the first step
    pair by pair               as the authors' code does: the runs of single inputs are kept, a batch is put together
                               pair by pair, and the patched base runs from the first step
    resumed                    states of base and source are tensors recorded once; the network resumes at the step
    together                   resumed, with all searches of a step in one batch

The network's weights need no gradient and calibration runs in inference mode; the authors' code does without either.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from abstraction.causal import PairBank
from abstraction.tasks import addition
from abstraction.typing import Params
from benchmarks.torch_oracle import tensor, thin_frames


class TorchGRU(nn.Module):
    """A GRU that emits one bit per step and one more at the end."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.cell = nn.GRUCell(inputs, width)
        self.sum_head, self.final_carry_head = nn.Linear(width, 1), nn.Linear(width, 1)

    def forward(self, inputs: Tensor, patch: Callable[[int, Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return logits `[N, L+1]` and states `[L, N, D]`; `patch` may replace the state after each step."""
        state, states = inputs.new_zeros(len(inputs), self.cell.hidden_size), []
        for step in range(inputs.shape[1]):
            state = self.cell(inputs[:, step], state)
            state = state if patch is None else patch(step, state)
            states.append(state)
        return self.read(states), torch.stack(states)

    def resume(self, step: int, state: Tensor, inputs: Tensor, states: Tensor) -> Tensor:
        """Return the logits that follow from the state after a step, earlier bits being read off the states."""
        after = [*states[:step], state]
        for later in range(step + 1, inputs.shape[1]):
            after.append(self.cell(inputs[:, later], after[-1]))
        return self.read(after)

    def read(self, states: Sequence[Tensor]) -> Tensor:
        """Read every step's bit, and the last carry off the last state."""
        return torch.cat([*map(self.sum_head, states), self.final_carry_head(states[-1])], dim=1)


def torch_gru(params: Params) -> TorchGRU:
    """Build the network from the parameters of `abstraction.models.GRU`; its weights need no gradient."""
    cell: Mapping[str, Any] = params["cell"]
    arrays = {
        "cell.weight_ih": cell["inputs"]["kernel"].T,
        "cell.bias_ih": cell["inputs"]["bias"],
        "cell.weight_hh": cell["state"]["kernel"].T,
        "cell.bias_hh": cell["state"]["bias"],
        "sum_head.weight": params["step"]["kernel"].T,
        "sum_head.bias": params["step"]["bias"],
        "final_carry_head.weight": params["final"]["kernel"].T,
        "final_carry_head.bias": params["final"]["bias"],
    }
    network = TorchGRU(cell["inputs"]["kernel"].shape[0], params["step"]["kernel"].shape[0])
    network.load_state_dict({name: tensor(array) for name, array in arrays.items()})
    return network.requires_grad_(False).eval()


class TorchPairs(NamedTuple):
    """A bank in PyTorch.

    Attributes:
      base: inputs of the base runs, `[N, L, 2]`; `source` likewise.
      base_states: `[L, N, D]`; `source_states` likewise.
      bits: expected outputs, `[V, N, L+1]`.
      active: whether the pair is active for the variable, `[V, N]`.
      singles: input of the base run, states of the source run and expected bits of every variable, pair by pair.
    """

    base: Tensor
    source: Tensor
    base_states: Tensor
    source_states: Tensor
    bits: Tensor
    active: Tensor
    singles: list[tuple[Tensor, Tensor, list[list[float]]]]


class TorchSearch(NamedTuple):
    """One search: where, of which rank, for which variable, at which learning rate, from which frame `[D, K]`."""

    step: int
    rank: int
    variable: int
    rate: float
    start: Tensor


Run = Callable[[TorchGRU, TorchPairs, Tensor, TorchSearch, Tensor, float], tuple[Tensor, Tensor]]
"""Runs some pairs with the span of some columns moved by a strength: logits and expected bits, `[B, L+1]` each."""


def torch_pairs(network: TorchGRU, bank: PairBank) -> TorchPairs:
    """Encode a bank and record its runs."""
    base, source = (tensor(addition.encode(setting)) for setting in (bank.base, bank.source))
    with torch.no_grad():
        base_states, source_states = (network(inputs)[1] for inputs in (base, source))
    bits = tensor(bank.labels[..., None] >> np.arange(base.shape[1] + 1) & 1, torch.float32)
    spelled = bits.swapaxes(0, 1).tolist()
    singles = [(base[row, None].clone(), source_states[:, row].clone(), spelled[row]) for row in range(len(base))]
    return TorchPairs(base, source, base_states, source_states, bits, tensor(bank.active), singles)


def source_too(
    network: TorchGRU, pairs: TorchPairs, rows: Tensor, search: TorchSearch, frame: Tensor, strength: float
) -> tuple[Tensor, Tensor]:
    """Run the source, then the patched base, both from the first step."""
    with torch.no_grad():
        source = network(pairs.source[rows])[1][search.step]
    patch = lambda step, state: _swap(state, source, frame, strength) if step == search.step else state
    return network(pairs.base[rows], patch)[0], pairs.bits[search.variable, rows]


def pair_by_pair(
    network: TorchGRU, pairs: TorchPairs, rows: Tensor, search: TorchSearch, frame: Tensor, strength: float
) -> tuple[Tensor, Tensor]:
    """Put the batch together pair by pair, then run the patched base from the first step."""
    chosen = [pairs.singles[row] for row in rows.tolist()]
    base = torch.cat([single[0] for single in chosen])
    source = torch.stack([single[1] for single in chosen])[:, search.step]
    bits = torch.tensor([single[2][search.variable] for single in chosen])
    patch = lambda step, state: _swap(state, source, frame, strength) if step == search.step else state
    return network(base, patch)[0], bits


def resumed(
    network: TorchGRU, pairs: TorchPairs, rows: Tensor, search: TorchSearch, frame: Tensor, strength: float
) -> tuple[Tensor, Tensor]:
    """Resume the recorded base run at the step."""
    states = pairs.base_states[:, rows]
    state = _swap(states[search.step], pairs.source_states[search.step, rows], frame, strength)
    return network.resume(search.step, state, pairs.base[rows], states), pairs.bits[search.variable, rows]


def _swap(base: Tensor, source: Tensor, frame: Tensor, strength: float) -> Tensor:
    """Move the span of orthonormal columns towards the source."""
    return base + strength * ((source - base) @ frame) @ frame.mT


def pair_loss(logits: Tensor, bits: Tensor) -> Tensor:
    """Add the binary cross-entropies of the bits and average over pairs; searches, leading axes, add up."""
    return nn.functional.binary_cross_entropy_with_logits(logits, bits, reduction="sum") / logits.shape[-2]


def train(network: TorchGRU, pairs: TorchPairs, search: TorchSearch, run: Run, steps: int, batch: int) -> Tensor:
    """Train one rotation; return its columns."""
    free = search.start[:, : search.rank].clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=search.rate)
    for rows in torch.randint(len(pairs.base), (steps, batch)):
        optimizer.zero_grad()
        pair_loss(*run(network, pairs, rows, search, torch.linalg.qr(free)[0], 1.0)).backward()
        optimizer.step()
    return torch.linalg.qr(free.detach())[0]


def scores(
    network: TorchGRU,
    pairs: TorchPairs,
    search: TorchSearch,
    frame: Tensor,
    run: Run,
    strengths: Sequence[float],
    batch: int | None = None,
) -> list[float]:
    """Return the combined accuracy at every strength; by default all pairs are one batch."""
    active, every = pairs.active[search.variable], torch.arange(len(pairs.base))
    found = []
    with torch.inference_mode():
        for strength in strengths:
            batches = [run(network, pairs, rows, search, frame, strength) for rows in every.split(batch or len(every))]
            hits = torch.cat([_exact(*outputs) for outputs in batches])
            found.append(0.5 * float(hits[active].mean() + hits[~active].mean()))
    return found


def together(
    network: TorchGRU, pairs: TorchPairs, rows: Tensor, searches: Sequence[TorchSearch], frames: Tensor, strength: float
) -> tuple[Tensor, Tensor]:
    """Run some pairs for all searches of one step, resumed there: logits and expected bits, `[G, B, L+1]` each."""
    step, count, states = searches[0].step, len(searches), pairs.base_states[:, rows]
    state = _swap(states[step], pairs.source_states[step, rows], frames, strength)
    logits = network.resume(step, state.flatten(0, 1), pairs.base[rows].repeat(count, 1, 1), states.repeat(1, count, 1))
    variables = torch.tensor([search.variable for search in searches])
    return logits.unflatten(0, (count, -1)), pairs.bits[:, rows][variables]


def starts(searches: Sequence[TorchSearch]) -> Tensor:
    """Return where searches start, `[G, D, K]`; columns beyond a rank are 0."""
    return torch.stack([search.start for search in searches])


def leading_columns(matrices: Tensor, searches: Sequence[TorchSearch]) -> Tensor:
    """Make the columns of each search's rank orthonormal, and the others 0: Y L^-T with L L^T = Y^T Y."""
    ranks = torch.tensor([search.rank for search in searches])
    used = (torch.arange(matrices.shape[-1]) < ranks[:, None]).to(matrices.dtype)
    return thin_frames(matrices, torch.zeros_like(matrices), used)


def train_together(
    network: TorchGRU, pairs: TorchPairs, searches: Sequence[TorchSearch], steps: int, batch: int
) -> Tensor:
    """Train all searches of one step, in the order of their rates, on the same batches; return columns `[G, D, D]`."""
    rates = [(rate, list(group)) for rate, group in groupby(searches, key=lambda search: search.rate)]
    free = [starts(group).requires_grad_() for _, group in rates]
    optimizer = torch.optim.Adam([{"params": [leaf], "lr": rate} for leaf, (rate, _) in zip(free, rates, strict=True)])
    for rows in torch.randint(len(pairs.base), (steps, batch)):
        optimizer.zero_grad()
        frames = leading_columns(torch.cat(free), searches)
        pair_loss(*together(network, pairs, rows, searches, frames, 1.0)).backward()
        optimizer.step()
    return leading_columns(torch.cat(free).detach(), searches)


def scores_together(
    network: TorchGRU, pairs: TorchPairs, searches: Sequence[TorchSearch], frames: Tensor, strengths: Sequence[float]
) -> Tensor:
    """Return the combined accuracy of all searches of one step at every strength, `[G, R]`."""
    active, every = pairs.active[[search.variable for search in searches]].float(), torch.arange(len(pairs.base))
    found = []
    with torch.inference_mode():
        for strength in strengths:
            hits = _exact(*together(network, pairs, every, searches, frames, strength))
            halves = [(hits * half).sum(dim=1) / half.sum(dim=1) for half in (active, 1 - active)]
            found.append(0.5 * (halves[0] + halves[1]))
    return torch.stack(found, dim=1)


def _exact(logits: Tensor, bits: Tensor) -> Tensor:
    """Return 1 where all bits are right; a bit is 1 where its logit is at least 0."""
    return ((logits >= 0) == (bits > 0)).all(dim=-1).float()
