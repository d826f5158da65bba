"""Binary addition end to end, the quick run: what it finds, what it leaves behind, and what is made from that.

python -m experiments addition --quick --seeds 0 --methods ...
"""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from heqruns import Ended, command, snapshot

from abstraction.artifacts import load
from abstraction.interventions.handles import coordinate_mass
from abstraction.models import GRU, Network
from abstraction.tasks import addition
from experiments import command_line
from experiments.addition import experiment
from experiments.addition.network import trained_adder
from experiments.addition.options import Addition
from experiments.addition.shown import LAYOUT
from experiments.harness.metrics import Metrics
from experiments.harness.records import RunFolder, Unit, open_run
from experiments.harness.results import Results

METHODS = ("plot-stage-a", "plot-native-fitted", "plot-oblique-das", "readwrite", "plot-pca-v4", "plot-das-v1")
COMMAND = ("addition", "--quick", "--seeds", 0, "--methods", *METHODS)
# The state h_{i-1} swapped whole for C_i, on the authors' test pairs of seed 0: the same for every exact adder.
FULL_SWAP = {"c1": 0.7693, "c2": 0.7745, "c3": 0.7287, "mean": 0.7575}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    out = tmp_path_factory.mktemp("quick") / "run"
    return out, command(*COMMAND, "--out", out)


@pytest.fixture(scope="module")
def folder(done: tuple[Path, Ended]) -> Path:
    return done[0]


@pytest.fixture(scope="module")
def unit(folder: Path) -> Unit:
    return open_run(folder).read_unit("seed-0")


@pytest.fixture(scope="module")
def metrics(unit: Unit) -> Metrics:
    return Metrics(unit.rows)


def test_the_run_ends_well_and_explains_its_table(done: tuple[Path, Ended]):
    folder, ended = done
    assert (ended.status, ended.err) == (0, "")
    text = " ".join(ended.out.split())
    for words in ("1.0000 of sums exact", "doing nothing scores .5", "where there is nothing to find", str(folder)):
        assert words in text, words
    for name in ("accuracy", "runtime", "plan", "mass", "components"):
        for kind in ("png", "pdf"):
            assert (folder / "figures" / f"{name}.{kind}").stat().st_size > 1000


def test_an_exact_adder_scores_the_full_swaps_that_the_hybrid_sum_predicts(metrics: Metrics):
    for variable, known in FULL_SWAP.items():
        assert metrics.mean("plot-stage-a", variable, "test", "iia") == pytest.approx(known, abs=5e-5)  # four digits


def test_the_score_is_the_mean_of_its_halves_and_variables(metrics: Metrics):
    for method in (*METHODS, "control-identity", "control-untrained-plot-oblique-das"):
        for variable in ("c1", "c2", "c3", "mean"):
            score, *halves = (
                metrics.mean(method, variable, split, "iia") for split in ("test", "test-sensitive", "test-invariant")
            )
            assert score == pytest.approx(np.mean(halves), rel=1e-9)
        every = [metrics.mean(method, variable, "test", "iia") for variable in ("c1", "c2", "c3")]
        assert metrics.mean(method, "mean", "test", "iia") == pytest.approx(np.mean(every), rel=1e-9)


def test_the_interval_of_a_score_is_the_mean_of_its_halves(metrics: Metrics):
    rates = [metrics.rate("plot-pca-v4", "c2", split) for split in ("test", "test-sensitive", "test-invariant")]
    score, sensitive, invariant = [rate for rate in rates if rate is not None]
    assert score.low == pytest.approx((sensitive.low + invariant.low) / 2)
    assert score.high == pytest.approx((sensitive.high + invariant.high) / 2)
    assert score.low < score.mean < score.high


def test_searches_find_the_carries_and_their_controls_do_not(metrics: Metrics):
    found = metrics.mean("plot-oblique-das", "mean", "test", "iia")
    assert found > 0.95
    assert metrics.mean("plot-native-fitted", "mean", "test", "iia") > 0.85
    for kind in ("shuffled-labels", "earlier", "untrained"):
        assert metrics.mean(f"control-{kind}-plot-oblique-das", "mean", "test", "iia") < 0.65
    assert not len(metrics.values("control-earlier-plot-oblique-das", "c1", "test", "iia")), "C1 has no earlier step"
    for kind in ("random", "shuffled"):
        assert metrics.mean(f"control-{kind}-plot-oblique-das", "mean", "test", "iia") < found - 0.2


