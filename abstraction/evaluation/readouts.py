"""Readouts: what the outputs of a network say, and how far that is from a label.

A label is one integer per pair. A readout turns outputs `[N, C]` into a prediction that is compared with it, and into
a loss that a search can descend.

An argmax over numbers of which one is not a number is class 0, and a sign of it is a bit of 0: an answer by accident.
So a pair whose outputs are not all finite has no prediction, which is written -1 and equals no label: a miss.
`scored` gives such a pair the loss +inf. `loss` itself is left as it is, for gradients.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from abstraction.checks import whole
from abstraction.models import Model
from abstraction.typing import AnyArray, Params

MISS = -1
"""What is read where there is nothing to read."""
MOST_BITS = 31


@runtime_checkable
class Readout(Protocol):
    """How outputs meet labels. Instances are hashable and compare by value."""

    def decode(self, outputs: Float[Array, "N C"]) -> Int[Array, " N"]:
        """Read the predicted label; -1 where an output that counts is not finite."""
        ...

    def loss(self, outputs: Float[Array, "N C"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
        """Return the loss of each pair, in nats."""
        ...

    def check(self, labels: AnyArray, outputs: int) -> Int[np.ndarray, "..."]:
        """Return labels in int32, on the host.

        Args:
          labels: of any shape and numeric type.
          outputs: how many outputs the network has.

        Raises:
          ValueError: one of the labels cannot be scored on so many outputs.
        """
        ...


@dataclass(frozen=True)
class Classes:
    """The label is one of C classes: argmax of the logits, and cross-entropy.

    Attributes:
      count: outputs that are classes, the first so many; None for all.

    Raises:
      ValueError: the count is not an integer of at least 1.
    """

    count: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None:
            whole("classes", self.count)

    def decode(self, outputs: Float[Array, "N C"]) -> Int[Array, " N"]:
        """Read the class with the largest logit; -1 where a logit is not finite."""
        logits = outputs[:, : self.count]
        return jnp.where(jnp.isfinite(logits).all(axis=-1), logits.argmax(axis=-1), MISS)

    def loss(self, outputs: Float[Array, "N C"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
        """Return the negative log-likelihood of the label."""
        logits = outputs[:, : self.count]
        shifted = logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
        # Picked by comparing, not by an index, whose gradient is a scatter: pair after pair on a CPU.
        picked = jnp.where(labels[:, None] == jnp.arange(logits.shape[-1]), shifted, 0.0).sum(axis=-1)
        return jnp.log(jnp.exp(shifted).sum(axis=-1)) - picked

    def check(self, labels: AnyArray, outputs: int) -> Int[np.ndarray, "..."]:
        """Return labels of 0 to C - 1 in int32.

        Raises:
          ValueError: a label is not one of these, or there are fewer outputs than classes.
        """
        whole("outputs", outputs)
        if self.count is not None and self.count > outputs:
            raise ValueError(f"got {outputs} outputs for {self.count} classes, expected an output for each class")
        return _integers(labels, outputs if self.count is None else self.count, "classes")


@dataclass(frozen=True)
class Bits:
    """The label is a number of C bits, least significant first; each output is the logit of one bit."""

    def decode(self, outputs: Float[Array, "N C"]) -> Int[Array, " N"]:
        """Read the number; a bit is 1 where its probability is 1/2 or more, and -1 where a logit is not finite."""
        whole("outputs that are bits", outputs.shape[-1], 1, MOST_BITS)
        number = ((outputs >= 0).astype(jnp.int32) << jnp.arange(outputs.shape[-1])).sum(axis=-1)
        return jnp.where(jnp.isfinite(outputs).all(axis=-1), number, MISS)

    def loss(self, outputs: Float[Array, "N C"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
        """Add the binary cross-entropies of the bits."""
        bits = labels[:, None] >> jnp.arange(outputs.shape[-1]) & 1
        return optax.sigmoid_binary_cross_entropy(outputs, bits).sum(axis=-1)

    def check(self, labels: AnyArray, outputs: int) -> Int[np.ndarray, "..."]:
        """Return labels of 0 to 2^C - 1 in int32.

        Raises:
          ValueError: a label is not one of these, or there are more bits than int32 holds.
        """
        whole("outputs that are bits", outputs, 1, MOST_BITS)
        return _integers(labels, 2**outputs, f"numbers of {outputs} bits")


CLASSES = Classes()
"""One class per output: the default."""


def scored(
    readout: Readout, outputs: Float[Array, "N C"], labels: Int[Array, " N"]
) -> tuple[Bool[Array, " N"], Float[Array, " N"]]:
    """Tell which pairs are hit, and what each costs: +inf where the readout has no prediction.

    For counting and choosing. A search descends `readout.loss` instead, whose gradient has no branches.
    """
    predicted, loss = readout.decode(outputs), readout.loss(outputs, labels)
    return predicted == labels, jnp.where((predicted == MISS) | jnp.isnan(loss), jnp.inf, loss)


def _integers(labels: AnyArray, count: int, what: str) -> Int[np.ndarray, "..."]:
    """Return labels of 0 to count - 1 in int32."""
    labels = np.asarray(labels)
    if not labels.size or labels.dtype.kind not in "biuf":
        raise ValueError(f"got {labels.size} labels of type {labels.dtype}, expected integers: {what} 0 to {count - 1}")
    # Compared before they are cast: a cast wraps what is too large, and cuts what lies between two integers.
    good = np.isfinite(labels) & (labels >= 0) & (labels < count) & (labels == np.trunc(labels))
    if not good.all():
        place = tuple(int(axis[0]) for axis in np.nonzero(~good))
        raise ValueError(f"got label {labels[place]} at {list(place)}, expected {what} 0 to {count - 1}")
    return labels.astype(np.int32)


def _inputs_of(batch: Mapping[str, Any], context: Any) -> Any:
    return batch["inputs"]


@dataclass(frozen=True)
class FactualLoss:
    """Mean loss of a network's answers on rows of a training set, as `abstraction.training.fit` descends it.

        L(params) = mean_n readout.loss(y(x_n; params), label_n)

    Attributes:
      model: the network's shape.
      readout: how outputs meet labels.
      inputs: `(batch, context) -> inputs`; what the batch holds as `inputs`, unless rows have to be encoded first.
    """

    model: Model
    readout: Readout
    inputs: Callable[[Mapping[str, Any], Any], Any] = _inputs_of

    def __call__(self, params: Params, batch: Mapping[str, Any], context: Any) -> Float[Array, ""]:
        outputs, _ = self.model.apply(params, self.inputs(batch, context))
        return self.readout.loss(outputs, batch["labels"]).mean()
