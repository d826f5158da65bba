"""Every family of decoders at random switches: all logits of transformers, padded on either side.

Networks are drawn by transformers with every field that changes logits at random, written by it and read by us.
"""

from functools import partial

import jax
import numpy as np
import pytest
from hooked_decoders import padded, torch, transformers

from abstraction.models import load_decoder

pytestmark = pytest.mark.parity

L, LENGTHS = 3, [5, 9, 6]
COMMON = {"num_hidden_layers": L, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
COMMON |= {"hidden_size": 24, "intermediate_size": 40, "vocab_size": 30, "num_attention_heads": 4}
STRETCH = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
STRETCH |= {"original_max_position_embeddings": 32}
PLAIN, LINEAR = {"rope_type": "default"}, {"rope_type": "linear", "factor": 4.0}
ROPE = [each | {"rope_theta": theta} for theta in (1e4, 5e5) for each in (PLAIN, LINEAR, STRETCH)]
TIED, FLAG, SILU = {"tie_word_embeddings": [True, False]}, [True, False], ["silu", "gelu_pytorch_tanh", "gelu"]
KV, HEAD, EPS = [1, 2, 4], [6, 10], [1e-6, 1e-5]
LLAMA = TIED | {"num_key_value_heads": KV, "rope_parameters": ROPE, "hidden_act": SILU, "rms_norm_eps": EPS}
WINDOW = ["full_attention", "sliding_attention"]
KINDS = [[WINDOW[index // 2**block % 2] for block in range(L)] for index in range(2**L)]
GEMMA = TIED | {
    "num_key_value_heads": KV, "head_dim": HEAD, "attention_bias": FLAG, "sliding_window": [3, 5], "layer_types": KINDS,
    "hidden_activation": SILU, "query_pre_attn_scalar": [6, 20], "final_logit_softcapping": [None, 20.0],
    "attn_logit_softcapping": [None, 5.0], "rms_norm_eps": EPS,
}  # fmt: skip
BY_LAYER = [
    {"full_attention": full, "sliding_attention": PLAIN | {"rope_theta": theta}}
    for full in ROPE
    for theta in (1e4, 50.0)
]
SHARED = [each | {"partial_rotary_factor": share} for each in ROPE for share in (1.0, 0.34, 0.67)]
PARTIAL = [each for each in SHARED if each["partial_rotary_factor"] < 1]
UNSLOWED = [each for each in SHARED if each["rope_type"] == "default"]
SWITCHES = {
    "gpt2": TIED | {
        "n_embd": [24], "n_layer": [L], "n_head": [2, 4], "n_positions": [16], "n_inner": [None, 20],
        "activation_function": ["gelu_new", "gelu", "silu"], "scale_attn_weights": FLAG, "layer_norm_epsilon": EPS,
        "resid_pdrop": [0.0], "embd_pdrop": [0.0], "attn_pdrop": [0.0],
    },
    "llama": LLAMA | {"head_dim": HEAD, "attention_bias": FLAG, "mlp_bias": FLAG},
    "mistral": LLAMA | {"head_dim": HEAD, "sliding_window": [None, 3]},
    "phi3": LLAMA | {"sliding_window": [None, 3], "rope_parameters": UNSLOWED},
    "qwen2": LLAMA,
    "qwen3": LLAMA | {"head_dim": HEAD, "attention_bias": FLAG, "use_sliding_window": FLAG, "sliding_window": [3],
                      "max_window_layers": [0, 1]},
    "seed_oss": LLAMA | {
        "head_dim": HEAD, "attention_bias": FLAG, "attention_out_bias": FLAG, "mlp_bias": FLAG,
        "residual_dropout": [0.0],
    },
    "gemma2": GEMMA | {"rope_parameters": ROPE},
    "gemma3_text": GEMMA | {"rope_parameters": BY_LAYER, "attn_logit_softcapping": [None]},
    "gpt_neox": TIED | {
        "rope_parameters": PARTIAL, "hidden_act": SILU, "use_parallel_residual": FLAG, "attention_bias": FLAG,
        "layer_norm_eps": EPS,
    },
}  # fmt: skip
MODULES = {
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
}
CLOSE = {"rtol": 0, "atol": 1e-4}


def shuffled_switches(kind):
    """Give every switch an order of its values of its own: as many seeds as a switch has values reach all of them."""
    choose = np.random.default_rng(len(kind))
    return [(name, values, choose.permutation(len(values))) for name, values in SWITCHES[kind].items()]


def drawn(kind, seed):
    """Draw a configuration and a network of transformers."""
    generator = torch.Generator().manual_seed(seed)
    fields = {name: values[order[seed % len(order)]] for name, values, order in shuffled_switches(kind)}
    common = {"vocab_size": 30, "bos_token_id": None, "eos_token_id": None} if kind == "gpt2" else COMMON
    config = transformers.AutoConfig.for_model(kind, **common | fields)
    net = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    net = net.eval().requires_grad_(False)
    for name, weight in net.named_parameters():  # norms and biases too: at their initial values they hide mistakes
        centre = 1.0 if not kind.startswith("gemma") and ("norm" in name or ".ln_" in name) else 0.0
        weight.copy_(centre + 0.3 * torch.randn(weight.shape, generator=generator))
    return net


def hooked(net, kind, tokens):
    """Return the logits of transformers at all positions, and what heads and MLPs of every block write from."""
    mask = torch.as_tensor(tokens >= 0).long()
    positions, seen = (mask.cumsum(1) - 1).clamp(min=0), {"head_output": [], "mlp": []}
    blocks = net.transformer.h if kind == "gpt2" else getattr(net, "gpt_neox", getattr(net, "model", None)).layers
    attention, mlp = MODULES.get(kind, ("self_attn.o_proj", "mlp.down_proj"))
    for block in blocks:
        for tap, name in (("head_output", attention), ("mlp", mlp)):
            keep = lambda module, given, tap=tap: seen[tap].append(given[0].numpy())
            block.get_submodule(name).register_forward_pre_hook(keep)
    with torch.no_grad():
        ids = torch.as_tensor(np.maximum(tokens, 0)).long()
        logits = net(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    return logits.float().numpy(), {name: np.stack(each) for name, each in seen.items()}


@partial(jax.jit, static_argnames=("record",))
def _run(network, tokens, record):
    run = network.model.run(network.params, tokens, {}, record)
    parameters = network.model.network(network.params)
    stream = run.recorded["final_input"][0]
    return network.model.read(parameters, stream.reshape(-1, stream.shape[-1])).reshape(
        *stream.shape[:2], -1
    ), run.recorded


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", SWITCHES)
def test_logits_and_what_is_written_are_those_of_transformers_at_every_position(kind, seed, tmp_path, rng):
    net = drawn(kind, seed)
    net.save_pretrained(tmp_path)
    network = load_decoder(tmp_path)
    mlp = "mlp_product" if network.model.config.gated else "mlp_hidden"
    for side in ("left", "right"):
        tokens = padded(rng, 30, LENGTHS, side)
        theirs, written = hooked(net, kind, tokens)
        ours, recorded = _run(network, tokens, ("final_input", "head_output", mlp))
        there = tokens >= 0
        np.testing.assert_allclose(np.asarray(ours)[there], theirs[there], **CLOSE)
        assert (np.asarray(ours)[there].argmax(-1) == theirs[there].argmax(-1)).all()
        for tap, name in (("head_output", "head_output"), (mlp, "mlp")):
            largest = max(1.0, float(np.abs(written[name]).max()))
            found, wanted = np.asarray(recorded[tap])[:, there], written[name][-L:][:, there]
            np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * largest, err_msg=f"{side} {tap}")
