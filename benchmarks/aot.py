"""`python -m benchmarks aot`: every heavy driver compiled for accelerators that are not there.

    argument + output + temporary bytes of one device, by XLA's plan for it;   fits where they are no more than it has

A chunk is chosen as a run would choose it on that device (`planning`): what pays, cut to what fits. A row is what a
compiler said; it says nothing about time. Needs `libtpu`, or `jax[cuda13]`, in the environment; a target whose compiler
is missing keeps the rows it has.
"""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
from tqdm import tqdm

from abstraction.explaining import Case, Planned, Where, plan_case
from abstraction.planning import TARGETS, target_devices
from abstraction.sharding import device_mesh
from benchmarks.drivers import cases
from benchmarks.records import write_csv

AOT = "aot"
TABLE = Path("aot.csv")
MESHES = {"mcqa, Gemma-2-2B": {"pairs": 2, "model": 4}, "mcqa, Gemma-2-9B": {"model": 8}}
"""How eight devices share a case, where not by pairs and candidates: a large model is split itself."""
_VERSIONS = f"jax {jax.__version__}"
_USUAL = {"pairs": 4, "candidates": 2}


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
    operations: float
    seconds_compile: float
    collectives: str
    versions: str


def compile_all(
    folder: Path, names: Sequence[str] = ("h100", "v5e"), counts: Sequence[int] = (1, 8), *, resume: bool = False
) -> None:
    """Compile every driver for every target that has a compiler here, and write the table after each.

    Args:
      folder: where the table is.
      names: of targets.
      counts: of devices.
      resume: rows that are in the table stay, and the others are compiled.
    """
    path, missing = folder / TABLE, []
    for name in names:
        for count in counts:
            try:
                places = list(_placed_cases(name, count))
            except ValueError as error:
                missing.append(str(error))
                continue
            rows = _known(path, (name, count)) if resume else []
            done = {row[2:5] for row in rows}
            total = sum(len(case.drivers()) for case, _ in places)
            with tqdm(total=total, initial=len(rows), unit="program", disable=None, leave=False) as bar:
                for case, where in places:
                    bar.set_description(f"{count} x {name}, {case.name}")
                    known = lambda driver, case=case, done=done: (case.name, driver.name, driver.size) in done
                    for found in plan_case(case, where, tell=bar.set_postfix_str, known=known):
                        rows.append(_row((name, count, where.memory), case, found))
                        _write(path, (name, count), rows)
                        bar.update()
    for words in dict.fromkeys(missing):
        print(words)


def _placed_cases(name: str, count: int) -> Iterator[tuple[Case, Where]]:
    """Yield every case, on a device or on a mesh of several.

    Raises:
      ValueError: there is no compiler for them.
    """
    where = Where.of(name)
    for case in cases():
        if count == 1:
            yield case, where
        else:
            mesh = device_mesh(**MESHES.get(case.name, _USUAL), devices=target_devices(name, count))
            yield replace(case, mesh=mesh), where._replace(place=mesh)


def _row(where: tuple[str, int, int | None], case: Case, found: Planned) -> Row:
    (name, devices, memory), driver, footprint = where, found.driver, found.ahead.footprint
    sizes = [math.nan] * 4 if footprint is None else [*footprint[:3], footprint.total]
    arguments, outputs, temporary, total = (size / 1e9 for size in sizes)
    collectives = ", ".join(f"{count} {kind}" for kind, count in sorted(found.ahead.collectives.items())) or "none"
    fits = "yes" if found.fits(memory) else "no"
    return Row(
        name, devices, case.name, driver.name, driver.size, driver.wanted, found.chunk, arguments, outputs, temporary,
        total, fits, found.operations, found.seconds_compile, collectives, _VERSIONS,
    )  # fmt: skip


def _known(path: Path, where: tuple[str, int]) -> list[Row]:
    """Read the rows of some devices that were compiled by this version of JAX."""
    return [Row(*row) for row in _cells(path) if (row[0], int(row[1])) == where and row[-1] == _VERSIONS]  # pyright: ignore[reportArgumentType]


def _cells(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        header, *cells = csv.reader(file)
    return cells if tuple(header) == Row._fields else []


def _write(path: Path, where: tuple[str, int], rows: Sequence[Row]) -> None:
    """Write rows in place of those of the same devices; those of others stay; and the same as a page."""
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    cells = [row for row in _cells(path) if (row[0], int(row[1])) != where] + cells
    order = {case: place for place, case in enumerate(case.name for case in cases())}
    cells.sort(key=lambda row: (row[0], int(row[1]), order.get(row[2], len(order))))
    write_csv(path, Row._fields, cells)
    path.with_suffix(".md").write_text("\n".join(_page(cells)), encoding="utf-8")


def _page(cells: Iterable[Sequence[str]]) -> Iterable[str]:
    """Write the rows as tables, one for each target and case."""
    rows = [Row(*row) for row in cells]  # pyright: ignore[reportArgumentType]
    yield "# Compiled ahead of time\n"
    yield "Every heavy driver at the shapes of the paper's experiments and of larger models, compiled for accelerators"
    yield "without one by `python -m benchmarks aot`. Sizes are XLA's plan for one device, in GB; `chunk` is how many"
    yield "pairs, sites, handles or searches go at once: what pays, cut to three quarters of the memory where that is"
    yield "less. A 0 there: the arguments alone are more than the device has, and nothing was compiled. Eight devices"
    yield "share small cases as 4 of pairs x 2 of candidates, Gemma-2-2B as 2 of pairs x 4 of the model, 9B as 8 of the"
    yield "model. Operations are those of all devices, of a search one epoch.\n"
    for target, devices, case in dict.fromkeys((row.target, row.devices, row.case) for row in rows):
        here = TARGETS[target]
        yield f"## {case}, {devices} x {here.name} ({here.memory / 1e9:.1f} GB)\n"
        columns = "driver", "size", "chunk", "arguments", "outputs", "temporary", "total", "fits", "operations"
        yield f"| {' | '.join(columns)} | compile, s | collectives |"
        yield "|---" * 11 + "|"
        for row in rows:
            if (row.target, row.devices, row.case) == (target, devices, case):
                chunk = row.chunk if row.chunk == row.wanted else f"{row.chunk} of {row.wanted}"
                yield (
                    f"| {row.driver} | {row.size} | {chunk} | {row.arguments} | {row.outputs} | {row.temporary} | "
                    f"{row.total} | {row.fits} | {row.operations} | {row.seconds_compile} | {row.collectives} |"
                )
        yield ""
