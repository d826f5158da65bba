"""Places: layers and named tokens of a prompt, as one axis of depth.

A place of a transformer is a layer l and a token that is named, `subject` or `last`, at its own position in every
prompt. With P names a tap of depth L has L P places,

    place = l P + p,

so a site, a handle or a coupling over the depth of such a tap is one over places, and needs no other idea. A prompt may
have two names for one token; edits of one layer then act there in the order of the names, each on what the one before
has made.

`PlaceView` shows any model this way. Each of its runs is a whole one; `TokenView` costs less, and is for decoders.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from abstraction.checks import kind
from abstraction.models.base import Model, Padded, Shaped
from abstraction.models.positions import AtPositions, known_values, recorded_at
from abstraction.models.taps import NO_EDITS, Edit, Edits, Tap, check_taps
from abstraction.pytrees import leading_axis, pytree, static
from abstraction.typing import AnyArray, Outputs, Params

_PROMPTS, _TOKENS = 3, 2


def place_tap(tap: Tap, names: tuple[str, ...]) -> Tap:
    """Return a tap `[L, N, T, D]` as it is seen at P named tokens: `[L P, N, D]`, the names fastest."""
    return dataclasses.replace(tap, depth=tap.depth * len(names), places=(*tap.axes, ("position", names)))


@pytree
class AtPlaces:
    """Let the edits of P places see one token of each prompt, one after another, in an activation `[N, T, D]`.

    Attributes:
      edit: its leaves lead with P; sees `[N, D]`.
      positions: indices into the padded prompts, `[N, P]`.
    """

    edit: Any
    positions: AnyArray

    def __call__(self, activation: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        for place in range(self.positions.shape[1]):
            edit = jax.tree.map(lambda leaf, place=place: leaf[place], self.edit)
            activation = AtPositions(edit, self.positions[:, place])(activation)
        return activation


def at_places(edit: Edit, positions: Int[Array, "N P"], depth: int) -> AtPlaces:
    """Turn an edit over L P places, each leaf `[L P, ...]`, into one over L layers, each leaf `[L, ...]`."""
    spread = lambda leaf: leaf.reshape(depth, -1, *leaf.shape[1:])
    return AtPlaces(jax.tree.map(spread, edit), jnp.broadcast_to(positions, (depth, *positions.shape)))


def over_places(values: Float[Array, "L N P D"]) -> Float[Array, "LP N D"]:
    """Lay layers and positions out as places."""
    return jnp.moveaxis(values, 2, 1).reshape(-1, values.shape[1], values.shape[3])


def check_names(names: Any) -> None:
    """Refuse what is no tuple of names, each once.

    Raises:
      ValueError: as said.
    """
    words = isinstance(names, tuple) and all(isinstance(name, str) and name for name in names)
    if not words or not names or len(set(names)) != len(names):
        raise ValueError(f"got positions {names!r}, expected a tuple of names, at least one, each once")


def check_same_names(found: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """Refuse inputs whose tokens are named otherwise than a view's.

    Raises:
      ValueError: naming both.
    """
    if found != expected:
        raise ValueError(f"got inputs with positions {list(found)}, expected {list(expected)}, in this order")


@pytree
class Placed:
    """N inputs and P named tokens in each; build it with `placed`.

    Attributes:
      inputs: as the model takes them, `[N, ...]`.
      positions: index of each named token along the axis of tokens, `[N, P]`.
      names: of the P tokens.
    """

    inputs: Any
    positions: Int[AnyArray, "N P"]
    names: tuple[str, ...] = static()


def placed(inputs: Any, positions: Mapping[str, Int[AnyArray, " N"]]) -> Placed:
    """Name tokens of inputs.

    Args:
      inputs: as the model takes them, an array or a pytree of them, `[N, ...]`.
      positions: by name, where the token is in each input, `[N]`.

    Raises:
      ValueError: no name, or positions that are not an index from 0 for each input. `PlaceView.check` knows how many
        tokens there are.
    """
    names = tuple(positions)
    check_names(names)
    count, columns = leading_axis(inputs), []
    for name, values in positions.items():
        column = known_values(values)
        if column is None or column.shape != (count,) or column.dtype.kind not in "iu":
            got = "values that are traced" if column is None else f"shape {column.shape} and type {column.dtype}"
            raise ValueError(f"got positions {name!r} of {got}, expected whole numbers, one for each of {count} inputs")
        if column.min() < 0:
            row = int(column.argmin())
            raise ValueError(f"got position {column[row]} of {name!r} in input {row}, expected an index from 0")
        columns.append(column.astype(np.int32))
    return Placed(inputs, np.stack(columns, axis=1), names)


@dataclass(frozen=True)
class PlaceView:
    """A model seen at named tokens; implements `abstraction.models.Model`, over inputs that `placed` makes.

    Attributes:
      model: any, with activations `[L, N, T, D]` at some of its taps.
      positions: names of the P tokens.
      tokens: taps with an axis of T tokens, in whose place are L P places then; other taps stay as they are. None asks
        the model, which has to take token ids `[N, T]`.

    Raises:
      ValueError: no name, no model, or an unknown tap.
    """

    model: Model
    positions: tuple[str, ...]
    tokens: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        kind("model", self.model, Model)
        check_names(self.positions)
        if self.tokens is not None:
            check_taps(self.model.taps, NO_EDITS, self.tokens)

    @cached_property
    def seen(self) -> tuple[str, ...]:
        """The taps with an axis of tokens."""
        return _taps_of_tokens(self.model) if self.tokens is None else self.tokens

    @property
    def taps(self) -> Mapping[str, Tap]:
        """The model's, at places where they have tokens; a run does not resume from one."""
        taps = {name: dataclasses.replace(tap, resumes=False) for name, tap in self.model.taps.items()}
        return {name: place_tap(tap, self.positions) if name in self.seen else tap for name, tap in taps.items()}

    def init(self, key: Array) -> Params:
        """Draw the model's parameters."""
        return self.model.init(key)

    def param_shapes(self) -> Params:
        """Return shape and type of the model's parameters; see `Shaped`."""
        return _param_shapes(self.model)

    def apply(
        self, params: Params, inputs: Placed, edits: Edits = NO_EDITS, record: Sequence[str] = ()
    ) -> tuple[Outputs, dict[str, Array]]:
        """Run the model, whole, with edits of the named tokens; see `Model.apply`. Past the last token is NaN."""
        check_taps(self.taps, edits, record)
        check_same_names(inputs.names, self.positions)
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(inputs)):
            self.check(inputs)
        positions, depths = jnp.asarray(inputs.positions), self.model.taps
        own: dict[str, Edit] = {
            name: at_places(edit, positions, depths[name].depth) if name in self.seen else edit
            for name, edit in edits.items()
        }
        outputs, recorded = self.model.apply(params, inputs.inputs, own, record)
        at = jax.vmap(recorded_at, in_axes=(0, None))
        pick = lambda name, values: over_places(at(values, positions)) if name in self.seen else values
        return outputs, {name: pick(name, values) for name, values in recorded.items()}

    def resume(
        self, params: Params, tap: str, depth: Int[Array, ""], activation: Array, *, inputs: Placed, states: Array
    ) -> Outputs:
        """Refuse: a place alone does not determine what comes after.

        Raises:
          ValueError: always.
        """
        raise ValueError(f"got a resume from {tap!r}, expected a whole run: a view of places resumes from no tap")

    def record(self, params: Params, inputs: Placed, taps: Sequence[str]) -> tuple[Placed, Outputs, dict[str, Array]]:
        """Run once; see `Recordable.record`. There is nothing more to keep than the activations."""
        outputs, recorded = self.apply(params, inputs, record=taps)
        return jax.tree.map(jnp.asarray, inputs), outputs, recorded

    def from_depth(self, depth: int) -> "PlaceView":
        """Return the view: each of its runs is a whole one."""
        return self

    def check(self, inputs: Placed) -> None:
        """Refuse tokens that are named otherwise, or are not there.

        Raises:
          ValueError: names the token, the input, and the tap whose tokens end before it or are padding there.
        """
        check_same_names(inputs.names, self.positions)
        positions = np.asarray(inputs.positions)
        if positions.ndim != 2 or positions.dtype.kind not in "iu" or positions.shape[1] != len(self.positions):
            raise ValueError(
                f"got positions of shape {positions.shape} and type {positions.dtype}, expected whole numbers "
                f"(N, {len(self.positions)})"
            )
        for tap in self.seen:
            there = self._there(inputs.inputs, tap)
            inside = (positions >= 0) & (positions < there.shape[1])
            wrong = np.argwhere(~(inside & np.take_along_axis(there, np.where(inside, positions, 0), axis=1)))
            if len(wrong):
                row, place = wrong[0]
                tokens = np.flatnonzero(there[row])
                raise ValueError(
                    f"got position {positions[row, place]} of {self.positions[place]!r} in input {row}, expected one "
                    f"of its tokens at {tap!r}, {tokens[0]} to {tokens[-1]}"
                )

    def _there(self, inputs: Any, tap: str) -> Bool[np.ndarray, "N T"]:
        """Return where a tap holds a token."""
        shapes = _recorded(self.model, inputs, (tap,))
        shape = shapes[tap].shape
        if len(shape) != 4:
            raise ValueError(f"got tap {tap!r} of shape {shape}, expected [L, N, T, D], with an axis of tokens")
        if not isinstance(self.model, Padded):
            return np.ones(shape[1:3], bool)
        with jax.ensure_compile_time_eval():  # inputs are known, in a function that is traced too
            return np.broadcast_to(np.asarray(self.model.present(inputs, tap)), shape[1:3])


