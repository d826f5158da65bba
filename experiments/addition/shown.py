"""How binary addition is shown."""

from collections.abc import Sequence

from experiments.harness.accuracy import WARNING, Layout, Measure
from experiments.harness.figures import report
from experiments.harness.metrics import Metrics
from experiments.harness.records import Unit

NOTES = ("The score is the mean of sens. (the sum must change) and inv. (it must not); doing nothing scores .5.",)
MEASURES = (
    Measure("test", "IIA", "all pairs"),
    Measure("test-sensitive", "sens.", "sensitive pairs"),
    Measure("test-invariant", "inv.", "invariant pairs"),
)


def backbone_line(metrics: Metrics) -> str:
    """Describe the networks."""
    exact, epochs, seconds = (
        metrics.values("backbone", "output", "validation", name) for name in ("accuracy", "epochs", "seconds")
    )
    trained = f"{epochs.min():.0f} to {epochs.max():.0f} epochs, {seconds.mean():.1f} s"
    made = trained if epochs.any() else "read from checkpoints"
    return f"backbone: {exact.min():.4f} of sums exact or more; {made}{'' if exact.min() == 1 else WARNING}"


def network(units: Sequence[Unit]) -> str:
    """Name the networks: those that were read are the authors'."""
    metrics = Metrics(row for unit in units for row in unit.rows)
    if metrics.values("backbone", "output", "validation", "epochs").any():
        return "adders trained here"
    width = next((array.shape[-1] for name, array in units[0].arrays.items() if name.endswith("/mass")), 0)
    return f"the authors' adders of width {width}"


LAYOUT = Layout("addition", MEASURES, backbone_line, network, NOTES, "step")
REPORT = report(LAYOUT)
