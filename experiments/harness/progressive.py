"""The methods of the coarse-to-fine experiments, each on what the stages before it found.

Stage results are computed once and shared; every method is charged for the stages it builds on, as if it ran alone.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import jax
import numpy as np
from jaxtyping import Array

from abstraction.causal import PairBank
from abstraction.evaluation import full_state_handles
from abstraction.interventions import Basis, Handle, SiteBank, group_sites
from abstraction.interventions.bases import pca_bases
from abstraction.interventions.handles import at_one_depth, handle_depths
from abstraction.interventions.sites import band_sites, basis_at, feature_ranks, prefix_sites
from abstraction.localization import (
    VARIANTS,
    Boundless,
    BruteForce,
    Cosine,
    Localization,
    Mask,
    Nearest,
    Rotation,
    Rule,
    SearchConfig,
    Selection,
    Variant,
    Weights,
    candidate_grid,
    coarse_stage,
    fine_stage,
    full_supports,
)
from abstraction.localization.calibration import calibrate_candidates
from abstraction.localization.progressive import Refinement, chosen_rows, evidence_support
from abstraction.localization.readwrite import ReadWrite, readwrite_handles, readwrite_start, stack_candidates
from abstraction.localization.rules import single_site_scores
from abstraction.localization.searching import Featurizer
from abstraction.localization.supports import Support, coordinate_support, feature_support
from experiments.addition.options import BoundlessOptions, MaskOptions, StageOptions, WeightOptions
from experiments.equality.options import DasOptions
from experiments.harness.methods import (
    Bench,
    Outcome,
    coupling_details,
    localization_arrays,
    localization_times,
    run_search,
    same_time,
)
from experiments.harness.timing import Time, stopwatch

Report = Callable[[str], None]


class Options(typing.Protocol):
    """What methods read of an experiment's options."""

    @property
    def stages(self) -> StageOptions: ...
    @property
    def das(self) -> DasOptions: ...
    @property
    def das_v1(self) -> DasOptions: ...
    @property
    def oblique(self) -> DasOptions: ...
    @property
    def masks(self) -> MaskOptions: ...
    @property
    def boundless(self) -> BoundlessOptions: ...
    @property
    def weights(self) -> WeightOptions: ...


@dataclasses.dataclass
class Stages:
    """Stage A and Stage B on one bench, by protocol and kind of site.

    Attributes:
      config: the experiment's options.
      bench: one network and its recorded banks.
      known: `(bank, variable) -> ([N], [N, M])`, its value and what else is known on the bases; for `readwrite`.
      protocols: by name.
    """

    config: Options
    bench: Bench
    known: Callable[[PairBank, str], tuple[np.ndarray, np.ndarray]] | None = None
    protocols: Mapping[str, Variant] = dataclasses.field(default_factory=lambda: VARIANTS)
    _coarse: dict[str, tuple[Localization, Time]] = dataclasses.field(default_factory=dict)
    _fine: dict[tuple[str, str], tuple[Refinement, Time]] = dataclasses.field(default_factory=dict)

    @cached_property
    def basis(self) -> Basis:
        """Principal components per step, of the states of fit bases."""
        kind = self.config.stages.pca
        states = self.bench.fit.runs.base[self.bench.sites.tap]
        return pca_bases(states, centered=kind != "uncentered", whitened=kind == "whitened")

    def coarse(self, protocol: str) -> tuple[Localization, Time]:
        """Run Stage A."""
        if protocol not in self._coarse:
            bench = self.bench
            with stopwatch() as elapsed:
                found = coarse_stage(
                    bench.network, bench.fit, self.protocols[protocol], bench.signature, evidence=bench.evidence
                )
            self._coarse[protocol] = found, elapsed
        return self._coarse[protocol]

    def depths(self, protocol: str) -> np.ndarray:
        """Return the step Stage A chose for each variable."""
        return handle_depths(self.coarse(protocol)[0].choice.handles)

    def fine(self, protocol: str, kind: str, rule: Rule | None = None) -> tuple[Refinement, Time]:
        """Run Stage B after Stage A; the time is that of both."""
        name = (protocol, kind if rule is None else type(rule).__name__)
        if name not in self._fine:
            bench, chosen = self.bench, self.protocols[protocol]
            chosen = chosen if rule is None else dataclasses.replace(chosen, fine=rule)
            depths, before = self.depths(protocol), self.coarse(protocol)[1]
            with stopwatch() as elapsed:
                found = fine_stage(
                    bench.network, bench.fit, self.menus(kind), depths, chosen, bench.signature, evidence=bench.evidence
                )
            self._fine[name] = found, before + elapsed
        return self._fine[name]

    def menus(self, kind: str) -> dict[str, SiteBank]:
        """Return Stage B's sites by resolution; a resolution no state has is left out."""
        tap, options = self.bench.tap, self.config.stages
        if kind == "native":
            return {str(width): group_sites(tap, width) for width in options.resolutions if width <= tap.width}
        spans, most = prefix_sites if options.spans == "prefix" else band_sites, max(feature_ranks(self.basis))
        return {str(size): spans(tap, self.basis, size) for size in options.resolutions if size <= most}


