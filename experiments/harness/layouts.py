"""What the table of each experiment shows, and how it is explained."""

from collections.abc import Callable
from typing import NamedTuple

from experiments.harness.metrics import Metrics

HONESTY = (("shuffled-labels", "shuffled labels"), ("earlier", "a step earlier"), ("untrained", "untrained network"))
"""Controls of a search: it runs again where there is nothing to find."""
_KINDS = ("random", "shuffled", *(kind for kind, _ in HONESTY))


class Layout(NamedTuple):
    """The columns of one experiment.

    Attributes:
      splits: the split of each accuracy column; the first is the score, shown with its interval and worst seed.
      titles: their names.
      compared: splits the paper has a number for.
      backbone: describes the networks.
      notes: explain the columns.
    """

    splits: tuple[str, ...]
    titles: tuple[str, ...]
    compared: tuple[str, ...]
    backbone: Callable[[Metrics], str]
    notes: tuple[str, ...]

    def columns(self) -> list[str]:
        """Name the columns."""
        names = ["method"]
        for place, (split, title) in enumerate(zip(self.splits, self.titles, strict=True)):
            names += [title, "95% interval", "worst"] if place == 0 else [title]
            names += ["paper"] if split in self.compared else []
        return [*names, "random", "shuffled", "run s", "compile s"]


def is_control_of_a_method(name: str) -> bool:
    """Tell rows that stand beside a method from rows of their own."""
    return name.startswith(tuple(f"control-{kind}-" for kind in _KINDS))


def _equality_backbone(metrics: Metrics) -> str:
    accuracy, balanced, worst, epochs = (
        metrics.values("backbone", "output", "validation", name)
        for name in ("accuracy", "balanced_accuracy", "worst_cell", "epochs")
    )
    seconds = metrics.mean("backbone", "output", "validation", "seconds")
    text = (
        f"backbone: accuracy {accuracy.min():.4f} or more, balanced {balanced.min():.4f}, on the worst combination of "
        f"the causal variables {worst.min():.4f}; {epochs.min():.0f} to {epochs.max():.0f} epochs, {seconds:.1f} s"
    )
    return text + _warning(worst.min() > 0.99)


def _adder_backbone(metrics: Metrics) -> str:
    accuracy, epochs = (metrics.values("backbone", "output", "validation", name) for name in ("accuracy", "epochs"))
    seconds = metrics.mean("backbone", "output", "validation", "seconds")
    made = (
        f"{epochs.min():.0f} to {epochs.max():.0f} epochs, {seconds:.1f} s" if epochs.any() else "read from checkpoints"
    )
    return f"backbone: {accuracy.min():.4f} of sums exact or more; {made}" + _warning(accuracy.min() == 1)


def _warning(fine: bool) -> str:
    text = "\nWARNING: a backbone does not compute the causal model, which caps every IIA of its seed"
    return "" if fine else text


LAYOUTS = {
    "heq": Layout(
        ("test", "test-invariant", "test-specific"),
        ("sensitive", "invariant", "specific"),
        ("test", "test-invariant"),
        _equality_backbone,
        (
            "sensitive: the output must change; invariant: it must not (the paper's two splits). specific: it must",
            "not, though it would for another variable; only this split tells a variable from a swap of everything.",
            "random, shuffled: sensitive pairs, same weights on random directions, and with another pair's source.",
            "interval: the wider of binomial over pairs and Student t over seeds. paper: see harness/paper.py.",
        ),
    ),
    "addition": Layout(
        ("test", "test-sensitive", "test-invariant"),
        ("combined", "sensitive", "invariant"),
        ("test", "test-sensitive", "test-invariant"),
        _adder_backbone,
        (
            "combined: mean of sensitive (the sum must change) and invariant (it must not); doing nothing scores .5.",
            "random, shuffled: combined, same weights on random directions, and with another pair's source.",
            "-v1, -v4: the paper's variants of May and October 2026. run s counts the stages a method builds on.",
            "interval: the wider of binomial over pairs and Student t over seeds. paper: see harness/paper.py.",
        ),
    ),
}
