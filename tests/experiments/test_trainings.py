"""The seconds of a training count every leg, and a training that diverges says so at once."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from abstraction.training import Schedule, Watch, fit
from experiments.harness import trainings
from experiments.harness.timing import Time
from experiments.harness.trainings import Training, require_finite

LOSS = {"loss": 0.5}


class _Clock:
    """Time that passes when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    return _Clock(monkeypatch)


def _leg(folder: Path, clock: _Clock, first: int, last: int, *, killed: bool = False, seconds: float = 10.0) -> Time:
    """Train some epochs, each of so many seconds; a killed leg computes one more that it cannot save."""
    told = []
    training, elapsed = Training(folder, lambda epoch, metrics: told.append(epoch)), Time()
    try:
        with training.timed() as elapsed:
            for epoch in range(first, last + 1):
                clock.now += seconds
                training.checkpoints.save(epoch, {"a": np.zeros(2)})
                training(epoch, LOSS)
            if killed:
                clock.now += seconds
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert told == list(range(first, last + 1))
    return elapsed


def test_the_seconds_of_all_legs_are_added(tmp_path: Path, clock: _Clock):
    folder = tmp_path / "checkpoints" / "seed-1"
    _leg(folder, clock, 1, 2, killed=True)
    _leg(folder, clock, 3, 3, killed=True)
    clock.now += 1000.0
    assert _leg(folder, clock, 4, 6).total == 60.0
    assert _leg(folder, clock, 7, 6).total == 60.0, "a training that was complete takes no longer"


def test_seconds_of_checkpoints_that_are_gone_do_not_count(tmp_path: Path, clock: _Clock):
    folder = tmp_path / "checkpoints" / "seed-1"
    _leg(folder, clock, 1, 2)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert _leg(folder, clock, 1, 3).total == 30.0


def test_seconds_that_were_edited_are_refused(tmp_path: Path, clock: _Clock):
    folder = tmp_path / "checkpoints" / "seed-1"
    _leg(folder, clock, 1, 2)
    record = folder.with_name("seed-1.seconds.json")
    record.write_text(record.read_text().replace("20.0", "2.0"))
    with pytest.raises(ValueError, match="damaged record"):
        _leg(folder, clock, 3, 3)


def _given(params: Any, batch: Any, context: Any) -> jax.Array:
    return context + 0 * params["a"].sum()


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_an_epoch_whose_loss_is_not_finite_is_neither_saved_nor_reported(tmp_path: Path, loss: float):
    training = Training(tmp_path / "seed-1", lambda *_: pytest.fail("an epoch that diverged was reported"))
    start, rows, watch = {"a": np.zeros(2, np.float32)}, np.zeros(4), Watch(None, training.checkpoints, training)
    with pytest.raises(FloatingPointError, match=r"epoch 1: the training diverged, expected finite"):
        fit(jax.random.key(0), _given, start, optax.sgd(0.1), rows, Schedule(2, 3), watch, context=np.float32(loss))
    assert training.checkpoints.latest is None
    assert not (tmp_path / "seed-1.seconds.json").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float):
    weights = {"stem": {"bias": np.zeros(3), "kernel": np.array([[1.0, value]])}}
    with pytest.raises(FloatingPointError, match=r"\['stem'\]\['kernel'\]"):
        require_finite(weights)
    trainings.require_finite({"stem": np.ones(3)})
