"""Counterfactual pair banks: base, source, and what the causal model says each interchange must output.

For a pair (b, s) and a variable Z_i the label is y(b; Z_i <- z_i(s)). The pair is *active* (sensitive) for Z_i when
that differs from the factual output y(b), otherwise *invariant* (PLOT, Sec. 3).

A bank has one of three roles. `fit` pairs make effect signatures and train rotations, `calibration` pairs choose
between candidates, `test` pairs are evaluated once, after the choice; anything that selects refuses them.

Everything here is host-side NumPy: banks are made once and then only read. Labels keep the type of the causal model's
output, so a share stays a share and a large number stays exact; only truth values become the classes 0 and 1. What a
network can be scored on is for a readout to say, where bank and network meet.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from operator import index as integral
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Real

from abstraction.causal.scm import CausalModel
from abstraction.pytrees import pytree, static
from abstraction.typing import Setting

Role = Literal["fit", "calibration", "test"]


@pytree
class PairBank:
    """N counterfactual pairs and their labels; build it with `label_pairs` or `sample_bank`.

    Attributes:
      base: input variables of the base run, each `[N]`.
      source: input variables of the source run, each `[N]`.
      factual: output of the causal model on the base, `[N]`, finite.
      labels: output after each variable alone is interchanged, `[V, N]`, finite and of the same type.
      eligible: which pairs count for which variable, `[V, N]`; all of them unless `restrict` says otherwise.
      variables: names of the V variables.
      role: what the bank may be used for.
    """

    base: dict[str, np.ndarray]
    source: dict[str, np.ndarray]
    factual: Real[np.ndarray, " N"]
    labels: Real[np.ndarray, "V N"]
    eligible: Bool[np.ndarray, "V N"]
    variables: tuple[str, ...] = static()
    role: Role = static()

    @property
    def active(self) -> Bool[np.ndarray, "V N"]:
        """True where the interchange of a variable changes the output."""
        return self.labels != self.factual

    @property
    def size(self) -> int:
        """The number of pairs N."""
        return len(self.factual)


class Labelled(NamedTuple):
    """N pairs and the labels of I interchanges.

    Attributes:
      base: input variables of the base run, each `[N]`.
      source: input variables of the source run, each `[N]`.
      factual: output of the causal model on the base, `[N]`, finite.
      labels: output after each interchange, `[I, N]`, finite and of the same type.
    """

    base: dict[str, np.ndarray]
    source: dict[str, np.ndarray]
    factual: Real[np.ndarray, " N"]
    labels: Real[np.ndarray, "I N"]


def label_pairs(
    model: CausalModel, base: Setting, source: Setting, *, variables: Sequence[str], role: Role
) -> PairBank:
    """Compute the factual output and every counterfactual label of given pairs.

    Args:
      model: the causal model.
      base: a value for each of its inputs, `[N]` with N at least 1.
      source: likewise; row n is the source of base n.
      variables: the variables to interchange, one at a time.
      role: what the bank is for.

    Raises:
      ValueError: the role or a variable is unknown or named twice; inputs do not have one row per pair; a mechanism
        returns something other than one value per pair; or an output is not a finite number.
    """
    if role not in get_args(Role):
        raise ValueError(f"got role {role!r}, expected one of {get_args(Role)}")
    check_variables(model, variables)
    found = counterfactual_labels(model, base, source, [(name,) for name in variables])
    eligible = np.ones(found.labels.shape, dtype=bool)
    return PairBank(found.base, found.source, found.factual, found.labels, eligible, tuple(variables), role)


def counterfactual_labels(
    model: CausalModel, base: Setting, source: Setting, interchanges: Sequence[Sequence[str]]
) -> Labelled:
    """Compute the factual output and the label of every interchange, of one variable or of several at once.

        y(b; Z_i <- z_i(s) for all i in I)

    Args:
      model: the causal model.
      base: a value for each of its inputs, `[N]` with N at least 1.
      source: likewise; row n is the source of base n.
      interchanges: the I variables of each; that of the output has the source's own output as label.

    Raises:
      ValueError: as `label_pairs`.
    """
    for names in interchanges:
        check_variables(model, names)
    bases, sources = _columns(model, base, "base"), _columns(model, source, "source")
    counts = {f"{side} {name!r}": len(c) for side, x in (("base", bases), ("source", sources)) for name, c in x.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"got rows {counts}, expected one row per pair in each, and at least one pair")
    size = next(iter(counts.values()))
    factual, given = _evaluated(model, bases, size, "base"), _evaluated(model, sources, size, "source")
    outputs = [("the factual output", factual[model.output])]
    for names in interchanges:
        label = model.do(bases, {name: given[name] for name in names})[model.output]
        outputs.append((f"the label of {' and '.join(map(repr, names))}", label))
    first, *labels = of_one_type([_numbers(model, what, value, size) for what, value in outputs])
    return Labelled(bases, sources, first, np.stack(labels))


def check_bank(bank: PairBank) -> None:
    """Check that the arrays of a bank belong together: whoever takes one apart may put it together wrongly.

    Raises:
      ValueError: an array of another number of pairs or variables, a label that is not finite, eligibility that is
        not a truth value, a name given twice, or an unknown role.
    """
    names, size = list(bank.variables), np.shape(bank.factual)[0] if np.ndim(bank.factual) == 1 else 0
    if bank.role not in get_args(Role) or not names or len(set(names)) != len(names):
        raise ValueError(
            f"got variables {names} and role {bank.role!r}, expected one or more names, each once, and one of "
            f"{get_args(Role)}"
        )
    sides = [*bank.base.values(), *bank.source.values()]
    shapes = [np.shape(bank.labels), np.shape(bank.eligible), *{np.shape(column)[:1] for column in sides}]
    expected = [(len(names), size), (len(names), size), *[(size,)] * (len(shapes) - 2)]
    if shapes != expected or not size:
        raise ValueError(
            f"got labels, eligibility and inputs of shapes {shapes}, expected {expected}: {size} factual outputs, "
            f"{len(names)} variables, and at least one pair"
        )
    if np.asarray(bank.eligible).dtype != bool:
        raise ValueError(f"got eligibility of type {np.asarray(bank.eligible).dtype}, expected truth values")
    for what, values in (("factual outputs", bank.factual), ("labels", bank.labels)):
        if np.asarray(values).dtype.kind not in "iuf" or not np.isfinite(values).all():
            raise ValueError(f"got {what} of type {np.asarray(values).dtype} or not finite, expected finite numbers")


def digest(bank: PairBank) -> str:
    """Return the SHA-256 of a bank: its inputs, labels, eligibility, variables and role.

    Equal banks have equal digests on every machine; the order in which inputs are named does not count.
    """
    arrays = {
        **{f"base/{name}": bank.base[name] for name in sorted(bank.base)},
        **{f"source/{name}": bank.source[name] for name in sorted(bank.source)},
        **{"factual": bank.factual, "labels": bank.labels, "eligible": bank.eligible},
    }
    total = hashlib.sha256(json.dumps([bank.role, *bank.variables]).encode())
    for name, values in arrays.items():
        values = np.asarray(values)
        values = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False))
        total.update(json.dumps([name, values.dtype.str, *values.shape]).encode())
        total.update(values.tobytes())
    return total.hexdigest()


def concatenate_banks(*banks: PairBank) -> PairBank:
    """Join banks of the same variables and role, in order.

    Raises:
      ValueError: variables, inputs or roles differ, there is no bank, or their numbers have no common exact type.
    """
    kinds = {(bank.variables, bank.role, tuple(sorted(bank.base)), tuple(sorted(bank.source))) for bank in banks}
    if len(kinds) != 1:
        raise ValueError(
            f"got banks of {sorted(kinds)}, expected at least one, and banks that share variables and role and inputs"
        )
    return dataclasses.replace(
        banks[0],
        base=_join([bank.base for bank in banks]),
        source=_join([bank.source for bank in banks]),
        factual=np.concatenate(of_one_type([bank.factual for bank in banks])),
        labels=np.concatenate(of_one_type([bank.labels for bank in banks]), axis=1),
        eligible=np.concatenate([bank.eligible for bank in banks], axis=1),
    )


def restrict(bank: PairBank, variable: int) -> PairBank:
    """Let the pairs of a bank count for one variable only, so that banks per variable can be joined into one.

    Raises:
      ValueError: the index is out of range.
    """
    (chosen,) = checked_indices([variable], len(bank.variables), "variables")
    eligible = np.zeros_like(bank.eligible)
    eligible[chosen] = bank.eligible[chosen]
    return dataclasses.replace(bank, eligible=eligible)


def select_variables(bank: PairBank, variables: Sequence[int]) -> PairBank:
    """Keep some variables of a bank, by index.

    Raises:
      ValueError: there is none, or an index is out of range or given twice.
    """
    chosen = checked_indices(variables, len(bank.variables), "variables")
    if not chosen:
        raise ValueError(f"got variables {chosen}, expected some of 0 to {len(bank.variables) - 1}")
    names = tuple(bank.variables[index] for index in chosen)
    return dataclasses.replace(bank, labels=bank.labels[chosen], eligible=bank.eligible[chosen], variables=names)


def take_rows(bank: PairBank, rows: np.ndarray) -> PairBank:
    """Keep some pairs of a bank, by index, in the order given.

    Raises:
      ValueError: a row is not an integer of 0 to N - 1.
    """
    rows = np.asarray(rows)
    if rows.ndim != 1 or (rows.size and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= bank.size)):
        raise ValueError(f"got rows {rows.tolist()[:8]}, expected a list of integers of 0 to {bank.size - 1}")
    rows = rows.astype(np.int64)
    return dataclasses.replace(
        bank,
        base={name: value[rows] for name, value in bank.base.items()},
        source={name: value[rows] for name, value in bank.source.items()},
        factual=bank.factual[rows],
        labels=bank.labels[:, rows],
        eligible=bank.eligible[:, rows],
    )


def shuffle_labels(generator: np.random.Generator, bank: PairBank) -> PairBank:
    """Give every pair, for each variable, the label of another pair: nothing is left to find.

    Raises:
      ValueError: there is one pair only, whose label cannot move.
    """
    if bank.size < 2:
        raise ValueError(f"got {bank.size} pairs, expected at least 2 to shuffle labels among")
    labels = np.stack([row[generator.permutation(bank.size)] for row in bank.labels])
    return dataclasses.replace(bank, labels=labels)


def shared_pairs(first: PairBank, second: PairBank) -> int:
    """Count the distinct (base, source) pairs that two banks have in common, compared exactly.

    Raises:
      ValueError: the banks have other inputs than each other, or none.
    """
    names = [(sorted(bank.base), sorted(bank.source)) for bank in (first, second)]
    if names[0] != names[1] or not all(names[0]):
        raise ValueError(f"got inputs {names[0]} and {names[1]}, expected two banks of the same inputs")
    return len(_pair_keys(first) & _pair_keys(second))


def check_variables(model: CausalModel, variables: Sequence[str]) -> None:
    """Refuse variables that cannot be interchanged.

    Raises:
      ValueError: there is none, one is given twice, or is not of the model.
    """
    if isinstance(variables, str) or not len(variables) or len(set(variables)) != len(variables):
        raise ValueError(f"got variables {variables!r}, expected one or more of {list(model.variables)}, each once")
    unknown = [name for name in variables if name not in model.variables]
    if unknown:
        raise ValueError(f"got an interchange of {unknown}, expected variables among {list(model.variables)}")


def checked_indices(indices: Collection[int], count: int | None, what: str) -> list[int]:
    """Return indices as integers.

    Args:
      indices: what was given.
      count: how many there are to choose from, None where that is not known yet.
      what: the thing they point at, for the message.

    Raises:
      ValueError: one is not an integer, is negative or too large, or is given twice.
    """
    valid = "integers of 0 or more" if count is None else f"integers of 0 to {count - 1}"
    try:
        # A truth value is an integer to Python, and a mask in place of indices would choose 0 and 1.
        chosen = [-1 if isinstance(index, bool | np.bool_) else integral(index) for index in indices]
    except TypeError:
        chosen = [-1]
    if any(index < 0 or (count is not None and index >= count) for index in chosen) or len(set(chosen)) != len(chosen):
        raise ValueError(f"got {what} {indices}, expected {valid}, each once")
    return chosen


def _columns(model: CausalModel, setting: Setting, side: str) -> dict[str, np.ndarray]:
    """Return the inputs of one side as arrays of one axis."""
    if not isinstance(setting, Mapping) or set(setting) != set(model.inputs):
        found = sorted(map(str, setting)) if isinstance(setting, Mapping) else type(setting).__name__
        raise ValueError(f"got {side} inputs {found}, expected values of {list(model.inputs)}")
    columns = {name: np.asarray(setting[name]) for name in model.inputs}
    for name, column in columns.items():
        if column.ndim != 1 or column.dtype.kind not in "biufUS":
            raise ValueError(
                f"got {side} {name!r} of shape {column.shape} and type {column.dtype}, expected one value per pair"
            )
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column))[0])
            raise ValueError(f"got {side} {name!r} = {column[row]} at pair {row}, expected finite numbers")
    return columns


def _evaluated(model: CausalModel, columns: Setting, size: int, side: str) -> dict[str, Any]:
    """Evaluate every variable on one side; each has one value per pair."""
    values = model.run(columns)
    for name, value in values.items():
        # A scalar would broadcast and a sum over pairs would mix them: both run without an error.
        if np.shape(value) != (size,):
            raise ValueError(f"got {side} {name!r} of shape {np.shape(value)}, expected one value per pair: ({size},)")
    return values


def _numbers(model: CausalModel, what: str, value: Any, size: int) -> np.ndarray:
    """Return outputs of the causal model in their own type, truth values as integers."""
    numbers = np.asarray(value)
    if numbers.shape != (size,) or numbers.dtype.kind not in "biuf":
        raise ValueError(
            f"got {what} ({model.output!r}) of shape {numbers.shape} and type {numbers.dtype}, expected one number per "
            f"pair: ({size},)"
        )
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        raise ValueError(
            f"got {numbers[wrong[0]]} as {what} ({model.output!r}) at pair {wrong[0]}, expected finite numbers"
        )
    return numbers.astype(np.int32) if numbers.dtype == bool else numbers


def of_one_type(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Bring arrays to their common type.

    Raises:
      ValueError: that would not keep every value.
    """
    common = np.result_type(*arrays)
    cast = [array.astype(common) for array in arrays]
    for array, changed in zip(arrays, cast, strict=True):
        # Through Python numbers, whose comparison of integers with floats is exact.
        if array.dtype != common and array.tolist() != changed.tolist():
            kinds = sorted({str(each.dtype) for each in arrays})
            raise ValueError(f"got values of types {kinds}, expected one type that holds all of them exactly")
    return cast


def _pair_keys(bank: PairBank) -> set[tuple[Any, ...]]:
    # Python numbers compare by value whatever their type: 1 is 1.0, and 0.2 is not 0.
    columns = [side[name] for side in (bank.base, bank.source) for name in sorted(side)]
    return set(zip(*(np.asarray(column).tolist() for column in columns), strict=True))


def _join(settings: Sequence[Setting]) -> dict[str, np.ndarray]:
    return {name: np.concatenate(of_one_type([setting[name] for setting in settings])) for name in settings[0]}
