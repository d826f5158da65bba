"""The experiment about indirect objects end to end on a small random decoder, where there is nothing to find."""

import dataclasses
import json

import numpy as np
import pytest

from abstraction.artifacts import load
from abstraction.interventions.handles import coordinate_mass
from abstraction.models import TokenView
from abstraction.tasks import ioi as task
from abstraction.tasks.ioi import FAMILIES, POSITIONS, VARIABLES
from experiments.harness.metrics import Metrics
from experiments.harness.options import changed
from experiments.harness.page.contents import pairs as kept_outcomes
from experiments.harness.records import open_run
from experiments.harness.report import Report, draw, show
from experiments.harness.results import Results
from experiments.harness.running import run_experiment
from experiments.harness.tables import show_parts
from experiments.ioi import experiment as ioi
from experiments.ioi import figures, tables
from experiments.ioi.cost import explanation, load_shape, stages
from experiments.ioi.joining import join
from experiments.ioi.options import Ioi, IoiNetwork
from experiments.ioi.subject import first_pairs, load_subject, make_questions, narrow_bench, whole_vocabulary

REPORT = Report(tables.tables, figures.draw)
DEPTH, HEADS = 4, 4
METHODS = ("plot-stage-a", "plot-das", "screened-das")
CONFIG = changed(
    Ioi.preset("quick"),
    {
        "methods": METHODS, "control_draws": 1, "banks.fit": 24, "banks.calibration": 16, "banks.test": 16,
        "banks.wide": 16, "banks.untrained": 24, "das.ranks": (4,), "das.training.max_epochs": 1,
        "full.training.max_epochs": 1, "das_position.training.max_epochs": 1, "banks.position": 16,
    },
)  # fmt: skip


@pytest.fixture(scope="module", name="run")
def _run(tmp_path_factory):
    config = dataclasses.replace(CONFIG, out=tmp_path_factory.mktemp("ioi") / "run")
    return config, run_experiment(ioi.EXPERIMENT, config)


@pytest.fixture(scope="module", name="subject")
def _subject():
    return load_subject(CONFIG.network)


def test_a_run_leaves_a_map_heads_and_every_method_with_its_controls(run):
    [unit] = run[1].units()
    assert unit.arrays["map"].shape == (2, DEPTH, len(POSITIONS))
    assert unit.arrays["head_output/exact"].shape == (DEPTH, HEADS)
    assert unit.arrays["mlp_output/cost"].shape == (DEPTH, 1)
    metrics = Metrics(unit.rows)
    for method in METHODS:
        searched = VARIABLES if method != "screened-das" else ("token",)
        for variable in VARIABLES:
            for name in (method, f"control-random-{method}", f"control-shuffled-{method}"):
                assert len(metrics.values(name, variable, "test", "iia")) == (variable in searched), name
        assert set(unit.details[method]["settings"]) == set(searched)
    for method in ("full-state", "plot-das"):
        assert len(metrics.values(f"control-untrained-{method}", "token", "test", "iia")) == 1


def test_a_random_network_has_no_variable(run):
    metrics = Metrics(run[1].units()[0].rows)
    for method in METHODS:
        rate, chance = (
            metrics.rate(method, "token", "test"),
            metrics.mean("control-identity", "token", "test", "chance"),
        )
        assert rate is not None
        assert rate.low <= chance, "not above the best constant answer"


def test_no_row_is_written_twice(run):
    rows = run[1].units()[0].rows
    named = [row[:-1] for row in rows]
    assert len(set(named)) == len(named)


def test_means_are_of_the_variables_that_were_searched():
    parts = []
    for value in (0.25, 0.75):
        part = Results("ioi", 0)
        for variable in ("x", "mean"):
            part.add("m", variable, "test", iia=value)
        part.add("m", "mean", "test", seconds=value)
        part.details["m"] = {"settings": {str(value): {}}, "ties": [1], "finite": value < 0.5, "candidates": value}
        parts.append(part)
    results = Results("ioi", 0)
    join(results, dict(zip("ab", parts, strict=True)), "m")
    metrics = Metrics(results.rows)
    assert metrics.mean("m", "mean", "test", "iia") == 0.5
    assert metrics.mean("m", "mean", "test", "seconds") == 1.0
    assert [metrics.mean("m", name, "test", "seconds") for name in ("a", "b")] == [0.25, 0.75]
    assert results.details["m"] == {
        "settings": {"0.25": {}, "0.75": {}}, "ties": [1, 1], "finite": False, "candidates": 0.75,
    }  # fmt: skip


def test_a_variable_with_fewer_pairs_keeps_fewer_outcomes():
    parts = {name: Results("ioi", 0) for name in "ab"}
    for part, pairs in zip(parts.values(), (5, 3), strict=True):
        part.arrays["m/got"] = np.arange(pairs, dtype=np.int32)[None]
    results = Results("ioi", 0, details={"pairs": {"expected": [[0] * 5, [0] * 3]}})
    join(results, parts, "m")
    shown = kept_outcomes(results.unit)
    assert shown is not None
    assert shown["got"] == {"m": [[0, 1, 2, 3, 4], [0, 1, 2]]}


