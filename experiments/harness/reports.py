"""Show and draw a run, from its records alone: every experiment has its tables and its figures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.certify import figures as certify_figures
from experiments.certify import tables as certify_tables
from experiments.discovery import figures as discovery_figures
from experiments.discovery import tables as discovery_tables
from experiments.harness import figures, tables
from experiments.harness.printing import show_parts
from experiments.harness.records import RunFolder, Unit
from experiments.mcqa import figures as mcqa_figures
from experiments.mcqa import tables as mcqa_tables
from experiments.reduction import figures as reduction_figures
from experiments.reduction import tables as reduction_tables


class Report(NamedTuple):
    """How an experiment is shown.

    Attributes:
      renderables: `(units, details=...)`: tables and lines of text.
      draw: `(units, folder)`: writes figures and returns the files.
    """

    renderables: Callable[..., list[Any]]
    draw: Callable[[Sequence[Unit], Path], list[Path]]


_LOCALIZATION = Report(tables.renderables, figures.draw)
REPORTS: dict[str, Report] = {
    "heq": _LOCALIZATION,
    "addition": _LOCALIZATION,
    "mcqa": Report(mcqa_tables.renderables, mcqa_figures.draw),
    "discovery": Report(discovery_tables.renderables, discovery_figures.draw),
    "certify": Report(certify_tables.renderables, certify_figures.draw),
    "reduction": Report(reduction_tables.renderables, reduction_figures.draw),
}


def show(run: RunFolder, *, details: bool = False) -> None:
    """Print the tables of a run.

    Raises:
      ValueError: the run has no complete unit, or a damaged one.
    """
    units, report = _open(run)
    lost = [f"note  {name} was computed and is not there: --resume computes it again" for name in run.lost_units()]
    show_parts([*report.renderables(units, details=details), *lost, f"records {run.path}"])


def draw(run: RunFolder) -> list[Path]:
    """Draw every figure of a run into `figures/` and return the files.

    Raises:
      ValueError: the run has no complete unit, or a damaged one.
    """
    units, report = _open(run)
    folder = run.path / "figures"
    folder.mkdir(exist_ok=True)
    return report.draw(units, folder)


def _open(run: RunFolder) -> tuple[list[Unit], Report]:
    units = run.units()
    if not units:
        raise ValueError(f"got {run.path}, which holds no complete seed yet; expected a run with results")
    experiment = units[0].rows[0].experiment
    if experiment not in REPORTS:
        raise ValueError(f"got a run of {experiment!r} in {run.path}, expected one of {', '.join(REPORTS)}")
    return units, REPORTS[experiment]
