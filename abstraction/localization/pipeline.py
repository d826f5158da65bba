"""PLOT, single stage, as the paper's algorithm reads (PLOT, Alg. 1):

    1. measure   effect signatures of the variables and of the sites, and the cost between them
    2. couple    variables to sites by entropic optimal transport
    3. cut       each row of the plan into handles: top K, renormalised, times a strength
    4. calibrate choose one handle per variable on pairs that are not test pairs

and alignment search under the same evidence. Testing is not part of the pipeline: a chosen handle goes to
`abstraction.evaluation.judge` once, and never comes back.

Step 2 is a rule (`abstraction.localization.rules`): transport, or one of the alternatives to it. The stages that go
from coarse to fine are in `progressive`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from abstraction.causal import PairBank
from abstraction.evaluation import CLASSES, Readout
from abstraction.interventions import LocalHandle, Recording, SiteBank
from abstraction.localization.calibration import Choice, Evidence, calibrate, calibrate_candidates
from abstraction.localization.cutting import CutMenu, Grid, handle_grid
from abstraction.localization.das import Rotation
from abstraction.localization.rules import Plans, Rule
from abstraction.localization.searching import Featurizer, SearchConfig, Searched, train_candidates
from abstraction.localization.signatures import Effects, measure_effects
from abstraction.localization.supports import Candidates
from abstraction.models import Model
from abstraction.typing import Params


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


class AlignmentSearch(NamedTuple):
    """What an alignment search found: every trained handle, and those chosen."""

    searched: Searched
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


def alignment_search(
    key: Array,
    model: Model,
    params: Params,
    recording: Recording,
    bank: PairBank,
    candidates: Candidates,
    evidence: Evidence,
    featurizer: Featurizer | None = None,
    *,
    tap: str,
    config: SearchConfig,
    strengths: Sequence[float] = (1.0,),
    readout: Readout = CLASSES,
    progress: Callable[[int, int], None] | None = None,
) -> AlignmentSearch:
    """Train every candidate on the fit bank and choose one per variable; smaller widths win ties.

    Args:
      key: seeds the order of the pairs.
      model: the network.
      params: its weights.
      recording: base and source runs of the fit pairs.
      bank: the fit pairs.
      candidates: the searches.
      evidence: the pairs to choose by.
      featurizer: what is trained, by default a rotation (DAS).
      tap: where to search.
      config: how to train.
      strengths: how far trained handles may move, chosen with everything else.
      readout: how outputs meet labels.
      progress: see `train_candidates`.
    """
    searched = train_candidates(
        key, model, params, recording, bank, candidates, featurizer or Rotation(),
        tap=tap, config=config, readout=readout, progress=progress,
    )  # fmt: skip
    settings = searched.settings()
    handles = jax.device_get(searched.handles)
    count, repeats = len(settings), len(strengths)
    choice = calibrate_candidates(
        model,
        params,
        evidence,
        _strengthened(handles, strengths),
        np.tile(np.asarray(candidates.variable), repeats),
        [setting | {"strength": strength} for strength in strengths for setting in settings],
        cost=np.tile(np.asarray(handles.weight).sum(axis=-1).reshape(count), repeats),
        readout=readout,
    )
    return AlignmentSearch(searched, choice)


def _strengthened(handles: LocalHandle, strengths: Sequence[float]) -> LocalHandle:
    every = jax.tree.map(lambda leaf: np.concatenate([leaf] * len(strengths)), handles)
    factor = np.repeat(np.asarray(strengths, np.float32), len(handles.weight))
    return dataclasses.replace(every, weight=every.weight * factor[:, None])
