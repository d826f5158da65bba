"""Sweeps: the effect of an edit at every place of a tap, in one call.

For every layer, position and group of coordinates (a head, where groups are as wide as one) the state there is taken
from the source run, or from what ablates it, and what that does is measured on every pair of a bank. The result is a
map with named axes (`Sweep`), beside its controls.

An ablation is an interchange with another source: zeros, the mean of the bank's base states, or another pair's base.
So all of these are one program, in which places, sources and controls are values; sites go through in chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from abstraction.checks import kind, one_of
from abstraction.evaluation import Readout, Recorded, Repeats, Tally
from abstraction.evaluation.confidence import moments_interval
from abstraction.evaluation.controls import chance_level, shuffled_order
from abstraction.evaluation.recording import check_recorded
from abstraction.interventions import Handle, SiteBank, group_sites, state_sites
from abstraction.interventions.bases import frame_basis, random_frames
from abstraction.interventions.patching import Runs, map_handles, patched_outputs, planned_chunk
from abstraction.interventions.sites import check_sites
from abstraction.localization.ablations import replaced_sources
from abstraction.localization.attribution import check_points, first_order_changes
from abstraction.localization.maps import VARIABLE, Sweep
from abstraction.localization.measures import (
    Labels,
    Measure,
    MeasureName,
    Outcome,
    counted,
    labels_of,
    measure_names,
    numbers,
    outcome,
    per_variable,
    summary,
)
from abstraction.models import Network, Tap
from abstraction.models.network import on_device
from abstraction.planning import Program
from abstraction.randomness import host_generator, named_key
from abstraction.sharding import CANDIDATES, devices_along, mesh_of, on_host, over

Ablation = Literal["zero", "mean", "resample"]
Replacement = Literal["interchange", "zero", "mean", "resample"]
_BLOCKS = 20
"""Reports of progress per pass over the sites."""
_MOST_BYTES = 2**31
"""Bytes of first-order changes of all outputs that are held."""


@dataclass(frozen=True)
class Sweeping:
    """How a sweep goes.

    Attributes:
      replace: what a state is replaced by: the source's (`interchange`), 0, the mean of the bank's base states, or the
        base state of another pair (`resample`).
      measure: what is measured, see `measures`; by default IIA of an interchange, and `kl` of an ablation.
      group: what the axis of groups of coordinates is called.
      points: where gradients are taken for estimates to first order, 0 the base and 1 the source.
      controls: how often controls are drawn; None leaves them out, but for chance and identity.

    Raises:
      ValueError: an unknown word, accuracy of an ablation, or points outside of 0 to 1.
    """

    replace: Replacement = "interchange"
    measure: MeasureName | Measure | None = None
    group: str = "group"
    points: tuple[float, ...] = (0.5,)
    controls: Repeats | None = Repeats(3, 1)

    def __post_init__(self) -> None:
        one_of("replacement", self.replace, get_args(Replacement))
        if not callable(self.measure):
            one_of("measure", self.measure, (None, *measure_names()))
        if self.measure == "iia" and self.replace != "interchange":
            raise ValueError(f"got IIA of {self.replace!r}, expected an interchange: an ablation has no label to hit")
        if not isinstance(self.group, str) or not self.group:
            raise ValueError(f"got a group axis {self.group!r}, expected a name")
        check_points(self.points)
        kind("controls", self.controls, (Repeats, type(None)))

    @property
    def measured(self) -> MeasureName | Measure:
        """The measure, by default or as given."""
        if self.measure is not None:
            return self.measure
        return "iia" if self.replace == "interchange" else "kl"


SWEEPING = Sweeping()
Tell = Callable[[int, int], None]


def sweep(
    network: Network,
    recorded: Recorded,
    sites: int | SiteBank | None = None,
    options: Sweeping = SWEEPING,
    *,
    order: int | None = None,
    tell: Tell | None = None,
) -> Sweep:
    """Measure what replacing the state does at every place: variables x layers x positions x groups.

    Costs a run, from the place on, for each place and as many again for shuffled sources. To first order it costs a
    forward and a few backward runs for all places together: one for each variable, or for each output of an accuracy,
    which is then that of the outputs to first order (see `attribution`).

    Args:
      network: the network.
      recorded: a bank, recorded at one tap.
      sites: the width of groups of coordinates, such as the size of a head; None for full states; or any sites, which
        make an axis of their own.
      options: what replaces a state, and what is measured.
      order: None to measure, 1 for estimates to first order.
      tell: told how many runs of places are done, and of how many.

    Returns:
      A map over `variable` (where the measure has one), the axes of the tap, and the groups.

    Raises:
      ValueError: an unknown order, sites that do not fit, first order of `kl` at the base, where its gradient is 0, or
        of an accuracy with more outputs than memory holds.
    """
    check_recorded(recorded, network)
    kind("options", options, Sweeping)
    network = on_device(network)
    tap = network.taps[recorded.tap]
    places = _places(tap, sites, options.group)
    recorded = replaced_sources(network, recorded, options.replace, options.controls or Repeats())
    if order is None:
        found, levels = _measured(network, recorded, places, options, tell)
    elif order == 1 and not isinstance(order, bool):
        found, levels = _estimated(network, recorded, places, options), _floor(recorded, options)
    else:
        raise ValueError(f"got order {order!r}, expected None, to measure, or 1, to estimate by gradients")
    return _mapped(recorded, places, options, (found, levels), order)


class _Places(NamedTuple):
    """Sites, and the axes that they are laid out along: a depth's axes, then groups."""

    sites: SiteBank
    axes: tuple[tuple[str, tuple[str, ...]], ...]
    widest: int


