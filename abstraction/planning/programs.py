"""A program: a jitted function, and what it is called with. It can be run, or looked at before it runs.

    total  =  arguments + outputs + temporaries - what outputs share with arguments

in bytes of one device, as XLA plans them when it compiles. A program that is looked at is not compiled again when it
runs, or is looked at again: JAX keeps it. Arguments may be shapes (`jax.ShapeDtypeStruct`), of a device that is not
there: then a program can be compiled and looked at, and nothing else.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from abstraction.sharding import to_device

_REFUSED = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|exceeded \w+ capacity")
"""What a compiler says that plans for a device and finds it too small."""


class Footprint(NamedTuple):
    """Bytes of one device.

    Attributes:
      arguments: what the program is given.
      outputs: what it returns.
      temporary: what it needs in between.
      aliased: outputs that take the place of arguments.
    """

    arguments: int
    outputs: int
    temporary: int
    aliased: int

    @property
    def total(self) -> int:
        """All of it, counted once."""
        return self.arguments + self.outputs + self.temporary - self.aliased


@dataclass(frozen=True, eq=False)
class Program:
    """A call that has not been made.

    Attributes:
      function: what `jax.jit` returns.
      arguments: arrays and trees of them, or their shapes.
      options: static arguments, by name.
    """

    function: Any
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]

    def __call__(self) -> Any:
        """Run it; arrays of the host are sent to the device."""
        return self.function(*to_device(self.arguments), **self.options)

    @property
    def name(self) -> str:
        """What the function is called."""
        return self.function.__name__.strip("_")


def footprint(program: Program) -> Footprint | None:
    """Compile a program, and look at what it holds.

    Returns:
      What it holds; None where the compiler finds it larger than the device, or does not tell.
    """
    lowered = program.function.lower(*program.arguments, **program.options)
    try:
        return footprint_of(lowered.compile())
    except jax.errors.JaxRuntimeError as error:
        if _REFUSED.search(str(error)) is None:
            raise
        return None


def footprint_of(compiled: Any) -> Footprint | None:
    """Read what a compiled program holds, None where its compiler does not tell."""
    told = compiled.memory_analysis()
    if told is None:
        return None
    sizes = (told.argument_size_in_bytes, told.output_size_in_bytes, told.temp_size_in_bytes, told.alias_size_in_bytes)
    return Footprint(*map(int, sizes))
