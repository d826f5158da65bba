"""Interchange intervention training: a network learns a task and where a causal variable of it shall live.

    loss  =  (l(f(b), y(b)) + l(f(s), y(s))) / 2  +  w l(f(b; h <- h(s)), y(b; Z <- z(s)))

for a pair of inputs b and s, a causal variable Z, and h the whole value of a tap at one depth (Geiger et al. 2022,
"Inducing causal structure for interpretable neural networks", Eq. 6; their interchange is of some neurons). Gradients
flow through all three runs: the source must write the variable where the base reads it, and the base must read it from
there alone.

w is a value, so that one compiled program serves a schedule. Where the task has a shortcut around Z, w = 0 at first and
a positive w later finds a network where a positive w from the start does not: the task builds the parts that Z is of.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from abstraction.checks import is_whole
from abstraction.models import Model
from abstraction.models.base import Recordable
from abstraction.pytrees import pytree
from abstraction.typing import AnyArray, Outputs, Params


@pytree
class LabelledPairs:
    """N pairs of inputs with three labels each.

    Attributes:
      base: inputs of the base runs, as the model takes them.
      source: inputs of the source runs.
      base_labels: y(b), what the task says of the base, `[N]`.
      source_labels: y(s), what it says of the source, `[N]`.
      swapped_labels: y(b; Z <- z(s)), what the causal model says of the base with the source's variable, `[N]`.
    """

    base: Any
    source: Any
    base_labels: Int[AnyArray, " N"]
    source_labels: Int[AnyArray, " N"]
    swapped_labels: Int[AnyArray, " N"]


@dataclass(frozen=True)
class InterchangeLoss:
    """The loss of a batch of pairs, for `fit`; the context is the weight w.

    Attributes:
      model: a network that can `resume` from the tap.
      tap: where the variable shall live.
      depth: the tap's depth there.
      loss: `[N, C]` outputs and `[N]` labels to `[N]` losses; hashable by value.
    """

    model: Model
    tap: str
    depth: int
    loss: Callable[[Outputs, Any], Array]

    def __call__(self, params: Params, batch: LabelledPairs, weight: Float[AnyArray, ""]) -> Float[Array, ""]:
        """Return task loss plus weighted interchange loss, averaged over the pairs.

        Raises:
          ValueError: at trace time, for a tap that the model cannot resume from, or a depth that it does not have.
        """
        check_depth(self.model, self.tap, self.depth)
        base, base_outputs, base_states = self._run(params, batch.base)
        _, source_outputs, source_states = self._run(params, batch.source)
        loss = lambda outputs, labels: self.loss(outputs, jnp.asarray(labels))
        task = (loss(base_outputs, batch.base_labels) + loss(source_outputs, batch.source_labels)) / 2
        depth = jnp.asarray(self.depth)
        swapped = self.model.resume(params, self.tap, depth, source_states[self.depth], inputs=base, states=base_states)
        return (task + weight * loss(swapped, batch.swapped_labels)).mean()

    def _run(self, params: Params, inputs: Any) -> tuple[Any, Outputs, Array]:
        if isinstance(self.model, Recordable):
            inputs, outputs, recorded = self.model.record(params, inputs, (self.tap,))
        else:
            outputs, recorded = self.model.apply(params, inputs, record=(self.tap,))
        return inputs, outputs, recorded[self.tap]


def check_depth(model: Model, tap: str, depth: int) -> None:
    """Refuse a place that a network does not have.

    Raises:
      ValueError: the tap is unknown, no tap to resume from, or has no such depth.
    """
    depths = {name: found.depth for name, found in model.taps.items() if found.resumes}
    if tap not in depths:
        raise ValueError(f"got tap {tap!r}, expected one that the model resumes from: {sorted(depths)}")
    if not is_whole(depth) or not 0 <= depth < depths[tap]:
        raise ValueError(f"got depth {depth} of {tap!r}, expected 0 to {depths[tap] - 1}")
