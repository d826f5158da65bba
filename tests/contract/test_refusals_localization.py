"""Bad inputs of PLOT and of alignment search: each entry point refuses them by name."""

import dataclasses

import jax
import numpy as np
import pytest
from planted import planted
from refusals import Refusal, check_refusal

from abstraction.causal.pairs import restrict
from abstraction.interventions import Basis, Handle, rotation_basis, unit_sites
from abstraction.interventions.bases import pca_bases
from abstraction.interventions.handles import take_handle
from abstraction.interventions.sites import prefix_sites
from abstraction.localization import (
    VARIANTS,
    CutMenu,
    Recipe,
    Search,
    SearchConfig,
    Selection,
    Signature,
    Weights,
    alignment_search,
    candidate_grid,
    coarse_stage,
    fine_stage,
    full_supports,
    measure_effects,
    plot,
)
from abstraction.localization.calibration import calibrate, calibrate_candidates, select
from abstraction.localization.cutting import handle_grid
from abstraction.localization.das import orthogonality_error
from abstraction.localization.distances import cosine_similarity, transport_cost
from abstraction.localization.pipeline import all_candidates
from abstraction.localization.progressive import evidence_support
from abstraction.localization.projectors import geometry
from abstraction.localization.readwrite import readwrite_handles, readwrite_start, stack_candidates
from abstraction.localization.rules import Scopes, single_site_scores
from abstraction.localization.searching import train_candidates
from abstraction.localization.signatures import abstract_signatures, site_signatures
from abstraction.localization.supports import Candidates, Support, coordinate_support, feature_support
from abstraction.models import Tap

KEY = jax.random.key(0)
PLANT = planted(rotate=False)
NETWORK, FIT, EVIDENCE, TAP = PLANT.network, PLANT.fit, PLANT.calibration, PLANT.tap
SITES = unit_sites(TAP)
EYE = np.eye(6, dtype=np.float32)
MENU = CutMenu((1,), (1.0,))
ONES = np.ones((2, 6))
GRID = handle_grid(ONES, ONES, SITES, (), MENU)
CONFIG = SearchConfig(batch_size=64, max_epochs=1)
FULL = candidate_grid(KEY, TAP, full_supports(TAP, range(2)), ranks=(1,))
LOCAL = Handle("hidden", EYE[:2], None, np.zeros(2, np.int32))
STATES = np.random.default_rng(0).standard_normal((30, 6))
VALUES = (STATES[:, 0] > 0).astype(float)
NONE = np.zeros((30, 0))


def _read(states=STATES, values=VALUES, others=NONE, *, depth=0, **options):
    return readwrite_handles(states, values, others, depth=depth, tap="hidden", **options)


READ = _read(ridges=(1.0,), strengths=(1.0,))


def _measure(sites=SITES, fit=FIT, signature=None):
    return measure_effects(NETWORK, fit, sites, signature or Signature())


def _sites(**change):
    return dataclasses.replace(SITES, **change)


def _rows(**change):
    """Make rows of a flat list of two candidates, one of which is wrong."""
    given = {"handles": LOCAL, "variable": np.arange(2), "settings": [{}, {}], "cost": np.zeros(2)} | change
    return calibrate_candidates(
        NETWORK, EVIDENCE, *[given[k] for k in ("handles", "variable", "settings")], cost=given["cost"]
    )


def _train(candidates=FULL, fit=FIT, config=CONFIG, key=KEY):
    return train_candidates(key, NETWORK, fit, candidates, Weights(), config)


def _search(**change):
    given = {"fit": FIT, "search": Search(config=CONFIG, controls=None), "evidence": EVIDENCE, "key": KEY} | change
    return alignment_search(given["key"], NETWORK, given["fit"], FULL, given["search"], evidence=given["evidence"])


def _plot(sites=SITES, evidence=EVIDENCE, **options):
    return plot(NETWORK, FIT, sites, Recipe(**({"menu": MENU, "controls": None} | options)), evidence=evidence)


