"""Bad costs, distances, scopes and options of couplings: a new entry point joins by a row."""

import numpy as np
import pytest
from refusals import Refusal, check_refusal

from abstraction.localization.couplings import (
    gromov_wasserstein_couplings,
    nearest_coupling,
    reference_couplings,
    relative_epsilons,
    score_coupling,
    sinkhorn_couplings,
)

COST = np.random.default_rng(0).uniform(size=(3, 7)).astype(np.float32)
ALL = np.ones((1, 7), bool)
EPSILON = np.array([[0.1]], np.float32)
SQUARE = np.abs(np.subtract.outer(np.arange(4.0), np.arange(4.0))).astype(np.float32)


def _cost(value, *place):
    """Put a value at some places, `[row, column]`, or in a whole row or column."""
    cost = COST.copy()
    for index in place:
        cost[index] = value
    return cost


def _solve(cost=COST, epsilons=EPSILON, scopes=None, **options):
    return sinkhorn_couplings(cost, epsilons, scopes, **options)


def _reference(cost=COST, epsilons=(0.1,), **options):
    return reference_couplings(cost, epsilons, **options)


def _gromov(abstract=SQUARE, neural=SQUARE, epsilons=(0.1,), **options):
    return gromov_wasserstein_couplings(abstract, neural, epsilons, **options)


def _distance(value, *place):
    distance = SQUARE.copy()
    for index in place:
        distance[index] = value
    return distance


WHOLE, NAN, INF = slice(None), np.nan, np.inf
TWO = np.array([[True] * 4 + [False] * 3, [False] * 4 + [True] * 3])
HALF = _cost(INF, (0, TWO[1]))

COSTS = [
    row
    for name, call in (
        ("eps", lambda cost: relative_epsilons(cost, ALL, [0.1])),
        ("sinkhorn", _solve),
        ("reference", _reference),
        ("nearest", nearest_coupling),
    )
    for row in (
        Refusal(f"{name}: NaN", lambda call=call: call(_cost(NAN, (1, 2))), r"got cost nan at \[1, 2\]"),
        Refusal(f"{name}: -inf", lambda call=call: call(_cost(-INF, (2, 6))), r"got cost -inf at \[2, 6\]"),
        Refusal(f"{name}: a row forbidden", lambda call=call: call(_cost(INF, (1, WHOLE))), "forbid|got cost inf"),
        Refusal(f"{name}: no sites", lambda call=call: call(COST[:, :0]), r"\(3, 0\)|of 0 sites|without sites"),
        Refusal(f"{name}: no variables", lambda call=call: call(COST[:0]), r"costs of shape \(0, 7\)"),
        Refusal(f"{name}: one axis", lambda call=call: call(COST[0]), r"costs of shape \(7,\)"),
        Refusal(f"{name}: complex costs", lambda call=call: call(COST * 1j), "type complex64"),
    )
] + [
    Refusal("eps: a row forbidden in a scope", lambda: relative_epsilons(HALF, TWO, [0.1]), "scope 1"),
    Refusal("sinkhorn: likewise", lambda: _solve(HALF, EPSILON.repeat(2, 0), TWO), r"variables \[0\]"),
    Refusal("sinkhorn: a site forbidden to all", lambda: _solve(_cost(INF, (WHOLE, 3))), r"got sites \[3\] forbidden"),
    Refusal("reference: a forbidden pair", lambda: _reference(_cost(INF, (0, 0))), "for sinkhorn_couplings"),
    Refusal("score: NaN", lambda: score_coupling(_cost(NAN, (0, 4))), r"got score nan at \[0, 4\]"),
    Refusal("score: inf", lambda: score_coupling(_cost(INF, (0, 4))), r"got score inf at \[0, 4\]"),
    Refusal("score: a row forbidden", lambda: score_coupling(_cost(-INF, (2, WHOLE))), r"variables \[2\]"),
    Refusal("score: none", lambda: score_coupling(COST[:0]), "got scores of shape"),
]  # fmt: skip

