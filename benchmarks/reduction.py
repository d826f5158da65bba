"""Mechanism reduction on a 784-512-512-10 network with 2000 calibration inputs (CMR).

    elimination   the whole path 512 -> 8 by exact affine elimination, float64
    affine maps   256 replaced units regressed on 8 parents each
    statistics    moments and curvature of the last hidden layer
    diagonal      Hessian diagonal of KL at the first hidden layer, per example

The weights are random, which no time here depends on. PyTorch runs in float64 where ours does, with all cores.
"""

from typing import NamedTuple

import jax
import numpy as np

from abstraction.models import Activation, Dense, Network, Sequential
from abstraction.reduction import Calibration
from abstraction.reduction.curvature import gauss_newton_rows
from abstraction.reduction.discrepancies import KL
from abstraction.reduction.elimination import eliminate
from abstraction.reduction.fitting import choose_parents, correlated_parents, fit_sparse, fit_weighted
from abstraction.reduction.moments import collect_statistics, law_moments
from benchmarks import torch_reduction
from benchmarks.records import Row, compare, measure, require_agreement

MODEL = Sequential(
    (784,),
    (Dense("fc1", 512), Activation("hidden1"), Dense("fc2", 512), Activation("hidden2"), Dense("fc_out", 10)),
)
KEEP, PARENTS, ROWS, PATH_TO = 256, 8, 2000, 8


class Problem(NamedTuple):
    """A network, inputs, and the last hidden layer on them in float64."""

    params: dict
    inputs: np.ndarray
    hidden: np.ndarray
    outputs: np.ndarray


def problem() -> Problem:
    """Draw a network and inputs."""
    params = jax.tree.map(lambda leaf: 2 * leaf, MODEL.init(jax.random.key(0)))
    inputs = np.random.default_rng(0).standard_normal((ROWS, 784)).astype(np.float32)
    outputs, recorded = MODEL.apply(params, inputs, record=("hidden2",))
    return Problem(params, inputs, np.asarray(recorded["hidden2"][0], np.float64), np.asarray(outputs))


def run(budget: float) -> list[Row]:
    """Time every part."""
    case = problem()
    return [row for part in (_elimination, _affine, _statistics, _diagonal) for row in part(case, budget)]


def _elimination(case: Problem, budget: float) -> list[Row]:
    statistics = collect_statistics(Network(MODEL, case.params), case.inputs, "hidden2")
    metric = np.asarray(case.params["fc_out"]["kernel"], np.float64)
    metric = metric - metric.mean(1, keepdims=True)
    observed, law = law_moments(statistics), law_moments(statistics, (0.0, 0.1, 0.2))
    ours = lambda: eliminate(metric @ metric.T, observed, keep=PATH_TO).increases
    under_law = lambda: eliminate(metric @ metric.T, law, keep=PATH_TO).increases
    loop = lambda: torch_reduction.elimination(metric.T, np.asarray(observed.regressor), PATH_TO)
    baseline = "PyTorch loop, float64: rank-one updates"
    require_agreement({"abstraction": ours().sum(), baseline: loop().sum()}, atol=0.0, rtol=2e-2)  # ridge in the target
    timings = {baseline: measure(loop, budget=budget)}
    timings["abstraction, observed"] = measure(ours, budget=budget, compiled=True)
    timings["abstraction, under interventions"] = measure(under_law, budget=budget, compiled=True)
    return compare("elimination", f"path 512 -> {PATH_TO}, 10 classes, float64", timings, baseline=baseline)


