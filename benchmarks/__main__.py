"""`python -m benchmarks`: run benchmarks, print a table and write rows."""

import dataclasses
import importlib
import math
import sys
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal, get_args

import jax
import tyro
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.records import Row, merge_csv

Name = Literal[
    "signatures",
    "calibration",
    "sinkhorn",
    "das",
    "addition",
    "rotations",
    "scaling",
    "reduction",
    "certification",
    "suffix",
    "decoder_das",
    "sweeps",
    "wrapped",
    "language",
    "growth",
]
ByName = Literal["growth", "aot", "forecast"]
GROWTH, AOT, FORECAST = get_args(ByName)
NEEDS_MORE = ("language",)
"""Benchmarks of what no extra installs, left out where it is not there."""
SPEED = tuple(name for name in get_args(Name) if name != GROWTH)


@dataclasses.dataclass(frozen=True)
class Options:
    """Time this library beside PyTorch, pyvene and POT on equal work; a few minutes on two cores."""

    names: Annotated[
        tuple[Name | ByName, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[NAMES...]"),
    ] = get_args(Name)
    """Benchmarks to run, by default all but the last:
    signatures   effect signatures of 48 sites;
    calibration  the paper's grid of 19200 handles;
    sinkhorn     a batch of couplings;
    das          96 rotations trained at once;
    addition     120 rotations of a GRU trained at once, and calibrated;
    rotations    parametrizations of the rotation, value and gradient;
    scaling      signatures of ever more sites, and their compile time;
    reduction    elimination path, affine maps, statistics and curvature of a 512-unit layer;
    certification  confidence sequences over 10000 trials;
    suffix       4 layers of a transformer patched at the last token of 200 prompts;
    decoder_das  24 rotations of ranks 1 to 64 trained in a transformer 576 wide;
    sweeps       every head of every layer and position of a GPT-2 patched, and screened to first order;
    wrapped      a wrapped model beside one with taps written by hand;
    language     SmolLM2-135M recorded, and swept at one token and at four; left out where it is not installed;
    growth       time and memory of every driver over two decades of sizes, and plots;
    aot          every driver compiled for an H100 and a TPU v5e that are not there, one and eight; only by name;
    forecast     operations of PLOT and DAS on 2, 9 and 70 billion parameters; only by name."""
    out: Path = Path("benchmarks/results/speed.csv")
    """Where the rows go, as CSV; rows of other benchmarks stay there."""
    budget: float = 2.0
    """Seconds of warm calls per implementation, and never fewer than three calls."""
    resume: bool = False
    """Of aot: keep the rows that this version of JAX has compiled, and compile the others."""


def main() -> None:
    """Parse the command line and run; a missing extra or a disagreement ends in one clear line and exit status 2."""
    options = tyro.cli(Options, prog="python -m benchmarks", description=__doc__)
    jax.config.update("jax_enable_compilation_cache", False)
    rows: list[Row] = []
    try:
        if GROWTH in options.names:
            importlib.import_module("benchmarks.growth").grow(options.out.parent, options.budget / 4)
        if AOT in options.names:
            importlib.import_module("benchmarks.aot").compile_all(options.out.parent, resume=options.resume)
        if FORECAST in options.names:
            importlib.import_module("benchmarks.forecast").forecast(options.out.parent)
        names = [name for name in options.names if name not in (GROWTH, AOT, FORECAST)]
        for name in (bar := tqdm(names, unit="benchmark", disable=None, leave=False)):
            bar.set_description_str(name)
            rows += measured(name, options.budget)
    except (ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if not rows:
        return
    show(rows)
    merge_csv(options.out, rows)
    print(f"rows  {options.out}")


def measured(name: str, budget: float) -> list[Row]:
    """Run one benchmark; one that needs more than is installed says what, and gives no rows."""
    try:
        return importlib.import_module(f"benchmarks.{name}").run(budget)
    except ImportError as error:
        if name not in NEEDS_MORE:
            raise
        print(f"{name} is left out: {error}", file=sys.stderr)
        return []


def _shown(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def show(rows: list[Row]) -> None:
    """Print a table for every comparison, and the machine and versions below them."""
    console = Console()
    for (benchmark, size), group in groupby(rows, key=lambda row: (row.benchmark, row.size)):
        table = Table(title=f"{benchmark}: {size}", title_justify="left")
        table.add_column("seconds: fastest warm call", overflow="fold", min_width=24)
        for column in ("seconds", "compile", "MB", "x user", "x best"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in group:
            compile_seconds = f"{row.seconds_compile:.2f}" if row.seconds_compile else ""
            numbers = (row.memory, row.speedup, row.speedup_best)
            table.add_row(row.implementation, _shown(row.seconds), compile_seconds, *map(_shown, numbers))
        console.print(table)
    console.print("x user: times what users call takes (the baseline); x best: times the fastest rival", style="dim")
    for device, cpus, versions in dict.fromkeys((row.device, row.cpus, row.versions) for row in rows):
        console.print(f"{device}, {cpus} processors; {versions}", style="dim")


if __name__ == "__main__":
    main()
