"""A sweep over layers, positions and heads as users of TransformerLens, pyvene and nnsight call it.

One forward pass of all pairs for every site, from source activations that were kept before. Each library has a network
of its own, with the same weights; where it can be told to, it gives logits after the last token alone.
"""

import copy
import io
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from abstraction.typing import AnyArray
from benchmarks.torch_sweeps import Sites, head_outputs, head_units, last_inputs, margin

Sweep = Callable[[Sites], AnyArray]
"""Returns the margin of every site, `[S]`."""


class Library(NamedTuple):
    """A library: what it is imported as, how the sweep is called in it, and what makes the sweep."""

    package: str
    how: str
    make: Callable[[GPT2LMHeadModel, Tensor, Tensor], Sweep]

    @property
    def installed(self) -> bool:
        """Whether it can be imported."""
        return find_spec(self.package) is not None


def lens(network: GPT2LMHeadModel) -> Any:
    """Give the weights to TransformerLens, which loads a folder; its tokenizer has to be there and is never used."""
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    words = {str(token): token for token in range(network.config.vocab_size)}
    special = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), "0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "0")), **special)
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder)


def lens_sweep(network: GPT2LMHeadModel, base: Tensor, source: Tensor) -> Sweep:
    """Patch by `generic_activation_patch`, with the setter and the name of `get_act_patch_attn_head_out_by_pos`."""
    import pandas as pd
    from transformer_lens.patching import generic_activation_patch, layer_pos_head_vector_patch_setter

    bridge = lens(network)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(source, names_filter=lambda name: name.endswith("attn.hook_z"))

    def sweep(sites: Sites) -> AnyArray:
        index = pd.DataFrame(sites, columns=["layer", "pos", "head"])
        with torch.no_grad(), redirect_stderr(io.StringIO()):  # its progress bar
            margins = generic_activation_patch(
                bridge, base, cache, margin, layer_pos_head_vector_patch_setter, "z", index_df=index
            )
        return torch.as_tensor(margins).numpy()

    return sweep


def lens_screen(network: GPT2LMHeadModel, base: Tensor, source: Tensor) -> Callable[[], np.ndarray]:
    """Estimate every head's effect by `attribution_patch`, which goes from pair to pair: `[L, T, H]`."""
    from transformer_lens.tools.analysis import attribution_patch

    bridge, config = lens(network), network.config

    def screen() -> np.ndarray:
        effects = np.zeros((config.n_layer, base.shape[1], config.n_head), np.float32)
        for node, effect in attribution_patch(bridge, source, base, margin).node_scores.items():
            if node.kind == "attn_head_out":
                effects[node.layer, node.position, node.head] = effect
        return effects

    return screen


def pyvene_sweep(network: GPT2LMHeadModel, base: Tensor, source: Tensor) -> Sweep:
    """Wrap the network once per layer and give it a head, a position and the source activation of both."""
    import pyvene

    network = copy.deepcopy(network)
    with torch.no_grad():
        states = head_outputs(network, source)
    wrapped = []
    for layer in range(network.config.n_layer):
        representation = pyvene.RepresentationConfig(
            layer=layer, component="head_attention_value_output", unit="h.pos", max_number_of_units=1
        )
        kind: Any = pyvene.VanillaIntervention  # the annotation of `intervention_types` names one kind alone
        config = pyvene.IntervenableConfig(
            model_type=type(network), representations=[representation], intervention_types=kind
        )
        wrapped.append(pyvene.IntervenableModel(config, network))
        wrapped[-1].disable_model_gradients()

    def sweep(sites: Sites) -> AnyArray:
        margins = []
        with torch.no_grad():
            for layer, position, head in sites.tolist():
                model, place = wrapped[layer], [[[[head]] * len(base), [[position]] * len(base)]]
                other = states[layer][:, position, head_units(network, head)][:, None, None]
                _, patched = model(
                    last_inputs(base),
                    unit_locations={"sources->base": (None, place)},
                    source_representations={next(iter(model.interventions)): other},
                )
                margins.append(margin(patched.logits).item())
        return np.array(margins, np.float32)

    return sweep


def nnsight_sweep(network: GPT2LMHeadModel, base: Tensor, source: Tensor) -> Sweep:
    """Trace the base once per site and assign the head's part of what the output map reads."""
    from nnsight import NNsight

    network = copy.deepcopy(network)
    with torch.no_grad():
        states = head_outputs(network, source)
    model: Any = NNsight(network)

    def sweep(sites: Sites) -> AnyArray:
        margins = []
        for layer, position, head in sites.tolist():
            units = head_units(network, head)
            other = states[layer][:, position, units]
            with torch.no_grad(), model.trace(**last_inputs(base)):
                model.transformer.h[layer].attn.c_proj.input[:, position, units] = other
                logits = model.output.logits.save()
            margins.append(margin(logits).item())
        return np.array(margins, np.float32)

    return sweep


LIBRARIES = {
    "TransformerLens": Library("transformer_lens", "generic_activation_patch", lens_sweep),
    "pyvene": Library("pyvene", "IntervenableModel by layer", pyvene_sweep),
    "nnsight": Library("nnsight", "a trace by site", nnsight_sweep),
}
