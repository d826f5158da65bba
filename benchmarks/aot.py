"""`python -m benchmarks aot`: every heavy driver compiled for accelerators that are not there.

    argument + output + temporary bytes of one device, by XLA's plan for it;   fits where they are no more than it has

A chunk is chosen as a run would choose it on that device (`planning`): what pays, cut to what fits. A row is what a
compiler said; it says nothing about time. Needs `libtpu`, or `jax[cuda13]`, in the environment; a target whose compiler
is missing keeps the rows it has.
"""

import csv
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from abstraction.planning import TARGETS, Ahead, Footprint, compile_ahead, fitting_chunk, placed_on, target_devices
from abstraction.planning.programs import Program
from benchmarks.drivers import Case, Driver, cases, drivers
from benchmarks.records import write_csv

AOT = "aot"
TABLE = Path("aot.csv")


class Row(NamedTuple):
    """One program on one target; sizes in GB of one device."""

    target: str
    devices: int
    case: str
    driver: str
    size: str
    wanted: int
    chunk: int
    arguments: float
    outputs: float
    temporary: float
    total: float
    fits: str
    seconds_compile: float
    collectives: str
    versions: str


def compile_all(folder: Path, names: Sequence[str] = ("h100", "v5e")) -> None:
    """Compile every driver for every target that has a compiler here, and write the table after each."""
    path, missing = folder / TABLE, []
    for name in names:
        try:
            devices = target_devices(name)
        except ValueError as error:
            missing.append(str(error))
            continue
        rows: list[Row] = []
        every = [(case, driver) for case in cases() for driver in drivers(case)]
        for case, driver in (bar := tqdm(every, unit="program", disable=None, leave=False)):
            bar.set_description(f"{name}, {case.name}, {driver.name}")
            rows.append(compiled_row(name, devices, case, driver))
            _write(path, name, rows)
    for words in missing:
        print(words)


def compiled_row(name: str, devices: Sequence[Any], case: Case, driver: Driver) -> Row:
    """Compile a driver for a target, at the chunk that pays or a smaller one that fits.

    Args:
      name: of the target.
      devices: what is compiled for; several are one mesh, which needs drivers that can be sharded.
      case: the experiment.
      driver: the driver.

    Raises:
      ValueError: more than one device.
    """
    if len(devices) != 1:
        raise ValueError(f"got {len(devices)} devices, expected 1: programs here are placed on one device")
    target, sharding = TARGETS[name], jax.sharding.SingleDeviceSharding(devices[0])
    asked, found = [0], {}

    def at(chunk: int) -> Program:
        asked[0] = chunk
        program = driver.at(chunk)
        return Program(program.function, placed_on(program.arguments, sharding), program.options)

    def look(program: Program) -> Footprint | None:
        start = time.perf_counter()
        ahead = compile_ahead(program, sharding)
        found[asked[0]] = ahead, time.perf_counter() - start
        return ahead.footprint

    given = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(at(1).arguments))
    if given > target.memory:  # nothing to compile: what goes in is too much
        ahead, chunk, seconds = Ahead(Footprint(given, 0, 0, 0), {}), 0, math.nan
    else:
        try:
            chunk = fitting_chunk(at, driver.wanted, driver.guess, memory=target.memory, look=look)
        except ValueError:
            chunk = 1
        if chunk not in found:
            look(at(chunk))
        ahead, seconds = found[chunk]
    sizes = [math.nan] * 4 if ahead.footprint is None else [*ahead.footprint[:3], ahead.footprint.total]
    arguments, outputs, temporary, total = (size / 1e9 for size in sizes)
    collectives = ", ".join(f"{count} {kind}" for kind, count in sorted(ahead.collectives.items())) or "none"
    fits = "yes" if ahead.fits(target.memory) else "no"
    return Row(
        name, len(devices), case.name, driver.name, driver.size, driver.wanted, chunk, arguments, outputs, temporary,
        total, fits, seconds, collectives, f"jax {jax.__version__}",
    )  # fmt: skip


def _write(path: Path, target: str, rows: Sequence[Row]) -> None:
    """Write rows in place of those of the same target; those of others stay; and the same as a page."""
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            header, *kept = csv.reader(file)
        if tuple(header) == Row._fields:
            cells = [row for row in kept if row[0] != target] + cells
    cells.sort(key=lambda row: row[0])
    write_csv(path, Row._fields, cells)
    path.with_suffix(".md").write_text("\n".join(_page(cells)), encoding="utf-8")


def _page(cells: Iterable[Sequence[str]]) -> Iterable[str]:
    """Write the rows as tables, one for each target and case."""
    rows = [Row(*row) for row in cells]  # pyright: ignore[reportArgumentType]
    yield "# Compiled ahead of time\n"
    yield "Every heavy driver at the shapes of the paper's experiments and of larger models, compiled for accelerators"
    yield "without one by `python -m benchmarks aot`. Sizes are XLA's plan for one device, in GB; `chunk` is how many"
    yield "pairs, sites, handles or searches go at once: what pays, cut to three quarters of the memory where that is"
    yield "less. A 0 there: the arguments alone are more than the device has, and nothing was compiled.\n"
    for target, devices, case in dict.fromkeys((row.target, row.devices, row.case) for row in rows):
        here = TARGETS[target]
        yield f"## {case}, {devices} x {here.name} ({here.memory / 1e9:.1f} GB)\n"
        yield "| driver | size | chunk | arguments | outputs | temporary | total | fits | compile, s | collectives |"
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for row in rows:
            if (row.target, row.devices, row.case) == (target, devices, case):
                chunk = row.chunk if row.chunk == row.wanted else f"{row.chunk} of {row.wanted}"
                yield (
                    f"| {row.driver} | {row.size} | {chunk} | {row.arguments} | {row.outputs} | {row.temporary} | "
                    f"{row.total} | {row.fits} | {row.seconds_compile} | {row.collectives} |"
                )
        yield ""
