"""Which hypotheses can a bank of pairs tell apart?

A hypothesis says what a handle holds: a variable of a causal model, or several of its variables at once. It predicts
a label for every pair, y(b; Z <- z(s)). Two hypotheses that predict the same label for every pair of a bank have the
same score there, whatever the network is: no method can choose between them on these pairs. Two more are always
compared, because networks offer them for free:

    nothing     y(b): the handle changes nothing
    everything  y(s): the handle swaps all that the output depends on

The *ceiling* of B under A is the IIA of a flawless handle of B that is scored on the labels of A, the mean over the
sensitive and the invariant pairs of A. A score below the ceiling of a rival is no evidence for A. Only labels are
looked at, never a network, so banks of every role may be asked about.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from abstraction.causal.pairs import PairBank, check_bank, check_variables, counterfactual_labels, of_one_type
from abstraction.causal.sampling import Stream
from abstraction.causal.scm import CausalModel
from abstraction.checks import kind, whole
from abstraction.typing import Setting

Hypothesis = tuple[CausalModel, str | Sequence[str]]
"""A causal model, and the variable of it, or the variables, that a handle holds."""

NOTHING, EVERYTHING = "nothing", "everything"


class Distinctions(NamedTuple):
    """What the pairs say of H hypotheses, `nothing` and `everything`.

    Attributes:
      names: of the hypotheses, and these two at the end.
      pairs: pairs that count for each, `[H, 2]`: the sensitive and the invariant ones.
      hits: pairs that count for the first to which both give the same label, `[H, H, 2]`, likewise.
      least: differing pairs from which on two hypotheses are well told apart.
    """

    names: tuple[str, ...]
    pairs: Int[np.ndarray, "H 2"]
    hits: Int[np.ndarray, "H H 2"]
    least: int

    @property
    def differ(self) -> Int[np.ndarray, "H H"]:
        """Pairs that count for the first to which the two give different labels."""
        return self.pairs.sum(axis=-1)[:, None] - self.hits.sum(axis=-1)

    @property
    def share(self) -> Float[np.ndarray, "H H"]:
        """The same as a share of the pairs that count for the first; NaN where there are none."""
        return _ratio(self.differ, self.pairs.sum(axis=-1)[:, None])

    @property
    def ceiling(self) -> Float[np.ndarray, "H H"]:
        """IIA under the labels of the first of a flawless handle of the second; NaN where no pair counts."""
        halves = _ratio(self.hits, self.pairs[:, None, :])
        present = ~np.isnan(halves)
        mean = np.where(present, halves, 0.0).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
        return np.where(present.any(axis=-1), mean, np.nan)

    @property
    def alike(self) -> tuple[tuple[str, str], ...]:
        """Hypotheses that no pair tells apart, on the pairs that count for one of the two."""
        return self._between(0, 0)

    @property
    def weak(self) -> tuple[tuple[str, str], ...]:
        """Hypotheses that some pairs tell apart, but fewer than `least`."""
        return self._between(1, self.least - 1)

    def _between(self, low: int, high: int) -> tuple[tuple[str, str], ...]:
        # Whichever of the two is asked about: where pairs count for one variable only, the numbers differ.
        differ = np.minimum(self.differ, self.differ.T)
        first, second = np.nonzero(np.triu((differ >= low) & (differ <= high), 1))
        return tuple((self.names[a], self.names[b]) for a, b in zip(first, second, strict=True))

    def __str__(self) -> str:
        cells = [
            [f"{ceiling:.4f} ({count})" for ceiling, count in zip(*rows, strict=True)]
            for rows in zip(self.ceiling, self.differ, strict=True)
        ]
        table = [["labels of", "sensitive", "invariant", *self.names]]
        table += [[n, *map(str, p), *c] for n, p, c in zip(self.names, self.pairs.tolist(), cells, strict=True)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["IIA that a flawless handle of a column has under the labels of a row (pairs that tell them apart)"]
        for first, *rest in table:
            row = [first.ljust(widths[0]), *(word.rjust(w) for word, w in zip(rest, widths[1:], strict=True))]
            lines.append("  ".join(row))
        for what, found in ((f"by 1 to {self.least - 1} pairs", self.weak), ("by no pair", self.alike)):
            if found:
                lines.append(f"told apart {what}: {', '.join(f'{a} from {b}' for a, b in found)}")
        return "\n".join(lines)


def distinguishable(
    pairs: PairBank | Stream,
    hypotheses: Mapping[str, Hypothesis],
    *,
    least: int = 30,
    max_pairs: int = 100_000,
) -> Distinctions:
    """Count the pairs that tell hypotheses apart, each from each, from doing nothing and from swapping everything.

    Under the labels of one variable that a bank names, the pairs that are eligible for it there count; for all others,
    and for pairs of a stream, every pair does.

    Args:
      pairs: a bank, or chunks of candidate pairs.
      hypotheses: a causal model and one or several of its variables, by name.
      least: differing pairs below which two hypotheses count as weakly told apart.
      max_pairs: pairs of a stream to look at.

    Raises:
      ValueError: no hypothesis, a name that is taken, an unknown variable, models of other inputs than each other or
        that answer some input differently, or no pair.
    """
    whole("least", least)
    whole("max_pairs", max_pairs)
    _check_hypotheses(hypotheses)
    names = (*hypotheses, NOTHING, EVERYTHING)
    counts = np.zeros((len(names), 2), np.int64)
    hits = np.zeros((len(names), len(names), 2), np.int64)
    seen = 0
    for base, source, eligible in _chunks(pairs, list(hypotheses.values()), max_pairs):
        labels = _label_table(hypotheses, base, source)
        seen += labels.shape[1]
        counted, agreed = _agreements(labels, np.ones(labels.shape, bool) if eligible is None else eligible)
        counts, hits = counts + counted, hits + agreed
    if not seen:
        raise ValueError("got no pairs, expected a bank or a stream of at least one")
    return Distinctions(names, counts, hits, least)


def _check_hypotheses(hypotheses: Mapping[str, Hypothesis]) -> None:
    kind("hypotheses", hypotheses, Mapping)
    taken = [name for name in hypotheses if not isinstance(name, str) or name in (NOTHING, EVERYTHING)]
    if taken or not hypotheses:
        raise ValueError(
            f"got hypotheses {list(hypotheses)}, expected one or more, by names other than {NOTHING!r} and "
            f"{EVERYTHING!r}, which are always compared"
        )
    for name, value in hypotheses.items():
        if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], CausalModel)):
            raise ValueError(f"got hypothesis {name!r} = {value!r}, expected (causal model, variable or variables)")
        kind(f"variables of {name!r}", value[1], Sequence)
        check_variables(value[0], _as_names(value[1]))
    inputs = {name: sorted(model.inputs) for name, (model, _) in hypotheses.items()}
    if len({tuple(found) for found in inputs.values()}) != 1:
        raise ValueError(f"got models of inputs {inputs}, expected the same in each")


def _chunks(
    pairs: PairBank | Stream, hypotheses: Sequence[Hypothesis], most: int
) -> Iterator[tuple[Setting, Setting, Bool[np.ndarray, "H N"] | None]]:
    """Yield bases, sources, and which pairs count under the labels of which hypothesis, None for all."""
    if isinstance(pairs, PairBank):
        check_bank(pairs)
        eligible = np.ones((len(hypotheses) + 2, pairs.size), bool)
        for row, (_, variables) in enumerate(hypotheses):
            names = _as_names(variables)
            if len(names) == 1 and names[0] in pairs.variables:
                eligible[row] = pairs.eligible[pairs.variables.index(names[0])]
        yield pairs.base, pairs.source, eligible
        return
    kind("pairs", pairs, Iterable)
    left = most
    for chunk in pairs:
        if not (isinstance(chunk, tuple) and len(chunk) == 2 and all(isinstance(side, Mapping) for side in chunk)):
            raise ValueError(f"got a chunk of pairs {type(chunk).__name__}, expected (base inputs, source inputs)")
        base, source = ({name: np.asarray(value)[:left] for name, value in side.items()} for side in chunk)
        yield base, source, None
        left -= max((len(value) for value in base.values()), default=0)
        if left <= 0:
            return


def _label_table(hypotheses: Mapping[str, Hypothesis], base: Setting, source: Setting) -> Real[np.ndarray, "H N"]:
    """Return the label of every pair under every hypothesis, under nothing and under everything."""
    labels: dict[str, np.ndarray] = {}
    ends: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for model in dict.fromkeys(model for model, _ in hypotheses.values()):
        own = {name: _as_names(variables) for name, (other, variables) in hypotheses.items() if other == model}
        found = counterfactual_labels(model, base, source, [*own.values(), (model.output,)])
        labels |= dict(zip(own, found.labels[:-1], strict=True))
        ends[next(iter(own))] = found.factual, found.labels[-1]
    (first, expected), *others = ends.items()
    for name, outputs in others:
        for side, wanted, output in zip(("base", "source"), expected, outputs, strict=True):
            if (wanted != output).any():
                row = int(np.flatnonzero(wanted != output)[0])
                raise ValueError(
                    f"got models that answer {side} {row} by {wanted[row]} ({first!r}) and {output[row]} ({name!r}), "
                    "expected the same answer to every input: accuracy alone tells these apart"
                )
    return np.stack(of_one_type([*(labels[name] for name in hypotheses), *expected]))


def _agreements(
    labels: Real[np.ndarray, "H N"], eligible: Bool[np.ndarray, "H N"]
) -> tuple[Int[np.ndarray, "H 2"], Int[np.ndarray, "H H 2"]]:
    """Count the sensitive and invariant pairs of each, and those among them to which another gives the same label."""
    active = labels != labels[-2]
    masks = np.stack([eligible & active, eligible & ~active], axis=1)
    hits = np.zeros((len(labels), len(labels), 2), np.int64)
    for first, own in enumerate(labels):
        same = labels == own
        for half, mask in enumerate(masks[first]):
            hits[first, :, half] = np.count_nonzero(same & mask, axis=1)
    return np.count_nonzero(masks, axis=-1), hits


def _as_names(variables: str | Sequence[str]) -> tuple[str, ...]:
    return (variables,) if isinstance(variables, str) else tuple(variables)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)
