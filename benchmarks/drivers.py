"""Every heavy driver at the shapes of an experiment, without weights or pairs: programs to compile, not to run.

A case is a network, pairs and what is asked of them. Parameters, prompts and runs are shapes alone, so a decoder of
nine billion parameters costs nothing here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abstraction.causal import PairBank
from abstraction.evaluation import CLASSES, Bits, Readout, Recorded
from abstraction.evaluation.iia import tally_program
from abstraction.interventions import Handle, state_sites, unit_sites
from abstraction.interventions.bases import frame_basis
from abstraction.interventions.patching import Runs, handle_chunk, patched_bytes, recording_program
from abstraction.localization import Rotation, SearchConfig, Signature
from abstraction.localization.searching import Training, search_program
from abstraction.localization.signatures import signature_program
from abstraction.localization.supports import Candidates
from abstraction.localization.sweeping import sweep_program
from abstraction.models import GRU, MLP, Decoder, Network, Prompts, TokenView
from abstraction.models.base import Recordable
from abstraction.models.decoder_config import DecoderConfig
from abstraction.planning import Program

VARIABLES = 2
LETTERS = tuple((1000 + letter,) for letter in range(26))
"""Tokens that stand for the 26 letters; which they are does not matter to a shape."""

_GEMMA = {
    "vocabulary": 256_000, "head_size": 256, "norm_offset": 1.0, "post_norms": True, "activation": "gelu_tanh",
    "attention_cap": 50.0, "final_cap": 30.0, "window": 4096, "dtype": "bfloat16",
}  # fmt: skip


def gemma(width: int, depth: int, heads: int, kv_heads: int, hidden: int, query: float) -> DecoderConfig:
    """Return the sizes of a Gemma-2: every other block has a window."""
    sizes = {"width": width, "depth": depth, "heads": heads, "kv_heads": kv_heads, "hidden": hidden}
    windowed = tuple(block % 2 == 0 for block in range(depth))
    return DecoderConfig(**sizes, **_GEMMA, windowed=windowed, embedding_scale=width**0.5, query_scale=query**-0.5)  # pyright: ignore[reportArgumentType]


GEMMA_2B = gemma(2304, 26, 8, 4, 9216, 256)
GEMMA_9B = gemma(3584, 42, 16, 8, 14_336, 256)


@dataclass(frozen=True)
class Case:
    """What an experiment asks of a network.

    Attributes:
      name: for people.
      model: the network's model.
      inputs: shapes of the inputs of so many runs.
      tap: where edits are.
      pairs: N of one bank.
      recorded: pairs of all banks, which are recorded together.
      batch: pairs of a training step.
      searches: how many searches are trained together, how wide, and over how many depths, by name.
      readout: how outputs meet labels.
    """

    name: str
    model: Any
    inputs: Callable[[int], Any]
    tap: str
    pairs: int
    recorded: int
    batch: int
    searches: Mapping[str, tuple[int, int, int]]
    readout: Readout = CLASSES

    @property
    def network(self) -> Network:
        """The network, of shapes."""
        return Network(self.model, jax.eval_shape(self.model.init, jax.random.key(0)))

    def runs(self) -> Runs:
        """Shapes of the runs of one bank."""
        program = self.recording(self.pairs, None)
        return jax.eval_shape(partial(program.function, **program.options), *program.arguments)

    def recording(self, pairs: int, batch: int | None) -> Program:
        """Make the program that records so many pairs."""
        return recording_program(self.network, self.inputs(pairs), self.inputs(pairs), (self.tap,), batch)


@dataclass(frozen=True)
class Driver:
    """A driver in a case.

    Attributes:
      name: what is called.
      size: in words.
      at: makes its program for some size of chunk.
      wanted: the chunk that pays.
      guess: bytes that one of the chunk may hold.
    """

    name: str
    size: str
    at: Callable[[int], Program]
    wanted: int
    guess: int


def prompts(tokens: int) -> Callable[[int], Prompts]:
    """Return shapes of prompts of so many tokens."""
    return lambda count: Prompts(_shape((count, tokens), jnp.int32), _shape((count,), jnp.int32))


def language_model(name: str, config: DecoderConfig, tokens: int, pairs: int, searches: Any) -> Case:
    """Make a case of multiple choice: letters and the largest other logit, at the last token."""
    view = TokenView(Decoder(config, LETTERS, rest=True))
    return Case(name, view, prompts(tokens), "block_output", pairs, 3 * pairs, 64, searches)


def _shape(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return an array's shape in place of the array."""
    return jax.ShapeDtypeStruct(shape, dtype)


def vectors(width: int) -> Callable[[int], Any]:
    """Return shapes of vectors."""
    return lambda count: _shape((count, width), jnp.float32)


