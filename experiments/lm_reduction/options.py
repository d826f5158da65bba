"""Options of the reduction of a language model."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

import tyro

from abstraction.reduction import METHODS as PRESETS
from abstraction.reduction.blocks import Part, Spread
from experiments.harness import valid
from experiments.harness.options import Options

NAME = "lm-reduction"
OURS = ("cmr-closed", "obs-affine", "cmr-kl")
RIVALS = ("flap", "wanda", "vbp", "magnitude", "random", "flap-zero", "wanda-zero", "magnitude-zero", "random-zero")
METHODS = (*OURS, "vbp-affine", *RIVALS)
TINY = "tiny"
"""The random decoder of a quick run."""
Text = Literal["python", "own", "prompts"]
_NAMES = tyro.conf.arg(metavar="NAME ...")


@dataclass(frozen=True)
class LanguageModel:
    """The network."""

    model: str | None = None
    """A folder, a GGUF file or a name on the hub; by default SmolLM2-135M from the package index, and `tiny` is a
    random decoder of three blocks."""


@dataclass(frozen=True)
class Texts:
    """The texts: docstrings and the license of the Python that runs, what the network writes itself, and prompts."""

    length: Annotated[int, valid.least(8)] = 128
    """Tokens in a row of text."""
    calibration: Annotated[int, valid.COUNT] = 64
    """Rows of each calibration text; prompts are counted so that their tokens are about as many."""
    test: Annotated[int, valid.COUNT] = 24
    """Rows of held-out text of either kind: of other modules, and written with another key."""
    prompts: Annotated[int, valid.least(8)] = 64
    """Pairs of prompts with an indirect object that are tested."""


@dataclass(frozen=True)
class LmReduction(Options):
    """Reduce the MLPs and the heads of a language model, and test whether it still predicts the same text.

    Writes a run folder and prints its tables.
    """

    seeds: str = "0"
    """Seeds, as start:stop (stop excluded) or a comma list: of the calibration texts, of draws, and of prompts."""
    network: LanguageModel = LanguageModel()
    texts: Texts = Texts()
    methods: Annotated[tuple[str, ...], _NAMES, valid.one_of(METHODS)] = METHODS
    """Methods to run; `abstraction.reduction.METHODS` says what each is."""
    parts: Annotated[tuple[Part, ...], valid.one_of(get_args(Part))] = get_args(Part)
    """What is reduced, each in a network of its own."""
    keeps: Annotated[tuple[float, ...], valid.SHARE] = (0.9, 0.75, 0.5)
    """Shares of the units, or heads, of all blocks to keep."""
    spreads: Annotated[tuple[Spread, ...], valid.one_of(get_args(Spread))] = get_args(Spread)
    """The same share in every block, or one budget over all of them."""
    calibrations: Annotated[tuple[Text, ...], valid.one_of(get_args(Text))] = get_args(Text)
    """Texts to reduce on; the first serves all methods and budgets, the others those below."""
    elsewhere: Annotated[tuple[str, ...], _NAMES, valid.one_of(METHODS)] = ("cmr-closed", "flap", "vbp")
    """Methods that are also run on the other calibrations, at `elsewhere-keep` and the same share everywhere."""
    elsewhere_keep: Annotated[float, valid.SHARE] = 0.75
    """The share they keep."""
    batch_size: Annotated[int, valid.COUNT] = 4
    """Rows that are run at once."""
    export: bool = False
    """Write what the first method reduces to equal shares, calibrated on the first text, into `exported/` of the run's
    folder: one folder each that transformers loads, about as large as the network in float32."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "network.model": TINY, "texts.length": 16, "texts.calibration": 24, "texts.test": 8, "texts.prompts": 16,
            "methods": ("cmr-closed", "obs-affine", "flap", "wanda-zero", "random"), "keeps": (0.75, 0.5),
            "elsewhere": ("cmr-closed", "flap"),
        },
    }  # fmt: skip

    def check(self) -> None:
        """Refuse options that cannot work."""
        super().check()
        missing = [name for name in (*self.methods, *self.elsewhere) if name not in PRESETS]
        valid.require("--methods", self.methods, not missing, "presets of the library")
        keep = self.elsewhere_keep
        valid.require("--elsewhere-keep", keep, keep >= min(self.keeps), f"at least {min(self.keeps)}, the least kept")
