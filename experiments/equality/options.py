"""Options of the experiments. Every field is a flag; its docstring is the flag's help."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import tyro

from abstraction.localization import SearchConfig
from abstraction.localization.das import Parametrization
from abstraction.localization.distances import CostMetric
from abstraction.localization.rules import Scope
from abstraction.localization.signatures import SignatureMode
from abstraction.tasks.equality import CalibrationPolicy

Method = Literal[
    "plot-ot",
    "plot-uot",
    "das",
    "plot-ot-paper",
    "plot-uot-paper",
    "das-paper",
    "cosine",
    "brute-force",
    "row-argmin",
    "gw",
    "fgw",
    "full-state",
]
METHODS: tuple[Method, ...] = get_args(Method)
_Options = TypeVar("_Options")


@dataclass(frozen=True)
class Backbone:
    """The network that is searched, and how it is trained."""

    width: int = 16
    """Units per hidden layer."""
    depth: int = 3
    """Hidden layers."""
    rows: int = 1_048_576
    """Training rows."""
    validation_rows: int = 10_000
    """Held-out rows."""
    batch_size: int = 1024
    """Rows per step."""
    epochs: int = 30
    """Most passes over the training rows."""
    stop_metric: Literal["worst_cell", "accuracy"] = "worst_cell"
    """What must reach the target: the accuracy of the worst of the four combinations of WX and YZ, or, as in the
    paper, accuracy on uniform rows, one in ten thousand of which has both true."""
    stop_target: float = 0.999
    """Value of the metric at which training may stop; 1 in the paper."""
    stop_epochs: int = 3
    """Epochs in a row at the target; 5 of at most 10 in the paper."""
    learning_rate: float = 1e-3
    """Adam's."""


@dataclass(frozen=True)
class EqualityBanks:
    """Pair banks. Test banks are always the paper's."""

    policy: Literal["independent", "paper"] = "independent"
    """Where methods other than *-paper take fit and calibration pairs from."""
    fit: int = 8000
    """Independent fit pairs, as many that change the output for neither variable, for WX alone and for YZ alone."""
    calibration: int = 3000
    """Independent calibration pairs, in the same proportions."""
    both: float = 0.02
    """Share of the independent pairs that change the output for both variables."""
    size: int = 1000
    """Pairs per bank of the paper."""
    fit_pool: int = 2048
    """Distinct rows that the paper's fit pairs are made of."""
    calibration_pool: int = 4096
    """Likewise for the paper's calibration pairs."""
    test_pool: int = 2048
    """Likewise for the test pairs."""
    calibration_policy: CalibrationPolicy = "shared_only"
    """Which pairs the paper's calibration bank holds."""


@dataclass(frozen=True)
class PlotOptions:
    """PLOT as this library does it, and the baselines that share its menu."""

    signature: SignatureMode = "prob_delta"
    """What is measured of an intervention's effect on the output."""
    cost: CostMetric = "sq_l2"
    """Distance between signatures."""
    unit: bool = False
    """Divide signatures by their norm first."""
    scope: Scope = "depth"
    """One coupling per depth, or one joint coupling of all sites."""
    epsilons: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """Entropic regularisation over the standard deviation of the costs in scope."""
    taus: tuple[float, ...] = (0.9, 0.5)
    """plot-uot: relaxations of the neural marginal, in (0, 1); 1 is balanced transport."""
    subset_sizes: tuple[int, ...] = tuple(range(1, 17))
    """K: how many of a row's heaviest sites to keep."""
    strengths: tuple[float, ...] = tuple(round(0.5 + 0.1 * step, 1) for step in range(16))
    """How far to move the average kept site; 1 takes the source's value."""
    iterations: int = 2000
    """Sinkhorn iterations."""
    gw_epsilons: tuple[float, ...] = (0.01, 0.03, 0.1)
    """gw and fgw: absolute regularisation; distances are scaled to a maximum of 1."""
    fused_alpha: float = 0.5
    """fgw: weight of the relational part."""


@dataclass(frozen=True)
class DasOptions:
    """A distributed alignment search over every rank."""

    ranks: tuple[int, ...] = tuple(range(1, 17))
    """Subspace sizes."""
    learning_rates: tuple[float, ...] = (1e-2,)
    """Adam's."""
    restarts: int = 1
    """Random starts per place, rank and learning rate."""
    strengths: tuple[float, ...] = (1.0,)
    """How far a trained subspace may move, chosen on calibration pairs; 1 is a swap."""
    parametrization: Parametrization = "cayley"
    """How the map stays orthogonal; oblique lets it be any invertible one."""
    training: SearchConfig = field(
        default_factory=lambda: SearchConfig(max_epochs=20, patience=20, cosine=True, sensitive_weight=0.7)
    )
    """How rotations are trained."""


