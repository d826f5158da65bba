"""Decoders of transformers run with raw PyTorch forward hooks at every tap; nothing of the library is in here.

It edits example by example and position by position, in loops. Networks: heads of 2 and learned
positions in GPT-2; grouped queries and heads wider than D / H in Llama, once with stretched rotations and every bias;
biases and a tied head in Qwen2; both caps in Gemma-2, and a window that prompts are longer than.
"""

from contextlib import ExitStack, contextmanager
from functools import cache, partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is the oracle: pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers", reason="the networks are its: pip install -e '.[parity]'")

L, T = 4, 9
"""Blocks, and tokens of a padded prompt."""

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": L, "num_attention_heads": 4, "vocab_size": 50}
SIZES |= {"num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
STRETCH = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
STRETCH |= {"original_max_position_embeddings": 32}
CONFIGS = {
    "gpt2": {
        "n_embd": 24, "n_layer": L, "n_head": 12, "vocab_size": 10, "n_positions": 64, "resid_pdrop": 0.0,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None,
    },
    "llama": SIZES | {"head_dim": 16},
    "llama3": SIZES | {
        "head_dim": 16, "rope_scaling": STRETCH, "rope_theta": 10000.0, "attention_bias": True, "mlp_bias": True,
    },
    "qwen2": SIZES | {"tie_word_embeddings": True},
    "gemma2": SIZES | {
        "head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 24, "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
}  # fmt: skip
CLASSES = {"gpt2": "GPT2", "llama": "Llama", "llama3": "Llama", "qwen2": "Qwen2", "gemma2": "Gemma2"}


@cache
def network(kind, **changes):
    """Draw a network of transformers; the same weights whatever is changed."""
    config = getattr(transformers, CLASSES[kind] + "Config")(**CONFIGS[kind] | changes)
    net = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    net = net.eval().requires_grad_(False)
    noise = torch.Generator().manual_seed(0)
    spread = 0.5 if kind == "gpt2" else 0.3  # One of its twelve small heads must matter.
    for name, weight in net.named_parameters():  # Norms and biases too: at their initial values they hide mistakes.
        centre = 1.0 if kind != "gemma2" and ("norm" in name or ".ln_" in name) else 0.0  # Gemma-2 stores scale - 1.
        weight.copy_(centre + spread * torch.randn(weight.shape, generator=noise))
    return net


def places(net, kind):
    """Return where each tap is in a block: module, side, and which third of its last axis."""
    if kind == "gpt2":
        named = lambda block: {
            "block_input": (block, "in"), "block_output": (block, "out"), "attention_input": (block.ln_1, "out"),
            "query": (block.attn.c_attn, "out", 0), "key": (block.attn.c_attn, "out", 1),
            "value": (block.attn.c_attn, "out", 2), "head_output": (block.attn.c_proj, "in"),
            "attention_output": (block.attn.c_proj, "out"), "mlp_input": (block.ln_2, "out"),
            "mlp_hidden": (block.mlp.act, "out"), "mlp_output": (block.mlp.c_proj, "out"),
        }  # fmt: skip
        blocks, last = net.transformer.h, net.transformer.ln_f
    else:
        named = lambda block: {
            "block_input": (block, "in"), "block_output": (block, "out"),
            "attention_input": (block.input_layernorm, "out"), "query": (block.self_attn.q_proj, "out"),
            "key": (block.self_attn.k_proj, "out"), "value": (block.self_attn.v_proj, "out"),
            "head_output": (block.self_attn.o_proj, "in"), "attention_output": (block.self_attn.o_proj, "out"),
            "mlp_hidden": (block.mlp.act_fn, "out"), "mlp_product": (block.mlp.down_proj, "in"),
            "mlp_output": (block.mlp.down_proj, "out"),
        } | ({
            "attention_post_norm": (block.post_attention_layernorm, "out"),
            "mlp_input": (block.pre_feedforward_layernorm, "out"),
            "mlp_post_norm": (block.post_feedforward_layernorm, "out"),
        } if kind == "gemma2" else {"mlp_input": (block.post_attention_layernorm, "out")})  # fmt: skip
        blocks, last = net.model.layers, net.model.norm
    found = {(tap, depth): place for depth, block in enumerate(blocks) for tap, place in named(block).items()}
    return found | {("final_input", None): (last, "in")}


@contextmanager
def hooked(net, kind, edits):
    """Hook every tap; edits are functions of `[N, T, D]` tensors by (tap, depth).

    Yields what every tap was in the last run, after its edit.
    """
    seen = {}

    def hook(place, part):
        def run(value):
            whole = value
            if part is not None:
                value = value.chunk(3, dim=-1)[part]
            value = edits[place](value.clone()) if place in edits else value
            seen[place] = value.numpy().copy()
            if part is None:
                return value
            thirds = list(whole.chunk(3, dim=-1))
            thirds[part] = value
            return torch.cat(thirds, dim=-1)

        return run

    def before(run, module, args):
        return (run(args[0]), *args[1:])

    def after(run, module, args, output):
        return (run(output[0]), *output[1:]) if isinstance(output, tuple) else run(output)

    with ExitStack() as stack, torch.no_grad():
        for place, (module, side, *part) in places(net, kind).items():
            run = hook(place, *(part or [None]))
            if side == "in":
                handle = module.register_forward_pre_hook(partial(before, run))
            else:
                handle = module.register_forward_hook(partial(after, run))
            stack.callback(handle.remove)
        yield seen


def hook_run(net, kind, tokens, edits=None):
    """Run with hooks at every tap; edits as in `hooked`.

    Returns logits at all positions, and what every tap was, after its edit.
    """
    mask = tokens >= 0
    padding = {}
    if not mask.all():
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        padding = {"attention_mask": torch.tensor(mask.astype(int)), "position_ids": torch.tensor(positions)}
    with hooked(net, kind, edits or {}) as seen:
        logits = net(torch.tensor(np.maximum(tokens, 0)), use_cache=False, **padding).logits
    return logits.numpy(), seen


def replacing(positions, values, units=None):
    """Replace units (by default all) at each example's positions; negative positions are none."""

    def edit(value):
        for n in range(len(value)):
            for p, position in enumerate(positions[n]):
                if position >= 0:
                    chosen = list(range(value.shape[-1])) if units is None else units[n]
                    value[n, position, chosen] = torch.tensor(np.asarray(values[n][p])[chosen])
        return value

    return edit


def ends(tokens):
    """Return the index of each prompt's last token."""
    return np.array([max(index for index, token in enumerate(row) if token >= 0) for row in tokens])


def padded(rng, vocabulary, lengths, side):
    """Draw prompts of these lengths, padded with -1 on one side."""
    tokens = np.full((len(lengths), T), -1)
    for row, length in zip(tokens, lengths, strict=True):
        where = slice(T - length, T) if side == "left" else slice(length)
        row[where] = rng.integers(vocabulary, size=length)
    return tokens
