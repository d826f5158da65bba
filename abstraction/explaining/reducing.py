"""What the reduction of a network asks of it: statistics, interchange trials, text; at shapes alone.

Elimination is left out: it is NumPy's in float64 on the host, D^2 R operations of D units of which R go.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abstraction.evaluation.interchange import Trials, View, recorded_states, trial_program
from abstraction.explaining.cases import Driver, shape
from abstraction.models import Decoder, Network
from abstraction.models.taps import NO_EDITS
from abstraction.planning import Program
from abstraction.reduction import Calibration
from abstraction.reduction.discrepancies import DISCREPANCIES
from abstraction.reduction.streaming import curvature_programs
from abstraction.reduction.text import text_program


@dataclass(frozen=True)
class Reducing:
    """A layer that is reduced, and tested.

    Attributes:
      name: for people.
      model: the network's model.
      inputs: shapes of so many inputs.
      tap: of the units.
      calibration: examples that statistics are of.
      tests: examples that trials interchange.
      trials: of every reduced network.
      batch: examples of a batch of statistics, and trials at a time.
      discrepancy: whose curvature is meant.
    """

    name: str
    model: Any
    inputs: Callable[[int], Any]
    tap: str
    calibration: int
    tests: int
    trials: int
    batch: tuple[int, int] = (512, 2048)
    discrepancy: str = "kl"

    def drivers(self) -> list[Driver]:
        """Return what it costs: statistics of all examples, and the trials of one reduced network."""
        network = Network(self.model, jax.eval_shape(self.model.init, jax.random.key(0)))
        return [self._statistics(network), self._trials(network)]

    def _statistics(self, network: Network) -> Driver:
        batch, _ = self.batch
        size = min(batch, self.calibration)
        outputs = jax.eval_shape(lambda network, inputs: network(inputs)[0], network, self.inputs(size))

        def programs(count: int) -> tuple[Program, int]:
            arrays = self.inputs(count), shape((count,), jnp.int32), shape((count, outputs.shape[-1]))
            known = jax.eval_shape(Calibration, *arrays)
            return curvature_programs(network, known, self.tap, DISCREPANCIES[self.discrepancy])

        words = f"{network.taps[self.tap].width} units, {self.calibration} examples"
        calls = -(-self.calibration // size) * programs(size)[1]
        # One batch is what is counted and compiled: its size is the caller's, so it is no chunk to choose.
        return Driver(
            "collect_statistics", words, lambda chunk: programs(size)[0], size, 0, self.calibration * outputs.shape[-1],
            calls,
        )  # fmt: skip

    def _trials(self, network: Network) -> Driver:
        (_, batch), width = self.batch, network.taps[self.tap].width
        size = min(batch, self.trials)
        view, inputs = View(network, self.tap, np.arange(width), NO_EDITS), self.inputs(self.tests)
        states = jax.eval_shape(recorded_states, view, inputs)
        rows = shape((size,), jnp.int32)
        trials = jax.eval_shape(Trials, rows, rows, shape((size, width), jnp.bool_))
        words = f"{self.trials} trials of {self.tests} examples"
        program = lambda chunk: trial_program(view, inputs, states, trials)
        return Driver("interchanged_outputs", words, program, size, 0, self.trials, -(-self.trials // size))


@dataclass(frozen=True)
class Reading:
    """A language model that is reduced by one pass over text.

    Attributes:
      name: for people.
      decoder: of the whole vocabulary.
      rows: of text.
      length: tokens of a row.
      batch: rows at once.
      discrepancies: whose curvature is drawn.
    """

    name: str
    decoder: Decoder
    rows: int
    length: int
    batch: int
    discrepancies: tuple[str, ...] = ("kl",)

    def drivers(self) -> list[Driver]:
        """Return what the pass costs."""
        network = Network(self.decoder, jax.eval_shape(self.decoder.init, jax.random.key(0)))
        size = min(self.batch, self.rows)
        at = lambda chunk: text_program(network, shape((size, self.length), jnp.int32), self.discrepancies)
        words = f"{self.rows} rows of {self.length} tokens"
        calls = -(-self.rows // size)
        return [Driver("text_statistics", words, at, size, 0, self.rows * (1 + len(self.discrepancies)), calls)]
