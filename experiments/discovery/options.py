"""Options of the discovery experiment. Every field is a flag; its docstring is the flag's help."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from abstraction.localization import SearchConfig
from experiments.addition.options import AdderBackbone, Addition, AdditionBanks
from experiments.equality.options import HEQ, Backbone, DasOptions, EqualityBanks, parse_seeds, smaller
from experiments.harness.checks import check as check_equality
from experiments.harness.checks import check_addition, check_mcqa
from experiments.mcqa.options import Mcqa, McqaBanks

NAME = "discovery"
DENSE = "dense"
SURVIVES = 0.95
"""The least IIA of DAS, over variables and both kinds of pairs, at which the variables are still there."""
HARD = {
    "heq": ("sensitive", "specific"),
    "addition": ("sensitive", "invariant"),
    "mcqa": ("sensitive", "invariant"),
}
"""Pairs of a verdict: the output must change, or it must not although another variable differs."""

Task = Literal["heq", "addition", "mcqa"]
Reducer = Literal["cmr", "cmr-closed", "vbp", "random"]
Folder = Literal["obs-affine", "random-affine", "vbp-zero"]
Closed = Literal["cmr-closed", "vbp", "random"]
HIDDEN = 128
"""Units in each MLP of the decoder that ships with the project."""
_KEEPS = (16, 14, 12, 10, 8, 6, 4, 3, 2)


@dataclass(frozen=True)
class Reductions:
    """How the MLPs of hierarchical equality are reduced, all hidden layers to one width."""

    keeps: tuple[int, ...] = _KEEPS
    """Units to keep per hidden layer; all of them is the dense network."""
    methods: tuple[Reducer, ...] = get_args(Reducer)
    """cmr, the same without its refit, variance with means, and a random order with means."""
    calibration_rows: int = 4000
    """Inputs a reduction looks at: half uniform rows, half with every combination of WX and YZ equally often."""


@dataclass(frozen=True)
class EqualityPairs:
    """Pair banks of hierarchical equality: independent ones to fit and calibrate on, and the paper's to test on."""

    fit: int = 4000
    """Fit pairs, as many that change the output for neither variable, for WX alone and for YZ alone."""
    calibration: int = 2000
    """Calibration pairs, in the same proportions."""
    both: float = 0.02
    """Share of them that change the output for both variables."""
    size: int = 1000
    """Test pairs per variable and split."""
    test_pool: int = 2048
    """Distinct rows that the test pairs are made of."""


@dataclass(frozen=True)
class Folds:
    """How the GRUs of binary addition are reduced, by maps through the origin: their state starts at 0."""

    keeps: tuple[int, ...] = (16, 14, 12, 10, 8, 6, 5, 4, 3)
    """Units of the state to keep; all of them is the dense network."""
    methods: tuple[Folder, ...] = get_args(Folder)
    """Linear maps of the units that exact elimination keeps, linear maps of random units, and zero in place of the
    units of smallest mean square."""


@dataclass(frozen=True)
class Units:
    """How the decoder of multiple choice is reduced, the MLPs of all blocks to one width."""

    keeps: tuple[int, ...] = (128, 64, 32, 16, 8, 4, 2)
    """Units to keep per block; all of them is the dense network."""
    methods: tuple[Closed, ...] = get_args(Closed)
    """Exact elimination under interventions with affine folds, variance with means, and a random order with means."""
    calibration: int = 200
    """Prompts a reduction looks at."""
    evaluation: int = 1000
    """Prompts that accuracy is measured on, and that trials are drawn from."""
    trials: int = 1024
    """Interchanges per block that dense and reduced network are compared on."""


@dataclass(frozen=True)
class PlotGrid:
    """The grid of the transport method; smaller than that of `heq` and `addition`."""

    epsilons: tuple[float, ...] = (0.01, 0.1, 1.0)
    """Entropic regularisation over the standard deviation of the costs."""
    subset_sizes: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16)
    """K: how many of a row's heaviest sites to keep; those above the width are left out."""
    strengths: tuple[float, ...] = (0.6, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0)
    """How far to move the average kept site; 1 takes the source's value."""
    iterations: int = 1000
    """Sinkhorn iterations."""


