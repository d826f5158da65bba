"""What a run reduced, as folders that transformers loads: no PyTorch, and no transformers, is needed to write them."""

import shutil
from pathlib import Path
from typing import NamedTuple, Self

from abstraction.models import Network
from abstraction.models.hub_export import export_decoder
from abstraction.tasks.prompts import HubTokenizer
from experiments.lm_reduction.options import LmReduction
from experiments.lm_reduction.subject import Subject


class Exports(NamedTuple):
    """Where the networks of one seed are written.

    Attributes:
      folder: holds a folder for each of them.
      subject: what they were made from.
      source: the folder that this was read from, whose tokenizer files are copied; None where it was no folder.
      text: the calibration text whose networks are written.
    """

    folder: Path
    subject: Subject
    source: Path | None
    text: str

    @classmethod
    def of(cls, config: LmReduction, subject: Subject, folder: Path) -> Self | None:
        """Return where to write, or None where the options do not ask for it."""
        if not config.export:
            return None
        model = config.network.model
        return cls(folder, subject, Path(model) if model and Path(model).is_dir() else None, config.calibrations[0])

    def write(self, smaller: Network, method: str, variable: str, split: str) -> Path | None:
        """Write one network, unless its blocks may differ or it was calibrated on another text.

        Raises:
          ValueError: no family that transformers reads carries it.
        """
        if not variable.endswith("-uniform") or not split.startswith(f"{self.text}-"):
            return None
        target = self.folder / f"{method}-{variable}-{split}"
        if target.exists():  # of a leg of this run that was stopped
            shutil.rmtree(target)
        export_decoder(smaller, target, tokenizer=self.source, made_from=self.subject.network)
        if self.source is None and isinstance(self.subject.tokenizer, HubTokenizer):
            self.subject.tokenizer.backend.save(str(target / "tokenizer.json"))
        return target
