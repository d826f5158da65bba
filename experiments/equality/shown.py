"""How hierarchical equality is shown."""

from experiments.harness.accuracy import WARNING, Layout, Measure
from experiments.harness.figures import report
from experiments.harness.metrics import Metrics

NOTES = (
    "sens.: the output must change; inv.: it must not (the paper's two splits).",
    "spec.: it must not, though it would for another variable: tells a variable from a swap of everything.",
)
MEASURES = (
    Measure("test", "sens.", "sensitive pairs"),
    Measure("test-invariant", "inv.", "invariant pairs"),
    Measure("test-specific", "spec.", "specific pairs"),
)


def backbone_line(metrics: Metrics) -> str:
    """Describe the networks."""
    known = lambda name: metrics.values("backbone", "output", "validation", name)
    worst, epochs = known("worst_cell").min(), known("epochs")
    return (
        f"backbone: accuracy {known('accuracy').min():.4f} or more, balanced {known('balanced_accuracy').min():.4f}, "
        f"on the worst combination of the causal variables {worst:.4f}; {epochs.min():.0f} to {epochs.max():.0f} "
        f"epochs, {known('seconds').mean():.1f} s{'' if worst > 0.99 else WARNING}"
    )


LAYOUT = Layout("heq", MEASURES, backbone_line, lambda _: "MLPs trained by the paper's rule", NOTES, "layer")
REPORT = report(LAYOUT)
