"""Hierarchical equality, the first benchmark of the PLOT paper.

    python -m experiments heq --seeds 1:11

Trains one MLP per seed (16-16-16-16-2), finds WX = [W = X] and YZ = [Y = Z] in it by every method, and tests each
frozen handle once, beside its controls. Expected over seeds 1 to 10, test IIA on sensitive pairs: `plot-ot` above
.993, `das` above .997; the authors' code gives .9928 and .9950. About half a minute per seed on two cores.

Rows named `*-paper` are the paper's variants: its banks, its solver with its clamp, its grids, ties in site order,
one eps for both variables, chosen on calibration (the paper chose it on test). All other rows choose on pairs drawn
independently (`--banks.policy paper` puts them on the paper's banks too). Every row is tested on the same banks: the
paper's, and `test-specific`, pairs that must not change because only the other variable differs.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
import optax

from abstraction.causal import PairBank
from abstraction.evaluation import CLASSES, Recorded, accuracy, full_state_handles, record
from abstraction.evaluation.metrics import balanced_accuracy
from abstraction.interventions import Handle, factual_outputs, unit_sites
from abstraction.localization import (
    BruteForce,
    Cosine,
    CutMenu,
    GromovWasserstein,
    Nearest,
    ReferenceTransport,
    Rotation,
    Selection,
    Signature,
    Transport,
    candidate_grid,
    full_supports,
)
from abstraction.localization.calibration import calibrate_candidates
from abstraction.localization.rules import single_site_scores
from abstraction.models import MLP, Network
from abstraction.tasks import equality
from abstraction.training import Schedule, Stop, Watch, fit
from abstraction.typing import Params
from experiments.equality.options import HEQ, METHODS, DasOptions, EqualityBanks, Method, quick
from experiments.harness.checks import check
from experiments.harness.methods import (
    Bench,
    Outcome,
    control_rows,
    keep_choice,
    run_localization,
    run_search,
    same_time,
    test_outcome,
)
from experiments.harness.records import Row, RunFolder, Unit, digest
from experiments.harness.running import Experiment
from experiments.harness.timing import stopwatch
from experiments.harness.trainings import Training, require_finite

NAME = "heq"
TAP = "hidden"


@dataclasses.dataclass(frozen=True)
class EqualityLoss:
    """Cross-entropy of the network on factual rows; the context holds the entities' vectors."""

    model: MLP

    def __call__(self, params: Params, batch: dict[str, jax.Array], vectors: jax.Array) -> jax.Array:
        outputs, _ = self.model.apply(params, equality.encode(vectors, batch["rows"]))
        return CLASSES.loss(outputs, batch["labels"]).mean()


def run_seed(config: HEQ, seed: int, run: RunFolder, report: Callable[[str], None]) -> Unit:
    """Train one network, run every method on it, and return the seed's unit."""
    names = ("init", "order", *METHODS)
    keys: dict[str, jax.Array] = dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))
    vectors = equality.entities(seed)
    model = MLP(equality.ENTITY_WIDTH * 4, config.backbone.width, config.backbone.depth, equality.CLASSES)
    report(f"seed {seed}: pair banks")
    with stopwatch() as drawing:
        banks = _draw_banks(config.banks, seed)
    report(f"seed {seed}: backbone")
    params, rows, details = train_network(config, seed, model, vectors, keys, run, report)
    with stopwatch() as recording:
        paper, ours = _benches(config, Network(model, params), vectors, *banks)
    preparing = drawing + recording
    rows.append(Row(NAME, "banks", "mean", "test", "seconds", seed, preparing.run))
    rows.append(Row(NAME, "banks", "mean", "test", "seconds_compile", seed, preparing.compile))
    rows += control_rows(ours, NAME, seed)
    arrays: dict[str, np.ndarray] = {}
    for method in config.methods:
        report(f"seed {seed}: {method}")
        bench = paper if method.endswith("-paper") else ours
        outcome = _run_method(config, method, bench, keys[method], report)
        tested = test_outcome(
            bench,
            outcome,
            experiment=NAME,
            method=method,
            seed=seed,
            key=jax.random.fold_in(keys[method], 1),
            draws=config.control_draws,
            shuffles=config.control_shuffles,
        )
        keep_choice(run.path, bench, outcome.choice, f"{method}-seed-{seed}")
        rows += tested[0]
        details[method] = tested[1]
        arrays |= tested[2]
    return Unit(f"seed-{seed}", rows, details, arrays)


