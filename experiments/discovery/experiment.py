"""Discovery: reduce a trained network, then look for the causal variables in what is left.

    python -m experiments discovery --seeds 1:4

Joins the two papers. The MLPs of hierarchical equality, the GRUs of binary addition and the small decoder of multiple
choice are made smaller by mechanism reduction, and their variables are searched for in every smaller network by PLOT
and by DAS, afresh. Beside them stands the handle that was found in the dense network, cut down to the units that are
left. Every handle is chosen on calibration pairs and tested once, with its controls, on the test pairs of the three
experiments. Eight minutes a seed on two cores, much of it compilation: every width is a network of its own. Expected
over seeds 1 to 3: WX and YZ survive `cmr` down to 8 of 16 units, the carries `obs-affine` down to 10 of 16, pointer and
answer `cmr-closed` down to 32 of 128.

A GRU starts at a zero state, so only linear maps through the origin can be folded into it: `homogeneous` moments.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from abstraction.artifacts import save
from abstraction.evaluation import Repeats
from abstraction.interventions import Handle, unit_sites
from abstraction.interventions.handles import at_one_depth, coordinate_mass, handle_depths
from abstraction.localization import (
    Choice,
    CutMenu,
    Transport,
    Variant,
    coarse_stage,
    fine_stage,
    full_supports,
    localize,
)
from abstraction.localization.calibration import calibrate_candidates
from abstraction.tasks import addition, equality
from experiments.addition.experiment import Problem, make_bench
from experiments.addition.network import check_checkpoints, trained_adder
from experiments.discovery.choice import carried, choice_bench, choice_found, choice_networks, choice_prompts
from experiments.discovery.cost import costs
from experiments.discovery.curves import reduced
from experiments.discovery.figures import draw
from experiments.discovery.networks import TAP, Studied, adder_networks, equality_networks
from experiments.discovery.options import HARD, NAME, SURVIVES, Discovery
from experiments.discovery.tables import tables
from experiments.equality import experiment as heq
from experiments.equality.options import PlotGrid
from experiments.harness.meshes import parsed_mesh, placed
from experiments.harness.methods import Bench, Outcome, Tell, coupling_details, rotations, run_search, same_time
from experiments.harness.records import Row, RunFolder, Unit
from experiments.harness.report import Report
from experiments.harness.results import Results, keep_choice, seed_keys
from experiments.harness.running import Experiment
from experiments.harness.timing import Time, stopwatch
from experiments.mcqa.experiment import data_digest
from experiments.mcqa.options import NetworkOptions
from experiments.mcqa.subject import load_subject, make_questions


def run_seed(config: Discovery, seed: int, run: RunFolder, tell: Tell) -> Unit:
    """Train, reduce and search the networks of one seed."""
    whole = Results(NAME, seed, Repeats(config.control_draws, config.control_shuffles), details={"data": {}})
    for task in config.tasks:
        say = lambda text, task=task: tell(f"{task}: {text}")
        whole.part(run, task, lambda part, task=task, say=say: search_task(part, config, task, run, say))
    return whole.unit


def search_task(whole: Results, config: Discovery, task: str, run: RunFolder, tell: Tell) -> None:
    """Train, reduce and search the networks of one task."""
    # Both tasks name their checkpoints by seed alone.
    folder, own = RunFolder(run.path / "networks" / task), Results(NAME, whole.seed, whole.repeats)
    for network, bench, outcomes, control in _TASKS[task](config, own, folder, tell):
        _keep(folder, network, bench, outcomes, whole.seed)
        study(whole, network, bench, outcomes, control)
    whole.rows.extend(row._replace(split=task) for row in own.rows)
    whole.details["data"] = {task: own.details["data"]}


Searched = Iterator[tuple[Studied, Bench, dict[str, Outcome], Array]]
"""Every network of a task, its recorded banks, what was found in it, and the key of the controls."""


def _equality(config: Discovery, own: Results, folder: RunFolder, tell: Tell) -> Searched:
    """Search the networks of hierarchical equality; what is known of the dense one goes to its own results."""
    # The keys, and so the networks, of the experiment `heq`.
    keys, seed = seed_keys(own.seed, ("init", "order", *heq.METHODS)), own.seed
    vectors = equality.entities(seed)
    tests = equality.paper_banks(seed, size=config.pairs.size, test_pool=config.pairs.test_pool).tests
    sizes = {"fit": config.pairs.fit, "calibration": config.pairs.calibration, "both": config.pairs.both}
    banks = equality.independent_banks(seed, **sizes, tests=tests)
    trained = placed(heq.train_network(config.backbone, own, keys, folder, tell), config.mesh)
    mass, (reducing, searching) = None, jax.random.split(keys["das"])
    for network in equality_networks(config, seed, trained, reducing):
        tell(f"{network.place}, {network.method}")
        bench, (search, control) = equality_bench(network, vectors, banks), network.keys(searching)
        supports = full_supports(bench.tap, range(len(bench.variables)))
        das = run_search(bench, search, supports, rotations(config.das), tell)
        outcomes = {"plot": transported(bench, config.plot), "das": das}
        mass = _with_transferred(bench, network, outcomes, mass)
        yield network, bench, outcomes, control


def equality_bench(network: Studied, vectors: np.ndarray, banks: equality.Banks) -> Bench:
    """Record all banks in one network."""
    recorded = lambda bank: heq.record_equality(network.network, vectors, bank)
    tests = {split: recorded(bank) for split, bank in banks.tests.items()}
    sites = unit_sites(network.network.taps[TAP])
    return Bench(network.network, sites, recorded(banks.fit), recorded(banks.calibration), tests)


def transported(bench: Bench, options: PlotGrid) -> Outcome:
    """Run PLOT, one coupling per layer."""
    effects, measuring = bench.effects()
    with stopwatch() as elapsed:
        plans = Transport("depth", options.epsilons, iterations=options.iterations)(effects)
        found = localize(bench.network, effects, plans, _menu(options, bench.tap.width), evidence=bench.evidence)
    return Outcome(_local(found.choice), same_time(measuring + elapsed), coupling_details(plans), {})


def _addition(config: Discovery, own: Results, folder: RunFolder, tell: Tell) -> Searched:
    """Search the networks of binary addition."""
    seed = own.seed
    banks = addition.structured_banks(seed, bits=config.adder.bits, **dataclasses.asdict(config.adder_banks))
    trained = placed(trained_adder(config.adder, own, folder, tell), config.mesh)
    # The network's own keys are the first two.
    mass, (reducing, searching) = None, jax.random.split(jax.random.key(seed), 4)[2:]
    for network in adder_networks(config, seed, trained, banks, reducing):
        tell(f"{network.place}, {network.method}")
        bench = make_bench(Problem(network.network, banks))
        search, control = network.keys(searching)
        outcomes = carries_found(bench, config, search, tell)
        mass = _with_transferred(bench, network, outcomes, mass)
        yield network, bench, outcomes, control


def carries_found(bench: Bench, config: Discovery, key: Array, tell: Tell) -> dict[str, Outcome]:
    """Run PLOT coarse to fine on single units, and DAS at the steps that Stage A chose."""
    options, tap = config.plot, bench.tap
    rule = Transport("joint", options.epsilons, taus=(0.5,), iterations=options.iterations)
    variant = Variant(rule, rule, _menu(options, tap.width))
    with stopwatch() as first:
        coarse = coarse_stage(bench.network, bench.fit, variant, bench.signature, evidence=bench.evidence)
    depths = handle_depths(coarse.choice.handles)
    with stopwatch() as second:
        menus = {"1": unit_sites(tap)}
        fine = fine_stage(bench.network, bench.fit, menus, depths, variant, bench.signature, evidence=bench.evidence)
    plot = Outcome(_local(fine.choice), same_time(first + second), coupling_details(fine.plans), {})
    places = zip(range(len(bench.variables)), depths.tolist(), strict=True)
    supports = [support for v, depth in places for support in full_supports(tap, [v], [depth])]
    das = run_search(bench, key, supports, rotations(config.adder_das), tell)
    times = {name: first + elapsed for name, elapsed in das.times.items()}
    return {"plot": plot, "das": das._replace(times=times)}


def _choice(config: Discovery, own: Results, folder: RunFolder, tell: Tell) -> Searched:
    """Search the networks of multiple choice."""
    subject, seed = load_subject(NetworkOptions(), parsed_mesh(config.mesh)), own.seed
    questions = make_questions(config.choice_banks, subject, seed)
    own.details["data"] = data_digest(questions)
    dense, (reducing, searching) = None, jax.random.split(jax.random.key(seed))
    for network in choice_networks(config, seed, subject, choice_prompts(config, seed, subject, questions), reducing):
        tell(f"{network.place}, {network.method}")
        bench = choice_bench(config, network, subject, questions)
        search, control = network.keys(searching)
        outcomes = choice_found(bench, config, search, tell)
        if dense is None:
            dense = outcomes["das"].choice
        else:
            outcomes["transferred"] = carried(bench, dense)
        yield network, bench, outcomes, control


_TASKS = {"heq": _equality, "addition": _addition, "mcqa": _choice}


def _local(choice: Choice) -> Choice:
    """Write handles of one depth as such: all methods of a width then share their programs."""
    return dataclasses.replace(choice, handles=at_one_depth(choice.handles))


def _menu(options: PlotGrid, width: int) -> CutMenu:
    return CutMenu(tuple(size for size in options.subset_sizes if size <= width), options.strengths)


def _with_transferred(
    bench: Bench, network: Studied, outcomes: dict[str, Outcome], mass: Float[np.ndarray, "V L D"] | None
) -> Float[np.ndarray, "V L D"]:
    """Add the dense network's PLOT handle to the outcomes of a reduced one; return its weights."""
    if mass is None:
        return coordinate_mass(outcomes["plot"].choice.handles, len(network.kept))
    outcomes["transferred"] = transferred(bench, mass, network.kept)
    return mass


