"""The same network and the same interventions in PyTorch, with forward hooks: oracle of the parity tests and baseline.

Nothing here shares code with the library; only weights and handles are read from it. An edit of the hidden state h at
one depth towards the source state s, of weight w per feature, is

    h <- h + w (s - h)           or, with an encoder E and a decoder G,        h <- h + (w * ((s - h) E)) G
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

try:
    import torch
except ImportError as error:
    raise ImportError("PyTorch is not installed; install the baselines with: pip install -e '.[benchmarks]'") from error

from torch import Tensor, nn

from abstraction.interventions import Handle
from abstraction.typing import AnyArray, Params
from benchmarks.records import Timing, measure

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "identity": nn.Identity}


class TorchMLP(nn.Module):
    """An MLP whose `layers[l]` outputs the hidden state at depth l."""

    head: nn.Linear

    def __init__(self, layers: Sequence[nn.Module], head: nn.Linear):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `[N, C]`."""
        return self.resume(-1, inputs)

    def resume(self, depth: int, hidden: Tensor) -> Tensor:
        """Return the logits that follow from the hidden state at `depth`."""
        for layer in list(self.layers)[depth + 1 :]:
            hidden = layer(hidden)
        return self.head(hidden)


def measure_torch(function: Callable[[], Any], *, budget: float, least: int = 3) -> Timing:
    """Time a PyTorch function with one thread and with all of them, and return the faster; see `measure`.

    Operations this small often do not repay the second thread, and lose much to it on a machine that is not idle.
    """
    threads = torch.get_num_threads()
    timings = []
    for count in {1, threads}:
        torch.set_num_threads(count)
        timings.append(measure(function, budget=budget, least=least))
    torch.set_num_threads(threads)
    return min(timings, key=lambda timing: timing.seconds)


def tensor(array: AnyArray, dtype: torch.dtype | None = None) -> Tensor:
    """Copy an array."""
    return torch.tensor(np.asarray(array), dtype=dtype)


def torch_mlp(params: Params, activation: str = "relu", dtype: torch.dtype = torch.float32) -> TorchMLP:
    """Build the network from the parameters of `abstraction.models.MLP`; its weights need no gradient."""
    layers = [_linear(params["stem"], dtype)]
    blocks = params.get("blocks")
    if blocks is not None:
        rows = [dict(zip(blocks, row, strict=True)) for row in zip(*blocks.values(), strict=True)]
        layers += [_linear(row, dtype) for row in rows]
    phi = ACTIVATIONS[activation]
    network = TorchMLP([nn.Sequential(linear, phi()) for linear in layers], _linear(params["head"], dtype))
    return network.requires_grad_(False).eval()


def _linear(weights: Mapping[str, Any], dtype: torch.dtype) -> nn.Linear:
    linear = nn.Linear(*weights["kernel"].shape, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(tensor(weights["kernel"]).T)
        linear.bias.copy_(tensor(weights["bias"]))
    return linear


class DepthEdit(NamedTuple):
    """An interchange at one depth; without an encoder the features are the coordinates."""

    depth: int
    weight: Tensor
    encoder: Tensor | None = None
    decoder: Tensor | None = None

    def __call__(self, hidden: Tensor, source: Tensor) -> Tensor:
        """Move the hidden state towards the source state."""
        if self.encoder is None or self.decoder is None:
            return hidden + self.weight * (source - hidden)
        return hidden + (self.weight * ((source - hidden) @ self.encoder)) @ self.decoder


def depth_edits(handle: Handle, dtype: torch.dtype = torch.float32) -> list[DepthEdit]:
    """Spell a single handle out, depth by depth; depths of weight zero are left out."""
    weight = np.asarray(handle.weight)
    bases = () if handle.basis is None else (handle.basis.encoder, handle.basis.decoder)
    if handle.depth is not None:
        return [DepthEdit(int(handle.depth), tensor(weight, dtype), *(tensor(matrix, dtype) for matrix in bases))]
    return [
        DepthEdit(depth, tensor(weight[depth], dtype), *(tensor(matrix[depth], dtype) for matrix in bases))
        for depth in range(len(weight))
        if weight[depth].any()
    ]


@contextmanager
def hooked(hooks: Sequence[tuple[nn.Module, Callable[[Tensor], Tensor | None]]]) -> Iterator[None]:
    """Pass the output of each module through a function while the block runs; None keeps it."""
    handles = [
        module.register_forward_hook(lambda _module, _args, output, function=function: function(output))
        for module, function in hooks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def record_hidden(network: TorchMLP, inputs: Tensor) -> dict[int, Tensor]:
    """Run the network and keep its hidden states by depth."""
    states: dict[int, Tensor] = {}

    def keep(depth: int) -> Callable[[Tensor], None]:
        return lambda output: states.__setitem__(depth, output)

    with hooked([(layer, keep(depth)) for depth, layer in enumerate(network.layers)]):
        network(inputs)
    return states


def patched_logits(
    network: TorchMLP, inputs: Tensor, source: Mapping[int, Tensor], edits: Sequence[DepthEdit]
) -> Tensor:
    """Run base inputs with the hidden states edited by hooks, each depth on states the shallower ones have changed."""

    def patch(edit: DepthEdit) -> Callable[[Tensor], Tensor]:
        return lambda output: edit(output, source[edit.depth])

    with hooked([(network.layers[edit.depth], patch(edit)) for edit in edits]):
        return network(inputs)


def looped_logits(
    network: TorchMLP, base: Tensor, source: Tensor, edits: Sequence[DepthEdit], batch_size: int = 128
) -> Tensor:
    """Do as intervention libraries do: for every batch run the source, keep its states, then run the patched base."""
    outputs = []
    with torch.no_grad():
        for start in range(0, len(base), batch_size):
            rows = slice(start, start + batch_size)
            outputs.append(patched_logits(network, base[rows], record_hidden(network, source[rows]), edits))
    return torch.cat(outputs)


def prob_delta(patched: Tensor, base: Tensor) -> Tensor:
    """Return the change of the class probabilities, class by class, `[C N]`."""
    return (patched.softmax(-1) - base.softmax(-1)).T.reshape(-1)


def thin_frames(start: Tensor, free: Tensor, used: Tensor) -> Tensor:
    """Make W_0 + A orthonormal, columns out of use 0: `[G, D, K]`."""
    columns = (start + free) * used[:, None]
    lower = torch.linalg.cholesky(columns.mT @ columns + torch.diag_embed(1 - used))
    return torch.linalg.solve_triangular(lower, columns.mT, upper=False).mT