def _grid(supports=None, **change):
    supports = full_supports(TAP, range(2)) if supports is None else supports
    return candidate_grid(KEY, TAP, supports, **({"ranks": (1,)} | change))


def _feature(features=(0,), variable=0, depth=0, basis=None):
    return feature_support(TAP, variable, depth, basis or rotation_basis(EYE), features, "x")


def _support(width=6, size=6, depth=0):
    return Support(0, depth, width, np.arange(size))


def _fine(menus=None, depths=(0, 0), variant=VARIANTS["v4"], evidence=EVIDENCE):
    menus = {"units": SITES} if menus is None else menus
    return fine_stage(NETWORK, FIT, menus, depths, variant, evidence=evidence)


NAN, PAIRS = np.full((2, 6), np.nan), FIT.bank.size
OTHER = Tap("hidden", 4)
SPANS = prefix_sites(TAP, pca_bases(FIT.runs.base["hidden"]), 1)
EMPTY = dataclasses.replace(EVIDENCE, bank=restrict(EVIDENCE.bank, 1))
TURNED = Handle("hidden", np.ones((2, 6)), rotation_basis(np.stack([EYE, EYE])), np.zeros(2, np.int32))

MEASURING = [
    ("sites of another tap", lambda: _measure(_sites(tap="logits")), "sites of tap 'logits', expected a recorded tap"),
    ("sites of another width", lambda: _measure(unit_sites(OTHER)), "among 4, expected .* of 6 features"),
    ("sites of another depth", lambda: _measure(unit_sites(Tap("hidden", 6, 2))), "of depth 2, expected"),
    ("sites at no depth", lambda: _measure(_sites(depth=np.full(6, 1))), r"depths at tap 'hidden' \[1"),
    ("no sites", lambda: _measure(SITES.take(np.zeros(6, bool))), "got 0 sites"),
    ("a test bank", lambda: _measure(fit=PLANT.test), "test bank to measure effects on"),
    ("more classes", lambda: _measure(signature=Signature(classes=5)), "5 classes, expected 1 to 4"),
    ("fewer classes", lambda: _measure(signature=Signature(classes=3)), "labels 0 to 3 .*expected integers of 0 to 2"),
    ("classes as margins", lambda: _measure(signature=Signature("margin_delta")), "with 4 classes, expected 2 classes"),
    ("families of fewer", lambda: _measure(signature=Signature(families=np.zeros(3, int))), "families of 3 pairs"),
    (
        "a family without pairs",
        lambda: _measure(signature=Signature(families=np.full(PAIRS, 2))),
        "no family without pairs",
    ),
    ("no classes", lambda: abstract_signatures(FIT.bank, 0), "expected integers of 0 to -1"),
    ("labels without place", lambda: abstract_signatures(FIT.bank, 2), "labels 0 to 3 of type .*0 to 1 for signatures"),
    ("sites of no tap", lambda: site_signatures(NETWORK, FIT.runs, _sites(tap="x")), "sites of tap 'x'"),
    ("ranking on test pairs", lambda: single_site_scores(NETWORK, PLANT.test, SITES), "a test bank to rank sites on"),
    ("ranking no tap", lambda: single_site_scores(NETWORK, FIT, _sites(tap="x")), "sites of tap 'x', expected one of"),
    ("ranking another width", lambda: single_site_scores(NETWORK, FIT, unit_sites(OTHER)), "expected .* of 6 features"),
    ("costs of NaN", lambda: transport_cost(ONES, NAN), r"signatures of sites \[0, 1\] that are not finite"),
    ("costs of NaN above", lambda: transport_cost(NAN, ONES), r"signatures of variables \[0, 1\]"),
    ("unequal lengths", lambda: transport_cost(ONES, np.ones((2, 5))), r"shapes \(2, 6\) and \(2, 5\), expected"),
    ("one number each", lambda: transport_cost(np.ones(6), np.ones(6)), r"shapes \(6,\) and \(6,\)"),
    ("a metric", lambda: transport_cost(ONES, ONES, metric="l3"), "cost metric 'l3', expected one of"),
    ("blocks that do not part", lambda: transport_cost(ONES, ONES, blocks=4), "4 blocks of signatures of length 6"),
    ("half a block", lambda: transport_cost(ONES, ONES, blocks=1.5), "blocks of signatures 1.5"),
    ("cosines of NaN", lambda: cosine_similarity(ONES, NAN), "not finite"),
    ("cosines of unequal", lambda: cosine_similarity(ONES, np.ones((2, 5))), "expected"),
]

