"""The log of a run: a line for each stage, of any seed, and none for what was done before."""

import json

import pytest
from heqruns import command, handmade_unit

from experiments import command_line
from experiments.equality import experiment as heq
from experiments.harness.logs import FILE, logger, peak_memory


def test_every_stage_leaves_a_line_and_a_run_that_goes_on_adds_its_own(tmp_path, monkeypatch):
    def run_seed(config, seed, run, report):
        report(f"stage of {seed}")
        return handmade_unit(seed, {"das": 0.9})

    monkeypatch.setitem(command_line.EXPERIMENTS, "heq", heq.EXPERIMENT._replace(run_seed=run_seed))
    stages = []
    for seeds in ("1:3", "1:4"):
        assert command("heq", "--seeds", seeds, "--out", tmp_path, "--resume").status == 0
        lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
        stages.append([(line["seed"], line["stage"]) for line in lines])
    assert stages[0] == [(1, "stage of 1"), (1, "done"), (2, "stage of 2"), (2, "done")]
    assert stages[1] == [*stages[0], (3, "stage of 3"), (3, "done")]


def test_a_line_says_when_and_how_much_memory(tmp_path):
    log = logger(tmp_path)
    held = bytearray(200_000_000)
    log(7, "first")
    del held
    log(7, "second")
    first, second = (json.loads(line) for line in (tmp_path / FILE).read_text().splitlines())
    assert first["time"] <= second["time"]
    assert 0 <= first["seconds"] <= second["seconds"]
    assert first["memory"] >= 0.2
    assert second["memory"] >= first["memory"], "the most so far, not what is held now"
    assert second["memory"] == pytest.approx(peak_memory(), abs=0.1)
