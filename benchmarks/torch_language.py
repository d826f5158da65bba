"""The rivals in a real language model: Hugging Face's network as users call it, and the best PyTorch we could write.

An interchange of the residual stream of one token after one block. What users call runs the whole network under a hook.
The best rival keeps keys, values and streams of the base and runs the tokens from the edited one on alone, through the
later blocks alone, and of the last block the last token.
"""

import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

try:
    import torch
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import rotate_half
except ImportError as error:
    raise ImportError(f"{error.name} is not installed; install it with: pip install -e '.[benchmarks]'") from error

import numpy as np
from torch import Tensor, nn

from abstraction.models import Network
from abstraction.models.hub_export import export_decoder

Places = Sequence[tuple[int, int]]
"""A block and the index of a named token, each."""


class Texts(NamedTuple):
    """Prompts of base and source, padded on the left with -1, `[N, T]`, and P named tokens of each, `[N, P]`."""

    base: np.ndarray
    source: np.ndarray
    base_at: np.ndarray
    source_at: np.ndarray


class Kept(NamedTuple):
    """What the best rival keeps of a base run, and of the source runs.

    Attributes:
      keys: turned already, `[N, K, T, E]` for each block.
      values: likewise.
      streams: after each block, `[L, N, T, D]`.
      turn: cosine and sine of every position, `[N, T, E]` each.
      seen: what each token may look at, `[N, 1, T, T]`.
      sources: the sources' streams at their named tokens, `[L, N, P, D]`.
    """

    keys: list[Tensor]
    values: list[Tensor]
    streams: Tensor
    turn: tuple[Tensor, Tensor]
    seen: Tensor
    sources: Tensor


def transformers_network(network: Network) -> LlamaForCausalLM:
    """Give the same weights to transformers, float32."""
    with tempfile.TemporaryDirectory() as folder:
        export_decoder(network, folder)
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def inputs_of(tokens: np.ndarray) -> dict[str, Any]:
    """Say what is padding; logits are read at the last token alone, and nothing is kept."""
    rows = torch.as_tensor(tokens, dtype=torch.long)
    mask = rows >= 0
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    called = {"input_ids": rows.clamp(min=0), "attention_mask": mask.long(), "position_ids": positions}
    return called | {"use_cache": False, "logits_to_keep": 1}


def forward(network: LlamaForCausalLM, tokens: np.ndarray, batch: int, hidden: bool) -> Tensor:
    """Run prompts in batches, with every hidden state of every token or without: logits `[N, C]`."""
    with torch.inference_mode():
        results = [
            network(**inputs_of(tokens[start : start + batch]), output_hidden_states=hidden)
            for start in range(0, len(tokens), batch)
        ]
        return torch.cat([result.logits[:, -1] for result in results])


def streams_after(network: LlamaForCausalLM, tokens: np.ndarray, cache: bool = False) -> tuple[Tensor, Any]:
    """Run prompts once: the residual stream after every block, `[L, N, T, D]`, and keys and values where wanted."""
    kept: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output: kept.append(_stream(output)))
        for layer in network.model.layers
    ]
    try:
        with torch.inference_mode():
            result = network(**(inputs_of(tokens) | {"use_cache": cache}))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(kept), result.past_key_values


def named_streams(network: LlamaForCausalLM, tokens: np.ndarray, at: np.ndarray) -> Tensor:
    """Return the residual stream of named tokens after every block, `[L, N, P, D]`."""
    streams, _ = streams_after(network, tokens)
    return streams[:, torch.arange(len(at))[:, None], torch.as_tensor(at)]


def hooked_sweep(
    network: LlamaForCausalLM, texts: Texts, sources: Tensor, places: Places, names: Tensor, batch: int
) -> Tensor:
    """Run the whole network once for each place, under a hook that sets one token's stream: `[S, N, C]`."""
    with torch.inference_mode():
        return torch.stack([_hooked(network, texts, sources, place, names, batch) for place in places])