CHOOSING = [
    ("size past the sites", lambda: handle_grid(ONES, ONES, SITES, (), CutMenu((7,), (1.0,))), r"subset sizes \[7\]"),
    (
        "other sites",
        lambda: handle_grid(np.ones((2, 5)), np.ones((2, 5)), SITES, (), MENU),
        "expected both over 6 sites",
    ),
    ("costs of other variables", lambda: handle_grid(ONES, np.ones((3, 6)), SITES, (), MENU), "the same variables"),
    ("costs of NaN to cut", lambda: handle_grid(ONES, NAN, SITES, (), MENU), "a cost that is not a number"),
    (
        "an axis too many",
        lambda: handle_grid(ONES, ONES, SITES, (("e", (1,)),), MENU),
        r"of lengths \(1,\), expected \(\)",
    ),
    (
        "an axis of two as of one",
        lambda: handle_grid(np.ones((2, 2, 6)), ONES, SITES, (("e", (1,)),), MENU),
        r"of lengths \(1,\), expected \(2,\)",
    ),
    ("an axis that is none", lambda: GRID.only("epsilon", [1]), "axis 'epsilon', expected one of"),
    ("values that are none", lambda: GRID.only("strength", [9.0]), r"values \[9.0\] of axis 'strength'"),
    (
        "a shared axis",
        lambda: calibrate(NETWORK, EVIDENCE, GRID, Selection("beta")),
        "shared axis 'beta', expected one",
    ),
    (
        "a grid of another width",
        lambda: calibrate(
            NETWORK, EVIDENCE, handle_grid(np.ones((2, 4)), np.ones((2, 4)), unit_sites(OTHER), (), MENU)
        ),
        "handle weights of shape",
    ),
    (
        "a grid of another variable",
        lambda: calibrate(NETWORK, EVIDENCE, handle_grid(ONES[:1], ONES[:1], SITES, (), MENU)),
        "a grid of 1 variables, expected 2",
    ),
    ("a grid of no tap", lambda: calibrate(NETWORK, EVIDENCE, GRID._replace(tap="x")), "handles of tap 'x', expected"),
    ("no evidence", lambda: calibrate(NETWORK, (), GRID), "expected at least one recorded bank"),
    ("evidence of none", lambda: calibrate(NETWORK, EMPTY, GRID), r"without an eligible pair of \['p'\]"),
    (
        "fewer variables",
        lambda: _rows(variable=np.arange(1)),
        r"2 handles and \(1, 2, 2\) variables, settings and costs",
    ),
    ("fewer settings", lambda: _rows(settings=[{}]), r"\(2, 1, 2\)"),
    ("fewer costs", lambda: _rows(cost=np.zeros(1)), r"\(2, 2, 1\)"),
    ("costs of NaN to choose", lambda: _rows(cost=np.full(2, np.nan)), "costs that are numbers"),
    ("a variable past the end", lambda: _rows(variable=np.array([0, 2])), "variable indices 0 to 2"),
    ("a variable below 0", lambda: _rows(variable=np.array([0, -1])), "variable indices -1 to 0"),
    ("half a variable", lambda: _rows(variable=np.array([0.0, 0.5])), "expected a whole number"),
    ("none of a variable", lambda: _rows(variable=np.zeros(2, int)), r"\[2, 0\] candidates of \['p', 'q'\]"),
    (
        "depth past the end",
        lambda: _rows(handles=dataclasses.replace(LOCAL, depth=np.array([0, 1]))),
        r"depths at tap 'hidden' \[1\]",
    ),
    ("unequal scores", lambda: select(ONES, np.ones((2, 5)), ONES), "expected one shape"),
    ("scores in one row", lambda: select(np.ones(2), np.ones(2), np.ones(2)), r"\[V, ...\]"),
    ("a shared axis past the end", lambda: select(ONES, ONES, ONES, shared_axis=1), r"shared axis \[1\]"),
    ("a shared axis below 0", lambda: select(ONES, ONES, ONES, shared_axis=-1), r"shared axis \[-1\]"),
    (
        "sizes beyond the sites",
        lambda: _plot(menu=CutMenu((7, 8), (1.0,))),
        r"\(7, 8\), expected one of at most 6 sites",
    ),
    ("a plot by test pairs", lambda: _plot(evidence=PLANT.test), "test bank as evidence"),
    ("a plot of another tap", lambda: _plot(_sites(tap="logits")), "expected a recorded tap"),
]