def _places(tap: Tap, sites: int | SiteBank | None, group: str) -> _Places:
    axes = tap.axes
    if isinstance(sites, SiteBank):
        check_sites(sites, tap)
        axes = (("site", tuple(map(str, range(sites.size)))),)
    elif sites is None:
        sites = state_sites(tap)
    else:
        if group in (VARIABLE, *(name for name, _ in axes)):
            raise ValueError(f"got a group axis {group!r}, expected a name that is none of the axes {axes}")
        sites = group_sites(tap, sites)
        axes = (*axes, (group, tuple(map(str, range(sites.size // tap.depth)))))
    return _Places(sites, axes, int(sites.counts.max()))


def _order(recorded: Recorded, repeats: Repeats, name: str) -> Int[np.ndarray, " N"]:
    return shuffled_order(host_generator(named_key(repeats.seed, f"sweep {name}")), recorded.bank)


class _Measuring(NamedTuple):
    """What a program that measures is compiled for."""

    measure: MeasureName | Measure
    readout: Readout
    chunk: int
    mesh: Mesh | None = None


def _measured(
    network: Network, recorded: Recorded, places: _Places, options: Sweeping, tell: Tell | None
) -> tuple[Outcome, dict[str, np.ndarray]]:
    """Measure every site, and its controls as mean scores."""
    tap, repeats = network.taps[recorded.tap], options.controls
    measuring = _planned(network, recorded, places.sites, options)
    orders = []
    if repeats is not None and options.replace == "interchange":
        orders = [_order(recorded, repeats, str(index)) for index in range(repeats.shuffles)]
    done = _Progress(tell, places.sites.size * (1 + len(orders)))
    score = lambda found: _score(options.measured, found, labels_of(recorded))
    found = _all_sites(network, recorded, places.sites, measuring, done)
    levels = _floor(recorded, options)
    if repeats is not None and places.widest < tap.width:
        # As many random directions as a site has: where that is all of them, they are the state itself.
        key = named_key(repeats.seed, "sweep random")
        frames = frame_basis(random_frames(key, (repeats.draws * tap.depth,), tap.width, places.widest))
        depth = np.tile(np.arange(tap.depth, dtype=np.int32), repeats.draws)
        handles = Handle(tap.name, np.ones((len(depth), places.widest), np.float32), frames, depth)
        drawn = score(on_host(_handles(network, recorded.runs, handles, labels_of(recorded), measuring)))
        by_depth = drawn.reshape(repeats.draws, tap.depth, -1).mean(axis=0)
        levels["random"] = by_depth[np.asarray(places.sites.depth)]
    if orders:
        shuffled = [_all_sites(network, recorded.shuffled(order), places.sites, measuring, done) for order in orders]
        levels["shuffled"] = np.mean([score(each) for each in shuffled], axis=0)
    return found, levels


def _planned(network: Network, recorded: Recorded, sites: SiteBank, options: Sweeping) -> _Measuring:
    """Choose how many sites go at once."""
    at = partial(sweep_program, network, recorded, sites, options.measured)
    return at(planned_chunk(at, network, recorded.runs, recorded.tap, sites.depth)).options["measuring"]


def sweep_program(
    network: Network, recorded: Recorded, sites: SiteBank, measure: MeasureName | Measure, chunk: int, start: int = 0
) -> Program:
    """Make the program of a sweep for one block of sites, from `start` on; the last block repeats its last site."""
    mesh = mesh_of(network.params)
    rows = np.minimum(np.arange(start, start + _block_size(sites, chunk, mesh)), sites.size - 1)
    given = network, recorded.runs, *over(mesh, None, (sites.take(rows), labels_of(recorded)))
    return Program(_sites, given, {"measuring": _Measuring(measure, recorded.readout, chunk, mesh)})


def _block_size(sites: SiteBank, chunk: int, mesh: Mesh | None) -> int:
    """Return how many sites go into one call: whole chunks of each device, so that those of one depth stay together."""
    step = chunk * devices_along(mesh, CANDIDATES)
    block = step * -(-sites.size // (step * _BLOCKS))
    return block if mesh is None else min(sites.size, block)


class _Progress:
    """Counts runs of sites, and tells."""

    def __init__(self, tell: Tell | None, total: int):
        self._tell, self._total, self._done = tell, total, 0

    def add(self, count: int, found: Outcome) -> Outcome:
        """Count what was found, and return it: nothing is waited for unless somebody is told."""
        self._done += count
        if self._tell is not None:
            jax.block_until_ready(found)
            self._tell(self._done, self._total)
        return found


def _all_sites(
    network: Network, recorded: Recorded, sites: SiteBank, measuring: _Measuring, done: _Progress
) -> Outcome:
    """Measure all sites, in blocks of one size: `[S, ...]` each."""
    block, parts = _block_size(sites, measuring.chunk, measuring.mesh), []
    for start in range(0, sites.size, block):
        program = sweep_program(network, recorded, sites, measuring.measure, measuring.chunk, start)
        parts.append(done.add(min(block, sites.size - start), program()))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: sites.size], *on_host(parts))


@partial(jax.jit, static_argnames=("measuring",))
def _sites(network: Network, runs: Runs, sites: SiteBank, labels: Labels, measuring: _Measuring) -> Outcome:
    tap, features = sites.tap, sites.features

    def one(given: tuple[Any, ...], site: tuple[Array, Array, Array]) -> Outcome:
        (network, runs, basis, labels), (depth, index, value) = given, site
        weight = jnp.zeros(features, value.dtype).at[index].add(value)
        basis = jax.tree.map(lambda leaf: jnp.asarray(leaf)[depth], basis)
        return _outcome(network, runs, Handle(tap, weight, basis, depth), labels, measuring)

    every, given = (sites.depth, sites.index, sites.value), (network, runs, sites.basis, labels)
    return map_handles(one, every, chunk=measuring.chunk, given=(given,), mesh=measuring.mesh)


@partial(jax.jit, static_argnames=("measuring",))
def _handles(network: Network, runs: Runs, handles: Handle, labels: Labels, measuring: _Measuring) -> Outcome:
    run = lambda network, runs, labels, handle: _outcome(network, runs, handle, labels, measuring)
    return map_handles(run, handles, chunk=measuring.chunk, given=(network, runs, labels), mesh=measuring.mesh)


def _outcome(network: Network, runs: Runs, handle: Handle, labels: Labels, measuring: _Measuring) -> Outcome:
    outputs = patched_outputs(network, runs, handle)
    return outcome(measuring.measure, measuring.readout, outputs, runs.outputs, labels)


def _floor(recorded: Recorded, options: Sweeping) -> dict[str, np.ndarray]:
    """Return what is had without any edit: chance, where there is such a thing, and the network as it is."""
    measure, base, labels = options.measured, recorded.runs.outputs, labels_of(recorded)
    plain = _plain(base[None], base, labels, _Measuring(measure, recorded.readout, 1))
    identity = {"identity": _score(measure, on_host(plain), labels)}
    return {"chance": chance_level(recorded.bank)[None], **identity} if measure == "iia" else identity


@partial(jax.jit, static_argnames=("measuring",))
def _plain(outputs: Float[Array, "S N C"], base: Float[Array, "N C"], labels: Labels, measuring: _Measuring) -> Outcome:
    """Summarise outputs that are known."""
    run = lambda each: outcome(measuring.measure, measuring.readout, each, base, labels)
    return jax.lax.map(run, outputs)


class _Outputs(NamedTuple):
    """All outputs, as numbers to take gradients of."""

    def __call__(self, outputs: Array, base: Array, given: Any) -> Float[Array, "C N"]:
        return outputs.T


class _Numbers(NamedTuple):
    """A measure's numbers, to take gradients of; what is given leads with N."""

    measure: MeasureName | Measure
    readout: Readout

    def __call__(self, outputs: Array, base: Array, given: tuple[Array, Array, Array]) -> Float[Array, "K N"]:
        labels, factual, eligible = given
        return numbers(self.measure, self.readout, outputs, base, Labels(labels.T, factual, eligible.T))


def _estimated(network: Network, recorded: Recorded, places: _Places, options: Sweeping) -> Outcome:
    """Estimate every site to first order: `[S, ...]` each."""
    measure, runs, labels = options.measured, recorded.runs, labels_of(recorded)
    if measure == "iia":
        size = 4 * runs.outputs.size * places.sites.size
        if size > _MOST_BYTES:
            raise ValueError(
                f"got {runs.outputs.shape[1]} outputs of {runs.outputs.shape[0]} pairs at {places.sites.size} sites, "
                f"{size / 1e9:.3g} GB to first order, expected at most {_MOST_BYTES / 1e9:.3g} GB: measure the "
                "'logit_difference', or fewer pairs"
            )
        changes = first_order_changes(network, runs, places.sites, _Outputs(), (), options.points)
        outputs = np.moveaxis(changes, 0, -1).swapaxes(0, 1) + np.asarray(on_host(runs.outputs), np.float32)[None]
        return on_host(_plain(outputs, runs.outputs, labels, _Measuring(measure, recorded.readout, 1)))
    if measure == "kl" and not any(options.points):
        raise ValueError("got first order of 'kl' at the base, where its gradient is 0, expected a point beyond 0")
    given = (labels.labels.T, labels.factual, labels.eligible.T)
    changes = first_order_changes(
        network, runs, places.sites, _Numbers(measure, recorded.readout), given, options.points
    )
    return on_host(_summaries(np.moveaxis(changes, -1, 0), counted(measure, labels)))


@jax.jit
def _summaries(values: Float[Array, "S K N"], mask: Array) -> Outcome:
    return jax.lax.map(lambda each: summary(each, mask), values)


def _tally(found: Outcome, labels: Labels) -> Tally:
    halves = np.stack([labels.eligible & labels.active, labels.eligible & ~labels.active], axis=1).sum(axis=-1)
    return Tally(np.asarray(found.total), np.broadcast_to(halves, found.total.shape), np.zeros(found.total.shape))


def _score(measure: str | Measure, found: Outcome, labels: Labels) -> Float[np.ndarray, "S K"]:
    return _tally(found, labels).combined if measure == "iia" else np.asarray(found.total)[..., 0]


def _ends(measure: str | Measure, found: Outcome, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    if measure == "iia":
        return _tally(found, labels).interval()
    count = counted(measure, labels).sum(axis=-1)
    return moments_interval(np.asarray(found.total)[..., 0], np.asarray(found.deviation)[..., 0], count)


def _mapped(
    recorded: Recorded,
    places: _Places,
    options: Sweeping,
    results: tuple[Outcome, dict[str, np.ndarray]],
    order: int | None,
) -> Sweep:
    """Lay numbers of sites out along the axes."""
    found, levels = results
    measure, labels = options.measured, labels_of(recorded)
    sizes = [len(names) for _, names in places.axes]
    own = per_variable(measure)

    def laid(values: Any) -> np.ndarray:
        full = np.broadcast_to(values, (places.sites.size, found.not_finite.shape[-1]))
        return full.T.reshape(-1, *sizes) if own else full[:, 0].reshape(sizes)

    low, high = _ends(measure, found, labels)
    axes = ((VARIABLE, recorded.variables), *places.axes) if own else places.axes
    what = measure if isinstance(measure, str) else getattr(measure, "__name__", "change of the outputs")
    return Sweep(
        f"{what} of {options.replace}",
        recorded.bank.role,
        tuple(axis for axis, _ in axes),
        dict(axes),
        laid(_score(measure, found, labels)),
        laid(low),
        laid(high),
        laid(counted(measure, labels).sum(axis=-1)[None]),
        laid(found.not_finite),
        {name: laid(level) for name, level in levels.items()},
        order,
    )