def _hooked(
    network: LlamaForCausalLM, texts: Texts, sources: Tensor, place: tuple[int, int], names: Tensor, batch: int
) -> Tensor:
    (block, token), parts = place, []
    for start in range(0, len(texts.base), batch):
        rows = slice(start, start + batch)
        at, given = torch.as_tensor(texts.base_at[rows, token]), sources[block, rows, token]

        def swap(_module: nn.Module, _inputs: Any, output: Any, at: Tensor = at, given: Tensor = given) -> Any:
            stream = _stream(output).clone()
            stream[torch.arange(len(at)), at] = given
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        hook = network.model.layers[block].register_forward_hook(swap)
        try:
            parts.append(network(**inputs_of(texts.base[rows])).logits[:, -1, names])
        finally:
            hook.remove()
    return torch.cat(parts)


def keep_base(network: LlamaForCausalLM, texts: Texts) -> Kept:
    """Run bases and sources once and keep what every edit reuses."""
    streams, past = streams_after(network, texts.base, cache=True)
    called = inputs_of(texts.base)
    with torch.inference_mode():
        turn = network.model.rotary_emb(streams[0], called["position_ids"])
        length = texts.base.shape[1]
        # A row of padding sees itself, so that no softmax is of nothing.
        causal, mask = torch.ones(length, length).tril().bool(), called["attention_mask"].bool()
        seen = ((causal & mask[:, None]) | torch.eye(length).bool())[:, None]
    keys, values = [one.keys for one in past.layers], [one.values for one in past.layers]
    return Kept(keys, values, streams, turn, seen, named_streams(network, texts.source, texts.source_at))


def cached_sweep(network: LlamaForCausalLM, texts: Texts, kept: Kept, places: Places, names: Tensor) -> Tensor:
    """Run the tokens from the edited one on through the later blocks: `[S, N, C]`; each token with its own window."""
    with torch.inference_mode():
        table = network.lm_head.weight[names]
        parts = []
        for block, token in places:
            stream = _edited(texts, kept, block, token)
            for index in range(block + 1, len(kept.keys)):
                stream = _fresh(network.model.layers[index], stream, kept, index, index == len(kept.keys) - 1)
            parts.append(network.model.norm(stream[:, -1]) @ table.T)
        return torch.stack(parts)


def _edited(texts: Texts, kept: Kept, block: int, token: int) -> Tensor:
    """Return the stream of the window after a block, one token of each prompt its source's."""
    length, at = texts.base.shape[1], texts.base_at[:, token]
    before = int(at.min())
    stream = kept.streams[block][:, before:length].clone()
    stream[torch.arange(len(at)), torch.as_tensor(at - before)] = kept.sources[block][:, token]
    return stream


def _fresh(layer: Any, stream: Tensor, kept: Kept, index: int, last: bool) -> Tensor:
    """Run one block on the last tokens of prompts, or the last one where it alone is wanted."""
    window, attention = stream.shape[1], layer.self_attn
    split = lambda flat: flat.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    read = layer.input_layernorm(stream)
    asked = 1 if last else window
    key, value = _turned(split(attention.k_proj(read)), kept.turn), split(attention.v_proj(read))
    query = _turned(split(attention.q_proj(read[:, -asked:])), kept.turn)
    keys = torch.cat([kept.keys[index][:, :, :-window], key], dim=2)
    values = torch.cat([kept.values[index][:, :, :-window], value], dim=2)
    seen = kept.seen[:, :, -asked:]
    heads = nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen, enable_gqa=True)
    stream = stream[:, -asked:] + attention.o_proj(heads.transpose(1, 2).flatten(-2))
    return stream + layer.mlp(layer.post_attention_layernorm(stream))


def _turned(heads: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate queries or keys `[N, H, S, E]` of the last S positions."""
    cosine, sine = (each[:, None, -heads.shape[2] :] for each in turn)
    return heads * cosine + rotate_half(heads) * sine


def _stream(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
