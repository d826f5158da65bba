"""PLOT, single stage, as the paper's algorithm reads (PLOT, Alg. 1):

    1. measure   effect signatures of the variables and of the sites, and the cost between them
    2. couple    variables to sites by entropic optimal transport
    3. cut       each row of the plan into handles: top K, renormalised, times a strength
    4. calibrate choose one handle per variable on pairs that are not test pairs

and alignment search under the same evidence. Testing is not part of the pipeline: a chosen handle goes to
`abstraction.evaluation.judge` once, and never comes back. What was chosen is scored on the evidence beside its
controls, so that a network without the variable says so; a choice was made by that score, so it is an optimistic one.

Step 2 is a rule (`abstraction.localization.rules`): transport, or one of the alternatives to it. The stages that go
from coarse to fine are in `progressive`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from abstraction.checks import kind, number, positive, whole
from abstraction.evaluation import Recorded, Repeats, Score
from abstraction.evaluation.judging import score_handles
from abstraction.interventions import Handle, SiteBank
from abstraction.localization.calibration import (
    SELECTION,
    Choice,
    Evidence,
    Selection,
    calibrate,
    calibrate_candidates,
    checked_evidence,
)
from abstraction.localization.cutting import CutMenu, Grid, handle_grid
from abstraction.localization.das import Rotation
from abstraction.localization.effects import Effects, check_heard, measure_effects
from abstraction.localization.rules import Plans, Rule, Transport
from abstraction.localization.screening import Screened, screen_sites
from abstraction.localization.searching import Featurizer, SearchConfig, Searched, train_candidates
from abstraction.localization.signatures import SIGNATURE, Signature
from abstraction.localization.supports import Candidates, candidate_grid, full_supports
from abstraction.models import Network, Tap
from abstraction.randomness import check_key, named_key

MENU = CutMenu(tuple(range(1, 17)), tuple(round(0.5 + 0.1 * step, 1) for step in range(16)))
"""Up to 16 sites, each moved from half way to twice as far as the source."""

_TRANSPORT, _ROTATION, _CONTROLS = Transport(), Rotation(), Repeats()
_SEARCH_CONFIG = SearchConfig(max_epochs=20, patience=20, cosine=True, sensitive_weight=0.7)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The four steps of PLOT.

    Attributes:
      rule: how to couple.
      menu: how to cut; sizes beyond the number of sites are left out.
      signature: how effects are measured.
      selection: how to choose.
      controls: how often the controls of the choice are drawn; None leaves them out.
      screen: share of the sites to measure for each variable, those of the highest first-order scores (`screen_sites`);
        None measures all.

    Raises:
      ValueError: an option of another kind, or a share out of range.
    """

    rule: Rule = _TRANSPORT
    menu: CutMenu = MENU
    signature: Signature = SIGNATURE
    selection: Selection = SELECTION
    controls: Repeats | None = _CONTROLS
    screen: float | None = None

    def __post_init__(self) -> None:
        if self.screen is not None and not number("screened share of sites", self.screen, 0, 1):
            raise ValueError("got a screened share of 0 of the sites, expected more, or None for all")
        kind("rule", self.rule, Rule)
        kind("menu", self.menu, CutMenu)
        kind("signature", self.signature, Signature)
        kind("selection", self.selection, Selection)
        kind("controls", self.controls, (Repeats, type(None)))


@dataclasses.dataclass(frozen=True)
class Search:
    """How an alignment search goes.

    Attributes:
      featurizer: what is trained, by default a rotation (DAS).
      config: how to train.
      strengths: how far trained handles may move, chosen with everything else.
      controls: how often the controls of the choice are drawn; None leaves them out.

    Raises:
      ValueError: no strength, one that is not positive and finite, or an option of another kind.
    """

    featurizer: Featurizer = _ROTATION
    config: SearchConfig = _SEARCH_CONFIG
    strengths: tuple[float, ...] = (1.0,)
    controls: Repeats | None = _CONTROLS

    def __post_init__(self) -> None:
        kind("featurizer", self.featurizer, Featurizer)
        kind("search config", self.config, SearchConfig)
        positive("strengths", self.strengths)
        kind("controls", self.controls, (Repeats, type(None)))


RECIPE, SEARCH = Recipe(), Search()


class Localization(NamedTuple):
    """What PLOT found.

    Attributes:
      effects: what was measured.
      plans: every coupling tried.
      grid: every handle tried.
      choice: the handles chosen.
      score: the choice on its evidence, beside its controls; None where none were asked for.
      screened: which sites were measured, and why; None where all were.
    """

    effects: Effects
    plans: Plans
    grid: Grid
    choice: Choice
    score: Score | None = None
    screened: Screened | None = None

    @property
    def handles(self) -> Handle:
        """One handle per variable."""
        return self.choice.handles

    @property
    def agreement(self) -> Float[np.ndarray, " V"] | None:
        """Spearman's correlation of first-order scores and transport costs, over what was measured; None without."""
        return None if self.screened is None else self.screened.agreement(-np.asarray(self.effects.cost))


