"""Options of the MCQA experiment. Every field is a flag; its docstring is the flag's help."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from abstraction.localization import CutMenu, ReferenceTransport, SearchConfig, Selection, Transport, Variant
from experiments.addition.options import BoundlessOptions, MaskOptions, StageOptions, WeightOptions
from experiments.equality.options import DasOptions, parse_seeds, smaller

McqaMethod = Literal[
    "plot-stage-a",
    "plot-native",
    "plot-pca",
    "plot-native-fitted",
    "plot-das",
    "plot-native-das",
    "plot-pca-das",
    "full-das",
    "plot-oblique-das",
    "dbm",
    "dbm-pca",
    "boundless-das",
    "cosine",
    "brute-force",
    "row-argmin",
    "full-state",
    "plot-stage-a-v1",
    "plot-native-v1",
    "plot-pca-v1",
    "plot-das-v1",
    "plot-native-das-v1",
    "plot-pca-das-v1",
    "full-das-v1",
    "plot-stage-a-v4",
    "plot-native-v4",
    "plot-pca-v4",
]
MCQA_METHODS: tuple[McqaMethod, ...] = get_args(McqaMethod)
Position = Literal["last", "symbol", "symbol-next", "subject"]
POSITIONS: tuple[Position, ...] = get_args(Position)
Scorer = Literal["strict", "letters"]

_EPSILONS, _BETAS = (0.5, 1.0, 2.0, 4.0), (0.1, 0.3, 1.0, 3.0)
_PAPER_MENU = CutMenu((1, 2, 3, 4, 5), tuple(float(step) for step in range(10, 31)), per_site=False, break_ties="order")
VARIANTS: dict[str, Variant] = {
    "v1": Variant(
        ReferenceTransport(_EPSILONS, beta_neural=_BETAS, iterations=500),
        ReferenceTransport(_EPSILONS, iterations=500),
        _PAPER_MENU,
        heaviest=6,
        selection=Selection(first_wins=True),
    ),
    "v4": Variant(
        ReferenceTransport(_EPSILONS, beta_neural=_BETAS, iterations=500),
        Transport("joint", _EPSILONS, absolute=True),
        _PAPER_MENU,
        heaviest=6,
        selection=Selection(shared_axis="epsilon", first_wins=True),
    ),
    "ours": Variant(
        Transport("joint", (0.03, 0.1, 0.3, 1.0), taus=(0.5,)),
        Transport("joint", (0.03, 0.1, 0.3, 1.0), taus=(1.0, 0.5)),
        CutMenu((1, 2, 3, 4, 6, 8, 12, 16), (0.6, 0.8, 1.0, 1.2, 1.5, 2.0)),
        heaviest=6,
    ),
}
"""As `abstraction.localization.VARIANTS`, with this benchmark's grids (PLOT, MCQA)."""


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
    """Of weights and activations; by default that of the files."""
    gib: float = 8.0
    """Memory for one chunk of activations."""


@dataclass(frozen=True)
class McqaBanks:
    """Pair banks. Questions never meet in two banks; only pairs whose prompts the network answers are kept."""

    data: str | None = None
    """jchang153/copycolors_mcqa or mib-bench/copycolors_mcqa, or a file with their rows; else prompts are made."""
    data_config: str | None = None
    """Configuration of a hub data set, such as 4_answer_choices."""
    fit: int = 384
    """Fit pairs; 200 in the paper, for each bank."""
    calibration: int = 192
    """Calibration pairs."""
    test: int = 600
    """Test pairs."""
    spare: float = 1.2
    """Pairs that are made for each that is needed, before those the network gets wrong are dropped."""


