"""Options of certification."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from abstraction.reduction import METHODS as PRESETS
from experiments.harness import valid
from experiments.reduction.options import KEEP, METHODS, DataName, OfDigits, budgets

Study = Literal["certification", "paired", "sensitivity", "coverage", "adaptive", "margins"]
STUDIES: tuple[Study, ...] = get_args(Study)
CALIBRATION: dict[DataName, int] = {"mnist": 2000, "digits": 1000}
"""Training images a reduction looks at, where the option is left open."""
UNIQUE = valid.Valid(valid.INSIDE.holds, f"values {valid.INSIDE.expected}, each once", distinct=True)


@dataclass(frozen=True)
class PairedOptions:
    """Differences of methods on the same trials; all pairs of --methods."""

    keep: Annotated[float, KEEP] = 0.5
    """Units to keep, a share of the width up to 1, above it a count."""
    probability: Annotated[float, valid.INSIDE] = 0.5
    """Probability p with which a kept unit is interchanged."""


@dataclass(frozen=True)
class SensitivityOptions:
    """Three ways to measure disagreement."""

    methods: Annotated[tuple[str, ...], valid.one_of(METHODS)] = ("vbp", "cmr")
    """Methods, as in --methods."""
    keep: Annotated[float, KEEP] = 0.5
    """Units to keep, a share of the width up to 1, above it a count."""
    probabilities: Annotated[tuple[float, ...], valid.INSIDE] = (0.05, 0.1, 0.2, 0.5)
    """Probabilities p with which a kept unit is interchanged."""


@dataclass(frozen=True)
class CoverageOptions:
    """How often a confidence sequence covers the risk, over streams drawn from one large pool of trials."""

    method: Annotated[str, valid.one_of(METHODS)] = "vbp"
    """Method, as in --methods."""
    keep: Annotated[float, KEEP] = 0.5
    """Units to keep, a share of the width up to 1, above it a count."""
    probability: Annotated[float, valid.INSIDE] = 0.5
    """Probability p with which a kept unit is interchanged."""
    pool: Annotated[int, valid.COUNT] = 100_000
    """Trials in the pool; its mean loss is the risk to cover."""
    repetitions: Annotated[int, valid.COUNT] = 500
    """Streams, drawn from the pool with replacement."""
    trials: Annotated[int, valid.COUNT] = 2000
    """Trials per stream."""
    levels: Annotated[tuple[float, ...], valid.INSIDE] = (0.01, 0.05, 0.1)
    """Error probabilities delta."""
    every: Annotated[int, valid.COUNT] = 10
    """Trials between looks of the protocol that peeks; 1 looks after every trial."""


@dataclass(frozen=True)
class AdaptiveOptions:
    """Trials to a decision when masks are drawn adaptively."""

    repetitions: Annotated[int, valid.COUNT] = 20
    """Fresh streams per way of sampling; 5 in the published study."""
    trials: Annotated[int, valid.COUNT] = 5000
    """Trials after which a stream gives up."""


@dataclass(frozen=True)
class MarginOptions:
    """Margin certificates."""

    method: Annotated[str, valid.one_of(METHODS)] = "cmr"
    """Method, as in --methods."""
    probabilities: Annotated[tuple[float, ...], valid.BELOW_ONE] = (0.0, 0.1)
    """Probabilities p with which a kept unit is interchanged; 0 is observation."""


@dataclass(frozen=True)
class Certify(OfDigits):
    """Certify how faithful reduced networks are under interventions (certified interventional fidelity, UAI 2026).

    Reduces the second hidden layer of a digit classifier by several methods, runs dense and reduced network under the
    same interchange interventions, and counts the trials until a fidelity is certified. Writes a run folder and prints
    its tables, published numbers beside ours where the network is the published one. Two minutes per seed on
    MNIST on two cores.
    """

    seeds: str = "0"
    """Seeds, as start:stop (stop excluded) or a comma list; each is a network, a calibration split and all trials.
    Seed 0 calibrates on the published rows."""
    studies: Annotated[tuple[Study, ...], valid.one_of(STUDIES)] = STUDIES
    """Which studies to run; each has a table."""
    methods: Annotated[tuple[str, ...], valid.one_of(METHODS)] = (
        "cmr",
        "cmr-closed",
        "cip-affine",
        "cip-const",
        "vbp",
        "random",
    )
    """Ways to reduce; `abstraction.reduction.METHODS` says what each is."""
    keeps: Annotated[tuple[float, ...], KEEP] = (1.0, 0.75, 0.5, 0.25, 0.125, 0.0625)
    """Units to keep: up to 1 a share of the width, above it a count."""
    probabilities: Annotated[tuple[float, ...], UNIQUE] = (0.1, 0.2, 0.5)
    """Probabilities p with which a kept unit is interchanged."""
    fidelities: Annotated[tuple[float, ...], UNIQUE] = (0.9, 0.95, 0.99)
    """Fidelities F0 to certify or refute."""
    trials: Annotated[int, valid.COUNT] = 10_000
    """Trials per method, budget and p, after which a stream gives up."""
    orders: Annotated[int, valid.COUNT] = 20
    """Orders in which the same trials are counted; tables show the median and quartiles over them."""
    delta: Annotated[float, valid.INSIDE] = 0.05
    """Probability that a verdict or an interval is wrong."""
    alpha: Annotated[float, valid.BELOW_ONE] = 0.3
    """Share of the proposal in adaptive sampling; weights are at most 1 / (1 - alpha)."""
    calibration: Annotated[int | None, valid.COUNT] = None
    """Training images a reduction looks at; by default 2000, as published, and 1000 of the bundled digits."""
    paired: PairedOptions = PairedOptions()
    sensitivity: SensitivityOptions = SensitivityOptions()
    coverage: CoverageOptions = CoverageOptions()
    adaptive: AdaptiveOptions = AdaptiveOptions()
    margins: MarginOptions = MarginOptions()

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "keeps": (1.0, 0.5, 0.125), "probabilities": (0.1, 0.5), "orders": 5, "coverage.pool": 10_000,
            "coverage.repetitions": 100, "coverage.trials": 1000, "data.data": "digits", "network.epochs": 15,
            "sensitivity.probabilities": (0.1, 0.5), "adaptive.repetitions": 5, "adaptive.trials": 1000,
        },
        "paper": {
            "data.data": "mnist", "methods": ("cip-affine", "cip-const", "vbp", "random"), "orders": 1,
            "sensitivity.methods": ("vbp",), "adaptive.repetitions": 5,
        },
    }  # fmt: skip

    @property
    def calibration_images(self) -> int:
        """Count the training images that a reduction looks at."""
        return CALIBRATION[self.data.name] if self.calibration is None else self.calibration

    def check(self) -> None:
        """Refuse options that cannot work."""
        super().check()
        coverage = self.coverage
        if "paired" in self.studies:
            valid.require("--methods", self.methods, len(self.methods) > 1, "two or more to compare in pairs")
        most = f"1 to {coverage.trials}, the trials of a stream"
        valid.require("--coverage.every", coverage.every, coverage.every <= coverage.trials, most)
        if "margins" in self.studies:
            valid.require("--trials", self.trials, self.trials >= 2, "at least 2")
        kept = budgets("--keeps", self.keeps, self.width)
        for flag in ("paired", "sensitivity", "coverage"):
            kept += budgets(f"--{flag}.keep", (getattr(self, flag).keep,), self.width)
        used = {*self.methods, *self.sensitivity.methods, coverage.method, self.margins.method}
        if any(PRESETS[method].folding == "affine" and PRESETS[method].parents is None for method in used):
            count, widest = self.calibration_images, max((keep for keep in kept if keep < self.width), default=0)
            enough = f"more than {widest}, the most units kept: an affine map of them is fitted"
            valid.require("--calibration", count, count > widest, enough)
