"""The discovery experiment end to end on tiny networks, and the laws its parts obey."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from abstraction.artifacts import load
from abstraction.evaluation import CLASSES, Repeats
from abstraction.evaluation.interchange import view
from abstraction.interventions import factual_outputs
from abstraction.interventions.handles import coordinate_mass
from abstraction.localization import full_supports
from abstraction.models import MLP, Network
from abstraction.reduction import METHODS
from abstraction.reduction.ranking import rank_units
from abstraction.tasks import addition, equality
from experiments.addition.experiment import Problem, make_bench
from experiments.addition.network import trained_adder
from experiments.addition.options import AdderBackbone, AdditionBanks
from experiments.discovery import experiment as discovery
from experiments.discovery import figures as discovery_figures
from experiments.discovery import networks as discovery_networks
from experiments.discovery import tables as discovery_tables
from experiments.discovery.options import (
    Discovery,
    Folds,
    Reductions,
    Units,
)
from experiments.equality import experiment as heq
from experiments.equality.options import METHODS as HEQ_METHODS
from experiments.equality.options import Backbone, EqualityPairs, PlotGrid
from experiments.harness.methods import rotations, run_search
from experiments.harness.options import DasOptions
from experiments.harness.records import Row, RunFolder, Unit, open_run
from experiments.harness.results import Results, seed_keys
from experiments.harness.running import run_experiment
from experiments.harness.tables import exported
from experiments.mcqa.options import McqaBanks

SEED = 3
SEARCH = dataclasses.replace(Discovery().das.training, batch_size=64, max_epochs=2)
TINY = Discovery(
    seeds=str(SEED),
    control_draws=2,
    control_shuffles=1,
    trials=256,
    equality=Reductions((8, 5), ("cmr-closed",), 400),
    backbone=Backbone(8, 2, 131072, 2000, 256, 6, learning_rate=5e-3),
    pairs=EqualityPairs(fit=200, calibration=200, size=100, test_pool=512),
    plot=PlotGrid((0.1, 1.0), (1, 4), (1.0,), 100),
    das=DasOptions((1, 4), (2e-2,), training=SEARCH),
    carries=Folds((8, 5), ("obs-affine",)),
    adder=AdderBackbone(bits=3, width=8, epochs=60),
    adder_banks=AdditionBanks(fit=24, calibration=16, test=16),
    adder_das=DasOptions((1, 4), (2e-2,), training=SEARCH),
    choice=Units((128, 16), ("vbp",), 40, 100, 64),
    choice_banks=McqaBanks(fit=96, calibration=48, test=96),
    choice_das=DasOptions((8,), (2e-2,), training=SEARCH),
)
PLACES = (("heq-keep8", "dense"), ("heq-keep5", "cmr-closed"))
PLACES += (("addition-keep8", "dense"), ("addition-keep5", "obs-affine"))
PLACES += (("mcqa-keep128", "dense"), ("mcqa-keep16", "vbp"))
VARIABLES = {"heq": ("wx", "yz"), "addition": ("c1", "c2"), "mcqa": ("answer_pointer", "answer")}
HALVES = ("", "-sensitive", "-invariant")
SPLITS = {"heq": ("-sensitive", "-invariant", "-specific"), "addition": HALVES, "mcqa": HALVES}
NONE = {("mcqa", "answer", "-invariant")}
"""Every pair changes the answer."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("discovery") / "run"
    return run_experiment(discovery.EXPERIMENT, dataclasses.replace(TINY, out=out)).path


@pytest.fixture(scope="module")
def unit(folder: Path) -> Unit:
    return open_run(folder).read_unit(f"seed-{SEED}")


@pytest.fixture(scope="module")
def values(unit: Unit) -> dict[tuple[str, str, str, str], float]:
    return {(row.method, row.variable, row.split, row.metric): row.value for row in unit.rows}


def printed(units: list[Unit], *, details: bool = False) -> str:
    return "\n".join(exported(discovery_tables.tables(units, details), "markdown"))


def finders(method: str) -> tuple[str, ...]:
    return ("plot", "das") if method == "dense" else ("plot", "das", "transferred")


@pytest.mark.slow
def test_every_number_is_written_once(unit: Unit, values: dict):
    assert len(values) == len(unit.rows)
    assert {row.experiment for row in unit.rows} == {"discovery"}