def _affine(case: Problem, budget: float) -> list[Row]:
    """Compare the authors' map, then the one from moments, which are there already when units have been ranked."""
    order = np.random.default_rng(1).permutation(512)
    kept, replaced = np.sort(order[:KEEP]), np.sort(order[KEEP:])
    parents = correlated_parents(case.hidden, kept, PARENTS)
    rows = gauss_newton_rows(Network(MODEL, case.params), Calibration(case.inputs, target=case.outputs), "hidden2", KL)
    weights = np.maximum(np.asarray((rows**2).sum(0)[:, 0], np.float64)[:, replaced], 1e-8)
    arguments = (case.hidden[:, kept], case.hidden[:, replaced], weights)
    solved = lambda fit: np.take_along_axis(fit.coefficients, parents, axis=1)
    ours = lambda: solved(fit_weighted(case.hidden, weights, kept, correlated_parents(case.hidden, kept, PARENTS)))
    loop, batch = "PyTorch, unit by unit", "PyTorch, one batched solve"
    rivals = {
        loop: lambda: torch_reduction.affine_loop(*arguments, PARENTS),
        batch: lambda: torch_reduction.affine_batch(*arguments, parents),
    }
    require_agreement({"abstraction": ours(), **{name: rival() for name, rival in rivals.items()}}, atol=1e-6)
    timings = {name: measure(rival, budget=budget) for name, rival in rivals.items()}
    timings["abstraction"] = measure(ours, budget=budget, compiled=True)
    size = f"{len(replaced)} units x {PARENTS} parents, {ROWS} examples, float64"
    weighted = compare("affine maps, weighted", size, timings, baseline=loop)
    moments = law_moments(collect_statistics(Network(MODEL, case.params), case.inputs, "hidden2"), ridge=0.0)
    equal = np.ones_like(weights)

    def from_moments() -> np.ndarray:
        chosen = choose_parents(moments, kept, PARENTS, "correlation")
        return np.take_along_axis(fit_sparse(moments, kept, chosen).coefficients, chosen, axis=1)

    unit_by_unit = lambda: torch_reduction.affine_loop(*arguments[:2], equal, PARENTS, ridge=0.0)
    require_agreement({"abstraction": from_moments(), loop: unit_by_unit()}, atol=1e-6)
    timings = {loop: measure(unit_by_unit, budget=budget)}
    timings["abstraction, from the moments of the ranking"] = measure(from_moments, budget=budget, compiled=True)
    return weighted + compare("affine maps, unweighted", size, timings, baseline=loop)


def _statistics(case: Problem, budget: float) -> list[Row]:
    kernel = np.asarray(case.params["fc_out"]["kernel"]).T
    arrays = torch_reduction.torch_network(case.params)
    ours = lambda: collect_statistics(Network(MODEL, case.params), case.inputs, "hidden2").kappa_kappa
    closed = lambda: torch_reduction.last_layer_moments(arrays, case.inputs, kernel)
    baseline = "PyTorch, closed form of the last layer"
    require_agreement({"abstraction": ours(), baseline: closed()}, atol=1e-5)
    timings = {baseline: measure(closed, budget=budget)}
    timings["abstraction, any layer, with covariance and D x D curvature"] = measure(ours, budget=budget, compiled=True)
    return compare(
        "statistics", f"{ROWS} examples, 512 units, 10 classes, network included", timings, baseline=baseline
    )


def _diagonal(case: Problem, budget: float) -> list[Row]:
    inputs, outputs = case.inputs[:256], case.outputs[:256]
    network, batch = Network(MODEL, case.params), Calibration(inputs, target=outputs)
    ours = lambda: (gauss_newton_rows(network, batch, "hidden1", KL) ** 2).sum(0)[:, 0]
    arrays = torch_reduction.torch_network(case.params)
    rivals = {
        "torch.func, a vjp per class": lambda: torch_reduction.diagonal_by_classes(arrays, inputs),
        "torch.func, Hessian-vector products": lambda: torch_reduction.diagonal_by_products(arrays, inputs),
    }
    require_agreement({"abstraction": ours(), **{name: rival() for name, rival in rivals.items()}}, atol=1e-5)
    timings = {name: measure(rival, budget=budget) for name, rival in rivals.items()}
    timings["abstraction, a vjp per class"] = measure(ours, budget=budget, compiled=True)
    size = "512 units, 256 examples, 10 classes"
    return compare("curvature diagonal", size, timings, baseline="torch.func, a vjp per class")
