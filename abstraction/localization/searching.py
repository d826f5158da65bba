"""Alignment search by gradient: train the features of many candidate handles at once.

For a variable and a place, find features z = h E, h = z G + rest, and weights w on them, such that

    minimise  mean loss(f(h + (h_s - h) E diag(w) G), y(b; Z_i <- z_i(s)))          (Geiger et al. 2024; PLOT, Sec. 2)

over what a *featurizer* lets free: a rotation (DAS), an invertible map (oblique search), a rotation and a width
(boundless DAS), a mask (DBM), or the weights alone. All candidates (place, support, rank, variable, learning rate,
restart) are trained in one vmapped program: depth, rank and support are values. Every candidate stops on its own
plateau; the program ends when all have.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from abstraction.causal import PairBank
from abstraction.evaluation import CLASSES, Readout
from abstraction.interventions import Basis, LocalHandle, Recording, patched_outputs, take_pairs
from abstraction.localization.supports import Candidates
from abstraction.models import Model, Recordable
from abstraction.pytrees import pytree
from abstraction.training import Plateau, start_plateau, update_plateau
from abstraction.typing import AnyArray, Params

_BLOCK = 24
"""Searches that are compiled for are a multiple of this, unless they are few."""

Free: TypeAlias = dict[str, Array]
"""What a featurizer trains, by name."""


@runtime_checkable
class Featurizer(Protocol):
    """Turns free numbers into features and weights. Instances are hashable and compare by value.

    Methods see one candidate, without the axis C; `init` sees all of them.
    """

    @property
    def rates(self) -> Mapping[str, float]:
        """Learning rate of each free array, in units of the candidate's."""
        ...

    def init(self, candidates: Candidates) -> Free:
        """Make the free arrays of all candidates, each with leading axis C."""
        ...

    def features(self, free: Free, candidate: Candidates, progress: Array) -> tuple[Array, Basis]:
        """Return weights `[K]` and basis during training, `progress` of which is done, from 0 to 1."""
        ...

    def final(self, free: Free, candidate: Candidates) -> tuple[Array, Basis]:
        """Return weights and basis of the trained handle."""
        ...

    def penalty(self, free: Free, candidate: Candidates, progress: Array) -> Array:
        """Return what is added to the loss."""
        ...


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How features are trained.

    Attributes:
      batch_size: pairs per step.
      max_epochs: passes over the fit bank at most; every candidate gets as many unless it stops before.
      min_epochs: no candidate stops before this.
      patience: epochs without improvement of the best loss after which a candidate stops.
      margin: the improvement that counts, relative to the best loss.
      cosine: let the learning rate fall to zero over `max_epochs` along a cosine.
      sensitive_weight: share of the loss that sensitive pairs carry; None weights all pairs alike.
      steps_per_epoch: steps that make an epoch; None for one pass over the bank.
      bands: train candidates in this many groups of neighbouring depths, one after another. Deeper groups leave out the
        blocks before them, in a network that can (`Recordable`); each group compiles a program of its own.
    """

    batch_size: int = 128
    max_epochs: int = 1000
    min_epochs: int = 5
    patience: int = 3
    margin: float = 1e-2
    cosine: bool = False
    sensitive_weight: float | None = None
    steps_per_epoch: int | None = None
    bands: int = 1


class Searched(NamedTuple):
    """What training returned, per candidate.

    Attributes:
      candidates: the searches.
      handles: the trained handles, `[C]`.
      curve: mean loss of every epoch, `[E, C]`, NaN after a candidate has stopped.
      epochs: epochs trained, `[C]`.
      stopped: whether the plateau was reached before the last epoch, `[C]`.
      finite: whether handle and last loss are finite, `[C]`.
    """

    candidates: Candidates
    handles: LocalHandle
    curve: Float[Array, "E C"]
    epochs: Int[Array, " C"]
    stopped: Bool[Array, " C"]
    finite: Bool[Array, " C"]

    def settings(self) -> list[dict[str, Any]]:
        """Describe each candidate by plain numbers."""
        columns = self.candidates.columns() | {"epochs": np.asarray(self.epochs)} | geometry(self.handles)
        lists = {name: np.asarray(values).tolist() for name, values in columns.items() if name != "variable"}
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def geometry(handles: LocalHandle) -> dict[str, Float[np.ndarray, " C"]]:
    """Describe the map M = E diag(w) G that each handle applies to a difference of states.

    A swap of an orthogonal subspace has ||M|| = 1; an oblique one reads and writes along different directions, and
    ||M|| = |u| |v| for a single pair of them. A large norm amplifies what lies off the states it was trained on.

    Returns:
      `width` the sum of the weights, `projector_norm` ||M|| in the spectral norm, `read_norm` and `write_norm` the
      spectral norms of the features in use, `condition` of the read directions, each `[C]`.
    """
    if handles.basis is None:
        raise ValueError("got handles without a basis, expected trained features")
    weight, encoder, decoder = (
        np.asarray(array, np.float64) for array in (handles.weight, handles.basis.encoder, handles.basis.decoder)
    )
    used = (np.abs(weight) > 0)[:, None, :]
    spectrum = lambda matrices: np.linalg.svd(np.nan_to_num(matrices), compute_uv=False)
    read = spectrum(encoder * used)
    count = np.maximum(used.sum(axis=(1, 2)), 1)
    smallest = np.take_along_axis(read, np.minimum(count, read.shape[1])[:, None] - 1, axis=1)[:, 0]
    return {
        "width": weight.sum(axis=-1),
        "projector_norm": spectrum((encoder * weight[:, None, :]) @ decoder)[:, 0],
        "read_norm": read[:, 0],
        "write_norm": spectrum(decoder * used.mT)[:, 0],
        "condition": read[:, 0] / np.maximum(smallest, 1e-30),
    }


def train_candidates(
    key: Array,
    model: Model,
    params: Params,
    recording: Recording,
    bank: PairBank,
    candidates: Candidates,
    featurizer: Featurizer,
    *,
    tap: str,
    config: SearchConfig | None = None,
    readout: Readout = CLASSES,
    epochs_per_call: int = 20,
    progress: Callable[[int, int], None] | None = None,
) -> Searched:
    """Train every candidate on the fit bank.

    Args:
      key: seeds the order of the pairs.
      model: the network.
      params: its weights.
      recording: base and source runs of the fit pairs.
      bank: the fit bank.
      candidates: the searches.
      featurizer: what is free.
      tap: where to search.
      config: how to train.
      readout: how outputs meet labels.
      epochs_per_call: epochs between two reports of progress.
      progress: told the epochs done and the candidates still training.

    Raises:
      ValueError: a test bank, a bank smaller than a batch, or a recording of another size.
    """
    config = config or SearchConfig()
    _check(recording, bank, config)
    options: dict[str, Any] = {"tap": tap, "readout": readout, "epochs_per_call": epochs_per_call, "progress": progress}
    depths = np.asarray(candidates.depth)
    order = np.argsort(depths, kind="stable") if config.bands > 1 else np.arange(len(depths))
    groups, found = np.array_split(order, min(config.bands, len(depths))), []
    for group in groups:
        part = jax.tree.map(lambda leaf, group=group: np.asarray(leaf)[group], candidates)
        view = model.from_depth(int(depths[group].min())) if isinstance(model, Recordable) else model
        found.append(_train_group(key, view, params, recording, bank, part, featurizer, config, **options))
    return found[0] if len(groups) == 1 else _joined(found, groups)


def _train_group(
    key: Array,
    model: Model,
    params: Params,
    recording: Recording,
    bank: PairBank,
    candidates: Candidates,
    featurizer: Featurizer,
    config: SearchConfig,
    *,
    tap: str,
    readout: Readout,
    epochs_per_call: int,
    progress: Callable[[int, int], None] | None,
) -> Searched:
    count, (candidates, idle) = len(candidates.depth), _padded(candidates)
    state = _start(candidates, idle, featurizer, config.max_epochs)
    data = (recording, bank.labels, pair_weights(bank, config.sensitive_weight).astype(np.float32))
    static = {"model": model, "featurizer": featurizer, "tap": tap, "config": config, "readout": readout}
    while int(state.epoch) < config.max_epochs and not bool(state.plateau.stopped.all()):
        until = min(int(state.epoch) + epochs_per_call, config.max_epochs)
        state = _train(params, data, candidates, state, key, np.int32(until), **static)
        if progress is not None:
            progress(int(state.epoch), int((~state.plateau.stopped).sum()))
    return _without_padding(_result(candidates, state, featurizer, tap), count)


def _padded(candidates: Candidates) -> tuple[Candidates, Bool[np.ndarray, " C"]]:
    """Fill up to a multiple of `_BLOCK` searches with idle repetitions, so that few programs serve all numbers.

    Supports differ between networks, and with them the number of searches; compiling costs more than what is idle.
    """
    count = len(candidates.depth)
    size = count if count <= _BLOCK // 2 else -(-count // _BLOCK) * _BLOCK
    rows = np.minimum(np.arange(size), count - 1)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], candidates), np.arange(size) >= count


def _joined(parts: Sequence[Searched], groups: Sequence[Int[np.ndarray, " G"]]) -> Searched:
    """Put groups of candidates back into the order in which they came."""
    back = np.argsort(np.concatenate(groups), kind="stable")
    turned = [jax.device_get(part._replace(curve=part.curve.T)) for part in parts]
    every = jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *turned)
    return every._replace(curve=every.curve.T)


def _without_padding(searched: Searched, count: int) -> Searched:
    cut = jax.tree.map(lambda leaf: leaf[:count], searched._replace(curve=searched.curve.T))
    return cut._replace(curve=cut.curve.T)


def _check(recording: Recording, bank: PairBank, config: SearchConfig) -> None:
    if bank.role != "fit":
        raise ValueError(f"got a {bank.role} bank to train on, expected a fit bank")
    most = bank.size // max(config.batch_size, 1)
    if not 1 <= config.batch_size <= bank.size or recording.outputs.shape[0] != bank.size:
        raise ValueError(
            f"got batch size {config.batch_size}, a bank of {bank.size} pairs and a recording of "
            f"{recording.outputs.shape[0]}, expected a recording of the bank and at least one batch"
        )
    if config.bands < 1:
        raise ValueError(f"got {config.bands} bands of depths, expected at least 1")
    if config.steps_per_epoch is not None and not 1 <= config.steps_per_epoch <= most:
        raise ValueError(f"got {config.steps_per_epoch} steps per epoch, expected 1 to {most}, one pass over the bank")


@pytree
class _State:
    free: Free
    optimizer_state: Any
    plateau: Plateau
    curve: Array
    epoch: Array


@partial(jax.jit, static_argnames=("featurizer", "max_epochs"))
def _start(candidates: Candidates, idle: Bool[Array, " C"], featurizer: Featurizer, max_epochs: int) -> _State:
    free, count = featurizer.init(candidates), candidates.depth.shape[0]
    return _State(
        free=free,
        optimizer_state=jax.vmap(optax.scale_by_adam().init)(free),
        plateau=dataclasses.replace(start_plateau(count), stopped=idle),
        curve=jnp.full((max_epochs, count), jnp.nan),
        epoch=jnp.int32(0),
    )


@partial(jax.jit, static_argnames=("model", "featurizer", "tap", "config", "readout"))
def _train(
    params: Params,
    data: tuple[Recording, Array, Array],
    candidates: Candidates,
    state: _State,
    key: Array,
    until: Int[Array, ""],
    *,
    model: Model,
    featurizer: Featurizer,
    tap: str,
    config: SearchConfig,
    readout: Readout,
) -> _State:
    recording, labels, weights = data
    pairs = labels.shape[1]
    steps = config.steps_per_epoch or pairs // config.batch_size
    optimizer = optax.scale_by_adam()

    def loss(free: Free, candidate: Candidates, batch: Recording, rows: Array, progress: Array) -> Array:
        weight, basis = featurizer.features(free, candidate, progress)
        outputs = patched_outputs(model, params, batch, LocalHandle(candidate.depth, weight, basis, tap))
        each = weights[candidate.variable, rows] * readout.loss(outputs, labels[candidate.variable, rows])
        return each.mean() + featurizer.penalty(free, candidate, progress)

    def step(state: _State, inputs: tuple[Array, Array]) -> tuple[_State, Array]:
        rows, progress = inputs
        values, gradients = jax.vmap(jax.value_and_grad(loss), in_axes=(0, 0, None, None, None))(
            state.free, candidates, take_pairs(recording, rows), rows, progress
        )
        updates, optimizer_state = jax.vmap(optimizer.update)(gradients, state.optimizer_state)
        decay = 0.5 * (1 + jnp.cos(jnp.pi * progress)) if config.cosine else 1.0
        rate = jnp.asarray(candidates.learning_rate) * decay
        moves = cast(Free, updates)
        free = {
            name: _moved(values, moves[name], rate * featurizer.rates[name], state.plateau.stopped)
            for name, values in state.free.items()
        }
        return dataclasses.replace(state, free=free, optimizer_state=optimizer_state), values

    def epoch(state: _State) -> _State:
        order = jax.random.permutation(jax.random.fold_in(key, state.epoch), pairs)
        rows = order[: steps * config.batch_size].reshape(steps, config.batch_size)
        progress = (state.epoch + jnp.arange(steps) / steps) / config.max_epochs
        running = ~state.plateau.stopped
        state, losses = jax.lax.scan(step, state, (rows, progress))
        mean = losses.mean(axis=0)
        limits = {"patience": config.patience, "margin": config.margin, "min_epochs": config.min_epochs}
        plateau = update_plateau(state.plateau, mean, state.epoch + 1, **limits)
        curve = state.curve.at[state.epoch].set(jnp.where(running, mean, jnp.nan))
        return dataclasses.replace(state, plateau=plateau, curve=curve, epoch=state.epoch + 1)

    return jax.lax.while_loop(lambda state: (state.epoch < until) & ~state.plateau.stopped.all(), epoch, state)


def _moved(
    values: Float[Array, "C ..."], update: Float[Array, "C ..."], rate: Float[Array, " C"], stopped: Bool[Array, " C"]
) -> Float[Array, "C ..."]:
    """Take one step, except where a search has stopped."""
    column = lambda array: array.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.where(column(stopped), values, values - column(rate) * update)


@partial(jax.jit, static_argnames=("featurizer", "tap"))
def _result(candidates: Candidates, state: _State, featurizer: Featurizer, tap: str) -> Searched:
    weight, basis = jax.vmap(featurizer.final)(state.free, candidates)
    healthy = [jnp.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in (weight, *jax.tree.leaves(basis))]
    return Searched(
        candidates=candidates,
        handles=LocalHandle(jnp.asarray(candidates.depth), weight, basis, tap),
        curve=state.curve,
        epochs=(~jnp.isnan(state.curve)).sum(axis=0),
        stopped=state.plateau.stopped,
        finite=jnp.stack(healthy).all(axis=0) & jnp.isfinite(state.plateau.best),
    )


def pair_weights(bank: PairBank, sensitive_weight: float | None) -> Float[np.ndarray, "V N"]:
    """Weight pairs so that each variable's eligible pairs have mean 1 and sensitive ones the given share.

    Raises:
      ValueError: the share is not in (0, 1).
    """
    eligible = bank.eligible.astype(float)
    if sensitive_weight is None:
        return eligible / np.maximum(eligible.mean(axis=1, keepdims=True), 1e-30)
    if not 0 < sensitive_weight < 1:
        raise ValueError(f"got sensitive weight {sensitive_weight}, expected None or a value in (0, 1)")
    sensitive, invariant = eligible * bank.active, eligible * ~bank.active
    share = lambda mask: mask / np.maximum(mask.mean(axis=1, keepdims=True), 1e-30)
    return sensitive_weight * share(sensitive) + (1 - sensitive_weight) * share(invariant)


def zero_mean(encoder: Float[AnyArray, "D K"]) -> Float[AnyArray, " D"]:
    """Return a mean for a basis whose mean cancels."""
    return jnp.zeros_like(encoder[:, 0])
