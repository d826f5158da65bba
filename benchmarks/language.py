"""A real language model, SmolLM2-135M in float32, beside transformers: recording, and sweeps of its residual stream.

Recording is of 64 prompts about indirect objects, the bases and sources of 32 pairs: the stream after all 30 blocks at
the last token, and at four named tokens, with what an edit there needs later. Transformers runs the same prompts and
reads the same logits, with every hidden state or none. The sweeps swap the stream of a token after each block, of 64
pairs. Users run the whole network under a hook for each; the best rival keeps keys, values and streams of the bases
and runs the tokens from the edited one on through the later blocks alone, as ours does. A sweep is linear in the blocks
that are run again, so of the long ones some are timed, whose mean is the mean of all.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import torch

from abstraction.interventions import Handle, state_sites
from abstraction.interventions.handles import take_handle
from abstraction.interventions.patching import Runs, handle_outputs, run_pairs
from abstraction.models import Decoder, Network, Prompts, TokenView, load_decoder, prompts_at
from abstraction.models.packaged import NAME, smollm2
from abstraction.models.token_views import ONE, window_of
from abstraction.tasks import ioi
from abstraction.tasks.ioi import POSITIONS
from abstraction.tasks.prompts import last_positions, load_tokenizer, span_positions
from abstraction.typing import Setting
from benchmarks.records import OURS, Row, Timing, compare, measure, require_agreement
from benchmarks.torch_language import (
    Places,
    Texts,
    cached_sweep,
    forward,
    hooked_sweep,
    keep_base,
    named_streams,
    transformers_network,
)
from benchmarks.torch_oracle import measure_torch

TAP, PAIRS = "block_output", 64
BATCHES = 16, 64
TIMED = 2, 7, 12, 17, 22, 27
"""Blocks of the sweeps that are timed in part; their mean is that of all 30."""
HOOKED = TIMED[2:4]
"""Blocks that the hooks are timed at, where every block costs the same."""
_ATOL = 2e-3
"""Between logits, which are of order 10 here and pass through 30 blocks of float32 sums."""


class Problem(NamedTuple):
    """One network in both libraries, pairs of prompts, and the tokens of the names."""

    network: Network
    torch_network: Any
    texts: Texts
    names: np.ndarray

    @property
    def decoder(self) -> Decoder:
        """Ours."""
        return cast(Decoder, self.network.model)

    def prompts(self, tokens: Sequence[int]) -> tuple[Prompts, Prompts]:
        """Look at some of the named tokens of base and source."""
        texts, names = self.texts, [POSITIONS[token] for token in tokens]
        sides = (texts.base, texts.base_at), (texts.source, texts.source_at)
        base, source = (
            prompts_at(rows, at[:, tokens[0]] if len(tokens) == 1 else dict(zip(names, at[:, tokens].T, strict=True)))
            for rows, at in sides
        )
        return base, source

    def view(self, tokens: Sequence[int], batch: int | None, whole: bool) -> Network:
        """See the network at some named tokens, and read the whole vocabulary or the names."""
        names = tuple(POSITIONS[token] for token in tokens) if len(tokens) > 1 else ONE
        answers = () if whole else tuple((int(name),) for name in self.names)
        decoder = replace(self.decoder, answers=answers)
        window = window_of(*self.prompts(tokens))
        return replace(self.network, model=TokenView(decoder, window, batch=batch, positions=names))

    def half(self) -> "Problem":
        """Keep half of the pairs: as many prompts as there were pairs."""
        return self._replace(texts=Texts(*(each[: PAIRS // 2] for each in self.texts)))


def run(budget: float) -> list[Row]:
    """Time recordings and sweeps."""
    problem = load_problem()
    return [*record_rows(problem.half(), budget), *last_rows(problem, budget), *token_rows(problem, budget)]


def load_problem() -> Problem:
    """Load SmolLM2 into both libraries and write the prompts.

    Raises:
      ImportError: it is not installed; how to get it.
    """
    path = smollm2()
    tokenizer, network = load_tokenizer(path), load_decoder(path, dtype="float32")
    lexicon = ioi.lexicon_for(tokenizer)
    names = np.array([tokens[0] for tokens in ioi.answers(tokenizer, lexicon)])
    (made,) = ioi.make_banks(0, lexicon, {"fit": PAIRS}).values()
    sides = made.bank.base, made.bank.source
    length = max(ioi.encode(side, tokenizer, lexicon).tokens.shape[1] for side in sides)

    def written(side: Setting) -> tuple[np.ndarray, np.ndarray]:
        encoded, spans = ioi.encode(side, tokenizer, lexicon, length=length), ioi.spans(side, lexicon)
        last = last_positions(encoded)
        return encoded.tokens, np.stack(
            [last if name == "last" else span_positions(encoded, spans[name]) for name in POSITIONS], axis=1
        )

    (base, base_at), (source, source_at) = map(written, sides)
    return Problem(network, transformers_network(network), Texts(base, source, base_at, source_at), names)


def record_rows(problem: Problem, budget: float) -> list[Row]:
    """Time recordings of all prompts of some pairs."""
    texts, network = problem.texts, problem.torch_network
    rows = np.concatenate([texts.base, texts.source])
    every = tuple(range(len(POSITIONS)))
    functions: dict[str, Any] = {}
    for batch in BATCHES:
        for hidden in (True, False):
            kept = "all hidden states" if hidden else "logits alone"
            functions[f"transformers, {kept}, batches of {batch}"] = partial(forward, network, rows, batch, hidden)
    baseline = next(iter(functions))
    for name, tokens in (("the last token", (0,)), ("four tokens", every)):
        for batch in BATCHES:
            most = min(batch, len(texts.base))
            run_once = partial(recorded, problem, tokens, most, True)
            functions[f"abstraction, record at {name}, batches of {most}"] = run_once
    check_recording(problem, functions[[*functions][-1]]())
    timings = {name: _seconds(name, function, budget) for name, function in functions.items()}
    size = f"recording of {len(rows)} prompts of {rows.shape[1]} tokens, {NAME}, float32"
    return compare("language", size, timings, baseline=baseline)


def recorded(problem: Problem, tokens: Sequence[int], batch: int | None, whole: bool) -> Runs:
    """Run bases and sources once in our library."""
    return run_pairs(problem.view(tokens, batch, whole), *problem.prompts(tokens), taps=(TAP,))


def check_recording(problem: Problem, runs: Runs) -> None:
    """Compare a recording of the four tokens with transformers' logits and streams; streams by their own size."""
    texts, network = problem.texts, problem.torch_network
    logits = forward(network, texts.base, len(texts.base), False)
    require_agreement({"transformers": logits, "abstraction": runs.outputs}, atol=_ATOL)
    streams = named_streams(network, texts.source, texts.source_at).numpy()
    streams = np.moveaxis(streams, 2, 1).reshape(-1, *streams.shape[1:2], streams.shape[3])
    scale = np.abs(streams).max(axis=-1, keepdims=True)
    ours = np.asarray(runs.source[TAP])
    require_agreement({"transformers' streams": streams / scale, "abstraction's": ours / scale}, atol=1e-4)


