"""Alignment search by gradient: train the features of many candidate handles at once.

For a variable and a place, find features z = h E, h = z G + rest, and weights w on them, such that

    minimise  mean loss(f(h + (h_s - h) E diag(w) G), y(b; Z_i <- z_i(s)))          (Geiger et al. 2024; PLOT, Sec. 2)

over what a *featurizer* lets free: a rotation (DAS), an invertible map (oblique search), a rotation and a width
(boundless DAS), a mask (DBM), or the weights alone. Many candidates (place, support, rank, variable, learning rate,
restart) are trained in one vmapped program: depth, rank and support are values. Every candidate stops on its own
plateau; the program ends when all have.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from abstraction.causal import PairBank
from abstraction.checks import places
from abstraction.evaluation import Readout, Recorded
from abstraction.evaluation.recording import check_recorded
from abstraction.interventions import Basis, Handle
from abstraction.interventions.handles import check_depths
from abstraction.interventions.patching import (
    Runs,
    patched_bytes,
    patched_outputs,
    pays_to_skip,
    split_pairs,
    take_pairs,
)
from abstraction.localization.budgets import SearchConfig
from abstraction.localization.grouping import groups_of, narrowed, padded_searches, widened
from abstraction.localization.projectors import geometry
from abstraction.localization.supports import Candidates, over_candidates
from abstraction.models import Network
from abstraction.models.base import Recordable
from abstraction.models.network import on_device
from abstraction.planning import Program, fitting_chunk
from abstraction.pytrees import pytree
from abstraction.randomness import check_key
from abstraction.sharding import CANDIDATES, check_share, devices_along, mesh_of, on_host, over, to_device
from abstraction.training.loop import Plateau, start_plateau, update_plateau
from abstraction.typing import AnyArray

_EPOCHS_PER_CALL = 20
"""Epochs between two reports of progress."""
_HEAVY, _ROWS = 2**19, 256
"""Weights of a layer that the cache of a CPU does not keep, and rows of a product that are worth reading them."""

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

    def features(self, free: Free, candidate: Candidates, progress: Array) -> tuple[Array, Basis | None]:
        """Return weights `[K]` and basis during training, `progress` of which is done, from 0 to 1."""
        ...

    def final(self, free: Free, candidate: Candidates) -> tuple[Array, Basis | None]:
        """Return weights and basis of the trained handle."""
        ...

    def penalty(self, free: Free, candidate: Candidates, progress: Array) -> Array:
        """Return what is added to the loss."""
        ...


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
    handles: Handle
    curve: Float[Array, "E C"]
    epochs: Int[Array, " C"]
    stopped: Bool[Array, " C"]
    finite: Bool[Array, " C"]

    def settings(self) -> list[dict[str, Any]]:
        """Describe each candidate by plain numbers."""
        columns = self.candidates.columns() | {"epochs": np.asarray(self.epochs)} | geometry(self.handles)
        lists = {name: np.asarray(values).tolist() for name, values in columns.items() if name != "variable"}
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def train_candidates(
    key: Array,
    network: Network,
    fit: Recorded,
    candidates: Candidates,
    featurizer: Featurizer,
    config: SearchConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Searched:
    """Train every candidate on the fit bank.

    Args:
      key: seeds the order of the pairs.
      network: the network.
      fit: recorded fit pairs.
      candidates: the searches.
      featurizer: what is free.
      config: how to train.
      progress: told the epochs done and the candidates still training.

    Raises:
      ValueError: not a fit bank, a bank smaller than a batch, or candidates of another tap or of variables that the
        bank has not.
    """
    config = config or SearchConfig()
    check_key(key)
    check_recorded(fit, network)
    _check(network, fit, candidates, config)
    network, weights = on_device(network), sum(np.size(leaf) for leaf in jax.tree.leaves(network.params))
    groups = groups_of(candidates, config.bands, weights)
    found = []
    for group in groups:
        later = _from_depth(network, int(np.asarray(candidates.depth)[group].min()))
        found.append(_train_group(key, later, fit, narrowed(candidates.take(group)), featurizer, config, progress))
    return _joined(candidates, found, groups)


def _from_depth(network: Network, depth: int) -> Network:
    """Leave out what comes before an edit at a depth, in a network that can."""
    if isinstance(network.model, Recordable):
        return dataclasses.replace(network, model=network.model.from_depth(depth))
    return network


def _train_group(
    key: Array,
    network: Network,
    fit: Recorded,
    candidates: Candidates,
    featurizer: Featurizer,
    config: SearchConfig,
    progress: Callable[[int, int], None] | None,
) -> Searched:
    mesh, heavy = mesh_of(network.params), _is_heavy(network, candidates.tap)
    count, devices = len(candidates.depth), devices_along(mesh, CANDIDATES)
    padded, idle = padded_searches(candidates, devices, exact=heavy)
    spans = over(mesh, None, padded.spans)
    padded = dataclasses.replace(over(mesh, CANDIDATES, dataclasses.replace(padded, spans=None)), spans=spans)
    # All that every call of the loop reads is on the device before it.
    padded, data = to_device((padded, _data(fit, config, mesh)))
    state = _shared(mesh, _start(padded, jax.device_put(idle), featurizer, config.max_epochs))
    training = Training(featurizer, config, fit.readout, _together(fit.runs, padded, config, heavy), mesh)
    training = _planned(key, network, fit, padded, training)
    epoch, running = 0, count
    while epoch < config.max_epochs and running:
        until = jax.device_put(np.int32(min(epoch + _EPOCHS_PER_CALL, config.max_epochs)))
        state = _train(network, data, padded, state, key, until, training=training)
        epoch, stopped = on_host((state.epoch, state.plateau.stopped))
        running = int((~stopped).sum())
        if progress is not None:
            progress(int(epoch), running)
    found = on_host(_result(padded, state, featurizer, mesh))
    cut = jax.tree.map(lambda leaf: leaf[:count], found._replace(candidates=None, curve=found.curve.T))
    return cut._replace(candidates=candidates, curve=cut.curve.T)


def _is_heavy(network: Network, tap: str) -> bool:
    """Tell whether a step of a search costs more than compiling, and a layer more than the cache of a CPU keeps."""
    return sum(np.size(leaf) for leaf in jax.tree.leaves(network.params)) // network.taps[tap].depth > _HEAVY


def _together(runs: Runs, candidates: Candidates, config: SearchConfig, heavy: bool) -> int | None:
    """Return how many candidates to run at once, about those of one depth, or None for all.

    Apart, those of a depth skip the layers before it, but read the others for few rows.
    """
    depths, states = len(np.unique(np.asarray(candidates.depth))), runs.source[candidates.tap]
    each = -(-len(candidates.depth) // depths)
    enough = not heavy or each * config.batch_size * math.prod(states.shape[2:-1]) >= _ROWS
    return each if depths > 1 and enough and pays_to_skip(runs, candidates.tap, config.batch_size) else None


def search_program(
    key: Array, network: Network, fit: Recorded, candidates: Candidates, training: "Training"
) -> Program:
    """Make the program that trains candidates, for its size: of what it trains there are shapes alone."""
    start = partial(_start, featurizer=training.featurizer, max_epochs=training.config.max_epochs)
    state = _shared(training.mesh, jax.eval_shape(start, candidates, np.zeros(len(candidates.depth), bool)))
    given = network, _data(fit, training.config, training.mesh), candidates, state, key, np.int32(0)
    return Program(_train, given, {"training": training})


def _data(fit: Recorded, config: SearchConfig, mesh: Mesh | None) -> tuple[Runs, AnyArray, AnyArray]:
    weights = pair_weights(fit.bank, config.sensitive_weight).astype(np.float32)
    return fit.runs, *over(mesh, None, (fit.bank.labels, weights))


def _planned(key: Array, network: Network, fit: Recorded, candidates: Candidates, training: "Training") -> "Training":
    """Run so many candidates at once as fit the device; a search holds a batch's runs, and gradients through them."""
    count, config = len(candidates.depth), training.config
    one = lambda size: training._replace(together=size if size < count else None)
    at = lambda size: search_program(key, network, fit, candidates, one(size))
    guess = config.batch_size * patched_bytes(network, fit.runs, candidates.tap)
    return one(fitting_chunk(at, training.together or count, guess))


