"""The MCQA experiment end to end on the network that ships, in a small version of everything."""

import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

from abstraction.artifacts import load
from abstraction.evaluation import CLASSES, Classes
from abstraction.interventions.handles import coordinate_mass
from abstraction.models import DecoderConfig
from abstraction.models.costs import block_flops, forward_flops, read_flops
from abstraction.tasks.mcqa import FAMILIES, VARIABLES
from experiments.harness.metrics import Metrics
from experiments.harness.options import DasOptions
from experiments.harness.records import Unit, open_run
from experiments.harness.report import Report, draw, show
from experiments.harness.running import run_experiment
from experiments.harness.stages import budget
from experiments.harness.tables import Table, fitted, show_parts
from experiments.mcqa import experiment as mcqa
from experiments.mcqa import figures as mcqa_figures
from experiments.mcqa import tables as mcqa_tables
from experiments.mcqa.cost import Shape, explanation, memory, stages
from experiments.mcqa.grids import for_width
from experiments.mcqa.options import POSITIONS, Mcqa, McqaBanks, NetworkOptions
from experiments.mcqa.subject import load_shape, load_subject, make_bench, make_questions

REPORT = Report(mcqa_tables.tables, mcqa_figures.draw)
METHODS = ("plot-stage-a", "plot-das", "full-state")
CONFIG = Mcqa(
    methods=METHODS,
    banks=McqaBanks(fit=128, calibration=48, test=48, spare=1.3),
    das=DasOptions((4, 32), (2e-2,), training=budget(max_epochs=6, patience=12)),
    control_draws=2,
    control_shuffles=1,
)


@pytest.fixture(scope="module", name="run")
def _run(tmp_path_factory):
    config = dataclasses.replace(CONFIG, out=tmp_path_factory.mktemp("mcqa") / "run")
    return config, run_experiment(mcqa.EXPERIMENT, config)


@pytest.fixture(scope="module", name="metrics")
def _metrics(run):
    return Metrics(row for unit in run[1].units() for row in unit.rows)


def test_both_variables_are_found_where_they_are(run, metrics):
    unit = run[1].units()[0]
    for method in METHODS:
        blocks = [mass.sum(axis=-1).argmax() for mass in unit.arrays[f"{method}/mass"]]
        assert blocks == [2, 3], method
    for variable in VARIABLES:
        assert metrics.rate("plot-stage-a", variable, "test").mean >= 0.95
    assert metrics.rate("plot-das", "answer_pointer", "test").mean >= 0.9
    found, random = (
        metrics.rate(name, "answer_pointer", "test").mean for name in ("plot-das", "control-random-plot-das")
    )
    assert random <= found - 0.3
    assert metrics.rate("control-shuffled-plot-stage-a", "answer", "test").mean <= 0.5


def test_a_variable_without_invariant_pairs_has_no_row_for_them(metrics):
    assert metrics.rate("plot-stage-a", "answer", "test-invariant") is None
    assert metrics.rate("plot-stage-a", "answer_pointer", "test-invariant") is not None
    identity = metrics.rate("control-identity", "mean", "test")
    assert identity.mean == 0.25  # (0 + 1) / 2 for the pointer, 0 for the answer
    assert identity.low <= identity.mean <= identity.high


def test_the_sweep_covers_every_token_variable_and_block(run):
    unit = run[1].units()[0]
    sweep = unit.arrays["sweep"]
    assert sweep.shape == (len(POSITIONS), 2, 4)
    assert unit.details["positions"] == list(POSITIONS)
    last = sweep[POSITIONS.index("last")]
    assert last[0, 2] >= 0.95
    assert last[1, 3] >= 0.95
    assert last[1, :2].max() == 0, "no letter before the pointer"