def _search(**changes: int | float | None) -> SearchConfig:
    usual = SearchConfig(batch_size=128, patience=100, cosine=True)
    return replace(usual, **changes)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Discovery:
    """Discovery: reduce trained networks, and see whether the causal variables are still in what is left.

    Writes a run folder and prints its tables. Eight minutes per seed on two cores.
    """

    seeds: str = "1:4"
    """Seeds, as start:stop (stop excluded) or a comma list."""
    tasks: tuple[Task, ...] = get_args(Task)
    """Hierarchical equality (an MLP), binary addition (a GRU) and multiple choice (a decoder that ships with this)."""
    quick: bool = False
    """A small version of everything that finishes in seconds: the first seed, short training, few widths."""
    out: Path | None = None
    """Run folder; by default runs/discovery-<time>."""
    resume: bool = False
    """Continue the run in --out, skipping complete seeds."""
    control_draws: int = 10
    """Random subspaces per handle."""
    control_shuffles: int = 2
    """Shuffles of the sources per handle."""
    trials: int = 4096
    """Interchanges per layer that dense and reduced network are compared on."""
    equality: Reductions = field(default_factory=Reductions)
    backbone: Backbone = field(default_factory=Backbone)
    pairs: EqualityPairs = field(default_factory=EqualityPairs)
    plot: PlotGrid = field(default_factory=PlotGrid)
    das: DasOptions = field(
        default_factory=lambda: DasOptions(
            (1, 2, 4, 8, 12), (2e-2,), training=_search(max_epochs=10, sensitive_weight=0.7)
        )
    )
    carries: Folds = field(default_factory=Folds)
    adder: AdderBackbone = field(default_factory=AdderBackbone)
    adder_banks: AdditionBanks = field(default_factory=AdditionBanks)
    adder_das: DasOptions = field(
        default_factory=lambda: DasOptions(
            (1, 2, 3, 4),
            (2e-2,),
            restarts=2,
            parametrization="oblique",
            training=_search(batch_size=64, max_epochs=15, sensitive_weight=0.5),
        )
    )
    choice: Units = field(default_factory=Units)
    choice_banks: McqaBanks = field(default_factory=McqaBanks)
    choice_das: DasOptions = field(
        default_factory=lambda: DasOptions((2, 4, 8, 16, 32), (2e-2,), restarts=2, training=Mcqa().das.training)
    )


def quick(config: Discovery) -> Discovery:
    """Shrink every axis that was not chosen by a flag; what remains still means something."""
    usual = Discovery()
    grid = {"epsilons": (0.1, 1.0), "subset_sizes": (1, 2, 4, 8), "strengths": (0.8, 1.0, 1.4)}
    return replace(
        smaller(config, usual, control_draws=3, control_shuffles=1, trials=2048),
        seeds=str(parse_seeds(config.seeds)[0]),
        equality=smaller(config.equality, usual.equality, keeps=(16, 8, 3), methods=("cmr", "random")),
        backbone=smaller(config.backbone, usual.backbone, epochs=12),
        pairs=smaller(config.pairs, usual.pairs, fit=2000),
        plot=smaller(config.plot, usual.plot, **grid),
        das=_short(config.das, usual.das, (1, 4, 8), 5),
        carries=smaller(config.carries, usual.carries, keeps=(16, 8), methods=("obs-affine", "vbp-zero")),
        adder_das=_short(config.adder_das, usual.adder_das, (1, 2), 12),
        choice=smaller(
            config.choice, usual.choice, keeps=(128, 16), methods=("cmr-closed",), calibration=64, trials=256
        ),
        choice_banks=smaller(config.choice_banks, usual.choice_banks, fit=192, calibration=96, test=192),
        choice_das=_short(config.choice_das, usual.choice_das, (8, 32), 12),
    )


def _short(options: DasOptions, usual: DasOptions, ranks: tuple[int, ...], epochs: int) -> DasOptions:
    small = smaller(options, usual, ranks=ranks, restarts=1)
    return replace(small, training=smaller(options.training, usual.training, max_epochs=epochs))


