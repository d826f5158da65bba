"""PLOT, single stage, as the paper's algorithm reads (PLOT, Alg. 1):

    1. measure   effect signatures of the variables and of the sites, and the cost between them
    2. couple    variables to sites by entropic optimal transport
    3. cut       each row of the plan into handles: top K, renormalised, times a strength
    4. calibrate choose one handle per variable on pairs that are not test pairs

and distributed alignment search under the same evidence. Testing is not part of the pipeline: a chosen handle goes
to `abstraction.evaluation.judge` once, and never comes back.

Step 2 is a rule (`abstraction.localization.rules`): transport, or one of the alternatives to it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from abstraction.causal import PairBank
from abstraction.evaluation import cross_entropy, top_class
from abstraction.interventions import Recording, SiteBank
from abstraction.localization.calibration import (
    Choice,
    CutMenu,
    Evidence,
    Grid,
    calibrate,
    calibrate_candidates,
    handle_grid,
)
from abstraction.localization.das import Candidates, DASConfig, Rotations, train_rotations
from abstraction.localization.rules import Plans, Rule
from abstraction.localization.signatures import Effects, measure_effects
from abstraction.models import Model
from abstraction.typing import Decode, PairLoss, Params


class Localization(NamedTuple):
    """What PLOT found.

    Attributes:
      effects: what was measured.
      plans: every coupling tried.
      grid: every handle tried.
      choice: the handles chosen.
    """

    effects: Effects
    plans: Plans
    grid: Grid
    choice: Choice


class SubspaceSearch(NamedTuple):
    """What DAS found: every trained rotation, and the subspaces chosen."""

    rotations: Rotations
    choice: Choice


def plot(
    model: Model,
    params: Params,
    recording: Recording,
    bank: PairBank,
    sites: SiteBank,
    rule: Rule,
    menu: CutMenu,
    evidence: Evidence,
    **options: Any,
) -> Localization:
    """Run all four steps.

    Args:
      model: the network.
      params: its weights.
      recording: base and source runs of the fit pairs.
      bank: the fit pairs.
      sites: where to look.
      rule: how to couple.
      menu: how to cut.
      evidence: the pairs to choose by.
      options: passed on to `calibrate`.
    """
    effects = measure_effects(model, params, recording, bank, sites)
    return localize(model, params, effects, rule(effects), menu, evidence, **options)


def localize(
    model: Model, params: Params, effects: Effects, plans: Plans, menu: CutMenu, evidence: Evidence, **options: Any
) -> Localization:
    """Cut plans into handles and choose one per variable: steps 3 and 4.

    Args:
      model: the network.
      params: its weights.
      effects: measured effects.
      plans: couplings made from them.
      menu: how to cut.
      evidence: the pairs to choose by.
      options: passed on to `calibrate`.
    """
    grid = handle_grid(plans.coupling.plan, effects.cost, effects.sites, plans.axes, menu)
    choice = calibrate(model, params, evidence, grid, tap=effects.sites.tap, **options)
    return Localization(effects, plans, grid, choice)


def search_subspaces(
    key: Array,
    model: Model,
    params: Params,
    recording: Recording,
    bank: PairBank,
    candidates: Candidates,
    evidence: Evidence,
    *,
    tap: str,
    config: DASConfig,
    decode: Decode = top_class,
    pair_loss: PairLoss = cross_entropy,
    progress: Callable[[int, int], None] | None = None,
) -> SubspaceSearch:
    """Train every candidate rotation on the fit bank and choose one per variable; smaller ranks win ties."""
    rotations = train_rotations(
        key, model, params, recording, bank, candidates, tap=tap, config=config, pair_loss=pair_loss, progress=progress
    )
    choice = calibrate_candidates(
        model,
        params,
        evidence,
        rotations.handles(tap),
        np.asarray(candidates.variable),
        rotations.settings(),
        cost=np.asarray(candidates.rank),
        decode=decode,
        pair_loss=pair_loss,
    )
    return SubspaceSearch(rotations, choice)