def test_mib_files_name_the_place_and_average_the_families(run):
    config, folder = run
    metrics, [unit] = Metrics(folder.units()[0].rows), folder.units()
    for method in METHODS:
        content = json.loads((config.out / "mib" / f"{method}-seed-0.json").read_text())
        assert content["task_name"] == "ioi_task"
        assert set(content["dataset"]) == {"s1_io_flip_test", *(f"{name}_test" for name in FAMILIES[1:])}
        scores = {name: [] for name in VARIABLES}
        for dataset in content["dataset"].values():
            for name, entry in dataset["model_unit"].items():
                place = entry["metadata"]
                assert (
                    name
                    == f"[[AtomicModelUnit(id='ResidualStream(Layer-{place['layer']},Token-{place['position']})')]]"
                )
                for variable in VARIABLES:
                    scores[variable] += [entry[key]["average_score"] for key in entry if key == f"output_{variable}"]
        for variable in VARIABLES:
            if scores[variable]:
                mean = metrics.mean(method, variable, "test", "squared_error")
                assert np.mean(scores[variable]) == pytest.approx(mean)
    assert unit.details["linear"]["error"] >= 0


def test_handles_are_read_back_one_file_a_variable(run, subject):
    config, folder = run
    questions = make_questions(config.banks, subject, 0)
    for variable in VARIABLES:
        positions = Metrics(folder.units()[0].rows).values("plot-places", variable, "calibration", "position")
        bench = narrow_bench(subject, questions, config, variable, POSITIONS[int(positions[0])])
        choice = load(
            config.out / "handles" / f"plot-das-seed-0-{variable}.safetensors", whole_vocabulary(bench).network
        )
        assert choice.variables == (variable,)
        mass = folder.units()[0].arrays["plot-das/mass"][("token", "position").index(variable)]
        found = coordinate_mass(choice.handles, DEPTH)[0]
        own = mass.reshape(DEPTH, len(POSITIONS), -1)
        np.testing.assert_allclose(own[:, int(positions[0])], found, rtol=1e-6)
        assert own.sum() == pytest.approx(found.sum(), rel=1e-5), "and nothing at other tokens"


def test_a_complete_run_is_shown_from_its_records(run, capsys):
    config, folder = run
    show(open_run(config.out), REPORT, details=True)
    shown = capsys.readouterr().out
    for text in (*METHODS, "screened-places", "map-places", "head_output by exact", "random weights", "squared error"):
        assert text in shown
    names = {path.name for path in draw(folder, REPORT)}
    assert names == {f"{stem}.{kind}" for stem in ("accuracy", "map", "heads", "runtime") for kind in ("png", "pdf")}


def test_pairs_that_the_network_does_not_answer_are_dropped_and_refused_where_too_few_are_left(subject):
    with pytest.raises(ValueError, match="solves none"):
        make_questions(dataclasses.replace(CONFIG.banks, solved=True), subject, 0)
    questions = make_questions(CONFIG.banks, subject, 0)
    assert [made.bank.size for made in questions.banks.values()] == [24, 16, 16]
    assert np.bincount(questions.banks["fit"].family).tolist() == [6] * len(FAMILIES)
    few = first_pairs(questions.banks["fit"], 9)
    assert np.bincount(few.family).tolist() == [3, 2, 2, 2]
    assert few.bank.size == 9


def test_searches_read_the_names_and_judgements_the_whole_vocabulary(subject):
    questions = make_questions(CONFIG.banks, subject, 0)
    bench = narrow_bench(subject, questions, CONFIG, "token", "last")
    names = len(subject.lexicon.names)
    assert bench.fit.runs.outputs.shape == (24, names)
    for seen, outputs in ((bench, names), (whole_vocabulary(bench), names + 1)):
        model = seen.network.model
        assert isinstance(model, TokenView)
        assert model.decoder.outputs == outputs


def test_explain_counts_by_hand(capsys):
    shape = load_shape(CONFIG)
    assert (shape.windows["last"], shape.names) == (1, 12)
    assert shape.windows["first_name"] > shape.windows["second_name"] > shape.windows["subject_again"] > 1
    found = {stage.name: stage for stage in stages(CONFIG, shape)}
    assert found["places, effects"].prompts == DEPTH * len(POSITIONS) * 16
    assert found["stage A, token"].prompts == DEPTH * 24
    assert found["plot-das, token"].prompts == 16, "one rank, one epoch of one batch of 16"
    assert "full-das, token" not in found
    show_parts(explanation(CONFIG, shape))
    assert "held at once" in capsys.readouterr().out


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("experiments.ioi.subject.smollm2", lambda: (_ for _ in ()).throw(ImportError("make smollm2")))
    with pytest.raises(ImportError, match="make smollm2"):
        load_subject(IoiNetwork())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"banks.spare": 0.5}, "--banks.spare"),
        ({"banks.fit": 3}, "--banks.fit"),
        ({"full.ranks": (33,)}, "--full.ranks"),
        ({"das.training.batch_size": 64}, "--das.training.batch-size"),
        ({"screen": 0.0}, "--screen"),
        ({"methods": ("plot-das", "plot-das")}, "--methods"),
        ({"stages.resolutions": (64,)}, "--stages.resolutions"),
    ],
)
def test_options_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        changed(CONFIG, changes).check()


def test_the_vocabulary_of_the_task_writes_every_prompt(subject):
    lexicon = subject.lexicon
    assert task.vocabulary(lexicon)[: len(lexicon.names)] == lexicon.names
    assert subject.tokenizer.size == len(set(task.vocabulary(lexicon)))
    shown = {
        "name0": np.array([0]),
        "name1": np.array([1]),
        "order": np.array([0]),
        "frame": np.array([len(lexicon.frames) - 1]),
    }
    assert len(task.encode(shown, subject.tokenizer, lexicon).tokens) == 1


def test_the_table_explains_itself():
    assert all(len(line) <= 200 for line in tables.OWN_NOTES)