OPTIONS = [
    Refusal("eps: a ratio of 0", lambda: relative_epsilons(COST, ALL, [0.1, 0.0]), "got epsilon ratios"),
    Refusal("eps: a ratio that is NaN", lambda: relative_epsilons(COST, ALL, [NAN]), "got epsilon ratios"),
    Refusal("eps: no ratio", lambda: relative_epsilons(COST, ALL, []), "got epsilon ratios"),
    Refusal("eps: an empty scope", lambda: relative_epsilons(COST, ALL & False, [0.1]), "scope without sites"),
    Refusal("eps: scopes of other sites", lambda: relative_epsilons(COST, ALL[:, :6], [0.1]), "got scopes of shape"),
    Refusal("eps: scopes as indices", lambda: relative_epsilons(COST, np.array([[0, 1, 2]]), [0.1]), "truth values"),
    Refusal("eps: scopes as weights", lambda: relative_epsilons(COST, np.ones((1, 7)), [0.1]), "type float64"),
    Refusal("sinkhorn: one scope without its row", lambda: _solve(scopes=ALL[0]), "got scopes of shape"),
    Refusal("sinkhorn: no scopes", lambda: _solve(scopes=ALL[:0]), "got scopes of shape"),
    Refusal("sinkhorn: eps of another scope", lambda: _solve(scopes=TWO), "got epsilons of shape"),
    Refusal("sinkhorn: eps in one axis", lambda: _solve(epsilons=EPSILON[0]), "got epsilons of shape"),
    Refusal("sinkhorn: negative eps", lambda: _solve(epsilons=-EPSILON), "got epsilons"),
    Refusal("sinkhorn: infinite eps", lambda: _solve(epsilons=EPSILON * INF), "got epsilons"),
    Refusal("sinkhorn: eps that float32 takes for 0", lambda: _solve(epsilons=np.array([[1e-60]])), "float32 can hold"),
    Refusal("sinkhorn: eps that is 0 for costs", lambda: _solve(COST * 1e30, np.array([[1e-30]])), "float32 can hold"),
    Refusal("sinkhorn: tau above 1", lambda: _solve(tau_neural=1.1), "got tau"),
    Refusal("sinkhorn: tau of 0", lambda: _solve(tau_abstract=0.0), "got tau"),
    Refusal("sinkhorn: tau that is NaN", lambda: _solve(tau_neural=NAN), "got tau"),
    Refusal("sinkhorn: negative iterations", lambda: _solve(iterations=-5), "got iterations -5"),
    Refusal("sinkhorn: no iterations", lambda: _solve(iterations=0), "got iterations 0"),
    Refusal("sinkhorn: half an iteration", lambda: _solve(iterations=1.5), "got iterations 1.5"),
    Refusal("reference: eps of 0", lambda: _reference(epsilons=(0.0,)), "got epsilons"),
    Refusal("reference: no eps", lambda: _reference(epsilons=()), "got epsilons"),
    Refusal("reference: a negative beta", lambda: _reference(beta_neural=(None, -1.0)), "got neural betas"),
    Refusal("reference: a beta that is NaN", lambda: _reference(beta_abstract=NAN), "got abstract betas"),
    Refusal("reference: no beta", lambda: _reference(beta_neural=()), "got neural betas"),
    Refusal("reference: negative iterations", lambda: _reference(iterations=-1), "got iterations -1"),
    Refusal("score: a negative temperature", lambda: score_coupling(COST, temperature=-1.0), "got temperature"),
    Refusal("score: a temperature that is NaN", lambda: score_coupling(COST, temperature=NAN), "got temperature"),
    Refusal("score: an infinite temperature", lambda: score_coupling(COST, temperature=INF), "got temperature"),
]

DISTANCES = [
    Refusal("gw: not square", lambda: _gromov(neural=SQUARE[:3]), r"neural distances of shape \(3, 4\)"),
    Refusal("gw: not symmetric", lambda: _gromov(_distance(9.0, (0, 1))), r"abstract distance 9.0 at \[0, 1\]"),
    Refusal("gw: NaN", lambda: _gromov(neural=_distance(NAN, (1, 0), (0, 1))), r"neural distance nan at \[0, 1\]"),
    Refusal("gw: inf", lambda: _gromov(neural=_distance(INF, (1, 0), (0, 1))), "neural distance inf"),
    Refusal("gw: negative", lambda: _gromov(_distance(-1.0, (1, 0), (0, 1))), "abstract distance -1.0"),
    Refusal("gw: similarities", lambda: _gromov(np.eye(4, dtype=np.float32)), "0 from a thing to itself"),
    Refusal("gw: no distances", lambda: _gromov(SQUARE[:0, :0]), "abstract distances of shape"),
    Refusal("gw: no eps", lambda: _gromov(epsilons=()), "got epsilons"),
    Refusal("gw: eps that is NaN", lambda: _gromov(epsilons=(NAN,)), "got epsilons"),
    Refusal("gw: alpha of 0", lambda: _gromov(alpha=0.0), "got alpha 0.0"),
    Refusal("gw: alpha that is NaN", lambda: _gromov(alpha=NAN), "got alpha nan"),
    Refusal("gw: a fused problem without costs", lambda: _gromov(alpha=0.5), "cross cost False"),
    Refusal("gw: costs without a fused problem", lambda: _gromov(cross_cost=SQUARE), "cross cost True"),
    Refusal("gw: costs of another shape", lambda: _gromov(cross_cost=SQUARE[:3], alpha=0.5), "cross cost of shape"),
    Refusal("gw: a cost that is NaN", lambda: _gromov(cross_cost=_distance(NAN, (2, 3)), alpha=0.5), "cross cost nan"),
    Refusal("gw: a forbidden pair", lambda: _gromov(cross_cost=_distance(INF, (2, 3)), alpha=0.5), "cross cost inf"),
    Refusal("gw: no linearisation", lambda: _gromov(outer_iterations=0), "got outer iterations 0"),
]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in (*COSTS, *OPTIONS, *DISTANCES)])
def test_bad_costs_and_options_are_refused(row, unchecked):
    check_refusal(row)