def test_scorers_agree_where_a_word_is_a_letter(metrics):
    for method in METHODS:
        strict = metrics.values(method, "mean", "test", "pooled_strict")
        np.testing.assert_array_equal(metrics.values(method, "mean", "test", "pooled_decoded"), strict)
        assert (metrics.values(method, "mean", "test", "pooled_letters") >= strict).all()


def test_pooled_strict_is_the_iia_over_all_pairs(run, metrics):
    for method in METHODS:
        for variable in VARIABLES:
            halves = [h for h in ("sensitive", "invariant") if metrics.rate(method, variable, f"test-{h}")]
            hits, pairs = (
                sum(float(metrics.values(method, variable, f"test-{h}", "pairs")[0]) * weight(h) for h in halves)
                for weight in (
                    lambda h, method=method, variable=variable: metrics.values(method, variable, f"test-{h}", "iia")[0],
                    lambda h: 1.0,
                )
            )
            assert metrics.values(method, variable, "test", "pooled_strict")[0] == pytest.approx(hits / pairs)


def test_mib_files_name_their_site_and_average_their_families(run):
    config, folder = run
    unit = folder.units()[0]
    for method in METHODS:
        content = json.loads((config.out / "mib" / f"{method}-seed-0.json").read_text())
        assert content["task_name"] == "4_answer_MCQA"
        assert set(content["dataset"]) == {f"{family}_test" for family in FAMILIES}
        scores = []
        for dataset in content["dataset"].values():
            for name, entry in dataset["model_unit"].items():
                assert (
                    name
                    == f"[[AtomicModelUnit(id='ResidualStream(Layer-{entry['metadata']['layer']},Token-last_token)')]]"
                )
                scores += [entry[v]["average_score"] for v in VARIABLES if v in entry]
        assert np.mean(scores) == pytest.approx(unit.arrays[f"{method}/hits"].mean())


@pytest.mark.parametrize("method", METHODS)
def test_chosen_handles_are_read_back_for_this_decoder_and_refused_for_another(run, method):
    config, folder = run
    path = config.out / "handles" / f"{method}-seed-0.safetensors"
    choice = load(path, load_subject(config.network).network)
    assert choice.variables == VARIABLES
    found = coordinate_mass(choice.handles, 4)
    np.testing.assert_allclose(found, folder.units()[0].arrays[f"{method}/mass"], rtol=1e-6)
    with pytest.raises(ValueError, match="got a choice of a network with weights"):
        load(path, load_subject(NetworkOptions("planted")).network)


def test_a_complete_run_is_resumed_without_work_and_shown_from_its_records(run, capsys):
    config, folder = run
    before = (config.out / "units" / "seed-0.json").stat().st_mtime_ns
    run_experiment(mcqa.EXPERIMENT, dataclasses.replace(config, resume=True))
    assert (config.out / "units" / "seed-0.json").stat().st_mtime_ns == before
    show(open_run(config.out), REPORT, details=True)
    shown = capsys.readouterr().out
    for text in (*METHODS, "control-identity", "embedded, 4 blocks of width 64", "by scorer", "whole residual stream"):
        assert text in shown
    names = {path.name for path in draw(folder, REPORT)}
    stems = ("accuracy", "sweep", "runtime", "coupling", "ranks")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")}


def _table(units: list[Unit], words: str, details: bool = False) -> Table:
    [found] = [p for p in mcqa_tables.tables(units, details) if isinstance(p, Table) and words in p.title]
    return found


def test_the_table_holds_both_variables_and_where_they_are(run, metrics):
    units = run[1].units()
    rows = _table(units, "IIA on test pairs,").frame.set_index("method")
    where = _table(units, "where").cells().set_index("method")
    assert rows.loc["plot-das", "ptr."] == metrics.mean("plot-das", "answer_pointer", "test-sensitive", "iia")
    assert rows.loc["plot-das", "inv."] == metrics.mean("plot-das", "answer_pointer", "test-invariant", "iia")
    assert rows.loc["plot-das", "answer"] == metrics.mean("plot-das", "answer", "test", "iia")
    assert list(where.loc["full-state"]) == ["2", "64.0", "3", "64.0"]
    assert len(fitted(_table(units, "IIA on test pairs,"), 80)) == 1