def check(config: Discovery) -> None:
    """Refuse options that cannot work.

    Raises:
      ValueError: names the flag, what was got and what is valid.
    """
    distinct("--tasks", config.tasks)
    for flag in ("trials", "control_draws", "control_shuffles"):
        require(f"--{flag.replace('_', '-')}", getattr(config, flag), getattr(config, flag) >= 1, "at least 1")
    require("--plot.iterations", config.plot.iterations, config.plot.iterations >= 1, "at least 1")
    for name in ("epsilons", "strengths"):
        values = getattr(config.plot, name)
        require(f"--plot.{name}", values, bool(values) and min(values) > 0, "positive numbers")
    if "heq" in config.tasks:
        rows = config.equality.calibration_rows
        require("--equality.calibration-rows", rows, rows >= 8, "at least 8")
        _check_sweep("equality", config.equality, config.backbone.width, config.plot, config.das)
        pairs = EqualityBanks(**asdict(config.pairs))
        setup = HEQ(methods=("das",), backbone=config.backbone, banks=pairs, das=config.das)
        _checked(check_equality, setup, {"banks": "pairs"})
    if "addition" in config.tasks:
        _check_sweep("carries", config.carries, config.adder.width, config.plot, config.adder_das)
        das, options = (
            config.adder_das,
            {"backbone": config.adder, "banks": config.adder_banks, "das": config.adder_das},
        )
        # What is not run here must not be what is refused.
        others = {name: replace(getattr(Addition(), name), training=das.training) for name in _UNUSED}
        setup = Addition(seeds=config.seeds, oblique=das, das_v1=das, **options, **others)
        _checked(check_addition, setup, {"backbone": "adder", "banks": "adder-banks", "das": "adder-das"})

    if "mcqa" in config.tasks:
        distinct("--choice.keeps", config.choice.keeps)
        distinct("--choice.methods", config.choice.methods)
        least, most = min(config.choice.keeps), max(config.choice.keeps)
        require("--choice.keeps", config.choice.keeps, 1 <= least <= most <= HIDDEN, f"1 to {HIDDEN} units")
        for name in ("calibration", "evaluation", "trials"):
            value = getattr(config.choice, name)
            require(f"--choice.{name}", value, value >= 2, "at least 2")
        das = config.choice_das
        others = {name: replace(getattr(Mcqa(), name), training=das.training) for name in _UNUSED}
        setup = Mcqa(banks=config.choice_banks, das=das, oblique=das, das_v1=das, **others)
        _checked(check_mcqa, setup, {"banks": "choice-banks", "das": "choice-das"})


_UNUSED = ("masks", "boundless", "weights")


def _check_sweep(flag: str, sweep: Reductions | Folds, width: int, plot: PlotGrid, das: DasOptions) -> None:
    distinct(f"--{flag}.keeps", sweep.keeps)
    distinct(f"--{flag}.methods", sweep.methods)
    require(f"--{flag}.keeps", sweep.keeps, 1 <= min(sweep.keeps) <= max(sweep.keeps) <= width, f"1 to {width} units")
    least = min(sweep.keeps)
    expected = f"one of at most {least}, the least of --{flag}.keeps"
    name = "das" if flag == "equality" else "adder-das"
    require(f"--{name}.ranks", das.ranks, bool(das.ranks) and min(das.ranks) <= least, expected)
    sizes = plot.subset_sizes
    require("--plot.subset-sizes", sizes, bool(sizes) and 1 <= min(sizes) <= least, expected)


def _checked(test: Callable[[Any], None], config: Any, names: Mapping[str, str]) -> None:
    """Run another experiment's check, and name our flags in what it says."""
    try:
        test(config)
    except ValueError as error:
        text = str(error)
        for theirs, ours in names.items():
            text = text.replace(f"--{theirs}.", f"--{ours}.")
        raise ValueError(text) from None


def distinct(flag: str, values: Collection[Any]) -> None:
    require(flag, list(values), bool(values) and len(set(values)) == len(values), "at least one, each once")


def require(flag: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"got {flag} {value}, expected {expected}")
