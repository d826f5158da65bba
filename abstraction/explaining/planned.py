"""What a driver would cost on a device: its chunk, its memory as that device's compiler plans it, its operations.

    seconds  >=  max(operations / flops, bytes / bandwidth)          of a kind of device: a bound, not a forecast

A chunk is chosen as a run chooses it (`planning`): what pays, cut to what fits. For a kind of device that is not there
(`planning.TARGETS`) programs are compiled ahead of time; without one, for the devices that are there.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from abstraction.explaining.cases import Asks, Case, Driver
from abstraction.explaining.operations import count_operations
from abstraction.planning import (
    TARGETS,
    Ahead,
    Footprint,
    Program,
    compile_ahead,
    device_memory,
    fitting_chunk,
    placed_on,
    target_devices,
)


class Planned(NamedTuple):
    """A driver as it would run.

    Attributes:
      driver: which.
      chunk: how many go at once; 0 where what goes in is already more than the device has, and nothing was compiled.
      operations: all in all, of all devices; of a search that never stops early.
      ahead: what its compiler says.
      seconds_compile: how long that took.
    """

    driver: Driver
    chunk: int
    operations: float
    ahead: Ahead
    seconds_compile: float

    def fits(self, memory: int | None) -> bool:
        """Whether one device of so much memory holds it."""
        return memory is None or self.ahead.fits(memory)


class Where(NamedTuple):
    """Where programs would run.

    Attributes:
      name: of a kind of device in `TARGETS`, or what is there.
      memory: bytes of one device, None where nothing tells.
      place: on it, the sharding of a device, or a mesh of several.
      flops: operations a second of one device, None where it is not known.
      bandwidth: bytes a second of its memory.
    """

    name: str
    memory: int | None
    place: Any
    flops: float | None = None
    bandwidth: float | None = None

    @classmethod
    def of(cls, target: str | None = None) -> "Where":
        """Look at a kind of device, or at the first one that is there.

        Raises:
          ValueError: no such kind, or its compiler is not installed.
        """
        if target is None:
            device = jax.local_devices()[0]
            return cls(f"this {device.platform}", device_memory(), SingleDeviceSharding(device))
        (device,), known = target_devices(target), TARGETS[target]
        return cls(known.name, known.memory, SingleDeviceSharding(device), known.flops, known.bandwidth)

    def bound(self, operations: float, footprint: Footprint | None) -> float | None:
        """Return the seconds that a program takes at least: its operations, or what it holds read once."""
        if self.flops is None or self.bandwidth is None:
            return None
        held = 0 if footprint is None else footprint.total
        return max(operations / self.flops, held / self.bandwidth)


def plan_case(
    case: Asks,
    where: Where,
    *,
    tell: Callable[[str], None] = lambda text: None,
    known: Callable[[Driver], bool] = lambda driver: False,
) -> Iterator[Planned]:
    """Plan every driver of a case.

    Args:
      case: the experiment.
      where: for what device.
      tell: is told what is compiled.
      known: tells drivers that need not be planned.
    """
    alone = replace(case, mesh=None) if isinstance(case, Case) else case
    for driver, counted in zip(case.drivers(), alone.drivers(), strict=True):
        if known(driver):
            continue
        tell(f"{driver.name}, {driver.size}")
        yield plan_driver(driver, where, count_operations(counted.at(1)) * counted.calls)


def plan_driver(driver: Driver, where: Where, operations: float) -> Planned:
    """Choose a driver's chunk, and compile it."""
    asked, found = [0], {}

    def at(chunk: int) -> Program:
        asked[0] = chunk
        program = driver.at(chunk)
        return Program(program.function, placed_on(program.arguments, where.place), program.options)

    def look(program: Program) -> Footprint | None:
        start = time.perf_counter()
        ahead = compile_ahead(program, where.place)
        found[asked[0]] = ahead, time.perf_counter() - start
        return ahead.footprint

    given = sum(_bytes_of_one(leaf) for leaf in jax.tree.leaves(at(1).arguments))
    if where.memory is not None and given > where.memory:
        return Planned(driver, 0, operations, Ahead(Footprint(given, 0, 0, 0), {}), math.nan)
    try:
        chunk = fitting_chunk(at, driver.wanted, driver.guess, memory=where.memory, look=look)
    except ValueError:
        chunk = 1
    if chunk not in found:
        look(at(chunk))
    return Planned(driver, chunk, operations, *found[chunk])


def _bytes_of_one(leaf: Any) -> int:
    shard: Sequence[int] = leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shard) * leaf.dtype.itemsize
