"""`--mesh`: a run that several devices share has the numbers of one that has a device for itself."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from heqruns import SMALL, command, numbers

from experiments.harness.records import open_run

ROOT = Path(__file__).parent.parent.parent
TEXT = ("lm-reduction", "--quick", "--batch-size", "8", "--methods", "cmr-closed", "flap")
DIGITS = ("reduction", "--quick", "--methods", "cmr", "cip-affine", "--both-methods", "cmr", "--network.epochs", "10")
RUN = ("heq", "--methods", "plot-ot", "das", "full-state", "--seeds", "1", *SMALL)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pairs", "expected sizes of some of pairs, candidates, model"),
        ("pairs=2,pairs=2", "each once"),
        ("sites=2", "expected sizes of some of"),
        ("pairs=0", "devices along 'pairs'"),
        ("pairs=64", "64 devices, expected at most"),
        ("model=2", "got"),
    ],
)
def test_a_mesh_that_is_none_is_refused_in_one_line(tmp_path: Path, text: str, words: str):
    ended = command(*RUN, "--mesh", text, "--out", tmp_path / "run")
    assert (ended.status, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert words in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("run", [RUN, TEXT, DIGITS], ids=["heq", "lm-reduction", "reduction"])
def test_devices_share_a_run_and_its_numbers_stay(tmp_path: Path, run: tuple[str, ...]):
    """A process of its own has eight devices; a network is trained by one, the same in both."""
    out = [tmp_path / "alone", tmp_path / "shared"]
    flags = "--xla_force_host_platform_device_count=8"
    settings = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    for folder, mesh in zip(out, ([], ["--mesh", "pairs=4,candidates=2"]), strict=True):
        line = [sys.executable, "-m", "experiments", *run, *mesh, "--out", str(folder)]
        ended = subprocess.run(line, env=settings, cwd=ROOT, capture_output=True, text=True, check=False)
        assert not ended.returncode, ended.stderr[-2000:]
    _assert_alike(*out)


@pytest.mark.slow
def test_processes_share_a_run_and_the_first_writes_it(tmp_path: Path):
    """Two processes of four devices each."""
    line = [sys.executable, "-m", "experiments", *RUN]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    subprocess.run([*line, "--out", str(alone)], env=_settings(), cwd=ROOT, capture_output=True, check=True)
    told = _ended(_processes(*RUN, "--out", str(shared)))
    assert "report" in told[0][0]
    assert "report" not in told[1][0], "the first one prints"
    _assert_alike(alone, shared)


@pytest.mark.slow
def test_sigterm_at_one_process_stops_all_after_the_same_step(tmp_path: Path):
    out = tmp_path / "run"
    each = _processes(*RUN, "--out", str(out))
    log = out / "log.jsonl"
    for _ in range(1200):
        if log.is_file() and "plot-ot" in log.read_text():
            break
        time.sleep(0.1)
    each[1].send_signal(signal.SIGTERM)
    told = _ended(each)
    assert f"what was finished is in {out}; continue with" in told[0][1]
    assert open_run(out).unit_names() == []
    _ended(_processes(*RUN, "--out", str(out), "--resume"))
    assert open_run(out).unit_names() == ["seed-1"]


def _processes(*line: str) -> list[subprocess.Popen[str]]:
    """Start a run by two processes of four devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "experiments", *line, "--mesh", "pairs=4,candidates=2"]
    return [
        subprocess.Popen(
            [*command, "--processes", f"{place},{index},2"],
            env=_settings(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip


def _settings() -> dict[str, str]:
    """Give every process four devices, one that runs alone too: it trains a network as the first of two does."""
    flags = "--xla_force_host_platform_device_count=4"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def _ended(each: list[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    """Wait until all processes have ended well, and return what they said."""
    told = [process.communicate() for process in each]
    assert [process.returncode for process in each] == [0, 0], told
    return told


def _assert_alike(*folders: Path) -> None:
    alone, shared = (numbers(open_run(folder).units()[0]) for folder in folders)
    assert set(alone) == set(shared)
    # Searches and refits are long paths in float32; distortions of logits are large numbers.
    near = lambda one, other: abs(one - other) <= max(0.02, 0.05 * abs(one) * (abs(one) > 1))
    assert not {name: (alone[name], shared[name]) for name in alone if not near(alone[name], shared[name])}
    exact = [name for name in alone if name[1] in ("full-state", "control-identity", "backbone")]
    np.testing.assert_allclose([shared[name] for name in exact], [alone[name] for name in exact], atol=1e-6)
