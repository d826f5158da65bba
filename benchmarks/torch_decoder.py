"""The rivals of a decoder's suffix: Hugging Face's network under forward hooks, under pyvene, and with keys and values
of the prefix reused, which is the best PyTorch we could write.

An interchange at the last token after one block; logits are read at the last token alone, as generation does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

try:
    import pyvene
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
except ImportError as error:
    raise ImportError(f"{error.name} is not installed; install it with: pip install -e '.[benchmarks]'") from error

from torch import Tensor, nn

Swap = Callable[[Tensor, Tensor], Tensor]
"""Makes a patched state of base and source states, `[N, D]` each."""


def llama(
    *, vocabulary: int, width: int, depth: int, heads: tuple[int, int], hidden: int, tokens: int
) -> LlamaForCausalLM:
    """Draw a network at random, of so many query heads, and heads of keys and values."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=hidden, num_hidden_layers=depth,
        num_attention_heads=heads[0], num_key_value_heads=heads[1], max_position_embeddings=tokens,
        initializer_range=0.05,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def last_logits(network: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """Return the logits after each prompt, `[N, C]`."""
    return network(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[:, -1]


def last_states(network: LlamaForCausalLM, tokens: Tensor, batch: int) -> Tensor:
    """Run the network once and keep the residual stream at the last token after every block, `[L, N, D]`."""
    parts = []
    for rows in tokens.split(batch):
        kept: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _module, _inputs, output, kept=kept: kept.append(_stream(output)[:, -1]))
            for layer in network.model.layers
        ]
        network(input_ids=rows, use_cache=False, logits_to_keep=1)
        for hook in hooks:
            hook.remove()
        parts.append(torch.stack(kept))
    return torch.cat(parts, dim=1)


@contextmanager
def swapped(network: LlamaForCausalLM, depth: int, source: Tensor, swap: Swap) -> Iterator[None]:
    """Replace the last token's residual stream after one block while the context is open."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        stream = _stream(output).clone()
        stream[:, -1] = swap(stream[:, -1].clone(), source)
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    handle = network.model.layers[depth].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def hooked_sweep(network: LlamaForCausalLM, base: Tensor, source: Tensor, batch: int) -> Tensor:
    """Run the sources once, then the patched base once for every layer: `[L, N, C]`."""
    with torch.inference_mode():
        states, layers = last_states(network, source, batch), []
        for depth in range(len(network.model.layers)):
            parts = []
            for start in range(0, len(base), batch):
                rows = slice(start, start + batch)
                with swapped(network, depth, states[depth, rows], lambda _base, source: source):
                    parts.append(last_logits(network, base[rows]))
            layers.append(torch.cat(parts))
        return torch.stack(layers)


class Cached(NamedTuple):
    """What the last token of recorded prompts needs: keys (turned already) and values by layer, with a slot for it.

    Attributes:
      keys: `[N, H, T, E]` for each layer.
      values: likewise.
      turn: cosine and sine of the last position.
      states: the sources' residual stream at the last token after every block, `[L, N, D]`.
    """

    keys: list[Tensor]
    values: list[Tensor]
    turn: tuple[Tensor, Tensor]
    states: Tensor


def cache_prefix(network: LlamaForCausalLM, base: Tensor, source: Tensor, batch: int) -> Cached:
    """Run bases and sources once and keep what a sweep of the last token reuses."""
    with torch.no_grad():
        parts = [
            network(input_ids=rows, use_cache=True, logits_to_keep=1).past_key_values for rows in base.split(batch)
        ]
        layers = range(len(network.model.layers))
        keys = [torch.cat([part.layers[layer].keys for part in parts]) for layer in layers]
        values = [torch.cat([part.layers[layer].values for part in parts]) for layer in layers]
        turn = network.model.rotary_emb(keys[0], torch.tensor([[base.shape[1] - 1]]))
        return Cached(keys, values, turn, last_states(network, source, batch))


def cached_sweep(network: LlamaForCausalLM, cached: Cached) -> Tensor:
    """Patch the last token after every block and run it alone through the later ones: `[L, N, C]`."""
    with torch.inference_mode():
        outputs = []
        for depth, states in enumerate(cached.states):
            stream = states[:, None]
            for index, layer in enumerate(network.model.layers):
                if index > depth:
                    stream = _last_token(layer, stream, cached.keys[index], cached.values[index], cached.turn)
            outputs.append(network.lm_head(network.model.norm(stream[:, -1])))
        return torch.stack(outputs)


def _last_token(layer: Any, stream: Tensor, keys: Tensor, values: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    read, attention = layer.input_layernorm(stream), layer.self_attn
    split = lambda flat: flat.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    query, key = apply_rotary_pos_emb(split(attention.q_proj(read)), split(attention.k_proj(read)), *turn)
    keys[:, :, -1:], values[:, :, -1:] = key, split(attention.v_proj(read))
    heads = nn.functional.scaled_dot_product_attention(query, keys, values)
    stream = stream + attention.o_proj(heads.transpose(1, 2).flatten(-2))
    return stream + layer.mlp(layer.post_attention_layernorm(stream))


def pyvene_sweep(network: LlamaForCausalLM, base: Tensor, source: Tensor, batch: int) -> Tensor:
    """Wrap the network once per layer and run source and patched base in every batch, as MIB's code does."""
    with torch.no_grad():
        return torch.stack([_pyvene(network, depth, base, source, batch) for depth in range(len(network.model.layers))])


def _pyvene(network: LlamaForCausalLM, depth: int, base: Tensor, source: Tensor, batch: int) -> Tensor:
    representation = pyvene.RepresentationConfig(
        layer=depth,
        component="block_output",
        unit="pos",
        max_number_of_units=1,
        intervention=pyvene.VanillaIntervention(embed_dim=network.config.hidden_size),
    )
    config = pyvene.IntervenableConfig(model_type=type(network), representations=[representation])
    wrapped = pyvene.IntervenableModel(config, network)
    wrapped.disable_model_gradients()
    parts = []
    for start in range(0, len(base), batch):
        rows = slice(start, start + batch)
        last = [[[base.shape[1] - 1]] * len(base[rows])]
        _, patched = wrapped(
            one_token_inputs(base[rows]), [one_token_inputs(source[rows])], {"sources->base": (last, last)}
        )
        parts.append(patched.logits[:, -1])
    return torch.cat(parts)


def one_token_inputs(tokens: Tensor) -> dict[str, Any]:
    """Return how pyvene is told to give logits after the last token alone."""
    return {"input_ids": tokens, "use_cache": False, "logits_to_keep": 1}


def _stream(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
