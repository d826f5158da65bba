"""Show and draw a run, from its records alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.harness.curves import Reduced
from experiments.harness.records import RunFolder, Unit
from experiments.harness.tables import Format, Part, show_parts


class Report(NamedTuple):
    """How an experiment is shown.

    Attributes:
      tables: `(units, details)`: tables and lines of text.
      draw: `(units, folder)`: writes figures and returns the files.
      reduced: `units`: what the page of a run of smaller networks draws beside its tables.
    """

    tables: Callable[[Sequence[Unit], bool], list[Part]]
    draw: Callable[[Sequence[Unit], Path], list[Path]]
    reduced: Callable[[Sequence[Unit]], Reduced] | None = None


def show(run: RunFolder, report: Report, *, details: bool = False, style: Format = "terminal") -> None:
    """Print the tables of a run.

    Raises:
      ValueError: the run has no complete unit, or a damaged one.
    """
    units = complete_units(run)
    lost = [f"note  {name} was computed and is not there: --resume computes it again" for name in run.lost_units()]
    show_parts([*report.tables(units, details), *lost, f"records {run.path}"], style)


def draw(run: RunFolder, report: Report) -> list[Path]:
    """Draw every figure of a run into `figures/` and return the files.

    Raises:
      ValueError: the run has no complete unit, or a damaged one.
    """
    return report.draw(complete_units(run), run.path / "figures")


def complete_units(run: RunFolder) -> list[Unit]:
    """Read the complete units of a run.

    Raises:
      ValueError: there is none, or one is damaged.
    """
    units = run.units()
    if not units:
        raise ValueError(f"got {run.path}, which holds no complete seed yet; expected a run with results")
    return units