def _joined(candidates: Candidates, parts: Sequence[Searched], groups: Sequence[Int[np.ndarray, " G"]]) -> Searched:
    """Put groups of candidates back into the order in which they came, frames as wide as the widest."""
    back = np.argsort(np.concatenate(groups), kind="stable")
    most = max(np.shape(part.handles.weight)[-1] for part in parts)
    turned = [part._replace(candidates=None, handles=widened(part.handles, most), curve=part.curve.T) for part in parts]
    every = jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *turned)
    return every._replace(candidates=candidates, curve=every.curve.T)


def _check(network: Network, fit: Recorded, candidates: Candidates, config: SearchConfig) -> None:
    bank = fit.bank
    if bank.role != "fit":
        raise ValueError(f"got a {bank.role} bank to train on, expected a fit bank")
    if candidates.tap not in fit.runs.source:
        raise ValueError(
            f"got candidates of tap {candidates.tap!r}, expected a recorded tap: {sorted(fit.runs.source)}"
        )
    tap, count, shape = network.taps[candidates.tap], len(candidates.depth), np.shape(candidates.start)
    check_depths(np.asarray(candidates.depth), tap)
    places(f"candidates of variables {list(bank.variables)}", candidates.variable, len(bank.variables))
    spans = candidates.spans
    features, width = (tap.width,) * 2 if spans is None else (spans.encoder.shape[-1], spans.encoder.shape[-2])
    if not count or width != tap.width or len(shape) != 3 or shape[:2] != (count, features):
        raise ValueError(
            f"got {count} candidates of shape {shape} at width {width}, expected [C, M, k], at least one, of width "
            f"{tap.width}, that of tap {tap.name!r}"
        )
    check_share("pairs a batch", config.batch_size, mesh_of(network.params))
    most = bank.size // config.batch_size
    if not most:
        raise ValueError(f"got batch size {config.batch_size}, expected at most {bank.size}, the pairs of the bank")
    if config.steps_per_epoch is not None and config.steps_per_epoch > most:
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
    count = candidates.depth.shape[0]
    free = featurizer.init(candidates)
    return _State(
        free=free,
        optimizer_state=jax.vmap(optax.scale_by_adam().init)(free),
        plateau=dataclasses.replace(start_plateau(count), stopped=idle),
        curve=jnp.full((max_epochs, count), jnp.nan),
        epoch=jnp.int32(0),
    )


