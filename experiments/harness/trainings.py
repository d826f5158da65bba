"""The training of a network, over every leg of a run: its checkpoints, its seconds, and whether it diverged."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from abstraction.training.checkpoints import Checkpoints
from abstraction.typing import Params
from experiments.harness.files import read_sealed, sealed, write_atomically
from experiments.harness.timing import Time, stopwatch


class Training:
    """One training. Give `fit` its `checkpoints`, and the value itself as `progress`.

    Seconds are written after each epoch's checkpoint, so that a training that was interrupted counts every leg; what a
    killed leg computed after its last checkpoint is computed again and counts once.

    Args:
      folder: of the checkpoints; the seconds stand beside it.
      tell: told of every epoch.
    """

    def __init__(self, folder: Path, tell: Callable[[int, Mapping[str, float]], None]):
        self.checkpoints = Checkpoints(folder)
        self._seconds = folder.with_name(f"{folder.name}.seconds.json")
        self._tell = tell
        self._so_far: Callable[[], Time] = Time

    @contextmanager
    def timed(self) -> Iterator[Time]:
        """Time the block; when it ends, the time is that of all legs."""
        earlier, start, whole = self._earlier(), time.perf_counter(), Time()
        with stopwatch() as leg:
            self._so_far = lambda: earlier + Time(time.perf_counter() - start, leg.compile)
            yield whole
        whole.total, whole.compile = earlier.total + leg.total, earlier.compile + leg.compile

    def __call__(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Take note of an epoch."""
        elapsed = self._so_far()
        record = {"epoch": epoch, "total": elapsed.total, "compile": elapsed.compile}
        write_atomically(self._seconds, sealed(record))
        self._tell(epoch, metrics)

    def _earlier(self) -> Time:
        latest = self.checkpoints.latest
        if latest is None or not self._seconds.exists():
            return Time()
        record = read_sealed(self._seconds)
        return Time(record["total"], record["compile"]) if record["epoch"] <= latest else Time()


def require_finite(params: Params) -> None:
    """Refuse a network that diverged: every number measured on it would be one of nothing.

    Raises:
      FloatingPointError: a weight is not finite.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(np.asarray(leaf)).all():
            raise FloatingPointError(
                f"got weights {jax.tree_util.keystr(path)} that are not finite: the training diverged, expected finite "
                "numbers; try a smaller learning rate in another --out"
            )
