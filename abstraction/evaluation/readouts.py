"""Readouts: what the outputs of a network say, and how far that is from a label.

A label is one integer per pair. A readout turns outputs `[N, C]` into a prediction that is compared with it, and into
a loss that a search can descend.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


@runtime_checkable
class Readout(Protocol):
    """How outputs meet labels. Instances are hashable and compare by value."""

    def decode(self, outputs: Float[Array, "N C"]) -> Int[Array, " N"]:
        """Read the predicted label."""
        ...

    def loss(self, outputs: Float[Array, "N C"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
        """Return the loss of each pair, in nats."""
        ...


@dataclass(frozen=True)
class Classes:
    """The label is one of C classes: argmax of the logits, and cross-entropy.

    Attributes:
      count: outputs that are classes, the first so many; None for all.
    """

    count: int | None = None

    def decode(self, outputs: Float[Array, "N C"]) -> Int[Array, " N"]:
        """Read the class with the largest logit."""
        return outputs[:, : self.count].argmax(axis=-1)

    def loss(self, outputs: Float[Array, "N C"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
        """Return the negative log-likelihood of the label."""
        return optax.softmax_cross_entropy_with_integer_labels(outputs[:, : self.count], labels)


@dataclass(frozen=True)
class Bits:
    """The label is a number of C bits, least significant first; each output is the logit of one bit."""

    def decode(self, outputs: Float[Array, "N C"]) -> Int[Array, " N"]:
        """Read the number; a bit is 1 where its probability is 1/2 or more."""
        return ((outputs >= 0).astype(jnp.int32) << jnp.arange(outputs.shape[-1])).sum(axis=-1)

    def loss(self, outputs: Float[Array, "N C"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
        """Add the binary cross-entropies of the bits."""
        bits = labels[:, None] >> jnp.arange(outputs.shape[-1]) & 1
        return optax.sigmoid_binary_cross_entropy(outputs, bits).sum(axis=-1)


CLASSES = Classes()
