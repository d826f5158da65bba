"""A recorded bank: pairs, their runs through a network, and how outputs meet labels, as one value.

Pairs without their runs cannot be scored, and runs of other pairs score something else. `record` is the one way to
make a `Recorded`, and there it is checked, once, that the weights are the model's, that there is a base and a source
input per pair, and that the readout can score every label from the outputs there are.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from abstraction.causal import PairBank
from abstraction.causal.pairs import check_bank
from abstraction.evaluation.readouts import CLASSES, Readout
from abstraction.interventions.patching import Runs, reorder_sources, run_pairs, take_pairs
from abstraction.models import Network
from abstraction.models.checksums import params_checksum
from abstraction.models.network import check_network
from abstraction.pytrees import leading_axis, pytree, static
from abstraction.sharding import check_share, mesh_of
from abstraction.typing import AnyArray, Setting

Encode = Callable[[Setting], Any]
"""Turns N settings of the causal inputs into N network inputs: an array, or a pytree of arrays that lead with N."""


@pytree
class Recorded:
    """N counterfactual pairs as a network runs them; only `record` makes one.

    Attributes:
      bank: the pairs and their labels, int32.
      runs: the base and source runs, in the bank's order.
      readout: how outputs meet labels.
      weights: the checksum of the network's weights; None where there were none, in a plan of a run.
    """

    bank: PairBank
    runs: Runs
    readout: Readout = static()
    weights: int | None = static(default=None)

    @property
    def tap(self) -> str:
        """The one recorded tap.

        Raises:
          ValueError: several were recorded.
        """
        if len(self.runs.source) != 1:
            raise ValueError(f"got recorded taps {sorted(self.runs.source)}, expected one, or a tap by name")
        return next(iter(self.runs.source))

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables."""
        return self.bank.variables

    def shuffled(self, order: Int[AnyArray, " N"]) -> "Recorded":
        """Give pair t the source run of pair `order[t]`, and leave its labels: a control."""
        return dataclasses.replace(self, runs=reorder_sources(self.runs, order))


def check_recorded(recorded: Recorded, network: Network) -> None:
    """Refuse runs of another network, and runs of other pairs than the bank's, which `record` never makes.

    Raises:
      ValueError: the runs are of other weights than the network has, there is not one for each pair, arrays of the bank
        do not belong together, or the readout cannot score one of its labels.
    """
    check_bank(recorded.bank)
    if recorded.weights is not None and recorded.weights != (found := params_checksum(network.params)):
        raise ValueError(
            f"got runs of a network with weights {recorded.weights:08x} for one with weights {found:08x}, expected "
            "runs of the same: after training, reducing or rounding a network, `record` again"
        )
    runs, size = recorded.runs, recorded.bank.size
    rows = {"outputs": runs.outputs.shape[0]}
    for side, states in (("base", runs.base), ("source", runs.source)):
        rows |= {f"{side} {tap!r}": values.shape[1] for tap, values in states.items()}
    if wrong := {name: count for name, count in rows.items() if count != size}:
        raise ValueError(f"got runs {wrong} beside a bank of {size} pairs, expected one for each: `record` the bank")
    for values in (recorded.bank.labels, recorded.bank.factual):
        recorded.readout.check(values, runs.outputs.shape[1])


def record(
    network: Network, encode: Encode, bank: PairBank, *, tap: str | tuple[str, ...], readout: Readout = CLASSES
) -> Recorded:
    """Run a bank's base and source settings through a network, once.

    Args:
      network: the network.
      encode: makes network inputs of settings.
      bank: the pairs.
      tap: the activation to keep, or several.
      readout: how outputs meet labels.

    Raises:
      ValueError: the weights are not the model's or not finite, an unknown tap, other numbers of inputs than of pairs,
        inputs that are not finite, outputs that are not `[N, C]`, a label that the readout cannot score, or arrays
        of a bank that do not belong together.
    """
    return record_together(network, {"": (encode, bank)}, tap=tap, readout=readout)[""]