def test_every_handle_is_where_the_carry_is(unit: Unit):
    for method in METHODS:
        mass = unit.arrays[f"{method}/mass"]
        assert mass.shape == (3, 4, 16)
        assert mass.sum(axis=2).argmax(axis=1).tolist() == [0, 1, 2]


def test_chosen_handles_are_read_back_for_this_adder_and_refused_for_another(folder: Path, unit: Unit, tmp_path: Path):
    saved = RunFolder(shutil.copytree(folder, tmp_path / "run"))
    options = Addition().backbone
    network = trained_adder(options, Results("addition", 0), saved, lambda _: None)
    other = Network(network.model, network.model.init(jax.random.key(1)))
    for method in METHODS:
        path = folder / "handles" / f"{method}-seed-0.safetensors"
        choice = load(path, network)
        assert choice.variables == ("c1", "c2", "c3")
        np.testing.assert_allclose(coordinate_mass(choice.handles, 4), unit.arrays[f"{method}/mass"], rtol=1e-6)
        with pytest.raises(ValueError, match="got a choice of a network with weights"):
            load(path, other)


def test_chance_is_the_best_constant_answer_over_both_halves(metrics: Metrics):
    levels = [metrics.mean("control-identity", variable, "test", "chance") for variable in ("c1", "c2", "c3")]
    # 31 sums, of which none is as much as a quarter of either half.
    assert 1 / 31 <= min(levels) <= max(levels) < 0.25
    assert metrics.mean("control-identity", "mean", "test", "chance") == pytest.approx(np.mean(levels), rel=1e-12)


def test_what_an_oblique_map_costs_is_reported(unit: Unit):
    for setting in unit.details["plot-oblique-das"]["settings"].values():
        assert setting["projector_norm"] >= 1 - 1e-4  # float32; an idempotent map never has a norm below 1
        assert setting["rank"] == round(setting["width"])
        assert setting["support"] in ("full", "readwrite")
        assert {"condition", "read_norm", "write_norm"} <= set(setting)


def test_times_grow_with_the_stages_they_build_on(metrics: Metrics):
    seconds = lambda method: sum(metrics.mean(method, "mean", "test", f"seconds{part}") for part in ("", "_compile"))
    assert seconds("plot-stage-a") < seconds("plot-native-fitted")


def test_resuming_a_complete_run_computes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copy = shutil.copytree(folder, tmp_path / "run")

    def fail(*_: object) -> Unit:
        raise AssertionError("a complete seed was computed again")

    monkeypatch.setitem(command_line.EXPERIMENTS, "addition", experiment.EXPERIMENT._replace(run_seed=fail))
    before = snapshot(copy)
    assert command(*COMMAND, "--resume", "--out", copy).status == 0
    assert {name for name, content in snapshot(copy).items() if before[name] != content} == {
        "manifest.json",
        "report.html",
    }


def test_the_table_is_made_from_the_records_alone(folder: Path, done: tuple[Path, Ended]):
    ended = command("tables", "--out", folder)
    assert ended.status == 0
    assert ended.out in done[1].out
    assert "variable c2" in command("tables", "--details", "--out", folder).out


