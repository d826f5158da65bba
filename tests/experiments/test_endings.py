"""What stops a command ends in one line that says why and how to go on, and in the exit status that belongs to it."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from heqruns import SMALL, Ended, command, handmade_run, handmade_unit

from experiments import command_line
from experiments.equality import experiment as heq
from experiments.equality.options import Equality
from experiments.harness import records
from experiments.harness.files import locked
from experiments.harness.records import RunFolder, Unit, open_run


class _HubError(Exception):
    """An error of the hub's client."""


_HubError.__module__ = "huggingface_hub.errors"
STOPS = {
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted"),
    "full disk": (OSError(errno.ENOSPC, "No space left on device", "units/x"), 1, "No space left on device"),
    "no network": (ConnectionError("the hub\ncannot be reached"), 1, "the hub cannot be reached"),
    "gated": (_HubError("401: access to google/gemma-2-2b is restricted"), 1, "restricted"),
    "missing extra": (ImportError("loading 'x' needs the extra `hub`"), 1, "needs the extra"),
    "missing module": (
        ModuleNotFoundError("No module named 'tqdm'", name="tqdm"),
        1,
        r"'abstraction-jax\[experiments\]'",
    ),
    "diverged": (FloatingPointError("got loss nan"), 1, "got loss nan"),
    "memory": (MemoryError(), 1, "MemoryError"),
    "memory of a device": (RuntimeError("RESOURCE_EXHAUSTED: out of memory\nwhile"), 1, "out of memory while"),
}


def _let_seeds_stop(monkeypatch: pytest.MonkeyPatch, at: int, stop: Callable[[], object]) -> None:
    def run_seed(config: Equality, seed: int, run: RunFolder, report: Callable[[str], None]) -> Unit:
        if seed == at:
            stop()
        return handmade_unit(seed, {"das": 0.9})

    monkeypatch.setitem(command_line.EXPERIMENTS, "heq", heq.EXPERIMENT._replace(run_seed=run_seed))


def _raising(error: BaseException) -> Callable[[], object]:
    def stop() -> None:
        raise error

    return stop


def _assert_it_says_how_to_go_on(ended: Ended, status: int, words: str, out: Path) -> None:
    assert (ended.status, ended.out) == (status, "")
    assert len(ended.err.splitlines()) == 1, ended.err
    assert re.search(words, ended.err), ended.err
    assert f"what was finished is in {out}; continue with: python -m experiments heq" in ended.err


@pytest.mark.parametrize("stop", STOPS)
def test_the_line_says_how_to_go_on_and_going_on_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str):
    error, status, words = STOPS[stop]
    with monkeypatch.context() as patch:
        _let_seeds_stop(patch, 2, _raising(error))
        ended = command("heq", "--seeds", "1:4", "--out", tmp_path / "a run")
    _assert_it_says_how_to_go_on(ended, status, words, tmp_path / "a run")
    assert open_run(tmp_path / "a run").unit_names() == ["seed-1"]
    line = shlex.split(ended.err.split("continue with: ")[1])
    assert line[:3] == ["python", "-m", "experiments"]
    _let_seeds_stop(monkeypatch, 0, _raising(error))
    assert command(*line[3:]).status == 0
    assert open_run(tmp_path / "a run").unit_names() == ["seed-1", "seed-2", "seed-3"]