def transferred(bench: Bench, mass: Float[np.ndarray, "V L D"], kept: Int[np.ndarray, "L K"]) -> Outcome:
    """Restrict the weights of dense handles to the units that are kept; nothing is chosen anew."""
    weight = np.take_along_axis(mass, kept[None], axis=2)
    shares = (weight.sum(axis=(1, 2)) / np.maximum(mass.sum(axis=(1, 2)), 1e-30)).tolist()
    choice = calibrate_candidates(
        bench.network, bench.evidence, at_one_depth(Handle(TAP, weight)), np.arange(len(mass)),
        [{"kept_share": share} for share in shares], cost=np.zeros(len(mass)),
    )  # fmt: skip
    return Outcome(choice, same_time(Time()), {"kept_share": shares}, {})


def study(whole: Results, network: Studied, bench: Bench, outcomes: dict[str, Outcome], key: Array) -> None:
    """Test what was found in one network, and give the verdict."""
    place, name = network.place, network.method
    for (part, what), value in network.known.items():
        whole.add(name, "network", place + part, **{what: value})
    for index, (kind, outcome) in enumerate(outcomes.items()):
        label, tested = f"{name}/{kind}", Results(NAME, whole.seed, whole.repeats)
        tested.judge(bench, label, outcome, jax.random.fold_in(key, index))
        whole.rows.extend(row._replace(split=_renamed(network, row)) for row in tested.rows)
        whole.details[f"{place} {label}"] = tested.details[label]
        whole.arrays[f"{place}/{label}/mass"] = tested.arrays[f"{label}/mass"]
        if shares := outcome.details.get("kept_share"):
            for variable, share in zip((*bench.variables, "mean"), (*shares, float(np.mean(shares))), strict=True):
                whole.add(label, variable, place, kept_share=share)
    hard = [f"{place}-{split}" for split in HARD[network.task]]
    weakest = min(
        row.value
        for row in whole.rows
        if (row.method, row.metric) == (f"{name}/das", "iia") and row.variable in bench.variables and row.split in hard
    )
    whole.add(name, "network", place, weakest=weakest, survives=float(weakest >= SURVIVES))
    whole.arrays[f"{place}/{name}/kept"] = network.kept.astype(np.int32)


