"""Every head at every layer and position of a GPT-2, patched: the sweep that users of activation patching wait for.

For each site z of one head at one position is taken from the source prompt, and the margin of two answer tokens after
the last token is averaged over the pairs. Sites are those of the last token, or of all positions; the screen estimates
all of them to first order. Two networks at random weights: 4 layers of width 256, and GPT-2's own 12 of width 768.

The baseline is the fastest of TransformerLens, pyvene and nnsight, as their users call them: one forward pass of all
pairs for every site, from sources that were kept; a few sites are timed and scaled, for all cost the same. The last
PyTorch row runs what follows from each site alone. Of the screen the baseline is the exact sweep of the same sites,
which is what it is used instead of, and the rivals are TransformerLens's own and one backward pass.
"""

import dataclasses
import itertools
import math
import tempfile
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Float, Int
from torch import Tensor
from transformers import GPT2LMHeadModel

from abstraction.interventions import Add, Handle
from abstraction.interventions.patching import Runs, map_handles, patched_outputs, resume_chunk, run_pairs
from abstraction.models import Decoder, Network, TokenView, load_decoder, prompts_at
from abstraction.typing import AnyArray
from benchmarks.library_sweeps import LIBRARIES, Sweep, lens_screen
from benchmarks.records import OURS, Row, Timing, compare, measure, require_agreement
from benchmarks.torch_oracle import measure_torch
from benchmarks.torch_sweeps import (
    ANSWERS,
    Sites,
    autograd_screen,
    gpt2,
    head_outputs,
    hooked_sweep,
    keep,
    suffix_sweep,
)

NAME, TAP, VOCABULARY = "sweeps", "head_output", 1000
CHECKED, FEW, SCREENED, PLACES = 4, 2, 4, 4
"""Sites on which all have to agree, sites that are timed where each is a forward pass, pairs that are where each is a
backward pass, and positions that are where sites of a position share."""
MANY = 512
"""Sites from which on those that share are timed at some positions."""
GROUPS = 8
"""Groups of positions that share a program: an edit of any runs the tokens from the first of its group on."""
NOT_TIMED = Timing(math.nan, 0.0, 0, "")
CLOSE = 1e-4
"""Margins are of order 1 and pass through 4 to 12 blocks of float32 sums."""


class Setting(NamedTuple):
    """Sizes of a network and of the pairs."""

    layers: int
    width: int
    heads: int
    pairs: int
    tokens: int

    @property
    def text(self) -> str:
        """Say what is swept."""
        return f"{self.pairs} pairs of {self.tokens} tokens, {self.layers} layers of {self.heads} heads"


SMALL, LARGE = Setting(4, 256, 8, 32, 32), Setting(12, 768, 12, 16, 32)
LEAST = Setting(4, 64, 4, 8, 16)
AXES = {"layers": (2, 4, 8, 16), "tokens": (8, 16, 32, 64), "heads": (2, 4, 8, 16)}
"""What grows from `LEAST` on, one at a time."""