@pytest.mark.slow
@pytest.mark.parametrize(("place", "method"), PLACES)
def test_every_handle_is_tested_beside_its_controls_and_intervals(values: dict, place: str, method: str):
    task = place.split("-")[0]
    for finder in finders(method):
        names = [f"{kind}{method}/{finder}" for kind in ("", "control-random-", "control-shuffled-")]
        for name in names:
            for split in SPLITS[task]:
                for variable in (*VARIABLES[task], "mean"):
                    if (task, variable, split) in NONE:
                        continue
                    low, mean, high = (
                        values[name, variable, place + split, f"iia{end}"] for end in ("_low", "", "_high")
                    )
                    assert 0 <= low <= mean <= high <= 1
                    assert low < high
    assert (f"{method}/transferred", "mean", place, "kept_share") in values or method == "dense"


@pytest.mark.slow
@pytest.mark.parametrize(("place", "method"), PLACES)
def test_the_verdict_is_that_of_the_weakest_variable(values: dict, place: str, method: str):
    task = place.split("-")[0]
    other = "-specific" if task == "heq" else "-invariant"
    scored = [(v, split) for v in VARIABLES[task] for split in ("-sensitive", other) if (task, v, split) not in NONE]
    das = [values[f"{method}/das", variable, place + split, "iia"] for variable, split in scored]
    assert values[method, "network", place, "weakest"] == min(das)
    assert values[method, "network", place, "survives"] == float(min(das) >= 0.95)


@pytest.mark.slow
def test_fidelity_is_pooled_over_the_layers(values: dict):
    layers = [values["cmr-closed", "network", f"heq-keep5-hidden{depth}", "fidelity"] for depth in range(2)]
    assert values["cmr-closed", "network", "heq-keep5", "fidelity"] == pytest.approx(np.mean(layers), rel=1e-12)
    assert values["cmr-closed", "network", "heq-keep5", "trials"] == 2 * TINY.trials
    assert ("dense", "network", "heq-keep8", "fidelity") not in values


@pytest.mark.slow
def test_the_kept_units_are_on_record(unit: Unit):
    kept = unit.arrays["heq-keep5/cmr-closed/kept"]
    assert kept.shape == (2, 5)
    assert (np.diff(kept) > 0).all()
    states = unit.arrays["addition-keep5/obs-affine/kept"]
    assert (states == states[0]).all()
    assert unit.arrays["mcqa-keep16/vbp/kept"].shape == (4, 16)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "method"), PLACES)
def test_networks_and_handles_are_read_back_and_belong_together(folder: Path, unit: Unit, place: str, method: str):
    task = place.split("-")[0]
    kept, name = folder / "networks" / task, f"{method}-{place}-seed-{SEED}"
    network = load(kept / "reduced" / f"{name}.safetensors")
    [other] = [each for each in (kept / "reduced").iterdir() if each.stem != name]
    for finder in finders(method):
        path = kept / "handles" / f"{finder}-{name}.safetensors"
        choice = load(path, network)
        assert choice.variables == VARIABLES[task]
        mass = unit.arrays[f"{place}/{method}/{finder}/mass"]
        np.testing.assert_allclose(coordinate_mass(choice.handles, mass.shape[1]), mass, rtol=1e-6)
        with pytest.raises(ValueError, match="got a choice of a network with weights"):
            load(path, load(other))


@pytest.mark.slow
def test_tables_and_figures_need_the_units_alone(folder: Path, unit: Unit, tmp_path: Path):
    copy = shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(copy / "networks")
    (copy / "metrics.csv").unlink()
    units = open_run(copy).units()
    text = printed(units, details=True)
    for words in (
        "cmr-closed",
        "obs-affine",
        "heq, transferred",
        "addition, das",
        "variable wx",
        "variable c2",
        "mcqa, das",
        "variable answer_pointer",
    ):
        assert words in text, words
    assert text == printed([unit], details=True)
    assert "variable wx" not in printed(units)
    files = discovery_figures.draw(units, tmp_path / "figures")
    assert [file.name for file in files] == [
        f"discovery-{task}.{kind}" for task in ("heq", "addition", "mcqa") for kind in ("png", "pdf")
    ]
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == sorted(file.name for file in files)


@pytest.mark.slow
def test_resuming_a_complete_run_computes_nothing(folder: Path, tmp_path: Path):
    def fail(*_: object) -> Unit:
        raise AssertionError("a complete seed was computed again")

    copy = shutil.copytree(folder, tmp_path / "run")
    before = (copy / "units" / f"seed-{SEED}.json").stat().st_mtime_ns
    again = dataclasses.replace(TINY, out=copy, resume=True)
    run_experiment(discovery.EXPERIMENT._replace(run_seed=fail), again)
    assert (copy / "units" / f"seed-{SEED}.json").stat().st_mtime_ns == before


KEYS = seed_keys(SEED, ("init", "order", *HEQ_METHODS))


def trained_mlp(folder: Path) -> Network:
    """Return the run's network again; its checkpoint is there, so nothing is trained."""
    saved = RunFolder(folder / "networks" / "heq")
    return heq.train_network(TINY.backbone, Results("heq", SEED), KEYS, saved, lambda text: None)