SEARCHING = [
    ("a seed as key", lambda: _train(key=0), "key 0, expected one typed key"),
    ("a seed as key to search", lambda: _search(key=0), "key 0, expected one typed key"),
    (
        "a bank smaller than a batch",
        lambda: _train(config=SearchConfig(batch_size=257)),
        "batch size 257, expected at mo",
    ),
    (
        "more steps than a pass",
        lambda: _train(config=SearchConfig(64, steps_per_epoch=5)),
        "5 steps per epoch, expected 1",
    ),
    ("training on test pairs", lambda: _train(fit=PLANT.test), "test bank to train on"),
    ("searching on test pairs", lambda: _search(evidence=PLANT.test), "test bank as evidence"),
    (
        "another tap",
        lambda: _train(dataclasses.replace(FULL, tap="x")),
        "candidates of tap 'x', expected a recorded tap",
    ),
    (
        "another depth",
        lambda: _train(dataclasses.replace(FULL, depth=np.array([0, 1]))),
        r"depths at tap 'hidden' \[1\]",
    ),
    ("another variable", lambda: _train(dataclasses.replace(FULL, variable=np.array([0, 2]))), r"\['p', 'q'\] \[2\]"),
    ("variable -1", lambda: _train(dataclasses.replace(FULL, variable=np.array([0, -1]))), r"\[-1\]"),
    ("another width", lambda: _train(dataclasses.replace(FULL, start=np.ones((2, 4, 1)))), r"of shape \(2, 4, 1\)"),
    ("no candidates", lambda: _train(FULL.take(np.arange(0))), "at least one, of width 6"),
    ("no variables", lambda: all_candidates(KEY, TAP, 0), "variables 0, expected at least 1"),
    ("rank 0", lambda: _grid(ranks=(0,)), r"ranks \[0\] and 2 supports, expected ranks from 1 to 6"),
    ("rank past the width", lambda: _grid(ranks=(7,)), r"ranks \[7\]"),
    ("half a rank", lambda: _grid(ranks=(1.5,)), r"ranks \[1.5\]"),
    ("no ranks", lambda: _grid(ranks=()), r"ranks \[\]"),
    ("no supports", lambda: _grid([]), "0 supports"),
    ("no restarts", lambda: _grid(restarts=0), "restarts 0"),
    ("half a restart", lambda: _grid(restarts=1.5), "restarts 1.5"),
    ("no rates", lambda: _grid(learning_rates=()), r"learning rates \[\]"),
    ("a rate of 0", lambda: _grid(learning_rates=(0.0,)), r"learning rates \[0.0\]"),
    ("a rate of NaN", lambda: _grid(learning_rates=(np.nan,)), r"learning rates \[nan\]"),
    ("a price below 0", lambda: _grid(sparsities=(-1.0,)), r"sparsities \[-1.0\]"),
    ("a price of NaN", lambda: _grid(sparsities=(np.nan,)), r"sparsities \[nan\]"),
    (
        "a seed for starts",
        lambda: candidate_grid(0, TAP, full_supports(TAP, [0]), ranks=(1,)),
        "expected one typed key",
    ),
    ("a support of another width", lambda: _grid([_support(4, 4)]), "of width 4, expected some of.*of width 6"),
    ("a support at no depth", lambda: _grid([_support(depth=3)]), r"depths at tap 'hidden' \[3\]"),
    ("an empty support", lambda: _grid([_support(size=0)]), r"features \[\] of width 6"),
    ("a support past the width", lambda: _grid([_support(size=7)]), "expected some of 0 to 5, each once"),
    ("a rank that fits none", lambda: _grid([coordinate_support(TAP, 0, 0, [1], "x")], ranks=(2,)), r"variables \[0\]"),
    ("a depth past the end", lambda: full_supports(TAP, [0], [1]), r"depths at tap 'hidden' \[1\]"),
    ("a variable below 0", lambda: full_supports(TAP, [-1]), "variable of support 'full' -1, expected at least 0"),
    ("half a variable", lambda: full_supports(TAP, [0.5]), "variable of support 'full' 0.5"),
    ("no features", lambda: _feature(()), r"features \[\] in support 'x'"),
    ("a feature twice", lambda: _feature((1, 1)), r"features \[1, 1\].*each once"),
    ("a feature past the end", lambda: _feature((6,)), r"features \[6\].*0 to 5"),
    ("half a feature", lambda: _feature((0.5,)), r"features \[0.5\]"),
    ("features by a mask", lambda: _feature((True, False)), r"features \[True, False\]"),
    ("features at half a depth", lambda: _feature(depth=0.5), r"\[0.5\]"),
    ("features of another width", lambda: _feature(basis=rotation_basis(np.eye(4))), "expected a basis of width 6"),
    ("features at depths", lambda: _feature(basis=rotation_basis(EYE[None])), "expected a basis of width 6"),
    ("features of NaN", lambda: _feature(basis=Basis(EYE * np.nan, EYE, EYE[0])), "not finite"),
    ("geometry of one", lambda: geometry(take_handle(TURNED, 0)), r"weights \(6,\), expected"),
    (
        "geometry over depths",
        lambda: geometry(Handle("hidden", np.ones((2, 1, 6)))),
        r"weights \(2, 1, 6\), expected handles at one depth",
    ),
    ("errors of fewer ranks", lambda: orthogonality_error(TURNED.basis, np.array([1])), r"ranks \(1,\), expected"),
    ("errors past the rank", lambda: orthogonality_error(TURNED.basis, np.array([1, 7])), r"ranks \[7\]"),
    ("errors below the rank", lambda: orthogonality_error(TURNED.basis, np.array([1, -1])), r"ranks \[-1\]"),
    ("errors of one basis", lambda: orthogonality_error(rotation_basis(EYE), np.array(1)), r"encoders \(6, 6\)"),
]