@dataclass(frozen=True)
class PaperOptions:
    """The paper's variants."""

    epsilons: tuple[float, ...] = (0.01, 0.25, 2.0, 4.0, 8.0, 16.0)
    """Absolute regularisation."""
    beta_abstract: float = 1e6
    """plot-uot-paper: penalty of the abstract marginal."""
    beta_neural: tuple[float, ...] = (0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
    """plot-uot-paper: penalties of the neural marginal."""
    iterations: int = 500
    """Kernel iterations."""
    subset_sizes: int = 20
    """K runs from 1 to this."""
    strengths: int = 80
    """Strengths run from 1 to this, for the whole handle."""
    das: DasOptions = field(
        default_factory=lambda: DasOptions(learning_rates=(1e-3,), training=SearchConfig(max_epochs=1000, patience=3))
    )
    """The paper's search."""


@dataclass(frozen=True)
class HEQ:
    """Hierarchical equality: find WX = [W = X] and YZ = [Y = Z] in a trained MLP (PLOT, first table).

    Writes a run folder and prints its table. Half a minute per seed on two cores.
    """

    seeds: str = "1:11"
    """Seeds, as start:stop (stop excluded) or a comma list."""
    methods: tuple[Method, ...] = METHODS
    """Methods to run; controls always run."""
    quick: bool = False
    """A small version of everything that finishes in seconds: the first seed, short training, thin grids."""
    out: Path | None = None
    """Run folder; by default runs/heq-<time>."""
    resume: bool = False
    """Continue the run in --out, skipping complete seeds."""
    control_draws: int = 20
    """Random subspaces per handle."""
    control_shuffles: int = 5
    """Shuffles of the sources per handle."""
    backbone: Backbone = field(default_factory=Backbone)
    banks: EqualityBanks = field(default_factory=EqualityBanks)
    plot: PlotOptions = field(default_factory=PlotOptions)
    das: DasOptions = field(default_factory=DasOptions)
    paper: PaperOptions = field(default_factory=PaperOptions)


@dataclass(frozen=True)
class Tables:
    """Print the table of a run again, from its records alone."""

    out: Annotated[Path, tyro.conf.arg(help="The run folder.")]
    details: bool = False
    """One row per variable, and the chosen settings of every seed."""


@dataclass(frozen=True)
class Figures:
    """Draw the figures of a run again, from its records alone."""

    out: Annotated[Path, tyro.conf.arg(help="The run folder.")]


def quick(config: HEQ) -> HEQ:
    """Shrink every axis of the experiment that was not chosen by a flag; what remains still means something."""
    usual = HEQ()
    few = tuple(round(0.6 + 0.2 * step, 1) for step in range(6))
    das = {"ranks": (1, 2, 4, 8, 12)}
    return dataclasses.replace(
        smaller(config, usual, control_draws=5, control_shuffles=2),
        seeds=str(parse_seeds(config.seeds)[0]),
        backbone=smaller(config.backbone, usual.backbone, epochs=12),
        banks=smaller(config.banks, usual.banks, fit=2000, calibration=1500),
        plot=smaller(config.plot, usual.plot, epsilons=(0.03, 0.3, 1.0), taus=(0.5,), strengths=few),
        das=dataclasses.replace(
            smaller(config.das, usual.das, **das),
            training=smaller(config.das.training, usual.das.training, max_epochs=5),
        ),
        paper=dataclasses.replace(
            smaller(config.paper, usual.paper, beta_neural=(1.0,), subset_sizes=10, strengths=10),
            das=dataclasses.replace(
                smaller(config.paper.das, usual.paper.das, **das),
                training=smaller(config.paper.das.training, usual.paper.das.training, max_epochs=20),
            ),
        ),
    )


def smaller(options: _Options, usual: _Options, **small: Any) -> _Options:
    """Replace fields that still have their usual value."""
    changes = {name: value for name, value in small.items() if getattr(options, name) == getattr(usual, name)}
    return dataclasses.replace(options, **changes)  # pyright: ignore[reportArgumentType, reportCallIssue]


def parse_seeds(text: str) -> list[int]:
    """Read `1:11` (stop excluded) or `1,2,5`.

    Raises:
      ValueError: anything else, an empty range, or a seed given twice.
    """
    try:
        if ":" in text:
            start, stop = (int(part) for part in text.split(":"))
            seeds = list(range(start, stop))
        else:
            seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(
            f"got seeds {text!r}, expected start:stop with start below stop, or distinct numbers like 1,2,5"
        )
    return seeds