class AlignmentSearch(NamedTuple):
    """What an alignment search found.

    Attributes:
      searched: every trained handle.
      choice: the handles chosen.
      score: the choice on its evidence, beside its controls; None where none were asked for.
    """

    searched: Searched
    choice: Choice
    score: Score | None = None

    @property
    def handles(self) -> Handle:
        """One handle per variable."""
        return self.choice.handles


def plot(
    network: Network,
    fit: Recorded,
    sites: SiteBank,
    recipe: Recipe = RECIPE,
    *,
    evidence: Evidence,
) -> Localization:
    """Run all four steps.

    Args:
      network: the network.
      fit: recorded fit pairs.
      sites: where to look.
      recipe: how to measure, couple, cut and choose.
      evidence: the pairs to choose by.

    Raises:
      ValueError: no site has any effect on the outputs, or what any of the steps refuses.
    """
    banks = checked_evidence(evidence)
    screened = None
    if recipe.screen is not None:
        screened = screen_sites(network, fit, sites, recipe.screen, recipe.signature)
        sites = screened.sites
    sizes = tuple(size for size in recipe.menu.subset_sizes if size <= sites.size)
    if not sizes:
        raise ValueError(f"got subset sizes {recipe.menu.subset_sizes}, expected one of at most {sites.size} sites")
    effects = measure_effects(network, fit, sites, recipe.signature)
    check_heard(network, fit, effects, recipe.signature)
    menu = dataclasses.replace(recipe.menu, subset_sizes=sizes)
    found = localize(network, effects, recipe.rule(effects), menu, evidence=banks, selection=recipe.selection)
    score = _score("plot", network, found.choice, banks, recipe.controls)
    return found._replace(score=score, screened=screened)


def localize(
    network: Network,
    effects: Effects,
    plans: Plans,
    menu: CutMenu,
    *,
    evidence: Evidence,
    selection: Selection = SELECTION,
) -> Localization:
    """Cut plans into handles and choose one per variable: steps 3 and 4.

    Args:
      network: the network.
      effects: measured effects.
      plans: couplings made from them.
      menu: how to cut.
      evidence: the pairs to choose by.
      selection: how to choose.
    """
    grid = handle_grid(plans.coupling.plan, effects.cost, effects.sites, plans.axes, menu)
    return Localization(effects, plans, grid, calibrate(network, evidence, grid, selection))


def alignment_search(
    key: Array,
    network: Network,
    fit: Recorded,
    candidates: Candidates | None = None,
    search: Search = SEARCH,
    *,
    evidence: Evidence,
    progress: Callable[[int, int], None] | None = None,
) -> AlignmentSearch:
    """Train every candidate on the fit bank and choose one per variable; smaller widths win ties.

    Args:
      key: seeds the order of the pairs and, where none are given, the random starts of the candidates.
      network: the network.
      fit: recorded fit pairs.
      candidates: the searches, by default `all_candidates`.
      search: how to search.
      evidence: the pairs to choose by.
      progress: see `train_candidates`.

    Raises:
      ValueError: what `train_candidates` and `calibrate_candidates` refuse.
    """
    check_key(key)
    banks = checked_evidence(evidence)
    if candidates is None:
        candidates = all_candidates(named_key(key, "candidates"), network.taps[fit.tap], len(fit.variables))
    searched = train_candidates(key, network, fit, candidates, search.featurizer, search.config, progress)
    settings, strengths = searched.settings(), search.strengths
    handles = jax.device_get(searched.handles)
    count, repeated = len(settings), len(strengths)
    choice = calibrate_candidates(
        network,
        banks,
        _strengthened(handles, strengths),
        np.tile(np.asarray(candidates.variable), repeated),
        [setting | {"strength": strength} for strength in strengths for setting in settings],
        cost=np.tile(np.nan_to_num(np.asarray(handles.weight).sum(axis=-1)).reshape(count), repeated),
    )
    return AlignmentSearch(searched, choice, _score("alignment_search", network, choice, banks, search.controls))


def all_candidates(key: Array, tap: Tap, variables: int) -> Candidates:
    """Search the whole state at every depth for every variable, at ranks 1, 2, 4, ... below the width.

    Args:
      key: seeds the random starts.
      tap: where to search.
      variables: how many.

    Raises:
      ValueError: fewer than one variable.
    """
    whole("variables", variables)
    ranks = tuple(2**power for power in range(max(1, (tap.width - 1).bit_length())))
    return candidate_grid(key, tap, full_supports(tap, range(variables)), ranks=ranks, learning_rates=(1e-2,))


def _score(
    name: str, network: Network, choice: Choice, evidence: Sequence[Recorded], repeats: Repeats | None
) -> Score | None:
    if repeats is None:
        return None
    return score_handles(named_key(repeats.seed, name), network, choice.handles, evidence, repeats)


def _strengthened(handles: Handle, strengths: Sequence[float]) -> Handle:
    every = jax.tree.map(lambda leaf: np.concatenate([leaf] * len(strengths)), handles)
    factor = np.repeat(np.asarray(strengths, np.float32), len(handles.weight))
    return dataclasses.replace(every, weight=every.weight * factor[:, None])
