"""A user's own network, with taps: `wrap` makes a `Network` of any JAX model without touching its source.

    net = wrap(model, params, inputs, {"hidden": "layers/[0-9]+/act", "logits": "head"})

The model is traced; values with a place (what a module returned, what `tap` named, what a source line computes; see
`listing`) become taps of a `Model`, which reads and replaces them by running the traced program anew. Edits stay data,
so everything in this library works on it: under jit, vmap and grad, through `scan`, `remat` and Python loops, whose
steps are the depth of a tap.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from abstraction.checks import one_of, whole
from abstraction.models.any_model.functions import as_function
from abstraction.models.any_model.interpreter import TOP, Changes, Taps, evaluate
from abstraction.models.any_model.program import Spot, spots, tap_place, trace
from abstraction.models.any_model.reducing import (
    OFFSETS,
    Narrowed,
    WithOffsets,
    consumers_of,
    kept_params,
    zero_offsets,
)
from abstraction.models.checking import check_model
from abstraction.models.network import Network
from abstraction.models.taps import NO_EDITS, Edits, Tap, check_taps
from abstraction.models.wiring import Consumer, check_kept, take_units
from abstraction.pytrees import leading_axis
from abstraction.typing import Outputs, Params


class At(NamedTuple):
    """Where a tap is.

    Attributes:
      expression: a place that `listing` shows, or a regular expression that matches the whole of several.
      units: how many axes at the end of its values are its units; 2 for heads and their size, say, D = H E.
      only: which one of its values, counted as they run; by default all of them.
    """

    expression: str
    units: int = 1
    only: int | None = None


@dataclass(frozen=True)
class WrappedModel:
    """A user's model; implements `abstraction.models.Model`. Compares by value where the user's model does.

    Attributes:
      function: its computation.
      places: where each tap is.
      found: the taps.
      examples: the axis of examples of each tap, in the program's own order.
      shapes: the structure of params, and the shape and type of each array.
      batch: likewise of the inputs it was wrapped with.
    """

    function: Callable[[Any, Any], Any]
    places: tuple[tuple[str, At], ...]
    found: tuple[Tap, ...]
    examples: tuple[tuple[str, int], ...]
    shapes: tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]
    batch: tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]

    @property
    def taps(self) -> Mapping[str, Tap]:
        """The taps that were asked for."""
        return self._taps

    @cached_property
    def _taps(self) -> Mapping[str, Tap]:
        return {tap.name: tap for tap in self.found}

    def init(self, key: Array) -> Params:
        """Refuse to draw parameters.

        Raises:
          ValueError: always: the user's own code draws them.
        """
        raise ValueError("got a wrapped model to draw params of, expected the user's own code to draw them")

    def param_shapes(self) -> Params:
        """Return shape and type of every array of the params; see `abstraction.models.base.Shaped`."""
        return jax.tree.unflatten(*self.shapes)

    def example(self) -> Any:
        """Return shape and type of the inputs it was wrapped with."""
        return jax.tree.unflatten(*self.batch)

    def consumers(self, tap: str) -> tuple[Consumer, ...]:
        """Return what reads the units of a tap, as its program says; see `abstraction.models.Reducible`.

        Raises:
          ValueError: the tap is unknown, or an equation stands in the way; says which, and where.
        """
        one_of("tap", tap, sorted(self._taps))
        return consumers_of(self, tap)

    def with_biases(self, params: Params, tap: str) -> tuple["WrappedModel", Params]:
        """Add an offset of 0 to what every reader of a tap gives; see `abstraction.models.Reducible`."""
        offsets = zero_offsets(self, tap, params)
        there = params.get(OFFSETS, {})
        if set(offsets) <= set(there):
            return self, params
        params = {**params, OFFSETS: {**there, **offsets}}
        return self._anew(WithOffsets(self, tap), params), params

    def narrowed(self, params: Params, tap: str, kept: Int[np.ndarray, " K"]) -> tuple["WrappedModel", Params]:
        """Remove the other units of a tap; see `abstraction.models.Reducible`."""
        one_of("tap", tap, sorted(self._taps))
        kept = check_kept(tap, kept, self._taps[tap].width)
        params = kept_params(self, tap, params, kept, take_units)
        return self._anew(Narrowed(self, tap, len(kept)), params), params

    def _anew(self, function: Callable[[Any, Any], Any], params: Params) -> "WrappedModel":
        """Wrap a program written anew, in which every tap is marked."""
        places = tuple((name, At(re.escape(tap_place(name)), place.units)) for name, place in self.places)
        about = {tap.name: tap.about for tap in self.found}
        return _wrapped(function, params, self.example(), places, about)

    def apply(
        self, params: Params, inputs: Any, edits: Edits = NO_EDITS, record: Sequence[str] = ()
    ) -> tuple[Outputs, dict[str, Array]]:
        """Run the network; see `Model.apply`.

        Raises:
          ValueError: what `Model.apply` refuses, or inputs with which a tap occurs another number of times.
        """
        check_taps(self._taps, edits, record)
        outs, records = self.run(params, inputs, edits, record)
        return outs, {name: records[name] for name in record}

    def run(
        self, params: Params, inputs: Any, edits: Edits = NO_EDITS, record: Sequence[str] = (), marked: bool = False
    ) -> tuple[Any, dict[str, Array]]:
        """Run the program with edits; `marked`, every tap of it can be found in what this is a part of."""
        program = trace(self.function, params, inputs)
        wanted = set(self._taps) if marked else {*edits, *record}
        units = {name: place.units for name, place in self.places}
        named = matcher(self.places, wanted, list(spots(program.closed.jaxpr)))
        taps = Taps(named, dict(self.examples), units, frozenset(record), {}, Changes(marked=marked))
        counts = taps.occurrences(program.closed.jaxpr, TOP)
        if wrong := {name: counts.get(name, 0) for name in wanted if counts.get(name, 0) != self._taps[name].depth}:
            expected = {name: self._taps[name].depth for name in wrong}
            raise ValueError(f"got taps that occur {wrong} times with these inputs, expected {expected}, as wrapped")
        arguments = jax.tree.leaves((params, inputs))
        outs, records = evaluate(program.closed.jaxpr, list(program.closed.consts), arguments, edits, taps)
        return jax.tree.unflatten(program.outputs, outs), records

    def resume(
        self, params: Params, tap: str, depth: Int[Array, ""], activation: Array, *, inputs: Any, states: Array
    ) -> Outputs:
        """Refuse: no tap of a wrapped model is known to carry everything. See `Model.resume`.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            f"got a resume from {tap!r} of a wrapped model, none of whose taps is known to carry everything, expected "
            "a run with edits: `patched_outputs` chooses"
        )


