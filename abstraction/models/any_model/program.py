"""A user's model as a program: its equations, and the values among them that can be tapped.

`jax.make_jaxpr` writes a model as equations. Three kinds of value have a place by which a user can name them:

    module   what a module returned, by its path, and what it read: "mlp/down", "mlp/down.input"
    name     what the user's own code names by `tap(value, name)`, or by JAX's `checkpoint_name`
    line     what an equation gives, by its source line and operation: "model.py:17 tanh"

A place that is met several times, in a scan or in a Python loop, has a depth axis of as many occurrences, in the order
in which they run.
"""

import os
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core
from jax.extend.core import primitives
from jaxtyping import Array

MARK, SEPARATOR = "abstraction:", "|"
JITTED = ("jit", "pjit", "closed_call", "core_call")
REMAT = ("checkpoint", "remat", "remat2")
RULED = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call")
OPENED = (*JITTED, *REMAT, *RULED, "scan", "cond")
"""Equations whose insides can be read and replaced."""
RULE_LOST = "gradients do not use the derivative rule that this is inside of, once it is tapped"
_NOWHERE = "nowhere"
_JAX = os.path.dirname(jax.__file__) + os.sep
_HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
_STANDARD = sysconfig.get_path("stdlib") + os.sep
_SITE = os.sep + "site-packages" + os.sep
_FRAMEWORKS = ("flax", "equinox", "haiku")
_CHECKERS = ("jaxtyping", "beartype", "typeguard")


class Program(NamedTuple):
    """A traced function of params and inputs.

    Attributes:
      closed: its equations.
      outputs: structure of what it returns.
    """

    closed: Any
    outputs: Any


class Spot(NamedTuple):
    """A value of a program that has a place.

    Attributes:
      place: what a tap names it by.
      kind: `module`, `name` or `line`.
      about: the class of the module, or the operation.
      shape: its shape at one occurrence, in the program's own order of axes.
      times: how often it occurs in one run, here.
      address: the indices by which `interpreter.evaluate` comes to it.
      obstacle: why it cannot be read and replaced; empty where it can.
      branched: it is in every branch of a conditional, of which one runs.
      note: what a tap there changes beside the value; empty where that is nothing.
    """

    place: str
    kind: str
    about: str
    shape: tuple[int, ...]
    times: int = 1
    address: tuple[int, ...] = ()
    obstacle: str = ""
    branched: bool = False
    note: str = ""


_TOP = Spot("", "", "", ())
"""Where the equations of a whole program are."""


def tap(value: Array, name: str) -> Array:
    """Name a value in a model's own code, so that it can be read and replaced; the value stays as it is.

    Args:
      value: an activation, whatever the transformations it is under.
      name: what `wrap` and `listing` know it by; the same in a loop or a scan, whose steps are its depth.

    Returns:
      The value.

    Raises:
      ValueError: the name is no word, or one of the library's own.
    """
    if not isinstance(name, str) or not name or name.startswith(MARK):
        raise ValueError(f"got a tap named {name!r}, expected `tap(value, name)` with a name of your own")
    return checkpoint_name(_mapped_first(value), name)


def marked(value: Any, place: str, about: str) -> Any:
    """Put a mark on every array of numbers in a value; one that is there twice, as a cell's carry, is named once."""
    leaves, tree = jax.tree.flatten(value)
    arrays = {id(leaf): leaf for leaf in leaves if _is_floating(leaf)}
    several = len(arrays) > 1
    names = {key: f"{MARK}{place}{f'.{n}' if several else ''}{SEPARATOR}{about}" for n, key in enumerate(arrays)}
    named = {key: checkpoint_name(_mapped_first(leaf), names[key]) for key, leaf in arrays.items()}
    return jax.tree.unflatten(tree, [named.get(id(leaf), leaf) for leaf in leaves])


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)