def record_together(
    network: Network,
    pairs: Mapping[str, tuple[Encode, PairBank]],
    *,
    tap: str | tuple[str, ...],
    readout: Readout = CLASSES,
) -> dict[str, Recorded]:
    """Record several banks in one program, each under its name; see `record`."""
    check_network(network)
    names, taps = list(pairs), (tap,) if isinstance(tap, str) else tuple(tap)
    if not names or not taps:
        raise ValueError(f"got banks {names} and taps {list(taps)} to record, expected at least one of each")
    for _, bank in pairs.values():
        check_bank(bank)
    mesh = mesh_of(network.params)
    for name, (_, bank) in pairs.items():
        check_share(f"pairs of bank {name!r}" if name else "pairs", bank.size, mesh)
    sides = [_stacked([_encoded(name, *pairs[name], side) for name in names], names) for side in ("base", "source")]
    recorded = {}
    parts = _run_parts(network, sides, taps, [pairs[name][1].size for name in names])
    weights = params_checksum(network.params)
    for name, runs in zip(names, parts, strict=True):
        recorded[name] = Recorded(_scored(pairs[name][1], readout, runs.outputs.shape[1]), runs, readout, weights)
    return recorded


def _run_parts(network: Network, sides: list[Any], taps: tuple[str, ...], sizes: list[int]) -> list[Runs]:
    """Run all banks in one program, and cut the runs into those of each.

    Raises:
      ValueError: outputs that are not `[N, C]`.
    """
    runs, total, mesh = run_pairs(network, *sides, taps=taps), sum(sizes), mesh_of(network.params)
    if runs.outputs.ndim != 2 or runs.outputs.shape[0] != total:
        raise ValueError(
            f"got outputs of shape {runs.outputs.shape}, expected [N, C], one row for each of {total} pairs; look at "
            "one token (`TokenView`) or wrap the model"
        )
    starts = np.cumsum([0, *sizes[:-1]])
    if len(sizes) == 1:
        return [runs]
    if mesh is not None:
        return [take_pairs(runs, np.arange(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    leading = len(jax.tree.leaves((runs.inputs, runs.outputs)))  # these lead with N; states have it next
    leaves, tree = jax.tree.flatten(runs)
    axes = [int(index >= leading) for index in range(len(leaves))]
    del runs
    parts: list[list[Any]] = [[] for _ in sizes]
    while leaves:  # each array is let go once it is cut: all of them and all parts at once would be twice as much
        leaf, axis = leaves.pop(0), axes.pop(0)
        for part, start, size in zip(parts, starts, sizes, strict=True):
            part.append(jax.lax.slice_in_dim(leaf, start, start + size, axis=axis))
        jax.block_until_ready([part[-1] for part in parts])
    return [jax.tree.unflatten(tree, part) for part in parts]


def encoded_inputs(encode: Encode, setting: Setting, size: int, what: tuple[str, str]) -> Any:
    """Encode settings, and look at what comes out.

    Args:
      encode: makes network inputs of settings.
      setting: values of the causal inputs, each `[N]`.
      size: how many settings N there are.
      what: whose inputs these are, for messages: "base" and "of bank 'fit'".

    Raises:
      ValueError: another number of inputs than of settings, or inputs that are not finite numbers.
    """
    side, whose = what
    inputs = jax.tree.map(_array, encode(setting))
    rows = leading_axis(inputs)
    if rows != size:
        raise ValueError(f"got {rows} {side} inputs {whose}, expected {size}, one for each setting")
    for leaf in jax.tree.leaves(inputs):
        if np.issubdtype(leaf.dtype, np.inexact) and not np.isfinite(np.asarray(leaf)).all():
            row = np.flatnonzero(~np.isfinite(np.asarray(leaf)).reshape(rows, -1).all(axis=1))[0]
            raise ValueError(f"got {side} input {row} {whose} that is not finite, expected finite numbers")
    return inputs


def _encoded(name: str, encode: Encode, bank: PairBank, side: str) -> Any:
    return encoded_inputs(encode, getattr(bank, side), bank.size, (side, f"of bank {name!r}"))


def _array(leaf: Any) -> AnyArray:
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    if not isinstance(array, jax.Array) and array.dtype.kind not in "biufc":
        raise ValueError(f"got inputs of type {array.dtype}, expected arrays of numbers")
    return array


def _stacked(parts: list[Any], names: list[str]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if len({jax.tree.structure(part) for part in parts}) != 1:
        raise ValueError(f"got inputs of different kinds for banks {names}, expected one kind")
    return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *parts)


def _scored(bank: PairBank, readout: Readout, outputs: int) -> PairBank:
    """Return the bank with labels as the readout scores them."""
    labels, factual = (readout.check(values, outputs) for values in (bank.labels, bank.factual))
    return dataclasses.replace(bank, labels=labels, factual=factual)