class Problem(NamedTuple):
    """One network in both libraries, and pairs of prompts; ours gives the logits of the two answers."""

    setting: Setting
    network: GPT2LMHeadModel
    ours: Network
    base: np.ndarray
    source: np.ndarray

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Give tokens to PyTorch."""
        return torch.as_tensor(self.base, dtype=torch.long), torch.as_tensor(self.source, dtype=torch.long)

    def record(self) -> Runs:
        """Run base and source once, and keep heads at all positions."""
        return run_pairs(self.ours, self.base, self.source, taps=(TAP,))

    def views(self, sites: Sites) -> "list[View]":
        """Run base and source once for every group of positions; an edit runs the tokens from its group's first on."""
        positions = np.unique(sites[:, 1])
        return [self.view(tuple(group.tolist())) for group in np.array_split(positions, min(GROUPS, len(positions)))]

    def view(self, positions: tuple[int, ...]) -> "View":
        """Run base and source once, for edits at some positions."""
        at = {str(position): np.full(self.setting.pairs, position) for position in positions}
        model = TokenView(cast(Decoder, self.ours.model), self.setting.tokens - min(positions), positions=tuple(at))
        network = Network(model, self.ours.params)
        return View(positions, network, run_pairs(network, *(prompts_at(each, at) for each in self.pair), taps=(TAP,)))

    @property
    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Base and source."""
        return self.base, self.source

    def sites(self, positions: tuple[int, ...] | None = None) -> Sites:
        """List every layer and head at some positions, by default at all."""
        chosen = range(self.setting.tokens) if positions is None else positions
        return np.array(list(itertools.product(range(self.setting.layers), chosen, range(self.setting.heads))))


def run(budget: float) -> list[Row]:
    """Time all sweeps."""
    small = draw(SMALL)
    last = f"last token, {SMALL.text}, width {SMALL.width}"
    rows, _ = exact_rows(last, small, small.sites((SMALL.tokens - 1,)), budget)
    every, slowest = exact_rows(f"all positions, {SMALL.text}, width {SMALL.width}", small, small.sites(), budget)
    rows += every + screen_rows(small, slowest, budget)
    large = draw(LARGE)
    last = f"last token, {LARGE.text}, width {LARGE.width}"
    rows += exact_rows(last, large, large.sites((LARGE.tokens - 1,)), budget)[0]
    return rows + growth_rows(budget / 4)


def draw(setting: Setting) -> Problem:
    """Draw a network, read it in our form, and draw random prompts."""
    network = gpt2(
        vocabulary=VOCABULARY, width=setting.width, depth=setting.layers, heads=setting.heads, tokens=setting.tokens
    )
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        loaded = load_decoder(folder)
    decoder = dataclasses.replace(cast(Decoder, loaded.model), answers=tuple((token,) for token in ANSWERS))
    prompts = np.random.default_rng(0).integers(VOCABULARY, size=(2, setting.pairs, setting.tokens), dtype=np.int32)
    return Problem(setting, network, Network(decoder, loaded.params), *prompts)


class View(NamedTuple):
    """A network seen at some positions, and its runs."""

    positions: tuple[int, ...]
    network: Network
    runs: Runs


def ours(problem: Problem, views: list[View], sites: Sites) -> Float[np.ndarray, " S"]:
    """Sweep sites with this library, in one program for each group of positions."""
    margins = np.empty(len(sites), np.float32)
    for view in views:
        rows = np.flatnonzero(np.isin(sites[:, 1], view.positions))
        if len(rows):
            layer, position, head = sites[rows].T
            places = layer * len(view.positions) + np.searchsorted(view.positions, position)
            chunk = resume_chunk(view.runs, TAP, places)
            margins[rows] = _margins(view.network, view.runs, places, head, (problem.setting.heads, chunk))
    return margins


@partial(jax.jit, static_argnames=("compiled_for",))
def _margins(
    network: Network, runs: Runs, places: Int[Array, " S"], heads: Int[Array, " S"], compiled_for: tuple[int, int]
) -> Float[Array, " S"]:
    count, chunk = compiled_for
    width = network.taps[TAP].width

    def swept(site: tuple[Array, Array]) -> Float[Array, ""]:
        place, head = site
        weight = (jnp.arange(width) // (width // count) == head).astype(jnp.float32)
        return _margin(patched_outputs(network, runs, Handle(TAP, weight, None, place)))

    return map_handles(swept, (places, heads), chunk=chunk)


def _margin(outputs: Float[Array, "N 2"]) -> Float[Array, ""]:
    return (outputs[:, 0] - outputs[:, 1]).mean()


def our_screen(problem: Problem, runs: Runs) -> Float[Array, "L T H"]:
    """Estimate the effect of every site to first order, in one program."""
    return _screened(problem.ours, runs, problem.setting.heads)


@partial(jax.jit, static_argnames=("heads",))
def _screened(network: Network, runs: Runs, heads: int) -> Float[Array, "L T H"]:
    base, source = runs.base[TAP], runs.source[TAP]
    gradient = jax.grad(lambda offset: _margin(network(runs.inputs, {TAP: Add(offset)})[0]))(jnp.zeros_like(base))
    moved = (source - base) * gradient
    return moved.reshape(*moved.shape[:-1], heads, -1).sum(axis=(1, 4))


class Exact(NamedTuple):
    """All implementations of one sweep, ready to run: by name, those of a forward pass a site, and those that share."""

    single: dict[str, Sweep]
    best: Sweep
    mine: Sweep


def exact_rows(size: str, problem: Problem, sites: Sites, budget: float) -> tuple[list[Row], tuple[str, Timing]]:
    """Time every way to patch all sites; return the rows, and the name and time of what users call."""
    exact = prepared(problem, sites)
    few, part = spread(sites, FEW), mirrored(problem, sites)
    margins = {
        name: sweep(spread(sites, CHECKED))
        for name, sweep in {**exact.single, "best": exact.best, OURS: exact.mine}.items()
    }
    require_agreement(margins, atol=CLOSE)
    require_effects(margins[OURS])
    timings = dict(timed(name, sweep, few, sites) for name, sweep in exact.single.items())
    called = [name for name in timings if name.startswith(tuple(LIBRARIES))] or list(timings)
    baseline = min(called, key=lambda name: timings[name].seconds)
    timings |= {f"{name}: not installed": NOT_TIMED for name, library in LIBRARIES.items() if not library.installed}
    best = "PyTorch, what follows from a site alone, keys and values reused"
    name, shared = timed(f"{best}, once recorded", exact.best, part, sites, budget=budget)
    recording = measure_torch(lambda: keep(problem.network, *problem.tensors()), budget=budget)
    timings |= {f"{best}, recording and sweep": both(recording, shared), name: shared}
    name, mine = timed(f"{OURS}, once recorded", exact.mine, part, sites, budget=budget)
    recording = measure(lambda: [view.runs.source for view in problem.views(sites)], budget=budget, compiled=True)
    timings |= {f"{OURS}, recording and sweep": both(recording, mine), name: mine}
    return compare(NAME, size, timings, baseline=baseline), (baseline, timings[baseline])


def prepared(problem: Problem, sites: Sites) -> Exact:
    """Keep what each implementation keeps: source activations, and of the base what is reused."""
    base, source = problem.tensors()
    single = {
        f"{name}, {library.how}, sources kept": library.make(problem.network, base, source)
        for name, library in LIBRARIES.items()
        if library.installed
    }
    with torch.no_grad():
        states = head_outputs(problem.network, source)
    single["PyTorch hooks, sources kept"] = partial(hooked_sweep, problem.network, base, states)
    best = partial(suffix_sweep, problem.network, keep(problem.network, base, source))
    return Exact(single, best, partial(ours, problem, problem.views(sites)))


def spread(sites: Sites, count: int) -> Sites:
    """Pick some sites of all layers, positions and heads."""
    return sites[np.linspace(0, len(sites) - 1, min(count, len(sites))).astype(int)]


def mirrored(problem: Problem, sites: Sites) -> Sites:
    """Pick the sites of some positions where all are many; as many tokens follow them as follow all on average."""
    if len(sites) <= MANY:
        return sites
    tokens = problem.setting.tokens
    first = [(2 * index + 1) * tokens // (2 * PLACES) - 1 for index in range(PLACES // 2)]
    return sites[np.isin(sites[:, 1], [*first, *(tokens - 1 - position for position in first)])]


def timed(name: str, sweep: Sweep, some: Sites, sites: Sites, *, budget: float | None = None) -> tuple[str, Timing]:
    """Time some sites and scale to all; one call after the first, unless there is a budget."""
    if len(some) < len(sites):
        name = f"{name}, {len(some)} of {len(sites)} sites timed and scaled"
    call = lambda: sweep(some)
    if budget is None:
        timing = measure_torch(call, budget=0, least=1)
    elif name.startswith(OURS):
        timing = measure(call, budget=budget, compiled=True, least=1)
    else:
        timing = measure_torch(call, budget=budget)
    return name, timing.scaled(len(sites) / len(some))


def both(recording: Timing, sweep: Timing) -> Timing:
    """Add a recording to the sweep of what it recorded."""
    return sweep._replace(
        seconds=recording.seconds + sweep.seconds,
        seconds_compile=recording.seconds_compile + sweep.seconds_compile,
        memory=max(recording.memory, sweep.memory),
    )


def require_effects(margins: AnyArray) -> None:
    """Refuse to time sites that do not matter: all implementations would agree on them.

    Raises:
      RuntimeError: with how far the margins differ.
    """
    spread = float(np.ptp(np.asarray(margins)))
    if not spread > 30 * CLOSE:
        raise RuntimeError(f"got margins that differ by {spread}, expected sites that matter")


def screen_rows(problem: Problem, exact: tuple[str, Timing], budget: float) -> list[Row]:
    """Time the screen of all sites beside the exact sweep of them."""
    base, source = problem.tensors()
    with torch.no_grad():
        states = head_outputs(problem.network, source)
    runs = problem.record()
    best = lambda: autograd_screen(problem.network, base, states)
    mine = lambda: our_screen(problem, runs)
    effects = {OURS: mine(), "PyTorch": best()}
    timings = {f"{exact[0]}, exactly": exact[1]}
    lens = "TransformerLens, attribution_patch"
    if LIBRARIES["TransformerLens"].installed:
        effects[lens] = lens_screen(problem.network, base, source)()
        some = lens_screen(problem.network, base[:SCREENED], source[:SCREENED])
        scaled = measure_torch(some, budget=0, least=1).scaled(len(base) / SCREENED)
        timings[f"{lens}, {SCREENED} of {len(base)} pairs timed and scaled"] = scaled
    else:
        timings[f"{lens}: not installed"] = NOT_TIMED
    require_agreement(effects, atol=CLOSE)
    require_effects(np.asarray(effects[OURS]))
    timings["PyTorch, one backward pass, sources kept"] = measure_torch(best, budget=budget)
    timings[f"{OURS}, once recorded"] = measure(mine, budget=budget, compiled=True)
    recording = measure(lambda: problem.record().source, budget=budget, compiled=True)
    timings[f"{OURS}, recording and screen"] = both(recording, timings[f"{OURS}, once recorded"])
    size = f"first-order screen of all positions, {problem.setting.text}, width {problem.setting.width}"
    return compare(NAME, size, timings, baseline=f"{exact[0]}, exactly")


def growth_rows(budget: float) -> list[Row]:
    """Time all positions as layers, tokens and heads grow one at a time, beside hooks and the best rival."""
    rows = []
    for axis, sizes in AXES.items():
        for size in sizes:
            problem = draw(LEAST._replace(**{axis: size}))
            rows += grown_rows(f"{axis} grow: {problem.setting.text}, width {LEAST.width}", problem, budget)
    return rows


def grown_rows(size: str, problem: Problem, budget: float) -> list[Row]:
    """Time all positions of one size."""
    base, source = problem.tensors()
    with torch.no_grad():
        states = head_outputs(problem.network, source)
    sites = problem.sites()
    few, part = spread(sites, FEW), mirrored(problem, sites)
    hooked = partial(hooked_sweep, problem.network, base, states)
    best = partial(suffix_sweep, problem.network, keep(problem.network, base, source))
    mine = partial(ours, problem, problem.views(sites))
    some = spread(sites, CHECKED)
    require_agreement({OURS: mine(some), "hooks": hooked(some), "best": best(some)}, atol=CLOSE)
    baseline, slowest = timed("PyTorch hooks, sources kept", hooked, few, sites)
    timings = dict(
        [
            (baseline, slowest),
            timed("PyTorch, what follows from a site alone, once recorded", best, part, sites, budget=budget),
            timed(f"{OURS}, once recorded", mine, part, sites, budget=budget),
        ]
    )
    return compare(f"{NAME}-growth", size, timings, baseline=baseline)