def run_method(stages: Stages, method: str, key: Array, report: Report) -> Outcome:
    """Run one method; test pairs are not in reach."""
    config, bench = stages.config, stages.bench
    protocol = method.rsplit("-", 1)[-1] if method.endswith(("-v1", "-v4")) else "ours"
    name = method.removesuffix(f"-{protocol}")
    match name:
        case "plot-stage-a":
            return _coarse_outcome(stages, protocol)
        case "plot-native" | "plot-pca":
            selection = stages.protocols[protocol].selection
            return _fine_outcome(bench, *stages.fine(protocol, name.removeprefix("plot-")), selection)
        case "cosine" | "brute-force" | "row-argmin":
            return _fine_outcome(bench, *stages.fine("ours", "native", _other_rule(bench, stages, name)), Selection())
        case "plot-native-fitted" | "plot-pca-fitted":
            kind = name.split("-")[1]
            supports = evidence_supports(stages, "ours", kind, config.stages.fitted_shares)
            return _charged(weight_search(config, bench, key, supports, report), stages.fine("ours", kind)[1])
        case "readwrite":
            return _charged(_read_write(stages), stages.coarse("ours")[1])
        case "dbm" | "dbm-pca":
            return _masks(stages, key, name == "dbm-pca", report)
        case "boundless-das":
            return _boundless(stages, key, report)
        case "full-state":
            return _full_state(bench)
        case _:
            options = config.oblique if "oblique" in name else config.das_v1 if protocol == "v1" else config.das
            supports, before = search_supports(stages, name, protocol)
            return _charged(subspace_search(bench, key, options, supports, report), before)


def search_supports(stages: Stages, name: str, protocol: str) -> tuple[list[Support], Time]:
    """Return where a guided or full search looks, and the time of finding that out."""
    tap = stages.bench.tap
    variables = range(len(stages.bench.variables))
    if name in ("full-das", "oblique-das"):
        return full_supports(tap, variables), Time()
    full = [
        coordinate_support(tap, v, depth, range(tap.width), "full")
        for v, depth in enumerate(stages.depths(protocol).tolist())
    ]
    if name == "plot-das":
        return full, stages.coarse(protocol)[1]
    if name == "plot-oblique-das":
        found = fitted_directions(stages) if stages.known is not None else []
        starts = [readwrite_start(tap, v, directions) for v, directions in enumerate(found)]
        return [*full, *starts], stages.coarse(protocol)[1]
    kind = name.split("-")[1]
    selected = _selected_supports(stages, protocol, kind)
    if kind == "native":
        parts = evidence_supports(stages, protocol, kind, stages.config.stages.shares)
    else:
        parts = _prefix_supports(stages, protocol)
    return _distinct([*selected, *parts, *full]), stages.fine(protocol, kind)[1]