def called(function: Callable[..., Any], args: Any, kwargs: Any, place: str, about: str) -> Any:
    """Call a module with marks on what it reads, by position, and on what it returns."""
    return marked(function(*marked(tuple(args), f"{place}.input", about), **kwargs), place, about)


def tap_mark(name: str) -> str:
    """Return the name that a program written anew gives to a tap of the old one."""
    return f"{MARK}{tap_place(name)}{SEPARATOR}tap"


def tap_place(name: str) -> str:
    """Return the place of a tap in a program written anew."""
    return f"tap:{name}"


def _mapped_first(value: Array) -> Array:
    """Return the value; where a `vmap` maps it, with the mapped axis in front.

    A `vmap` has its axis wherever that suits its last operation: of a matrix times a vector, mapped over tokens, the
    tokens are last, and units would be taken for tokens. A transposition, here of nothing, has it in front.
    """
    return primitives.transpose_p.bind(jnp.asarray(value), permutation=tuple(range(jnp.ndim(value))))


def trace(run: Callable[[Any, Any], Any], params: Any, inputs: Any) -> Program:
    """Write a function of params and inputs, arrays or their shapes, as equations."""
    closed, shapes = jax.make_jaxpr(run, return_shape=True)(params, inputs)
    return Program(closed, jax.tree.structure(shapes))


def bodies(eqn: Any) -> list[Any]:
    """Return the programs inside an equation, closed or not."""
    values = [value for each in eqn.params.values() for value in (each if isinstance(each, tuple | list) else (each,))]
    return [value for value in values if isinstance(value, core.ClosedJaxpr | core.Jaxpr)]


def opened(body: Any) -> tuple[Any, list[Any]]:
    """Return the equations of a program and its constants."""
    return (body.jaxpr, list(body.consts)) if isinstance(body, core.ClosedJaxpr) else (body, [])


def own_info(jaxpr: Any) -> Any:
    """Return whose a program is, as JAX wants to be told of a part of it; versions of JAX have their own words."""
    return jaxpr.debug_info._replace(arg_names=None, result_paths=None)


def scan_parts(eqn: Any) -> tuple[int, int]:
    """Return where the carry of a scan begins and ends among its inputs.

    Versions of JAX say it in their own ways. In all of them what is sliced, and what is stacked, has an axis more
    outside of the body than inside.
    """
    body, _ = opened(eqn.params["jaxpr"])
    sliced, stacked = (
        sum(len(outer.aval.shape) > len(inner.aval.shape) for outer, inner in zip(whole, part, strict=True))
        for whole, part in ((eqn.invars, body.invars), (eqn.outvars, body.outvars))
    )
    end = len(eqn.invars) - sliced
    return end - (len(eqn.outvars) - stacked), end


def spots(jaxpr: Any, within: Spot = _TOP, line: str = "") -> Iterator[Spot]:
    """List the values that have a place, in the order they run.

    Args:
      jaxpr: the equations.
      within: how often they run, where they are, and why nothing here can be replaced.
      line: the source line whose inside this is; see `inner_line`.
    """
    for index, eqn in enumerate(jaxpr.eqns):
        kind, here = eqn.primitive.name, within._replace(address=(*within.address, index))
        inside = [opened(body)[0] for body in bodies(eqn)]
        if inside:
            steps = within.times * eqn.params["length"] if kind == "scan" else within.times
            note = within.note or (RULE_LOST if kind in RULED[:3] else "")
            deeper = here._replace(times=steps, obstacle=within.obstacle or _obstacle(kind), note=note)
            below = lambda number, deeper=deeper: deeper._replace(address=(*deeper.address, number))
            listed = [list(spots(body, below(number), inner_line(eqn))) for number, body in enumerate(inside)]
            yield from _together(listed) if kind == "cond" else (spot for each in listed for spot in each)
        named = spot_of(eqn, line)
        if named is not None:
            placed = {"address": here.address, "obstacle": within.obstacle, "note": within.note}
            yield named._replace(times=within.times, branched=within.branched, **placed)


