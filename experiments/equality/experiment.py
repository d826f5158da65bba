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
from functools import cache

import jax
import numpy as np
import optax

from abstraction.causal import PairBank
from abstraction.evaluation import CLASSES, Recorded, Repeats, accuracy, record
from abstraction.evaluation.metrics import balanced_accuracy
from abstraction.evaluation.readouts import FactualLoss
from abstraction.interventions import factual_outputs, unit_sites
from abstraction.localization import (
    BruteForce,
    Cosine,
    CutMenu,
    GromovWasserstein,
    Nearest,
    ReferenceTransport,
    Selection,
    Signature,
    Transport,
    full_supports,
)
from abstraction.localization.rules import single_site_scores
from abstraction.models import MLP, Network
from abstraction.tasks import equality
from abstraction.training import Schedule, Stop, Watch, fit
from abstraction.typing import Params
from experiments.equality.cost import costs
from experiments.equality.options import METHODS, PAPER_METHODS, Backbone, Equality, EqualityBanks
from experiments.equality.shown import REPORT
from experiments.harness.meshes import placed
from experiments.harness.methods import Bench, Outcome, Tell, full_state, rotations, run_localization, run_search
from experiments.harness.outcomes import kept_pairs
from experiments.harness.records import RunFolder, Unit, digest
from experiments.harness.results import Results, seed_keys
from experiments.harness.running import Experiment
from experiments.harness.timing import stopwatch
from experiments.harness.trainings import Training, require_finite

NAME = "heq"
TAP = "hidden"


def run_seed(config: Equality, seed: int, run: RunFolder, tell: Tell) -> Unit:
    """Train one network, run every method on it, and return the seed's unit."""
    keys = seed_keys(seed, ("init", "order", *METHODS))
    results = Results(NAME, seed, Repeats(config.control_draws, config.control_shuffles))
    tell("pair banks")
    with stopwatch() as drawing:
        banks = _draw_banks(config.banks, seed)
    tell("backbone")
    network = placed(train_network(config.backbone, results, keys, run, tell), config.mesh)
    with stopwatch() as recording:
        paper, ours = _benches(config, network, *banks, equality.entities(seed))
    results.took("banks", drawing + recording)
    results.compare(ours)
    results.details["pairs"] = kept_pairs(ours)
    for method in config.methods:
        tell(method)
        bench, say = paper if method in PAPER_METHODS else ours, lambda text, method=method: tell(f"{method}, {text}")

        def search(part: Results, method: str = method, bench: Bench = bench, say: Tell = say) -> None:
            outcome = _run_method(config, method, bench, keys[method], say)
            part.take(run.path, bench, method, outcome, jax.random.fold_in(keys[method], 1))

        results.part(run, method, search)
    return results.unit


def train_network(
    options: Backbone, results: Results, keys: dict[str, jax.Array], run: RunFolder, tell: Tell
) -> Network:
    """Train a seed's network, or continue; what is known of it goes to the results."""
    seed, vectors = results.seed, equality.entities(results.seed)
    model = MLP(equality.ENTITY_WIDTH * 4, options.width, options.depth, equality.CLASSES)
    data, validate = equality.factual_data(seed + 1, options.rows), _Validation(model, options.validation_rows, seed)
    watch = Training(
        run.path / "checkpoints" / f"seed-{seed}",
        lambda epoch, metrics: tell(f"backbone, epoch {epoch}, worst cell {metrics['worst_cell']:.4f}"),
    )
    stop = Stop(options.stop_metric, options.stop_target, options.stop_epochs)
    with watch.timed() as training:
        trained = fit(
            keys["order"],
            FactualLoss(model, CLASSES, equality.encoded_rows),
            model.init(keys["init"]),
            _adam(options.learning_rate),
            data,
            Schedule(options.batch_size, options.epochs, stop),
            Watch(validate, watch.checkpoints, watch),
            context=vectors,
        )
        metrics = validate(trained.params)
    require_finite(trained.params)
    known = {**metrics, "epochs": trained.epochs}
    times = {"seconds": training.run, "seconds_compile": training.compile}
    results.add("backbone", "output", "validation", **known, **times)
    results.details.update(data=digest({**data, "entities": vectors}), backbone=known)
    return Network(model, trained.params)