def recorded(values: dict, place: str, finder: str) -> dict:
    """Return what the run measured of the dense network, without times."""
    return {
        (method.replace("dense/", ""), *rest): value
        for (method, *rest), value in values.items()
        if method.endswith(f"dense/{finder}") and rest[1].startswith(place) and not rest[2].startswith("seconds")
    }


@pytest.mark.slow
def test_an_mlp_reduced_to_its_full_width_has_the_dense_networks_numbers(folder: Path, values: dict):
    whole = discovery_networks.reduced_mlp(TINY, SEED, trained_mlp(folder), "cmr", 8, jax.random.key(0))
    assert whole.kept.tolist() == [list(range(8))] * 2
    assert whole.known["", "fidelity"] == 1.0
    for metric in ("accuracy", "worst_cell"):
        assert whole.known["", metric] == values["dense", "network", "heq-keep8", metric]
    tests = equality.paper_banks(SEED, size=100, test_pool=512).tests
    banks = equality.independent_banks(SEED, fit=200, calibration=200, both=0.02, tests=tests)
    bench = discovery.equality_bench(whole, equality.entities(SEED), banks)
    search, control = whole.keys(jax.random.split(KEYS["das"])[1])
    supports = full_supports(bench.tap, range(2))
    outcomes = {
        "plot": discovery.transported(bench, TINY.plot),
        "das": run_search(bench, search, supports, rotations(TINY.das), lambda text: None),
    }
    part = Results("discovery", SEED, Repeats(2, 1))
    discovery.study(part, whole, bench, outcomes, control)
    ours = {(row.method, row.variable, row.split, row.metric): row.value for row in part.rows}
    for finder in ("plot", "das"):
        again = {
            (name.replace("cmr/", ""), *rest): v for (name, *rest), v in ours.items() if name.endswith(f"cmr/{finder}")
        }
        known = recorded(values, "heq-keep8", finder)
        assert {key: again[key] for key in known} == known
        assert len(known) > 50


@pytest.mark.slow
def test_an_adder_folded_at_its_full_width_is_the_dense_network(folder: Path):
    saved = RunFolder(folder / "networks" / "addition")
    dense = trained_adder(TINY.adder, Results("addition", SEED), saved, lambda text: None)
    ranking = rank_units(dense, _every_sum(), "hidden", METHODS["obs-affine"])
    whole = discovery_networks.reduced_adder(TINY, SEED, ranking, "obs-affine", 8)
    first, second = (factual_outputs(network, _every_sum()) for network in (dense, whole.network))
    assert np.array_equal(first, second)
    assert whole.known["", "fidelity"] == 1.0
    banks = addition.structured_banks(SEED, bits=3, fit=24, calibration=16, test=16)
    bench = make_bench(Problem(dense, banks))
    outcome = discovery.carries_found(bench, TINY, jax.random.key(0), lambda text: None)["plot"]
    mass = coordinate_mass(outcome.choice.handles, 3)
    same = discovery.transferred(bench, mass, whole.kept)
    assert same.details["kept_share"] == [1.0, 1.0]
    assert same.choice.tally.hits.tolist() == outcome.choice.tally.hits.tolist()


def _every_sum() -> np.ndarray:
    return addition.encode(addition.every_input(3), 3)


@pytest.mark.slow
def test_a_transferred_handle_keeps_its_weights_on_the_units_that_are_left(folder: Path):
    whole = discovery_networks.reduced_mlp(TINY, SEED, trained_mlp(folder), "random", 2, jax.random.key(0))
    whole = whole._replace(kept=np.array([[1, 6], [0, 3]]))
    tests = equality.paper_banks(SEED, size=100, test_pool=512).tests
    banks = equality.independent_banks(SEED, fit=200, calibration=200, tests=tests)
    bench = discovery.equality_bench(whole, equality.entities(SEED), banks)
    mass = np.zeros((2, 2, 8), np.float32)
    mass[0, 0, [1, 2, 6]] = 1.5, 0.5, 1.0
    mass[1, 1, [3, 4]] = 1.0, 3.0
    outcome = discovery.transferred(bench, mass, whole.kept)
    assert outcome.details["kept_share"] == pytest.approx([2.5 / 3, 0.25])
    assert outcome.choice.handles.depth is not None
    assert np.asarray(outcome.choice.handles.depth).tolist() == [0, 1]
    assert np.asarray(outcome.choice.handles.weight).tolist() == [[1.5, 1.0], [0.0, 1.0]]