def last_rows(problem: Problem, budget: float) -> list[Row]:
    """Time the sweep of all blocks at the last token."""
    depth = problem.decoder.config.depth
    size = f"{depth} blocks at the last token x {PAIRS} pairs, once recorded, {NAME}"
    return _sweep_rows(problem, size, [(block, 0) for block in range(depth)], budget, [(0,)])


def token_rows(problem: Problem, budget: float) -> list[Row]:
    """Time the sweep of all blocks at four tokens: ours in one view of all, and in a view of each."""
    depth, tokens = problem.decoder.config.depth, range(len(POSITIONS))
    size = f"{depth} blocks x {len(tokens)} tokens x {PAIRS} pairs, once recorded, {len(TIMED)} blocks timed and scaled"
    places = [(block, token) for token in tokens for block in TIMED]
    return _sweep_rows(problem, f"{size}, {NAME}", places, budget, [(token,) for token in tokens], tuple(tokens))


def _sweep_rows(
    problem: Problem,
    size: str,
    places: Places,
    budget: float,
    views: Sequence[tuple[int, ...]],
    together: tuple[int, ...] = (),
) -> list[Row]:
    network, names, texts = problem.torch_network, torch.as_tensor(problem.names), problem.texts
    kept, (batch, _) = keep_base(network, texts), BATCHES
    few = [place for place in places if place[0] in HOOKED]
    hooks = f"PyTorch hooks, place by place, batches of {batch}, {len(few)} places timed and scaled"
    best = "PyTorch, keys, values and streams kept, tokens and blocks from the edit on alone"
    ours = "abstraction" + (", a view of each token" if together else "")
    apart = [(problem.view(view, None, False), recorded(problem, view, None, False), view) for view in views]
    functions = {
        hooks: lambda: hooked_sweep(network, texts, kept.sources, few, names, batch),
        best: lambda: cached_sweep(network, texts, kept, places, names),
        ours: lambda: swept(apart, places),
    }
    if together:
        wide = [(problem.view(together, None, False), recorded(problem, together, None, False), together)]
        functions["abstraction, one view of all tokens"] = lambda: swept(wide, places)
    chosen = np.array([places.index(place) for place in few])
    results = {name: np.asarray(function()) for name, function in functions.items()}
    require_agreement({n: each if n == hooks else each[chosen] for n, each in results.items()}, atol=_ATOL)
    require_agreement({n: each for n, each in results.items() if n != hooks}, atol=_ATOL)
    return compare("language", size, _timed(problem, functions, hooks, (places, few), budget), baseline=hooks)


def _timed(
    problem: Problem, functions: dict[str, Any], hooks: str, timed: tuple[Places, Places], budget: float
) -> dict[str, Timing]:
    """Time sweeps, and scale those of some places to all blocks of their tokens."""
    places, few = timed
    every = problem.decoder.config.depth * len({token for _, token in places})
    spent = 0.0 if len(places) < every else budget
    return {
        name: _seconds(name, function, spent, least=1).scaled(every / len(few if name == hooks else places))
        for name, function in functions.items()
    }


def _seconds(name: str, function: Callable[[], Any], budget: float, least: int = 3) -> Timing:
    """Time ours, compilation apart, or PyTorch with one thread and with all, of which the faster counts."""
    if name.startswith(OURS):
        return measure(function, budget=budget, compiled=True, least=least)
    return measure_torch(function, budget=budget, least=least)


def swept(views: Sequence[tuple[Network, Runs, tuple[int, ...]]], places: Places) -> jax.Array:
    """Swap the stream at places in our library, each in the view that has its token: `[S, N, C]`, by token."""
    parts = []
    for network, runs, tokens in views:
        depths = [block * len(tokens) + tokens.index(token) for block, token in places if token in tokens]
        handles: Handle = state_sites(network.taps[TAP]).handles()
        parts.append(handle_outputs(network, runs, take_handle(handles, np.array(depths))))
    return jax.numpy.concatenate(parts)
