"""Decoders of transformers with logits of order 1, the same ones in the library, and both read at every position.

Every edit there can be is one tree of arrays, so that one program of ours runs all of a table of interventions:

    h <- (1 - v) h + v c;    h <- (1 - w) h + w s;    h <- h + ((s - h) E w') G;    h <- h + o

at some positions of every tap: set, interchange, interchange in a basis, add. What is not asked for has weight 0.
"""

import copy
import tempfile
from functools import cache

import jax
import numpy as np
from hooked_decoders import CONFIGS, network, torch, transformers

from abstraction.interventions import Add, Basis, InOrder, Interchange, Set
from abstraction.models import load_decoder
from abstraction.models.positions import AtPositions
from abstraction.models.taps import NO_EDITS

PLAIN = {"head_dim": None}
"""Heads as wide as D / H: what pyvene takes for granted."""


@cache
def gentle(kind, **changes):
    """Return a network of transformers, whose weights are smaller than in `hooked_decoders`, and ours."""
    if changes:
        config = {name: value for name, value in CONFIGS[kind].items() if name not in PLAIN} | changes
        settings = getattr(transformers, {"llama": "LlamaConfig"}[kind])(**config)
        net = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation="eager").eval()
        noise = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, weight in net.named_parameters():
                weight.copy_(("norm" in name) + 0.3 * torch.randn(weight.shape, generator=noise))
    else:
        net = copy.deepcopy(network(kind))
    net.requires_grad_(False)
    for name, weight in net.named_parameters():
        if "norm" not in name and ".ln_" not in name:
            weight *= 0.6
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        return net, load_decoder(folder)


@jax.jit
def every_logit(ours, tokens, edits):
    """Run with edits and read the stream before the last norm at every position: `[N, T, C]`."""
    _, recorded = ours.model.apply(ours.params, tokens, edits, ("final_input",))
    stream = recorded["final_input"][0]
    logits = ours.model.read(ours.model.network(ours.params), stream.reshape(-1, stream.shape[-1]))
    return logits.reshape(*stream.shape[:2], -1)


@jax.jit
def recorded(ours, tokens, edits=NO_EDITS):
    """Run and keep every tap that has positions."""
    return ours.model.apply(ours.params, tokens, edits, tuple(name for name in ours.taps if name != "logits"))[1]


def table_edits(ours, prompts, places, changes):
    """Write interventions as the one tree of edits.

    Args:
      ours: the network.
      prompts: how many.
      places: how many positions of each.
      changes: by tap, (depth, positions `[N, P]`, what to do there); that by name: `value`, `kept` (weight of it),
        `source`, `weight`, `features` (weight in the basis), `encoder`, `decoder`, `offset`.
    """
    edits = {}
    for tap in ours.taps.values():
        if tap.name == "logits":
            continue
        zeros = lambda *shape, tap=tap: np.zeros((tap.depth, *shape), np.float32)
        states, matrix = (prompts, places, tap.width), (tap.width, tap.width)
        parts = {name: zeros(*states) for name in ("value", "kept", "source", "weight", "features", "offset")}
        parts |= {"encoder": zeros(*matrix), "decoder": zeros(*matrix)}
        positions = np.full((tap.depth, prompts, places), -1)
        if tap.name in changes:
            depth, where, what = changes[tap.name]
            positions[depth, :, : where.shape[1]] = where
            for name, values in what.items():
                fit = np.asarray(values)
                if name in ("encoder", "decoder"):
                    parts[name][depth, : fit.shape[0], : fit.shape[1]] = fit
                else:
                    parts[name][depth, :, : where.shape[1], : fit.shape[-1]] = fit
        basis = Basis(parts["encoder"], parts["decoder"], zeros(tap.width))
        steps = (
            Set(parts["value"], parts["kept"]),
            Interchange(parts["source"], parts["weight"]),
            Interchange(parts["source"], parts["features"], basis),
            Add(parts["offset"]),
        )
        edits[tap.name] = AtPositions(InOrder(steps), positions)
    return edits


def at(values, positions):
    """Take `[N, P, D]` at positions of `[N, T, D]`."""
    return np.take_along_axis(np.asarray(values), positions[..., None], axis=1)