def wrap(
    model: Any,
    params: Any,
    inputs: Any,
    taps: Mapping[str, str | At] | Sequence[str],
    *,
    read: Callable[[Any], Any] | None = None,
    check: bool = False,
) -> Network:
    """Make a network with taps of any JAX model.

    Args:
      model: a Linen, NNX or Equinox module (one example; it is mapped over the batch), or a function of params and
        inputs. A module is left as it is.
      params: the variables of a Linen module; None for a module that has its own; whatever a function takes, arrays or
        an NNX or Equinox module.
      inputs: a batch of N examples, or of their shapes: an array or a pytree of arrays that lead with N. It says how
        large activations are; other batches may have another N.
      taps: `{name: place}`. A place is one that `listing` shows, or a regular expression that matches the whole of
        several, which become the depth axis in the order in which they run, or an `At` of several axes of units. A
        list of places names each by itself.
      read: turns what the model returns into outputs `[N, C]`: logits at one token, say. Give a function that has a
        name, not a fresh lambda: a model that compares unequal compiles again.
      check: whether to run the laws of `check_model` on these inputs, which takes seconds.

    Returns:
      The network. A tap's activation is `[L, N, ..., D]`, whatever axis the model has examples on.

    Raises:
      ValueError: no place matches, or one that cannot be opened, places of one tap that differ in shape, a value that
        has not one axis of examples, or is a number per example; outputs that are no array that leads with examples;
        a model whose code depends on the number of examples; a law that is broken; or what `as_function` refuses.
    """
    function, arrays = as_function(model, params, read)
    named = dict(taps) if isinstance(taps, Mapping) else {place: place for place in taps}
    places = tuple((name, At(at) if isinstance(at, str) else at) for name, at in named.items())
    network = Network(_wrapped(function, arrays, inputs, places, {}), arrays)
    if check:
        check_model(network, inputs, plain=function)
    return network


def _wrapped(
    function: Callable[[Any, Any], Any],
    params: Params,
    inputs: Any,
    places: tuple[tuple[str, At], ...],
    about: Mapping[str, str],
) -> WrappedModel:
    listed = batch_spots(function, params, inputs, outputs=True)
    _check_apart(places, [each.spot for each in listed])
    found = [_tap(name, place, listed) for name, place in places]
    taps = tuple(dataclasses.replace(tap, about=about.get(tap.name, tap.about)) for tap, _ in found)
    axes = tuple((tap.name, axis) for tap, axis in found)
    return WrappedModel(function, places, taps, axes, _shapes(params), _shapes(inputs))


def _check_apart(places: Sequence[tuple[str, At]], listed: Sequence[Spot]) -> None:
    """Refuse a value that is in two taps."""
    owners: dict[tuple[int, ...], str] = {}
    for name, place in places:
        name_of = matcher([(name, place)], {name}, listed)
        for spot in listed:
            if name_of(spot) is not None and owners.setdefault(spot.address, name) != name:
                raise ValueError(
                    f"got {spot.place!r} in taps {owners[spot.address]!r} and {name!r}, expected each value in one: "
                    "wrap the model again for the other"
                )


def _shapes(tree: Any) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(jax.ShapeDtypeStruct(jnp.shape(leaf), _dtype(leaf)) for leaf in leaves)


class BatchSpot(NamedTuple):
    """A value with a place, and where its examples are.

    Attributes:
      spot: the value.
      axis: its axis of examples, or None where it has not exactly one.
    """

    spot: Spot
    axis: int | None


