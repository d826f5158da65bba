"""`--processes`: a run that several processes share, one for each host of a cluster's job or of a TPU pod.

All of them run the same program with the same options, and a mesh (`--mesh`) has the devices of all. The first writes
the run's folder and prints its tables. The others work in copies of it that are gone at the end, so that all go on from
the same parts; the first sends them, and no disk is shared.
"""

import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.harness.files import LOCK
from experiments.harness.valid import require

T = TypeVar("T")
_APART = ("exported", "figures", "tensorboard", LOCK)
"""What a run goes on without."""
AUTO = "auto"


def join(text: str) -> None:
    """Join the other processes of a run, before anything asks for devices.

    Args:
      text: `auto` where a scheduler tells how many there are, as Slurm, Open MPI and TPU pods do; else
        `HOST:PORT,INDEX,COUNT`: where the first process listens, which this one is, and how many there are.

    Raises:
      ValueError: another text.
      RuntimeError: the others did not come.
    """
    if text == AUTO:
        jax.distributed.initialize()
        return
    place, *numbers = text.split(",")
    known = len(numbers) == 2 and all(each.isdecimal() for each in numbers) and ":" in place
    index, count = map(int, numbers) if known else (1, 0)
    require("--processes", text, index < count, f"{AUTO}, or HOST:PORT,INDEX,COUNT with INDEX from 0 to COUNT - 1")
    jax.distributed.initialize(place, num_processes=count, process_id=index)


def is_first() -> bool:
    """Tell whether this process writes the records: the only one, or the first of several."""
    return jax.process_index() == 0


def any_of(asked: bool) -> bool:
    """Tell in every process whether one of them says yes; all must ask at the same place."""
    if jax.process_count() == 1:
        return asked
    return bool(multihost_utils.process_allgather(np.array(asked)).any())


def as_first(tree: Any) -> Any:
    """Return the first process's arrays in all of them: trainings may differ in their last bits."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


@contextmanager
def copied(out: Path, begin: Callable[[], T], others: Callable[[Path], T]) -> Iterator[T]:
    """Let the first process begin a run in its folder, and the others go on in copies of it.

    Args:
      out: the folder of the run.
      begin: begins it, in the first process.
      others: opens a copy.

    Raises:
      ValueError: what `begin` refuses; in the others that it did.
    """
    if jax.process_count() == 1:
        yield begin()
        return
    begun: T | None = None
    try:
        if is_first():
            begun = begin()
    finally:  # the others wait for an answer whatever happens
        refused = any_of(is_first() and begun is None)
    if refused:
        raise ValueError(f"got {out}, which the first process did not begin a run in; it says why")
    packed = _sent(b"" if begun is None else _packed(out))
    if begun is not None:
        yield begun
        return
    with tempfile.TemporaryDirectory(prefix="run-") as folder:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        yield others(Path(folder))


def _packed(folder: Path) -> bytes:
    """Return the files of a run as an archive."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            if path.name not in _APART:
                archive.add(path, path.name)
    return content.getvalue()


def _sent(content: bytes) -> bytes:
    """Return the bytes of the first process in all of them."""
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(content))))
    own = np.frombuffer(content.ljust(size, b"\0")[:size], np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(own)).astype(np.uint8).tobytes()