@cache
def _taps_of_tokens(model: Model) -> tuple[str, ...]:
    """Ask a model that takes token ids which of its taps have an axis of them; nothing is run."""
    ids = jax.ShapeDtypeStruct((_PROMPTS, _TOKENS), np.int32)
    try:
        shapes = _recorded(model, ids, tuple(model.taps))
    except Exception as error:
        raise ValueError(
            f"got a {type(model).__name__} that does not take token ids [N, T], expected the names of the taps that "
            f"have an axis of tokens, PlaceView(..., tokens=(...)), some of {sorted(model.taps)}: {error}"
        ) from error
    found = tuple(
        name for name, each in shapes.items() if each.shape[1:3] == (_PROMPTS, _TOKENS) and len(each.shape) == 4
    )
    if not found:
        raise ValueError(f"got a {type(model).__name__} of whose taps none has an axis of tokens [L, N, T, D]")
    return found


def _param_shapes(model: Model) -> Params:
    return model.param_shapes() if isinstance(model, Shaped) else jax.eval_shape(model.init, jax.random.key(0))


def _recorded(model: Model, inputs: Any, taps: tuple[str, ...]) -> dict[str, Any]:
    """Return the shapes of what is recorded of such inputs; nothing is computed."""
    shapes = _param_shapes(model)
    return jax.eval_shape(lambda params, inputs: model.apply(params, inputs, NO_EDITS, taps)[1], shapes, inputs)
