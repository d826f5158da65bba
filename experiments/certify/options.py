"""Options of the certification experiment. Every field is a flag; its docstring is the flag's help."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from abstraction.evaluation.certification import CERTIFIED, REFUTED
from abstraction.reduction import METHODS as PRESETS
from experiments.equality.options import parse_seeds, smaller
from experiments.harness.checks import at_least, distinct, require, within
from experiments.reduction.digits import RECIPES, check_network, data_name
from experiments.reduction.options import Data, DataName, MethodName, NetworkOptions

Study = Literal["certification", "paired", "sensitivity", "coverage", "adaptive", "margins"]
STUDIES: tuple[Study, ...] = get_args(Study)
CALIBRATION: dict[DataName, int] = {"mnist": 2000, "digits": 1000}
"""Training images a reduction looks at, where the option is left open."""


class Case(NamedTuple):
    """A decision that adaptive sampling is tried on.

    Attributes:
      method: how the network was reduced.
      keep: share of the units kept.
      probability: p.
      fidelity: the threshold.
      verdict: what is to be shown.
    """

    method: str
    keep: float
    probability: float
    fidelity: float
    verdict: int


ADAPTIVE_CASES = {
    "certify": Case("vbp", 0.25, 0.1, 0.9, CERTIFIED),
    "refute": Case("cip-affine", 0.5, 0.5, 0.7, REFUTED),
}
"""The published ones, of 128 and 256 units: a borderline certification and an exclusion."""


@dataclass(frozen=True)
class PairedOptions:
    """Differences of methods on the same trials; all pairs of --methods."""

    keep: float = 0.5
    """Units to keep, a share of the width up to 1, above it a count."""
    probability: float = 0.5
    """Probability p with which a kept unit is interchanged."""


@dataclass(frozen=True)
class SensitivityOptions:
    """Three ways to measure disagreement."""

    methods: tuple[MethodName, ...] = ("vbp", "cmr")
    """Methods, as in --methods."""
    keep: float = 0.5
    """Units to keep, a share of the width up to 1, above it a count."""
    probabilities: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
    """Probabilities p with which a kept unit is interchanged."""


@dataclass(frozen=True)
class CoverageOptions:
    """How often a confidence sequence covers the risk, over streams drawn from one large pool of trials."""

    method: MethodName = "vbp"
    """Method, as in --methods."""
    keep: float = 0.5
    """Units to keep, a share of the width up to 1, above it a count."""
    probability: float = 0.5
    """Probability p with which a kept unit is interchanged."""
    pool: int = 100_000
    """Trials in the pool; its mean loss is the risk to cover."""
    repetitions: int = 500
    """Streams, drawn from the pool with replacement."""
    trials: int = 2000
    """Trials per stream."""
    levels: tuple[float, ...] = (0.01, 0.05, 0.1)
    """Error probabilities delta."""
    every: int = 10
    """Trials between looks of the protocol that peeks; 1 looks after every trial."""


@dataclass(frozen=True)
class AdaptiveOptions:
    """Trials to a decision when masks are drawn adaptively."""

    repetitions: int = 20
    """Fresh streams per way of sampling; 5 in the published study."""
    trials: int = 5000
    """Trials after which a stream gives up."""


@dataclass(frozen=True)
class MarginOptions:
    """Margin certificates."""

    method: MethodName = "cmr"
    """Method, as in --methods."""
    probabilities: tuple[float, ...] = (0.0, 0.1)
    """Probabilities p with which a kept unit is interchanged; 0 is observation."""


@dataclass(frozen=True)
class Certify:
    """Certify how faithful reduced networks are under interventions (certified interventional fidelity, UAI 2026).

    Reduces the second hidden layer of a digit classifier by several methods, runs dense and reduced network under the
    same interchange interventions, and counts the trials until a fidelity is certified. Writes a run folder and prints
    its tables, published numbers beside ours where the network is the published one. Two minutes per seed on
    MNIST on two cores.
    """

    seeds: str = "0"
    """Seeds, as start:stop (stop excluded) or a comma list; each is a network, a calibration split and all trials.
    Seed 0 calibrates on the published rows."""
    studies: tuple[Study, ...] = STUDIES
    """Which studies to run; each has a table."""
    methods: tuple[MethodName, ...] = ("cmr", "cmr-closed", "cip-affine", "cip-const", "vbp", "random")
    """Ways to reduce; `abstraction.reduction.METHODS` says what each is."""
    keeps: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25, 0.125, 0.0625)
    """Units to keep: up to 1 a share of the width, above it a count."""
    probabilities: tuple[float, ...] = (0.1, 0.2, 0.5)
    """Probabilities p with which a kept unit is interchanged."""
    fidelities: tuple[float, ...] = (0.9, 0.95, 0.99)
    """Fidelities F0 to certify or refute."""
    trials: int = 10_000
    """Trials per method, budget and p, after which a stream gives up."""
    orders: int = 20
    """Orders in which the same trials are counted; tables show the median and quartiles over them."""
    delta: float = 0.05
    """Probability that a verdict or an interval is wrong."""
    alpha: float = 0.3
    """Share of the proposal in adaptive sampling; weights are at most 1 / (1 - alpha)."""
    calibration: int | None = None
    """Training images a reduction looks at; by default 2000, as published, and 1000 of the bundled digits."""
    quick: bool = False
    """A small version of everything that finishes in seconds: the first seed, the bundled digits unless --data,
    --data-dir, --download or a checkpoint ask for others, three budgets, few repetitions."""
    out: Path | None = None
    """Run folder; by default runs/certify-<time>."""
    resume: bool = False
    """Continue the run in --out, skipping complete seeds."""
    data: Data = field(default_factory=Data)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    paired: PairedOptions = field(default_factory=PairedOptions)
    sensitivity: SensitivityOptions = field(default_factory=SensitivityOptions)
    coverage: CoverageOptions = field(default_factory=CoverageOptions)
    adaptive: AdaptiveOptions = field(default_factory=AdaptiveOptions)
    margins: MarginOptions = field(default_factory=MarginOptions)


def quick(config: Certify) -> Certify:
    """Shrink every axis of the experiment that was not chosen by a flag; what remains still means something."""
    usual = Certify()
    own = config.network.checkpoint is not None
    few = smaller(config, usual, keeps=(1.0, 0.5, 0.125), probabilities=(0.1, 0.5), orders=5)
    small_coverage = {"pool": 10_000, "repetitions": 100, "trials": 1000}
    return dataclasses.replace(
        few,
        seeds=str(parse_seeds(config.seeds)[0]),
        data=Data("digits") if config.data == Data() and not own else config.data,
        network=config.network if own else smaller(config.network, usual.network, epochs=15),
        sensitivity=smaller(config.sensitivity, usual.sensitivity, probabilities=(0.1, 0.5)),
        coverage=smaller(config.coverage, usual.coverage, **small_coverage),
        adaptive=smaller(config.adaptive, usual.adaptive, repetitions=5, trials=1000),
    )


def check(config: Certify) -> None:
    """Refuse options that cannot work.

    Raises:
      ValueError: names the flag, what was got and what is valid.
    """
    distinct("--studies", config.studies)
    _check_methods("--methods", config.methods)
    within("--probabilities", config.probabilities, lambda p: 0 < p < 1, "values in (0, 1)")
    within("--fidelities", config.fidelities, lambda fidelity: 0 < fidelity < 1, "values in (0, 1)")
    distinct("--probabilities", [str(p) for p in config.probabilities])
    distinct("--fidelities", [str(fidelity) for fidelity in config.fidelities])
    for name in ("trials", "orders"):
        at_least(f"--{name}", getattr(config, name), 1)
    require("--delta", config.delta, lambda delta: 0 < delta < 1, "a value in (0, 1)")
    require("--alpha", config.alpha, lambda alpha: 0 <= alpha < 1, "a value in [0, 1)")
    check_network(config.network)
    _check_studies(config)
    width = config.network.width or RECIPES[data_name(config.data)].width
    _check_keeps(config, width)


def kept_units(keep: float, width: int) -> int:
    """Count the units that a share of the width, up to 1, or a count, above 1, keeps."""
    return round(keep * width) if keep <= 1 else int(keep)


def calibration_count(config: Certify, name: DataName) -> int:
    """Count the training images that a reduction looks at."""
    return CALIBRATION[name] if config.calibration is None else config.calibration


def split_name(keep: int, probability: float, *rest: object) -> str:
    """Name what a number was measured on: `keep256-p0.1-iid-betting-F0.95`."""
    return "-".join([f"keep{keep}", f"p{probability:g}", *map(str, rest)])


def _check_methods(flag: str, methods: tuple[str, ...]) -> None:
    within(flag, methods, lambda method: method in PRESETS, f"some of {', '.join(PRESETS)}")
    distinct(flag, methods)


def _check_studies(config: Certify) -> None:
    coverage, margins = config.coverage, config.margins
    share, above = (lambda p: 0 < p < 1), "a value in (0, 1)"
    if "paired" in config.studies:
        require("--methods", list(config.methods), lambda methods: len(methods) > 1, "two or more to compare in pairs")
    require("--paired.probability", config.paired.probability, share, above)
    _check_methods("--sensitivity.methods", config.sensitivity.methods)
    within("--sensitivity.probabilities", config.sensitivity.probabilities, share, "values in (0, 1)")
    _check_methods("--coverage.method", (coverage.method,))
    require("--coverage.probability", coverage.probability, share, above)
    within("--coverage.levels", coverage.levels, share, "values in (0, 1)")
    for name in ("pool", "repetitions", "trials"):
        at_least(f"--coverage.{name}", getattr(coverage, name), 1)
    most = f"a value from 1 to {coverage.trials}, the trials of a stream"
    require("--coverage.every", coverage.every, lambda every: 1 <= every <= coverage.trials, most)
    for name in ("repetitions", "trials"):
        at_least(f"--adaptive.{name}", getattr(config.adaptive, name), 1)
    _check_methods("--margins.method", (margins.method,))
    within("--margins.probabilities", margins.probabilities, lambda p: 0 <= p < 1, "values in [0, 1)")
    if "margins" in config.studies:
        at_least("--trials", config.trials, 2)


def _check_keeps(config: Certify, width: int) -> None:
    expected = f"shares in (0, 1] of at least one unit, or whole numbers from 2 to {width}, the width"
    fits = lambda keep: 1 <= kept_units(keep, width) <= width if 0 < keep <= 1 else 2 <= keep <= width and keep % 1 == 0
    within("--keeps", config.keeps, fits, expected)
    distinct("--keeps", [str(kept_units(keep, width)) for keep in config.keeps])
    for flag in ("paired", "sensitivity", "coverage"):
        require(f"--{flag}.keep", getattr(config, flag).keep, fits, expected)
    count = calibration_count(config, data_name(config.data))
    at_least("--calibration", count, 1)
    used = {*config.methods, *config.sensitivity.methods, config.coverage.method, config.margins.method}
    kept = [kept_units(keep, width) for keep in (*config.keeps, config.paired.keep, config.sensitivity.keep)]
    if any(PRESETS[method].folding == "affine" and PRESETS[method].parents is None for method in used):
        most = max((keep for keep in kept if keep < width), default=0)
        enough = f"more than {most}, the most units kept: an affine map of them is fitted"
        require("--calibration", count, lambda count: count > most, enough)
