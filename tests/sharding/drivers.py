"""Run the drivers on one device and on a mesh of eight virtual ones, in a process of its own, and compare.

    python tests/sharding/drivers.py pairs=4,candidates=2 signatures tally ...

Prints one line of JSON for each driver: the largest difference of its results, relative to the largest number, and the
arithmetic of its heaviest program on a device as a share of that of one device (XLA's own count; a loop counts once).
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from abstraction.causal import causal_model, label_pairs
from abstraction.evaluation import Recorded, iia, interchange, record
from abstraction.evaluation import text as evaluation_text
from abstraction.evaluation.interchange import bernoulli_trials, interchanged_outputs, view
from abstraction.interventions import Handle, patching, state_sites, unit_sites
from abstraction.localization import (
    Rotation,
    SearchConfig,
    candidate_grid,
    full_supports,
    searching,
    signatures,
    sweep,
    sweeping,
)
from abstraction.localization.effects import measure_effects
from abstraction.localization.searching import train_candidates
from abstraction.models import (
    MLP,
    Activation,
    Decoder,
    DecoderConfig,
    Dense,
    Network,
    Sequential,
    TokenView,
    on_mesh,
    prompts_at,
)
from abstraction.reduction import Calibration, moments, refitting, risk, scores, streaming
from abstraction.reduction import text as reduction_text
from abstraction.reduction.compiling import compile_plan
from abstraction.reduction.folding import affine_fold
from abstraction.reduction.plans import reduction_plan
from abstraction.sharding import device_mesh

TWO_BITS = causal_model(("a", "b"), "y", p=lambda a: a, q=lambda b: b, y=lambda p, q: p + 2 * q)
PAIRS, WIDTH, DEPTH, TOKENS = 64, 64, 8, 12
"""Units of all depths are one whole chunk, so that no device is spared what is padding on another."""
PROGRAMS = {
    "record": (patching, "_run_pairs"),
    "signatures": (signatures, "_site_signatures"),
    "sweep": (sweeping, "_sites"),
    "tally": (iia, "_tally_block"),
    "search": (searching, "_train"),
    "statistics": (streaming, "_rows"),
    "hessian": (moments, "replacement_hessian"),
    "taylor": (scores, "_taylor"),
    "risk": (risk, "_quadratic"),
    "effects": (risk, "_effects"),
    "outputs": (patching, "_outputs"),
    "refit": (refitting, "_descend"),
    "trials": (interchange, "_run"),
    "text": (reduction_text, "_sums"),
    "scores": (evaluation_text, "_scores"),
}
OF_INPUTS = ("statistics", "trials", "hessian", "taylor", "risk", "effects", "outputs", "refit")


class Case(NamedTuple):
    network: Network
    encode: Callable[[dict[str, np.ndarray]], Any]
    tap: str


def mlp() -> Case:
    model = MLP(2, WIDTH, DEPTH, 4)
    encode = lambda s: np.stack([s["a"], s["b"]], axis=1).astype(np.float32)
    return Case(Network(model, model.init(jax.random.key(0))), encode, "hidden")


def layers() -> Case:
    bent = Activation("one", "gelu"), Dense("middle", WIDTH), Activation("two", "gelu")
    model = Sequential((2,), (Dense("stem", WIDTH), *bent, Dense("head", 4)))
    return Case(Network(model, model.init(jax.random.key(0))), mlp().encode, "one")


def decoder() -> Case:
    config = DecoderConfig(vocabulary=64, width=64, depth=2, heads=8, kv_heads=4, head_size=8, hidden=256, tied=True)
    model = Decoder(config, answers=((1,), (2,), (3,), (4,)))
    words = np.random.default_rng(0).integers(5, 64, (2, TOKENS)).astype(np.int32)

    def encode(setting):
        tokens = np.tile(words[0], (len(setting["a"]), 1))
        tokens[:, 3], tokens[:, 7] = 5 + setting["a"], 7 + setting["b"]
        return prompts_at(tokens)

    return Case(Network(TokenView(model), model.init(jax.random.key(0))), encode, "block_output")


def language() -> Case:
    """A decoder of its whole vocabulary."""
    config = DecoderConfig(vocabulary=64, width=64, depth=2, heads=8, kv_heads=8, head_size=8, hidden=256, tied=True)
    model = Decoder(config)
    return Case(Network(model, model.init(jax.random.key(0))), lambda setting: None, "block_output")


def bank(case: Case, network: Network, role: str = "fit") -> Recorded:
    draw = lambda seed: {n: np.random.default_rng([seed, i]).integers(2, size=PAIRS) for i, n in enumerate("ab")}
    pairs = label_pairs(TWO_BITS, draw(1), draw(2), variables=("p", "q"), role=role)
    return record(network, case.encode, pairs, tap=case.tap)


def results(driver: str, case: Case, network: Network) -> Any:
    """Run one driver; whatever it returns is compared."""
    if driver in ("text", "scores"):
        return of_text(driver, network)
    tap = network.taps[case.tap]
    if driver in OF_INPUTS:
        return of_inputs(driver, network, case.tap)
    fit = bank(case, network)
    sites = unit_sites(tap) if tap.depth == DEPTH else state_sites(tap)
    if driver == "record":
        return fit.runs
    if driver == "signatures":
        effects = measure_effects(network, fit, sites)
        return effects.neural, effects.cost
    if driver == "sweep":
        found = sweep(network, fit, 1 if tap.depth == DEPTH else None)
        return found.values, found.levels
    if driver == "tally":
        count = 24 * tap.depth
        weight = np.random.default_rng(0).random((count, tap.width)).astype(np.float32)
        handles = Handle(tap.name, weight, None, np.repeat(np.arange(tap.depth, dtype=np.int32), 24))
        found = iia.tally_handles(network, fit, handles, np.arange(count) % 2)
        return found.hits, found.loss
    # Frames are found by every device of `pairs`: a batch has to be work beside them.
    config = SearchConfig(batch_size=PAIRS, max_epochs=2, patience=9)
    grid = candidate_grid(jax.random.key(0), tap, full_supports(tap, range(2)), ranks=(1, 2), restarts=2)
    found = train_candidates(jax.random.key(1), network, fit, grid, Rotation(), config)
    return found.curve, found.handles.basis


def of_inputs(driver: str, network: Network, tap: str) -> Any:
    """Run a driver that looks at inputs; their number does not divide."""
    inputs = np.random.default_rng(0).standard_normal((PAIRS + 3, 2)).astype(np.float32)
    if driver == "statistics":
        return moments.collect_statistics(network, inputs, tap, batch_size=PAIRS + 3)
    if driver == "hessian":
        return moments.collect_statistics(network, inputs, tap, curvature="hessian", batch_size=PAIRS + 3)
    if driver in ("taylor", "risk", "effects", "outputs", "refit"):
        return of_reduction(driver, network, tap, inputs[:PAIRS])
    trials = bernoulli_trials(np.random.default_rng(0), examples=len(inputs), units=8, probability=0.5, trials=130)
    return interchanged_outputs(view(network, tap, np.arange(8)), inputs, trials, batch_size=128)


def of_reduction(driver: str, network: Network, tap: str, inputs: np.ndarray) -> Any:
    """Run what else a reduction does with its inputs."""
    half, rest = np.arange(WIDTH // 2), np.arange(WIDTH // 2, WIDTH)
    means = np.linspace(0, 1, WIDTH, dtype=np.float32)
    if driver == "outputs":
        return patching.factual_outputs(network, inputs)
    if driver == "taylor":
        labels = (np.arange(len(inputs)) % 4).astype(np.int32)
        return scores.taylor_scores(network, Calibration(inputs, labels), tap, means)
    if driver == "effects":
        return risk.replacement_effects(network, inputs, tap, means)
    fold = affine_fold(tap, half, rest, means[rest], np.eye(len(rest), dtype=np.float32) / 2, width=WIDTH)
    if driver == "risk":
        return risk.second_order_risk(network, inputs, fold)
    smaller = compile_plan(network, reduction_plan(network, [fold]))
    how, dense = refitting.Refit(steps=1), [view(network, tap, half)]
    return refitting.refit_readers(how, dense, smaller, inputs, generator=np.random.default_rng(0)).before


def of_text(driver: str, network: Network) -> Any:
    """Run a driver that reads rows of text; the last batch is not full."""
    rows = np.random.default_rng(0).integers(0, 64, (21, TOKENS)).astype(np.int32)
    if driver == "text":
        return reduction_text.text_statistics(network, rows, jax.random.key(1), batch_size=16)
    return evaluation_text.score_text(network, evaluation_text.dense_text(network, rows, batch_size=16), batch_size=16)


class Spy:
    """A compiled function that keeps the arithmetic of the first program it is called for, on one device."""

    def __init__(self, program: Any):
        self.program, self.flops = program, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.program, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.flops = self.flops or self.program.lower(*args, **options).compile().cost_analysis()["flops"]
        return self.program(*args, **options)


def counted(driver: str, run: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a driver gives, and the arithmetic of its program."""
    module, name = PROGRAMS[driver]
    spy = Spy(getattr(module, name))
    setattr(module, name, spy)
    try:
        return jax.device_get(run()), spy.flops
    finally:
        setattr(module, name, spy.program)


def difference(one: Any, other: Any) -> float:
    """Return the largest difference of two results, relative to the largest number of each array."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        assert (np.isfinite(a) == np.isfinite(b)).all()
        there = np.isfinite(a)
        if there.any():
            worst = max(worst, float(np.abs(a - b)[there].max() / max(1.0, np.abs(a[there]).max())))
    return worst


def main(sizes: str, *drivers: str) -> None:
    mesh = device_mesh(**{name: int(size) for name, size in (part.split("=") for part in sizes.split(","))})
    for name in drivers:
        driver, _, kind = name.partition(":")
        plain = layers if driver in OF_INPUTS else mlp
        case = {"": plain, "decoder": decoder, "language": language}[kind]()
        networks = case.network, on_mesh(case.network, mesh)
        (alone, whole), (shared, own) = (counted(driver, partial(results, driver, case, one)) for one in networks)
        print(json.dumps({"driver": name, "difference": difference(alone, shared), "share": own / whole}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
