"""A user's model as a pure function of arrays, `params, inputs -> outputs`, with marks on what modules return.

The model may be a Linen, NNX or Equinox module, or a function of params and inputs; the params of a function may be an
NNX or Equinox module themselves. What is no array is kept apart (a *carrier*) and is part of what is compiled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flax import linen, nnx

from abstraction.models.any_model.equinox_modules import EquinoxCall, is_equinox, split_equinox
from abstraction.models.any_model.flax_modules import LinenCall, linen_marks, split_nnx
from abstraction.models.any_model.haiku_modules import haiku_marks
from abstraction.typing import Params


@dataclass(frozen=True)
class Plain:
    """Params that are a pytree of arrays."""

    def join(self, params: Params) -> Params:
        """Return the params."""
        return params


@dataclass(frozen=True)
class ModuleCall:
    """Call a module on its inputs: `module, inputs -> outputs`."""

    def __call__(self, module: Any, inputs: Any) -> Any:
        return module(inputs)


@dataclass(frozen=True)
class Function:
    """A pure function of arrays; compares by value where the user's function does.

    Attributes:
      call: the user's function of params and inputs.
      carrier: what is no array in the params.
      read: turns what it returns into outputs `[N, C]`, or None.
    """

    call: Callable[[Any, Any], Any]
    carrier: Any
    read: Callable[[Any], Any] | None = None

    def __call__(self, params: Params, inputs: Any) -> Any:
        """Run it, with marks on what modules return."""
        with linen_marks(), haiku_marks():
            outputs = self.call(self.carrier.join(params), inputs)
        return outputs if self.read is None else self.read(outputs)


def as_function(model: Any, params: Any, read: Callable[[Any], Any] | None) -> tuple[Function, Params]:
    """Write a model and its params as a pure function and arrays.

    Raises:
      ValueError: the model is neither a module nor a function, or params are missing, or given twice.
    """
    if isinstance(model, linen.Module):
        if params is None:
            raise ValueError(f"got no params of the Linen module {type(model).__name__}, expected its variables")
        return Function(LinenCall(model), Plain(), read), params
    if isinstance(model, nnx.Module) or is_equinox(model):
        if params is not None:
            raise ValueError(
                f"got params beside the module {type(model).__name__}, which has its own, expected None; for another "
                "call give a function of the module and inputs, and the module as params"
            )
        call = ModuleCall() if isinstance(model, nnx.Module) else EquinoxCall()
        return _split(call, model, read)
    if not callable(model):
        raise ValueError(f"got a model {type(model).__name__}, expected a Linen, NNX or Equinox module, or a function")
    return _split(model, params, read)


def _split(call: Any, params: Any, read: Callable[[Any], Any] | None) -> tuple[Function, Params]:
    if isinstance(params, nnx.Module):
        carrier, arrays = split_nnx(params)
    elif is_equinox(params):
        carrier, arrays = split_equinox(params)
    else:
        carrier, arrays = Plain(), params
    return Function(call, carrier, read), arrays
