"""Sampling policies: which pairs a bank holds.

A policy is a list of quotas over the active masks, filled from a stream of candidate pairs in the order the stream
gives them (PLOT, Sec. 4: pairs that change for one variable, for both, for none).
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from abstraction.causal.pairs import (
    PairBank,
    Role,
    checked_indices,
    concatenate_banks,
    label_pairs,
    take_rows,
)
from abstraction.causal.scm import CausalModel
from abstraction.checks import whole
from abstraction.typing import Setting

Stream = Iterable[tuple[Setting, Setting]]
"""Chunks of candidate pairs: base inputs and source inputs of the causal model."""


@dataclass(frozen=True)
class Quota:
    """A number of pairs whose active mask satisfies a condition.

    Attributes:
      count: how many pairs to take, 0 or more.
      condition: the condition in words, for error messages.
      accepts: `[V, N] bool -> [N] bool`.
      variables: indices the condition asks about; they must exist in the bank.

    Raises:
      ValueError: a count that is not an integer of 0 or more, or an index that cannot be one.
    """

    count: int
    condition: str
    accepts: Callable[[np.ndarray], np.ndarray]
    variables: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        checked_indices([self.count], None, "a quota's count")
        checked_indices(self.variables, None, "variables")


def uniform_stream(
    seed: int, values: Mapping[str, Sequence[Any]], chunk: int = 4096
) -> Iterator[tuple[Setting, Setting]]:
    """Yield pairs whose inputs are drawn independently and uniformly from lists of values, without end.

    Args:
      seed: of the pairs.
      values: what each input may be.
      chunk: pairs at a time; another size draws other pairs.

    Raises:
      ValueError: a number out of its range, no inputs, or an input without values in one axis.
    """
    whole("seed", seed, 0)
    whole("chunk", chunk)
    lists = {name: np.asarray(listed) for name, listed in values.items()}
    if not lists or any(listed.ndim != 1 or not len(listed) for listed in lists.values()):
        shapes = {name: listed.shape for name, listed in lists.items()}
        raise ValueError(f"got values of shapes {shapes}, expected one or more inputs and a list of values for each")
    generator = np.random.default_rng(seed)
    while True:
        sides = ({name: generator.choice(listed, chunk) for name, listed in lists.items()} for _ in range(2))
        base, source = sides
        yield base, source


def changes(variable: int, count: int) -> Quota:
    """Pairs active for one variable, whatever the others do."""
    return Quota(count, f"changes for variable {variable}", lambda active: active[variable], (variable,))


def changes_exactly(variables: Collection[int], count: int) -> Quota:
    """Pairs active for all of the given variables and for no other; no variables means invariant pairs."""
    wanted = sorted(checked_indices(variables, None, "variables"))

    def accepts(active: np.ndarray) -> np.ndarray:
        pattern = np.isin(np.arange(len(active)), wanted)
        return np.all(active == pattern[:, None], axis=0)

    return Quota(count, f"changes for exactly the variables {wanted}", accepts, tuple(wanted))


def changes_any(count: int) -> Quota:
    """Pairs active for at least one variable."""
    return Quota(count, "changes for some variable", lambda active: np.any(active, axis=0))


def changes_none(count: int) -> Quota:
    """Pairs active for no variable."""
    return Quota(count, "changes for no variable", lambda active: ~np.any(active, axis=0))


def unchanged(variable: int, count: int) -> Quota:
    """Pairs invariant for one variable, whatever the others do."""
    return Quota(count, f"does not change for variable {variable}", lambda active: ~active[variable], (variable,))


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
      ValueError: a quota asks for a variable that is not there, all are zero, or the stream ends, or `max_pairs`
        candidates have been seen, with a quota unfilled.
    """
    _check_policy(quotas, len(variables), max_pairs)
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
            chosen = np.flatnonzero(_accepted(quota, bank) & ~taken)[: remaining[index]]
            taken[chosen] = True
            remaining[index] -= len(chosen)
        kept.append(take_rows(bank, np.flatnonzero(taken)))
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


def _check_policy(quotas: Sequence[Quota], variables: int, max_pairs: int) -> None:
    if not any(quota.count for quota in quotas) or not max_pairs >= 1:
        counts = [quota.count for quota in quotas]
        raise ValueError(f"got quotas of {counts} pairs and max_pairs {max_pairs}, expected at least one pair of each")
    for quota in quotas:
        checked_indices(quota.variables, variables, f"a quota ({quota.condition}) of variables")


def _accepted(quota: Quota, bank: PairBank) -> np.ndarray:
    accepted = np.asarray(quota.accepts(bank.active))
    if accepted.shape != (bank.size,) or accepted.dtype != bool:
        raise ValueError(
            f"got {accepted.dtype} of shape {accepted.shape} from the quota {quota.condition!r}, expected a truth "
            f"value per pair: ({bank.size},)"
        )
    return accepted