def _renamed(units: list[Unit], name: str) -> list[Unit]:
    known = {"network": {**units[0].details["network"], "name": name}}
    return [unit._replace(details={**unit.details, **known}) for unit in units]


@pytest.mark.parametrize(("name", "value"), [("embedded", None), ("google/gemma-2-2b", 0.875)])
def test_the_papers_numbers_stand_beside_gemma_alone(run, name: str, value: float | None):
    units = _renamed(run[1].units(), name)
    parts = mcqa_tables.tables(units, True)
    beside = [part for part in parts if isinstance(part, Table) and "paper" in part.frame.columns]
    assert [list(part.frame["paper"]) for part in beside] == ([[value]] if value else [])
    assert [part for part in parts if isinstance(part, str) and "google/gemma-2-2b" in part]
    known = mcqa_figures.papers_numbers(units)
    figure = mcqa_figures.accuracy_figure(Metrics(units[0].rows), mcqa_figures.MEASURES, known)
    plt.close(figure)
    crosses = [line.get_xdata()[0] for axes in figure.axes for line in axes.lines if line.get_marker() == "x"]
    assert crosses == ([value] if value else [])


def _deep(run, depth: int) -> list[Unit]:
    """Give a run a network of this depth, whose answer is at the last token from two thirds on."""
    [unit] = run[1].units()
    sweep = np.zeros((len(POSITIONS), 2, depth))
    sweep[POSITIONS.index("last"), 1, 2 * depth // 3 :] = np.linspace(0.9, 1.0, depth - 2 * depth // 3)
    return [unit._replace(arrays={**unit.arrays, "sweep": sweep})]


@pytest.mark.parametrize(("depth", "numbers"), [(4, True), (26, True), (80, False)])
def test_a_sweep_of_any_depth_is_drawn_with_one_scale_few_ticks_and_numbers_where_they_fit(run, depth, numbers):
    figure = mcqa_figures.sweep_figure(_deep(run, depth))
    figure.canvas.draw()
    plt.close(figure)
    panels = [axes for axes in figure.axes if axes.images]
    assert {(axes.images[0].norm.vmin, axes.images[0].norm.vmax) for axes in panels} == {(0.0, 1.0)}
    assert [len(axes.texts) for axes in panels] == [len(POSITIONS) * depth * numbers] * 2
    assert [axes.get_ylabel() for axes in figure.axes if not axes.images] == ["IIA on test pairs"]
    assert len(panels[-1].get_xticks()) <= 24
    assert panels[-1].get_xlabel().startswith("block")


@pytest.mark.parametrize("depth", [26, 80])
def test_a_deep_sweep_is_a_summary_and_whole_with_the_details(run, depth: int):
    units = _deep(run, depth)
    summary = _table(units, "residual stream")
    assert len(fitted(summary, 80)) == 1
    rows = summary.cells().set_index(["token", "variable"])
    found = [str(depth - 1), f"{2 * depth // 3} to {depth - 1}"]
    assert list(rows.loc[("last", "answer")]) == ["0.0000", "1.0000", *found]
    assert list(rows.loc[("symbol", "answer")])[2:] == ["", ""], "nothing changes anywhere"
    parts = [part for part in mcqa_tables.tables(units, True) if isinstance(part, Table)]
    [whole] = [part.frame for part in parts if str(depth - 1) in part.frame.columns]
    np.testing.assert_array_equal(whole.iloc[:, 2:], units[0].arrays["sweep"].reshape(-1, depth))


def test_explain_counts_by_hand(capsys):
    shape = load_shape(CONFIG)
    assert (shape.tokens, shape.window) == (30, 1)
    found = {stage.name: stage for stage in stages(CONFIG, shape)}
    assert found["recording"].evaluations == 2 * (128 + 48 + 48)
    decoder = shape.decoder
    signature = found["stage A, signatures"]
    blocks = sum(3 - depth for depth in range(4)) * block_flops(decoder, 1, 30)
    assert signature.evaluations == 4 * 128
    assert signature.flops == pytest.approx(128 * (blocks + 4 * read_flops(decoder, 106)))
    assert signature.naive_forwards == 2 * 4 * 128
    assert signature.naive_flops == 1024 * forward_flops(decoder, 30, outputs=106, every_token=True)
    # 2 variables, 4 depths there are of 6; the authors evaluate them again for each of 4 eps and a tau
    assert found["stage A, calibration"].evaluations == 2 * 4 * 48
    assert found["stage A, calibration"].naive_forwards == 4 * 2 * (2 * 4 * 48)
    search = found["plot-das, training"]
    assert search.evaluations == 2 * 2 * 6 * (128 // 64) * 64
    show_parts(explanation(CONFIG, shape))
    shown = capsys.readouterr().out
    assert "held at once" in shown
    assert "full-das, training" not in shown
    assert "plot-das, training" in shown
    assert memory(CONFIG, shape)["weights"] == 4 * 177_984


def test_a_large_network_gets_the_papers_grids_unless_flags_say_otherwise():
    large = for_width(Mcqa(), 2304, 26)
    assert large.das.ranks == (32, 64, 96, 128, 256, 512, 768, 1024, 1536, 2048, 2304)
    assert set(large.stages.resolutions) == {128, 144, 192, 256, 288, 384, 576, 768}
    assert large.das.training.bands == 6
    own = for_width(Mcqa(das=dataclasses.replace(Mcqa().das, ranks=(7,))), 2304, 26)
    assert own.das.ranks == (7,)
    assert for_width(Mcqa(), 64, 4) == Mcqa()


def test_explain_of_gemma_saves_a_hundredfold():
    gemma = DecoderConfig(256_000, 2304, 26, 8, 4, 256, 9216, dtype="bfloat16")
    every = stages(for_width(Mcqa(methods=("plot-das", "full-das")), 2304, 26), Shape(gemma, 100))
    edits = [stage for stage in every if stage.naive_flops and stage.name != "factual filter"]
    assert edits
    assert min(stage.naive_flops / stage.flops for stage in edits) >= 100


def test_scorers_are_readouts_of_the_same_outputs():
    subject = load_subject(NetworkOptions())
    questions = make_questions(CONFIG.banks, subject, 1)
    assert questions.accuracy >= 0.98
    strict, letters = (
        make_bench(subject, questions, dataclasses.replace(CONFIG, scorer=s)) for s in ("strict", "letters")
    )
    assert strict.fit.readout == CLASSES
    assert letters.fit.readout == Classes(26)
    np.testing.assert_array_equal(strict.fit.runs.outputs, letters.fit.runs.outputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": NetworkOptions(gib=0.0)}, "--network.gib"),
        ({"banks": McqaBanks(spare=0.5)}, "--banks.spare"),
        ({"banks": McqaBanks(fit=2)}, "--banks.fit"),
        ({"das": DasOptions((65,))}, "--das.ranks"),
        ({"methods": ("plot-das", "plot-das")}, "--methods"),
    ],
)
def test_options_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Mcqa(), **changes).check()


def test_retraining_needs_a_folder_and_networks_must_exist(tmp_path):
    with pytest.raises(ValueError, match="got --out None, expected the folder to write the network of --retrain to"):
        mcqa.instead(Mcqa(retrain=True))
    with pytest.raises((ValueError, ImportError)):
        load_subject(NetworkOptions(model=str(tmp_path)))


def test_the_table_explains_itself():
    assert all(len(line) <= 160 for line in mcqa_tables.OWN_NOTES)
