"""Counterfactual pair banks: base, source, and what the causal model says each interchange must output.

For a pair (b, s) and a variable Z_i the label is y(b; Z_i <- z_i(s)). The pair is *active* (sensitive) for Z_i when
that differs from the factual output y(b), otherwise *invariant* (PLOT, Sec. 3).

A bank has one of three roles. `fit` pairs make effect signatures and train rotations, `calibration` pairs choose
between candidates, `test` pairs are evaluated once, after the choice; anything that selects refuses them.

A sampling policy is a list of quotas over the active masks, filled from a stream of candidate pairs in the order
the stream gives them. Everything here is host-side NumPy: banks are made once and then only read.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int

from abstraction.causal.scm import CausalModel
from abstraction.pytrees import pytree, static
from abstraction.typing import Setting

Role = Literal["fit", "calibration", "test"]
Stream = Iterable[tuple[Setting, Setting]]
"""Chunks of candidate pairs: base inputs and source inputs of the causal model."""


@pytree
class PairBank:
    """N counterfactual pairs and their labels; build it with `label_pairs` or `sample_bank`.

    Attributes:
      base: input variables of the base run, each `[N]`.
      source: input variables of the source run, each `[N]`.
      factual: output of the causal model on the base, `[N]`.
      labels: output after each variable alone is interchanged, `[V, N]`.
      eligible: which pairs count for which variable, `[V, N]`; all of them unless `restrict` says otherwise.
      variables: names of the V variables.
      role: what the bank may be used for.
    """

    base: dict[str, np.ndarray]
    source: dict[str, np.ndarray]
    factual: Int[np.ndarray, " N"]
    labels: Int[np.ndarray, "V N"]
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


def label_pairs(
    model: CausalModel, base: Setting, source: Setting, *, variables: Sequence[str], role: Role
) -> PairBank:
    """Compute the factual output and every counterfactual label of given pairs.

    Raises:
      ValueError: the role or a variable is unknown.
    """
    if role not in get_args(Role):
        raise ValueError(f"got role {role!r}, expected one of {get_args(Role)}")
    factual = np.asarray(model.run(base)[model.output]).astype(np.int32)
    labels = [model.interchange(base, {name: source})[model.output] for name in variables]
    return PairBank(
        base={name: np.asarray(base[name]) for name in model.inputs},
        source={name: np.asarray(source[name]) for name in model.inputs},
        factual=factual,
        labels=np.stack(labels).astype(np.int32),
        eligible=np.ones((len(labels), len(factual)), dtype=bool),
        variables=tuple(variables),
        role=role,
    )


@dataclasses.dataclass(frozen=True)
class Quota:
    """A number of pairs whose active mask satisfies a condition.

    Attributes:
      count: how many pairs to take.
      condition: the condition in words, for error messages.
      accepts: `[V, N] bool -> [N] bool`.
    """

    count: int
    condition: str
    accepts: Callable[[np.ndarray], np.ndarray]


def changes(variable: int, count: int) -> Quota:
    """Pairs active for one variable, whatever the others do."""
    return Quota(count, f"changes for variable {variable}", lambda active: active[variable])


def changes_exactly(variables: Collection[int], count: int) -> Quota:
    """Pairs active for all of the given variables and for no other; no variables means invariant pairs."""
    wanted = sorted(variables)

    def accepts(active: np.ndarray) -> np.ndarray:
        pattern = np.isin(np.arange(len(active)), wanted)
        return np.all(active == pattern[:, None], axis=0)

    return Quota(count, f"changes for exactly the variables {wanted}", accepts)


def changes_any(count: int) -> Quota:
    """Pairs active for at least one variable."""
    return Quota(count, "changes for some variable", lambda active: np.any(active, axis=0))


def changes_none(count: int) -> Quota:
    """Pairs active for no variable."""
    return Quota(count, "changes for no variable", lambda active: ~np.any(active, axis=0))


def unchanged(variable: int, count: int) -> Quota:
    """Pairs invariant for one variable, whatever the others do."""
    return Quota(count, f"does not change for variable {variable}", lambda active: ~active[variable])


def sample_bank(
    model: CausalModel,
    stream: Stream,
    quotas: Sequence[Quota],
    *,
    variables: Sequence[str],
    role: Role,
    max_pairs: int = 20_000_000,
) -> PairBank:
    """Fill quotas from a stream of candidate pairs, keeping the stream's order.

    A pair counts towards the first quota that accepts it and is not yet full.

    Args:
      model: the causal model that labels the pairs.
      stream: chunks of candidate pairs.
      quotas: the sampling policy.
      variables: the variables to label.
      role: what the bank is for.
      max_pairs: candidates to look at before the policy is declared impossible.

    Raises:
      ValueError: the stream ends, or `max_pairs` candidates have been seen, with a quota unfilled.
    """
    remaining = [quota.count for quota in quotas]
    kept: list[PairBank] = []
    seen = 0
    for base, source in stream:
        if not any(remaining) or seen >= max_pairs:
            break
        bank = label_pairs(model, base, source, variables=variables, role=role)
        seen += bank.size
        taken = np.zeros(bank.size, dtype=bool)
        for index, quota in enumerate(quotas):
            chosen = np.flatnonzero(quota.accepts(bank.active) & ~taken)[: remaining[index]]
            taken[chosen] = True
            remaining[index] -= len(chosen)
        kept.append(_select(bank, np.flatnonzero(taken)))
    if any(remaining):
        unfilled = [
            f"{quota.count} pairs where the output {quota.condition} (found {quota.count - left})"
            for quota, left in zip(quotas, remaining, strict=True)
            if left
        ]
        raise ValueError(
            f"got an impossible sampling policy: {'; '.join(unfilled)}; {seen} candidate pairs of variables "
            f"{list(variables)} were searched, expected fewer pairs, another condition or a larger pool"
        )
    return concatenate_banks(*kept)


def concatenate_banks(*banks: PairBank) -> PairBank:
    """Join banks of the same variables and role, in order.

    Raises:
      ValueError: variables or roles differ.
    """
    kinds = {(bank.variables, bank.role) for bank in banks}
    if len(kinds) != 1:
        raise ValueError(f"got banks of {sorted(kinds)}, expected banks that share variables and role")
    return PairBank(
        base=_join([bank.base for bank in banks]),
        source=_join([bank.source for bank in banks]),
        factual=np.concatenate([bank.factual for bank in banks]),
        labels=np.concatenate([bank.labels for bank in banks], axis=1),
        eligible=np.concatenate([bank.eligible for bank in banks], axis=1),
        variables=banks[0].variables,
        role=banks[0].role,
    )


def restrict(bank: PairBank, variable: int) -> PairBank:
    """Let the pairs of a bank count for one variable only, so that banks per variable can be joined into one."""
    eligible = np.zeros_like(bank.eligible)
    eligible[variable] = bank.eligible[variable]
    return dataclasses.replace(bank, eligible=eligible)


def select_variables(bank: PairBank, variables: Sequence[int]) -> PairBank:
    """Keep some variables of a bank, by index.

    Raises:
      ValueError: there is none, or an index is out of range.
    """
    chosen = list(variables)
    if not chosen or not all(0 <= index < len(bank.variables) for index in chosen):
        raise ValueError(f"got variables {chosen}, expected some of 0 to {len(bank.variables) - 1}")
    names = tuple(bank.variables[index] for index in chosen)
    return dataclasses.replace(bank, labels=bank.labels[chosen], eligible=bank.eligible[chosen], variables=names)


def shuffle_labels(generator: np.random.Generator, bank: PairBank) -> PairBank:
    """Give every pair, for each variable, the label of another pair: nothing is left to find."""
    labels = np.stack([row[generator.permutation(bank.size)] for row in bank.labels])
    return dataclasses.replace(bank, labels=labels)


def shared_pairs(first: PairBank, second: PairBank) -> int:
    """Count the distinct (base, source) pairs that two banks have in common."""
    return len(_pair_keys(first) & _pair_keys(second))


def _pair_keys(bank: PairBank) -> set[bytes]:
    columns = [*bank.base.values(), *bank.source.values()]
    table = np.stack([np.asarray(column, np.int64).reshape(bank.size) for column in columns], axis=1)
    return {row.tobytes() for row in np.ascontiguousarray(table)}


def _join(settings: Sequence[Setting]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([setting[name] for setting in settings]) for name in settings[0]}


def _select(bank: PairBank, indices: np.ndarray) -> PairBank:
    return PairBank(
        base={name: value[indices] for name, value in bank.base.items()},
        source={name: value[indices] for name, value in bank.source.items()},
        factual=bank.factual[indices],
        labels=bank.labels[:, indices],
        eligible=bank.eligible[:, indices],
        variables=bank.variables,
        role=bank.role,
    )
