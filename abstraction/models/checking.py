"""The laws of the contract on a network of the user's own, in seconds.

    check_model(wrap(model, params, inputs, taps), inputs)

A model that ignores an edit, mixes examples, or resumes wrongly gives numbers that look like any others. Each law is
run on the user's model and inputs; the first that breaks is told, with its tap (see `abstraction.models.base`).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from abstraction.models.base import Model, Padded, Recordable
from abstraction.models.network import Network, check_network
from abstraction.pytrees import leading_axis, pytree
from abstraction.typing import AnyArray, Outputs, Params

_CLOSE = 1e-4
"""How far float32 sums in another order may be apart, relative to the largest number."""


@pytree
class _Put:
    """Replace a whole activation."""

    value: AnyArray

    def __call__(self, activation: Array) -> Array:
        return jnp.broadcast_to(self.value, activation.shape)


@pytree
class _Push:
    """Add to an activation."""

    offset: AnyArray

    def __call__(self, activation: Array) -> Array:
        return activation + self.offset


class Laws(NamedTuple):
    """What was checked.

    Attributes:
      kept: each law that holds, with the largest deviation that was seen, relative to the largest number.
      silent: depths of each tap at which a push moved no output, where there are some: nothing reads them.
    """

    kept: dict[str, float]
    silent: dict[str, list[int]]

    def __str__(self) -> str:
        lines = [f"{deviation:8.1e}  {law}" for law, deviation in self.kept.items()]
        lines += [f"          nothing reads {tap!r} at depths {depths}" for tap, depths in self.silent.items()]
        return "\n".join(lines)


class _Case(NamedTuple):
    """A network, N examples, what it says to them, and its activations."""

    network: Network
    inputs: Any
    outputs: Outputs
    states: dict[str, Array]


def check_model(network: Network, inputs: Any, *, plain: Callable[[Params, Any], Array] | None = None) -> Laws:
    """Check that a network obeys the laws everything in this library rests on.

    Args:
      network: the network, a wrapped one or one by a model of the user's own.
      inputs: a batch of at least two examples that differ.
      plain: the user's own forward pass, `params, inputs -> outputs`, which the network is to equal to the last bit.

    Returns:
      The laws, and how closely each was kept; `print` shows them.

    Raises:
      ValueError: weights that are not the model's, or a law that is broken, the first one; names the tap.
    """
    check_network(network)
    if leading_axis(inputs) < 2:
        raise ValueError(f"got {leading_axis(inputs)} example, expected at least two that differ")
    inputs = jax.tree.map(jnp.asarray, inputs)
    outputs, _ = _run(network, inputs)
    if outputs.ndim != 2 or len(outputs) != leading_axis(inputs) or not np.isfinite(np.asarray(outputs)).all():
        raise ValueError(f"got outputs of shape {outputs.shape}, expected finite numbers [N, C]")
    recorded, states = _run(network, inputs, record=tuple(network.taps))
    case, kept = _Case(network, inputs, outputs, states), {}
    if plain is not None:
        same = np.array_equal(np.asarray(jax.jit(plain)(network.params, inputs)), np.asarray(outputs), equal_nan=True)
        kept["without edits: the plain forward pass, bit by bit"] = _held("plain forward pass", 0.0 if same else 1.0)
    kept["recording changes nothing"] = _held("recording changes nothing", _far(recorded, outputs))
    _check_shapes(case)
    kept["examples do not see one another"] = _apart(case)
    for law, check in _LAWS.items():
        if found := [_held(law, far, tap) for tap, far in check(case)]:  # of no tap there is nothing to say
            kept[law] = max(found)
    _check_refusals(case)
    kept["unknown taps and missing depths are refused"] = 0.0
    return Laws(kept, _silent(case))


@partial(jax.jit, static_argnames=("record",))
def _run(network: Network, inputs: Any, edits: Any = None, record: tuple[str, ...] = ()) -> tuple[Outputs, Any]:
    return network(inputs, edits or {}, record)


def _far(found: Array, expected: Array) -> float:
    """Return the largest difference, relative to the largest number; what is not finite is infinitely far."""
    one, two = (np.asarray(values, np.float64) for values in (found, expected))
    far = np.abs(one - two).max(initial=0.0) / max(1e-30, np.abs(two).max(initial=0.0))
    return float(far) if np.isfinite(far) else np.inf


def _held(law: str, far: float, tap: str | None = None) -> float:
    if far > _CLOSE:
        where = "" if tap is None else f" at tap {tap!r}"
        raise ValueError(f"got a model that breaks a law{where}: {law}; differs by {far:.2g}, expected <= {_CLOSE}")
    return far


def _check_shapes(case: _Case) -> None:
    count = leading_axis(case.inputs)
    for name, tap in case.network.taps.items():
        shape = case.states[name].shape
        if shape[:2] != (tap.depth, count) or shape[-1] != tap.width or len(shape) < 3:
            raise ValueError(
                f"got {name!r} recorded with shape {shape}, expected ({tap.depth}, {count}, ..., {tap.width})"
            )


def _apart(case: _Case) -> float:
    """Run the examples in reverse, and half of them: each has its outputs, unless one example sees another."""
    back = jax.tree.map(lambda leaf: leaf[::-1], case.inputs)
    outputs, states = _run(case.network, back, record=tuple(case.network.taps))
    law = "examples do not see one another (batch statistics, or an axis that is not examples?)"
    _held(law, _far(outputs[::-1], case.outputs))
    # Statistics of a batch are the same in reverse; of one example alone a dead unit might not tell.
    half = leading_axis(case.inputs) // 2
    fewer, _ = _run(case.network, jax.tree.map(lambda leaf: leaf[:half], case.inputs))
    _held(law, _far(fewer, case.outputs[:half]))
    return max([_held(law, _far(states[name][:, ::-1], own), name) for name, own in case.states.items()], default=0.0)


def _own_value(case: _Case) -> Iterator[tuple[str, float]]:
    for name, own in case.states.items():
        outputs, states = _run(case.network, case.inputs, {name: _Put(own)}, tuple(case.states))
        yield name, max(_far(outputs, case.outputs), *(_far(states[each], case.states[each]) for each in states))


def _follows(case: _Case) -> Iterator[tuple[str, float]]:
    for name, own in case.states.items():
        other = own[:, ::-1]
        _, states = _run(case.network, case.inputs, {name: _Put(other)}, (name,))
        yield name, _far(states[name], other)


def _moves(case: _Case) -> Iterator[tuple[str, float]]:
    for name in case.states:
        # A law that is kept is 0 far; a tap that moves nothing at any depth breaks this one.
        yield name, 0.0 if any(_moved(case, name)) else 1.0


def _moved(case: _Case, name: str) -> list[bool]:
    """Tell at which depths a push, as large as the activation, moves an output."""
    own = case.states[name]
    push = (1 + jnp.abs(own)) * jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], own.shape[-1]), own.dtype)
    there = lambda depth: jnp.where(jnp.arange(len(own)).reshape(-1, *[1] * (own.ndim - 1)) == depth, push, 0)
    clean, _ = _run(case.network, case.inputs, {name: _Push(jnp.zeros_like(own))})
    return [_far(_run(case.network, case.inputs, {name: _Push(there(d))})[0], clean) > 0 for d in range(len(own))]


def _silent(case: _Case) -> dict[str, list[int]]:
    found = {name: [depth for depth, moved in enumerate(_moved(case, name)) if not moved] for name in case.states}
    return {name: depths for name, depths in found.items() if depths}


def _swapped(case: _Case) -> Iterator[tuple[str, float]]:
    if isinstance(case.network.model, Padded | Recordable):
        return  # what follows reads the inputs too: a mask, tokens that are kept
    back = case.outputs[::-1]
    for name in _resuming(case):
        yield name, _far(_run(case.network, case.inputs, {name: _Put(case.states[name][:, ::-1])})[0], back)


def _resumed(case: _Case) -> Iterator[tuple[str, float]]:
    for name in _resuming(case):
        own, (inputs, states) = case.states[name], _recording(case, name)
        for depth in range(len(own)):
            changed = own[depth, ::-1]
            there = (jnp.arange(len(own)) == depth).reshape(-1, *[1] * (own.ndim - 1))
            full, _ = _run(case.network, case.inputs, {name: _Partly(there, jnp.broadcast_to(changed, own.shape))})
            found = case.network.resume(name, jnp.asarray(depth), changed, inputs=inputs, states=states)
            yield f"{name}, depth {depth}", _far(found, full)


@pytree
class _Partly:
    """Replace an activation where `there`."""

    there: AnyArray
    value: AnyArray

    def __call__(self, activation: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.where(self.there, self.value, activation)


def _recording(case: _Case, name: str) -> tuple[Any, Array]:
    model = case.network.model
    if not isinstance(model, Recordable):
        return case.inputs, case.states[name]
    inputs, _, states = model.record(case.network.params, case.inputs, (name,))
    return inputs, states[name]


def _resuming(case: _Case) -> list[str]:
    return [name for name, tap in case.network.taps.items() if tap.resumes]


def _check_refusals(case: _Case) -> None:
    """Check that what cannot be is refused."""
    model: Model = case.network.model
    name, own = next(iter(case.states.items()), ("", jnp.zeros((1, 1))))
    wrong: dict[str, Callable[[], Any]] = {
        "an edit of an unknown tap": lambda: _run(case.network, case.inputs, {f"no {name}": _Put(own)}),
        "a record of an unknown tap": lambda: _run(case.network, case.inputs, record=(f"no {name}",)),
    }
    if name:
        deep = jnp.concatenate([own, own[:1]])
        wrong["an edit of another depth"] = lambda: _run(case.network, case.inputs, {name: _Put(deep)})
    for what, call in wrong.items():
        try:
            call()
        except ValueError:
            continue
        raise ValueError(f"got a model {type(model).__name__} that takes {what}, expected ValueError: use `check_taps`")


_LAWS: dict[str, Callable[[_Case], Iterator[tuple[str, float]]]] = {
    "a tap's own value changes nothing": _own_value,
    "a record follows its edit": _follows,
    "a tap moves an output at some depth": _moves,
    "a tap that resumes carries everything: the source's values give the source's outputs": _swapped,
    "resuming equals a whole run, at every depth": _resumed,
}
