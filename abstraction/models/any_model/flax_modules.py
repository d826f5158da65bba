"""Marks on what Flax modules read and return: Linen by interception, NNX by a subclass of each module's own class.

Neither touches the user's source or his objects. A Linen module is applied under an interceptor. An NNX module is
cloned and every module in the clone gets a subclass of its class whose `__call__` marks its input and output; the graph
definition carries the class, so it survives `nnx.scan`, `nnx.remat` and `nnx.vmap`.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from flax import linen, nnx

from abstraction.models.any_model.program import called
from abstraction.typing import Params

_UNCALLED = ("setup", "__init__", "__post_init__")


@contextlib.contextmanager
def linen_marks() -> Iterator[None]:
    """Mark what every Linen module returns that runs inside."""

    def intercept(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name in _UNCALLED:
            return function(*args, **kwargs)
        path = "/".join(context.module.path) or "."
        place = path if context.method_name == "__call__" else f"{path}.{context.method_name}"
        return called(function, args, kwargs, place, type(context.module).__name__)

    with linen.intercept_methods(intercept):
        yield


@dataclass(frozen=True)
class LinenCall:
    """Apply a Linen module: `variables, inputs -> outputs`. Compares by the module."""

    module: linen.Module

    def __call__(self, variables: Params, inputs: Any) -> Any:
        return self.module.apply(variables, inputs)


@dataclass(frozen=True)
class NnxCarrier:
    """An NNX module without its arrays; compares by value."""

    graph: Any

    def join(self, params: Params) -> Any:
        """Return the module."""
        return nnx.merge(self.graph, params)


def split_nnx(module: nnx.Module) -> tuple[NnxCarrier, Params]:
    """Return a marked copy of a module, without its arrays, and these."""
    copy = nnx.clone(module)
    for path, each in list(nnx.iter_graph(copy)):
        if isinstance(each, nnx.Module) and "__call__" in dir(type(each)):
            place = "/".join(map(str, path)) or "."
            object.__setattr__(each, "__class__", _marking(type(each), place))
    graph, state = nnx.split(copy)
    return NnxCarrier(graph), nnx.to_pure_dict(state)


@cache
def _marking(kind: type, place: str) -> type:
    """Return a subclass that marks what it returns; one for each class and place, so that two copies are equal."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return called(partial(kind.__call__, self), args, kwargs, place, kind.__name__)

    return type(kind)(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