def _obstacle(kind: str) -> str:
    if kind in OPENED:
        return ""
    if kind == "while":
        return "inside a while loop, of which the program does not say how often it runs: use jax.lax.scan"
    return f"inside {kind!r}, which is not opened: tap a value before or after it"


def _together(branches: list[list[Spot]]) -> Iterator[Spot]:
    """List the values of a conditional: those that all branches have alike, and the others as closed."""
    counts = [Counter((spot.place, spot.shape) for spot in branch) for branch in branches]
    for number, branch in enumerate(branches):
        for spot in branch:
            key = (spot.place, spot.shape)
            if any(count[key] != counts[0][key] for count in counts):
                yield spot._replace(obstacle="inside one branch of a conditional only: name it in all of them")
            elif number == 0:
                yield spot._replace(branched=True)


def spot_of(eqn: Any, enclosing: str) -> Spot | None:
    """Return the place of what an equation gives, or None where it has none."""
    shape = tuple(getattr(eqn.outvars[0].aval, "shape", ())) if eqn.outvars else ()
    if eqn.primitive.name == "name":
        name = eqn.params["name"]
        if not name.startswith(MARK):
            return Spot(name, "name", "named in the code", shape)
        place, about = name.removeprefix(MARK).rsplit(SEPARATOR, 1)
        return Spot(place, "module", about, shape)
    if enclosing == _NOWHERE or len(eqn.outvars) != 1 or not _is_activation(eqn.outvars[0].aval):
        return None
    line, within = line_of(eqn)
    if not line or line == enclosing:
        return None
    operation = _operation(eqn)
    return Spot(f"{line} {operation}" + (f" ({within})" if within else ""), "line", operation, shape)


def _is_activation(aval: Any) -> bool:
    kind = getattr(aval, "dtype", None)
    return kind is not None and jax.numpy.issubdtype(kind, jax.numpy.floating) and len(aval.shape) >= 2


def _operation(eqn: Any) -> str:
    """Name an equation as a user would: a call by what it calls."""
    if eqn.primitive.name in JITTED:
        return str(eqn.params.get("name", eqn.primitive.name))
    if eqn.primitive.name in RULED and len(inside := bodies(eqn)) and len(opened(inside[0])[0].eqns) == 1:
        return _operation(opened(inside[0])[0].eqns[0])
    return eqn.primitive.name


def line_of(eqn: Any) -> tuple[str, str]:
    """Return the user's source line of an equation, and the line within a framework that it is from, if any.

    The user's line is the innermost one that is neither JAX's nor a framework's; where there is none, as in a model
    that a framework ships, the innermost of the framework.
    """
    traceback = getattr(eqn.source_info, "traceback", None)
    if traceback is None:
        return "", ""
    within, last = "", ""
    for frame in traceback.frames:
        name = frame.file_name
        if not last and name == __file__:
            return "", ""  # of a mark
        if name.startswith((_JAX, _HERE, "<")) or (name.startswith(_STANDARD) and _SITE not in name):
            continue
        if any(f"{_SITE}{checker}{os.sep}" in name for checker in _CHECKERS):
            continue
        last = f"{os.path.basename(name)}:{frame.line_num}"
        if not any(f"{os.sep}{framework}{os.sep}" in name for framework in _FRAMEWORKS):
            return last, within
        within = within or last
    return within or last, ""


def inner_line(eqn: Any) -> str:
    """Return what `spots` is told about the inside of an equation: its line, or that lines inside are nobody's."""
    if eqn.primitive.name in RULED:
        return _NOWHERE
    if eqn.primitive.name in JITTED:
        # A cached function of JAX keeps the lines of its first call.
        info = getattr(opened(bodies(eqn)[0])[0], "debug_info", None)
        if _JAX in str(getattr(info, "func_src_info", "")):
            return _NOWHERE
    return line_of(eqn)[0]
