"""Checkpoints with orbax: save a pytree per step, restore it into the shapes the caller expects.

A tree is stored flat, one array per path, so that a mismatch can be told in the caller's own names. Orbax is imported
where it saves: it takes longer than everything else of this library together. One process writes to a folder at a time:
what a killed one left half-written is removed when the folder is opened.
"""

import shutil
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

_Tree = TypeVar("_Tree")


class Checkpoints:
    """A folder of checkpoints, newest `keep` of them.

    Args:
      folder: created if missing.
      keep: how many steps to keep.
    """

    def __init__(self, folder: str | Path, *, keep: int = 1):
        import orbax.checkpoint as ocp

        self.folder = Path(folder).absolute()
        self._remove_unfinished()
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False),
        )

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, tree: object) -> None:
        """Write a checkpoint; it appears under its name only when complete.

        Raises:
          OSError: it could not be written; nothing of it stays.
        """
        import orbax.checkpoint as ocp

        try:
            self._manager.save(step, args=ocp.args.StandardSave(_flat(tree)))
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            self._remove_unfinished()
            raise OSError(f"cannot write checkpoint {step} in {self.folder}: {error}") from error

    def restore(self, like: _Tree) -> _Tree:
        """Read the newest checkpoint into the structure of `like`, or return `like` where there is none.

        Raises:
          ValueError: the checkpoint holds other arrays or shapes than `like`, or cannot be read.
        """
        import orbax.checkpoint as ocp

        step = self.latest
        if step is None:
            return like
        expected = _flat(like)
        try:
            metadata = self._manager.item_metadata(step)
            found = {path: tuple(array.shape) for path, array in (metadata or {}).items()}
            wanted = {path: array.shape for path, array in expected.items()}
            if found != wanted:
                raise ValueError(_difference(found, wanted))
            stored = self._manager.restore(step, args=ocp.args.StandardRestore(expected))
        except Exception as error:
            raise ValueError(f"cannot restore checkpoint {step} in {self.folder}: {error}") from error
        return jax.tree.unflatten(jax.tree.structure(like), [stored[path] for path in expected])

    def _remove_unfinished(self) -> None:
        # Orbax would do so from a thread of its own, while the folder is already in use.
        for unfinished in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished, ignore_errors=True)


def _flat(tree: object) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _difference(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> str:
    paths = sorted(path for path in {*found, *wanted} if found.get(path) != wanted.get(path))
    shown = "; ".join(
        f"{path}: got {found.get(path, 'nothing')}, expected {wanted.get(path, 'nothing')}" for path in paths[:4]
    )
    return shown + (f"; and {len(paths) - 4} more" if len(paths) > 4 else "")
