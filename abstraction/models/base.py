"""The contract every model obeys: pure functions over a params pytree, with taps.

    outputs, activations = model.apply(params, inputs, edits, record)

Laws, tested for every model in `tests/contract/`:

1. without edits, `apply` is the plain forward pass;
2. recording changes nothing, and records values after their edit;
3. a weight-1 interchange of a whole tap makes everything downstream equal to the source run's;
4. `resume` from a recorded state gives the outputs of `apply`, at every depth;
5. edits and records of unknown taps raise ValueError and name the valid ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from abstraction.models.taps import NO_EDITS, Edits, Tap
from abstraction.typing import Outputs, Params


@runtime_checkable
class Model(Protocol):
    """A network whose activations can be read and replaced. Instances are hashable and compare by value."""

    @property
    def taps(self) -> Mapping[str, Tap]:
        """The activations that can be recorded and edited, by name."""
        ...

    def init(self, key: Array) -> Params:
        """Draw fresh parameters."""
        ...

    def apply(
        self, params: Params, inputs: Any, edits: Edits = NO_EDITS, record: Sequence[str] = ()
    ) -> tuple[Outputs, dict[str, Array]]:
        """Run the network.

        Args:
          params: what `init` returns.
          inputs: a batch, `[N, ...]`; an array, or a pytree of them where a model says so.
          edits: `{tap: edit}`; each leaf leads with the tap's depth axis, of 1 where the tap occurs once.
          record: taps to return.

        Returns:
          Outputs `[N, C]`, and each recorded activation, `[L, N, ..., D]`.

        Raises:
          ValueError: at trace time, for an unknown tap or an edit that does not fit.
        """
        ...

    def resume(
        self, params: Params, tap: str, depth: Int[Array, ""], activation: Array, *, inputs: Any, states: Array
    ) -> Outputs:
        """Run the rest of the network from the value of a tap at one depth.

        `depth` is a value, not a shape: one compiled program serves every depth, under vmap too.

        Args:
          params: what `init` returns.
          tap: a tap that `resumes`, whose value at a depth, with the inputs, determines everything after it.
          depth: where to resume, in [0, L).
          activation: the tap's value there, `[N, ..., D]`.
          inputs: the batch that is run; a network that reads at every depth needs what is still to be read.
          states: the tap as recorded, `[L, N, ..., D]`; one that emits at every depth has emitted from the earlier.

        Returns:
          Outputs `[N, C]`.

        Raises:
          ValueError: the tap is unknown or does not determine the rest of the network.
        """
        ...


@runtime_checkable
class Recordable(Protocol):
    """A model that keeps more of a run than its activations, so that resuming costs less."""

    def record(self, params: Params, inputs: Any, taps: Sequence[str]) -> tuple[Any, Outputs, dict[str, Array]]:
        """Run the network without edits.

        Args:
          params: what `init` returns.
          inputs: a batch.
          taps: activations to keep; it is resumed from these.

        Returns:
          The batch as `resume` wants it, outputs, and each recorded activation.
        """
        ...

    def check(self, inputs: Any) -> None:
        """Refuse a batch, whose values are known, that the model cannot resume on.

        Raises:
          ValueError: saying what was got and expected.
        """
        ...

    def from_depth(self, depth: int) -> Model:
        """Return the model without what comes before an edit at this depth; it resumes there or later."""
        ...


@runtime_checkable
class Shaped(Protocol):
    """A model whose parameters are drawn elsewhere, by a user's own code."""

    def param_shapes(self) -> Params:
        """Return shape and type of every array of the params, in their structure."""
        ...


@runtime_checkable
class Padded(Protocol):
    """A model whose inputs may be padded: what is there is neither counted nor interchanged."""

    def present(self, inputs: Any, tap: str) -> Bool[Array, "N P"]:
        """Return at which of its P positions a tap holds no padding; P is 1 where it has none."""
        ...


def present(model: Model, inputs: Any, tap: str, positions: int) -> Bool[Array, "N P"]:
    """Return at which of its positions a tap holds no padding: all of them, unless the model says otherwise."""
    if isinstance(model, Padded):
        return model.present(inputs, tap)
    return jnp.ones((jax.tree.leaves(inputs)[0].shape[0], positions), bool)
