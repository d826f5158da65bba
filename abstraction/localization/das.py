"""Distributed alignment search: learn the subspace a variable lives in.

For a variable, a depth and a rank k, find an orthogonal R whose first k columns, swapped between base and source,
make the network output what the causal model says:

    minimise  mean CE(f(h + (h_s - h) R_k R_k^T), y(b; Z_i <- z_i(s)))                (Geiger et al. 2024; PLOT, Sec. 2)

All candidates (depth, rank, variable, learning rate, restart) are trained at once in one vmapped program: the rank
is a mask on the columns of a full rotation, the depth is where the network resumes, and both are values. Every
candidate stops on its own plateau; the program ends when all have.

A rotation is R = R_0 Q(A), R_0 a Haar-random start and Q(A) orthogonal, with Q(0) = I, of a free matrix A:

    cayley  (I + S)^-1 (I - S), S = A - A^T        expm  exp(A - A^T)        qr  the Q factor of R_0 + A (R_0 inside)
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from abstraction.causal import PairBank
from abstraction.evaluation import cross_entropy
from abstraction.interventions import (
    LocalHandle,
    Recording,
    patched_outputs,
    random_frames,
    rotation_basis,
    take_pairs,
)
from abstraction.models import Model, Tap
from abstraction.pytrees import pytree
from abstraction.training import Plateau, start_plateau, update_plateau
from abstraction.typing import AnyArray, PairLoss, Params

Parametrization = Literal["cayley", "expm", "qr"]


@dataclasses.dataclass(frozen=True)
class DASConfig:
    """How rotations are trained.

    Attributes:
      parametrization: how orthogonality is kept.
      batch_size: pairs per step.
      max_epochs: passes over the fit bank at most; every candidate gets as many unless it stops before.
      min_epochs: no candidate stops before this.
      patience: epochs without improvement of the best loss after which a candidate stops.
      margin: the improvement that counts, relative to the best loss.
      cosine: let the learning rate fall to zero over `max_epochs` along a cosine.
      sensitive_weight: share of the loss that sensitive pairs carry; None weights all pairs alike.
    """

    parametrization: Parametrization = "cayley"
    batch_size: int = 128
    max_epochs: int = 1000
    min_epochs: int = 5
    patience: int = 3
    margin: float = 1e-2
    cosine: bool = False
    sensitive_weight: float | None = None


@pytree
class Candidates:
    """C searches; build them with `candidate_grid`.

    Attributes:
      depth: where to intervene, `[C]`.
      rank: columns to swap, `[C]`.
      variable: which variable, `[C]`.
      learning_rate: Adam's, `[C]`.
      restart: which random start, `[C]`.
    """

    depth: Int[AnyArray, "*C"]
    rank: Int[AnyArray, "*C"]
    variable: Int[AnyArray, "*C"]
    learning_rate: Float[AnyArray, "*C"]
    restart: Int[AnyArray, "*C"]


class Rotations(NamedTuple):
    """What training returned, per candidate.

    Attributes:
      candidates: the searches.
      rotation: `[C, D, D]`, orthogonal; the first `rank` columns are the subspace.
      curve: mean loss of every epoch, `[E, C]`, NaN after a candidate has stopped.
      epochs: epochs trained, `[C]`.
      stopped: whether the plateau was reached before the last epoch, `[C]`.
      finite: whether rotation and last loss are finite, `[C]`.
      orthogonality_error: max |R^T R - I|, `[C]`.
    """

    candidates: Candidates
    rotation: Float[Array, "C D D"]
    curve: Float[Array, "E C"]
    epochs: Int[Array, " C"]
    stopped: Array
    finite: Array
    orthogonality_error: Float[Array, " C"]

    @property
    def mask(self) -> Float[Array, "C D"]:
        """1 on the first `rank` features of each candidate."""
        return _rank_mask(self.candidates.rank, self.rotation.shape[-1])

    @property
    def projector(self) -> Float[Array, "C D D"]:
        """R_k R_k^T, the part of a state that is swapped."""
        return jnp.einsum("cik,ck,cjk->cij", self.rotation, self.mask, self.rotation)

    def handles(self, tap: str) -> LocalHandle:
        """Make each subspace a handle of strength 1."""
        return LocalHandle(self.candidates.depth, self.mask, rotation_basis(self.rotation), tap)

    def settings(self) -> list[dict[str, Any]]:
        """Describe each candidate by plain numbers."""
        fields = vars(self.candidates) | {"epochs": self.epochs}
        columns = {name: np.asarray(values).tolist() for name, values in fields.items() if name != "variable"}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def candidate_grid(
    tap: Tap,
    variables: int,
    *,
    ranks: Sequence[int],
    depths: Sequence[int] | None = None,
    learning_rates: Sequence[float] = (1e-3,),
    restarts: int = 1,
) -> Candidates:
    """Cross variables, depths, ranks, learning rates and restarts.

    Args:
      tap: where to search.
      variables: number of variables V.
      ranks: subspace sizes k.
      depths: depth indices, by default all of the tap's.
      learning_rates: for Adam.
      restarts: random starts per combination.

    Raises:
      ValueError: a rank exceeds the tap's width, a depth its depth, or a number is not positive.
    """
    depth = tap.depth or 0
    depths = range(depth) if depths is None else depths
    if not all(1 <= rank <= tap.width for rank in ranks) or not ranks:
        raise ValueError(
            f"got ranks {list(ranks)}, expected values from 1 to {tap.width}, the width of tap {tap.name!r}"
        )
    if not all(0 <= index < depth for index in depths) or not len(depths):
        raise ValueError(f"got depths {list(depths)}, expected values from 0 to {depth - 1} of tap {tap.name!r}")
    if restarts < 1 or not all(rate > 0 for rate in learning_rates):
        raise ValueError(f"got {restarts} restarts, learning rates {list(learning_rates)}, expected positive numbers")
    rows = list(itertools.product(range(variables), depths, ranks, learning_rates, range(restarts)))
    variable, depth_index, rank, rate, restart = (np.asarray(column) for column in zip(*rows, strict=True))
    whole = lambda column: column.astype(np.int32)
    return Candidates(whole(depth_index), whole(rank), whole(variable), rate.astype(np.float32), whole(restart))


def train_rotations(
    key: Array,
    model: Model,
    params: Params,
    recording: Recording,
    bank: PairBank,
    candidates: Candidates,
    *,
    tap: str,
    config: DASConfig | None = None,
    pair_loss: PairLoss = cross_entropy,
    epochs_per_call: int = 20,
    progress: Callable[[int, int], None] | None = None,
) -> Rotations:
    """Train every candidate on the fit bank.

    Args:
      key: seeds the starts and the order of the pairs.
      model: the network.
      params: its weights.
      recording: base and source runs of the fit pairs.
      bank: the fit bank.
      candidates: the searches.
      tap: where to search.
      config: how to train.
      pair_loss: outputs and labels to a loss per pair.
      epochs_per_call: epochs between two reports of progress.
      progress: told the epochs done and the candidates still training.

    Raises:
      ValueError: a test bank, a bank smaller than a batch, or a recording of another size.
    """
    config = config or DASConfig()
    if bank.role != "fit":
        raise ValueError(f"got a {bank.role} bank to train on, expected a fit bank")
    if not 1 <= config.batch_size <= bank.size or recording.inputs.shape[0] != bank.size:
        raise ValueError(
            f"got batch size {config.batch_size}, a bank of {bank.size} pairs and a recording of "
            f"{recording.inputs.shape[0]}, expected a recording of the bank and at least one batch"
        )
    start_key, order_key = jax.random.split(key)
    start = random_frames(start_key, candidates.depth.shape, recording.base[tap].shape[-1])
    state = _start(start, config.max_epochs)
    weights = _pair_weights(bank, config.sensitive_weight)
    data = (recording, bank.labels, weights.astype(np.float32))
    while int(state.epoch) < config.max_epochs and not bool(state.plateau.stopped.all()):
        until = min(int(state.epoch) + epochs_per_call, config.max_epochs)
        state = _train(model, params, data, candidates, state, order_key, np.int32(until), tap, config, pair_loss)
        if progress is not None:
            progress(int(state.epoch), int((~state.plateau.stopped).sum()))
    return _result(candidates, state, config)


@pytree
class _State:
    free: Array
    start: Array
    optimizer_state: Any
    plateau: Plateau
    curve: Array
    epoch: Array


@partial(jax.jit, static_argnames=("max_epochs",))
def _start(start: Float[Array, "C D D"], max_epochs: int) -> _State:
    count = len(start)
    free = jnp.zeros_like(start)
    return _State(
        free=free,
        start=start,
        optimizer_state=jax.vmap(optax.scale_by_adam().init)(free),
        plateau=start_plateau(count),
        curve=jnp.full((max_epochs, count), jnp.nan),
        epoch=jnp.int32(0),
    )


@partial(jax.jit, static_argnames=("tap", "config", "model", "pair_loss"))
def _train(
    model: Model,
    params: Params,
    data: tuple[Recording, Array, Array],
    candidates: Candidates,
    state: _State,
    key: Array,
    until: Int[Array, ""],
    tap: str,
    config: DASConfig,
    pair_loss: PairLoss,
) -> _State:
    recording, labels, weights = data
    pairs = labels.shape[1]
    steps = pairs // config.batch_size
    optimizer = optax.scale_by_adam()

    def loss(free: Array, start: Array, candidate: Candidates, rows: Array) -> Array:
        rotation = _rotation(free, start, config.parametrization)
        mask = _rank_mask(candidate.rank, rotation.shape[-1])
        handle = LocalHandle(candidate.depth, mask, rotation_basis(rotation), tap)
        outputs = patched_outputs(model, params, take_pairs(recording, rows), handle)
        return (weights[candidate.variable, rows] * pair_loss(outputs, labels[candidate.variable, rows])).mean()

    def step(state: _State, inputs: tuple[Array, Array]) -> tuple[_State, Array]:
        rows, progress = inputs
        values, gradients = jax.vmap(jax.value_and_grad(loss), in_axes=(0, 0, 0, None))(
            state.free, state.start, candidates, rows
        )
        updates, optimizer_state = jax.vmap(optimizer.update)(gradients, state.optimizer_state)
        decay = 0.5 * (1 + jnp.cos(jnp.pi * progress)) if config.cosine else 1.0
        moved = state.free - (candidates.learning_rate * decay)[:, None, None] * jnp.asarray(updates)
        frozen = state.plateau.stopped[:, None, None]
        free = jnp.where(frozen, state.free, moved)
        return dataclasses.replace(state, free=free, optimizer_state=optimizer_state), values

    def epoch(state: _State) -> _State:
        order = jax.random.permutation(jax.random.fold_in(key, state.epoch), pairs)
        rows = order[: steps * config.batch_size].reshape(steps, config.batch_size)
        progress = (state.epoch + jnp.arange(steps) / steps) / config.max_epochs
        running = ~state.plateau.stopped
        state, losses = jax.lax.scan(step, state, (rows, progress))
        mean = losses.mean(axis=0)
        plateau = update_plateau(
            state.plateau,
            mean,
            state.epoch + 1,
            patience=config.patience,
            margin=config.margin,
            min_epochs=config.min_epochs,
        )
        curve = state.curve.at[state.epoch].set(jnp.where(running, mean, jnp.nan))
        return dataclasses.replace(state, plateau=plateau, curve=curve, epoch=state.epoch + 1)

    return jax.lax.while_loop(lambda state: (state.epoch < until) & ~state.plateau.stopped.all(), epoch, state)


def _rotation(free: Array, start: Array, parametrization: Parametrization) -> Float[Array, "D D"]:
    if parametrization == "qr":
        return jnp.linalg.qr(start + free)[0]
    skew, identity = free - free.T, jnp.eye(free.shape[-1], dtype=free.dtype)
    if parametrization == "expm":
        return start @ jax.scipy.linalg.expm(skew)
    if parametrization == "cayley":
        return start @ jnp.linalg.solve(identity + skew, identity - skew)
    raise ValueError(f"got parametrization {parametrization!r}, expected 'cayley', 'expm' or 'qr'")


def _rank_mask(rank: Int[AnyArray, "*C"], width: int) -> Float[Array, "*C D"]:
    return (jnp.arange(width) < jnp.asarray(rank)[..., None]).astype(jnp.float32)


def _pair_weights(bank: PairBank, sensitive_weight: float | None) -> Float[np.ndarray, "V N"]:
    """Weight pairs so that each variable's eligible pairs have mean 1 and sensitive ones the given share."""
    eligible = bank.eligible.astype(float)
    if sensitive_weight is None:
        return eligible / np.maximum(eligible.mean(axis=1, keepdims=True), 1e-30)
    if not 0 < sensitive_weight < 1:
        raise ValueError(f"got sensitive weight {sensitive_weight}, expected None or a value in (0, 1)")
    sensitive, invariant = eligible * bank.active, eligible * ~bank.active
    share = lambda mask: mask / np.maximum(mask.mean(axis=1, keepdims=True), 1e-30)
    return sensitive_weight * share(sensitive) + (1 - sensitive_weight) * share(invariant)


@partial(jax.jit, static_argnames=("config",))
def _result(candidates: Candidates, state: _State, config: DASConfig) -> Rotations:
    rotation = jax.vmap(lambda free, start: _rotation(free, start, config.parametrization))(state.free, state.start)
    gram = jnp.einsum("cij,cik->cjk", rotation, rotation)
    epochs = (~jnp.isnan(state.curve)).sum(axis=0)
    return Rotations(
        candidates=candidates,
        rotation=rotation,
        curve=state.curve,
        epochs=epochs,
        stopped=state.plateau.stopped,
        finite=jnp.isfinite(rotation).all(axis=(1, 2)) & jnp.isfinite(state.plateau.best),
        orthogonality_error=jnp.abs(gram - jnp.eye(rotation.shape[-1])).max(axis=(1, 2)),
    )
