"""The methods of the coarse-to-fine experiments, each on what the stages before it found.

Stage results are computed once and shared; every method is charged for the stages it builds on, as if it ran alone.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from abstraction.causal import PairBank
from abstraction.interventions import Basis, SiteBank, group_sites
from abstraction.interventions.bases import pca_bases
from abstraction.interventions.handles import handle_depths
from abstraction.interventions.sites import band_sites, feature_ranks, prefix_sites
from abstraction.localization import (
    VARIANTS,
    Boundless,
    BruteForce,
    Cosine,
    Localization,
    Mask,
    Nearest,
    Rule,
    Selection,
    Variant,
    Weights,
    coarse_stage,
    fine_stage,
    full_supports,
)
from abstraction.localization.calibration import calibrate_candidates
from abstraction.localization.guiding import (
    distinct_supports,
    evidence_supports,
    prefix_supports,
    selected_supports,
    state_supports,
    support_of,
)
from abstraction.localization.progressive import Refinement
from abstraction.localization.readwrite import ReadWrite, readwrite_handles, readwrite_start, stack_candidates
from abstraction.localization.rules import single_site_scores
from abstraction.localization.supports import Support
from abstraction.sharding import on_host
from experiments.harness.methods import (
    Bench,
    Outcome,
    Tell,
    Tries,
    coupling_details,
    full_state,
    localization_arrays,
    localization_times,
    rotations,
    run_search,
    same_time,
)
from experiments.harness.stages import CoarseToFine, WeightOptions
from experiments.harness.timing import Time, stopwatch


@dataclasses.dataclass
class Stages:
    """Stage A and Stage B on one bench, by protocol and kind of site.

    Attributes:
      config: the experiment's options.
      bench: one network and its recorded banks.
      known: `(bank, variable) -> ([N], [N, M])`, its value and what else is known on the bases; for `readwrite`.
      protocols: by name.
    """

    config: CoarseToFine
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

    def features(self, kind: str) -> Basis | None:
        """Return what sites of Stage B are made of: principal components, or None for native coordinates."""
        return self.basis if kind == "pca" else None

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


class Method(NamedTuple):
    """A method of the coarse-to-fine experiments.

    Attributes:
      run: `(stages, method, key, tell) -> Outcome`; test pairs are not in reach.
      protocol: `ours`, or the version of the paper whose variant this is.
      kind: of the sites of Stage B, where it matters.
    """

    run: "Callable[[Stages, Method, Array, Tell], Outcome]"
    protocol: str = "ours"
    kind: str = "native"


def _coarse(stages: Stages, method: Method, key: Array, tell: Tell) -> Outcome:
    """Take what Stage A chose."""
    (found, elapsed), selection = stages.coarse(method.protocol), stages.protocols[method.protocol].selection
    times = localization_times(stages.bench, found.grid, found.choice, (elapsed, None), selection)
    arrays = localization_arrays(found.effects, found.plans, found.choice)
    return Outcome(found.choice, times, coupling_details(found.plans), arrays)


def _fine(stages: Stages, method: Method, key: Array, tell: Tell) -> Outcome:
    """Take what Stage B chose."""
    selection = stages.protocols[method.protocol].selection
    return _fine_outcome(stages.bench, *stages.fine(method.protocol, method.kind), selection)


def _by_rule(rule: Callable[[Stages], Rule]) -> Callable[[Stages, Method, Array, Tell], Outcome]:
    """Run Stage B with another rule than transport."""
    return lambda stages, method, key, tell: _fine_outcome(
        stages.bench, *stages.fine(method.protocol, method.kind, rule(stages)), Selection()
    )


def _brute_force(stages: Stages) -> Rule:
    sites = stages.fine("ours", "native")[0].effects.sites
    return BruteForce(single_site_scores(stages.bench.network, stages.bench.fit, sites))


def _fitted(stages: Stages, method: Method, key: Array, tell: Tell) -> Outcome:
    """Fit weights on supports that hold much of the evidence."""
    shares = stages.config.stages.fitted_shares
    found, basis = stages.fine(method.protocol, method.kind)[0], stages.features(method.kind)
    supports = evidence_supports(stages.bench.tap, found, shares, basis)
    outcome = run_search(stages.bench, key, supports, fitted_weights(stages.config.weights), tell)
    return _charged(outcome, stages.fine(method.protocol, method.kind)[1])


def _full_search(stages: Stages, method: Method, key: Array, tell: Tell) -> Outcome:
    """Search every place."""
    supports = full_supports(stages.bench.tap, range(len(stages.bench.variables)))
    return run_search(stages.bench, key, supports, _das(stages, method), tell)


def _guided_search(stages: Stages, method: Method, key: Array, tell: Tell) -> Outcome:
    """Search the whole state where Stage A puts each variable; invertible maps also start at read/write directions."""
    supports = state_supports(stages.bench.tap, stages.depths(method.protocol))
    if method.kind == "oblique" and stages.known is not None:
        found, tap = fitted_directions(stages), stages.bench.tap
        supports += [readwrite_start(tap, v, directions) for v, directions in enumerate(found)]
    before = stages.coarse(method.protocol)[1]
    return _charged(run_search(stages.bench, key, supports, _das(stages, method), tell), before)


def _refined_search(stages: Stages, method: Method, key: Array, tell: Tell) -> Outcome:
    """Search what Stage B points at."""
    before = stages.fine(method.protocol, method.kind)[1]
    return _charged(run_search(stages.bench, key, refined_at(stages, method), _das(stages, method), tell), before)


def refined_at(stages: Stages, method: Method) -> list[Support]:
    """Return what Stage B chose, parts of its evidence or first components, and the whole state."""
    tap, found, depths = stages.bench.tap, stages.fine(method.protocol, method.kind)[0], stages.depths(method.protocol)
    basis, options = stages.features(method.kind), stages.config.stages
    if basis is None:
        parts = evidence_supports(tap, found, options.shares)
    else:
        parts = prefix_supports(tap, depths, options.prefixes, basis)
    return distinct_supports([*selected_supports(tap, found, basis), *parts, *state_supports(tap, depths)])


def _das(stages: Stages, method: Method) -> Tries:
    if method.kind == "oblique":
        return rotations(stages.config.oblique)
    return rotations(stages.config.das_v1 if method.protocol == "v1" else stages.config.das)


def fitted_weights(options: WeightOptions) -> Tries:
    """Try a weight per feature."""
    return Tries(Weights(), options.training, learning_rates=options.learning_rates)


def fitted_directions(stages: Stages) -> list[ReadWrite]:
    """Fit read and write directions of each variable on the factual runs of fit bases, where Stage A puts it.

    Raises:
      ValueError: the experiment does not say what is known of its variables.
    """
    bench, tap = stages.bench, stages.bench.sites.tap
    if stages.known is None:
        raise ValueError("got a read/write method, expected an experiment whose variables have one number each")
    states = np.asarray(on_host(bench.fit.runs.base[tap]), np.float64)
    return [
        readwrite_handles(states[depth], *stages.known(bench.fit.bank, name), depth=depth, tap=tap)
        for name, depth in zip(bench.variables, stages.depths("ours").tolist(), strict=True)
    ]


def _read_write(stages: Stages, method: Method, key: Array, tell: Tell) -> Outcome:
    bench = stages.bench
    with stopwatch() as elapsed:
        handles, owner, settings = stack_candidates(fitted_directions(stages))
        choice = calibrate_candidates(
            bench.network, bench.evidence, handles, owner, settings, cost=np.zeros(len(owner))
        )
    return _charged(Outcome(choice, same_time(elapsed), {"finite": True}, {}), stages.coarse("ours")[1])


def _masks(stages: Stages, method: Method, key: Array, tell: Tell) -> Outcome:
    options, tap = stages.config.masks, stages.bench.tap
    variables = range(len(stages.bench.variables))
    supports = full_supports(tap, variables)
    if method.kind == "pca":
        ranks = feature_ranks(stages.basis)
        supports = [
            support_of(tap, v, depth, range(rank), "all", stages.basis)
            for v in variables
            for depth, rank in enumerate(ranks)
        ]
    given = [support._replace(turn=False) for support in supports]
    tries = Tries(Mask(), options.training, learning_rates=(options.learning_rate,), sparsities=options.sparsities)
    return run_search(stages.bench, key, given, tries, tell)


def _boundless(stages: Stages, method: Method, key: Array, tell: Tell) -> Outcome:
    options, tap = stages.config.boundless, stages.bench.tap
    supports = full_supports(tap, range(len(stages.bench.variables)))
    featurizer = Boundless(boundary_rate=options.boundary_rate, penalty_weight=options.penalty)
    tries = Tries(featurizer, options.training, (tap.width,), (options.learning_rate,))
    return run_search(stages.bench, key, supports, tries, tell)


def _fine_outcome(bench: Bench, found: Refinement, elapsed: Time, selection: Selection) -> Outcome:
    times = localization_times(bench, found.grid, found.choice, (elapsed, None), selection)
    details = coupling_details(found.plans) | {"rows_without_mass": float(np.mean(found.fallback))}
    arrays = localization_arrays(found.effects, found.plans, found.choice)
    if found.grid.basis is not None:
        arrays["components"] = np.abs(np.asarray(found.choice.handles.weight))
    return Outcome(found.choice, times, details, arrays)


def _charged(outcome: Outcome, before: Time) -> Outcome:
    return outcome._replace(times={name: before + elapsed for name, elapsed in outcome.times.items()})


_SEARCHES = {
    "plot-stage-a": Method(_coarse),
    "plot-native": Method(_fine),
    "plot-pca": Method(_fine, kind="pca"),
    "plot-das": Method(_guided_search),
    "plot-native-das": Method(_refined_search),
    "plot-pca-das": Method(_refined_search, kind="pca"),
    "full-das": Method(_full_search),
}
METHODS: dict[str, Method] = {
    **_SEARCHES,
    **{
        f"{name}-{version}": way._replace(protocol=version)
        for version in ("v1", "v4")
        for name, way in _SEARCHES.items()
    },
    "plot-native-fitted": Method(_fitted),
    "plot-pca-fitted": Method(_fitted, kind="pca"),
    "plot-oblique-das": Method(_guided_search, kind="oblique"),
    "oblique-das": Method(_full_search, kind="oblique"),
    "readwrite": Method(_read_write),
    "dbm": Method(_masks),
    "dbm-pca": Method(_masks, kind="pca"),
    "boundless-das": Method(_boundless),
    "cosine": Method(_by_rule(lambda stages: Cosine(scope="joint"))),
    "brute-force": Method(_by_rule(_brute_force)),
    "row-argmin": Method(_by_rule(lambda stages: Nearest())),
    "full-state": Method(lambda stages, method, key, tell: full_state(stages.bench)),
}
"""By the names that flags and records give them; each experiment runs some of them."""