def test_the_worst_backbone_is_warned_of(unit: Unit):
    rows = [row._replace(value=0.5) if row.metric == "accuracy" else row for row in unit.rows]
    assert "WARNING" in LAYOUT.backbone(Metrics(rows))
    assert "WARNING" not in LAYOUT.backbone(Metrics(unit.rows))


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """A checkpoint in PyTorch's names, of an untrained network."""
    generator = np.random.default_rng(0)
    shapes = {"cell.weight_ih": (48, 2), "cell.bias_ih": (48,), "cell.weight_hh": (48, 16), "cell.bias_hh": (48,)}
    shapes |= {"sum_head.weight": (1, 16), "sum_head.bias": (1,)}
    shapes |= {"final_carry_head.weight": (1, 16), "final_carry_head.bias": (1,)}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _refused(tmp_path: Path, arrays: dict[str, np.ndarray] | None, *options: object) -> str:
    store = tmp_path / "adders"
    store.mkdir()
    if arrays is not None:
        np.savez(store / "binary_addition_gru_h16_seed0.npz", **arrays)  # pyright: ignore[reportArgumentType]
    out = tmp_path / "run"
    ended = command("addition", "--seeds", 0, "--backbone.checkpoints", store, *options, "--out", out)
    assert (ended.status, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1
    assert ended.err.startswith("error: got ")
    assert not out.exists()
    return ended.err


def test_a_missing_checkpoint_is_refused_with_those_that_are_there(tmp_path: Path, arrays):
    narrow = ("--backbone.width", 8, "--das.ranks", 1, "--das-v1.ranks", 1)
    message = _refused(tmp_path, arrays, *narrow)
    assert "expected binary_addition_gru_h8_seed0.npz" in message
    assert "binary_addition_gru_h16_seed0.npz" in message


def test_a_missing_array_is_named(tmp_path: Path, arrays):
    message = _refused(tmp_path, {name: array for name, array in arrays.items() if name != "cell.bias_hh"})
    assert "missed ['cell.bias_hh']" in message


def test_a_misnamed_array_is_named(tmp_path: Path, arrays):
    named = {name.replace("sum_head.bias", "sum_head.offset"): array for name, array in arrays.items()}
    message = _refused(tmp_path, named)
    assert "sum_head.offset" in message
    assert "missed ['sum_head.bias']" in message


def test_another_width_is_refused_with_both_shapes(tmp_path: Path, arrays):
    message = _refused(tmp_path, {**arrays, "cell.weight_hh": np.zeros((24, 8), np.float32)})
    assert "(24, 8)" in message
    assert "(48, 16)" in message


def test_a_truncated_checkpoint_is_refused(tmp_path: Path, arrays):
    store = tmp_path / "adders"
    store.mkdir()
    path = store / "binary_addition_gru_h16_seed0.npz"
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes()[:200])
    ended = command("addition", "--seeds", 0, "--backbone.checkpoints", store, "--out", tmp_path / "run")
    assert ended.status == 2
    assert "unusable checkpoint" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_network_that_cannot_add_is_run_and_warned_of(tmp_path: Path, arrays):
    np.savez(tmp_path / "binary_addition_gru_h16_seed0.npz", **arrays)
    options = ("--methods", "plot-stage-a", "--control-draws", 1, "--control-shuffles", 1, "--honesty")
    where = ("--backbone.checkpoints", tmp_path, "--out", tmp_path / "run")
    ended = command("addition", "--seeds", 0, *options, *where)
    assert ended.status == 0
    assert "WARNING: a backbone does not compute the causal model" in ended.out


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--backbone.bits 1", "--backbone.bits 1, expected 2 to 30"),
        ("--backbone.width 0", "--backbone.width 0"),
        ("--stages.resolutions 32", "one of at most 16"),
        ("--stages.shares 0", "--stages.shares"),
        ("--stages.fitted-shares 1.5", "--stages.fitted-shares"),
        ("--stages.prefixes 0", "--stages.prefixes"),
        ("--das.ranks 17", "--das.ranks [17], expected 1 to 16"),
        (
            "--das-v1.training.steps-per-epoch 1000",
            "steps-per-epoch 1000, expected 1 to 52",
        ),
        ("--oblique.strengths 0", "--oblique.strengths"),
        ("--masks.sparsities -1", "--masks.sparsities"),
        ("--boundless.penalty -1", "--boundless.penalty"),
        ("--weights.learning-rates 0", "--weights.learning-rates"),
        ("--weights.training.batch-size 4000", "--weights.training.batch-size 4000, expected 1 to 3328, the fit pairs"),
        ("--banks.fit 0", "--banks.fit 0"),
        ("--banks.fit 200", "200"),
    ],
)
def test_wrong_options_end_in_one_clear_line(tmp_path: Path, options: str, words: str):
    ended = command("addition", "--seeds", 0, *options.split(), "--out", tmp_path / "run")
    assert ended.status == 2
    assert len(ended.err.splitlines()) == 1
    assert words in ended.err
    assert not (tmp_path / "run").exists()


def test_the_network_reads_what_the_task_writes():
    model = GRU(2, 16, 4)
    inputs = addition.encode(addition.every_input(4))
    assert inputs.shape == (256, model.depth, model.inputs)
