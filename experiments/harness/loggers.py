"""Who else is told how a run goes, beside its folder: TensorBoard, Weights & Biases, or a logger of yours.

    stage    at the begin of every stage: seconds so far, the most memory of process and accelerator
    unit     once a seed is complete: every number of its records, `split/method/variable/metric`, at the step `seed`

What they show is a copy: nothing is read back from it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Protocol

from experiments.harness.records import RunFolder, Unit

Line = Mapping[str, Any]


class Logger(Protocol):
    """Is told what happens."""

    def stage(self, line: Line) -> None:
        """Take a line of `log.jsonl`."""

    def unit(self, unit: Unit) -> None:
        """Take what a seed has left."""

    def close(self) -> None:
        """Write what is not written yet."""


class TensorBoard:
    """Files for TensorBoard, in `tensorboard/` of the run's folder (package tensorboardX)."""

    def __init__(self, run: RunFolder):
        self._writer = _package("tensorboardX").SummaryWriter(str(run.path / "tensorboard"))

    def stage(self, line: Line) -> None:
        """Write memory over seconds, and the name of the stage."""
        step = int(line["seconds"])
        self._writer.add_text(f"seed {line['seed']}/stage", line["stage"], step)
        for name, value in _numbers(line).items():
            self._writer.add_scalar(f"seed {line['seed']}/{name}", value, step)

    def unit(self, unit: Unit) -> None:
        """Write every number over seeds."""
        for name, value in _results(unit).items():
            self._writer.add_scalar(name, value, _seed(unit))
        self._writer.flush()

    def close(self) -> None:
        """Write what is not written yet."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases named after the folder (package wandb); `WANDB_MODE=offline` sends nothing."""

    def __init__(self, run: RunFolder):
        self._run = _package("wandb").init(
            project="abstraction", name=run.path.name, dir=str(run.path), config=run.config
        )

    def stage(self, line: Line) -> None:
        """Send memory and the name of the stage."""
        self._run.log({"seed": line["seed"], "stage": line["stage"], "seconds": line["seconds"], **_numbers(line)})

    def unit(self, unit: Unit) -> None:
        """Send every number of a seed."""
        self._run.log({"seed": _seed(unit), **_results(unit)})

    def close(self) -> None:
        """Send what is not sent yet."""
        self._run.finish()


LOGGERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


@contextmanager
def opened(names: Sequence[str], run: RunFolder) -> Iterator[list[Logger]]:
    """Open loggers, and close them whatever happens.

    Raises:
      ImportError: the package of one is not installed; how to get it.
    """
    loggers: list[Logger] = []
    try:
        for name in names:
            loggers.append(LOGGERS[name](run))
        yield loggers
    finally:
        for each in loggers:
            each.close()


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed, expected the extra: pip install 'abstraction-jax[log]'") from error


def _numbers(line: Line) -> dict[str, float]:
    names = {"memory": "memory, GB", "device": "device memory, GB"}
    return {names[name]: value for name, value in line.items() if name in names and value is not None}


def _results(unit: Unit) -> dict[str, float]:
    known = [row for row in unit.rows if math.isfinite(row.value)]
    return {f"{row.split}/{row.method}/{row.variable}/{row.metric}": row.value for row in known}


def _seed(unit: Unit) -> int:
    return unit.rows[0].seed
