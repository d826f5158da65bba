"""The rivals of a sweep over layers, positions and heads that need PyTorch alone: hooks, and the best we could write.

A site is (layer, position, head): that head's output z at that position is taken from the source prompt, in all pairs
at once, and the margin of two answer tokens after each prompt is averaged over the pairs.

The best uses all that a causal network leaves unchanged. The block itself is run at the patched position alone; in the
next block no other token has another key or value; later blocks are run from the position on, against cached keys and
values before it; the last one has a query at the last token alone. All heads of a place are one batch.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import numpy as np

try:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
except ImportError as error:
    raise ImportError(f"{error.name} is not installed; install it with: pip install -e '.[benchmarks]'") from error

from jaxtyping import Float, Int
from torch import Tensor, nn

ANSWERS = (0, 1)
"""The two tokens whose logits are compared."""

TOGETHER = 2**19
"""Numbers of the residual streams that are run at once: more fall out of the cache, fewer do not fill a matrix."""

Sites = Int[np.ndarray, "S 3"]
"""Layer, position and head of each site."""


def gpt2(*, vocabulary: int, width: int, depth: int, heads: int, tokens: int) -> GPT2LMHeadModel:
    """Draw a network at random, its weights large enough for every site to matter."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=depth, n_head=heads, n_positions=tokens,
        initializer_range=0.8 * width**-0.5, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


def blocks_of(network: GPT2LMHeadModel) -> list[Any]:
    """List the blocks, whose parts are not typed."""
    return list(network.transformer.h)


def margin(logits: Float[Tensor, "N T C"]) -> Tensor:
    """Average the margin of the two answers after the last token."""
    last = logits[:, -1]
    return (last[:, ANSWERS[0]] - last[:, ANSWERS[1]]).mean()


def last_inputs(tokens: Tensor) -> dict[str, Any]:
    """Return how Hugging Face's network is told to give logits after the last token alone."""
    return {"input_ids": tokens, "use_cache": False, "logits_to_keep": 1}


def head_outputs(network: GPT2LMHeadModel, tokens: Tensor) -> list[Tensor]:
    """Run prompts once and keep z of all heads at every layer, `[N, T, D]` each."""
    kept: list[Tensor] = []
    with ExitStack() as stack:
        for block in blocks_of(network):
            hook = block.attn.c_proj.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0]))
            stack.callback(hook.remove)
        network(**last_inputs(tokens))
    return kept


def hooked_sweep(network: GPT2LMHeadModel, base: Tensor, states: list[Tensor], sites: Sites) -> np.ndarray:
    """Run the patched base once for every site, under a hook: margins `[S]`."""
    blocks, margins = blocks_of(network), []
    with torch.no_grad():
        for layer, position, head in sites.tolist():
            units = head_units(network, head)
            patch = partial(_patched, position=position, units=units, source=states[layer][:, position, units])
            hook = blocks[layer].attn.c_proj.register_forward_pre_hook(patch)
            margins.append(margin(network(**last_inputs(base)).logits).item())
            hook.remove()
    return np.array(margins, np.float32)


def head_units(network: GPT2LMHeadModel, head: int) -> slice:
    """Return where a head is among the heads side by side."""
    size = network.config.n_embd // network.config.n_head
    return slice(head * size, (head + 1) * size)


def _patched(_module: nn.Module, inputs: tuple[Tensor], *, position: int, units: slice, source: Tensor) -> Tensor:
    states = inputs[0].clone()
    states[:, position, units] = source
    return states


def autograd_screen(network: GPT2LMHeadModel, base: Tensor, states: list[Tensor]) -> np.ndarray:
    """Estimate every site's effect by one forward and one backward pass (attribution patching): `[L, T, H]`."""
    offsets = [torch.zeros_like(state, requires_grad=True) for state in states]
    kept: list[Tensor] = []
    with torch.enable_grad(), ExitStack() as stack:
        for block, offset in zip(blocks_of(network), offsets, strict=True):
            hook = block.attn.c_proj.register_forward_pre_hook(partial(_shifted, offset=offset, kept=kept))
            stack.callback(hook.remove)
        gradients = torch.autograd.grad(margin(network(**last_inputs(base)).logits), offsets)
    moved = torch.stack([(s - b) * g for s, b, g in zip(states, kept, gradients, strict=True)])
    return moved.unflatten(-1, (network.config.n_head, -1)).sum(dim=(1, 4)).numpy()


def _shifted(_module: nn.Module, inputs: tuple[Tensor], *, offset: Tensor, kept: list[Tensor]) -> Tensor:
    kept.append(inputs[0].detach())
    return inputs[0] + offset


class Kept(NamedTuple):
    """What one run of the bases leaves for all sites, a tensor for each layer.

    Attributes:
      streams: residual stream before the block, `[N, T, D]`.
      middles: residual stream between attention and MLP, `[N, T, D]`.
      heads: queries, keys and values, `[3, N, H, T, E]`.
      changes: z of the sources less that of the bases, `[N, T, H, E]`.
      margin: the margin without an edit.
    """

    streams: list[Tensor]
    middles: list[Tensor]
    heads: list[Tensor]
    changes: list[Tensor]
    margin: Tensor


