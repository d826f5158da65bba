"""Bad input on the command line: exit status 2 and one clear line, before anything is trained."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from heqruns import SMALL, Ended, command

from abstraction.training import Trained
from experiments.command_line import EXPERIMENTS, parsed
from experiments.equality import experiment as heq
from experiments.equality.options import Equality
from experiments.harness import running
from experiments.harness.records import create_run
from experiments.harness.valid import parse_seeds

TINY = ("heq", "--seeds", "1", "--methods", "plot-ot", *SMALL, "--backbone.rows", "2048", "--backbone.epochs", "1")

WRONG_VALUES = {
    "--plot.epsilons 0": r"epsilon.*\b0",
    "--plot.epsilons -1": r"epsilon.*-1",
    "--plot.epsilons nan": "epsilon.*nan",
    "--plot.epsilons": r"epsilon.*\[\]",
    "--plot.subset-sizes 0": r"subset.*\b0",
    "--plot.subset-sizes 1000": "subset.*1000",
    "--plot.strengths 0": r"strengths.*\b0",
    "--plot.iterations 0": r"iterations.*\b0",
    "--methods plot-uot --plot.taus 1.5": r"tau.*1\.5",
    "--methods plot-uot --plot.taus": r"tau.*\[\]",
    "--methods das --das.ranks 0": r"ranks.*\b0",
    "--methods das --das.ranks 17": "ranks.*17",
    "--methods das --das.restarts 0": r"restarts.*\b0",
    "--methods das --das.learning-rates 0": r"learning.rate.*\b0",
    "--methods das --das.training.batch-size 1000": r"batch.size.*\b1000",
    "--methods plot-ot-paper --published.epsilons 0": r"epsilon.*\b0",
    "--methods plot-ot-paper --published.subset-sizes 0": "subset",
    "--methods plot-uot-paper --published.beta-neural 0": r"beta.*\b0",
    "--methods plot-uot-paper --published.beta-neural": r"beta.*\[\]",
    "--methods gw --plot.gw-epsilons 0": r"epsilon.*\b0",
    "--methods fgw --plot.fused-alpha 2": r"alpha.*\b2",
    "--control-draws 0": r"draws.*\b0",
    "--control-shuffles 0": r"shuffles.*\b0",
    "--methods plot-ot plot-ot": "plot-ot",
    "--backbone.width 0": r"width.*\b0",
    "--backbone.rows 10": r"rows.*\b10",
    "--backbone.validation-rows 0": r"validation.*\b0",
    "--backbone.batch-size 0": r"batch.size.*\b0",
    "--backbone.epochs -1": "epochs.*-1",
    "--banks.size 0": r"\b0\b",
    "--banks.size 100000": "impossible sampling policy: 50000 pairs",
    "--banks.fit-pool 10": "impossible sampling policy: 50 pairs",
    "--banks.test-pool 100000": r"pool.*\b100000, expected 2 to",
    "--banks.fit 0": r"\b0\b",
    "--banks.both 2": r"both 2\.0, expected in \[0, 1\)",
}
"""Options, and what the error line must say of them."""

ONE_OF_EACH_GROUP = (
    "--plot.epsilons 0",
    "--plot.subset-sizes 1000",
    "--methods das --das.ranks 17",
    "--methods plot-ot-paper --published.epsilons 0",
    "--control-draws 0",
    "--backbone.epochs -1",
    "--banks.size 100000",
    "--banks.fit-pool 10",
    "--banks.both 2",
)


def _untrained(key: Any, loss: Any, params: Any, *_: Any, **__: Any) -> Trained:
    return Trained(params, [], 0)


def _assert_one_clear_line(ended: Ended, pattern: str) -> None:
    assert ended.status == 2
    assert len(ended.err.splitlines()) == 1
    assert re.match(r"error: got .*expected ", ended.err), ended.err
    assert re.search(pattern, ended.err), ended.err


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("options", WRONG_VALUES)
def test_a_wrong_value_ends_in_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str):
    fit = heq.fit
    # Training is left out, except where it is training that refuses.
    monkeypatch.setattr(heq, "fit", fit if "backbone" in options else _untrained)
    _assert_one_clear_line(command(*TINY, *options.split(), "--out", tmp_path / "run"), WRONG_VALUES[options])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("options", ONE_OF_EACH_GROUP)
def test_a_wrong_value_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
):
    def fail(*_: Any, **__: Any) -> Trained:
        pytest.fail("a network was trained before the options were checked")

    monkeypatch.setattr(heq, "fit", fail)
    assert command(*TINY, *options.split(), "--out", tmp_path / "run").status == 2


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [("--plot.epsilons", "0"), ("--banks.fit-pool", "10")])
def test_the_same_folder_takes_the_corrected_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: tuple):
    monkeypatch.setattr(heq, "fit", _untrained)
    assert command(*TINY, *wrong, "--out", tmp_path / "run").status == 2
    assert command(*TINY, "--out", tmp_path / "run").status == 0


@pytest.mark.parametrize("seeds", ["nonsense", "3:1", "1,1", "1.5", ""])
def test_wrong_seeds_leave_no_folder(tmp_path: Path, seeds: str):
    for quick in ((), ("--quick",)):
        ended = command("heq", f"--seeds={seeds}", *quick, "--out", tmp_path / "run")
        _assert_one_clear_line(ended, f"got seeds '{seeds}'")
        assert ended.out == ""
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--methods", "plot-tot"), ("plot-tot", "some of plot-ot", "did you mean plot-ot?")),
        (("--plot.scope", "nope"), ("nope", "depth")),
        (("--banks.calibration-policy", "nope"), ("nope", "shared_only")),
        (("--backbone.width", "wide"), ("wide", "int")),
        (("--no-such-option", "1"), ("--no-such-option",)),
        (("--das.training.max-epochs", "-1"), ("das.training", "max_epochs", "-1", "expected")),
        (("--das.training.sensitive-weight", "2"), ("das.training", "sensitive weight", "2", "expected")),
    ],
)
def test_what_the_parser_refuses_is_named_with_what_is_valid(tmp_path: Path, options: tuple[str, str], words: tuple):
    ended = command("heq", *options, "--out", tmp_path / "run")
    assert (ended.status, ended.out) == (2, "")
    assert all(word in ended.err for word in words)
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [(), ("nope",), ("tables",), ("figures",)])
def test_a_command_without_its_arguments_is_refused(arguments: tuple[str, ...]):
    ended = command(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("heq", "--seed", "1:2"), ("--seeds", "experiments heq --help")),
        (("hqe",), ("'hqe'", "did you mean python -m experiments heq?")),
        (("table", "run"), ("did you mean python -m experiments tables?",)),
        (("qqqq",), ("expected one of heq, addition",)),
        ((), ("usage: python -m experiments", "addition", "figures")),
        (("heq", "--config"), ("got --config , expected a config.json",)),
        (("heq", "--quik"), ("--quick",)),
        (("heq", "--help", "daz"), ("expected nothing or one of backbone", "did you mean das?")),
        (("heq", "--quick", "--paper"), ("got presets", "one of them")),
        (("discovery", "--paper"), ("--paper",)),
        (("heq", "--config", "no/such"), ("--config no/such",)),
    ],
)
def test_a_typo_is_answered_by_what_was_meant(arguments: tuple[str, ...], words: tuple[str, ...]):
    ended = command(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert all(word in ended.err for word in words), ended.err
    assert len(ended.err.splitlines()) <= 16
    assert "addition --help" not in ended.err


def test_help_of_all_commands_is_not_an_error():
    ended = command("--help")
    assert (ended.status, ended.err) == (0, "")
    assert all(name in ended.out for name in (*EXPERIMENTS, "tables", "figures"))


@pytest.mark.parametrize("preset", ["", "quick", "paper"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_options_of_a_run_are_read_back(tmp_path: Path, name: str, preset: str):
    kind = EXPERIMENTS[name].options
    if preset and preset not in kind.PRESETS:
        pytest.skip(f"{name} has no preset {preset}")
    options = kind.preset(preset) if preset else kind()
    run = create_run(tmp_path, options, resume=False)
    for path in (run.path, run.path / "config.json"):
        assert parsed(EXPERIMENTS[name], ["--config", str(path)])[1] == options


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_first_page_of_help_fits_two_screens_and_the_last_names_every_flag(name: str, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main, every = command(name, "--help"), command(name, "--help-all")
    assert (main.status, every.status) == (0, 0)
    assert len(main.out.splitlines()) <= 100
    assert max(map(len, main.out.splitlines())) <= 80
    assert "--help-all" in main.out
    assert len(every.out.splitlines()) > len(main.out.splitlines())


def test_help_of_a_group_shows_that_group_alone():
    ended = command("heq", "--help", "das")
    assert ended.status == 0
    assert "--das.ranks" in ended.out
    assert not re.search(r"--(plot|seeds|backbone|published)", ended.out)


def test_flags_beside_a_config_win(tmp_path: Path):
    run = create_run(tmp_path, Equality(out=tmp_path, resume=True), resume=False)
    flags = ["--seeds", "7", f"--config={run.path}", "--plot.epsilons", "0.5", "2"]
    read = parsed(EXPERIMENTS["heq"], flags)[1]
    assert read == dataclasses.replace(
        Equality(), seeds="7", plot=dataclasses.replace(Equality().plot, epsilons=(0.5, 2.0))
    ), "and neither the folder nor --resume is handed on"


def test_the_config_of_another_experiment_is_refused_by_name(tmp_path: Path):
    create_run(tmp_path, Equality(), resume=False)
    with pytest.raises(ValueError, match=r"got backbone in .*config\.json , expected options of Mcqa: seeds, out"):
        parsed(EXPERIMENTS["mcqa"], ["--config", str(tmp_path)])


@pytest.mark.parametrize("subcommand", ["heq", "tables", "figures"])
def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path, subcommand: str):
    path = tmp_path / "run"
    path.write_text("x")
    _assert_one_clear_line(command(subcommand, "--out", path), "run")
    assert path.read_text() == "x"


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("x")
    _assert_one_clear_line(command("heq", "--out", tmp_path), "not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_resuming_needs_to_know_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "run_seeds", lambda *_: started.append(True))
    ended = command("heq", "--resume")
    assert not started
    _assert_one_clear_line(ended, "--out")


@pytest.mark.parametrize(
    "options",
    [
        # 16 sites, fewer than the K = 20 that only plot-ot-paper and plot-uot-paper read
        "--methods das --das.ranks 1 4 --backbone.width 8 --backbone.depth 2",
        # 8 sites, fewer than the K = 16 that only methods with a menu read
        "--methods full-state --backbone.width 4 --backbone.depth 2",
    ],
)
def test_options_that_no_method_reads_are_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str):
    def run(*_: Any) -> None:
        raise ValueError("got here")

    monkeypatch.setattr(running, "run_seeds", run)
    ended = command("heq", *options.split(), "--out", tmp_path / "run")
    assert ended.err == "error: got here\n"


def test_a_run_without_a_folder_gets_one_with_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def run(experiment: Any, config: Equality, run_folder: Any, continuation: Any) -> None:
        seen.append((run_folder.path, parse_seeds(config.seeds), (run_folder.path / "config.json").exists()))
        raise ValueError("got here, expected nothing more")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "run_seeds", run)
    assert command("heq", "--seeds", "2,4").err == "error: got here, expected nothing more\n"
    [(path, seeds, begun)] = seen
    assert re.fullmatch(r"runs/heq-\d{8}-\d{6}", str(path))
    assert seeds == [2, 4]
    assert begun
    assert not (tmp_path / path).exists(), "a run that computed nothing leaves nothing"
