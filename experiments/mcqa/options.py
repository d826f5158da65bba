"""Options of multiple choice."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from abstraction.localization import SearchConfig
from experiments.harness import valid
from experiments.harness.options import DasOptions, Names
from experiments.harness.stages import CoarseToFine, StageOptions, budget

METHODS = (
    "plot-stage-a", "plot-native", "plot-pca", "plot-native-fitted", "plot-das", "plot-native-das", "plot-pca-das",
    "full-das", "plot-oblique-das", "dbm", "dbm-pca", "boundless-das", "cosine", "brute-force", "row-argmin",
    "full-state", "plot-stage-a-v1", "plot-native-v1", "plot-pca-v1", "plot-das-v1", "plot-native-das-v1",
    "plot-pca-das-v1", "full-das-v1", "plot-stage-a-v4", "plot-native-v4", "plot-pca-v4",
)  # fmt: skip
PAPER_METHODS = (*(name for name in METHODS if name.endswith(("-v1", "-v4"))), "full-state")
Position = Literal["last", "symbol", "symbol-next", "subject"]
POSITIONS: tuple[Position, ...] = get_args(Position)
Scorer = Literal["strict", "letters"]
MOST_WIDTH = 2**20
"""Width of a network of the user's, which is not known before it is loaded."""
WIDTHS = {"embedded": 64, "planted": 100}


@dataclass(frozen=True)
class NetworkOptions:
    """The network that is searched."""

    kind: Literal["embedded", "planted"] = "embedded"
    """Without --network.model: a small trained decoder that ships with the project, or one that is built by hand."""
    model: str | None = None
    """Folder or hub id of a GPT-2, Llama, Qwen2 or Gemma-2 model, e.g. google/gemma-2-2b (extra `hub`)."""
    revision: str | None = None
    """Of a hub id."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of weights and activations; by default that of the files, float32 of the networks of this project."""
    gib: Annotated[float, valid.POSITIVE] = 8.0
    """Memory for one chunk of activations."""


@dataclass(frozen=True)
class McqaBanks:
    """Pair banks. Questions never meet in two banks; only pairs whose prompts the network answers are kept."""

    data: str | None = None
    """jchang153/copycolors_mcqa or mib-bench/copycolors_mcqa, or a file with their rows; else prompts are made."""
    data_config: str | None = None
    """Configuration of a hub data set, such as 4_answer_choices."""
    fit: Annotated[int, valid.least(3)] = 384
    """Fit pairs; 200 in the paper, for each bank."""
    calibration: Annotated[int, valid.least(3)] = 192
    """Calibration pairs."""
    test: Annotated[int, valid.least(3)] = 600
    """Test pairs."""
    spare: Annotated[float, valid.Valid(lambda spare: spare >= 1, "at least 1")] = 1.2
    """Pairs that are made for each that is needed, before those the network gets wrong are dropped."""


_BUDGET = budget(max_epochs=12, patience=12)


@dataclass(frozen=True)
class Mcqa(CoarseToFine):
    """Multiple choice: find the answer pointer and the answer in a decoder's residual stream (PLOT, main benchmark).

    Runs on a small decoder that ships with the project; give --network.model for one with weights of your own.
    """

    seeds: str = "0"
    """Seeds of pairs and searches, as start:stop (stop excluded) or a comma list."""
    methods: Annotated[Names, valid.one_of(METHODS)] = METHODS
    """Methods to run; controls always run. Names ending in -v1 and -v4 are the paper's variants of that version."""
    position: Position = "last"
    """The token that is searched: the last one, the letter of the right choice, the token after it, the noun asked
    about."""
    scorer: Scorer = "strict"
    """For selection and scores, the same for every method: the largest logit of the whole vocabulary must be the
    letter, or the largest of the 26 letters."""
    retrain: bool = False
    """Train the small decoder again, into --out, and stop."""
    control_draws: Annotated[int, valid.least(1)] = 10
    """Random subspaces per handle."""
    network: NetworkOptions = NetworkOptions()
    banks: McqaBanks = McqaBanks()
    stages: StageOptions = StageOptions(resolutions=(32, 16, 8, 4, 2, 1))
    das: DasOptions = DasOptions((1, 2, 3, 4, 8, 16, 32), (2e-2,), restarts=2, training=_BUDGET)
    oblique: DasOptions = DasOptions(
        (2, 4, 8, 16, 32), (2e-2,), restarts=2, parametrization="oblique", training=_BUDGET
    )
    das_v1: DasOptions = DasOptions(
        (1, 2, 4, 8, 16, 32, 64),
        (1e-3,),
        training=SearchConfig(batch_size=64, max_epochs=100, min_epochs=5, patience=1, margin=1e-3),
    )

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "control_draws": 4, "control_shuffles": 2, "banks.fit": 192, "banks.calibration": 96, "banks.test": 192,
            "methods": ("plot-stage-a", "plot-native", "plot-pca", "plot-das", "full-das", "full-state"),
            "stages.resolutions": (16, 4, 1), "das.ranks": (3, 8, 32), "oblique.ranks": (2, 8, 32),
            "das_v1.ranks": (4, 16, 64), "masks.sparsities": (0.0, 1e-3), "weights.learning_rates": (0.05,),
            **{f"{search}.{name}": value for search in ("das", "oblique", "das_v1") for name, value in
               {"restarts": 1, "training.max_epochs": 6}.items()},
        },
        "paper": {"methods": PAPER_METHODS, "banks.fit": 200, "banks.calibration": 200, "banks.test": 200},
    }  # fmt: skip

    def check(self) -> None:
        """Refuse options that cannot work, as far as the network need not be loaded for it."""
        super().check()
        self.check_searches(MOST_WIDTH if self.network.model else WIDTHS[self.network.kind], self.banks.fit)
