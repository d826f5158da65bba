"""What an edit does to the outputs of each pair, as numbers: accuracy of interchanges, and changes of the outputs.

| measure | per pair | over pairs |
|---|---|---|
| `iia` | whether the label of the variable is read | mean of the shares of sensitive and invariant pairs |
| `probability` | change of the probability of the variable's label | mean of all that count for the variable |
| `logit_difference` | change of (logit of the label - logit of the factual label) | mean of its sensitive pairs |
| `kl` | KL(base || patched), in nats | mean of all, no variable |

A measure of your own is a function `(patched [N, C], base [N, C], labels) -> [N]`, a mean over all pairs.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from abstraction.evaluation import Bits, Readout, Recorded
from abstraction.evaluation.readouts import MISS
from abstraction.typing import AnyArray

MeasureName = Literal["iia", "probability", "logit_difference", "kl"]


class Labels(NamedTuple):
    """What is known of the pairs a measure sees; it may be a block of a bank.

    Attributes:
      labels: after the interchange of each variable, `[V, N]`.
      factual: of the base, `[N]`.
      eligible: which pairs count for which variable, `[V, N]`.
    """

    labels: Int[AnyArray, "V N"]
    factual: Int[AnyArray, " N"]
    eligible: Bool[AnyArray, "V N"]

    @property
    def active(self) -> Bool[AnyArray, "V N"]:
        """Where the label is not the factual one."""
        return self.labels != self.factual


Measure = Callable[[Float[Array, "N C"], Float[Array, "N C"], Labels], Float[Array, " N"]]


def measure_names() -> tuple[str, ...]:
    """Return the measures that have a name."""
    return get_args(MeasureName)


def labels_of(recorded: Recorded) -> Labels:
    """Return the labels of a bank."""
    bank = recorded.bank
    return Labels(np.asarray(bank.labels), np.asarray(bank.factual), np.asarray(bank.eligible))


def per_variable(measure: str | Measure) -> bool:
    """Tell whether a measure has a number for each variable."""
    return isinstance(measure, str) and measure != "kl"


def counted(measure: str | Measure, labels: Labels) -> Bool[Any, "K N"]:
    """Return which pairs a measure counts, a row for each variable, or one."""
    if not per_variable(measure):
        return np.ones((1, len(labels.factual)), bool)
    return labels.eligible & labels.active if measure == "logit_difference" else labels.eligible


def numbers(
    measure: MeasureName | Measure, readout: Readout, patched: Float[Array, "N C"], base: Array, labels: Labels
) -> Float[Array, "K N"]:
    """Return the numbers of every pair, by any measure but `iia`.

    Raises:
      ValueError: a measure of one's own returns something other than a number per pair.
    """
    if measure == "kl":
        return _divergence(readout, base, patched)[None]
    if measure == "probability":
        share = lambda outputs: jax.vmap(lambda row: jnp.exp(-readout.loss(outputs, row)))(jnp.asarray(labels.labels))
        return share(patched) - share(base)
    if measure == "logit_difference":
        # Losses differ by the logits: the normaliser is the same for both labels.
        every, factual = jnp.asarray(labels.labels), jnp.asarray(labels.factual)
        losses = lambda outputs: jax.vmap(lambda row: readout.loss(outputs, row))(every)
        margin = lambda outputs: readout.loss(outputs, factual) - losses(outputs)
        return margin(patched) - margin(base)
    if isinstance(measure, str):
        raise ValueError(f"got measure {measure!r}, expected one of {measure_names()[1:]} or a function")
    found = measure(patched, base, labels)
    if jnp.shape(found) != (patched.shape[0],):
        raise ValueError(
            f"got {jnp.shape(found)} numbers of {patched.shape[0]} pairs from a measure, expected one for each"
        )
    return found[None]


def _divergence(readout: Readout, base: Float[Array, "N C"], patched: Float[Array, "N C"]) -> Float[Array, " N"]:
    if isinstance(readout, Bits):
        on = jax.nn.log_sigmoid
        each = lambda sign: jnp.exp(on(sign * base)) * (on(sign * base) - on(sign * patched))
        return (each(1) + each(-1)).sum(axis=-1)
    count = getattr(readout, "count", None)
    first, second = (jax.nn.log_softmax(outputs[:, :count]) for outputs in (base, patched))
    return (jnp.exp(first) * (first - second)).sum(axis=-1)


class Outcome(NamedTuple):
    """What a measure says of one edit, over the pairs that count.

    Attributes:
      total: hits on sensitive and on invariant pairs, `[V, 2]`; or the mean, `[K, 1]`.
      deviation: standard deviation over pairs, `[K, 1]`; 0 for hits.
      not_finite: pairs without a finite outcome, `[K]`.
    """

    total: Array
    deviation: Array
    not_finite: Array


def outcome(
    measure: MeasureName | Measure, readout: Readout, patched: Float[Array, "N C"], base: Array, labels: Labels
) -> Outcome:
    """Summarise what an edit does."""
    if measure != "iia":
        return summary(numbers(measure, readout, patched, base, labels), counted(measure, labels))
    read, active = readout.decode(patched), labels.active
    halves = jnp.stack([labels.eligible & active, labels.eligible & ~active], axis=1)
    hits = (halves & (read == labels.labels)[:, None]).sum(axis=-1).astype(jnp.float32)
    missing = (labels.eligible & (read == MISS)).sum(axis=-1)
    return Outcome(hits, jnp.zeros_like(hits), missing)


def summary(values: Float[Array, "K N"], mask: Bool[AnyArray, "K N"]) -> Outcome:
    """Return mean and deviation of numbers that count; NaN where one of them is not finite, or none counts."""
    values = values.astype(jnp.float32)
    mask = jnp.asarray(mask)
    count = mask.sum(axis=-1)
    mean = jnp.where(mask, values, 0.0).sum(axis=-1) / count
    spread = jnp.where(mask, (values - mean[:, None]) ** 2, 0.0).sum(axis=-1) / jnp.maximum(count - 1, 1)
    missing = (mask & ~jnp.isfinite(values)).sum(axis=-1)
    kept = lambda value: jnp.where(missing > 0, jnp.nan, value)[:, None]
    return Outcome(kept(mean), kept(jnp.sqrt(spread)), missing)