def test_sigterm_lets_a_step_finish_and_a_second_one_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before, terminate = signal.getsignal(signal.SIGTERM), lambda: os.kill(os.getpid(), signal.SIGTERM)
    for times, status, words, units in ((1, 0, "^stopped", ["seed-1", "seed-2"]), (2, 143, "^terminated", ["seed-1"])):
        out = tmp_path / words[1:]
        _let_seeds_stop(monkeypatch, 2, lambda times=times: [terminate() for _ in range(times)])
        _assert_it_says_how_to_go_on(command("heq", "--seeds", "1:4", "--out", out), status, words, out)
        assert open_run(out).unit_names() == units
        assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_in_the_last_step_ends_as_if_it_had_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _let_seeds_stop(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    ended = command("heq", "--seeds", "1:3", "--out", tmp_path)
    assert (ended.status, ended.err) == (0, "")
    assert "report" in ended.out


def test_a_run_without_a_folder_of_its_own_is_continued_in_the_one_it_got(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    _let_seeds_stop(monkeypatch, 1, _raising(KeyboardInterrupt()))
    ended = command("heq", "--seeds=1")
    assert re.search(r"experiments heq --seeds=1 --out runs/heq-\d{8}-\d{6} --resume\n$", ended.err), ended.err


def test_what_happens_before_there_is_a_run_names_none(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    ended = command("heq", "--out", tmp_path / "file" / "run")
    assert (ended.status, len(ended.err.splitlines())) == (1, 1)
    assert "continue" not in ended.err


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _let_seeds_stop(monkeypatch, 1, _raising(TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        command("heq", "--seeds", "1", "--out", tmp_path)


def test_figures_that_cannot_be_written_end_in_one_line(tmp_path: Path):
    run = handmade_run(tmp_path / "run", [handmade_unit(1, {"das": 0.9})])
    (run.path / "figures").write_text("x")
    ended = command("figures", run.path)
    assert (ended.status, ended.out) == (1, "")
    assert re.fullmatch(r"error: .*figures.*\n", ended.err)


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _let_seeds_stop(monkeypatch, 0, _raising(KeyboardInterrupt()))
    assert command("heq", "--seeds", "1", "--out", tmp_path).status == 0
    with locked(tmp_path):
        ended = command("heq", "--seeds", "1:3", "--resume", "--out", tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert re.fullmatch(r"error: got .*, which another process is writing to; expected .*\n", ended.err)
    assert command("heq", "--seeds", "1:3", "--resume", "--out", tmp_path).status == 0


def test_resuming_says_what_changed_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _let_seeds_stop(monkeypatch, 0, _raising(KeyboardInterrupt()))
    now = records.provenance()
    with monkeypatch.context() as patch:
        older = {**now, "versions": {**now["versions"], "jax": "0.0.1", "python": "2.7"}}
        patch.setattr(records, "provenance", lambda: older)
        assert command("heq", "--seeds", "1", "--out", tmp_path).err == ""
    monkeypatch.setattr(records, "provenance", lambda: now)
    said = command("heq", "--seeds", "1:3", "--resume", "--out", tmp_path).err
    version = now["versions"]
    assert said == (
        "note: changed since this run was last continued: "
        f"python 2.7 -> {version['python']}; jax 0.0.1 -> {version['jax']}\n"
    )
    assert command("heq", "--seeds", "1:4", "--resume", "--out", tmp_path).err == ""
    legs = json.loads((tmp_path / "manifest.json").read_text())["invocations"]
    assert [len(leg["changed"]) for leg in legs] == [0, 2, 0]


def test_a_training_that_diverged_leaves_no_table(tmp_path: Path):
    options = ("heq", "--seeds", "1", "--methods", "plot-ot", *SMALL, "--backbone.learning-rate", "1e30")
    ended = command(*options, "--out", tmp_path)
    assert (ended.status, ended.out) == (1, "")
    assert re.fullmatch(r"error: got .*: the training diverged, expected finite numbers; .*\n", ended.err)
    assert open_run(tmp_path).unit_names() == []
    assert command(*options, "--out", tmp_path, "--resume").status == 1, "nor when it is continued"


def test_ctrl_c_while_everything_is_imported_is_one_line(tmp_path: Path):
    (tmp_path / "jax.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(tmp_path)}
    # Where the tests run in the background, the shell has them ignore Ctrl-C, and children inherit that.
    code = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "sys.argv = ['experiments', 'heq']; runpy.run_module('experiments', run_name='__main__')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(heq.__file__).parents[2], env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")
