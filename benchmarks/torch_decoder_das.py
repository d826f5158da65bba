"""The rivals of DAS at the last token of a decoder: pyvene, hooks, and all rotations of a layer at once.

The last is the best PyTorch we could write: keys and values of the prefix and states of both runs are recorded once,
the last token alone runs on from the layer, for all candidates of that layer together, as thin frames (Cholesky-QR).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyvene
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmarks.torch_decoder import Cached, last_logits, last_states, one_token_inputs, swapped
from benchmarks.torch_oracle import thin_frames


class Task(NamedTuple):
    """What is trained on: tokens of both runs `[N, T]`, labels `[N]`, and how long."""

    base: Tensor
    source: Tensor
    labels: Tensor
    steps: int
    batch: int

    def rows(self, step: int) -> Tensor:
        """Return the pairs of one step."""
        return torch.arange(step * self.batch, (step + 1) * self.batch) % len(self.base)


def train_hooked(network: LlamaForCausalLM, task: Task, depth: int, rank: int) -> float:
    """Train one subspace by hooks, the sources run in every batch, and return the last loss."""
    rotate = nn.Linear(network.config.hidden_size, rank, bias=False)
    parametrizations.orthogonal(rotate)

    def logits(rows: Tensor) -> Tensor:
        with torch.no_grad():
            other = last_states(network, task.source[rows], len(rows))[depth]
        weight = rotate.weight
        with swapped(network, depth, other, lambda b, s: b + (s - b) @ weight.T @ weight):
            return last_logits(network, task.base[rows])

    return _train(task, list(rotate.parameters()), logits)


def train_pyvene(network: LlamaForCausalLM, task: Task, depth: int, rank: int) -> float:
    """Train one subspace by pyvene's low-rank rotation, and return the last loss."""
    representation = pyvene.RepresentationConfig(
        layer=depth, component="block_output", unit="pos", max_number_of_units=1, low_rank_dimension=rank
    )
    rotated: Any = pyvene.LowRankRotatedSpaceIntervention  # its annotation names one kind alone
    config = pyvene.IntervenableConfig(
        model_type=type(network),
        representations=[representation],
        intervention_types=rotated,
    )
    wrapped = pyvene.IntervenableModel(config, network)
    wrapped.disable_model_gradients()

    def logits(rows: Tensor) -> Tensor:
        last = [[[task.base.shape[1] - 1]] * len(rows)]
        inputs = one_token_inputs(task.base[rows]), [one_token_inputs(task.source[rows])]
        return wrapped(*inputs, {"sources->base": (last, last)})[1].logits[:, -1]

    return _train(task, wrapped.get_trainable_parameters(), logits)


def _train(task: Task, parameters: list[Any], logits: Callable[[Tensor], Tensor]) -> float:
    optimizer, loss = torch.optim.Adam(parameters, lr=1e-3), torch.zeros(())
    for step in range(task.steps):
        rows = task.rows(step)
        loss = nn.functional.cross_entropy(logits(rows), task.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


class Group(NamedTuple):
    """Candidates of one depth: starts `[G, D, K]` and ranks `[G]`."""

    depth: int
    start: Tensor
    rank: Tensor


def train_together(
    network: LlamaForCausalLM, task: Task, cached: Cached, base_states: Tensor, groups: list[Group]
) -> list[Tensor]:
    """Train all rotations of a depth at once; return the losses of the first step, `[G]` each."""
    first = []
    for depth, start, rank in groups:
        used = (torch.arange(start.shape[-1]) < rank[:, None]).float()
        free = torch.zeros_like(start, requires_grad=True)
        optimizer = torch.optim.Adam([free], lr=1e-3)
        for step in range(task.steps):
            rows = task.rows(step)
            base, source = base_states[depth, rows], cached.states[depth, rows]
            frames = thin_frames(start, free, used)
            stream = base + (source - base) @ frames @ frames.mT
            for index in range(depth + 1, len(network.model.layers)):
                layer, keys, values = network.model.layers[index], cached.keys[index], cached.values[index]
                stream = _last_tokens(layer, stream, keys[rows, :, :-1], values[rows, :, :-1], cached.turn)
            logits = network.lm_head(network.model.norm(stream))
            labels = task.labels[rows].expand(len(start), -1).flatten()
            each = nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="none")
            losses = each.unflatten(0, stream.shape[:2]).mean(dim=1)
            if not step:
                first.append(losses.detach())
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
    return first


def _last_tokens(layer: Any, stream: Tensor, keys: Tensor, values: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Run a block on the last token of B prompts for G candidates, `[G, B, D]`, which share what comes before it."""
    read, attention = layer.input_layernorm(stream), layer.self_attn
    split = lambda flat: flat.unflatten(-1, (-1, attention.head_dim)).permute(1, 2, 0, 3)
    query, key = apply_rotary_pos_emb(split(attention.q_proj(read)), split(attention.k_proj(read)), *turn)
    value, sharing = split(attention.v_proj(read)), query.shape[1] // keys.shape[1]
    many = lambda heads: heads.repeat_interleave(sharing, dim=1) if sharing > 1 else heads
    key, value = many(key), many(value)
    grouped = query.unflatten(1, (-1, sharing)).flatten(2, 3)
    scores = (grouped @ keys.mT).unflatten(2, (sharing, -1)).flatten(1, 2)
    own = (query * key).sum(dim=-1, keepdim=True)
    weights = torch.softmax(torch.cat([scores, own], dim=-1) * attention.scaling, dim=-1)
    earlier = weights[..., :-1].unflatten(1, (-1, sharing)).flatten(2, 3) @ values
    heads = earlier.unflatten(2, (sharing, -1)).flatten(1, 2) + weights[..., -1:] * value
    stream = stream + attention.o_proj(heads.permute(2, 0, 1, 3).flatten(-2))
    return stream + layer.mlp(layer.post_attention_layernorm(stream))
