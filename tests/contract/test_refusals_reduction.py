"""Bad inputs of mechanism reduction: refused by name, before anything runs; join by adding a row."""

# ruff: noqa: E501 (one row a line)

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import Refusal, check_refusal

from abstraction.evaluation.interchange import (
    Trials,
    bernoulli_trials,
    bounded_losses,
    group_trials,
    interchanged_outputs,
    view,
)
from abstraction.interventions import Add
from abstraction.models import GRU, MLP, Activation, Dense, Network, Sequential
from abstraction.reduction import (
    METHODS,
    Calibration,
    Fold,
    Method,
    Plan,
    affine_fold,
    bill,
    compile_plan,
    constant_fold,
    load_plan,
    reduce_network,
)
from abstraction.reduction.compiling import latency, patch
from abstraction.reduction.discrepancies import CE, LOGIT
from abstraction.reduction.elimination import Path, eliminate, eliminate_constants
from abstraction.reduction.fitting import choose_parents, distortion, fit_affine, fit_sparse, fit_weighted
from abstraction.reduction.folding import fold_params
from abstraction.reduction.methods import method_named
from abstraction.reduction.moments import LawMoments, collect_statistics, law_moments, merge_statistics
from abstraction.reduction.pipeline import Procedure, compose_folds, replace_units
from abstraction.reduction.plans import reduction_plan
from abstraction.reduction.ranking import rank_units, reader_weights, share_budget
from abstraction.reduction.refitting import Refit, refit_readers
from abstraction.reduction.risk import interventional_risk, replacement_effects, second_order_risk
from abstraction.reduction.scores import constant_risk, joint_constants, set_risk, taylor_scores, unit_scores
from abstraction.reduction.selection import allocate, eliminate_groups, group_scores, keep_highest

pytestmark = pytest.mark.usefixtures("unchecked")

D, N, C = 4, 20, 3
MODEL = Sequential((5,), (Dense("one", D), Activation("hidden", "tanh"), Dense("out", C)))
NETWORK = Network(MODEL, MODEL.init(jax.random.key(0)))
RNG = np.random.default_rng(0)
INPUTS = RNG.standard_normal((N, 5)).astype(np.float32)
LABELS = RNG.integers(0, C, N).astype(np.int32)
STEPS = Network(GRU(2, D, 3), GRU(2, D, 3).init(jax.random.key(0)))
SEQUENCES = RNG.standard_normal((N, 3, 2)).astype(np.float32)
NAN = np.where(np.arange(5) == 2, np.nan, INPUTS).astype(np.float32)
MOMENTS = LawMoments(np.zeros(D), np.eye(D), np.eye(D), np.eye(D))
FOLD = affine_fold("hidden", [0, 1, 2], [3], [0.5], [[1.0, 0, 0]])
PLAN = reduction_plan(NETWORK, [FOLD])
SEEN = view(NETWORK, "hidden", np.arange(D))
TRIALS = bernoulli_trials(np.random.default_rng(0), examples=N, units=D, probability=0.5, trials=6)
CLOSED = METHODS["cmr-closed"]


def _reduce(network=NETWORK, inputs=INPUTS, keep=None, method=CLOSED, **options):
    return lambda: reduce_network(network, inputs, {"hidden": 2} if keep is None else keep, method, **options)


def _statistics(**changes):
    return dataclasses.replace(collect_statistics(NETWORK, INPUTS, "hidden"), **changes)


def _fold(**changes):
    """A fold that no builder has looked at."""
    return dataclasses.replace(FOLD, **changes)


def _params(**changes):
    return Network(MODEL, {**NETWORK.params, **changes})


def _trials(**changes):
    return lambda: interchanged_outputs(SEEN, INPUTS, dataclasses.replace(TRIALS, **changes))


def _weighted(**changes):
    values = {"activations": np.ones((N, D)), "weights": np.ones((N, 1)), "kept": [0, 1, 2], "parents": [[0]]}
    return lambda: fit_weighted(**{**values, **changes})


class Emits(Sequential):
    """A network that emits a choice at every one of two positions."""

    def apply(self, params, inputs, edits=None, record=()):
        """Run it twice."""
        outputs, recorded = super().apply(params, inputs, edits or {}, record)
        return jnp.stack([outputs, outputs], axis=1), recorded


