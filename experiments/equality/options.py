"""Options of hierarchical equality."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from abstraction.localization import SearchConfig
from abstraction.localization.distances import CostMetric
from abstraction.localization.rules import Scope
from abstraction.localization.signatures import SignatureMode
from abstraction.tasks.equality import CalibrationPolicy
from experiments.harness import valid
from experiments.harness.options import DasOptions, Localization, Names

METHODS = (
    "plot-ot", "plot-uot", "das", "plot-ot-paper", "plot-uot-paper", "das-paper", "cosine", "brute-force", "row-argmin",
    "gw", "fgw", "full-state",
)  # fmt: skip
PAPER_METHODS = ("plot-ot-paper", "plot-uot-paper", "das-paper")
MOST_ROWS = 46341
"""Largest pool whose ordered pairs can be numbered by 32-bit integers."""
POOL = valid.Valid(lambda rows: 2 <= rows <= MOST_ROWS, f"2 to {MOST_ROWS} rows")


@dataclass(frozen=True)
class Backbone:
    """The network that is searched, and how it is trained."""

    width: Annotated[int, valid.COUNT] = 16
    """Units per hidden layer."""
    depth: Annotated[int, valid.COUNT] = 3
    """Hidden layers."""
    rows: int = 1_048_576
    """Training rows."""
    validation_rows: Annotated[int, valid.least(4)] = 10_000
    """Held-out rows."""
    batch_size: Annotated[int, valid.COUNT] = 1024
    """Rows per step."""
    epochs: Annotated[int, valid.COUNT] = 30
    """Most passes over the training rows."""
    stop_metric: Literal["worst_cell", "accuracy"] = "worst_cell"
    """What must reach the target: the accuracy of the worst of the four combinations of WX and YZ, or, as in the
    paper, accuracy on uniform rows, one in ten thousand of which has both true."""
    stop_target: Annotated[float, valid.SHARE] = 0.999
    """Value of the metric at which training may stop; 1 in the paper."""
    stop_epochs: Annotated[int, valid.COUNT] = 3
    """Epochs in a row at the target; 5 of at most 10 in the paper."""
    learning_rate: Annotated[float, valid.POSITIVE] = 1e-3
    """Adam's."""


@dataclass(frozen=True)
class EqualityPairs:
    """Independent pair banks to fit and calibrate on, and the paper's to test on."""

    fit: Annotated[int, valid.least(3)] = 8000
    """Independent fit pairs, as many that change the output for neither variable, for WX alone and for YZ alone."""
    calibration: Annotated[int, valid.least(3)] = 3000
    """Independent calibration pairs, in the same proportions."""
    both: Annotated[float, valid.BELOW_ONE] = 0.02
    """Share of the independent pairs that change the output for both variables."""
    size: Annotated[int, valid.least(2)] = 1000
    """Pairs per bank of the paper."""
    test_pool: Annotated[int, POOL] = 2048
    """Distinct rows that the test pairs are made of."""


@dataclass(frozen=True)
class EqualityBanks(EqualityPairs):
    """Pair banks. Test banks are always the paper's."""

    policy: Literal["independent", "paper"] = "independent"
    """Where methods other than *-paper take fit and calibration pairs from."""
    fit_pool: Annotated[int, POOL] = 2048
    """Distinct rows that the paper's fit pairs are made of."""
    calibration_pool: Annotated[int, POOL] = 4096
    """Likewise for the paper's calibration pairs."""
    calibration_policy: CalibrationPolicy = "shared_only"
    """Which pairs the paper's calibration bank holds."""


@dataclass(frozen=True)
class PlotGrid:
    """The grid of the transport method."""

    epsilons: Annotated[tuple[float, ...], valid.POSITIVE] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """Entropic regularisation over the standard deviation of the costs in scope."""
    subset_sizes: Annotated[tuple[int, ...], valid.COUNT] = tuple(range(1, 17))
    """K: how many of a row's heaviest sites to keep."""
    strengths: Annotated[tuple[float, ...], valid.POSITIVE] = tuple(round(0.5 + 0.1 * step, 1) for step in range(16))
    """How far to move the average kept site; 1 takes the source's value."""
    iterations: Annotated[int, valid.COUNT] = 2000
    """Sinkhorn iterations."""