class _Validation:
    """What is measured of a network while it is trained: on uniform rows, and on balanced ones by combination."""

    def __init__(self, model: MLP, rows: int, seed: int):
        self._model, self._rows = model, rows
        self._uniform, self._cells = equality.factual_data(seed + 2, rows), equality.balanced_data(seed + 3, rows)
        both = np.concatenate([self._uniform["rows"], self._cells["rows"]])
        self._inputs = equality.encode(equality.entities(seed), both)

    def __call__(self, params: Params) -> dict[str, float]:
        classes = np.asarray(factual_outputs(Network(self._model, params), self._inputs)).argmax(axis=-1)
        uniform, balanced = np.split(classes, [self._rows])
        return answers(uniform, balanced, self._uniform, self._cells)


def answers(
    uniform: np.ndarray, balanced: np.ndarray, rows: dict[str, np.ndarray], cells: dict[str, np.ndarray]
) -> dict[str, float]:
    """Score answers to uniform rows and to balanced ones, these by combination of the causal variables."""
    right = balanced == cells["labels"]
    return {
        "accuracy": accuracy(uniform, rows["labels"]),
        "balanced_accuracy": balanced_accuracy(uniform, rows["labels"]),
        "worst_cell": min(float(right[cells["cells"] == cell].mean()) for cell in range(4)),
    }


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
    pools = {name: getattr(options, name) for name in ("size", "fit_pool", "calibration_pool", "test_pool")}
    paper = equality.paper_banks(seed, **pools, calibration=options.calibration_policy)
    if options.policy == "paper":
        return paper, paper
    sizes = {name: getattr(options, name) for name in ("fit", "calibration", "both")}
    return paper, equality.independent_banks(seed, **sizes, tests=paper.tests)


def _benches(
    config: Equality, network: Network, paper: equality.Banks, ours: equality.Banks, vectors: np.ndarray
) -> tuple[Bench, Bench]:
    """Record the paper's banks and ours; both benches share the tests."""
    recorded = lambda bank: record_equality(network, vectors, bank)
    tests = {split: recorded(bank) for split, bank in paper.tests.items()}
    signature = Signature(config.plot.signature, config.plot.cost, config.plot.unit)
    sites = unit_sites(network.taps[TAP])
    first, second = (
        Bench(network, sites, recorded(banks.fit), recorded(banks.calibration), tests, measured_by)
        for banks, measured_by in ((paper, Signature()), (ours, signature))
    )
    jax.block_until_ready([first.fit.runs.outputs, second.fit.runs.outputs])
    return first, second


def record_equality(network: Network, vectors: np.ndarray, bank: PairBank) -> Recorded:
    """Run a bank of hierarchical equality through a network."""
    return record(network, lambda setting: equality.encode(vectors, equality.rows_of(setting)), bank, tap=TAP)


def _run_method(config: Equality, method: str, bench: Bench, key: jax.Array, tell: Tell) -> Outcome:
    plot, paper = config.plot, config.published
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
            return run_localization(bench, Nearest(), CutMenu((1,), paper_menu.strengths))
        case "gw" | "fgw":
            alpha = 1.0 if method == "gw" else plot.fused_alpha
            # Geometry alone cannot tell two variables apart; its equal sites stay in site order: no cost leaks in.
            ties = "order" if method == "gw" else "cost"
            rule = GromovWasserstein(plot.gw_epsilons, alpha, plot.scope)
            return run_localization(bench, rule, dataclasses.replace(menu, break_ties=ties))
        case "full-state":
            return full_state(bench)
        case _:
            searched = rotations(paper.das if method == "das-paper" else config.das)
            return run_search(bench, key, full_supports(bench.tap, range(len(bench.variables))), searched, tell)


EXPERIMENT = Experiment(NAME, Equality, run_seed, random_seeds, REPORT, costs=costs)
