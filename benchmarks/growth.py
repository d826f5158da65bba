"""`python -m benchmarks growth`: what one more of everything costs, in time and memory, over two decades.

Beside every size stands what one more costs there: the seconds since the size before over the steps since then. Where
the mathematics is linear, that is flat.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.growing import AXES, Axis
from benchmarks.records import measure, write_csv

_LONG = 5.0
"""Seconds from which on two calls are enough."""


class Point(NamedTuple):
    """One driver at one size.

    Attributes:
      driver: what was called.
      axis: what grows.
      size: to what.
      seconds: the fastest warm call.
      seconds_compile: what the first took longer.
      memory: bytes that a warm call holds at most above what there was before it.
      one_more: seconds since the size before over the steps since then; NaN for the first.
    """

    driver: str
    axis: str
    size: int
    seconds: float
    seconds_compile: float
    memory: float
    one_more: float


def grow(folder: Path, budget: float) -> None:
    """Measure every axis, draw it, and print and write all points."""
    folder.mkdir(parents=True, exist_ok=True)
    points: list[Point] = []
    bar = tqdm(total=sum(len(axis.sizes) for axis in AXES), unit="size", disable=None, leave=False)
    for axis in AXES:
        bar.set_description_str(f"{axis.driver} by {axis.axis}")
        along = []
        for point in _along(axis, budget):
            along.append(point)
            bar.update()
        draw(axis, along, folder / f"growth_{axis.driver}_{axis.axis}.png")
        points += along
    bar.close()
    show(points)
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in point] for point in points]
    write_csv(folder / "growth.csv", Point._fields, cells)
    print(f"points and plots  {folder}")


def _along(axis: Axis, budget: float) -> Iterator[Point]:
    before = None
    for size in axis.sizes:
        call = axis.make(size)
        start = time.perf_counter()
        jax.block_until_ready(call())
        long = time.perf_counter() - start > _LONG
        timing = measure(call, budget=0 if long else budget, compiled=True, least=1 if long else 3)
        one_more = math.nan if before is None else (timing.seconds - before.seconds) / (size - before.size)
        before = Point(axis.driver, axis.axis, size, timing.seconds, timing.seconds_compile, timing.memory, one_more)
        yield before


def show(points: list[Point]) -> None:
    """Print the points as a table."""
    table = Table(title="growth: seconds of the fastest warm call, and what one more costs there")
    for column in ("driver", "axis"):
        table.add_column(column)
    for column in ("size", "seconds", "compile", "MB", "one more, ms"):
        table.add_column(column, justify="right")
    last = None
    for point in points:
        new = last is None or (point.driver, point.axis) != (last.driver, last.axis)
        if new and last is not None:
            table.add_section()
        more = "" if math.isnan(point.one_more) else f"{1e3 * point.one_more:.3g}"
        table.add_row(
            *((point.driver, point.axis) if new else ("", "")), str(point.size), f"{point.seconds:.3g}",
            f"{point.seconds_compile:.2f}", f"{point.memory / 1e6:.3g}", more,
        )  # fmt: skip
        last = point
    Console().print(table)


def draw(axis: Axis, points: list[Point], path: Path) -> None:
    """Draw time and memory over the size, beside the growth that the mathematics has."""
    figure = Figure(figsize=(3.4, 2.6), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    sizes = np.array([point.size for point in points])
    seconds, memory = (np.array([getattr(point, name) for point in points]) for name in ("seconds", "memory"))
    left.loglog(sizes, seconds, "o-", color="#0072b2", label="seconds")
    right.loglog(sizes, memory / 1e6, "s--", color="#d55e00", label="megabytes")
    power = "size" if axis.power == 1 else f"size to the power of {axis.power}"
    left.loglog(sizes, seconds[-1] * (sizes / sizes[-1]) ** axis.power, ":", color="0.5", label=f"as the {power}")
    left.set_xlabel(axis.axis)
    left.set_ylabel("seconds, warm")
    right.set_ylabel("megabytes at most")
    right.set_ylim(0.5, max(10.0, 2 * memory.max() / 1e6))  # below a megabyte it is pages that come and go
    handles = [*left.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    left.legend(handles=handles, fontsize="x-small", frameon=False)
    left.set_title(f"{axis.driver}\n{axis.fixed}", fontsize="x-small")
    figure.savefig(path, dpi=200)