def _renamed(network: Studied, row: Row) -> str:
    """Name a split after task and width; `test` is the sensitive pairs of equality, and both halves of addition."""
    if row.metric.startswith("seconds"):
        return network.place
    if row.split == "test":
        return network.place + ("-sensitive" if network.task == "heq" else "")
    return f"{network.place}-{row.split.removeprefix('test-')}"


def _keep(folder: RunFolder, network: Studied, bench: Bench, outcomes: dict[str, Outcome], seed: int) -> None:
    """Write a network, and the handles that were found in it."""
    name = f"{network.method}-{network.place}-seed-{seed}"
    save(network.network, folder.path / "reduced" / f"{name}.safetensors")
    for kind, outcome in outcomes.items():
        keep_choice(folder.path, bench, outcome.choice, f"{kind}-{name}")


def random_seeds(seed: int) -> dict[str, int]:
    """List every seed that a run's seed stands for, beside those of `heq` and `addition`."""
    own = {"calibration, uniform": 2701, "calibration, balanced": 2702, "evaluation, uniform": 2801}
    own |= {"evaluation, balanced": 2802, "trials": 2803}
    adder = {"addition jax key": seed, "addition order of the bases (random.Random)": seed}
    equal = {f"heq {name}": value for name, value in heq.random_seeds(seed).items()}
    choice = {"mcqa jax key": seed, "mcqa pairs": seed, "mcqa calibration prompts": seed + 2901}
    choice |= {"mcqa evaluation prompts": seed + 2902, "mcqa trials": seed + 2903}
    return equal | adder | choice | {f"heq {name}": seed + offset for name, offset in own.items()}


def check(config: Discovery) -> None:
    """Refuse checkpoints that are not there."""
    if "addition" in config.tasks:
        check_checkpoints(config.adder, config.seeds, "--adder")


EXPERIMENT = Experiment(NAME, Discovery, run_seed, random_seeds, Report(tables, draw, reduced), check, costs=costs)