def keep(network: GPT2LMHeadModel, base: Tensor, source: Tensor) -> Kept:
    """Run bases and sources once and keep what a sweep reuses."""
    count = network.config.n_head
    streams, middles, heads, own = [], [], [], []
    with torch.inference_mode():
        other = head_outputs(network, source)
        with ExitStack() as stack:
            for block in blocks_of(network):
                for module, kept in ((block.ln_1, streams), (block.ln_2, middles), (block.attn.c_proj, own)):
                    stack.callback(module.register_forward_pre_hook(_keep_input(kept)).remove)
                stack.callback(block.attn.c_attn.register_forward_hook(_keep_output(heads)).remove)
            factual = margin(network(**last_inputs(base)).logits)
        split = [_split(maps, count) for maps in heads]
        changes = [(s - b).unflatten(-1, (count, -1)) for s, b in zip(other, own, strict=True)]
        return Kept(streams, middles, split, changes, factual)


def _keep_input(kept: list[Tensor]) -> Callable[..., None]:
    return lambda _module, inputs: kept.append(inputs[0])


def _keep_output(kept: list[Tensor]) -> Callable[..., None]:
    return lambda _module, _inputs, output: kept.append(output)


def _split(maps: Tensor, heads: int) -> Tensor:
    """Part queries, keys and values, and heads: `[..., T, 3 D]` to `[3, ..., H, T, E]`."""
    return torch.stack(maps.chunk(3, dim=-1)).unflatten(-1, (heads, -1)).transpose(-3, -2)


def suffix_sweep(network: GPT2LMHeadModel, kept: Kept, sites: Sites) -> np.ndarray:
    """Run what follows from each site and nothing else: margins `[S]`."""
    margins = np.empty(len(sites), np.float32)
    with torch.inference_mode():
        for layer, position, rows in _places(sites):
            size = max(1, TOGETHER // (kept.streams[0][:, position:].numel()))
            for some in np.array_split(rows, -(-len(rows) // size)):
                margins[some] = _suffix_margins(network, kept, layer, position, sites[some, 2])
    return margins


def _places(sites: Sites) -> Iterator[tuple[int, int, np.ndarray]]:
    """Group sites by layer and position."""
    places, group = np.unique(sites[:, :2], axis=0, return_inverse=True)
    for index, (layer, position) in enumerate(places.tolist()):
        yield layer, position, np.flatnonzero(group.ravel() == index)


def _suffix_margins(network: GPT2LMHeadModel, kept: Kept, layer: int, position: int, heads: np.ndarray) -> Tensor:
    blocks, tokens = blocks_of(network), kept.streams[0].shape[1]
    final = len(blocks) - 1
    if layer == final and position < tokens - 1:
        return kept.margin.expand(len(heads))
    block, chosen = blocks[layer], torch.as_tensor(heads)
    writes = block.attn.c_proj.weight.unflatten(0, (network.config.n_head, -1))[chosen]
    added = torch.einsum("nge,ged->gnd", kept.changes[layer][:, position, chosen], writes)
    token = kept.middles[layer][:, position] + added
    stream = _through_mlp(block, token)[:, :, None]
    for index in range(layer + 1, len(blocks)):
        if index == layer + 1:
            fresh = _split(blocks[index].attn.c_attn(blocks[index].ln_1(stream)), network.config.n_head)
            later = kept.heads[index][..., position + 1 :, :][:, None].expand(-1, len(heads), -1, -1, -1, -1)
            maps = torch.cat([fresh, later], dim=-2)
            rest = kept.streams[index][None, :, position + 1 :].expand(len(heads), -1, -1, -1)
            stream = torch.cat([stream, rest], dim=2)
        else:
            maps = _split(blocks[index].attn.c_attn(blocks[index].ln_1(stream)), network.config.n_head)
        before = kept.heads[index][1:, :, :, :position]
        stream = _rest_of_block(blocks[index], stream, maps, before, last=index == final)
    state = network.transformer.ln_f(stream[:, :, -1])
    reads = network.lm_head.weight[ANSWERS[0]] - network.lm_head.weight[ANSWERS[1]]
    return (state @ reads).mean(dim=1)


def _rest_of_block(block: Any, stream: Tensor, maps: Tensor, before: Tensor, *, last: bool) -> Tensor:
    """Attend from the position on, `[G, N, S, D]`, and run the MLP; in the last block from the last token alone."""
    (query, key, value), position = maps, before.shape[-2]
    key, value = (
        torch.cat([one[None].expand(len(stream), -1, -1, -1, -1), two], dim=-2)
        for one, two in zip(before, (key, value), strict=True)
    )
    seen = None
    if last:
        query, stream = query[..., -1:, :], stream[:, :, -1:]
    elif query.shape[-2] > 1:
        seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril(position)
    mixed = nn.functional.scaled_dot_product_attention(
        *(part.flatten(0, 1) for part in (query, key, value)), attn_mask=seen
    )
    stream = stream + block.attn.c_proj(mixed.transpose(1, 2).flatten(-2).unflatten(0, stream.shape[:2]))
    return _through_mlp(block, stream)


def _through_mlp(block: Any, stream: Tensor) -> Tensor:
    """Run the MLP with PyTorch's own GELU, which is one pass over memory where that of the block is eight."""
    hidden = nn.functional.gelu(block.mlp.c_fc(block.ln_2(stream)), approximate="tanh")
    return stream + block.mlp.c_proj(hidden)