@dataclass(frozen=True)
class PlotOptions(PlotGrid):
    """PLOT as this library does it, and the baselines that share its menu."""

    signature: SignatureMode = "prob_delta"
    """What is measured of an intervention's effect on the output."""
    cost: CostMetric = "sq_l2"
    """Distance between signatures."""
    unit: bool = False
    """Divide signatures by their norm first."""
    scope: Scope = "depth"
    """One coupling per depth, or one joint coupling of all sites."""
    taus: Annotated[tuple[float, ...], valid.INSIDE] = (0.9, 0.5)
    """plot-uot: relaxations of the neural marginal, in (0, 1); 1 is balanced transport."""
    gw_epsilons: Annotated[tuple[float, ...], valid.POSITIVE] = (0.01, 0.03, 0.1)
    """gw and fgw: absolute regularisation; distances are scaled to a maximum of 1."""
    fused_alpha: Annotated[float, valid.INSIDE] = 0.5
    """fgw: weight of the relational part."""


@dataclass(frozen=True)
class PaperOptions:
    """The paper's variants."""

    epsilons: Annotated[tuple[float, ...], valid.POSITIVE] = (0.01, 0.25, 2.0, 4.0, 8.0, 16.0)
    """Absolute regularisation."""
    beta_abstract: Annotated[float, valid.POSITIVE] = 1e6
    """plot-uot-paper: penalty of the abstract marginal."""
    beta_neural: Annotated[tuple[float, ...], valid.POSITIVE] = (0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
    """plot-uot-paper: penalties of the neural marginal."""
    iterations: Annotated[int, valid.COUNT] = 500
    """Kernel iterations."""
    subset_sizes: Annotated[int, valid.COUNT] = 20
    """K runs from 1 to this."""
    strengths: Annotated[int, valid.COUNT] = 80
    """Strengths run from 1 to this, for the whole handle."""
    das: DasOptions = DasOptions(learning_rates=(1e-3,), training=SearchConfig(max_epochs=1000, patience=3))
    """The paper's search."""


@dataclass(frozen=True)
class Equality(Localization):
    """Hierarchical equality: find WX = [W = X] and YZ = [Y = Z] in a trained MLP (PLOT, first table).

    Writes a run folder and prints its table. Half a minute per seed on two cores.
    """

    seeds: str = "1:11"
    """Seeds, as start:stop (stop excluded) or a comma list."""
    methods: Annotated[Names, valid.one_of(METHODS)] = METHODS
    """Methods to run; controls always run. Names ending in -paper are the paper's variants."""
    backbone: Backbone = Backbone()
    banks: EqualityBanks = EqualityBanks()
    plot: PlotOptions = PlotOptions()
    das: DasOptions = DasOptions()
    published: PaperOptions = PaperOptions()

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "seeds": "1", "control_draws": 5, "control_shuffles": 2, "backbone.epochs": 12, "banks.fit": 2000,
            "banks.calibration": 1500, "plot.epsilons": (0.03, 0.3, 1.0), "plot.taus": (0.5,),
            "plot.strengths": (0.6, 0.8, 1.0, 1.2, 1.4, 1.6), "das.ranks": (1, 2, 4, 8, 12),
            "das.training.max_epochs": 5, "published.beta_neural": (1.0,), "published.subset_sizes": 10,
            "published.strengths": 10,
            "published.das.ranks": (1, 2, 4, 8, 12), "published.das.training.max_epochs": 20,
        },
        "paper": {
            "methods": (*PAPER_METHODS, "full-state"), "banks.policy": "paper", "backbone.stop_metric": "accuracy",
            "backbone.stop_target": 1.0, "backbone.stop_epochs": 5, "backbone.epochs": 10,
        },
    }  # fmt: skip

    def check(self) -> None:
        """Refuse options that cannot work."""
        super().check()
        width, sites = self.backbone.width, self.backbone.width * self.backbone.depth
        valid.require(
            "--backbone.rows", self.backbone.rows, self.backbone.rows >= self.backbone.batch_size, "a batch or more"
        )
        methods = set(self.methods)
        if methods - {"das", *PAPER_METHODS, "full-state"}:
            valid.most_of("--plot.subset-sizes", self.plot.subset_sizes, sites, "the sites")
        if methods & {"plot-ot-paper", "plot-uot-paper"}:
            valid.most_of("--published.subset-sizes", self.published.subset_sizes, sites, "the sites")
        ours = self.banks.fit if self.banks.policy == "independent" else self.banks.size
        if "das" in methods:
            self.das.check("--das", width, ours)
        if "das-paper" in methods:
            self.published.das.check("--published.das", width, self.banks.size)