def subspace_search(
    bench: Bench, key: Array, options: DasOptions, supports: Sequence[Support], report: Report
) -> Outcome:
    """Train rotations, or invertible maps, of every support at every rank."""
    featurizer = Rotation(options.parametrization)
    return _search(
        bench, key, supports, featurizer, options.training, report, options.strengths,
        ranks=options.ranks, learning_rates=options.learning_rates, restarts=options.restarts,
    )  # fmt: skip


def weight_search(config: Options, bench: Bench, key: Array, supports: Sequence[Support], report: Report) -> Outcome:
    """Fit a weight per feature of every support."""
    options = config.weights
    rates = {"learning_rates": options.learning_rates}
    return _search(bench, key, supports, Weights(), options.training, report, (1.0,), ranks=(1,), **rates)


def _search(
    bench: Bench,
    key: Array,
    supports: Sequence[Support],
    featurizer: Featurizer,
    training: SearchConfig,
    report: Report,
    strengths: Sequence[float],
    **grid: Sequence[float] | int,
) -> Outcome:
    tap, (start_key, order_key) = bench.tap, jax.random.split(key)
    candidates = candidate_grid(start_key, tap, supports, **grid)  # pyright: ignore[reportArgumentType]
    progress = lambda epoch, running: report(f"search: epoch {epoch}, {running} running")
    outcome = run_search(bench, order_key, candidates, featurizer, training, strengths, progress)
    for setting in outcome.choice.settings:
        setting["support"] = supports[setting["support"]].name
    return outcome


def evidence_supports(stages: Stages, protocol: str, kind: str, shares: Sequence[float]) -> list[Support]:
    """Make supports of the features that hold shares of the evidence in each variable's row."""
    found, _ = stages.fine(protocol, kind)
    rows, sites = chosen_rows(found.plans, found.choice), found.effects.sites
    supports = []
    for variable, row in enumerate(rows):
        for share in shares:
            depth, features = evidence_support(row, sites, share)
            supports.append(_support(stages, kind, variable, depth, features, f"S{100 * share:.0f}"))
    return _distinct(supports)


def fitted_directions(stages: Stages) -> list[ReadWrite]:
    """Fit read and write directions of each variable on the factual runs of fit bases, where Stage A puts it.

    Raises:
      ValueError: the experiment does not say what is known of its variables.
    """
    bench, tap = stages.bench, stages.bench.sites.tap
    if stages.known is None:
        raise ValueError("got a read/write method, expected an experiment whose variables have one number each")
    states = np.asarray(bench.fit.runs.base[tap], np.float64)
    return [
        readwrite_handles(states[depth], *stages.known(bench.fit.bank, name), depth=depth, tap=tap)
        for name, depth in zip(bench.variables, stages.depths("ours").tolist(), strict=True)
    ]


def _read_write(stages: Stages) -> Outcome:
    bench = stages.bench
    with stopwatch() as elapsed:
        handles, owner, settings = stack_candidates(fitted_directions(stages))
        choice = calibrate_candidates(
            bench.network, bench.evidence, handles, owner, settings, cost=np.zeros(len(owner))
        )
    return Outcome(choice, same_time(elapsed), {"finite": True}, {})


def _masks(stages: Stages, key: Array, components: bool, report: Report) -> Outcome:
    options, tap = stages.config.masks, stages.bench.tap
    variables = range(len(stages.bench.variables))
    supports = full_supports(tap, variables)
    if components:
        ranks = feature_ranks(stages.basis)
        supports = [
            _support(stages, "pca", v, depth, range(rank), "all") for v in variables for depth, rank in enumerate(ranks)
        ]
    given = [support._replace(turn=False) for support in supports]
    return _search(
        stages.bench, key, given, Mask(), options.training, report, (1.0,),
        ranks=(1,), learning_rates=(options.learning_rate,), sparsities=options.sparsities,
    )  # fmt: skip