def test_fidelity_counts_equal_answers():
    model = MLP(3, 4, 1, 2)
    params = model.init(jax.random.key(0))
    flipped = {**params, "head": jax.tree.map(lambda leaf: -leaf, params["head"])}
    inputs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    units = np.arange(4)
    dense, same, opposite = (view(Network(model, p), "hidden", units) for p in (params, params, flipped))
    for other, share in ((same, 1.0), (opposite, 0.0)):
        known = discovery_networks.fidelities({"hidden": (dense, other, units)}, inputs, CLASSES, 0, 128)
        assert known["", "fidelity"] == known["-hidden", "fidelity"] == share
        assert known["", "fidelity_low"] <= share <= known["", "fidelity_high"]
    assert discovery_networks.fidelities({}, inputs, CLASSES, 0, 128) == {}


@pytest.mark.parametrize("signs", [(1, 1, 1, 1), (1, -1, 1, -1)], ids=["inf", "nan"])
def test_two_networks_without_an_answer_do_not_agree(signs: tuple[int, ...]):
    model = MLP(3, 4, 1, 2)
    params = model.init(jax.random.key(0))
    inputs = np.random.default_rng(0).uniform(1, 2, size=(50, 3)).astype(np.float32)
    # Finite weights whose states overflow.
    huge = jax.tree.map(lambda leaf: np.full(leaf.shape, 3e38, np.float32), params)
    huge["head"]["kernel"] *= np.array(signs, np.float32)[:, None]
    assert not np.isfinite(np.asarray(factual_outputs(Network(model, huge), inputs))).any()
    fine, silent = (view(Network(model, p), "hidden", np.arange(4)) for p in (params, huge))
    for pair in ((silent, silent), (fine, silent), (silent, fine)):
        known = discovery_networks.fidelities({"hidden": (*pair, np.arange(4))}, inputs, CLASSES, 0, 128)
        assert known["", "fidelity"] == known["-hidden", "fidelity"] == 0.0


def verdicts(survivals: dict[tuple[int, str], list[float]]) -> str:
    rows = [
        Row("discovery", method, "network", f"heq-keep{width}", "survives", seed, value)
        for (width, method), by_seed in survivals.items()
        for seed, value in enumerate(by_seed)
    ]
    metrics = discovery_tables.metrics_of([Unit("seed-0", rows, {}, {})])
    return discovery_tables.verdict(metrics, "heq", discovery_tables.places(metrics, "heq"))


def test_a_variable_survives_down_to_the_last_width_before_the_first_that_breaks():
    found = {(16, "dense"): [1.0, 1.0]}
    found |= {(8, "cmr"): [1.0, 1.0], (6, "cmr"): [1.0, 0.0], (4, "cmr"): [1.0, 1.0], (8, "vbp"): [0.0, 1.0]}
    assert verdicts(found).endswith("cmr 8, vbp 16")
    assert verdicts({**found, (16, "dense"): [0.0, 1.0]}).endswith("cmr none, vbp none")


def _with(part: str, **changes: object) -> Discovery:
    return dataclasses.replace(Discovery(), **{part: dataclasses.replace(getattr(Discovery(), part), **changes)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dataclasses.replace(Discovery(), tasks=()), "--tasks"),
        (dataclasses.replace(Discovery(), trials=0), "--trials"),
        (_with("equality", keeps=(17, 8)), "--equality.keeps"),
        (_with("equality", keeps=(8, 0)), "--equality.keeps"),
        (_with("equality", keeps=()), "--equality.keeps"),
        (_with("equality", methods=("cmr", "cmr")), "--equality.methods"),
        (_with("carries", keeps=(8, 8)), "--carries.keeps"),
        (_with("das", ranks=(4, 8)), "--das.ranks"),
        (_with("adder_das", ranks=(8,)), "--adder-das.ranks"),
        (_with("plot", subset_sizes=(4,)), "--plot.subset-sizes"),
        (_with("plot", epsilons=(0.0,)), "--plot.epsilons"),
        (_with("pairs", fit=1), "--pairs.fit"),
        (_with("adder", bits=1), "--adder.bits"),
        (_with("adder", checkpoints=Path("nowhere")), "--adder.checkpoints"),
        (_with("adder_banks", test=0), "--adder-banks.test"),
        (_with("choice", keeps=(129, 8)), "--choice.keeps"),
        (_with("choice", methods=()), "--choice.methods"),
        (_with("choice", trials=0), "--choice.trials"),
        (_with("choice_banks", test=0), "--choice-banks.test"),
        (_with("choice_das", ranks=(65,)), "--choice-das.ranks"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(config: Discovery, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"^got {message} [^\n]*, expected [^\n]*$"):
        run_experiment(discovery.EXPERIMENT, dataclasses.replace(config, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