def train_network(
    config: HEQ,
    seed: int,
    model: MLP,
    vectors: np.ndarray,
    keys: dict[str, jax.Array],
    run: RunFolder,
    report: Callable[[str], None],
) -> tuple[Params, list[Row], dict[str, Any]]:
    """Train a seed's network, or continue, and return its parameters, their rows, and the digest of the data."""
    options = config.backbone
    data = equality.factual_data(seed + 1, options.rows)
    uniform = equality.factual_data(seed + 2, options.validation_rows)
    cells = equality.balanced_data(seed + 3, options.validation_rows)
    inputs = equality.encode(vectors, np.concatenate([uniform["rows"], cells["rows"]]))

    def validate(params: Params) -> dict[str, float]:
        predictions = np.asarray(factual_outputs(Network(model, params), inputs)).argmax(axis=-1)
        predicted, balanced = np.split(predictions, [options.validation_rows])
        right = balanced == cells["labels"]
        return {
            "accuracy": accuracy(predicted, uniform["labels"]),
            "balanced_accuracy": balanced_accuracy(predicted, uniform["labels"]),
            "worst_cell": min(float(right[cells["cells"] == cell].mean()) for cell in range(4)),
        }

    watch = Training(
        run.path / "checkpoints" / f"seed-{seed}",
        lambda epoch, metrics: report(f"seed {seed}: backbone, epoch {epoch}, worst cell {metrics['worst_cell']:.4f}"),
    )
    with watch.timed() as training:
        trained = fit(
            keys["order"],
            EqualityLoss(model),
            model.init(keys["init"]),
            _adam(options.learning_rate),
            data,
            Schedule(
                options.batch_size,
                options.epochs,
                Stop(options.stop_metric, options.stop_target, options.stop_epochs),
            ),
            Watch(validate, watch.checkpoints, watch),
            context=vectors,
        )
        metrics = validate(trained.params)
    require_finite(trained.params)
    values = {**metrics, "epochs": trained.epochs, "seconds": training.run, "seconds_compile": training.compile}
    rows = [Row(NAME, "backbone", "output", "validation", name, seed, float(v)) for name, v in values.items()]
    details = {"data": digest({**data, "entities": vectors}), "backbone": {**metrics, "epochs": trained.epochs}}
    return trained.params, rows, details


def random_seeds(seed: int) -> dict[str, int]:
    """List every seed that a run's seed stands for; all but the first go to NumPy's PCG64."""
    offsets = {"jax key": 0, "entities": 0, "training": 1, "validation": 2, "validation by cell": 3}
    paper = {"fit": 201, "calibration": 306, "calibration, second bank": 307}
    paper |= {"test wx": 401, "test yz": 402, "invariant wx": 501, "invariant yz": 502}
    offsets |= {f"paper {name}": offset for name, offset in paper.items()}
    offsets |= {f"paper {name}, pool": offset + equality.POOL_SEED for name, offset in paper.items()}
    offsets |= {"independent fit": 2201, "independent calibration": 2301}
    offsets |= {"specific wx": 2601, "specific yz": 2602}
    return {name: seed + offset for name, offset in offsets.items()}


@cache
def _adam(learning_rate: float) -> optax.GradientTransformation:
    """Make the optimizer once: a new one would compile the epoch again."""
    return optax.adam(learning_rate)


def _draw_banks(options: EqualityBanks, seed: int) -> tuple[equality.Banks, equality.Banks]:
    """Draw the paper's banks and ours. They need no network, so an impossible policy fails before one is trained."""
    paper = equality.paper_banks(
        seed,
        size=options.size,
        fit_pool=options.fit_pool,
        calibration_pool=options.calibration_pool,
        test_pool=options.test_pool,
        calibration=options.calibration_policy,
    )
    if options.policy == "paper":
        return paper, paper
    return paper, equality.independent_banks(
        seed, fit=options.fit, calibration=options.calibration, both=options.both, tests=paper.tests
    )


