"""Judge frozen handles on test banks, beside their controls.

The one place where test pairs meet handles. It takes handles that have been chosen already and returns counts; it
has no way to choose. A score is nothing without its yardstick: the level of chance, the network as it is, as many
random directions with the same weights, and the same handle fed with the sources of other pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from abstraction.checks import whole
from abstraction.evaluation.confidence import LEVEL
from abstraction.evaluation.controls import (
    chance_level,
    identity_handle,
    random_subspaces,
    shuffled_order,
    without_idle_features,
)
from abstraction.evaluation.iia import Tally, tally_handles
from abstraction.evaluation.recording import Recorded
from abstraction.interventions import Handle
from abstraction.interventions.handles import check_handles, stack_handles, take_handle
from abstraction.models import Network
from abstraction.randomness import check_key, host_generator, named_key

Tests = Mapping[str, Recorded]
"""Recorded banks by the name of the split they report."""


class Controls(NamedTuple):
    """Counts of the controls of a handle by split, `[V]` each, as means over repetitions.

    Attributes:
      random: the same weights on random subspaces.
      shuffled: the handle with shuffled sources.
    """

    random: dict[str, Tally]
    shuffled: dict[str, Tally]


@dataclass(frozen=True)
class Repeats:
    """How often controls are drawn.

    Attributes:
      draws: random subspaces per variable.
      shuffles: permutations of the sources.
      seed: of both.

    Raises:
      ValueError: a number that is not an integer of at least 1, or of at least 0 for the seed.
    """

    draws: int = 20
    shuffles: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        whole("draws of random subspaces", self.draws)
        whole("shuffles of sources", self.shuffles)
        whole("seed of controls", self.seed, 0)


class Score(NamedTuple):
    """One handle per variable on one bank, beside its controls.

    Attributes:
      variables: names of the V variables.
      tally: counts of the handles, `[V]`.
      chance: what the best constant answer scores, `[V]`.
      identity: counts of the network as it is, `[V]`.
      random: counts with the same weights on random subspaces, means over draws, `[V]`.
      shuffled: counts with the sources of other pairs, means over permutations, `[V]`.
    """

    variables: tuple[str, ...]
    tally: Tally
    chance: Float[np.ndarray, " V"]
    identity: Tally
    random: Tally
    shuffled: Tally

    @property
    def yardstick(self) -> Float[np.ndarray, " V"]:
        """The highest of chance and the combined scores of the controls."""
        controls = (self.chance, *(tally.combined for tally in (self.identity, self.random, self.shuffled)))
        return np.max(np.stack(controls), axis=0)

    @property
    def exceeds(self) -> Bool[np.ndarray, " V"]:
        """Whether the lower bound of the combined score is above its yardstick; not where no pair counts."""
        return self.tally.interval(LEVEL)[0] > self.yardstick

    def rows(self) -> list[dict[str, float | str]]:
        """Say the score of each variable, its 95 % interval and its controls, and whether it exceeds them."""
        low, high = self.tally.interval(LEVEL)
        columns = {
            "iia": self.tally.combined,
            "low": low,
            "high": high,
            "chance": self.chance,
            "identity": self.identity.combined,
            "random": self.random.combined,
            "shuffled": self.shuffled.combined,
        }
        words = np.where(self.exceeds, "above its controls", "not above its controls")
        words = np.where(np.isnan(self.tally.combined), "no pairs", words)
        return [
            {"variable": name, **{key: float(values[v]) for key, values in columns.items()}, "verdict": str(words[v])}
            for v, name in enumerate(self.variables)
        ]

    def __str__(self) -> str:
        numbers = ("iia", "low", "high", "chance", "identity", "random", "shuffled")
        width = max(8, *map(len, self.variables))
        lines = [" ".join(["variable".ljust(width), *(name.rjust(8) for name in numbers), " verdict"])]
        for row in self.rows():
            values = (f"{row[name]:8.4f}" for name in numbers)
            lines.append(" ".join([str(row["variable"]).ljust(width), *values, f" {row['verdict']}"]))
        return "\n".join(lines)


def judge(
    network: Network, handles: Handle, tests: Recorded | Tests, repeats: Repeats | None = None
) -> dict[str, Score]:
    """Count hits of one handle per variable on every split, beside its controls.

    Args:
      network: the network.
      handles: a batch of V handles, the v-th for variable v.
      tests: recorded banks by split, or one, which is then called `test`.
      repeats: how often controls are drawn.

    Raises:
      ValueError: no split, splits of other variables than each other, another number of handles than of variables, or
        handles that do not fit their tap.
    """
    tests = {"test": tests} if isinstance(tests, Recorded) else tests
    repeats = repeats or Repeats()
    _handles_of(network, handles, tests)
    return {
        split: score_handles(named_key(repeats.seed, split), network, handles, (recorded,), repeats)
        for split, recorded in tests.items()
    }


def score_handles(key: Array, network: Network, handles: Handle, banks: Sequence[Recorded], repeats: Repeats) -> Score:
    """Score one handle per variable on pooled banks, beside its controls; see `judge`."""
    tests = {str(index): recorded for index, recorded in enumerate(banks)}
    same = [identity_handle(network.taps[handles.tap])] * _handles_of(network, handles, tests)
    controls = judge_controls(key, network, handles, tests, repeats)
    each = (judge_alone(network, handles, tests), judge_alone(network, stack_handles(same), tests), *controls)
    pooled = [jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *tallies.values()) for tallies in each]
    tally, identity, random, shuffled = pooled
    chance = chance_level(*(recorded.bank for recorded in banks))
    return Score(banks[0].variables, tally, chance, identity, random, shuffled)


def judge_alone(network: Network, handles: Handle, tests: Tests) -> dict[str, Tally]:
    """Count hits of one handle per variable on every split, without controls; see `judge`."""
    variable = np.arange(_handles_of(network, handles, tests))
    return {split: tally_handles(network, recorded, handles, variable) for split, recorded in tests.items()}


def judge_controls(
    key: Array, network: Network, handles: Handle, tests: Tests, repeats: Repeats | None = None
) -> Controls:
    """Count hits of the controls that belong to given handles.

    Args:
      key: seeds the random subspaces and the shuffles; the seed of `repeats` is not used.
      network: the network.
      handles: a batch of V handles, the v-th for variable v.
      tests: recorded banks by split.
      repeats: how many of each.

    Raises:
      ValueError: as `judge`.
    """
    check_key(key)
    repeats = repeats or Repeats()
    variables, draws = _handles_of(network, handles, tests), repeats.draws
    subspace_key, shuffle_key = jax.random.split(key)
    keys = jax.random.split(subspace_key, variables)
    width = network.taps[handles.tap].width
    moved = without_idle_features(handles)
    batches = [random_subspaces(keys[v], take_handle(moved, v), width, draws) for v in range(variables)]
    subspaces = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    generator = host_generator(shuffle_key)
    controls = Controls({}, {})
    for split, recorded in tests.items():
        drawn = tally_handles(network, recorded, subspaces, np.repeat(np.arange(variables), draws))
        controls.random[split] = jax.tree.map(lambda leaf: leaf.reshape(variables, draws, 2).mean(axis=1), drawn)
        orders = [shuffled_order(generator, recorded.bank) for _ in range(repeats.shuffles)]
        shuffled = [tally_handles(network, recorded.shuffled(order), handles, np.arange(variables)) for order in orders]
        controls.shuffled[split] = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *shuffled)
    return controls


def _handles_of(network: Network, handles: Handle, tests: Tests) -> int:
    if handles.tap not in network.taps:
        raise ValueError(f"got handles of tap {handles.tap!r}, expected one of {sorted(network.taps)}")
    count = check_handles(handles, network.taps[handles.tap])
    variables = {split: recorded.variables for split, recorded in tests.items()}
    if len(set(variables.values())) != 1 or any(len(names) != count for names in variables.values()):
        raise ValueError(
            f"got {count} handles for splits of variables {variables}, expected a handle per variable, and splits, at "
            "least one, of the same variables"
        )
    return count