def _budget(**changes: int | float | bool | None) -> SearchConfig:
    usual = SearchConfig(batch_size=64, max_epochs=12, patience=12, cosine=True, sensitive_weight=0.5)
    return dataclasses.replace(usual, **changes)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Mcqa:
    """Multiple choice: find the answer pointer and the answer in a decoder's residual stream (PLOT, main benchmark).

    Runs on a small decoder that ships with the project; give --network.model for one with weights of your own.
    """

    seeds: str = "0"
    """Seeds of pairs and searches, as start:stop (stop excluded) or a comma list."""
    methods: tuple[McqaMethod, ...] = MCQA_METHODS
    """Methods to run; controls always run. Names ending in -v1 and -v4 are the paper's variants of that version."""
    position: Position = "last"
    """The token that is searched: the last one, the letter of the right choice, the token after it, the noun asked
    about."""
    scorer: Scorer = "strict"
    """For selection and scores, the same for every method: the largest logit of the whole vocabulary must be the
    letter, or the largest of the 26 letters."""
    quick: bool = False
    """A small version of everything that finishes in seconds."""
    explain: bool = False
    """Print what the run would cost, stage by stage, beside the authors' way of running it, and stop."""
    retrain: bool = False
    """Train the small decoder again, into --out, and stop."""
    out: Path | None = None
    """Run folder; by default runs/mcqa-<time>."""
    resume: bool = False
    """Continue the run in --out, skipping complete seeds."""
    control_draws: int = 10
    """Random subspaces per handle."""
    control_shuffles: int = 5
    """Shuffles of the sources per handle."""
    network: NetworkOptions = field(default_factory=NetworkOptions)
    banks: McqaBanks = field(default_factory=McqaBanks)
    stages: StageOptions = field(default_factory=lambda: StageOptions(resolutions=(32, 16, 8, 4, 2, 1)))
    das: DasOptions = field(
        default_factory=lambda: DasOptions((1, 2, 3, 4, 8, 16, 32), (2e-2,), restarts=2, training=_budget())
    )
    oblique: DasOptions = field(
        default_factory=lambda: DasOptions(
            (2, 4, 8, 16, 32), (2e-2,), restarts=2, parametrization="oblique", training=_budget()
        )
    )
    das_v1: DasOptions = field(
        default_factory=lambda: DasOptions(
            (1, 2, 4, 8, 16, 32, 64),
            (1e-3,),
            training=SearchConfig(batch_size=64, max_epochs=100, min_epochs=5, patience=1, margin=1e-3),
        )
    )
    masks: MaskOptions = field(default_factory=MaskOptions)
    boundless: BoundlessOptions = field(default_factory=BoundlessOptions)
    weights: WeightOptions = field(default_factory=WeightOptions)


def quick(config: Mcqa) -> Mcqa:
    """Shrink every axis that was not chosen by a flag; what remains still means something."""
    usual = Mcqa()

    def short(options: DasOptions, default: DasOptions) -> DasOptions:
        small = smaller(options, default, ranks=default.ranks[-5::2], restarts=1)
        return dataclasses.replace(small, training=smaller(options.training, default.training, max_epochs=6))

    chosen = ("plot-stage-a", "plot-native", "plot-pca", "plot-das", "full-das", "full-state")
    return dataclasses.replace(
        smaller(config, usual, control_draws=4, control_shuffles=2, methods=chosen),
        seeds=str(parse_seeds(config.seeds)[0]),
        banks=smaller(config.banks, usual.banks, fit=192, calibration=96, test=192),
        stages=smaller(config.stages, usual.stages, resolutions=(16, 4, 1)),
        das=short(config.das, usual.das),
        oblique=short(config.oblique, usual.oblique),
        das_v1=short(config.das_v1, usual.das_v1),
        masks=smaller(config.masks, usual.masks, sparsities=(0.0, 1e-3)),
        weights=smaller(config.weights, usual.weights, learning_rates=(0.05,)),
    )


def for_width(config: Mcqa, width: int, depth: int) -> Mcqa:
    """Give a network of another size the paper's grids for it, on every axis that was not chosen by a flag."""
    usual = Mcqa()
    if width <= 128:
        return config
    blocks = tuple(width // parts for parts in (3, 4, 6, 8, 9, 12, 16, 18))
    ranks = tuple(sorted({max(1, round(share * width)) for share in _SHARES}))
    bands = dataclasses.replace(usual.das.training, bands=max(1, min(6, depth // 4)))
    search = lambda options, default: dataclasses.replace(
        smaller(options, default, ranks=ranks), training=smaller(options.training, default.training, bands=bands.bands)
    )
    return dataclasses.replace(
        config,
        stages=smaller(config.stages, usual.stages, resolutions=blocks),
        das=search(config.das, usual.das),
        das_v1=search(config.das_v1, usual.das_v1),
    )


_SHARES = tuple(dims / 2304 for dims in (32, 64, 96, 128, 256, 512, 768, 1024, 1536, 2048, 2304))
"""Ranks of the paper's searches over the width of Gemma-2-2B."""
