"""Every heavy driver at the shapes of an experiment, without weights or pairs: programs to look at, not to run.

A case is a network, pairs and what is asked of them. Parameters, inputs and runs are shapes alone, so a decoder of nine
billion parameters costs nothing here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from abstraction.causal import PairBank
from abstraction.evaluation import CLASSES, Readout, Recorded
from abstraction.evaluation.iia import tally_program
from abstraction.interventions import Handle, state_sites, unit_sites
from abstraction.interventions.bases import frame_basis
from abstraction.interventions.patching import Runs, handle_chunk, patched_bytes, recording_program, split_pairs
from abstraction.localization import Rotation, SearchConfig, Signature
from abstraction.localization.searching import Training, search_program
from abstraction.localization.signatures import signature_program
from abstraction.localization.supports import Candidates
from abstraction.localization.sweeping import sweep_program
from abstraction.models import Network, on_mesh
from abstraction.models.base import Recordable
from abstraction.planning import Program
from abstraction.sharding import CANDIDATES, devices_along, mesh_of

_NARROW = 64
"""Width up to which every unit is a site; wider states are sites whole."""


@dataclass(frozen=True)
class Searches:
    """Rotations that are trained together.

    Attributes:
      name: for people.
      count: how many.
      rank: the widest.
      depths: over how many depths.
      batch: pairs of a step.
      epochs: at most.
    """

    name: str
    count: int
    rank: int
    depths: int = 1
    batch: int = 64
    epochs: int = 1


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
      searches: what is trained.
      readout: how outputs meet labels.
      variables: causal variables of a bank.
      handles: native handles, and handles of rank 64, that calibration evaluates.
      signature: how effects are measured.
      mesh: of the devices that share it, None for one.
    """

    name: str
    model: Any
    inputs: Callable[[int], Any]
    tap: str
    pairs: int
    recorded: int
    searches: Sequence[Searches] = ()
    readout: Readout = CLASSES
    variables: int = 2
    handles: tuple[int, int] = (1024, 64)
    signature: Signature = Signature("logit_delta")
    mesh: Mesh | None = None

    @property
    def network(self) -> Network:
        """The network, of shapes."""
        network = Network(self.model, jax.eval_shape(self.model.init, jax.random.key(0)))
        return network if self.mesh is None else on_mesh(network, self.mesh)

    def drivers(self) -> list["Driver"]:
        """Return every driver, with what it is asked for."""
        return _drivers(self)

    def runs(self) -> Runs:
        """Shapes of the runs of one bank."""
        program = self.recording(self.pairs, None)
        return split_pairs(self.mesh, jax.eval_shape(partial(program.function, **program.options), *program.arguments))

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
      runs: how often a pair is run, all in all.
      calls: how often what `count_operations` counts of the program of one at a time is done, at most.
    """

    name: str
    size: str
    at: Callable[[int], Program]
    wanted: int
    guess: int
    runs: int = 0
    calls: int = 1


@runtime_checkable
class Asks(Protocol):
    """What has drivers: a `Case`, and what else an experiment may ask."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    def drivers(self) -> list[Driver]:
        """Return every driver, with what it is asked for."""
        ...


def shape(sizes: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    """Return an array's shape in place of the array."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def _drivers(case: Case) -> list[Driver]:
    network, runs, tap = case.network, case.runs(), case.model.taps[case.tap]
    recorded = Recorded(_bank(case), runs, case.readout)
    sites = unit_sites(tap) if tap.width <= _NARROW else state_sites(tap)
    at_once = handle_chunk(runs, case.tap)
    one, few = case.pairs * patched_bytes(network, runs, case.tap), min(at_once, sites.size)
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(runs)) // case.pairs
    swaps = f"{case.pairs} pairs"
    found = [
        Driver(
            "record", f"{case.recorded} pairs", lambda batch: case.recording(case.recorded, batch), case.recorded, kept,
            2 * case.recorded,
        ),
        Driver(
            "site_signatures", f"{sites.size} sites, {swaps}",
            partial(signature_program, network, runs, sites, case.signature), few, one, sites.size * case.pairs,
        ),
        Driver(
            "sweep", f"{sites.size} places, {swaps}",
            partial(sweep_program, network, recorded, sites, "iia"), few, one, sites.size * case.pairs,
            -(-sites.size // len(sweep_program(network, recorded, sites, "iia", 1).arguments[2].depth)),
        ),
    ]  # fmt: skip
    for count, rank in zip(case.handles, (None, min(64, tap.width)), strict=True):
        if count:
            found.append(_tallied(network, recorded, (count, rank), at_once, one))
    return found + [_search(network, recorded, each) for each in case.searches]


def _tallied(network: Network, recorded: Recorded, what: tuple[int, int | None], at_once: int, one: int) -> Driver:
    """Return the calibration of as many handles as go into one call."""
    (count, rank), tap = what, network.taps[recorded.tap]
    kind = "native" if rank is None else f"rank {rank}"
    basis = None if rank is None else frame_basis(np.zeros((count, tap.width, rank), np.float32))
    weight = np.ones((count, tap.width if rank is None else rank), np.float32)
    batch = Handle(tap.name, weight, basis, np.zeros(count, np.int32)), np.zeros(count, np.int32)
    program = lambda chunk: tally_program(network, recorded, batch, 0, chunk)
    pairs, words = recorded.bank.size, f"{count} handles, {kind}, {recorded.bank.size} pairs"
    shares = devices_along(mesh_of(network.params), CANDIDATES)
    most = -(-min(at_once, len(program(1).arguments[3][1])) // shares)
    # Its loop ends with the last handle that is no padding: how many there are is a value.
    return Driver("tally_handles", words, program, most, one, count * pairs, count)


def _search(network: Network, recorded: Recorded, asked: Searches) -> Driver:
    """Return searches over some depths."""
    if isinstance(network.model, Recordable):
        network = replace(network, model=network.model.from_depth(0))
    tap, count = network.taps[recorded.tap], asked.count
    rank, config = min(asked.rank, tap.width), SearchConfig(batch_size=asked.batch, max_epochs=asked.epochs)
    whole, number = np.zeros(count, np.int32), np.ones(count, np.float32)
    candidates = Candidates(
        tap=tap.name, variable=whole, depth=np.arange(count, dtype=np.int32) % asked.depths, support=whole,
        limit=whole + tap.width, rank=whole + rank, learning_rate=number, sparsity=number, restart=whole,
        inside=np.ones((count, tap.width), bool), start=shape((count, tap.width, rank)),
    )  # fmt: skip
    training = Training(Rotation(), config, recorded.readout, None, mesh_of(network.params))

    def program(together: int) -> Program:
        some = training._replace(together=together if together < count else None)
        return search_program(jax.random.key(0), network, recorded, candidates, some)

    size = f"{asked.name}: {count} searches, rank {rank}, {config.batch_size} pairs a step"
    one, epoch = config.batch_size * patched_bytes(network, recorded.runs, tap.name), recorded.bank.size
    runs = count * asked.epochs * (epoch // asked.batch * asked.batch)
    return Driver("train_candidates", size, program, count, one, runs, asked.epochs)


def _bank(case: Case) -> PairBank:
    """Return pairs whose values do not matter."""
    labels = np.zeros((case.variables, case.pairs), np.int32)
    names = tuple(f"variable {index}" for index in range(case.variables))
    eligible = np.ones((case.variables, case.pairs), bool)
    return PairBank({}, {}, np.zeros(case.pairs, np.int32), labels, eligible, names, "fit")
