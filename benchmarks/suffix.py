"""A layer sweep of a decoder at the last token, 4 layers x 200 pairs of 100 tokens.

The baseline is pyvene, called as MIB's code calls it: the network wrapped once per layer, source and patched base run
in every batch. The second PyTorch row runs the sources once and the patched base once for every layer, under a hook.
The third is the best PyTorch we could write: keys and values of the base are kept, and the last token alone runs from
the layer on, as in ours; with the recording and without.
"""

import tempfile
from functools import partial
from typing import NamedTuple, cast

import jax
import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from abstraction.causal import PairBank
from abstraction.evaluation import Recorded, record
from abstraction.interventions import Handle, state_sites
from abstraction.interventions.patching import Runs, map_handles, patched_outputs, resume_chunk, run_pairs
from abstraction.models import Decoder, Network, Prompts, TokenView, load_decoder, prompts_at
from benchmarks.records import Row, compare, measure, require_agreement
from benchmarks.torch_decoder import (
    cache_prefix,
    cached_sweep,
    hooked_sweep,
    llama,
    pyvene_sweep,
)
from benchmarks.torch_oracle import measure_torch

PAIRS, TOKENS, BATCH, VOCABULARY, DEPTH = 200, 100, 50, 1000, 4
TAP = "block_output"


class Problem(NamedTuple):
    """One network in both libraries, and pairs of prompts."""

    network: LlamaForCausalLM
    view: Network
    base: np.ndarray
    source: np.ndarray

    def prompts(self) -> tuple[Prompts, Prompts]:
        """Look at the last token of base and source."""
        return prompts_at(self.base), prompts_at(self.source)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Give tokens to PyTorch."""
        return torch.as_tensor(self.base, dtype=torch.long), torch.as_tensor(self.source, dtype=torch.long)

    def run(self) -> Runs:
        """Run base and source once."""
        return run_pairs(self.view, *self.prompts(), taps=(TAP,))

    def record(self, labels: np.ndarray) -> Recorded:
        """Run base and source once, as pairs with a label each."""
        count = len(labels)
        factual, eligible = np.zeros(count, np.int32), np.ones((1, count), bool)
        sides = {"tokens": self.base}, {"tokens": self.source}
        bank = PairBank(*sides, factual, labels[None].astype(np.int32), eligible, ("label",), "fit")
        return record(self.view, lambda setting: prompts_at(setting["tokens"]), bank, tap=TAP)


def run(budget: float) -> list[Row]:
    """Time the sweep."""
    network = llama(vocabulary=VOCABULARY, width=256, depth=DEPTH, heads=(8, 8), hidden=1024, tokens=TOKENS)
    return sweep_rows(decoder_problem(network, PAIRS), budget)


def decoder_problem(network: LlamaForCausalLM, pairs: int) -> Problem:
    """Read a network in our form and draw random prompts."""
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        loaded = load_decoder(folder)
    view = Network(TokenView(cast(Decoder, loaded.model)), loaded.params)
    base, source = np.random.default_rng(0).integers(VOCABULARY, size=(2, pairs, TOKENS), dtype=np.int32)
    return Problem(network, view, base, source)


def sweep_rows(problem: Problem, budget: float) -> list[Row]:
    """Time every way to patch all layers."""
    base, source = problem.tensors()
    handles = state_sites(problem.view.taps[TAP]).handles()
    pyvene = f"pyvene, layer by layer, batches of {BATCH}, source run in each"
    hooks = f"PyTorch hooks, layer by layer, batches of {BATCH}, sources run once"
    whole = "PyTorch, keys and values reused, recording and sweep"
    cached = "PyTorch, keys and values reused, sweep of what has been recorded"
    ours, alone = "abstraction, recording and sweep", "abstraction, sweep of what has been recorded"
    runs, past = problem.run(), cache_prefix(problem.network, base, source, BATCH)
    functions = {
        pyvene: lambda: pyvene_sweep(problem.network, base, source, BATCH),
        hooks: lambda: hooked_sweep(problem.network, base, source, BATCH),
        whole: lambda: cached_sweep(problem.network, cache_prefix(problem.network, base, source, BATCH)),
        cached: lambda: cached_sweep(problem.network, past),
        ours: lambda: sweep(problem, problem.run(), handles),
        alone: lambda: sweep(problem, runs, handles),
    }
    # logits of a random network are of order 1 and pass through 4 blocks of float32 sums
    require_agreement({name: function() for name, function in functions.items()}, atol=1e-4)
    timings = {
        name: measure(function, budget=budget, compiled=name in (ours, alone), least=1)
        for name, function in functions.items()
        if name != cached
    }
    timings[cached] = measure_torch(functions[cached], budget=budget)
    size = f"{DEPTH} layers x {PAIRS} pairs of {TOKENS} tokens, width 256"
    return compare("suffix", size, timings, baseline=pyvene)


def sweep(problem: Problem, runs: Runs, handles: Handle) -> jax.Array:
    """Patch every layer: logits `[L, N, C]`."""
    return _sweep(problem.view, runs, handles, resume_chunk(runs, TAP))


@partial(jax.jit, static_argnames=("chunk",))
def _sweep(view: Network, runs: Runs, handles: Handle, chunk: int) -> jax.Array:
    return map_handles(lambda handle: patched_outputs(view, runs, handle), handles, chunk=chunk)