def cases() -> list[Case]:
    """Return the paper's experiments, and one on a model of nine billion parameters (PLOT, Sec. 4).

    Searches are as many as are trained together: of multiple choice 11 ranks, 2 variables and 2 restarts at one depth,
    or of every third part of them at the depths of one of six bands, filled up as `padded_searches` does.
    """
    narrow, wide = {"PLOT-DAS": (48, 2304, 1), "Full DAS, a band": (64, 2304, 5)}, {"PLOT-DAS": (48, 3584, 1)}
    equality = Case("equality", MLP(16, 16, 3, 2), vectors(16), "hidden", 1000, 3000, 128, {"Full DAS": (96, 16, 3)})
    addition = Case(
        "addition", GRU(2, 16, 4), lambda count: _shape((count, 4, 2), jnp.float32), "hidden", 3328, 6656, 64,
        {"Full DAS": (120, 16, 4)}, Bits(),
    )  # fmt: skip
    return [
        equality,
        addition,
        language_model("mcqa, Gemma-2-2B", GEMMA_2B, 100, 200, narrow),
        language_model("mcqa, Gemma-2-9B", GEMMA_9B, 100, 200, wide | {"Full DAS, a band": (96, 3584, 7)}),
    ]


def drivers(case: Case) -> list[Driver]:
    """Return every driver of a case, with what it is asked for."""
    network, runs, tap = case.network, case.runs(), case.model.taps[case.tap]
    recorded = Recorded(bank(case.pairs), runs, case.readout)
    sites = unit_sites(tap) if tap.width <= 64 else state_sites(tap)
    at_once = handle_chunk(runs, case.tap)
    one, few = case.pairs * patched_bytes(network, runs, case.tap), min(at_once, sites.size)
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(runs)) // case.pairs
    found = [
        Driver(
            "record", f"{case.recorded} pairs", lambda batch: case.recording(case.recorded, batch), case.recorded, kept
        ),
        Driver(
            "site_signatures", f"{sites.size} sites, {case.pairs} pairs",
            partial(signature_program, network, runs, sites, Signature("logit_delta")), few, one,
        ),
        Driver(
            "sweep", f"{sites.size} places, {case.pairs} pairs",
            partial(sweep_program, network, recorded, sites, "iia"), few, one,
        ),
        *(tallied(network, recorded, kind, at_once, one) for kind in ("native", "rank 64")),
    ]  # fmt: skip
    for name, (count, rank, depths) in case.searches.items():
        found.append(search(case, (network, recorded), name, (count, rank, depths)))
    return found


def tallied(network: Network, recorded: Recorded, kind: str, at_once: int, one: int) -> Driver:
    """Return the calibration of as many handles as go into one call."""
    tap = network.taps[recorded.tap]
    count, rank = (1024, tap.width) if kind == "native" else (64, min(64, tap.width))
    basis = None if kind == "native" else frame_basis(np.zeros((count, tap.width, rank), np.float32))
    handles = Handle(tap.name, np.ones((count, rank), np.float32), basis, np.zeros(count, np.int32))
    batch = handles, np.zeros(count, np.int32)
    program = lambda chunk: tally_program(network, recorded, batch, 0, chunk)
    return Driver("tally_handles", f"{count} handles, {kind}, {recorded.bank.size} pairs", program, at_once, one)


def search(case: Case, what: tuple[Network, Recorded], name: str, sizes: tuple[int, int, int]) -> Driver:
    """Return a search of so many candidates of a rank, over so many depths."""
    (network, recorded), (count, rank, depths) = what, sizes
    if isinstance(network.model, Recordable):
        network = replace(network, model=network.model.from_depth(0))
    tap = network.taps[case.tap]
    rank = min(rank, tap.width)
    config = SearchConfig(batch_size=case.batch, max_epochs=100)
    whole, number = np.zeros(count, np.int32), np.ones(count, np.float32)
    candidates = Candidates(
        tap=tap.name, variable=whole, depth=np.arange(count, dtype=np.int32) % depths, support=whole,
        limit=whole + tap.width, rank=whole + rank, learning_rate=number, sparsity=number, restart=whole,
        inside=np.ones((count, tap.width), bool), start=_shape((count, tap.width, rank), jnp.float32),
    )  # fmt: skip
    training = Training(Rotation(), config, recorded.readout, None)

    def program(together: int) -> Program:
        some = training._replace(together=together if together < count else None)
        return search_program(jax.random.key(0), network, recorded, candidates, some)

    size = f"{name}: {count} searches, rank {rank}, {config.batch_size} pairs a step"
    return Driver(
        "train_candidates", size, program, count, config.batch_size * patched_bytes(network, recorded.runs, case.tap)
    )


def bank(pairs: int) -> PairBank:
    """Return pairs whose values do not matter."""
    labels, eligible = np.zeros((VARIABLES, pairs), np.int32), np.ones((VARIABLES, pairs), bool)
    return PairBank({}, {}, np.zeros(pairs, np.int32), labels, eligible, ("first", "second"), "fit")