def _benches(
    config: HEQ, network: Network, vectors: np.ndarray, paper: equality.Banks, ours: equality.Banks
) -> tuple[Bench, Bench]:
    """Record the paper's banks and ours; both benches share the tests."""
    recorded = lambda bank: record_equality(network, vectors, bank)
    tests = {split: recorded(bank) for split, bank in paper.tests.items()}
    signature = Signature(config.plot.signature, config.plot.cost, config.plot.unit)
    sites = unit_sites(network.taps[TAP])
    benches = [
        Bench(network, sites, recorded(banks.fit), recorded(banks.calibration), tests, measured_by)
        for banks, measured_by in ((paper, Signature()), (ours, signature))
    ]
    jax.block_until_ready([bench.fit.runs.outputs for bench in benches])
    return benches[0], benches[1]


def record_equality(network: Network, vectors: np.ndarray, bank: PairBank) -> Recorded:
    """Run a bank of hierarchical equality through a network."""
    return record(network, lambda setting: equality.encode(vectors, equality.rows_of(setting)), bank, tap=TAP)


def _run_method(config: HEQ, method: Method, bench: Bench, key: jax.Array, report: Callable[[str], None]) -> Outcome:
    plot, paper = config.plot, config.paper
    menu = CutMenu(plot.subset_sizes, plot.strengths)
    transport = Transport(plot.scope, plot.epsilons, iterations=plot.iterations)
    paper_menu = CutMenu(
        tuple(range(1, paper.subset_sizes + 1)),
        tuple(float(strength) for strength in range(1, paper.strengths + 1)),
        per_site=False,
        break_ties="order",
    )
    reference = ReferenceTransport(paper.epsilons, None, (None,), paper.iterations)
    as_in_paper = Selection(shared_axis="epsilon", first_wins=True)
    match method:
        case "plot-ot":
            return run_localization(bench, transport, menu)
        case "plot-uot":
            return run_localization(bench, dataclasses.replace(transport, taus=plot.taus), menu)
        case "plot-ot-paper":
            return run_localization(bench, reference, paper_menu, as_in_paper)
        case "plot-uot-paper":
            penalties = {"beta_abstract": paper.beta_abstract, "beta_neural": paper.beta_neural}
            return run_localization(bench, dataclasses.replace(reference, **penalties), paper_menu, as_in_paper)
        case "cosine":
            return run_localization(bench, Cosine(scope=plot.scope), menu)
        case "brute-force":
            scores = single_site_scores(bench.network, bench.fit, bench.sites)
            return run_localization(bench, BruteForce(scores, scope=plot.scope), menu)
        case "row-argmin":
            single = CutMenu((1,), paper_menu.strengths)
            return run_localization(bench, Nearest(), single)
        case "gw" | "fgw":
            alpha = 1.0 if method == "gw" else plot.fused_alpha
            # Geometry alone cannot tell two variables apart; its equal sites stay in site order: no cost leaks in.
            ties = "order" if method == "gw" else "cost"
            rule = GromovWasserstein(plot.gw_epsilons, alpha, plot.scope)
            return run_localization(bench, rule, dataclasses.replace(menu, break_ties=ties))
        case "das" | "das-paper":
            return _run_das(config.das if method == "das" else config.paper.das, bench, key, report)
        case "full-state":
            return _run_full_state(bench)


def _run_das(options: DasOptions, bench: Bench, key: jax.Array, report: Callable[[str], None]) -> Outcome:
    tap, (start_key, order_key) = bench.tap, jax.random.split(key)
    candidates = candidate_grid(
        start_key,
        tap,
        full_supports(tap, range(len(bench.variables))),
        ranks=options.ranks,
        learning_rates=options.learning_rates,
        restarts=options.restarts,
    )
    progress = lambda epoch, running: report(f"DAS: epoch {epoch}, {running} searches running")
    featurizer = Rotation(options.parametrization)
    return run_search(bench, order_key, candidates, featurizer, options.training, options.strengths, progress)


def _run_full_state(bench: Bench) -> Outcome:
    """Swap everything at one depth: what no localisation at all achieves."""
    every = full_state_handles(bench.tap)
    depths, variables = len(every.weight), len(bench.variables)
    handles = Handle(TAP, np.tile(every.weight, (variables, 1, 1)))
    with stopwatch() as elapsed:
        choice = calibrate_candidates(
            bench.network,
            bench.evidence,
            handles,
            np.repeat(np.arange(variables), depths),
            [{"depth": depth} for depth in range(depths)] * variables,
            cost=np.tile(np.arange(depths, dtype=float), variables),
        )
    return Outcome(choice, same_time(elapsed), {}, {})


EXPERIMENT = Experiment(NAME, run_seed, random_seeds, check, quick)