def batch_spots(function: Callable[[Any, Any], Any], params: Params, inputs: Any, *, outputs: bool) -> list[BatchSpot]:
    """List the values of a function that have a place; the axis of examples is the one that grows with the batch.

    Raises:
      ValueError: the code depends on the number of examples; where `outputs`, they do not lead with examples.
    """
    count = leading_axis(inputs)
    shape = lambda leaf, more: jax.ShapeDtypeStruct((count + more, *jnp.shape(leaf)[1:]), _dtype(leaf))
    traced = [trace(function, params, jax.tree.map(lambda leaf, n=n: shape(leaf, n), inputs)) for n in (0, 1)]
    for n, program in enumerate(traced):
        shapes = [getattr(atom.aval, "shape", ()) for atom in program.closed.jaxpr.outvars]
        if outputs and (len(shapes) != 1 or shapes[0][:1] != (count + n,)):
            raise ValueError(
                f"got outputs of shapes {shapes} for {count + n} examples, expected one array that leads with them, "
                "[N, C]: `read` turns what the model returns into outputs"
            )
    here, there = (list(spots(program.closed.jaxpr)) for program in traced)
    if [spot.place for spot in here] != [spot.place for spot in there]:
        raise ValueError(
            f"got another program for {count} examples than for {count + 1}, expected code that does not depend on how "
            "many there are"
        )
    return [BatchSpot(one, _grown(one.shape, two.shape)) for one, two in zip(here, there, strict=True)]


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.asarray(leaf).dtype


def _grown(small: tuple[int, ...], large: tuple[int, ...]) -> int | None:
    if len(small) != len(large):
        return None
    grown = [axis for axis, (one, two) in enumerate(zip(small, large, strict=True)) if one != two]
    return grown[0] if len(grown) == 1 and large[grown[0]] == small[grown[0]] + 1 else None


def matcher(places: Sequence[tuple[str, At]], wanted: set[str], listed: Sequence[Spot]) -> Callable[[Spot], str | None]:
    """Return the function that tells which of some taps a value with a place is.

    Args:
      places: where each tap is.
      wanted: the taps to tell.
      listed: the values of the program, among which those of a tap are counted.
    """
    known: dict[str, list[str]] = {}
    for name, place in places:
        every = {each.place for each in listed} if name in wanted else set()
        expression = _expression(place.expression)
        # A place that is named exactly is itself alone: dots are any letter in an expression.
        for spot in {place.expression} if place.expression in every else every:
            if spot == place.expression or expression.fullmatch(spot):
                known.setdefault(spot, []).append(name)
    chosen = {}
    for name, place in places:
        if place.only is not None:
            there = [spot.address for spot in listed if name in known.get(spot.place, ())]
            chosen[name] = there[place.only] if place.only < len(there) else None

    def name_of(spot: Spot) -> str | None:
        found = (name for name in known.get(spot.place, ()) if name not in chosen or chosen[name] == spot.address)
        return next(found, None)

    return name_of


def _expression(place: str) -> re.Pattern[str]:
    try:
        return re.compile(place)
    except re.error:
        return re.compile(re.escape(place))


def _tap(name: str, place: At, listed: list[BatchSpot]) -> tuple[Tap, int]:
    """Make a tap of all the values whose place matches."""
    what = f"got tap {name!r} at {place.expression!r}"
    whole("axes of units", place.units)
    name_of = matcher([(name, place._replace(only=None))], {name}, [each.spot for each in listed])
    there = [each for each in listed if name_of(each.spot) is not None]
    if not there:
        known = list(dict.fromkeys(each.spot.place for each in listed))
        near = difflib.get_close_matches(place.expression, known, 3, 0.3) or known[:8]
        raise ValueError(f"{what}, which is nowhere, expected a place such as {near}; `listing` shows all {len(known)}")
    if place.only is not None:
        whole(f"value of {place.expression!r}", place.only, 0, len(there) - 1)
        there = [there[place.only]]
        if there[0].spot.branched:
            raise ValueError(f"{what}: its value {place.only} is inside a conditional, whose branches count apart")
        if there[0].spot.times != 1:
            raise ValueError(f"{what}: its value {place.only} is inside a scan, whose steps are one depth axis")
    if closed := [each.spot for each in there if each.spot.obstacle]:
        raise ValueError(f"{what}: {closed[0].place!r} is {closed[0].obstacle}; expected a value that is open")
    shapes = {(each.spot.shape, each.axis) for each in there}
    if len(shapes) != 1:
        found = {each.spot.place: each.spot.shape for each in there}
        raise ValueError(f"{what} with values of several shapes {found}, expected one shape: make a tap of each")
    shape, axis = next(iter(shapes))
    if axis is None or len(shape) <= place.units:
        raise ValueError(f"{what} of shape {shape}, expected one axis of examples and {place.units} of units at least")
    width = math.prod((*shape[:axis], *shape[axis + 1 :])[len(shape) - 1 - place.units :])
    depth = sum(each.spot.times for each in there)
    note = next((f"; {each.spot.note}" for each in there if each.spot.note), "")
    return Tap(name, width, depth, f"{there[0].spot.about} at {place.expression}{note}"), axis
