"""The log of a run: a line for each stage, of any seed, and none for what was done before."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from heqruns import command, handmade_unit

from experiments import command_line
from experiments.equality import experiment as heq
from experiments.harness.logs import FILE, logger


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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_line_says_when_and_how_much_memory(tmp_path):
    log = logger(tmp_path)
    log(7, "first")
    held = np.ones(2 * 10**9 // 8 // 4)  # half a GB that is touched
    log(7, "second")
    del held
    log(7, "third")
    first, second, third = (json.loads(line) for line in (tmp_path / FILE).read_text().splitlines())
    assert first["time"] <= second["time"]
    assert 0 <= first["seconds"] <= second["seconds"]
    assert first["memory"] < second["memory"] + 1e-3
    assert third["memory"] >= second["memory"] - 0.01, "the most so far, not what is held now"
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert third["memory"] >= 0.9 * pages * os.sysconf("SC_PAGE_SIZE") / 1e9
    assert second["memory"] < 50, "GB, not MB"


def test_half_a_line_of_a_killed_process_spoils_no_other(tmp_path):
    (tmp_path / FILE).write_text('{"seed": 1}\n{"se')
    logger(tmp_path)(7, "next")
    lines = (tmp_path / FILE).read_text().splitlines()
    assert lines[1] == '{"se'
    assert json.loads(lines[2])["stage"] == "next"


def test_loggers_are_told_every_stage_and_every_number_and_are_closed(tmp_path, monkeypatch):
    def run_seed(config, seed, run, report):
        report(f"stage of {seed}")
        if seed == 3:
            raise KeyboardInterrupt
        return handmade_unit(seed, {"das": 0.9})

    told: dict[str, list] = {"scalars": [], "texts": [], "log": [], "closed": []}

    class Writer:
        def __init__(self, folder):
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name, value, step):
            told["scalars"].append((name, value, step))

        def add_text(self, name, text, step):
            told["texts"].append((name, text))

        def flush(self):
            pass

        def close(self):
            told["closed"].append("tensorboard")

    run = SimpleNamespace(log=told["log"].append, finish=lambda: told["closed"].append("wandb"))
    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: told.update(options) or run))
    monkeypatch.setitem(command_line.EXPERIMENTS, "heq", heq.EXPERIMENT._replace(run_seed=run_seed))
    ended = command("heq", "--seeds", "1:4", "--out", tmp_path, "--log", "tensorboard", "wandb")
    assert ended.status == 130
    assert ("test/das/wx/iia", 0.9, 2) in told["scalars"]
    assert told["texts"] == [(f"seed {seed}/stage", f"stage of {seed}") for seed in (1, 2, 3)]
    assert (told["project"], told["name"]) == ("abstraction", tmp_path.name)
    assert [line["stage"] for line in told["log"] if "stage" in line] == [f"stage of {seed}" for seed in (1, 2, 3)]
    assert [line["seed"] for line in told["log"] if "test/das/yz/iia" in line] == [1, 2]
    assert told["closed"] == ["tensorboard", "wandb"]


def test_a_logger_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    ended = command("heq", "--seeds", "1", "--out", tmp_path, "--log", "wandb")
    assert ended.status == 1
    assert ended.err.startswith("error: wandb is not installed, expected the extra: pip install 'abstraction-jax[log]'")
