"""Pairs that a network solves: those whose base and source it answers as the causal model does.

An interchange says what a network computes where the network computes the task at all. A pair is *solved* if

    decode(f(b)) = y(b)   and   decode(f(s)) = y(s),

y the causal model and f the network without edits. What is left is another set of pairs: where sensitive pairs are
harder than invariant ones, a filter takes more of them, and a score on the rest says nothing about what was lost. So
the loss is counted for every variable, apart for its sensitive and its invariant pairs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from abstraction.causal import CausalModel, PairBank
from abstraction.causal.pairs import check_bank, counterfactual_labels, take_rows
from abstraction.checks import kind, whole
from abstraction.evaluation.readouts import CLASSES, Readout
from abstraction.evaluation.recording import Encode, encoded_inputs
from abstraction.interventions.patching import factual_outputs
from abstraction.models import Network
from abstraction.models.base import Recordable
from abstraction.models.network import check_network
from abstraction.pytrees import pytree
from abstraction.sharding import on_host


@pytree
class Solved:
    """The solved pairs of a bank, and what was lost.

    Attributes:
      bank: the M pairs that are left, of the same role, in order.
      kept: their rows in the bank that was given, `[M]`; for what goes with its pairs (families, groups).
      base: whether the base of each of its N pairs is answered as by the causal model, `[N]`.
      source: likewise the source, `[N]`.
      before: eligible pairs of each variable that were there, `[V, 2]`: the sensitive and the invariant ones.
      after: those that are left, likewise.
    """

    bank: PairBank
    kept: Int[np.ndarray, " M"]
    base: Bool[np.ndarray, " N"]
    source: Bool[np.ndarray, " N"]
    before: Int[np.ndarray, "V 2"]
    after: Int[np.ndarray, "V 2"]

    @property
    def share_base(self) -> float:
        """The share of pairs whose base is solved."""
        return float(self.base.mean())

    @property
    def share_source(self) -> float:
        """The share of pairs whose source is solved."""
        return float(self.source.mean())

    @property
    def share(self) -> float:
        """The share of pairs that are left: both are solved."""
        return float((self.base & self.source).mean())

    @property
    def lost(self) -> Float[np.ndarray, "V 2"]:
        """The share of each variable's sensitive and invariant pairs that was lost; NaN where there were none."""
        return np.where(self.before > 0, 1 - self.after / np.maximum(self.before, 1), np.nan)

    def __str__(self) -> str:
        width = max(8, *map(len, self.bank.variables))
        lines = [
            f"{len(self.kept)} of {len(self.base)} pairs are left; answered as by the causal model: "
            f"bases {self.share_base:.4f}, sources {self.share_source:.4f}, both {self.share:.4f}",
            " ".join(["variable".ljust(width), *(w.rjust(12) for w in ("sensitive", "lost", "invariant", "lost"))]),
        ]
        for name, before, after, lost in zip(self.bank.variables, self.before, self.after, self.lost, strict=True):
            cells = [word for b, a, x in zip(before, after, lost, strict=True) for word in (f"{a} of {b}", f"{x:.4f}")]
            lines.append(" ".join([name.ljust(width), *(cell.rjust(12) for cell in cells)]))
        return "\n".join(lines)


def solved(
    network: Network,
    encode: Encode,
    bank: PairBank,
    model: CausalModel,
    *,
    readout: Readout = CLASSES,
    batch: int = 1024,
) -> Solved:
    """Keep the pairs whose base and source a network answers as the causal model does.

    Each distinct setting is encoded and run once, however many pairs it is in. Outputs that are not finite answer
    nothing.

    Args:
      network: the network.
      encode: makes network inputs of settings.
      bank: the pairs.
      model: the causal model that labelled them; it says what the sources' own answers are.
      readout: how outputs meet labels.
      batch: settings to run at a time.

    Raises:
      ValueError: no pair is left; the model has other inputs than the bank or answers a base differently; or what
        `record` refuses.
    """
    whole("batch", batch)
    kind("model", model, CausalModel)
    check_network(network)
    check_bank(bank)
    factual, own = _answers(model, bank)
    settings, places = _distinct(bank)
    count = len(next(iter(settings.values())))
    inputs = encoded_inputs(encode, settings, count, ("distinct", "of the bank"))
    if isinstance(network.model, Recordable):
        network.model.check(inputs)
    outputs = _run(network, inputs, count, batch)
    if outputs.ndim != 2 or len(outputs) != count:
        raise ValueError(
            f"got outputs of shape {outputs.shape}, expected [N, C], one row for each of {count} inputs; look at one "
            "token (`TokenView`) or wrap the model"
        )
    read = np.asarray(readout.decode(jnp.asarray(outputs)))
    base, source = (
        read[place] == readout.check(label, outputs.shape[1])
        for place, label in zip(places, (factual, own), strict=True)
    )
    kept = np.flatnonzero(base & source)
    if not len(kept):
        raise ValueError(
            f"got a network that solves none of {bank.size} pairs (it answers {base.mean():.4f} of bases and "
            f"{source.mean():.4f} of sources as the causal model does), expected at least one pair with both"
        )
    rest = take_rows(bank, kept)
    return Solved(rest, kept, base, source, _halves(bank), _halves(rest))


def _answers(model: CausalModel, bank: PairBank) -> tuple[np.ndarray, np.ndarray]:
    """Return what the causal model answers on bases and on sources."""
    # With its output interchanged, the model answers as on the source.
    found = counterfactual_labels(model, bank.base, bank.source, [(model.output,)])
    if (found.factual != bank.factual).any():
        row = int(np.flatnonzero(found.factual != bank.factual)[0])
        raise ValueError(
            f"got a bank whose pair {row} has the factual output {bank.factual[row]}, expected {found.factual[row]}, "
            "what the causal model answers"
        )
    return found.factual, found.labels[0]


def _distinct(bank: PairBank) -> tuple[dict[str, np.ndarray], Int[np.ndarray, "2 N"]]:
    """Return the distinct settings of bases and sources, and where each base and each source is among them."""
    both = {name: np.concatenate([bank.base[name], bank.source[name]]) for name in bank.base}
    codes = np.stack([np.unique(column, return_inverse=True)[1].reshape(-1) for column in both.values()])
    _, first, places = np.unique(codes, axis=1, return_index=True, return_inverse=True)
    return {name: column[first] for name, column in both.items()}, places.reshape(2, bank.size)


def _run(network: Network, inputs: Any, count: int, batch: int) -> Float[np.ndarray, "..."]:
    """Run a network without edits, `batch` inputs at a time, all by one program."""
    batch = min(batch, count)
    parts = []
    for start in range(0, count, batch):
        # The last batch starts early enough to be whole: another size would be compiled beside it.
        first = min(start, count - batch)
        part = jax.tree.map(lambda leaf, first=first: leaf[first : first + batch], inputs)
        parts.append(on_host(factual_outputs(network, part))[start - first :])
    return np.concatenate(parts)


def _halves(bank: PairBank) -> Int[np.ndarray, "V 2"]:
    """Count the eligible sensitive and invariant pairs of each variable."""
    return np.stack([(bank.eligible & half).sum(axis=1) for half in (bank.active, ~bank.active)], axis=1)