def _shared(mesh: Mesh | None, state: _State) -> _State:
    """Give each device of `candidates` the state of its own searches."""
    free, optimizer_state, plateau = over(mesh, CANDIDATES, (state.free, state.optimizer_state, state.plateau))
    curve, epoch = over(mesh, CANDIDATES, state.curve, axis=1), over(mesh, None, state.epoch)
    return _State(free, optimizer_state, plateau, curve, epoch)


class Training(NamedTuple):
    """What a program that trains is compiled for; `together` candidates of a device at a time, None for all."""

    featurizer: Featurizer
    config: SearchConfig
    readout: Readout
    together: int | None
    mesh: Mesh | None = None


@partial(jax.jit, static_argnames=("training",), donate_argnames=("state",))
def _train(
    network: Network,
    data: tuple[Runs, Array, Array],
    candidates: Candidates,
    state: _State,
    key: Array,
    until: Int[Array, ""],
    training: Training,
) -> _State:
    (runs, labels, weights), (featurizer, config, readout, together, mesh) = data, training
    pairs, tap = labels.shape[1], candidates.tap
    steps = config.steps_per_epoch or pairs // config.batch_size
    optimizer = optax.scale_by_adam()

    def loss(free: Free, candidate: Candidates, network: Network, batch: tuple[Runs, Array, Array, Array]) -> Array:
        runs, weights, labels, progress = batch
        weight, basis = featurizer.features(free, candidate, progress)
        outputs = patched_outputs(network, runs, Handle(tap, weight, basis, candidate.depth))
        each = weights[candidate.variable] * readout.loss(outputs, labels[candidate.variable])
        return each.mean() + featurizer.penalty(free, candidate, progress)

    def one(network: Network, batch: tuple[Runs, Array, Array, Array], candidate: Candidates, free: Free) -> Any:
        return jax.value_and_grad(loss)(free, candidate, network, batch)

    def step(state: _State, inputs: tuple[Array, Array]) -> tuple[_State, Array]:
        rows, progress = inputs
        batch = split_pairs(mesh, take_pairs(runs, rows)), weights[:, rows], labels[:, rows], progress
        where = {"together": together, "given": (network, batch), "mesh": mesh}
        values, gradients = over_candidates(one, candidates, state.free, **where)
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

    more = lambda state: (state.epoch < until) & ~state.plateau.stopped.all()
    return _shared(mesh, jax.lax.while_loop(more, epoch, state))


def _moved(
    values: Float[Array, "C ..."], update: Float[Array, "C ..."], rate: Float[Array, " C"], stopped: Bool[Array, " C"]
) -> Float[Array, "C ..."]:
    """Take one step, except where a search has stopped."""
    column = lambda array: array.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.where(column(stopped), values, values - column(rate) * update)


@partial(jax.jit, static_argnames=("featurizer", "mesh"))
def _result(candidates: Candidates, state: _State, featurizer: Featurizer, mesh: Mesh | None) -> Searched:
    final = lambda candidate, free: featurizer.final(free, candidate)
    weight, basis = over_candidates(final, candidates, state.free, mesh=mesh)
    healthy = [jnp.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in (weight, *jax.tree.leaves(basis))]
    return Searched(
        candidates=candidates,
        handles=Handle(candidates.tap, weight, basis, jnp.asarray(candidates.depth)),
        curve=state.curve,
        epochs=(~jnp.isnan(state.curve)).sum(axis=0),
        stopped=state.plateau.stopped,
        finite=jnp.stack(healthy).all(axis=0) & jnp.isfinite(state.plateau.best),
    )


def pair_weights(bank: PairBank, sensitive_weight: float | None) -> Float[np.ndarray, "V N"]:
    """Weight pairs so that each variable's eligible pairs have mean 1 and sensitive ones the given share."""
    eligible = bank.eligible.astype(float)
    if sensitive_weight is None:
        return eligible / np.maximum(eligible.mean(axis=1, keepdims=True), 1e-30)
    sensitive, invariant = eligible * bank.active, eligible * ~bank.active
    share = lambda mask: mask / np.maximum(mask.mean(axis=1, keepdims=True), 1e-30)
    return sensitive_weight * share(sensitive) + (1 - sensitive_weight) * share(invariant)
