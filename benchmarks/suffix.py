"""A layer sweep of a decoder at the last token, 4 layers x 200 pairs of 100 tokens, and DAS there.

The baseline is pyvene, called as MIB's code calls it: the network wrapped once per layer, source and patched base run
in every batch. The second PyTorch row runs the sources once and the patched base once for every layer, under a hook.
The third is the best PyTorch we could write: keys and values of the base are kept, and the last token alone runs from
the layer on, as in ours; with the recording and without.
"""

import tempfile
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from abstraction.causal import PairBank
from abstraction.evaluation import Recorded, record
from abstraction.interventions import Handle, state_sites
from abstraction.interventions.patching import Runs, map_handles, patched_outputs, resume_chunk, run_pairs
from abstraction.localization import Rotation, SearchConfig, candidate_grid, full_supports
from abstraction.localization.searching import train_candidates
from abstraction.models import Decoder, Network, Prompts, TokenView, load_decoder, prompts_at
from benchmarks.records import Row, compare, measure, require_agreement
from benchmarks.torch_decoder import (
    cache_prefix,
    cached_sweep,
    hooked_sweep,
    last_states,
    llama,
    pyvene_sweep,
    train_rotation,
)
from benchmarks.torch_oracle import measure_torch

PAIRS, TOKENS, BATCH, VOCABULARY, DEPTH = 200, 100, 50, 1000, 4
TAP = "block_output"
RANK, RESTARTS, STEPS, TRAIN_BATCH = 8, 2, 10, 64
TIMED, TIMED_STEPS = (1, 2), 2
"""What is timed of the training in PyTorch: as many blocks follow as on average."""
START_KEY, ORDER_KEY = jax.random.split(jax.random.key(0))


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
        factual, eligible = np.zeros(PAIRS, np.int32), np.ones((1, PAIRS), bool)
        sides = {"tokens": self.base}, {"tokens": self.source}
        bank = PairBank(*sides, factual, labels[None].astype(np.int32), eligible, ("label",), "fit")
        return record(self.view, lambda setting: prompts_at(setting["tokens"]), bank, tap=TAP)


def run(budget: float) -> list[Row]:
    """Time the sweep, then the training."""
    problem = decoder_problem()
    return [*sweep_rows(problem, budget), *training_rows(problem, budget)]


def decoder_problem() -> Problem:
    """Draw a network of 256 features and random prompts."""
    network = llama(vocabulary=VOCABULARY, width=256, depth=DEPTH, heads=8, hidden=1024, tokens=TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        loaded = load_decoder(folder)
    view = Network(TokenView(cast(Decoder, loaded.model)), loaded.params)
    base, source = np.random.default_rng(0).integers(VOCABULARY, size=(2, PAIRS, TOKENS), dtype=np.int32)
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


def training_rows(problem: Problem, budget: float) -> list[Row]:
    """Time ten steps of DAS at every layer."""
    labels = np.asarray(last_token_labels(problem))
    base, source = problem.tensors()
    rotations = DEPTH * RESTARTS

    states = last_states(problem.network, source, BATCH)

    def hooks(states: Tensor | None) -> np.ndarray:
        train = lambda depth: train_rotation(
            problem.network, depth, base, source, None if states is None else states[depth],
            torch.tensor(labels, dtype=torch.long), rank=RANK, steps=TIMED_STEPS, batch=TRAIN_BATCH,
        )  # fmt: skip
        return np.array([train(depth) for depth in TIMED])

    scale = rotations / len(TIMED) * STEPS / TIMED_STEPS
    part = f"{TIMED_STEPS} steps after blocks {TIMED[0]} and {TIMED[1]} timed and scaled"
    baseline = f"PyTorch hooks, one by one, source run in each batch, {part}"
    recorded = problem.record(labels)
    timings = {
        baseline: measure(lambda: hooks(None), budget=0, least=1).scaled(scale),
        f"PyTorch hooks, one by one, sources recorded, {part}": measure(
            lambda: hooks(states), budget=0, least=1
        ).scaled(scale),
        "abstraction, recording and training": measure(
            lambda: train(problem, problem.record(labels)), budget=budget, compiled=True, least=1
        ),
        "abstraction, training on what has been recorded": measure(
            lambda: train(problem, recorded), budget=budget, compiled=True
        ),
    }
    size = f"{rotations} rotations of rank {RANK}, {STEPS} batches of {TRAIN_BATCH} pairs"
    return compare("suffix-das", size, timings, baseline=baseline)


def last_token_labels(problem: Problem) -> jax.Array:
    """Take what the network says after each source as the label of its pair."""
    return problem.view(problem.prompts()[1])[0].argmax(axis=-1)


def train(problem: Problem, recorded: Recorded) -> jax.Array:
    """Train rotations at every layer and return their losses."""
    tap, epochs = problem.view.taps[TAP], STEPS
    candidates = candidate_grid(
        START_KEY, tap, full_supports(tap, range(1)), ranks=(RANK,), learning_rates=(1e-3,), restarts=RESTARTS
    )
    config = SearchConfig(
        batch_size=TRAIN_BATCH, max_epochs=epochs, min_epochs=epochs, patience=epochs, steps_per_epoch=1
    )
    found = train_candidates(ORDER_KEY, problem.view, recorded, candidates, Rotation(), config)
    return jnp.asarray(found.curve)
