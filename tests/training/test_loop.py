"""The training loop: convergence, stopping, resuming, plateaus."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abstraction.training import Schedule, Stop, Watch, fit
from abstraction.training.checkpoints import Checkpoints
from abstraction.training.loop import start_plateau, update_plateau

TRUTH = np.array([1.0, -2.0, 0.5], np.float32)


def _data(rows=256):
    inputs = np.random.default_rng(0).standard_normal((rows, 3)).astype(np.float32)
    return {"x": inputs, "y": inputs @ TRUTH}


def _loss(params, batch, context):
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)


OPTIMIZER = optax.adam(5e-2)


def _fit(epochs, stop=None, **watch):
    start, schedule = {"w": jnp.zeros(3)}, Schedule(32, epochs, stop)
    return fit(jax.random.key(0), _loss, start, OPTIMIZER, _data(), schedule, Watch(**watch))


def test_least_squares_finds_the_truth():
    result = _fit(40)
    # Adam at a constant rate
    np.testing.assert_allclose(result.params["w"], TRUTH, atol=1e-2)
    assert result.epochs == 40
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_one_step_matches_optax_by_hand():
    data = _data(8)
    start = {"w": jnp.zeros(3)}
    result = fit(jax.random.key(0), _loss, start, OPTIMIZER, data, Schedule(8, 1))
    gradient = jax.grad(_loss)(start, data, None)
    updates, _ = OPTIMIZER.update(gradient, OPTIMIZER.init(start), start)
    np.testing.assert_allclose(result.params["w"], updates["w"], rtol=1e-5)


def test_training_stops_after_the_streak():
    seen = []

    def validate(params):
        seen.append(1)
        return {"score": float(len(seen) not in (2,))}

    result = _fit(30, validate=validate, stop=Stop("score", 1.0, 3))
    assert result.epochs == 5  # a miss in epoch 2 starts the streak again


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = _fit(6)
    _fit(2, checkpoints=Checkpoints(tmp_path))
    resumed = _fit(6, checkpoints=Checkpoints(tmp_path))
    np.testing.assert_array_equal(resumed.params["w"], whole.params["w"])
    assert resumed.epochs == 6
    assert len(resumed.history) == 4


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = _fit(3, checkpoints=Checkpoints(tmp_path))
    again = _fit(3, checkpoints=Checkpoints(tmp_path))
    np.testing.assert_array_equal(first.params["w"], again.params["w"])
    assert again.history == []


def test_progress_hears_about_every_epoch():
    heard = []
    _fit(3, progress=lambda epoch, metrics: heard.append((epoch, set(metrics))))
    assert heard == [(1, {"loss"}), (2, {"loss"}), (3, {"loss"})]


def test_a_constant_the_loss_needs_is_its_context():
    start = {"w": jnp.zeros(3)}
    loss = lambda params, batch, scale: scale * _loss(params, batch, None)
    once, thrice = (
        fit(jax.random.key(0), loss, start, optax.sgd(1e-3), _data(), Schedule(256, 1), context=jnp.asarray(scale))
        for scale in (1.0, 3.0)
    )
    np.testing.assert_allclose(thrice.params["w"], 3 * once.params["w"], rtol=1e-5)


def test_a_plateau_is_the_loop_anyone_would_write():
    losses = np.array([[5.0, 1.0, 3.0], [4.0, 1.0, np.nan], [3.99, 1.0, 2.0], [3.98, 0.5, 1.0], [1.0, 0.4, 0.5]])
    plateau = start_plateau(3)
    for epoch, loss in enumerate(losses):
        plateau = update_plateau(
            plateau, jnp.asarray(loss, jnp.float32), jnp.int32(epoch + 1), patience=2, margin=0.01, min_epochs=2
        )
    stopped, best = [], []
    for run in range(3):
        low, stale, end = np.inf, 0, False
        for epoch, loss in enumerate(losses[:, run]):
            if end:
                break
            if loss < low * 0.99:
                low, stale = loss, 0
            else:
                stale += 1
            end = (stale >= 2 and epoch + 1 >= 2) or not np.isfinite(loss)
        stopped.append(end)
        best.append(low)
    assert plateau.stopped.tolist() == stopped == [True, True, True]
    np.testing.assert_allclose(plateau.best, best, rtol=1e-6)


@pytest.mark.parametrize(("min_epochs", "end"), [(0, 3), (3, 3), (4, 4)])
def test_a_plateau_ends_with_the_epoch_that_its_patience_and_the_fewest_allow(min_epochs, end):
    plateau, stopped = start_plateau(1), []
    for epoch in range(1, 5):
        options = {"patience": 2, "margin": 0.01, "min_epochs": min_epochs}
        plateau = update_plateau(plateau, jnp.ones(1, jnp.float32), jnp.int32(epoch), **options)
        stopped.append(bool(plateau.stopped[0]))
    assert stopped.index(True) + 1 == end
