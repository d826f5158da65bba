"""What an alignment search may spend: how many pairs a step, how many passes, and when a candidate has had enough."""

import dataclasses

from abstraction.checks import flag, number, whole


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How features are trained.

    Attributes:
      batch_size: pairs per step.
      max_epochs: passes over the fit bank at most; every candidate gets as many unless it stops before.
      min_epochs: no candidate stops before this.
      patience: epochs without improvement of the best loss after which a candidate stops.
      margin: the improvement that counts, relative to the best loss.
      cosine: let the learning rate fall to zero over `max_epochs` along a cosine.
      sensitive_weight: share of the loss that sensitive pairs carry; None weights all pairs alike.
      steps_per_epoch: steps that make an epoch; None for one pass over the bank.
      bands: train candidates in this many groups of neighbouring depths, one after another. Deeper groups leave out the
        blocks before them, in a network that can (`Recordable`); each group compiles a program of its own.

    Raises:
      ValueError: a number is out of range.
    """

    batch_size: int = 128
    max_epochs: int = 1000
    min_epochs: int = 5
    patience: int = 3
    margin: float = 1e-2
    cosine: bool = False
    sensitive_weight: float | None = None
    steps_per_epoch: int | None = None
    bands: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_epochs", "bands"):
            whole(name, getattr(self, name))
        for name in ("min_epochs", "patience"):
            whole(name, getattr(self, name), 0)
        if self.steps_per_epoch is not None:
            whole("steps per epoch", self.steps_per_epoch)
        number("margin", self.margin, 0, 1)
        flag("cosine", self.cosine)
        if self.sensitive_weight is not None:
            number("sensitive weight", self.sensitive_weight, 0, 1)
        if self.margin == 1 or self.sensitive_weight in (0, 1):
            raise ValueError(
                f"got margin {self.margin} and sensitive weight {self.sensitive_weight}, expected a margin below 1, "
                "and None or a weight inside (0, 1)"
            )
