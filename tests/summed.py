"""A model written by hand, whose inputs are a pytree: the least that a `Model` is."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from abstraction.models import Tap
from abstraction.models.taps import NO_EDITS, check_taps, tapped_once


@dataclass(frozen=True)
class Summed:
    """logits = (left + right) kernel, with the tap `sum`, from which it does not resume."""

    width: int = 4
    outputs: int = 2

    @property
    def taps(self):
        """The sum of both inputs."""
        return {"sum": Tap("sum", self.width)}

    def init(self, key):
        """Draw the kernel."""
        return {"kernel": jax.random.normal(key, (self.width, self.outputs))}

    def apply(self, params, inputs, edits=NO_EDITS, record=()):
        """Add, and read off."""
        check_taps(self.taps, edits, record)
        added = jnp.asarray(inputs["left"], jnp.float32) + jnp.asarray(inputs["right"], jnp.float32)
        added, read = tapped_once("sum", added, edits)
        return added @ jnp.asarray(params["kernel"]), {name: read for name in record}

    def resume(self, params, tap, depth, activation, *, inputs, states):
        """There is nothing to resume from."""
        raise ValueError(f"got a resume from {tap!r}, expected none")