def _boundless(stages: Stages, key: Array, report: Report) -> Outcome:
    options, tap = stages.config.boundless, stages.bench.tap
    supports = full_supports(tap, range(len(stages.bench.variables)))
    featurizer = Boundless(boundary_rate=options.boundary_rate, penalty_weight=options.penalty)
    grid = {"ranks": (tap.width,), "learning_rates": (options.learning_rate,)}
    return _search(stages.bench, key, supports, featurizer, options.training, report, (1.0,), **grid)


def _full_state(bench: Bench) -> Outcome:
    """Swap the whole state at the step that calibration likes best."""
    every = full_state_handles(bench.tap)
    depths, variables = len(every.weight), len(bench.variables)
    with stopwatch() as elapsed:
        choice = calibrate_candidates(
            bench.network,
            bench.evidence,
            at_one_depth(Handle(bench.sites.tap, np.tile(every.weight, (variables, 1, 1)))),
            np.repeat(np.arange(variables), depths),
            [{"depth": depth} for depth in range(depths)] * variables,
            cost=np.tile(np.arange(depths, dtype=float), variables),
        )
    return Outcome(choice, same_time(elapsed), {}, {})


def _other_rule(bench: Bench, stages: Stages, name: str) -> Rule:
    if name == "cosine":
        return Cosine(scope="joint")
    if name == "row-argmin":
        return Nearest()
    sites = stages.fine("ours", "native")[0].effects.sites
    return BruteForce(single_site_scores(bench.network, bench.fit, sites))


def _coarse_outcome(stages: Stages, protocol: str) -> Outcome:
    found, elapsed = stages.coarse(protocol)
    times = localization_times(
        stages.bench, found.grid, found.choice, (elapsed, Time()), stages.protocols[protocol].selection
    )
    arrays = localization_arrays(found.effects, found.plans, found.choice)
    return Outcome(found.choice, times, coupling_details(found.plans), arrays)


def _fine_outcome(bench: Bench, found: Refinement, elapsed: Time, selection: Selection) -> Outcome:
    times = localization_times(bench, found.grid, found.choice, (elapsed, Time()), selection)
    details = coupling_details(found.plans) | {"rows_without_mass": float(np.mean(found.fallback))}
    arrays = localization_arrays(found.effects, found.plans, found.choice)
    if found.grid.basis is not None:
        arrays["components"] = np.abs(np.asarray(found.choice.handles.weight))
    return Outcome(found.choice, times, details, arrays)


def _selected_supports(stages: Stages, protocol: str, kind: str) -> list[Support]:
    """Make supports of the features that Stage B's handles move."""
    found, _ = stages.fine(protocol, kind)
    weight = np.asarray(found.choice.handles.weight)
    depths = handle_depths(found.choice.handles).tolist()
    return [
        _support(stages, kind, v, depth, np.flatnonzero(weight[v, depth]).tolist(), "selected")
        for v, depth in enumerate(depths)
    ]


def _prefix_supports(stages: Stages, protocol: str) -> list[Support]:
    ranks = feature_ranks(stages.basis)
    return [
        _support(stages, "pca", v, depth, range(min(size, ranks[depth])), f"first {size}")
        for v, depth in enumerate(stages.depths(protocol).tolist())
        for size in stages.config.stages.prefixes
    ]


def _support(stages: Stages, kind: str, variable: int, depth: int, features: Sequence[int], name: str) -> Support:
    tap = stages.bench.tap
    if kind == "native":
        return coordinate_support(tap, variable, int(depth), features, name)
    basis = basis_at(stages.basis, np.asarray(depth))
    return feature_support(tap, variable, int(depth), basis, features, name)


def _distinct(supports: Sequence[Support]) -> list[Support]:
    """Drop supports that repeat an earlier one of the same variable."""
    kept: dict[tuple, Support] = {}
    for support in supports:
        native = support.basis is None
        directions = support.features if native else support.encoder
        kept.setdefault((support.variable, support.depth, native, directions.tobytes()), support)
    return sorted(kept.values(), key=lambda support: support.variable)


def _charged(outcome: Outcome, before: Time) -> Outcome:
    return outcome._replace(times={name: before + elapsed for name, elapsed in outcome.times.items()})
