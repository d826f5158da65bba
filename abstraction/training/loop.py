"""A training loop: optax updates scanned over the steps of an epoch, early stopping between epochs.

Steps live inside one compiled program per epoch; epochs are driven from the host, where progress is shown, metrics
are kept and checkpoints are written.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from abstraction.checks import kind, number, whole
from abstraction.pytrees import leading_axis, pytree
from abstraction.randomness import check_key, host_generator
from abstraction.training.checkpoints import Checkpoints
from abstraction.typing import AnyArray, Params

Loss = Callable[[Params, Any, Any], Array]
"""`loss(params, batch, context) -> scalar`; hashable by value, so that equal losses share a compiled program."""

Progress = Callable[[int, Mapping[str, float]], None]
"""Called after each epoch with the number of epochs done and the latest metrics."""


class Stop(NamedTuple):
    """Stop once `metric` has been at least `target` for `epochs` epochs in a row."""

    metric: str
    target: float
    epochs: int


@pytree
class TrainState:
    """Everything a resumed run needs.

    Attributes:
      params: the weights.
      optimizer_state: optax state.
      epoch: epochs done.
      streak: epochs in a row that met the stopping rule.
    """

    params: Params
    optimizer_state: Any
    epoch: Int[AnyArray, ""]
    streak: Int[AnyArray, ""]


class Trained(NamedTuple):
    """Trained parameters and the metrics of every epoch run in this call.

    Attributes:
      params: the weights after the last epoch.
      history: one mapping per epoch: `loss` and whatever `validate` returns.
      epochs: epochs done in total, over resumed runs too.
    """

    params: Params
    history: list[dict[str, float]]
    epochs: int


@runtime_checkable
class Validate(Protocol):
    """Scalar metrics of the current parameters."""

    def __call__(self, params: Params) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Schedule:
    """How long to train, and in what steps.

    Attributes:
      batch_size: rows per step; the last incomplete batch of an epoch is left out.
      epochs: the most epochs to run.
      stop: when to stop before.

    Raises:
      ValueError: a number that is not an integer of at least 1, or a target that is not finite.
    """

    batch_size: int
    epochs: int
    stop: Stop | None = None

    def __post_init__(self) -> None:
        whole("batch size", self.batch_size)
        whole("epochs", self.epochs)
        if self.stop is not None:
            kind("stopping rule", self.stop, Stop)
            whole("epochs of a stopping rule", self.stop.epochs)
            number(f"target of {self.stop.metric!r}", self.stop.target, -np.inf, np.inf)


class Watch(NamedTuple):
    """What looks on while a network is trained.

    Attributes:
      validate: metrics after each epoch.
      checkpoints: where to save after each epoch, and to resume from if something is there.
      progress: told about every epoch.
    """

    validate: Validate | None = None
    checkpoints: Checkpoints | None = None
    progress: Progress | None = None


def fit(
    key: Array,
    loss: Loss,
    params: Params,
    optimizer: optax.GradientTransformation,
    data: Any,
    schedule: Schedule,
    watch: Watch | None = None,
    *,
    context: Any = None,
) -> Trained:
    """Minimise the mean loss over `data`, in an order reshuffled every epoch.

    Args:
      key: seeds the order of every epoch; a resumed run sees the same orders.
      loss: `loss(params, batch, context)`.
      params: initial weights.
      optimizer: an optax transformation.
      data: arrays that share a leading axis of rows.
      schedule: how long, and in what steps.
      watch: who looks on.
      context: constants the loss needs, as arrays.

    Raises:
      ValueError: fewer rows than one batch, a stopping rule on a metric that is not measured, or a checkpoint of other
        shapes.
      FloatingPointError: a loss that is not finite: the training has diverged, and the epoch is not saved.
    """
    check_key(key)
    rows, stop, watch = leading_axis(data), schedule.stop, watch or Watch()
    if schedule.batch_size > rows:
        raise ValueError(f"got batch size {schedule.batch_size}, expected between 1 and the {rows} rows of the data")
    state = TrainState(params, _optimizer_state(optimizer, params), np.array(0, np.int32), np.array(0, np.int32))
    if watch.checkpoints is not None:
        state = watch.checkpoints.restore(state)
    history: list[dict[str, float]] = []
    data = jax.device_put(data)
    for epoch in range(int(state.epoch), schedule.epochs):
        if stop is not None and int(state.streak) >= stop.epochs:
            break
        order = _epoch_order(jax.random.fold_in(key, epoch), rows, schedule.batch_size)
        trained, optimizer_state, mean_loss = _epoch(
            loss, optimizer, state.params, state.optimizer_state, data, context, order
        )
        metrics = _metrics(epoch, float(mean_loss), watch.validate(trained) if watch.validate else {}, stop)
        met = stop is not None and metrics[stop.metric] >= stop.target
        state = TrainState(
            trained, optimizer_state, np.array(epoch + 1, np.int32), np.array(state.streak + 1 if met else 0, np.int32)
        )
        history.append(metrics)
        if watch.checkpoints is not None:
            watch.checkpoints.save(epoch + 1, state)
        if watch.progress is not None:
            watch.progress(epoch + 1, metrics)
    return Trained(state.params, history, int(state.epoch))


def _metrics(epoch: int, loss: float, measured: Mapping[str, float], stop: Stop | None) -> dict[str, float]:
    metrics = {"loss": loss, **measured}
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"got a loss of {loss} in epoch {epoch + 1}: the training diverged, expected finite numbers; try a smaller "
            "learning rate"
        )
    if stop is not None and stop.metric not in metrics:
        raise ValueError(f"got a stopping rule on {stop.metric!r}, expected one of {sorted(metrics)}")
    return metrics


@partial(jax.jit, static_argnames=("optimizer",))
def _optimizer_state(optimizer: optax.GradientTransformation, params: Params) -> Any:
    return optimizer.init(params)


@partial(jax.jit, static_argnames=("loss", "optimizer"))
def _epoch(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    params: Params,
    optimizer_state: Any,
    data: Any,
    context: Any,
    order: Int[Array, "steps batch"],
) -> tuple[Params, Any, Float[Array, ""]]:
    def step(carry: tuple, rows: Array) -> tuple[tuple, Array]:
        params, optimizer_state = carry
        batch = jax.tree.map(lambda values: values[rows], data)
        value, gradient = jax.value_and_grad(loss)(params, batch, context)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), value

    (params, optimizer_state), losses = jax.lax.scan(step, (params, optimizer_state), order)
    return params, optimizer_state, losses.mean()


def _epoch_order(key: Array, rows: int, batch_size: int) -> np.ndarray:
    """Shuffle on the host: sorting a million random keys in XLA costs more than the epoch it orders."""
    steps = rows // batch_size
    return host_generator(key).permutation(rows)[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


@pytree
class Plateau:
    """Early stopping on the best loss so far, as arrays, so that many runs stop each on its own inside one program.

    Attributes:
      best: lowest loss so far.
      stale: epochs since it last fell by the relative margin.
      stopped: true from the epoch on in which `stale` reached the patience.
    """

    best: Array
    stale: Array
    stopped: Array


def start_plateau(runs: int) -> Plateau:
    """Begin with no loss seen, for `runs` runs."""
    return Plateau(jnp.full(runs, jnp.inf, jnp.float32), jnp.zeros(runs, jnp.int32), jnp.zeros(runs, bool))


def update_plateau(
    plateau: Plateau,
    loss: Float[Array, " C"],
    epochs_done: Int[Array, ""],
    *,
    patience: int,
    margin: float,
    min_epochs: int,
) -> Plateau:
    """Take in one epoch's loss; a run whose loss is not finite stops at once.

    Args:
      plateau: the state so far.
      loss: mean loss of the epoch, per run.
      epochs_done: epochs done, this one included.
      patience: epochs without improvement before a run stops.
      margin: improvement needed, relative to the best loss.
      min_epochs: no run stops before this many epochs.
    """
    improved: Bool[Array, " C"] = loss < plateau.best * (1 - margin)
    stale = jnp.where(improved, 0, plateau.stale + 1)
    done = ((stale >= patience) & (epochs_done >= min_epochs)) | ~jnp.isfinite(loss)
    return Plateau(
        best=jnp.where(plateau.stopped, plateau.best, jnp.where(improved, loss, plateau.best)),
        stale=jnp.where(plateau.stopped, plateau.stale, stale),
        stopped=plateau.stopped | done,
    )