STAGES = [
    ("no menu", lambda: _fine({}), "an empty stage menu"),
    ("no site where one is", lambda: _fine(depths=(0, 1)), r"depths at tap 'hidden' \[1\]"),
    ("half a depth", lambda: _fine(depths=(0.0, 0.5)), r"\[0.0, 0.5\]"),
    ("a depth for two", lambda: _fine(depths=(0,)), "1 depths, expected one for each of"),
    ("two bases", lambda: _fine({"units": SITES, "spans": SPANS}), "on 2 bases or taps"),
    ("sites of another tap", lambda: _fine({"units": _sites(tap="x")}), "sites of tap 'x'"),
    ("stage B by test pairs", lambda: _fine(evidence=PLANT.test), "test bank as evidence"),
    (
        "stage A by test pairs",
        lambda: coarse_stage(NETWORK, FIT, VARIANTS["v4"], evidence=PLANT.test),
        "test bank as evidence",
    ),
    ("a share of 0", lambda: evidence_support(np.ones(6), SITES, 0.0), "share 0.0"),
    ("a share of NaN", lambda: evidence_support(np.ones(6), SITES, np.nan), "share nan"),
    ("a share above 1", lambda: evidence_support(np.ones(6), SITES, 1.1), "share 1.1"),
    ("no mass", lambda: evidence_support(np.zeros(6), SITES, 0.5), "of some mass"),
    ("a mass of NaN", lambda: evidence_support(np.full(6, np.nan), SITES, 0.5), "some mass"),
    (
        "a mass below 0",
        lambda: evidence_support(np.array([2.0, -1, 0, 0, 0, 0]), SITES, 0.5),
        "a finite mass of 0 or mo",
    ),
    ("masses of fewer sites", lambda: evidence_support(np.ones(5), SITES, 0.5), "for each of 6 sites"),
    ("a table of masses", lambda: evidence_support(np.ones((2, 6)), SITES, 0.5), r"shape \(2, 6\)"),
    (
        "scopes without sites",
        lambda: VARIANTS["v4"].fine(_measure(), Scopes("r", ("x",), np.zeros((1, 6), bool))),
        "witho",
    ),
    ("states of NaN", lambda: _read(STATES * np.nan), "states of type float64 or not finite"),
    ("states in words", lambda: _read(np.full((30, 6), "x")), "states of type <U1"),
    ("states of one run", lambda: _read(STATES[0], VALUES[:6], NONE[:6]), r"states \(6,\)"),
    ("values of NaN", lambda: _read(values=VALUES * np.nan), "variable of type"),
    ("values of fewer", lambda: _read(values=VALUES[:7]), "30 states, 7 values"),
    ("a value that is constant", lambda: _read(values=np.ones(30)), "constant or a combination"),
    ("a covariate in a row", lambda: _read(others=VALUES), r"covariates \(30,\), expected"),
    ("the variable as covariate", lambda: _read(others=VALUES[:, None]), "constant or a combination"),
    ("states that do not move", lambda: _read(np.zeros((30, 6))), "do not move with the variable"),
    ("depth -1", lambda: _read(depth=-1), "depth -1, expected at least 0"),
    ("half a depth to read", lambda: _read(depth=0.5), "depth 0.5"),
    ("ridge 0", lambda: _read(ridges=(0.0,)), r"ridges \[0.0\]"),
    ("ridge of NaN", lambda: _read(ridges=(np.nan,)), r"ridges \[nan\]"),
    ("no strengths to read", lambda: _read(strengths=()), r"strengths \[\]"),
    (
        "a ridge past the end",
        lambda: readwrite_start(TAP, 0, READ, ridge=1),
        r"ridge \[1\], expected whole numbers from 0",
    ),
    ("ridge -1", lambda: readwrite_start(TAP, 0, READ, ridge=-1), r"ridge \[-1\]"),
    ("a start at another tap", lambda: readwrite_start(Tap("x", 6), 0, READ), "of tap 'hidden', expected"),
    ("a start of another width", lambda: readwrite_start(OTHER, 0, READ), r"directions \(6,\)"),
    ("a start of variable -1", lambda: readwrite_start(TAP, -1, READ), "variable of support 'readwrite' -1"),
    ("no candidates to stack", lambda: stack_candidates([]), "expected at least one"),
    (
        "candidates of two widths",
        lambda: stack_candidates([READ, _read(STATES[:, :4], ridges=(1.0,), strengths=(1.0,))]),
        "expected at least one, all of one tap",
    ),
]

ROWS = [Refusal(*row) for row in (*MEASURING, *CHOOSING, *SEARCHING, *STAGES)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.usefixtures("unchecked")
def test_bad_inputs_are_refused(row):
    check_refusal(row)


def test_every_kind_of_candidate_is_made_by_the_grid():
    assert isinstance(FULL, Candidates)
    assert isinstance(TURNED.basis, Basis)