NOT_FINITE = _params(out={"kernel": np.full((D, C), np.nan), "bias": np.zeros(C)})
WIDER = _params(one={"kernel": np.ones((5, D + 1)), "bias": np.ones(D + 1)})
HALF = jax.tree.map(lambda leaf: np.full(leaf.shape, 60_000, np.float16), NETWORK.params)
REDUCTIONS = [
    Refusal("keep no unit", _reduce(keep={"hidden": 0}), "keep 0"),
    Refusal("keep more than there are", _reduce(keep={"hidden": 5}), "1 to 4"),
    Refusal("keep a fraction", _reduce(keep={"hidden": 2.0}), "whole number"),
    Refusal("keep a truth value", _reduce(keep={"hidden": True}), "whole number"),
    Refusal("keep a word", _reduce(keep={"hidden": "2"}), "whole number"),
    Refusal("keep nothing", _reduce(keep={}), "by tap"),
    Refusal("keep without a tap", _reduce(keep=2), "by tap"),
    Refusal("an unknown tap", _reduce(keep={"nope": 2}), "nope"),
    Refusal("a preset's name", _reduce(method="cmr"), "method_named"),
    Refusal("an unknown backend", _reduce(backend="fold"), "compile"),
    Refusal("a patch in rounds", _reduce(backend="patch", procedure=Procedure(rounds=2)), "2 rounds"),
    Refusal("a refit of a patch", _reduce(method=METHODS["cmr"], backend="patch"), "changes no weights"),
    Refusal("groups of another tap", _reduce(procedure=Procedure({"one": [[0, 1], [2, 3]]})), "one"),
    Refusal("groups that miss a unit", _reduce(procedure=Procedure({"hidden": [[0, 1], [2]]})), r"\[3\]"),
    Refusal("groups that share a unit", _reduce(procedure=Procedure({"hidden": [[0, 1], [1, 2, 3]]})), r"\[1\]"),
    Refusal("groups of fractions", lambda: _reduce(procedure=Procedure({"hidden": [[0.5, 1], [2, 3]]}))(), "whole numbers"),
    Refusal("groups of a negative unit", _reduce(procedure=Procedure({"hidden": [[-1, 1], [2, 3]]})), "exactly one"),
    Refusal("inputs that are not numbers", _reduce(inputs=NAN), "calibration inputs"),
    Refusal("no inputs", _reduce(inputs=INPUTS[:0]), "no calibration inputs"),
    Refusal("inputs as a list", _reduce(inputs=INPUTS.tolist()), "arrays"),
    Refusal("inputs of another width", _reduce(inputs=INPUTS[:, :4]), "shape"),
    Refusal("too few inputs for affine maps", _reduce(inputs=INPUTS[:2]), "more inputs"),
    Refusal("weights that are not numbers", _reduce(NOT_FINITE), "finite weights"),
    Refusal("weights of another width", _reduce(WIDER), "one"),
    Refusal("outputs at every position", _reduce(Network(Emits(MODEL.inputs, MODEL.layers), NETWORK.params)), r"\[N, C\]"),
    Refusal("an mlp, whose readers are not told", _reduce(Network(MLP(5, 4, 2, 3), MLP(5, 4, 2, 3).init(jax.random.key(0)))), "does not tell"),
    Refusal("an affine map before a nonlinearity", _reduce(keep={"one": 2}), "does not pass Activation"),
    Refusal("a constant into a state that starts at zero", _reduce(STEPS, SEQUENCES, method=METHODS["vbp"]), "first step"),
    Refusal("labels that are missing", _reduce(method=METHODS["cip-const"]), "no labels"),
    Refusal("labels of other rows", _reduce(inputs=Calibration(INPUTS, LABELS[:3]), method=METHODS["cip-const"]), "labels"),
    Refusal("labels outside the classes", _reduce(inputs=Calibration(INPUTS, LABELS + 1), method=METHODS["cip-const"]), "0 to 2"),
    Refusal("negative labels", _reduce(inputs=Calibration(INPUTS, LABELS - 1), method=METHODS["cip-const"]), "0 to 2"),
    Refusal("labels as fractions", _reduce(inputs=Calibration(INPUTS, LABELS + 0.5), method=METHODS["cip-const"]), "class"),
    Refusal("targets of other rows", _reduce(inputs=Calibration(INPUTS, target=np.zeros((3, C)))), "target"),
    Refusal("targets that are not numbers", _reduce(inputs=Calibration(INPUTS, target=np.full((N, C), np.nan))), "target"),
    Refusal("a random choice without a key", _reduce(method=METHODS["random"]), "a key"),
]  # fmt: skip
OPTIONS = [
    Refusal("a selector that is none", lambda: Method("", selector="eliminate"), "selector"),
    Refusal("a discrepancy that is none", lambda: Method("", discrepancy="l2"), "discrepancy"),
    Refusal("a folding that is none", lambda: Method("", folding="linear"), "folding"),
    Refusal("a parent rule that is none", lambda: Method("", parent_rule="best"), "parent rule"),
    Refusal("a refit that is none", lambda: Method("", refit="all"), "refit"),
    Refusal("a curvature that is none", lambda: Method("", curvature="gauss"), "curvature"),
    Refusal("fisher for logits", lambda: Method("", curvature="fisher"), "softmax"),
    Refusal("no parents", lambda: Method("", parents=0), "parents"),
    Refusal("half a parent", lambda: Method("", parents=1.5), "parents"),
    Refusal("a law of no probability", lambda: Method("", law=()), "law"),
    Refusal("a law above 1", lambda: Method("", law=(0.0, 1.5)), "probability"),
    Refusal("a law that is not a number", lambda: Method("", law=(float("nan"),)), "probability"),
    Refusal("a law as a list", lambda: Method("", law=[0.1]), "tuple"),
    Refusal("a negative ridge", lambda: Method("", ridge=-1.0), "ridge"),
    Refusal("an infinite ridge", lambda: Method("", ridge=float("inf")), "ridge"),
    Refusal("an unknown preset", lambda: method_named("cmrr"), "cmr"),
    Refusal("a preset's number", lambda: method_named(3), "cmr"),
    Refusal("no rounds", lambda: Procedure(rounds=0), "rounds"),
    Refusal("rounds as a fraction", lambda: Procedure(rounds=1.5), "rounds"),
    Refusal("batches of none", lambda: Procedure(batch_size=0), "batch size"),
    Refusal("multiples of none", lambda: Procedure(round_to=0), "multiple"),
    Refusal("groups without a tap", lambda: Procedure([[0, 1]]), "by tap"),
    Refusal("a refit of everything", lambda: Refit("all"), "refit"),
    Refusal("a refit pulled away", lambda: Refit("head", ridge=-1.0), "ridge"),
    Refusal("a refit of fractions of steps", lambda: Refit("head", steps=0.5), "steps"),
]
FOLDS = [
    Refusal("a negative unit", lambda: affine_fold("hidden", [-1, 0], [1], [0.0], [[1.0, 1]]), "expected"),
    Refusal("a unit twice", lambda: affine_fold("hidden", [0, 0], [1], [0.0], [[1.0, 1]]), "each once"),
    Refusal("a unit kept and replaced", lambda: affine_fold("hidden", [0, 1], [1], [0.0], [[1.0, 1]]), "each in one"),
    Refusal("a unit that wraps", lambda: affine_fold("hidden", [0, 2**32 + 1], [2], [0.0], [[1.0, 1]]), "expected"),
    Refusal("units out of order", lambda: affine_fold("hidden", [1, 0], [2], [0.0], [[1.0, 1]]), "sorted"),
    Refusal("no kept unit", lambda: affine_fold("hidden", [], [0], [0.0], np.zeros((1, 0))), "no kept unit"),
    Refusal("coefficients of other units", lambda: affine_fold("hidden", [0, 1], [2], [0.0], [[1.0]]), "shapes"),
    Refusal("an intercept too many", lambda: affine_fold("hidden", [0, 1], [2], [0.0, 1], [[1.0, 1]]), "shapes"),
    Refusal("coefficients not finite", lambda: affine_fold("hidden", [0, 1], [2], [0.0], [[np.inf, 1]]), "finite"),
    Refusal("an intercept not a number", lambda: affine_fold("hidden", [0], [1], ["a"], [[1.0]]), "real numbers"),
    Refusal("a complex constant", lambda: constant_fold("hidden", 2, [1], [1j]), "real numbers"),
    Refusal("a constant of a unit past the end", lambda: constant_fold("hidden", 2, [2], [0.0]), "0 to 1"),
    Refusal("a tap of no units", lambda: constant_fold("hidden", 0, [], []), "width"),
    Refusal("a fold of another tap", lambda: fold_params(NETWORK, _fold(tap="nope")), "nope"),
    Refusal("a fold of another width", lambda: fold_params(NETWORK, constant_fold("hidden", 3, [1], [0.0])), "3 units"),
    Refusal("an unchecked fold of a unit twice", lambda: fold_params(NETWORK, _fold(kept=np.array([0, 1, 1]))), "once"),
    Refusal("an unchecked fold not finite", lambda: patch(NETWORK, Plan((_fold(intercept=np.array([np.nan])),), (None,), (None,), ({},), ("",))), "finite"),
    Refusal("a fold into a narrow type", lambda: fold_params(Network(MODEL, HALF), affine_fold("hidden", [0, 1, 2], [3], [0.0], [[1.0, 1, 1]])), "float16"),
    Refusal("a fold into a narrow bias", lambda: fold_params(Network(MODEL, HALF), constant_fold("hidden", 4, [3], [1e3])), "float16"),
    Refusal("a fold into weights of another width", lambda: fold_params(_params(out={"kernel": np.ones((3, C)), "bias": np.ones(C)}), FOLD), "out.kernel"),
    Refusal("a fold into no weights", lambda: fold_params(_params(out={}), FOLD), "no kernel"),
    Refusal("a compiled plan of other weights", lambda: compile_plan(WIDER, PLAN), "one"),
    Refusal("folds of two taps", lambda: compose_folds(FOLD, constant_fold("one", 3, [1], [0.0])), "two taps|one"),
    Refusal("a second fold of other units", lambda: compose_folds(FOLD, constant_fold("hidden", 4, [1], [0.0])), "first one kept"),
    Refusal("folds out of order", lambda: reduction_plan(NETWORK, [FOLD, constant_fold("one", 4, [1], [0.0])]), "order"),
    Refusal("two folds of a tap", lambda: reduction_plan(NETWORK, [FOLD, FOLD]), "one per tap"),
    Refusal("scores of other units", lambda: reduction_plan(NETWORK, [FOLD], scores=[np.zeros(3)]), "one per unit"),
    Refusal("scores not finite", lambda: reduction_plan(NETWORK, [FOLD], scores=[np.full(D, np.nan)]), "finite"),
    Refusal("a risk not finite", lambda: reduction_plan(NETWORK, [FOLD], risks=[np.nan]), "finite"),
    Refusal("a note not finite", lambda: reduction_plan(NETWORK, [FOLD], notes=[{"a": np.inf}]), "JSON"),
    Refusal("risks of other folds", lambda: reduction_plan(NETWORK, [FOLD], risks=[0.0, 1.0]), "one each"),
]  # fmt: skip
NUMBERS = [
    Refusal("statistics of an unknown tap", lambda: collect_statistics(NETWORK, INPUTS, "nope"), "nope"),
    Refusal("statistics of an unknown curvature", lambda: collect_statistics(NETWORK, INPUTS, "hidden", curvature="x"), "curvature"),
    Refusal("statistics of fisher without a key", lambda: collect_statistics(NETWORK, INPUTS, "hidden", curvature="fisher"), "key"),
    Refusal("statistics of fisher for logits", lambda: collect_statistics(NETWORK, INPUTS, "hidden", discrepancy=LOGIT, curvature="fisher"), "softmax"),
    Refusal("statistics without labels", lambda: collect_statistics(NETWORK, INPUTS, "hidden", discrepancy=CE), "labels"),
    Refusal("statistics in batches of a fraction", lambda: collect_statistics(NETWORK, INPUTS, "hidden", batch_size=2.5), "batch size"),
    Refusal("statistics of two taps", lambda: merge_statistics(_statistics(), collect_statistics(NETWORK, INPUTS, "out")), "one tap"),
    Refusal("moments not finite", lambda: law_moments(_statistics(covariance=np.full((D, D), np.nan))), "covariance"),
    Refusal("moments of mixed widths", lambda: law_moments(_statistics(mean=np.zeros(3))), "one tap"),
    Refusal("a law of a word", lambda: law_moments(_statistics(), "0.1"), "law"),
    Refusal("constants of statistics not finite", lambda: constant_risk(_statistics(eps_eps=np.full(D, np.inf))), "eps_eps"),
    Refusal("constants flat below nothing", lambda: constant_risk(_statistics(), flat=-1.0), "threshold"),
    Refusal("an unknown criterion", lambda: unit_scores("norm", _statistics()), "criterion"),
    Refusal("weights that are missing", lambda: unit_scores("magnitude", _statistics()), "consumer weights"),
    Refusal("weights of other units", lambda: unit_scores("wanda", _statistics(), weights=np.ones((2, 3))), "one per unit"),
    Refusal("weights not finite", lambda: unit_scores("magnitude", _statistics(), weights=np.full((2, D), np.nan)), "finite"),
    Refusal("taylor without labels", lambda: taylor_scores(NETWORK, Calibration(INPUTS), "hidden", np.zeros(D)), "labels"),
    Refusal("taylor about other units", lambda: taylor_scores(NETWORK, Calibration(INPUTS, LABELS), "hidden", np.zeros(2)), "one per unit"),
    Refusal("scores not finite", lambda: keep_highest(np.array([1.0, np.nan]), 1), "scores"),
    Refusal("keep half a unit", lambda: keep_highest(np.ones(3), 1.5), "keep"),
    Refusal("scores of groups not finite", lambda: group_scores(np.array([np.inf, 1]), [[0], [1]]), "scores"),
    Refusal("a budget of scores not finite", lambda: allocate({"a": np.array([np.nan, 1])}, 1), "scores of 'a'"),
    Refusal("a cost of nothing", lambda: allocate({"a": np.ones(2)}, 1, costs={"a": 0.0}), "cost of 'a'"),
    Refusal("a cost not finite", lambda: allocate({"a": np.ones(2)}, 1, costs={"a": np.inf}), "cost of 'a'"),
    Refusal("costs of other taps", lambda: allocate({"a": np.ones(2)}, 1, costs={"b": 1.0}), "taps"),
    Refusal("a budget above all", lambda: allocate({"a": np.ones(2)}, 3), "keep 3"),
    Refusal("an elimination of moments not finite", lambda: eliminate(np.eye(D), MOMENTS_NAN, keep=1), "regressor"),
    Refusal("an elimination by another curvature", lambda: eliminate(np.eye(3), MOMENTS, keep=1), "3 units"),
    Refusal("an elimination of all units", lambda: eliminate(np.eye(D), MOMENTS, keep=0), "keep 0"),
    Refusal("an elimination by a root of other units", lambda: eliminate(np.eye(D), MOMENTS, keep=1, root=np.ones((2, 3))), "root of shape"),
    Refusal("an elimination by a root not finite", lambda: eliminate(np.eye(D), MOMENTS, keep=1, root=np.full((2, D), np.nan)), "finite"),
    Refusal("an elimination by no square", lambda: eliminate(np.ones((2, 3)), MOMENTS, keep=1), "units by units"),
    Refusal("constants of covariance not finite", lambda: eliminate_constants(np.eye(2), np.full((2, 2), np.nan), keep=1), "covariance"),
    Refusal("constants of other units", lambda: eliminate_constants(np.eye(2), np.eye(3), keep=1), "units by units"),
    Refusal("an elimination of groups that share", lambda: eliminate_groups(np.eye(D), MOMENTS, np.array([[0, 1], [1, 2]]), keep=1), "share"),
    Refusal("a path past its end", lambda: Path(np.array([1]), np.array([0.5]), 3).kept(1), "keep 1"),
    Refusal("a fit of a unit twice", lambda: fit_affine(MOMENTS, [1, 1]), "each once"),
    Refusal("a fit of a unit past the end", lambda: fit_affine(MOMENTS, [0, 4]), "0 to 3"),
    Refusal("a fit of a negative unit", lambda: fit_affine(MOMENTS, [-1, 0]), "0 to 3"),
    Refusal("a fit of nothing", lambda: fit_affine(MOMENTS, []), "at least one"),
    Refusal("a fit of moments not finite", lambda: fit_affine(MOMENTS_NAN, [0]), "finite"),
    Refusal("parents past the kept", lambda: fit_sparse(MOMENTS, [0, 1], [[2], [0]]), "parents"),
    Refusal("a parent twice", lambda: fit_sparse(MOMENTS, [0, 1], [[0, 0], [0, 1]]), "parents"),
    Refusal("parents of other units", lambda: fit_sparse(MOMENTS, [0, 1], [[0]]), "a row for each"),
    Refusal("an unknown rule", lambda: choose_parents(MOMENTS, [0, 1], 1, "best"), "parent rule"),
    Refusal("more parents than kept", lambda: choose_parents(MOMENTS, [0, 1], 3), "parents 3"),
    Refusal("weights below 0", _weighted(weights=-np.ones((N, 1))), "weights"),
    Refusal("weights of other examples", _weighted(weights=np.ones((3, 1))), "weights"),
    Refusal("weighted values not finite", _weighted(activations=np.full((N, D), np.nan)), "activations"),
    Refusal("a distortion of other coefficients", lambda: distortion(np.eye(D), MOMENTS, [0, 1], np.zeros((1, 2))), "coefficients"),
    Refusal("a distortion of coefficients not finite", lambda: distortion(np.eye(D), MOMENTS, [0, 1], np.full((2, 2), np.nan)), "coefficients"),
    Refusal("joint constants of a unit twice", lambda: joint_constants(np.zeros(8), np.eye(8), [1, 1]), "each once"),
    Refusal("joint constants of a unit past the end", lambda: joint_constants(np.zeros(8), np.eye(8), [4]), "0 to 3"),
    Refusal("a set's risk of constants not finite", lambda: set_risk(np.zeros(8), np.eye(8), [1], [np.nan]), "constants"),
    Refusal("a set's risk of constants too many", lambda: set_risk(np.zeros(8), np.eye(8), [1], [0.0, 1.0]), "one for each"),
    Refusal("a set's risk of odd gradients", lambda: set_risk(np.zeros(7), np.eye(7), [1], [0.0]), "2 D"),
    Refusal("second order of another fold", lambda: second_order_risk(NETWORK, INPUTS, _fold(tap="nope")), "nope"),
    Refusal("effects of too few constants", lambda: replacement_effects(NETWORK, INPUTS, "hidden", np.zeros(2)), "each unit"),
    Refusal("effects of constants not finite", lambda: replacement_effects(NETWORK, INPUTS, "hidden", np.full(D, np.nan)), "constants"),
    Refusal("a ranking of an unknown tap", lambda: rank_units(NETWORK, INPUTS, "nope", CLOSED), "nope"),
    Refusal("a ranking that keeps a unit twice", lambda: rank_units(NETWORK, INPUTS, "hidden", CLOSED).keeping([1, 1]), "each once"),
    Refusal("a replacement of all units", lambda: replace_units(rank_units(NETWORK, INPUTS, "hidden", CLOSED), 0), "keep 0"),
    Refusal("a replacement by another word", lambda: replace_units(rank_units(NETWORK, INPUTS, "hidden", CLOSED), 2, backend="x"), "backend"),
    Refusal("a budget of two methods", lambda: share_budget([rank_units(NETWORK, INPUTS, "hidden", METHODS[name]) for name in ("vbp", "cmr-closed")], 2), "one method"),
    Refusal("readers of an mlp", lambda: reader_weights(Network(MLP(5, 4, 2, 3), MLP(5, 4, 2, 3).init(jax.random.key(0))), "hidden"), "does not tell"),
    Refusal("a bill of another shape", lambda: bill(NETWORK, (6,)), "shape"),
    Refusal("a bill of no input", lambda: bill(NETWORK, (0,)), "size of an input"),
    Refusal("a latency of no run", lambda: latency(NETWORK, INPUTS, repeats=0), "repeats"),
    Refusal("a refit of no tap", lambda: refit_readers(Refit(), [], NETWORK, INPUTS, generator=RNG), "0 taps"),
    Refusal("a refit of other units", lambda: refit_readers(Refit(), [view(NETWORK, "hidden", [0, 1])], NETWORK, INPUTS, generator=RNG), "kept units"),
]  # fmt: skip
MOMENTS_NAN = dataclasses.replace(MOMENTS, regressor=np.full((D, D), np.nan))
INTERCHANGES = [
    Refusal("a view of an unknown tap", lambda: view(NETWORK, "nope", [0]), "nope"),
    Refusal("a view of no unit", lambda: view(NETWORK, "hidden", []), "no units"),
    Refusal("a view of a unit twice", lambda: view(NETWORK, "hidden", [1, 1]), "each once"),
    Refusal("a view of a negative unit", lambda: view(NETWORK, "hidden", [-1]), "0 to 3"),
    Refusal("a view of fractions", lambda: view(NETWORK, "hidden", [0.5]), "integers"),
    Refusal("a view of weights not finite", lambda: view(NOT_FINITE, "hidden", [0]), "finite"),
    Refusal("a view with an edit of an unknown tap", lambda: view(NETWORK, "hidden", [0], {"x": Add(np.zeros((1, D)))}), "x"),
    Refusal("a view with an edit without depth", lambda: view(NETWORK, "hidden", [0], {"hidden": Add(np.zeros(D))}), "depth axis"),
    Refusal("trials of one example", lambda: bernoulli_trials(RNG, examples=1, units=2, probability=0.1, trials=3), "examples 1"),
    Refusal("no trials", lambda: bernoulli_trials(RNG, examples=5, units=2, probability=0.1, trials=0), "trials 0"),
    Refusal("trials of no unit", lambda: bernoulli_trials(RNG, examples=5, units=0, probability=0.1, trials=3), "units 0"),
    Refusal("a probability above 1", lambda: bernoulli_trials(RNG, examples=5, units=2, probability=1.1, trials=3), "0 to 1"),
    Refusal("a probability that is no number", lambda: bernoulli_trials(RNG, examples=5, units=2, probability=np.nan, trials=3), "probability"),
    Refusal("no groups", lambda: group_trials(RNG, examples=5, groups=[], trials=3), "groups"),
    Refusal("an empty group", lambda: group_trials(RNG, examples=5, groups=[[0], []], trials=3), "none empty"),
    Refusal("a group of a negative position", lambda: group_trials(RNG, examples=5, groups=[[-1]], trials=3), "a group"),
    Refusal("a group of a position twice", lambda: group_trials(RNG, examples=5, groups=[[1, 1]], trials=3), "each once"),
    Refusal("a base past the end", _trials(base=TRIALS.base + N), "0 to 19"),
    Refusal("a negative source", _trials(source=TRIALS.source - N), "0 to 19"),
    Refusal("rows as fractions", _trials(base=TRIALS.base + 0.5), "integers"),
    Refusal("sources of other trials", _trials(source=TRIALS.source[:2]), "source rows"),
    Refusal("masks of other units", _trials(masks=TRIALS.masks[:, :2]), "units of the view"),
    Refusal("masks as strengths", _trials(masks=TRIALS.masks * 0.5), "bool"),
    Refusal("trials drawn for more examples than there are", lambda: interchanged_outputs(SEEN, INPUTS[:5], Trials(np.full(2, 7), np.zeros(2, int), TRIALS.masks[:2])), "0 to 4"),
    Refusal("inputs not finite", lambda: interchanged_outputs(SEEN, NAN, TRIALS), "evaluation inputs"),
    Refusal("a misspelt word", lambda: interchanged_outputs(SEEN, INPUTS, TRIALS, replaced="sorce"), "sorce"),
    Refusal("batches of none", lambda: interchanged_outputs(SEEN, INPUTS, TRIALS, batch_size=0), "batch size"),
    Refusal("states of other inputs", lambda: interchanged_outputs(SEEN, INPUTS, TRIALS, states=jnp.zeros((3, D))), "states"),
    Refusal("losses of other trials", lambda: bounded_losses(np.zeros((10, C)), np.zeros((1, C))), "both networks"),
    Refusal("losses of nothing", lambda: bounded_losses(np.zeros((0, C)), np.zeros((0, C))), "both networks"),
    Refusal("a risk without labels", lambda: interventional_risk(SEEN, SEEN, INPUTS, TRIALS, discrepancy=CE), "labels"),
]  # fmt: skip
ROWS = [*REDUCTIONS, *OPTIONS, *FOLDS, *NUMBERS, *INTERCHANGES]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bad_inputs_of_a_reduction_are_refused(row):
    check_refusal(row)


def test_an_output_that_is_not_finite_is_a_loss_of_one():
    dense, reduced = np.zeros((4, C)), np.zeros((4, C))
    dense[1, 0], reduced[2, 1], reduced[3, 2] = np.nan, np.inf, -np.inf
    for loss in bounded_losses(dense, reduced).values():
        np.testing.assert_array_equal(loss, [0, 1, 1, 1])


def test_a_file_of_another_kind_is_no_plan(tmp_path):
    (tmp_path / "plan").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot read a plan"):
        load_plan(tmp_path / "plan")


def test_a_plan_of_scores_that_are_not_numbers_is_not_read(tmp_path):
    plan = Plan((FOLD,), (np.full(D, np.nan),), (None,), ({},), ("",))
    plan.save(tmp_path / "plan")
    with pytest.raises(ValueError, match="finite"):
        load_plan(tmp_path / "plan")


def test_a_fold_is_a_value_of_units():
    assert isinstance(FOLD, Fold)
    assert FOLD.width == D
